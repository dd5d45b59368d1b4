"""Pictures of maps, drawn again in another look."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from camkit.drawing.overlay import View, draw
from camkit.drawing.style import Style
from camkit.errors import CamkitError, ImageError
from camkit.explaining import explanation, manifest
from camkit.explaining.checked_reading import Reader, message, photo_id, photograph, table
from camkit.explaining.manifest import Finding, Line
from camkit.explaining.manifest_lines import warnings
from camkit.explaining.naming import Names, file_name, look_of
from camkit.explaining.writers import drawn, encoded, picture_stem
from camkit.files import Place, inside, sweep
from camkit.images import decoding, workers
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess
from camkit.images.workers import Processes


@dataclass(frozen=True)
class Look:
    """How maps are drawn, what the manifest tells of that, and under which names they are."""

    style: Style
    view: View
    picture: dict[str, Any]
    names: Names


def redraw(
    folder: Path,
    *,
    style: Style,
    view: View = "model",
    photographs: Path | None = None,
    names: Names | None = None,
    processes: Processes | None = None,
    findings: list[Finding] | None = None,
) -> Iterator[tuple[Line, CamkitError | None]]:
    """Draw every map of a folder, and tell the manifest; each line, and why it was not drawn if so.

    A picture that looks the same is replaced; others stay, and those of this look get names of their own.
    names: of the folder; afterwards they tell what was in the way. processes: as in `verify`.
    findings: gets the lines of the manifest that are damaged.
    """
    look, reader = Look(style, view, look_of(view, style), names or Names(folder)), Reader(processes)
    deque(look.names.noting(), 0)
    lines: dict[tuple[str, str, str], Line] = {}
    for line in manifest.latest(folder, findings):
        if line["status"] == "ok":
            known = lines.get(manifest.map_id(line))
            if known is None or known["picture"] != look.picture:
                lines[manifest.map_id(line)] = line
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
                    manifest.append(folder, [new])
                look.names.note([new])
                yield new, None
    finally:
        look.names.drop()


def _redrawn(
    folder: Path,
    line: Line,
    look: Look,
    photographs: Path | None,
    reader: Reader,
    photos: dict[Preprocess, Photo],
) -> Line:
    """The line of a map that is drawn again. photos: of its photograph, as they were prepared already."""
    try:
        preprocess = Preprocess.from_dict(table(line["preprocessing"]))
    except CamkitError as error:
        raise CamkitError(f"{line['map_file']}: {error}") from None
    if preprocess not in photos:
        path = photograph(line, photographs)
        whole = look.view == "original"
        prepare = partial(workers.prepare, whole=whole, pixels=decoding.DRAWN)
        photos[preprocess] = reader.read(path, prepare, path, preprocess)
    photo = photos[preprocess]
    if photo.sha256 != line["image_sha256"]:
        raise ImageError(f"{photo.source} has changed")
    values = reader.map(folder, line)
    picture = draw(photo, values, preprocess, look.view, look.style)
    remarks = explanation.remarks(values, look.style, line["backend"], line["method"])
    new = line | {"picture": look.picture, "warnings": warnings(line, remarks, photo)}
    inside(folder, file_name(picture_stem(new), ".png"))
    return new | drawn(look.names, new, encoded(picture))
