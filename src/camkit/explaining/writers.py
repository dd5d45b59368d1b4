"""The formats: what is written of a photograph, one class for each, in the table `WRITERS`.

Every file is there whole or not at all. What an earlier run wrote is replaced by the answer to the same
question alone; any other answer of the same name gets `~2`, `~3`, ... `naming` keeps that rare.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from camkit.drawing.evidence import scale_of
from camkit.drawing.overlay import PHOTOGRAPH
from camkit.drawing.style import Style
from camkit.explaining import parquet, stored_maps, thumbnails
from camkit.explaining.answers import question
from camkit.explaining.embedding import ENCODINGS, ImageFormat, encoded
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest import Line
from camkit.explaining.manifest_lines import Format, Result, warnings
from camkit.explaining.map_facts import measured
from camkit.explaining.map_keys import Keys
from camkit.explaining.naming import MAP, Names, parts, picture_parts
from camkit.explaining.parquet import Map
from camkit.explaining.sheets import full_scales, sheet_of


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


Everything = Sequence[tuple[Explanation, Line]]  # the results of a photograph, with what is told of each


@dataclass(frozen=True)
class Writer:
    """Writes the results of photographs into a folder in one format.

    photographs: of so many the results make a file together, of the last ones of fewer; 0 where each has
        files of its own.
    """

    folder: Path
    names: Names
    keys: Keys
    style: Style
    image_format: ImageFormat
    photographs: ClassVar[int] = 0

    def write(self, name: str, written: Written, everything: Everything) -> Written:
        """Files of one photograph, called `name`, in a thread; with what the lines tell of them.

        written: what is not there yet. everything: also the results that are, with what is told of them.
        """
        return written

    def finish(self, photos: Sequence[Written]) -> None:
        """Files of `photographs` together, if there are such; their lines are told of them."""


class PngWriter(Writer):
    """An overlay and a raw map (`.npy`) for each result, and a sheet of several."""

    def write(self, name: str, written: Written, everything: Everything) -> Written:
        """Overlays, maps and the sheet."""
        return self._with_sheet(name, self._with_pictures(name, written), everything)

    def _with_pictures(self, name: str, written: Written) -> Written:
        lines, remarks = [], []
        for result, line in zip(written.results, written.lines, strict=True):
            own: tuple[str, ...] = ()
            if isinstance(result, Explanation):
                result, line["map_file"] = self._map(f"{name}.{line['map_key']}", result, line)
                line |= measured(result.map)
                own = result.remarks(self.style)
                line["warnings"] = warnings(line, own)
                if self.style.scale != "run":  # which is known when all is done
                    scale = scale_of([result.map], self.style)
                    line |= look_of(self.style, scale.high)
                    picture = result.overlay(style=self.style, together=scale)
                    line |= drawn(self.names, line, self.style, picture, self.image_format)
                    thumbnails.put(self.folder, line, picture)
            lines.append(line)
            remarks.append(own)
        return replace(written, lines=tuple(lines), remarks=tuple(remarks))

    def _map(self, stem: str, result: Explanation, line: Line) -> tuple[Explanation, str]:
        """The file of a map, and the result with the map that lies there.

        A map that is there already, but for rounding, stays: other pictures and lines tell of it.
        """
        data = _bytes(np.save, result.map.numpy())
        file = self.names.choose(stem, ".npy", question(line, "map"), data)
        there = stored_maps.stored(self.folder / file, result.map.numpy(), line)
        if there is not None:
            return replace(result, map=torch.from_numpy(there)), file
        self.names.put(file, data)
        return result, file

    def _with_sheet(self, name: str, written: Written, everything: Everything) -> Written:
        style = replace(self.style, scale="image") if self.style.scale == "run" else self.style
        results = [result for result, _ in everything]
        picture = sheet_of(results, style)
        if picture is None:
            return written
        fulls = full_scales(results, style)
        told = [line | look_of(style, full) for (_, line), full in zip(everything, fulls, strict=True)]
        data = encoded(picture, self.image_format, told)
        stem = [name, *parts(MAP, self.keys.common(results)), *picture_parts(style), "sheet"]
        suffix = ENCODINGS[self.image_format].suffix
        file = self.names.choose(".".join(stem), suffix, self.keys.answer(results), data)
        self.names.put(file, data)
        lines = [line | {"sheet_file": file if line["status"] == "ok" else None} for line in written.lines]
        return replace(written, lines=tuple(lines), sheet=self.folder / file)


class NpzWriter(Writer):
    """The raw maps of a photograph in one file."""

    def write(self, name: str, written: Written, everything: Everything) -> Written:
        """The file of a photograph."""
        results = [result for result, _ in everything]
        arrays = {self.keys.of(result): result.map.numpy() for result in results}
        data = _bytes(np.savez, **arrays)
        stem = ".".join([name, *parts(MAP, self.keys.common(results))])
        answer = self.keys.answer(results)
        # `cat.jpg~2` is what the second photograph of that name is called.
        file = self.names.choose(stem, ".npz", answer, data, again=f"{name}." if stem == name else None)
        self.names.put(file, data)
        lines = [line | {"map_file": file if line["map_key"] else None} for line in written.lines]
        return replace(written, lines=tuple(lines))


class ParquetWriter(Writer):
    """The raw maps of 256 photographs in one table, with all that the manifest says."""

    photographs: ClassVar[int] = parquet.PHOTOS

    def finish(self, photos: Sequence[Written]) -> None:
        """The table, under a name that its contents give it."""
        lines = [line for photo in photos for line in photo.lines]
        maps = [values for photo in photos for values in photo.maps]
        if all(values is None for values in maps):
            return
        data = parquet.to_bytes(lines, maps)
        file = f"maps-{hashlib.sha256(data).hexdigest()[:16]}.parquet"
        self.names.put(file, data)
        for line in lines:
            line["map_file"] = file if line["status"] == "ok" else None


WRITERS: dict[Format, type[Writer]] = {"png": PngWriter, "npz": NpzWriter, "parquet": ParquetWriter}


def picture_stem(line: Line, style: Style) -> str:
    """What the picture of a line is called: like its map, if that has a file of its own, and its look."""
    file = line["map_file"]
    stem = file.removesuffix(".npy") if file.endswith(".npy") else f"{line['name']}.{line['map_key']}"
    return ".".join([stem, *picture_parts(style)])


def look_of(style: Style, full: float) -> Line:
    """What a line tells of how its picture was drawn; full: the value that has the strongest colour."""
    return {"picture": asdict(style), "full_scale": full}


def drawn(names: Names, line: Line, style: Style, picture: Image.Image, format: ImageFormat) -> Line:
    """Write the picture of a line, which says how it was drawn; what the line tells of the file."""
    data, suffix = encoded(picture, format, [line]), ENCODINGS[format].suffix
    overlay_file = names.choose(picture_stem(line, style), suffix, question(line, "picture"), data)
    names.put(overlay_file, data)
    return {
        "overlay_file": overlay_file,
        "overlay_sha256": hashlib.sha256(data).hexdigest(),
        "overlay_box": list(picture.info.get(PHOTOGRAPH, (0, 0, *picture.size))),
    }


def _bytes(save: Callable[..., None], *values: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, *values, **named)
    return buffer.getvalue()
