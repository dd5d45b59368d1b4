"""Photographs from files: decoded completely, upright, RGB, and safely.

Files may come from strangers. Only the formats below are tried, only up to a size, only regular files;
every failure is one `ImageError` line that names the file.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import io
import itertools
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageFile,
    TiffImagePlugin,  # noqa: F401  these two register themselves here; otherwise Pillow, asked for
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401  their formats, imports all its forty parsers
)

from camkit.errors import ESCAPES, ImageError, UsageError
from camkit.files import read_regular, reason, sha256, walk

# Pillow registers some forty parsers; these are what photographs come in. The JPEG parser also reads
# MPO, which is what many phones write: a JPEG with further pictures behind it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MASK_FORMATS = ("PNG", "GIF", "BMP", "TIFF", "PPM")  # without loss
SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm".split()
)
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
MAX_BYTES = 512 * 2**20
MAX_DRAWN_BYTES, MAX_DRAWN_PIXELS = 8 * 2**20, 4_000_000
MAX_PROPORTION = 50  # a longer strip would be resized to something enormous, and show nothing
DRAWN = 2**22  # pixels that a picture is drawn at, at most
ANY_DEPTH = "**"  # in a glob: any number of folders
BACKGROUND = (255, 255, 255)

REDUCED = re.compile(r" is drawn at \d+ x \d+ of \d+ x \d+$")  # what `reduced` says

# By the raw mode of a PNG: from the transparent colour as the file holds it to the 8-bit pixels, which
# Pillow scales without it.
KEY_SCALES = {"L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
# By the EXIF orientation: what makes the picture upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# In a name, but for the halves of signs that stand for bytes which are no UTF-8.
IN_NAMES = {code: text for code, text in ESCAPES.items() if not 0xDC80 <= code < 0xDD00} | {0x0A: "\\n"}


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    image: RGB, upright.
    source: where it came from, for people; `sha256` is of the file's bytes, or of the pixels.
    warnings: what was not as one would expect.
    name: how its results are called.
    cut: whether `image` is only what the model sees of it.
    path: where it lies, as it was given, with whatever its name holds.
    view: what the model sees of it, if `image` was reduced for drawing; `whole`: width and height before.
    """

    image: Image.Image = field(repr=False)
    source: str
    sha256: str
    warnings: tuple[str, ...] = ()
    name: str = "image"
    cut: bool = False
    path: str | None = None
    view: Image.Image | None = field(default=None, repr=False)
    whole: tuple[int, int] | None = None


def sample() -> Path:
    """The bundled photograph: `chelsea`, a cat, CC0, as the package scikit-image carries it."""
    spec = find_spec("skimage")  # located without importing it
    path = Path(spec.origin or "").parent / "data" / "chelsea.png" if spec else Path()
    if not path.is_file():
        raise ImageError("the sample photograph is missing: pip install scikit-image")
    return path


def load(source: str | os.PathLike[str] | Image.Image) -> Photo:
    """Decode a file, or take an image that is already decoded.

    EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled, palettes and CMYK
    are converted, and of an animation the first frame is taken, with a warning.
    Raises `ImageError` for whatever cannot be decoded completely or is refused.
    """
    if isinstance(source, Image.Image):
        with _naming("the image"):
            rgb, notes = _develop(source, "the image")
        return Photo(rgb, "image", hashlib.sha256(rgb.tobytes()).hexdigest(), tuple(notes))
    path = Path(source)
    name = display(path)
    data = _read(path, name)
    image, notes = _decode(data, name)
    digest = hashlib.sha256(data).hexdigest()
    return Photo(image, name, digest, tuple(notes), path=os.fspath(path))


def digest(path: str | os.PathLike[str]) -> str:
    """The `sha256` that the photograph in a file would have, without decoding it."""
    with _reading(Path(path), display(path)):
        return sha256(path, MAX_BYTES)


def reduced(photo: Photo, view: Image.Image, pixels: int) -> Photo:
    """A photograph of at most so many pixels for drawing, with the `view` that was cut from all of it."""
    width, height = photo.image.size
    if width * height <= pixels:
        return photo
    scale = math.sqrt(pixels / (width * height))
    size = max(1, int(width * scale)), max(1, int(height * scale))
    image = photo.image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
    told = f"{photo.source} is drawn at {size[0]} x {size[1]} of {width} x {height}"
    return replace(photo, image=image, view=view, whole=(width, height), warnings=(*photo.warnings, told))


def load_mask(path: str | os.PathLike[str]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The values of a picture of one channel, a mask or a palette's indices: int64 `[height, width]`.

    Nothing is scaled, turned or converted. Raises `ImageError` for what `load` refuses, and for colours,
    transparency and formats with loss, whose values would not be those that were meant.
    """
    name = display(path)
    data = _read(Path(path), name)
    with _naming(name, MASK_FORMATS), Image.open(io.BytesIO(data), formats=MASK_FORMATS) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise ImageError(f"{name} has mode {image.mode}: a mask has one channel, not colours")
        _check_size(image.size, name)
        image.load()
        return np.asarray(image).astype(np.int64)


def load_png(path: str | os.PathLike[str]) -> Image.Image:
    """A picture as camkit draws them, RGB: a PNG of at most 8 MiB and 4 megapixels.

    Raises `ImageError` for anything else that lies in a stranger's folder.
    """
    name = display(path)
    data = _read(Path(path), name, MAX_DRAWN_BYTES)
    with _naming(name, ("PNG",)), Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.width * image.height > MAX_DRAWN_PIXELS:
            raise ImageError(f"{name} is too large: it has more than {MAX_DRAWN_PIXELS:,} pixels")
        return image.convert("RGB")


@dataclass(frozen=True)
class Source:
    """A file that is to be read, and how its results are called: a relative path with slashes."""

    path: Path
    name: str


def expand(patterns: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    """The files that `find` finds, without their names."""
    return (source.path for source in find(patterns))


def find(
    patterns: Sequence[str | os.PathLike[str]], *, without: str | os.PathLike[str] | None = None
) -> Iterator[Source]:
    """The files that names, folders and globs mean, each once, in a stable order.

    Of a folder, and of a glob, the files with an image's suffix are taken, folders recursively, as they are
    found: nothing is listed beforehand. A name that is not there, and a glob or a folder without images,
    raise `UsageError`, with the first file that is asked for.

    Results are called as the file is, below a single folder with the path from there; of several
    patterns those from a folder bear its name, too. A name that is taken gets a number.

    without: a folder whose images are left out, such as that of the results; not if it is asked for itself.
    """
    left_out = "" if without is None else _real(without)
    texts = [os.fspath(pattern) for pattern in patterns]
    expanded = [_expand_one(text) for text in texts]
    for text, (_, files) in zip(texts, expanded, strict=True):  # before anything is done with the others
        if next(iter(files), None) is None:
            raise UsageError(f"no image found in {display(text)!r}")
    walked: list[str] = []  # so little is remembered that memory does not grow with a folder
    named: set[str] = set()
    taken: dict[str, int] = {}
    for text, (root, files) in zip(texts, expanded, strict=True):
        prefix = ""
        if root and len(texts) > 1:
            prefix = _unique(root.resolve().name or "root", taken) + "/"
        skipped = left_out if root and not _real(root).startswith(left_out) else ""
        for path in files:
            real = os.path.realpath(path)
            if skipped and real.startswith(skipped):
                continue
            known = real in named or any(real.startswith(folder) for folder in walked)
            if known and (real in named or _is_image(path)):
                continue
            if not isinstance(files, Walk):
                named.add(real)
            name = path.relative_to(root).as_posix() if root else _unique(path.name, taken)
            yield Source(path, prefix + name)
        if isinstance(files, Walk):
            walked.append(_real(text))


def display(path: str | os.PathLike[str]) -> str:
    """A path as one line of valid UTF-8, whatever the bytes of the name are."""
    return os.fsencode(os.fspath(path).translate(IN_NAMES)).decode("utf-8", "backslashreplace")


def _real(folder: str | os.PathLike[str]) -> str:
    """Where a folder really lies, with a slash at the end."""
    return os.path.join(os.path.realpath(folder), "")  # noqa: PTH118


def _expand_one(pattern: str) -> tuple[Path | None, Iterable[Path]]:
    """The folder that the files lie below, if they are not named one by one, and the files."""
    path = Path(pattern)
    if os.path.isdir(pattern):  # noqa: PTH112  is_dir raises if the name is too long
        return path, Walk(path)
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
        if not _may_be_there(path):
            raise UsageError(f"there is no image {display(pattern)!r}")
        return None, [path]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    if ANY_DEPTH in path.parts:
        return fixed, Glob(path)
    found = (Path(hit) for hit in sorted(glob.glob(pattern)))  # noqa: PTH207  Path.glob takes no absolute pattern
    return fixed, [hit for hit in found if _is_image(hit) and not hit.is_dir()]


def _may_be_there(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:  # reading it will say so
        return True
    except (OSError, ValueError):  # the latter of what no file can be called
        return False
    return True


@dataclass(frozen=True)
class Walk:
    """The images in a folder and below, sorted folder by folder, and at last what cannot be listed."""

    folder: Path

    def __iter__(self) -> Iterator[Path]:
        closed: list[OSError] = []
        for root, _, files in walk(self.folder, closed):
            for name in files:
                if _is_image(Path(name)):
                    yield Path(root, name)
        yield from (Path(error.filename) for error in closed)


@dataclass(frozen=True)
class Glob:
    """The images that a pattern with `**` means, in the order of a `Walk`; below `**` no link is followed.

    `glob.glob` follows links to folders, also those to the folder that they lie in, and calls itself for
    each folder.
    """

    pattern: Path

    def __iter__(self) -> Iterator[Path]:
        parts = self.pattern.parts
        begin = parts.index(ANY_DEPTH)
        base = str(Path(*parts[:begin]))
        closed: list[OSError] = []
        for folder in sorted(glob.glob(base)) if glob.has_magic(base) else [base]:  # noqa: PTH207
            if os.path.isdir(folder):  # noqa: PTH112  is_dir raises if the name is too long
                yield from _below(folder, parts[begin:], closed)
        yield from (Path(error.filename) for error in closed)


def _below(folder: str, pattern: Sequence[str], closed: list[OSError]) -> Iterator[Path]:
    """The images in a folder and below whose path from there a pattern means."""
    reached = {folder: _with_skips({0}, pattern)}  # how much of the pattern each waiting folder has used up
    for root, folders, files in walk(folder, closed):
        here = reached.pop(root)
        for name in files:
            path = Path(root, name)
            if _is_image(path) and len(pattern) in _after(name, here, pattern) and not path.is_dir():
                yield path
        after = {name: _after(name, here, pattern) for name in folders}
        folders[:] = [name for name in folders if after[name]]  # no other is entered
        reached |= {os.path.join(root, name): after[name] for name in folders}  # noqa: PTH118


def _after(name: str, reached: AbstractSet[int], pattern: Sequence[str]) -> frozenset[int]:
    """The places in a pattern that may be reached with one more name; hidden ones have to be asked for."""
    found = set()
    for place in reached - {len(pattern)}:
        hidden = name.startswith(".") and not pattern[place].startswith(".")
        if not hidden and pattern[place] == ANY_DEPTH:
            found.add(place)
        elif not hidden and fnmatch.fnmatch(name, pattern[place]):
            found.add(place + 1)
    return _with_skips(found, pattern)


def _with_skips(reached: AbstractSet[int], pattern: Sequence[str]) -> frozenset[int]:
    """These places and those behind a `**`, which may be no folder at all."""
    found = set(reached)
    for place, part in enumerate(pattern):
        if place in found and part == ANY_DEPTH:
            found.add(place + 1)
    return frozenset(found)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _unique(name: str, taken: dict[str, int]) -> str:
    """`name`, with a number from the second time on."""
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else _unique(f"{name}~{taken[name]}", taken)


def _read(path: Path, name: str, limit: int = MAX_BYTES) -> bytes:
    with _reading(path, name):
        return read_regular(path, limit)


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    try:
        if path.is_dir():
            os.scandir(path).close()  # which tells why, if its files could not be listed
        yield
    except (OSError, ValueError) as error:  # the latter also for a NUL character
        raise ImageError(f"{name} cannot be read: {reason(error)}") from None


def _decode(data: bytes, name: str) -> tuple[Image.Image, list[str]]:
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    with _naming(name), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _scale_key(image)
        several = image.format != "MPO" and getattr(image, "is_animated", False)
        rgb, notes = _develop(image, name)
        return rgb, [*notes, *([f"{name} has several frames: the first is explained"] * several)]


def _develop(image: Image.Image, name: str) -> tuple[Image.Image, list[str]]:
    """Upright and RGB, with notes of what was odd."""
    _check_size(image.size, name)
    image.load()  # completely, so that a truncated file is found
    notes: list[str] = []
    return _rgb(_upright(image, notes), name), notes


@contextmanager
def _naming(name: str, formats: Sequence[str] = FORMATS) -> Iterator[None]:
    """Turns whatever goes wrong with an image into one `ImageError` line that names it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's; what matters is checked here
            yield
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not an image that camkit reads ({', '.join(formats)})") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name} is too large: more than {MAX_PIXELS:,} pixels") from None
    except MemoryError:
        raise ImageError(f"{name} needs more memory than it may have to be decoded") from None
    except ImageError:
        raise
    # Decoders raise nearly anything on damaged data: OSError, SyntaxError, ValueError, struct.error ...
    except Exception as error:
        raise ImageError(f"{name} cannot be decoded: {reason(error)}") from None


def _check_size(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{name} is too large: {width} x {height} is more than {MAX_PIXELS:,} pixels")
    if min(size) == 0:
        raise ImageError(f"{name} has no pixels: it is {width} x {height}")
    if max(size) > MAX_PROPORTION * min(size):
        raise ImageError(
            f"{name} is {width} x {height}: a strip of more than {MAX_PROPORTION}:1 is no photograph"
        )


def _rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name} has floating-point pixels, of which nobody knows what is white")
    if image.mode.startswith("I"):
        image = _sixteen_bit(image, name)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        background = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit(image: Image.Image, name: str) -> Image.Image:
    """16-bit grey to 8 bits; `convert` would clip everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if "transparency" in image.info:  # the grey value that stands for nothing
        values[values == image.info["transparency"]] = 65535
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(f"{name} has grey values outside 0 to 65535, of which nobody knows the white")
    return Image.fromarray((values / 257).round().astype(np.uint8))


def _scale_key(image: ImageFile.ImageFile) -> None:
    """Brings the transparent colour of a PNG that is not decoded yet to the scale of its pixels."""
    key = image.info.get("transparency")
    scale = KEY_SCALES.get(str(image.tile[0].args)) if image.format == "PNG" and image.tile else None
    if scale and key is not None:
        many = isinstance(key, tuple)
        image.info["transparency"] = tuple(int(k * scale) for k in key) if many else int(key * scale)


def _upright(image: Image.Image, notes: list[str]) -> Image.Image:
    # Not `ImageOps.exif_transpose`: it also writes the EXIF block anew, and gives up, unturned, if any
    # other entry of it is odd.
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    # A damaged EXIF block is no reason to refuse the pixels.
    except Exception:
        notes.append("the EXIF data cannot be read, so the orientation is unknown")
        return image
    return image if turn is None else image.transpose(turn)
