"""Photographs from files: decoded completely, upright, RGB, and safely.

Files may come from strangers. Only the formats below are tried, only up to a size, only regular files;
every failure is one `ImageError` line that names the file.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import (
    ExifTags,
    Image,
    ImageFile,
    TiffImagePlugin,  # noqa: F401  these two register themselves here; otherwise Pillow, asked for
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401  their formats, imports all its forty parsers
)

from camkit.errors import CamkitError, ImageError, reason
from camkit.files import read_regular, sha256, stand_in
from camkit.images import addresses, channels, inputs, tiff
from camkit.images.addresses import is_address
from camkit.images.finding import display

# Pillow registers some forty parsers; these are what photographs come in. The JPEG parser also reads
# MPO, which is what many phones write: a JPEG with further pictures behind it.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MASK_FORMATS = ("PNG", "GIF", "BMP", "TIFF", "PPM")  # without loss
MAX_PIXELS = 89_478_485  # where Pillow begins to warn of decompression bombs
MAX_BYTES = 512 * 2**20
MAX_DRAWN_BYTES, MAX_DRAWN_PIXELS = 8 * 2**20, 4_000_000
MAX_PROPORTION = 50  # a longer strip would be resized to something enormous, and show nothing
ARRAY = b"\x93NUMPY"  # how a .npy file begins
DRAWN = 1024  # pixels of the longest side of a drawn photograph, at most, unless others are asked for
BACKGROUND = (255, 255, 255)

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


@dataclass(frozen=True)
class Photo:
    """A decoded photograph.

    image: RGB, upright; of other channels one that carries them, see `camkit.images.channels`.
    source: where it came from, for people; `sha256` is of the file's bytes, or of the pixels.
    warnings: what was not as one would expect.
    name: how its results are called.
    cut: whether `image` is only what the model sees of it.
    path: the path of its file as the user wrote it, any characters included.
    view: what the model sees of it, if `image` was reduced for drawing; `whole`: width and height before
        that, or before it was cut.
    turn: the EXIF orientation by which it was made upright; 1: as it is stored.
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
    turn: int = 1


@dataclass(frozen=True)
class Decoded:
    """A picture, upright and as it is used; notes: what was odd; turn: as of a photograph."""

    image: Image.Image
    notes: tuple[str, ...] = ()
    turn: int = 1


@dataclass(frozen=True)
class Fetched:
    """A photograph whose bytes are here already. path: where it lies; name: of its results."""

    path: str
    name: str
    data: bytes = field(repr=False)


def sample() -> Path:
    """The bundled photograph: Chelsea, a cat; `chelsea.md` names its author and licence."""
    return Path(__file__).with_name("chelsea.png")


def load(source: Any, count: int = 3) -> Photo:
    """Decode a file, or take an image that is already decoded.

    source: a path, an address, bytes, an open file, a Pillow image, an array or a tensor (see `inputs`); or
        a photograph, which is taken as it is.
    count: of channels; 3 makes RGB of whatever it is, and for any other number it must have these channels.

    EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled, palettes and CMYK
    are converted, and of an animation the first frame is taken, with a warning.
    Raises `ImageError` for whatever cannot be decoded completely or is refused.
    """
    if isinstance(source, Photo):
        return source
    if not isinstance(source, str | os.PathLike | bytes | Fetched) and not hasattr(source, "read"):
        with _decoding_errors("the image"):
            ready = _of_object(source, count)
        pixels = ready.image if count == 3 else channels.carried(ready.image)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        return Photo(ready.image, "image", digest, ready.notes, turn=ready.turn)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        return _of_bytes(inputs.fetch(source), source, count)
    if is_address(source):
        return replace(_of_bytes(_fetched(source), display(source), count), path=source)
    if isinstance(source, Fetched):
        photo = _of_bytes(source.data, display(source.path), count)
        return replace(photo, path=source.path, name=source.name)
    if isinstance(source, bytes) or hasattr(source, "read"):
        return _of_bytes(source if isinstance(source, bytes) else source.read(MAX_BYTES), "image", count)
    path = Path(source).expanduser()
    name = display(path)
    return replace(_of_bytes(_read(path, name), name, count), path=os.fspath(path))


def _of_bytes(data: bytes, name: str, count: int) -> Photo:
    ready = _decode(data, name, count)
    return Photo(ready.image, name, hashlib.sha256(data).hexdigest(), ready.notes, turn=ready.turn)


def _of_object(source: Any, count: int, name: str = "the image") -> Decoded:
    """As `_prepared`, of a Pillow image, an array or a tensor."""
    if isinstance(source, Image.Image):
        return _prepared(source, name, count)
    if count == 3:
        return _prepared(inputs.picture(source, name), name, count)
    image = channels.of_array(inputs.values(source, count, name), count, name)
    _check_size(image.size, name)
    return Decoded(image)


def _fetched(address: str) -> bytes:
    try:
        return addresses.read(address, MAX_BYTES)
    except CamkitError as error:
        raise ImageError(str(error)) from None


def digest(path: str | os.PathLike[str]) -> str:
    """The `sha256` that the photograph in a file, or at an address, would have, without decoding it."""
    if is_address(path):
        return hashlib.sha256(_fetched(str(path))).hexdigest()
    with _reading_errors(Path(path), display(path)):
        return sha256(path, MAX_BYTES)


def reduced(image: Image.Image, side: int) -> Image.Image:
    """A picture whose longest side has at most so many pixels."""
    longest = max(image.size)
    if longest <= side:
        return image
    width, height = (max(1, round(length * side / longest)) for length in image.size)
    drawn = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=2)
    drawn.info.pop(channels.KEY, None)  # which the view has, as far as the model sees them
    return drawn


def load_mask(path: str | os.PathLike[str]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The values of a picture of one channel, a mask or a palette's indices: int64 `[height, width]`.

    Nothing is scaled, turned or converted, but of two colours of a palette black is 0. Raises `ImageError`
    for what `load` refuses, and for colours, transparency and formats with loss, whose values would not be
    those that were meant.
    """
    name = display(path)
    data = _read(Path(path), name)
    with _decoding_errors(name, MASK_FORMATS), Image.open(io.BytesIO(data), formats=MASK_FORMATS) as image:
        if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
            raise ImageError(f"{name} has mode {image.mode}: a mask has one channel, not colours")
        _check_size(image.size, name)
        image.load()
        values = np.asarray(image).astype(np.int64)
        return _black_is_zero(values, image, name) if image.mode == "P" else values


def _black_is_zero(
    values: np.ndarray[tuple[int, int], np.dtype[np.int64]], image: Image.Image, name: str
) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Indices of a palette, of which 0 is the background by custom, where no other index is black.

    Of two colours the black one is the background, whichever index it has. Raises `ImageError` of more.
    """
    palette = np.asarray(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
    used = np.unique(values)
    black = [int(index) for index in used if index < len(palette) and not palette[index].any()]
    if not black or not palette[0].any():
        return values
    if len(used) > 2:
        raise ImageError(
            f"{name} has a palette whose index {black[0]} is black, and 0 is not: nobody knows which of "
            "them is the background; save it as grey"
        )
    found: np.ndarray[tuple[int, int], np.dtype[np.int64]] = (values != black[0]).astype(np.int64)
    return found


def load_png(path: str | os.PathLike[str]) -> Image.Image:
    """A picture as camkit draws them, RGB: a PNG of at most 8 MiB and 4 megapixels.

    Raises `ImageError` for anything else that lies in a stranger's folder.
    """
    name = display(path)
    data = _read(Path(path), name, MAX_DRAWN_BYTES)
    with _decoding_errors(name, ("PNG",)), Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        if image.width * image.height > MAX_DRAWN_PIXELS:
            raise ImageError(f"{name} is too large: it has more than {MAX_DRAWN_PIXELS:,} pixels")
        return image.convert("RGB")


def read_bytes(path: Path, limit: int) -> tuple[bytes, str]:
    """The bytes of a file, and what it is called in messages; `ImageError` if it cannot be read."""
    name = display(path)
    return _read(path, name, limit), name


@contextmanager
def opened(data: bytes, name: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """A picture, of which only the header is read; `ImageError` for what it, or the block, cannot read."""
    with _decoding_errors(name, formats), Image.open(io.BytesIO(data), formats=formats) as image:
        yield image


def _read(path: Path, name: str, limit: int = MAX_BYTES) -> bytes:
    with _reading_errors(path, name):
        return read_regular(path, limit)


@contextmanager
def _reading_errors(path: Path, name: str) -> Iterator[None]:
    try:
        if path.is_dir():
            os.scandir(path).close()  # raises the reason if its files cannot be listed
        yield
    except (OSError, ValueError) as error:  # the latter also for a NUL character
        raise ImageError(f"{name} cannot be read: {reason(error)}") from None


def _decode(data: bytes, name: str, count: int) -> Decoded:
    if not data:
        raise ImageError(f"{name} is empty (0 bytes)")
    if what := stand_in(data):
        raise ImageError(f"{name} is {what}")
    if data.startswith(ARRAY):
        with _decoding_errors(name):
            return _of_object(np.lib.format.read_array(io.BytesIO(data), allow_pickle=False), count, name)
    with _decoding_errors(name), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _scale_key(image)
        tiff.check(image, name)
        if count != 3:
            channels.check_copied(image, count, name)
        several = image.format != "MPO" and getattr(image, "is_animated", False)
        ready = _prepared(image, name, count)
        frames = (f"{name} has several frames: the first is explained",) if several else ()
        return replace(ready, notes=ready.notes + frames)


def _prepared(image: Image.Image, name: str, count: int) -> Decoded:
    """The image upright and as RGB, or with its `count` channels."""
    _check_size(image.size, name)
    image.load()  # completely, so that a truncated file is found
    notes: list[str] = []
    scale = tiff.grey_scale(image)  # which a picture that is turned no longer tells
    upright, turn = _upright(image, notes)
    ready = _rgb(upright, name, scale, notes) if count == 3 else channels.of_picture(upright, count, name)
    return Decoded(ready, tuple(notes), turn)


@contextmanager
def _decoding_errors(name: str, formats: Sequence[str] = FORMATS) -> Iterator[None]:
    """Turn whatever goes wrong with an image into one `ImageError` line that names it."""
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


def _rgb(image: Image.Image, name: str, scale: tuple[int, int], notes: list[str]) -> Image.Image:
    if image.mode == "F":
        raise ImageError(
            f"{name} has floating-point pixels, whose range is not known; convert it to 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        image = _sixteen_bit(image, name, scale)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        if not rgba.getchannel("A").getbbox():
            notes.append(f"{name} is transparent everywhere: a white picture is explained")
        background = Image.new("RGBA", rgba.size, (*BACKGROUND, 255))
        return Image.alpha_composite(background, rgba).convert("RGB")
    return image.convert("RGB")


def _sixteen_bit(image: Image.Image, name: str, scale: tuple[int, int]) -> Image.Image:
    """16-bit grey to 8 bits; `convert` would clip everything above 255 to white.

    scale: the values of black and white.
    """
    black, white = scale
    values = np.asarray(image).astype(np.int64)
    if "transparency" in image.info:  # the grey value that stands for nothing
        values[values == image.info["transparency"]] = white
    if values.min() < 0 or values.max() > max(scale):
        raise ImageError(
            f"{name} has grey values outside 0 to {max(scale)}, and it is not known which is white"
        )
    return Image.fromarray(((values - black) * 255 / (white - black)).round().astype(np.uint8))


def _scale_key(image: ImageFile.ImageFile) -> None:
    """Scale the transparent colour of a PNG that is not decoded yet as its pixels will be."""
    key = image.info.get("transparency")
    scale = KEY_SCALES.get(str(image.tile[0].args)) if image.format == "PNG" and image.tile else None
    if scale and key is not None:
        many = isinstance(key, tuple)
        image.info["transparency"] = tuple(int(k * scale) for k in key) if many else int(key * scale)


def _upright(image: Image.Image, notes: list[str]) -> tuple[Image.Image, int]:
    # Not `ImageOps.exif_transpose`: it also writes the EXIF block anew, and gives up, unturned, if any
    # other entry of it is odd.
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)
        how = TURNS.get(turn)
    # A damaged EXIF block is no reason to refuse the pixels.
    except Exception:
        notes.append("the EXIF data cannot be read, so the orientation is unknown")
        return image, 1
    return (image, 1) if how is None else (image.transpose(how), turn)
