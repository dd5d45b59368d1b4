"""What `camkit explain` prints while it works: results on stdout, everything else on stderr."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from camkit.cli.terminal import say, say_json
from camkit.errors import CamkitError, counted

if TYPE_CHECKING:
    from camkit.cli.inline import Show
    from camkit.explaining.explanation import Explanation
    from camkit.explaining.manifest import Line
    from camkit.explaining.naming import Names
    from camkit.explaining.plan import Plan
    from camkit.explaining.runner import Run
    from camkit.explaining.writers import Written

# What the stages of a run are called here.
WAYS = {
    "explaining": "explaining",
    "reading": "waiting for photographs (--workers)",
    "writing": "waiting for files",
}


class Report:
    """Prints what was done, as a table or as manifest lines, and counts it.

    quiet: errors alone. verbose: also what is run, how, and how fast. show: shows a picture, if asked for.
    """

    def __init__(self, work: Plan, *, show: Show | None, as_json: bool, quiet: bool, verbose: bool) -> None:
        self.done = self.failed = self.photos = self.skipped = 0
        self.names: Names | None = None  # of the files that are written, if any are
        self.picture: Path | None = None  # the first, or the sheet of the first photograph
        self.quiet = quiet
        self.shares: Mapping[str, float] = {}  # of the time, see `Stages`
        self._show = show
        self._verbose = verbose
        self._as_json = as_json
        self._table = not as_json and not quiet
        self._widths = (
            24,
            6,
            max(7, *(len(backend.name) for backend in work.backends)),
            max(6, *(len(method) for backend in work.backends for method in backend.methods)),
            max(5, *(len(layer) for layer in work.layers)),
        )

    def begin(self, work: Plan, request: str, batch: int, workers: int) -> None:
        """What is run, and how."""
        if self._verbose:
            model = work.model
            self._say(
                f"model {model.name} ({model.sha256[:12]}) on {model.device} in "
                f"{str(model.dtype).removeprefix('torch.')} ({work.precision or 'as torch is set'}), "
                f"layers {', '.join(work.layers)}; "
                f"batches of {batch}, {workers} processes read; request {request}"
            )
            for backend in work.backends:
                options = vars(backend.explainer.options).items()
                values = ", ".join(f"{name}={value}" for name, value in options) or "no options"
                self._say(f"{backend.name}: {values}")

    def written(self, written: Written, folder: Path) -> None:
        """Everything of one photograph."""
        from camkit.explaining.explanation import Explanation
        from camkit.explaining.manifest import as_json

        good = [result for result in written.results if isinstance(result, Explanation)]
        if self._table and good and not self.done:
            file = "PICTURE" if any(line["overlay_file"] for line in written.lines) else "FILE"
            figure = "SCORE" if good[0].probability is None else "PROB."
            header = self._line("CLASS", figure, "BACKEND", "METHOD", "LAYER", file)
            say(header, bold=True)
        self.photos += 1
        self.done += len(good)
        self.failed += len(written.results) - len(good)
        picture = self._note_picture(written.sheet, written.lines, folder)
        warned: set[str] = set()
        if good and self._table:
            say(f"{good[0].photo.source}: {good[0].verdict()}")
        remarks = written.remarks or [()] * len(written.lines)
        for result, line, own in zip(written.results, written.lines, remarks, strict=True):
            if self._as_json:
                say_json(as_json(line))
            for warning in line["warnings"]:
                in_table = self._table and warning.endswith(own)
                if warning not in warned and not self.quiet and not in_table:
                    photo = "" if line["image"] in warning else f"{line['image']}: "
                    say(f"Warning: {photo}{warning}", err=True)
                warned.add(warning)
            if not isinstance(result, Explanation):
                say(f"Error: {result.error}", err=True)
            elif self._table:
                file = str(folder / (line["overlay_file"] or line["map_file"]))
                cells = (result.subject, result.figure, result.backend, result.method, result.layer)
                say("  ".join([self._line(*cells, file), *(f"({text})" for text in own)]))
        if written.sheet and self._table:
            say(f"  side by side: {written.sheet}")
            for text in _agreement(good):
                say(f"  {text}")
        if picture and self._show:
            self._show(picture)

    def drawn(self, line: Line, error: CamkitError | None, folder: Path) -> None:
        """A picture that was drawn when all maps were done, or why it was not."""
        if error is not None:
            self.failed += 1
            say(f"Error: {error}", err=True)
            return
        picture = self._note_picture(None, [line], folder)
        if self._as_json:
            from camkit.explaining.manifest import as_json

            say_json(as_json(line))
        elif self._table:
            say(folder / line["overlay_file"])
        if picture and self._show:
            self._show(picture)

    def _note_picture(self, sheet: Path | None, lines: Sequence[Line], folder: Path) -> Path | None:
        """The sheet of a photograph, or its first picture; the first of all is remembered."""
        files = [line["overlay_file"] for line in lines if line["overlay_file"]]
        picture = sheet or (folder / files[0] if files else None)
        self.picture = self.picture or picture
        return picture

    def end(self, folder: Path, seconds: float, *, page: Path | None) -> None:
        """How much was done, and where everything is; page: to look through it, if there is one."""
        if self.skipped:
            verb = "was" if self.skipped == 1 else "were"
            self._say(f"{counted(self.skipped, 'photograph')} {verb} done already")
        if self.failed:
            say(f"{counted(self.done, 'map')} done, {self.failed} failed", err=True)
        self._say_kept()
        if self.done:
            look = f"; to look through all of it, open {page}" if page else ""
            self._say(f"Raw maps and manifest.jsonl are in {folder}{look}")
        if self._verbose:
            done = f"{counted(self.photos, 'photograph')}, {counted(self.done, 'map')}"
            self._say(f"{done} in {seconds:.1f} s with start-up")
            if self.photos:
                parts = ", ".join(f"{WAYS[stage]} {share:.0%}" for stage, share in self.shares.items())
                self._say(f"of the time after start-up: {parts}")

    def interrupted(self, folder: Path, finished: int, *, page: Path | None) -> None:
        """After Ctrl-C, when what was begun is finished; page: to look through it, if there is one."""
        verb = "is" if finished == 1 else "are"
        look = f", to look through in {page}" if page else ""
        result = f"{counted(finished, 'map')} {verb} finished, in {folder}{look}; --resume does the rest"
        if not finished:
            result = "nothing was finished"
        say(f"\nInterrupted: {result}", err=True)
        self._say_kept()

    def nothing(self, why: str) -> None:
        """Nothing was asked for."""
        self._say(f"Nothing to do: {why}")

    def _say_kept(self) -> None:
        """That files were in the way, and where the new ones are instead."""
        if self.names and (conflicts := self.names.conflicts()):
            self._say(conflicts)

    def _say(self, text: str) -> None:
        if not self.quiet:
            say(text, err=True)

    def _line(self, *cells: str) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=False)]
        return "  " + "  ".join([*padded, cells[-1]])


@contextmanager
def progress(run: Run, report: Report, folder: Path) -> Iterator[Callable[[Written], None]]:
    """A function that reports what was written, with a progress bar on a terminal."""
    if not sys.stderr.isatty() or report.quiet:
        yield partial(report.written, folder=folder)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    begun = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("explaining", total=None, rate="")

        def count() -> None:  # of a large folder that takes a while, so nobody waits for it
            total = sum(1 for _ in run.sources())
            bar.update(task, total=total, visible=total > 1)

        threading.Thread(target=count, daemon=True).start()

        def done(written: Written) -> None:
            bar.stop()  # it is erased while results are printed, so that no line runs into it
            report.written(written, folder)
            bar.start()
            rate = report.photos / (time.monotonic() - begun)
            bar.update(task, completed=run.skipped + report.photos, rate=f"{rate:.1f} a second")

        yield done


def _agreement(results: Sequence[Explanation]) -> Iterator[str]:
    """A line for each pair of backends and each method: the worst over the classes."""
    if len({result.backend for result in results}) < 2:
        return
    from camkit.explaining.comparison import compare

    by_pair: dict[tuple[str, ...], list[Any]] = {}
    for one in compare(results):
        by_pair.setdefault((one.first, one.second, one.method, one.layer), []).append(one)
    for (first, second, method, layer), group in by_pair.items():
        ranks = [one.spearman for one in group if not math.isnan(one.spearman)]
        rank = f"{min(ranks):.3f}" if ranks else "not defined"
        worst = f" (the worst of {len(group)})" if len(group) > 1 else ""
        if ranks and len(ranks) < len(group):
            worst = f" (the worst of {len(group)}, {len(group) - len(ranks)} without a rank correlation)"
        difference = max(one.difference for one in group)
        yield (
            f"{method}{layer and f' at {layer}'}, {first} and {second}: rank correlation {rank}, "
            f"largest difference {difference:.1e} of the peak{worst}"
        )
