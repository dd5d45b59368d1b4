"""Pictures as files that tell how they were made: each carries its line of the manifest, as JSON.

In a PNG it is the text `camkit`, in JPEG and WebP the EXIF field UserComment. A sheet carries a list.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from PIL import ExifTags, Image

from camkit.drawing.png import to_png
from camkit.errors import CamkitError, ImageError, UsageError
from camkit.explaining import manifest
from camkit.explaining.manifest import FIELDS, Line
from camkit.files import write_whole
from camkit.images import decoding

ImageFormat = Literal["png", "jpeg", "webp"]

KEY = "camkit"  # of the text in a PNG
# Of a run and its folder, which do not make another picture; and what stands for it in a line that is read.
LEFT_OUT = {
    "request": "",
    "results": 1,
    "truth_share": None,
    "truth_area": None,
    "map_file": "map.npy",
    "overlay_file": None,
    "overlay_sha256": None,
    "overlay_box": None,
    "sheet_file": None,
}
KEPT = [name for name in FIELDS if name not in LEFT_OUT]
ASCII = b"ASCII\0\0\0"  # how a UserComment begins
MAX_EXIF = 60_000  # bytes: a JPEG holds no more than 64 KiB of it
MAX_FILE = 2**26  # bytes of a picture that is read


class Encoding(NamedTuple):
    """How pictures of a format are written: their suffix, and what Pillow is told, if it writes them."""

    suffix: str
    options: Mapping[str, Any]


ENCODINGS: dict[ImageFormat, Encoding] = {
    "png": Encoding(".png", {}),
    "jpeg": Encoding(".jpg", {"format": "JPEG", "quality": 90, "subsampling": 0}),
    "webp": Encoding(".webp", {"format": "WEBP", "quality": 90}),
}
FORMATS: dict[str, ImageFormat] = {**{e.suffix: name for name, e in ENCODINGS.items()}, ".jpeg": "jpeg"}
SUFFIXES = tuple(encoding.suffix for encoding in ENCODINGS.values())


def record(lines: Sequence[Mapping[str, Any]]) -> str:
    """What a picture with these lines carries: JSON, in ASCII."""
    return _json([{name: line.get(name) for name in KEPT} for line in lines])


def encoded(picture: Image.Image, format: ImageFormat, lines: Sequence[Mapping[str, Any]]) -> bytes:
    """The bytes of a picture's file, with what made it."""
    if format == "png":
        return to_png(picture, {KEY: record(lines)})
    told = [{name: line.get(name) for name in KEPT} for line in lines]
    buffer = io.BytesIO()
    picture.save(buffer, exif=_exif(told), **ENCODINGS[format].options)
    return buffer.getvalue()


def save(picture: Image.Image, path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a picture, whole or not at all; the suffix says the format.

    PNG, JPEG and WebP tell what made it. Raises `UsageError` for a suffix that is no picture's.
    """
    suffix = path.suffix.lower()
    format = Image.registered_extensions().get(suffix)
    if format not in Image.SAVE:
        raise UsageError(f"{path} has no suffix of a picture's format, such as .png")
    if (telling := FORMATS.get(suffix)) is not None:
        data = encoded(picture, telling, lines)
    else:
        buffer = io.BytesIO()
        picture.save(buffer, format)
        data = buffer.getvalue()
    write_whole(path, data)


def read(path: Path) -> list[Line]:
    """The lines that a picture carries, of one that `camkit` made; the file may be a stranger's.

    Raises `ImageError` for a file that is damaged or no picture, `CamkitError` for one that tells nothing.
    """
    data, name = decoding.read_bytes(path, MAX_FILE)
    with decoding.opened(data, name, ("PNG", "JPEG", "WEBP")) as image:
        if image.format == "PNG":
            text = image.info.get(KEY)
        else:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
            raw = comment if isinstance(comment, bytes) else b""
            text = raw.removeprefix(ASCII).decode("ascii", "replace") if raw.startswith(ASCII) else None
    if not isinstance(text, str):
        raise CamkitError(
            f"{name} does not tell how it was made: it is no picture of `camkit explain`, or was saved anew"
        )
    return _lines(text, name)


def _lines(text: str, name: str) -> list[Line]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        raise ImageError(f"what {name} tells of itself is damaged or cut off") from None
    lines = []
    for one in found if isinstance(found, list) and found else [found]:
        own = one | LEFT_OUT if isinstance(one, dict) else one
        line = manifest.parsed(json.dumps(own).encode())
        if isinstance(line, str):
            raise ImageError(f"what {name} tells of itself is no line of a manifest: {line}")
        lines.append(line)
    return lines


def _json(told: Sequence[Mapping[str, Any]]) -> str:
    """One line by itself, several as a list; in ASCII, as JSON escapes everything else."""
    return json.dumps(told[0] if len(told) == 1 else list(told), allow_nan=False)


def _exif(told: Sequence[dict[str, Any]]) -> Image.Exif:
    """EXIF with the lines; what takes most room is left out if there is too little."""
    text = _json(told)
    while len(text) > MAX_EXIF:
        sizes = {name: sum(len(json.dumps(line.get(name))) for line in told) for name in told[0]}
        longest = max(sizes, key=lambda name: sizes[name])
        for line in told:
            line.pop(longest, None)
        text = _json(told)
    exif = Image.Exif()
    exif[ExifTags.IFD.Exif] = {ExifTags.Base.UserComment: ASCII + text.encode("ascii")}
    return exif
