"""What `camkit explain` writes: overlays, raw maps, side-by-side sheets and the manifest.

Every file is there whole or not at all, and a result is in the manifest once its files are there. What an
earlier run wrote is replaced by the answer to the same question alone; any other answer of the same name
gets `~2`, `~3`, ... `naming` keeps that rare.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import camkit
from camkit import manifest, parquet, plugins
from camkit.errors import CamkitError, ImageError
from camkit.explanation import REMARKS, Explanation, Plan
from camkit.files import Place, check_writable, sweep
from camkit.images import REDUCED, Photo
from camkit.manifest import FIELDS, SCHEMA, Done, Line, question
from camkit.naming import MAP, PICTURE, Names, class_slugs, output_name, parts, slug
from camkit.parquet import Map
from camkit.reading import WAITING, Failure
from camkit.render import Panel, View, extent, sheet, signed
from camkit.style import Style

Result = Explanation | Failure
Format = Literal["png", "npz", "parquet"]

MAX_SHEET_CLASSES, MAX_SHEET_COLUMNS = 8, 6
PANEL = 1024, 1024  # pixels of a picture on a sheet, at most
WRITERS = 2  # threads; more only take turns
_DRAWING = threading.Lock()  # matplotlib's sheets are not made for threads


@dataclass(frozen=True)
class Written:
    """What was written of one photograph: its results and their lines, and the sheet if there is one.

    remarks: what its picture cannot show by itself, of each result.
    """

    results: tuple[Result, ...]
    lines: tuple[Line, ...]
    sheet: Path | None = None
    remarks: tuple[tuple[str, ...], ...] = ()
    maps: tuple[Map | None, ...] = field(default=(), repr=False)


class Output:
    """A folder that explanations are written into; it is made with the first of them.

    format: `png` writes an overlay and a raw map (`.npy`) for each result, `npz` the raw maps of a
        photograph, `parquet` those of 256 photographs with all that the manifest says.
    name_layers: whether the layer is part of the names, as it is where one was asked for.
    spec: the model as it was asked for, so that the maps can be made anew.
    request: what makes two runs the same; `resume`: leave out what the folder holds of it already.
    """

    def __init__(
        self,
        folder: Path,
        *,
        style: Style,
        view: View,
        name_layers: bool = False,
        format: Format = "png",
        spec: str = "",
        request: str = "",
        resume: bool = False,
    ) -> None:
        check_writable(folder)
        if resume:
            sweep(folder)
        self.folder = folder
        self.names = Names(folder, resume=resume)
        lines = self.names.noting()
        self._done = Done(folder, request, lines) if resume else None
        deque(lines, 0)  # if nobody has read them yet
        self._style = style
        self._view: View = view
        self._name_layers = name_layers
        self._format = format
        self._shared = {"request": request, "model_spec": spec}
        self._picture = {"view": view, **asdict(style)}
        self._defaults = cache(_defaults)
        self._table: list[Written] = []
        self._place: Place | None = Place(folder) if folder.is_dir() else None
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
        waiting: deque[tuple[int, Future[Written]]] = deque()
        with ThreadPoolExecutor(WRITERS) as pool:
            try:
                for group in groups:
                    waiting.append((_weight(group), pool.submit(self.write, group)))
                    while waiting and (
                        len(waiting) > ahead
                        or sum(weight for weight, _ in waiting) > WAITING
                        or waiting[0][1].done()
                    ):
                        yield from self._finish(_first(waiting))
                while waiting:
                    yield from self._finish(_first(waiting))
                yield from self._flush()
            finally:
                for _, future in waiting:
                    if future.exception() is None:
                        list(self._finish(future.result()))

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
        lines = [self._line(result, name, len(results)) for result in results]
        everything = [result for result in results if isinstance(result, Explanation)]
        # What is there already is left out, but for failures, which are told again.
        told = [i for i, line in enumerate(lines) if line["status"] == "error" or self._is_new(line)]
        results, lines = [results[i] for i in told], [lines[i] for i in told]
        written = Written(tuple(results), tuple(lines), maps=tuple(map(_values, results)))
        if all(values is None for values in written.maps):
            return written
        if self._format == "png":
            written = self._with_sheet(name, self._write_png(name, written), everything)
        elif self._format == "npz":
            written = self._write_npz(name, written, everything)
        return written

    def _check_place(self) -> None:
        """Make the folder, or see that it still is the one that was written into."""
        with self._making:
            if self._place is None:
                self._place = Place(self.folder)
            self._place.check(f", and with it {self.finished} finished maps" if self.finished else "")

    def _line(self, result: Result, name: str, results: int) -> Line:
        line: Line = dict.fromkeys(FIELDS) | _facts(result) | self._shared
        line |= {"name": name, "results": results}
        if isinstance(result, Explanation):
            line["map_key"] = self._key(result)
            line |= _measured(result.map)
        return line

    def _write_png(self, name: str, written: Written) -> Written:
        lines, remarks = [], []
        for result, line in zip(written.results, written.lines, strict=True):
            said: tuple[str, ...] = ()
            if isinstance(result, Explanation):
                line["picture"] = self._picture
                result, line["map_file"] = self._write_map(f"{name}.{line['map_key']}", result, line)
                line |= _measured(result.map)
                picture = encoded(result.overlay(view=self._view, style=self._style))
                line |= drawn(self.names, line, picture)
                said = result.remarks(self._style)
                line["warnings"] = warnings(line, said, result.photo)
            lines.append(line)
            remarks.append(said)
        return replace(written, lines=tuple(lines), remarks=tuple(remarks))

    def _write_map(self, stem: str, result: Explanation, line: Line) -> tuple[Explanation, str]:
        """The file of a map, and the result with the map that lies there.

        A map that is there already, but for rounding, stays: other pictures and lines tell of it.
        """
        data = _bytes(np.save, result.map.numpy())
        file = self.names.choose(stem, ".npy", question(line, "map"), data)
        there = manifest.stored(self.folder / file, result.map.numpy(), line["dtype"])
        if there is not None:
            return replace(result, map=torch.from_numpy(there)), file
        self.names.put(file, data)
        return result, file

    def _write_npz(self, name: str, written: Written, everything: Sequence[Explanation]) -> Written:
        arrays = {self._key(result): result.map.numpy() for result in everything}
        data = _bytes(np.savez, **arrays)
        stem = ".".join([name, *parts(MAP, self._common(everything))])
        answer = self._answer(everything)
        # `cat.jpg~2` is what the second photograph of that name is called.
        file = self.names.choose(stem, ".npz", answer, data, again=f"{name}." if stem == name else None)
        self.names.put(file, data)
        lines = [line | {"map_file": file if line["map_key"] else None} for line in written.lines]
        return replace(written, lines=tuple(lines))

    def _with_sheet(self, name: str, written: Written, everything: Sequence[Explanation]) -> Written:
        picture = self._sheet(everything)
        if picture is None:
            return written
        data = encoded(picture)
        said = [*parts(MAP, self._common(everything)), *parts(PICTURE, self._picture), "sheet"]
        file = self.names.choose(".".join([name, *said]), ".png", self._answer(everything), data)
        self.names.put(file, data)
        lines = [line | {"sheet_file": file if line["status"] == "ok" else None} for line in written.lines]
        return replace(written, lines=tuple(lines), sheet=self.folder / file)

    def _finish(self, written: Written) -> Iterator[Written]:
        """Into the manifest, at once or with the table that the results become part of."""
        if not written.results:
            return
        if self._format == "parquet" and any(map(self._is_new, written.lines)):
            self._table.append(written)
            if len(self._table) == parquet.PHOTOS:
                yield from self._flush()
            return
        self._append(written.lines)
        yield written

    def _flush(self) -> Iterator[Written]:
        """Write the table that has been collected, under a name that its contents give it."""
        photos, self._table = self._table, []
        if photos:
            self._check_place()
        lines = [line for photo in photos for line in photo.lines]
        maps = [values for photo in photos for values in photo.maps]
        if any(values is not None for values in maps):
            data = parquet.to_bytes(lines, maps)
            file = f"maps-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
            self.names.put(file, data)
            for line in lines:
                line["map_file"] = file if line["status"] == "ok" else None
        self._append(lines)
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
            self.names.note(new)
            self.finished += sum(line["status"] == "ok" for line in new)
        except CamkitError as error:
            raise CamkitError(f"{error}; what was finished stays valid") from None

    def _sheet(self, results: Sequence[Explanation]) -> Image.Image | None:
        """The maps of one photograph side by side, a row for each class; nothing if there is only one.

        Backends share the colour scale of a method, so that a difference can be seen. Of many classes the
        first eight are shown.
        """
        columns = list(dict.fromkeys((r.backend, r.method, r.layer) for r in results))
        if len(columns) < 2:
            return None
        rows: dict[int, list[Panel]] = {}
        scales = self._scales(results)
        for result in results:
            where = f"{result.backend} · {result.method} · {result.layer}"
            what = f"{result.class_name} {result.figure}"
            title = "\n".join([where, what, *result.remarks(self._style)])
            if result.class_index in rows or len(rows) < MAX_SHEET_CLASSES:
                scale = scales[result.method, result.layer, result.class_index]
                picture = result.overlay(view=self._view, style=self._style, scale=scale)
                picture.thumbnail(PANEL)
                rows.setdefault(result.class_index, []).append(Panel(title, picture))
        heading = Path(results[0].photo.source).name
        with _DRAWING:
            return sheet([part for row in rows.values() for part in _folded(row)], heading)

    def _scales(self, results: Sequence[Explanation]) -> dict[tuple[str, str, int], tuple[float, float]]:
        maps: dict[tuple[str, str, int], list[torch.Tensor]] = {}
        for r in results:
            maps.setdefault((r.method, r.layer, r.class_index), []).append(signed(r.map, self._style))
        return {key: extent(group) for key, group in maps.items()}

    def _key(self, result: Explanation) -> str:
        """Backend, method and class, and what else makes another map of it."""
        name = class_slugs(tuple(result.model.classes))[result.class_index]
        own = [slug(result.backend), slug(result.method), name]
        return ".".join([*own, *parts(MAP, self._common([result]))])

    def _answer(self, results: Sequence[Explanation]) -> int:
        """What a file of all results of a photograph tells."""
        return question(self._shared | {"image_sha256": results[0].photo.sha256}, "run")

    def _common(self, results: Sequence[Explanation]) -> dict[str, Any]:
        """What the names of these results tell together."""
        layers = {result.layer for result in results}
        options = [
            (key, value)
            for result in results
            for key, value in result.options.items()
            if value != self._defaults(result.backend).get(key)
        ]
        return {
            "layout": results[0].layout,
            "layer": layers.pop() if self._name_layers and len(layers) == 1 else "",
            "model": self._shared["model_spec"] or MAP["model"].default,
            "options": dict(options),
            "dtype": str(results[0].model.dtype).removeprefix("torch."),
        }


def picture_stem(line: Line) -> str:
    """What the picture of a line is called: like its map, if that has a file of its own, and its look."""
    file = line["map_file"]
    stem = file.removesuffix(".npy") if file.endswith(".npy") else f"{line['name']}.{line['map_key']}"
    return ".".join([stem, *parts(PICTURE, line["picture"])])


def drawn(names: Names, line: Line, picture: bytes) -> Line:
    """Write the picture of a line, which says how it was drawn; what the line tells of the file."""
    overlay_file = names.choose(picture_stem(line), ".png", question(line, "picture"), picture)
    names.put(overlay_file, picture)
    return {"overlay_file": overlay_file, "overlay_sha256": hashlib.sha256(picture).hexdigest()}


def warnings(line: Line, remarks: Iterable[str], photo: Photo) -> list[str]:
    """The warnings of a line with what has to be said of its picture, and without that of another one.

    remarks: on the map as it is drawn. photo: as it is drawn on.
    """
    about = f"{line['backend']} {line['method']}, {line['class_name']}: "
    others = {about + text for texts in REMARKS.values() for text in texts}
    # That a map is constant was told when it was computed, with what can be done about it.
    new = [about + text for text in remarks if text not in REMARKS["constant"]]
    size = [text for text in photo.warnings if REDUCED.search(text)]
    before = line["warnings"] if isinstance(line["warnings"], list) else []
    kept = [text for text in before if text not in others and not REDUCED.search(str(text))]
    return [*kept, *size, *new]


def request_id(work: Plan, classes: Sequence[str], *, style: Style, view: View, format: Format) -> str:
    """What a run asks for, apart from the photographs: the same for two runs with the same results."""
    model = work.model
    backends = []
    for backend in work.backends:
        found = plugins.get("explainer", backend.name)
        options = vars(backend.explainer.options)
        backends.append([found.full_name, found.version, backend.methods, options])
    facts = {
        "model": [model.sha256, model.preprocess.to_dict(), list(model.classes), model.scores],
        "where": [str(model.device), str(model.dtype)],
        "backends": backends,
        "layers": [*work.layers, *([work.layout] if work.layout else [])],
        "classes": list(classes),
        "picture": [format, view, asdict(style)],
        "versions": [SCHEMA, camkit.__version__, str(torch.__version__)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _first(waiting: deque[tuple[int, Future[Written]]]) -> Written:
    """What is finished first; until then it stays among those that wait, if Ctrl-C comes meanwhile."""
    written = waiting[0][1].result()
    waiting.popleft()
    return written


def _too_large(results: Sequence[Result]) -> Failure:
    """The failure of a photograph that cannot be drawn."""
    first = next(result for result in results if isinstance(result, Explanation))
    photo = first.photo
    error = ImageError(f"{photo.source} needs more memory than there is to be drawn")
    return Failure(photo.source, error, first.position, photo.sha256, photo.name, photo.path)


def _weight(results: Sequence[Result]) -> int:
    """How many bytes the pixels of a photograph take."""
    sizes = [result.photo.image.size for result in results if isinstance(result, Explanation)]
    return max((3 * math.prod(size) for size in sizes), default=0)


def _folded(panels: list[Panel]) -> list[list[Panel]]:
    """A row that is too wide, as several of about the same length."""
    rows = math.ceil(len(panels) / MAX_SHEET_COLUMNS)
    width = math.ceil(len(panels) / rows)
    return [panels[start : start + width] for start in range(0, len(panels), width)]


def _values(result: Result) -> Map | None:
    return result.map.numpy() if isinstance(result, Explanation) else None


def _bytes(save: Callable[..., None], *values: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *values, **named)
    return buffer.getvalue()


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG, by the quickest level: 7 times faster than the usual one, and 15 % larger."""
    return _bytes(partial(picture.save, format="PNG", compress_level=1))


def _defaults(backend: str) -> Mapping[str, Any]:
    options: object = plugins.load(plugins.get("explainer", backend)).Options()
    return vars(options)


def _measured(map: torch.Tensor) -> dict[str, Any]:
    """What the manifest tells of the values of a map."""
    return {
        "map_sha256": manifest.map_digest(map.numpy()),
        "map_shape": list(map.shape),
        "map_range": [float(map.min()), float(map.max())],
    }


def _facts(result: Explanation | Failure) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "schema": SCHEMA,
        "camkit_version": camkit.__version__,
        "torch_version": str(torch.__version__),
    }
    if isinstance(result, Failure):
        return shared | {
            "image": result.source,
            "image_path": result.path,
            "image_name": result.path and result.name,
            "image_sha256": result.sha256,
            "status": "error",
            "error": str(result.error),
            "warnings": [],
        }
    found = plugins.get("explainer", result.backend)
    model = result.model
    return shared | {
        "image": result.photo.source,
        "image_path": result.photo.path,
        "image_name": result.photo.path and result.photo.name,
        "image_sha256": result.photo.sha256,
        "status": "ok",
        "backend": found.name,
        "backend_dist": found.dist,
        "backend_version": found.version,
        "method": result.method,
        "options": dict(result.options),
        "layer": result.layer,
        "layout": result.layout,
        "class_index": result.class_index,
        "class_name": result.class_name,
        "probability": result.probability,
        "logit": result.logit,
        "predicted_index": result.predicted_index,
        "predicted_name": result.predicted_name,
        "predicted": list(result.predicted),
        "scores": result.scores,
        "model": model.name,
        "model_sha256": model.sha256,
        "preprocessing": model.preprocess.to_dict(),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "warnings": list(result.warnings),
    }
