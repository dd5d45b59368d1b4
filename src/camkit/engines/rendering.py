"""Pictures of the tables of a run, drawn by an engine: a part is a table, and its photographs are fetched.

Beside the pictures of a part lies `pictures-ID.jsonl`, with a line for each as in a manifest, written once
all of them are there: what is there is what is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from camkit.contracts.engine import Engine, Outcome, Part, Photograph
from camkit.drawing.style import Style
from camkit.engines import gathering, store, tables
from camkit.errors import CamkitError, UsageError
from camkit.explaining import manifest, redrawing
from camkit.explaining.embedding import ImageFormat
from camkit.files import write_whole
from camkit.images import workers

DONE = re.compile(r"pictures-(?P<id>[0-9a-f]{16})\.jsonl")


def name_of(part: str) -> str:
    """The file with the lines of the pictures of the part with this id."""
    return f"pictures-{part}.jsonl"


@dataclass(frozen=True)
class RenderWork:
    """How the tables of a place are drawn, and where the pictures go; it pickles.

    place, out: folders or addresses. photographs: where they lie now, if not where they lay. workers:
    processes that read beside the one that draws.
    """

    place: str
    out: str
    style: Style
    image_format: ImageFormat = "png"
    photographs: str | None = None
    workers: int = 1

    def start(self, threads: int | None = None) -> RenderWorker:
        """What draws in this process; threads: that torch computes with."""
        return RenderWorker(self, threads)


class RenderWorker:
    """Draws the maps of a table; processes read for it until it is closed."""

    def __init__(self, work: RenderWork, threads: int | None = None) -> None:
        self._work = work
        self._stack = ExitStack()
        self._processes = self._stack.enter_context(workers.processes(work.workers))
        if threads:
            import torch

            torch.set_num_threads(threads)

    def __call__(self, part: Part, contents: Mapping[int, bytes] | None = None) -> Outcome:
        """The pictures of a table, and then the file that tells of them, unless some could not be drawn."""
        work, name = self._work, part.photographs[0].name
        data = (contents or {}).get(0) or store.read(work.place, name, tables.MAX_FILE)
        lines, failed = list[manifest.Line](), list[tuple[str, str]]()
        with TemporaryDirectory(prefix="camkit-") as made:
            folder = Path(made)
            write_whole(folder / name, data, durable=False)
            try:
                gathering.tell(folder, folder, [tables.id_of(name)], self._processes)
            except CamkitError as why:  # the others are drawn
                return Outcome(part, 0, ((name, str(why)),), ())
            for line, error in redrawing.redraw(
                folder,
                style=work.style,
                image_format=work.image_format,
                photographs=work.photographs,
                processes=self._processes,
            ):
                if error is None:
                    picture = line["overlay_file"]
                    store.write(work.out, picture, (folder / picture).read_bytes())
                    lines.append(line)
                else:
                    failed.append((line["image"], str(error)))
        if not failed:
            told = "".join(f"{manifest.as_json(line)}\n" for line in lines)
            store.write(work.out, name_of(part.id), told.encode("utf-8", "backslashreplace"))
        warnings = tuple(dict.fromkeys(text for line in lines for text in line["warnings"]))
        return Outcome(part, len(lines), tuple(failed), warnings)

    def close(self) -> None:
        """End the processes that read."""
        self._stack.close()


class RenderRun:
    """All tables of a place that are not drawn yet; skipped: how many are. work: what is done with each."""

    def __init__(self, work: RenderWork) -> None:
        """Raises `UsageError` for a scale that needs all maps, and for a place without tables."""
        if work.style.scale == "run":
            raise UsageError(
                "--scale run needs all maps at once, and an engine has a part: give its value, --scale 0.5"
            )
        found = sorted(tables.there(work.place).parts)
        if not found:
            raise UsageError(f"{work.place} holds no tables: `camkit render` draws it without --engine")
        store.check(work.out)
        store.tidy(work.out)
        drawn = {match["id"] for name in store.names(work.out) if (match := DONE.fullmatch(name))}
        parts = [self._part(work, number, one) for number, one in enumerate(found)]
        self.work = work
        self.parts = [part for part in parts if part.id not in drawn]
        self.skipped = len(parts) - len(self.parts)

    @staticmethod
    def _part(work: RenderWork, number: int, table: str) -> Part:
        """A table as a part, which is another one in another look."""
        asked = json.dumps([table, asdict(work.style), work.image_format], sort_keys=True)
        name = tables.name_of(table)
        photograph = Photograph(store.joined(work.place, name), name)
        return Part(number, hashlib.sha256(asked.encode()).hexdigest()[:16], (photograph,))

    def outcomes(self, engine: Engine) -> Iterator[Outcome]:
        """Each table that is drawn, as soon as its pictures are there."""
        outcomes: Any = engine.run(self.work, self.parts)
        with closing(outcomes):
            yield from outcomes
