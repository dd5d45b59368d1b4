"""A folder of results: files written in threads, then their lines in the manifest, in order."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from camkit.drawing.style import Style
from camkit.errors import CamkitError, ImageError, counted
from camkit.explaining import manifest
from camkit.explaining.embedding import ImageFormat
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest import Done, Line
from camkit.explaining.manifest_lines import Format, Result, line_of
from camkit.explaining.map_keys import Keys
from camkit.explaining.naming import Names, output_name
from camkit.explaining.object_seen import object_seen
from camkit.explaining.parquet import Map
from camkit.explaining.writers import WRITERS, Written
from camkit.files import Place, check_writable, sweep
from camkit.images.workers import WAITING, Failure
from camkit.metrics.ground_truth import Truth
from camkit.models.facts import ModelFacts

THREADS = 2  # that write; more only take turns
# Lines reach the disk together, as each time takes milliseconds: of so many photographs, at least so often.
PHOTOGRAPHS, SECONDS = 16, 1.0

# Photographs that are being written, each with the bytes of its pixels.
Waiting = deque[tuple[int, Future[Written]]]


class Output:
    """A folder that explanations are written into; it is made with the first of them.

    format, image_format: see `writers` and `embedding`.
    name_layers: whether the layer is part of the names, as it is where one was asked for.
    spec: the model as it was asked for, so that the maps can be computed again; facts: what was said of it.
    request: what makes two runs the same; `resume`: leave out what the folder holds of it already.
    truth: where objects are, if that is known.
    """

    def __init__(
        self,
        folder: Path,
        *,
        style: Style,
        name_layers: bool = False,
        format: Format = "png",
        image_format: ImageFormat = "png",
        spec: str = "",
        facts: ModelFacts | None = None,
        request: str = "",
        resume: bool = False,
        truth: Truth | None = None,
    ) -> None:
        check_writable(folder)
        manifest.check_writable(folder)
        if resume:
            sweep(folder)
        self.folder = folder
        self.names = Names(folder, resume=resume)
        lines = self.names.noting()
        self._done = Done(folder, request, lines) if resume else None
        deque(lines, 0)  # if nobody has read them yet
        said = (facts or ModelFacts()).told()
        self._keys = Keys({"request": request, "model_spec": spec, "model_facts": said}, name_layers)
        self._writer = WRITERS[format](folder, self.names, self._keys, style, image_format)
        self._truth = truth
        self._together: list[tuple[int, Written]] = []  # photographs that the manifest does not tell of yet
        self._held = 0  # bytes of pixels that are in memory until it does
        self._told = time.monotonic()  # when it last told of some
        self._place: Place | None = Place(folder) if folder.is_dir() else None
        self._manifest: Place | None = None  # once there is one
        self._hold_manifest()
        self._making = threading.Lock()
        self.finished = 0  # maps that the manifest tells of

    def has(self, name: str, sha256: str | None) -> bool:
        """Whether everything of a photograph is there already."""
        return self._done is not None and self._done.photo(name, sha256)

    def write_all(self, groups: Iterable[Sequence[Result]], *, ahead: int = 64) -> Iterator[Written]:
        """Write the results of each photograph, in threads of their own, and then their lines, in order.

        What was begun is finished, too, when the photographs end with an exception. Files whose lines
        cannot be written are removed again. ahead: photographs that may wait, fewer if they are large.
        """
        try:
            yield from self._write_ahead(groups, ahead)
        finally:
            self.names.drop()

    def _write_ahead(self, groups: Iterable[Sequence[Result]], ahead: int) -> Iterator[Written]:
        waiting: Waiting = deque()
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                for group in groups:
                    weight = _weight(group)
                    waiting.append((weight, pool.submit(self.write, group)))
                    self._held += weight
                    while waiting and (
                        len(waiting) > ahead or self._held > WAITING or waiting[0][1].done()
                    ):
                        yield from self._finish(*self._first(waiting))
                        if self._is_time():
                            yield from self._flush()
                while waiting:
                    yield from self._finish(*self._first(waiting))
                    if self._is_time():
                        yield from self._flush()
                yield from self._flush()
                self._check_place()  # whatever went away until now is told
            finally:
                for weight, future in waiting:
                    if future.exception() is None:
                        deque(self._finish(weight, future.result()), 0)
                deque(self._flush(), 0)

    def write(self, results: Sequence[Result]) -> Written:
        """The files of one photograph; nothing in the manifest yet.

        If there is too little memory to draw it, it is a failure.
        """
        self._check_place()
        try:
            return self._write(results)
        except MemoryError:
            return self._write([_too_large(results)])
        except CamkitError as error:
            self._check_place()  # else that is the reason
            raise CamkitError(f"{error}; what was finished stays valid") from None

    def _write(self, results: Sequence[Result]) -> Written:
        first = results[0]
        name = output_name(first.photo.name if isinstance(first, Explanation) else first.name)
        objects = object_seen(self._truth, results) if self._truth else None
        lines = [line_of(result, name, len(results), self._keys, objects) for result in results]
        everything = [
            (result, dict(line))
            for result, line in zip(results, lines, strict=True)
            if isinstance(result, Explanation)
        ]
        # What is there already is left out, but for failures, which are told again.
        new = [i for i, line in enumerate(lines) if line["status"] == "error" or self._is_new(line)]
        results, lines = [results[i] for i in new], [lines[i] for i in new]
        written = Written(tuple(results), tuple(lines), maps=tuple(map(_values, results)))
        if all(values is None for values in written.maps):
            return written
        return self._writer.write(name, written, everything)

    def _check_place(self) -> None:
        """Make the folder, or see that it still is the one that was written into."""
        with self._making:
            if self._place is None:
                self._place = Place.make(self.folder)
            finished = self.finished + sum(_maps(written.lines) for _, written in list(self._together))
            lost = f", and with it {counted(finished, 'finished map')}" if finished else ""
            self._place.check(lost)
            if self._manifest is not None:
                self._manifest.check(lost)

    def _hold_manifest(self) -> None:
        path = self.folder / manifest.NAME
        if self._manifest is None and path.is_file():
            self._manifest = Place(path)

    def _first(self, waiting: Waiting) -> tuple[int, Written]:
        """What is finished first; until then it stays among those that wait, if Ctrl-C comes meanwhile."""
        weight, written = waiting[0][0], waiting[0][1].result()
        waiting.popleft()
        return weight, written

    def _finish(self, weight: int, written: Written) -> Iterator[Written]:
        """Into the manifest, with other photographs, unless it knows all of it."""
        if any(map(self._is_new, written.lines)):
            self._together.append((weight, written))
            return
        self._held -= weight
        if written.results:
            yield written

    def _is_time(self) -> bool:
        """Whether the manifest is to tell of what is finished."""
        if self._held > WAITING:
            return True
        if self._writer.photographs:
            return len(self._together) >= self._writer.photographs
        return len(self._together) >= PHOTOGRAPHS or time.monotonic() - self._told >= SECONDS

    def _flush(self) -> Iterator[Written]:
        if self._together:
            self._check_place()
        together, self._together = self._together, []
        photos = [written for _, written in together]
        if photos:
            self._held -= sum(weight for weight, _ in together)
            self._writer.finish(photos)
            self.names.settle()
            self._append([line for photo in photos for line in photo.lines])
        self._told = time.monotonic()
        yield from photos

    def _is_new(self, line: Line) -> bool:
        return self._done is None or not self._done.line(line)

    def _append(self, lines: Sequence[Line]) -> None:
        new = [line for line in lines if self._is_new(line)]
        if not new:
            return
        self._check_place()
        try:
            manifest.append(self.folder, new)
            self._hold_manifest()
            self.names.note(new)
            self.finished += _maps(new)
        except CamkitError as error:
            raise CamkitError(f"{error}; what was finished stays valid") from None


def _too_large(results: Sequence[Result]) -> Failure:
    """The failure of a photograph that cannot be drawn."""
    first = next(result for result in results if isinstance(result, Explanation))
    photo = first.photo
    error = ImageError(f"{photo.source} needs more memory than there is to be drawn")
    return Failure(photo.source, error, first.position, photo.sha256, photo.name, photo.path)


def _maps(lines: Iterable[Line]) -> int:
    """How many of the lines tell of a map."""
    return sum(line["status"] == "ok" for line in lines)


def _weight(results: Sequence[Result]) -> int:
    """How many bytes the pixels of a photograph take."""
    sizes = [result.photo.image.size for result in results if isinstance(result, Explanation)]
    return max((3 * math.prod(size) for size in sizes), default=0)


def _values(result: Result) -> Map | None:
    return result.map.numpy() if isinstance(result, Explanation) else None
