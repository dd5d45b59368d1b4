"""What `camkit explain` writes: overlays, raw maps, side-by-side sheets and the manifest.

Every file is there whole or not at all, and a result is in the manifest once its files are there.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

import camkit
from camkit import manifest, parquet, plugins
from camkit.errors import CamkitError
from camkit.explanation import Explanation, Plan, View
from camkit.files import check_writable, sweep, write_whole
from camkit.manifest import FIELDS, SCHEMA, Done, Line
from camkit.parquet import Map
from camkit.reading import Failure
from camkit.render import Panel, Style, extent, is_flat, sheet, signed

Result = Explanation | Failure
Format = Literal["png", "npz", "parquet"]

MAX_SHEET_CLASSES, MAX_SHEET_COLUMNS = 8, 6
MAX_NAME_BYTES = 120  # of one part of a file name
MAX_STEM_BYTES = 240  # of all parts; file systems take 255 with the suffix
WRITERS = 2  # threads; more only take turns
_DRAWING = threading.Lock()  # matplotlib's sheets are not made for threads


@dataclass(frozen=True)
class Written:
    """What was written of one photograph: its results and their lines, and the sheet if there is one."""

    results: tuple[Result, ...]
    lines: tuple[Line, ...]
    sheet: Path | None = None
    maps: tuple[Map | None, ...] = field(default=(), repr=False)


class Output:
    """A folder that explanations are written into; it is made with the first of them.

    format: `png` writes an overlay and a raw map (`.npy`) for each result, `npz` the raw maps of a
        photograph, `parquet` those of 256 photographs with all that the manifest says.
    spec: the model as it was asked for, so that the maps can be made anew.
    request: what makes two runs the same; `resume`: leave out what the folder holds of it already.
    """

    def __init__(
        self,
        folder: Path,
        *,
        style: Style,
        view: View,
        several_layers: bool,
        format: Format = "png",
        spec: str = "",
        request: str = "",
        resume: bool = False,
    ) -> None:
        check_writable(folder)
        if resume:
            sweep(folder)
        self.folder = folder
        self._done = Done(folder, request) if resume else None
        self._style = style
        self._view: View = view
        self._several_layers = several_layers
        self._format = format
        self._shared = {"request": request, "model_spec": spec}
        self._table: list[Written] = []
        self.finished = 0  # maps that the manifest tells of

    def has(self, name: str, sha256: str | None) -> bool:
        """Whether everything of a photograph is there already."""
        return self._done is not None and self._done.photo(name, sha256)

    def write_all(self, groups: Iterable[Sequence[Result]], *, ahead: int = 64) -> Iterator[Written]:
        """Write the results of each photograph, in threads of their own, and then their lines, in order.

        What was begun is finished, too, when the photographs end with an exception.
        """
        waiting: deque[Future[Written]] = deque()
        with ThreadPoolExecutor(WRITERS) as pool:
            try:
                for group in groups:
                    waiting.append(pool.submit(self.write, group))
                    while waiting and (len(waiting) > ahead or waiting[0].done()):
                        yield from self._finish(_first(waiting))
                while waiting:
                    yield from self._finish(_first(waiting))
                yield from self._flush()
            finally:
                for future in waiting:
                    if future.exception() is None:
                        list(self._finish(future.result()))

    def write(self, results: Sequence[Result]) -> Written:
        """The files of one photograph; nothing in the manifest yet."""
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
        try:
            if self._format == "png":
                written = self._write_png(name, written)
            elif self._format == "npz":
                written = self._write_npz(name, written, everything)
            return replace(written, sheet=self._write_sheet(name, everything))
        except CamkitError as error:
            raise CamkitError(f"{error}; what was finished stays valid") from None

    def _line(self, result: Result, name: str, results: int) -> Line:
        line: Line = dict.fromkeys(FIELDS) | _facts(result) | self._shared
        line |= {"name": name, "results": results}
        if isinstance(result, Explanation):
            line["map_key"] = ".".join(self._parts(result))
            line["map_sha256"] = manifest.map_digest(result.map.numpy())
        return line

    def _write_png(self, name: str, written: Written) -> Written:
        lines = []
        for result, line, values in zip(written.results, written.lines, written.maps, strict=True):
            if isinstance(result, Explanation):
                stem = f"{name}.{line['map_key']}"
                self._put(map_file := file_name(stem, ".npy"), _bytes(np.save, values))
                picture = encoded(result.overlay(view=self._view, style=self._style))
                self._put(overlay_file := file_name(stem, ".png"), picture)
                line |= {"map_file": map_file, "overlay_file": overlay_file}
                line["overlay_sha256"] = hashlib.sha256(picture).hexdigest()
                line["picture"] = {"view": self._view, **asdict(self._style)}
                line["warnings"] = [*line["warnings"], *self._notes(result)]
            lines.append(line)
        return replace(written, lines=tuple(lines))

    def _write_npz(self, name: str, written: Written, everything: Sequence[Explanation]) -> Written:
        arrays = {".".join(self._parts(result)): result.map.numpy() for result in everything}
        self._put(file := file_name(name, ".npz"), _bytes(np.savez, **arrays))
        lines = [line | {"map_file": file if line["map_key"] else None} for line in written.lines]
        return replace(written, lines=tuple(lines))

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
        lines = [line for photo in photos for line in photo.lines]
        maps = [values for photo in photos for values in photo.maps]
        if any(values is not None for values in maps):
            data = parquet.to_bytes(lines, maps)
            file = f"maps-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
            self._put(file, data)
            for line in lines:
                line["map_file"] = file if line["status"] == "ok" else None
        self._append(lines)
        yield from photos

    def _is_new(self, line: Line) -> bool:
        return self._done is None or not self._done.line(line)

    def _append(self, lines: Sequence[Line]) -> None:
        try:
            if new := [line for line in lines if self._is_new(line)]:
                manifest.append(self.folder, new)
                self.finished += sum(line["status"] == "ok" for line in new)
        except CamkitError as error:
            raise CamkitError(f"{error}; what was finished stays valid") from None

    def _put(self, name: str, data: bytes) -> None:
        write_whole(self.folder / name, data)

    def _write_sheet(self, name: str, results: Sequence[Explanation]) -> Path | None:
        """The maps of one photograph side by side, a row for each class; nothing if there is only one.

        Backends share the colour scale of a method, so that a difference can be seen. Of many classes the
        first eight are shown.
        """
        columns = list(dict.fromkeys((r.backend, r.method, r.layer) for r in results))
        if len(columns) < 2 or self._format != "png":
            return None
        rows: dict[int, list[Panel]] = {}
        scales = self._scales(results)
        for result in results:
            title = f"{result.backend} · {result.method} · {result.layer}\n"
            title += f"{result.class_name} {result.figure}"
            if result.class_index in rows or len(rows) < MAX_SHEET_CLASSES:
                scale = scales[result.method, result.layer, result.class_index]
                picture = result.overlay(view=self._view, style=self._style, scale=scale)
                rows.setdefault(result.class_index, []).append(Panel(title, picture))
        with _DRAWING:
            picture = sheet(
                [part for row in rows.values() for part in _folded(row)], Path(results[0].photo.source).name
            )
        file = file_name(name, ".sheet.png")
        self._put(file, encoded(picture))
        return self.folder / file

    def _notes(self, result: Explanation) -> list[str]:
        """What the picture cannot show, although the map has something to say."""
        if is_flat(result.map) or not is_flat(signed(result.map, self._style)):
            return []
        side = "against" if self._style.counterfactual else "for"
        name = f"{result.backend} {result.method}"
        return [f"the picture is flat: {name} finds nothing that speaks {side} {result.class_name}"]

    def _scales(self, results: Sequence[Explanation]) -> dict[tuple[str, str, int], tuple[float, float]]:
        maps: dict[tuple[str, str, int], list[torch.Tensor]] = {}
        for r in results:
            maps.setdefault((r.method, r.layer, r.class_index), []).append(signed(r.map, self._style))
        return {key: extent(group) for key, group in maps.items()}

    def _parts(self, result: Explanation) -> list[str]:
        name = class_slugs(tuple(result.model.classes))[result.class_index]
        parts = [slug(result.backend), slug(result.method), name]
        return [*parts, slug(result.layer)] if self._several_layers else parts


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
        "layers": work.layers,
        "classes": list(classes),
        "picture": [format, view, asdict(style)],
        "versions": [SCHEMA, camkit.__version__, str(torch.__version__)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def output_name(name: str) -> str:
    """How the results of a photograph are called: its name, as far as every file system takes it.

    A part of a path that has to be changed gets a digest of what it was, so that no two are the same.
    """
    parts = []
    for part in name.split("/"):
        clean = re.sub(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"|?*\\]', "_", part).strip(" ").lstrip(".")
        if clean != part or not clean:
            clean = f"{clean}-{_digest(part)}" if clean else _digest(part)
        parts.append(shortened(clean, MAX_NAME_BYTES))
    return "/".join(parts)


def _first(waiting: deque[Future[Written]]) -> Written:
    """What is finished first; until then it stays among those that wait, if Ctrl-C comes meanwhile."""
    written = waiting[0].result()
    waiting.popleft()
    return written


def _folded(panels: list[Panel]) -> list[list[Panel]]:
    """A row that is too wide, as several of about the same length."""
    rows = math.ceil(len(panels) / MAX_SHEET_COLUMNS)
    width = math.ceil(len(panels) / rows)
    return [panels[start : start + width] for start in range(0, len(panels), width)]


def _values(result: Result) -> Map | None:
    return result.map.numpy() if isinstance(result, Explanation) else None


def file_name(stem: str, suffix: str) -> str:
    """A file name whose last part is not too long."""
    folder, slash, name = stem.rpartition("/")
    return f"{folder}{slash}{shortened(name, MAX_STEM_BYTES)}{suffix}"


def _bytes(save: Callable[..., None], *values: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *values, **named)
    return buffer.getvalue()


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG, by the quickest level: 7 times faster than the usual one, and 15 % larger."""
    return _bytes(partial(picture.save, format="PNG", compress_level=1))


@lru_cache(maxsize=8)
def class_slugs(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Each class as part of a file name; with its index where the name alone would be shared or empty."""
    slugs = [slug(name) for name in classes]
    count = Counter(slugs)
    return tuple(
        name if name and count[name] == 1 else f"{name or 'class'}-{index}"
        for index, name in enumerate(slugs)
    )


def slug(text: str) -> str:
    """A text as part of a file name: no separators or blanks, and not too long."""
    return shortened(re.sub(r"[^\w.+~-]+", "_", text).strip("_").lstrip("."), MAX_NAME_BYTES)


def shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8; what is cut off is replaced by a digest, so names stay apart."""
    raw = text.encode()
    if len(raw) <= limit:
        return text
    return f"{raw[: limit - 9].decode(errors='ignore')}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


def _facts(result: Explanation | Failure) -> dict[str, Any]:
    shared: dict[str, Any] = {
        "schema": SCHEMA,
        "camkit_version": camkit.__version__,
        "torch_version": str(torch.__version__),
    }
    if isinstance(result, Failure):
        return shared | {
            "image": result.source,
            "image_sha256": result.sha256,
            "status": "error",
            "error": str(result.error),
            "warnings": [],
        }
    found = plugins.get("explainer", result.backend)
    model = result.model
    return shared | {
        "image": result.photo.source,
        "image_sha256": result.photo.sha256,
        "status": "ok",
        "backend": found.name,
        "backend_dist": found.dist,
        "backend_version": found.version,
        "method": result.method,
        "options": dict(result.options),
        "layer": result.layer,
        "class_index": result.class_index,
        "class_name": result.class_name,
        "probability": result.probability,
        "logit": result.logit,
        "predicted_index": result.predicted_index,
        "predicted_name": result.predicted_name,
        "predicted": list(result.predicted),
        "scores": result.scores,
        "map_shape": list(result.map.shape),
        "model": model.name,
        "model_sha256": model.sha256,
        "preprocessing": model.preprocess.to_dict(),
        "device": str(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "warnings": list(result.warnings),
    }
