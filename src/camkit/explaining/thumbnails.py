"""The small pictures that a page of results shows, beside the large ones.

They are called by the hash of the picture that they show, so a new picture has a new one, and what is there
is right. They can be made again at any time: nothing depends on them, and no run fails of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from camkit.drawing.evidence import Box
from camkit.drawing.thumbnail import thumbnail
from camkit.errors import CamkitError, ImageError
from camkit.explaining.checked_reading import check_picture
from camkit.explaining.manifest import Line
from camkit.files import inside, is_file, regular, write_whole
from camkit.images import decoding

FOLDER = "thumbs"
THREADS = 2  # that make them
FORMATS = ("PNG", "JPEG", "WEBP")  # of the pictures in a folder
MAX_FILE, MAX_PIXELS = 2**26, 2**25  # bytes and pixels of one: a picture of the largest size has fewer


def file_of(line: Mapping[str, Any]) -> str | None:
    """The thumbnail of the picture of a line, as a path below the folder; `None` if there is no picture."""
    digest = line["overlay_sha256"]
    if not line["overlay_file"] or not isinstance(digest, str) or not re.fullmatch(r"[0-9a-f]{64}", digest):
        return None
    return f"{FOLDER}/{digest[:32]}.jpg"


def is_there(path: Path) -> bool:
    """Whether there is a thumbnail, and not what a machine that went down has left of one."""
    return is_file(path) and path.stat().st_size > 0


def put(folder: Path, line: Mapping[str, Any], picture: Image.Image) -> None:
    """Write the thumbnail of a picture that has just been drawn, if that is possible."""
    with suppress(CamkitError):  # the page makes what is missing, and says why it cannot
        _write(folder, line, picture)


def complete(folder: Path, lines: Iterable[Line]) -> list[str]:
    """Make those that are missing, of the pictures in the folder; why those that are missing still are.

    The folder may come from anybody: a picture that is not the one that was drawn has none.
    """
    missing = [line for line in lines if (name := file_of(line)) and not is_there(folder / name)]
    with ThreadPoolExecutor(THREADS) as pool:
        return [why for why in pool.map(partial(_made, folder), missing) if why]


def _made(folder: Path, line: Line) -> str | None:
    try:
        check_picture(folder, line)
        data, name = decoding.read_bytes(regular(folder, line["overlay_file"]), MAX_FILE)
        with decoding.opened(data, name, FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ImageError(f"{name} is too large: it has more than {MAX_PIXELS:,} pixels")
            _write(folder, line, picture)
    except CamkitError as error:
        return str(error)
    return None


def _write(folder: Path, line: Mapping[str, Any], picture: Image.Image) -> None:
    name = file_of(line)
    if name and not is_there(path := inside(folder, name)):
        write_whole(path, thumbnail(picture, _box(line["overlay_box"], picture)), durable=False)


def _box(said: Any, picture: Image.Image) -> Box | None:
    """Where in a picture the photograph is, above the caption; `None` if the line does not say it well."""
    if not isinstance(said, list) or len(said) != 4 or not all(isinstance(side, int) for side in said):
        return None
    left, top, right, bottom = said
    fits = 0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height
    return (left, top, right, bottom) if fits else None
