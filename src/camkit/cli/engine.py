"""`camkit explain --engine`, and results at an address: tables of maps, part by part."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from camkit.cli.parameters import PARTLY
from camkit.cli.terminal import say, say_json
from camkit.errors import UsageError, counted
from camkit.registry import discovery, extras, loading

if TYPE_CHECKING:
    from camkit.contracts.engine import Engine, Outcome
    from camkit.explaining.request import ExplainRequest

MAX_TOLD = 100  # failures that are told one by one
EVERY = 10.0  # seconds between two lines of progress where there is no terminal


def check(values: dict[str, Any], given: set[str], of_pictures: Sequence[str]) -> None:
    """Raise `UsageError` for what an engine's tables have not.

    given: options that the user gave; of_pictures: those among them that say how pictures are drawn.
    """
    engine = values["engine"]
    extras.require("addresses", f"--engine {engine}" if engine != "local" else f"--out {values['out']}")
    found = discovery.get("engine", engine)
    if "format" in given and values["format"] != "parquet":
        raise UsageError(
            f"tables are written here: --format parquet, not {values['format']} (`camkit render` draws)"
        )
    if of_pictures:
        shown = options_of(of_pictures)
        raise UsageError(f"tables have no pictures: leave {shown} out, and use `camkit render`")
    options = {name: values[name] for name in ("actors", "gpus_per_actor", "address") if name in given}
    if options and found.dist == discovery.HOST:
        raise UsageError(f"the engine local has no {options_of(options)}: --engine ray has")
    values["engine_options"] = options


def options_of(names: Iterable[str]) -> str:
    """`--actors, --open`: options as a user writes them."""
    return ", ".join(f"--{name.removesuffix('_picture').replace('_', '-')}" for name in names)


def run(
    request: ExplainRequest, listing: Any, out: str, values: dict[str, Any], output: dict[str, bool]
) -> None:
    """Explain, tell what was done, and exit as the command does."""
    from camkit.engines.running import EngineRun

    begun = time.monotonic()
    quiet = output["quiet"]
    engine: Engine = loading.make("engine", values["engine"], values["engine_options"])
    done = EngineRun(
        request,
        listing,
        out,
        workers=values["workers"],
        part_size=values["part_size"],
        note=lambda text: None if quiet else say(f"Note: {text}", err=True),
    )
    told = _Told(out, output)
    try:
        with _bar(quiet) as tick, _interruptible():
            for outcome in done.outcomes(engine):
                told.outcome(outcome)
                tick(told.photographs)
    except KeyboardInterrupt:
        say(
            f"\nInterrupted: {counted(told.maps, 'map')} of this run are in {out}; --resume does the rest",
            err=True,
        )
        raise SystemExit(130) from None
    told.end(done.skipped, time.monotonic() - begun)
    if told.failed:
        raise SystemExit(PARTLY if (told.maps or done.skipped) and request.on_error == "skip" else 1)


class _Told:
    """Tells of each part, and counts."""

    def __init__(self, out: str, output: dict[str, bool]) -> None:
        self._out, self._output = out, output
        self.maps = self.failed = self.photographs = self.parts = 0
        self._warned: set[str] = set()

    def outcome(self, outcome: Outcome) -> None:
        """A part that is done."""
        from camkit.engines import store, tables

        self.parts += 1
        self.maps += outcome.rows
        self.photographs += len(outcome.part.photographs)
        for _, error in outcome.failed[: max(0, MAX_TOLD - self.failed)]:
            say(f"Error: {error}", err=True)
        self.failed += len(outcome.failed)
        if self._output["quiet"]:
            return
        for warning in outcome.warnings:
            if warning not in self._warned and len(self._warned) < MAX_TOLD:
                self._warned.add(warning)
                say(f"Warning: {warning}", err=True)
        file = store.joined(self._out, tables.name_of(outcome.part.id))
        if self._output["as_json"]:
            import json

            facts = {"file": file, "photographs": len(outcome.part.photographs), "maps": outcome.rows}
            say_json(json.dumps({**facts, "failed": len(outcome.failed)}))
        elif self._output["verbose"]:
            say(f"{file}: {counted(outcome.rows, 'map')}, {len(outcome.failed)} failed")

    def end(self, skipped: int, seconds: float) -> None:
        """How much was done, and where it is."""
        if self.failed:
            more = f", of which {MAX_TOLD} are told above" if self.failed > MAX_TOLD else ""
            say(f"{counted(self.maps, 'map')} done, {self.failed} failed{more}", err=True)
        if self._output["quiet"]:
            return
        if skipped:
            say(f"{counted(skipped, 'part')} {'was' if skipped == 1 else 'were'} done already", err=True)
        if not self.parts:
            say(f"Nothing is left to do: everything is in {self._out}", err=True)
            return
        rate = self.photographs / max(seconds, 1e-9)
        say(
            f"{counted(self.photographs, 'photograph')}, {counted(self.maps, 'map')} in "
            f"{counted(self.parts, 'table')} of {self._out}; {seconds:.1f} s with start-up, {rate:.1f} a "
            "second",
            err=True,
        )


@contextmanager
def _bar(quiet: bool) -> Iterator[Any]:
    """A function that is told how many photographs are done: a line on stderr, now and then, or a bar."""
    begun, last = time.monotonic(), time.monotonic()

    def line(count: int) -> None:
        nonlocal last
        if not quiet and time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f"{counted(count, 'photograph')}, {count / (last - begun):.1f} a second", err=True)

    if quiet or not sys.stderr.isatty():
        yield line
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("listing")

        def tick(count: int) -> None:
            rate = count / (time.monotonic() - begun)
            bar.update(task, description=f"{counted(count, 'photograph')}, {rate:.1f} a second")

        yield tick


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM ends a run as Ctrl-C does, so that what was started on a cluster ends, too."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
