"""Pictures of maps, drawn again in another look."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path

import torch

from camkit.drawing import evidence
from camkit.drawing.overlay import draw
from camkit.drawing.style import Style
from camkit.errors import CamkitError, ImageError
from camkit.explaining import captions, manifest, thumbnails
from camkit.explaining.boxes import outline
from camkit.explaining.checked_reading import Reader, message, photo_id, photograph, table
from camkit.explaining.embedding import ENCODINGS, ImageFormat
from camkit.explaining.manifest import Finding, Line
from camkit.explaining.manifest_lines import warnings
from camkit.explaining.naming import Names, file_name
from camkit.explaining.writers import drawn, look_of, picture_stem
from camkit.files import Place, inside, sweep
from camkit.images import decoding, workers
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess
from camkit.images.workers import Processes

Kind = tuple[str, str]  # of maps that can share a scale: their method and layer


@dataclass(frozen=True)
class Look:
    """How maps are drawn, and under which names; the scale of each kind if they share one."""

    style: Style
    format: ImageFormat
    names: Names
    scales: Mapping[Kind, float]

    def of(self, line: Line) -> Style:
        """How the map of a line is drawn, with the value of a scale that it shares."""
        full = self.scales.get((line["method"], line["layer"]))
        return replace(self.style, scale=full or "image") if self.style.scale == "run" else self.style


def redraw(
    folder: Path,
    *,
    style: Style,
    image_format: ImageFormat = "png",
    photographs: Path | str | None = None,
    names: Names | None = None,
    processes: Processes | None = None,
    findings: list[Finding] | None = None,
    request: str | None = None,
) -> Iterator[tuple[Line, CamkitError | None]]:
    """Draw every map of a folder, and tell the manifest; each line, and why it was not drawn if so.

    A picture that looks the same is replaced; others stay, and those of this look get names of their own.
    With the scale `run` all maps of one method and layer share theirs, whatever was computed when.
    names: of the folder; afterwards they tell what was in the way. processes: as in `verify`.
    findings: gets the lines of the manifest that are damaged. request: draw its maps alone.
    """
    names, reader = names or Names(folder), Reader(processes)
    deque(names.noting(), 0)
    asked = asdict(style)
    wanted = {manifest.map_id(line) for line in manifest.read(folder) if line["request"] == request}
    lines: dict[tuple[str, str, str], Line] = {}
    for line in manifest.latest(folder, findings):
        map = manifest.map_id(line)
        if line["status"] == "ok" and (request is None or map in wanted):
            known = lines.get(map)
            if known is None or known["picture"] != asked:
                lines[map] = line
    look = Look(style, image_format, names, scales(lines.values(), style) if style.scale == "run" else {})
    sweep(folder)
    place = Place(folder)
    try:
        for _, group in groupby(lines.values(), key=photo_id):
            photos: dict[Preprocess, Photo] = {}
            for line in group:
                place.check()
                try:
                    new = _redrawn(folder, line, look, photographs, reader, photos)
                except CamkitError as error:
                    yield line, error
                    continue
                except Exception as error:  # the line may be a stranger's
                    yield line, CamkitError(f"{line['map_file']}: {message(error)}")
                    continue
                if new != line:  # else it was drawn before, and is told
                    names.settle()
                    manifest.append(folder, [new])
                names.note([new])
                yield new, None
    finally:
        names.drop()


def scales(lines: Iterable[Line], style: Style) -> dict[Kind, float]:
    """The largest value that is drawn of the maps of each kind, by what their lines tell."""
    found: dict[Kind, float] = {}
    for line in lines:
        try:
            extremes = torch.tensor(line["map_range"], dtype=torch.float64)
            full = float(evidence.signed(extremes, style).abs().max())
        except (RuntimeError, TypeError, ValueError):  # a stranger's, or of an older camkit
            raise CamkitError(
                f"{line['map_file']}: its line does not tell the range of the map, which --scale run needs"
            ) from None
        kind = line["method"], line["layer"]
        found[kind] = max(full, found.get(kind, 0.0))
    return found


def _redrawn(
    folder: Path,
    line: Line,
    look: Look,
    photographs: Path | str | None,
    reader: Reader,
    photos: dict[Preprocess, Photo],
) -> Line:
    """The line of a map that is drawn again. photos: of its photograph, as they were prepared already."""
    try:
        preprocess = Preprocess.from_dict(table(line["preprocessing"]))
        around = outline(line["box"])
    except CamkitError as error:
        raise CamkitError(f"{line['map_file']}: {error}") from None
    if preprocess not in photos:
        path = photograph(line, photographs)
        side = look.style.size or decoding.DRAWN
        prepare = partial(workers.prepare, whole=look.style.view == "original", side=side)
        photos[preprocess] = reader.read(path, prepare, path, preprocess)
    photo = photos[preprocess]
    if photo.sha256 != line["image_sha256"]:
        raise ImageError(f"{photo.source} has changed")
    values = reader.map(folder, line)
    style = look.of(line)
    scale = evidence.scale_of([values], style)
    caption = captions.caption(line, values, style)
    picture = draw(photo, values, preprocess, style, caption, scale, around)
    remarks = captions.remarks(values, style, line["backend"], line["method"])
    new = line | look_of(look.style, scale.high) | {"warnings": warnings(line, remarks)}
    inside(folder, file_name(picture_stem(new, look.style), ENCODINGS[look.format].suffix))
    new |= drawn(look.names, new, look.style, picture, look.format)
    thumbnails.put(folder, new, picture)
    return new
