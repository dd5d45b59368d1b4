"""`camkit explain --engine`, and results at an address: tables of maps, part by part."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from camkit.cli.parameters import PARTLY
from camkit.cli.terminal import say, say_json
from camkit.errors import UsageError, counted
from camkit.registry import discovery, extras, loading

if TYPE_CHECKING:
    from camkit.contracts.engine import Engine, Outcome
    from camkit.engines.rendering import RenderRun, RenderWork
    from camkit.engines.running import EngineRun
    from camkit.explaining.request import ExplainRequest

MAX_TOLD = 100  # failures that are told one by one
EVERY = 10.0  # seconds between two lines of progress where there is no terminal


PLACES = ("actors", "gpus_per_actor", "address")  # options that say where an engine works
_OPTIONS = (
    click.option(
        "--actors", type=click.IntRange(1, 65_536), help="Of an engine: how many work side by side."
    ),
    click.option(
        "--gpus-per-actor",
        type=click.FloatRange(0, 64),
        help="Of an engine: GPUs of each, or part of one.",
    ),
    click.option("--address", metavar="HOST", help="Of an engine: a cluster that is there already."),
)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check(values: dict[str, Any], given: set[str], of_pictures: Sequence[str]) -> None:
    """Raise `UsageError` for what an engine's tables have not.

    given: options that the user gave; of_pictures: those among them that say how pictures are drawn.
    """
    engine = values["engine"]
    extras.require("addresses", f"--engine {engine}" if engine != "local" else f"--out {values['out']}")
    discovery.get("engine", engine)
    if "format" in given and values["format"] != "parquet":
        raise UsageError(
            f"tables are written here: --format parquet, not {values['format']} (`camkit render` draws)"
        )
    if of_pictures:
        shown = options_of(of_pictures)
        raise UsageError(f"tables have no pictures: leave {shown} out, and use `camkit render`")
    values["engine_options"] = checked_options(engine, values)


def checked_options(engine: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `PLACES` that were given; `UsageError` if the engine has none."""
    options = {name: values[name] for name in PLACES if values[name] is not None}
    if options and discovery.get("engine", engine).dist == discovery.HOST:
        raise UsageError(f"the engine local has no {options_of(options)}: --engine ray has")
    return options


def options_of(names: Iterable[str]) -> str:
    """`--actors, --open`: options as a user writes them."""
    return ", ".join(f"--{name.removesuffix('_picture').replace('_', '-')}" for name in names)


def run(
    request: ExplainRequest, listing: Any, out: str, values: dict[str, Any], output: dict[str, bool]
) -> None:
    """Explain, tell what was done, and exit as the command does."""
    from camkit.engines import tables
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
    told = _Told(out, output, tables.name_of)
    follow(done, engine, told, quiet=quiet, resume="--resume does the rest")
    told.end(done.skipped, time.monotonic() - begun)
    if told.failed:
        raise SystemExit(PARTLY if (told.maps or done.skipped) and request.on_error == "skip" else 1)


def render(work: RenderWork, engine: str, options: dict[str, Any]) -> None:
    """Let an engine draw tables, tell what was done, and exit as the command does."""
    from camkit.engines import rendering

    begun = time.monotonic()
    made: Engine = loading.make("engine", engine, options)
    done = rendering.RenderRun(work)
    output = dict.fromkeys(("quiet", "as_json", "verbose"), False)
    told = _Told(work.out, output, rendering.name_of, rows="picture", items="table", parts="part")
    follow(done, made, told, resume="the same command does the rest")
    told.end(done.skipped, time.monotonic() - begun)
    if told.failed:
        raise SystemExit(PARTLY if told.maps or done.skipped else 1)


def follow(
    done: EngineRun | RenderRun, engine: Engine, told: _Told, *, resume: str, quiet: bool = False
) -> None:
    """Tell of each part as it is done; resume: how what is left is done after Ctrl-C."""
    try:
        with _bar(quiet, told.items) as tick, _interruptible():
            for outcome in done.outcomes(engine):
                told.outcome(outcome)
                tick(told.photographs)
    except KeyboardInterrupt:
        say(
            f"\nInterrupted: {counted(told.maps, told.rows)} of this run are in {told.out}; {resume}",
            err=True,
        )
        raise SystemExit(130) from None


class _Told:
    """Tells of each part, and counts.

    rows: what a part makes several of, `map` or `picture`; items: what it is made from; parts: what it is.
    """

    def __init__(
        self,
        out: str,
        output: Mapping[str, bool],
        file: Callable[[str], str],
        *,
        rows: str = "map",
        items: str = "photograph",
        parts: str = "table",
    ) -> None:
        self.out, self.rows, self.items, self._part = out, rows, items, parts
        self._output, self._file = output, file
        self.maps = self.failed = self.photographs = self.parts = 0
        self._warned: set[str] = set()

    def outcome(self, outcome: Outcome) -> None:
        """A part that is done."""
        from camkit.engines import store

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
        file = store.joined(self.out, self._file(outcome.part.id))
        if self._output["as_json"]:
            import json

            facts = {"file": file, "photographs": len(outcome.part.photographs), "maps": outcome.rows}
            say_json(json.dumps({**facts, "failed": len(outcome.failed)}))
        elif self._output["verbose"]:
            say(f"{file}: {counted(outcome.rows, self.rows)}, {len(outcome.failed)} failed")

    def end(self, skipped: int, seconds: float) -> None:
        """How much was done, and where it is."""
        if self.failed:
            more = f", of which {MAX_TOLD} are told above" if self.failed > MAX_TOLD else ""
            say(f"{counted(self.maps, self.rows)} done, {self.failed} failed{more}", err=True)
        if self._output["quiet"]:
            return
        if skipped:
            say(f"{counted(skipped, 'part')} {'was' if skipped == 1 else 'were'} done already", err=True)
        if not self.parts:
            say(f"Nothing is left to do: everything is in {self.out}", err=True)
            return
        rate = self.photographs / max(seconds, 1e-9)
        say(
            f"{counted(self.photographs, self.items)}, {counted(self.maps, self.rows)} in "
            f"{counted(self.parts, self._part)} of {self.out}; {seconds:.1f} s with start-up, {rate:.1f} "
            f"{self.items}s a second",
            err=True,
        )


@contextmanager
def _bar(quiet: bool, what: str) -> Iterator[Any]:
    """A function that is told how many of `what` are done: a line on stderr, now and then, or a bar."""
    begun, last = time.monotonic(), time.monotonic()

    def line(count: int) -> None:
        nonlocal last
        if not quiet and time.monotonic() - last >= EVERY:
            last = time.monotonic()
            say(f"{counted(count, what)}, {count / (last - begun):.1f} a second", err=True)

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
            bar.update(task, description=f"{counted(count, what)}, {rate:.1f} a second")

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
