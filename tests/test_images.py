"""Photographs from files: every kind is decoded to the same upright RGB, and the rest is refused."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image, ImageFile

from camkit.errors import CamkitWarning, ImageError, UsageError
from camkit.images import decoding, finding
from camkit.images.decoding import load, sample
from camkit.images.finding import expand, find

Pixels = np.ndarray

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def pixels(source: str | os.PathLike[str] | Image.Image) -> Pixels:
    """What `load` makes of a source, `[h, w, 3]`, as numbers that do not wrap around."""
    image = load(source).image
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def noise(width: int = 7, height: int = 5) -> Pixels:
    """Random colours, so that no turn or flip of them is the same."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    """`image` as the bytes of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png(size: tuple[int, int], depth: int, kind: int, data: bytes, trns: bytes = b"") -> bytes:
    """A PNG built by hand; `data` are the rows, each behind a zero byte."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", *size, depth, kind, 0, 0, 0)
    key = chunk(b"tRNS", trns) if trns else b""
    body = chunk(b"IDAT", zlib.compress(data)) if data else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + key + body + chunk(b"IEND", b"")


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block of entries (tag, type, count, four bytes of value)."""
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + bytes(4)


def orientation(value: int) -> tuple[int, int, int, bytes]:
    """The EXIF entry that says how the picture lies."""
    return (0x0112, 3, 1, struct.pack("<HH", value, 0))


# --- orientation ----------------------------------------------------------------------------------

# How an upright picture is stored under each orientation, as the EXIF standard describes it.
STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda up: up,
    2: lambda up: up[:, ::-1],
    3: lambda up: up[::-1, ::-1],
    4: lambda up: up[::-1],
    5: lambda up: up.transpose(1, 0, 2),
    6: lambda up: np.rot90(up),
    7: lambda up: np.rot90(up)[:, ::-1],
    8: lambda up: np.rot90(up, -1),
}
LOSSLESS = {
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF in strips of LZW": {"compression": "tiff_lzw"},
}


@pytest.mark.parametrize("value", STORED)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_exif_orientation_comes_out_upright(tmp_path: Path, kind: str, value: int) -> None:
    upright = noise()
    tags = Image.Exif()
    tags[0x0112] = value
    stored = Image.fromarray(np.ascontiguousarray(STORED[value](upright)))
    file = tmp_path / "photo"
    file.write_bytes(encoded(stored, kind.split()[0], exif=tags, **LOSSLESS[kind]))
    photo = load(file)
    np.testing.assert_array_equal(np.asarray(photo.image), upright)
    assert photo.warnings == ()


@pytest.mark.parametrize("value", STORED)
def test_every_orientation_of_a_jpeg_and_of_an_open_image(tmp_path: Path, value: int) -> None:
    upright = noise(3, 2).repeat(16, 0).repeat(16, 1)  # blocks survive JPEG
    stored = Image.fromarray(np.ascontiguousarray(STORED[value](upright)))
    file = tmp_path / "photo.jpg"
    file.write_bytes(encoded(stored, "JPEG", quality=100, subsampling=0, exif=exif(orientation(value))))
    assert np.abs(pixels(file) - upright).max() < 6
    with Image.open(file) as opened:
        np.testing.assert_array_equal(pixels(opened), pixels(file))


ODD_ENTRIES = {
    "a width that is text": (0x0100, 2, 4, b"abc\0"),
    "a resolution that is text": (0x011A, 2, 4, b"abc\0"),
    "a negative height": (0x0101, 9, 1, struct.pack("<i", -6)),
    "a maker that is a number": (0x010F, 11, 1, struct.pack("<f", 1.5)),
    "an unknown type": (0x010F, 99, 5, bytes(4)),
    "a value beyond the end": (0x010F, 2, 5000, struct.pack("<I", 60000)),
}


@pytest.mark.parametrize("odd", ODD_ENTRIES)
def test_another_odd_exif_entry_does_not_hide_the_orientation(tmp_path: Path, odd: str) -> None:
    if odd == "a value beyond the end" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("before Pillow 13 such a value ends the reading of EXIF")
    block = exif(*sorted([ODD_ENTRIES[odd], orientation(6)]))
    file = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 4)).save(file, exif=block)
    assert load(file).image.size == (4, 8)


DAMAGED = {
    "garbage": b"Exif\0\0garbage garbage",
    "cut off": exif(orientation(6))[:20],
    "an orientation there is not": exif(orientation(99)),
    "an orientation that is text": exif((0x0112, 2, 2, b"6\0\0\0")),
    "no byte order": b"Exif\0\0XX*\0" + bytes(20),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_exif_is_no_reason_to_refuse_the_pixels(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "photo.jpg"
    Image.new("RGB", (8, 4), RED).save(file, exif=DAMAGED[kind])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nor for the warnings of another library
        image = load(file).image
    assert image.size == (8, 4)
    assert image.getpixel((3, 2))[0] > 250


def test_exif_that_cannot_be_read_at_all_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image.Image) -> Image.Exif:
        raise SyntaxError("not a TIFF file")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    photo = load(Image.new("RGB", (8, 4)))
    assert photo.image.size == (8, 4)
    assert "orientation is unknown" in photo.warnings[0]


# --- transparency ---------------------------------------------------------------------------------


def test_transparent_pixels_are_white_and_half_transparent_ones_half_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (*RED, 255))
    image.putpixel((0, 0), (*RED, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    for name, options in {"a.png": {}, "a.webp": {"lossless": True, "exact": True}, "a.tif": {}}.items():
        image.save(tmp_path / name, **options)
        row = pixels(tmp_path / name)[0]
        assert row[0].tolist() == [255, 255, 255], name  # the red under it does not show
        assert row[1].tolist() == [127, 127, 127], name
        assert row[2].tolist() == [255, 0, 0], name


def test_transparency_of_grey_and_palette_images(tmp_path: Path) -> None:
    grey = Image.new("LA", (2, 1), (40, 255))
    grey.putpixel((0, 0), (40, 0))
    grey.save(tmp_path / "grey.png")
    assert pixels(tmp_path / "grey.png")[0, :, 0].tolist() == [255, 40]

    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *BLUE, 0, 100, 0])
    palette.putdata([0, 1, 2])
    palette.save(tmp_path / "palette.png", transparency=bytes([0, 255, 128]))
    assert pixels(tmp_path / "palette.png")[0].tolist() == [[255] * 3, [0, 0, 255], [127, 177, 127]]
    palette.save(tmp_path / "palette.gif", transparency=1)
    assert pixels(tmp_path / "palette.gif")[0].tolist() == [[255, 0, 0], [255] * 3, [0, 100, 0]]
    palette.putalpha(0)
    assert palette.mode == "PA"
    assert pixels(palette)[0].tolist() == [[255] * 3] * 3


# Two pixels, of which the first has the colour that the file declares transparent.
COLOUR_KEYS = {
    "RGB of 8 bits": (8, 2, bytes([9, 8, 7, 50, 60, 70]), struct.pack(">3H", 9, 8, 7), [50, 60, 70]),
    "RGB of 16 bits": (
        16,
        2,
        struct.pack(">6H", 0x1234, 7, 0xFFFF, 257 * 50, 257 * 60, 257 * 70),
        struct.pack(">3H", 0x1234, 7, 0xFFFF),
        [50, 60, 70],
    ),
    "grey of 8 bits": (8, 0, bytes([30, 200]), struct.pack(">H", 30), [200] * 3),
    "grey of 16 bits": (16, 0, struct.pack(">2H", 1000, 257 * 50), struct.pack(">H", 1000), [50] * 3),
    "grey of 4 bits": (4, 0, bytes([0x3A]), struct.pack(">H", 3), [170] * 3),
    "grey of 2 bits": (2, 0, bytes([0b01_10_0000]), struct.pack(">H", 1), [170] * 3),
    "grey of 1 bit": (1, 0, bytes([0b01000000]), struct.pack(">H", 0), [255] * 3),
    "grey of 1 bit, white is the key": (1, 0, bytes([0b10000000]), struct.pack(">H", 1), [0] * 3),
}


@pytest.mark.parametrize("kind", COLOUR_KEYS)
def test_a_transparent_colour_of_a_png_is_white(tmp_path: Path, kind: str) -> None:
    depth, colour, row, key, second = COLOUR_KEYS[kind]
    file = tmp_path / "key.png"
    file.write_bytes(png((2, 1), depth, colour, b"\0" + row, key))
    assert pixels(file)[0].tolist() == [[255, 255, 255], second]


# --- depths and colour spaces ---------------------------------------------------------------------


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    grey = np.array([[0, 256, 257 * 100, 32768, 65535]], dtype=np.uint16)
    expected = [0, 1, 100, 128, 255]
    image = Image.fromarray(grey)
    image.save(tmp_path / "grey.png")
    image.save(tmp_path / "little.tif")
    big = Image.frombytes("I;16B", image.size, grey.astype(">u2").tobytes())
    big.save(tmp_path / "big.tif")
    assert (tmp_path / "big.tif").read_bytes()[:2] == b"MM"
    (tmp_path / "grey.pgm").write_bytes(b"P5 5 1 65535\n" + grey.astype(">u2").tobytes())
    for name in ("grey.png", "little.tif", "big.tif", "grey.pgm"):
        assert pixels(tmp_path / name)[0].tolist() == [[v] * 3 for v in expected], name
    assert pixels(big)[0, :, 0].tolist() == expected


def test_whole_numbers_that_are_no_sixteen_bit_grey_are_refused(tmp_path: Path) -> None:
    for value in (70_000, -1):
        with pytest.raises(ImageError, match=r"the image .*0 to 65535"):
            load(Image.fromarray(np.full((2, 2), value, np.int32)))


def tiff(values: Pixels, **tags: int) -> bytes:
    """An uncompressed TIFF of values `[h, w]` in one strip, whatever its tags say of them."""
    height, width = values.shape
    data = values.tobytes()
    size = values.dtype.itemsize * 8
    own = {"WIDTH": width, "HEIGHT": height, "BITS": size, "COMPRESSION": 1, "PHOTOMETRIC": 1}
    own |= {"OFFSET": 8, "SAMPLES": 1, "ROWS": height, "BYTES": len(data)} | tags
    numbers = {"KIND": 254, "WIDTH": 256, "HEIGHT": 257, "BITS": 258, "COMPRESSION": 259}
    numbers |= {"PHOTOMETRIC": 262, "OFFSET": 273, "SAMPLES": 277, "ROWS": 278, "BYTES": 279}
    numbers |= {"PLANAR": 284, "PARTS": 330, "SIGNS": 339}
    entries = sorted((numbers[name], value) for name, value in own.items())
    table = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in entries)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(entries)) + table + struct.pack("<I", 0)


def twelve(values: Pixels) -> Pixels:
    """Values of 12 bits `[h, w]`, an even number in a row, packed: uint8 `[h, w * 3 / 2]`."""
    first, second = values[:, ::2].astype(int), values[:, 1::2].astype(int)
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1)
    return packed.reshape(len(values), -1).astype(np.uint8)


def test_sixteen_bits_of_which_zero_is_white(tmp_path: Path) -> None:
    """As X-rays and scans have it; of a turned one, too, which no longer knows its tags."""
    values = np.array([[0, 257 * 10], [257 * 200, 65535]], np.uint16)
    (tmp_path / "scan.tif").write_bytes(tiff(values, PHOTOMETRIC=0))
    assert pixels(tmp_path / "scan.tif")[..., 0].tolist() == [[255, 245], [55, 0]]
    (tmp_path / "plain.tif").write_bytes(tiff(values))
    assert pixels(tmp_path / "plain.tif")[..., 0].tolist() == [[0, 10], [200, 255]]


def test_twelve_bits_are_scaled_by_their_own_white(tmp_path: Path) -> None:
    values = np.array([[0, 2048], [4000, 4095]])
    (tmp_path / "twelve.tif").write_bytes(tiff(twelve(values), WIDTH=2, BITS=12))
    assert pixels(tmp_path / "twelve.tif")[..., 0].tolist() == [[0, 128], [249, 255]]


@pytest.mark.parametrize(
    ("dtype", "tags", "why"),
    [
        (np.uint32, {}, "whole numbers of 32 bits"),
        (np.int16, {"SIGNS": 2}, "signed values"),
        (np.int8, {"SIGNS": 2}, "signed values"),
        (np.uint8, {"KIND": 1, "PARTS": 8}, "begins with a preview"),
    ],
)
def test_tiffs_that_pillow_reads_as_something_else_are_refused(
    tmp_path: Path, dtype: Any, tags: dict[str, int], why: str
) -> None:
    path = tmp_path / "odd.tif"
    path.write_bytes(tiff(np.arange(64, dtype=dtype).reshape(8, 8), **tags))
    assert why in refusal(path) and "odd.tif" in refusal(path)


def test_channels_of_sixteen_bits_one_after_the_other_are_refused(tmp_path: Path) -> None:
    planes = np.arange(48, dtype=np.uint16).reshape(12, 4) * 1000
    path = tmp_path / "planes.tif"
    data = tiff(planes, HEIGHT=4, ROWS=4, PHOTOMETRIC=2, SAMPLES=3, PLANAR=2)
    size = planes.nbytes // 3
    # Of three strips the offsets and lengths lie behind the table.
    table = len(data) - 4
    behind = struct.pack("<6I", *(8 + size * n for n in range(3)), *([size] * 3))
    for number, place in ((273, len(data)), (279, len(data) + 12)):
        entry = struct.pack("<HHI", number, 4, 1)
        at = data.index(entry, 8 + planes.nbytes)
        data = data[:at] + struct.pack("<HHII", number, 4, 3, place) + data[at + 12 :]
    assert table
    path.write_bytes(data + behind)
    assert "16 bits in channels that lie one after the other" in refusal(path)


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((2, 2), 0.5, np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ImageError, match=r"float\.tif .*floating-point"):
        load(tmp_path / "float.tif")


def test_one_bit_images_are_black_and_white(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    for name in ("a.png", "a.tif", "a.bmp", "a.pbm"):
        image.save(tmp_path / name)
        assert pixels(tmp_path / name)[0].tolist() == [[0, 0, 0], [255, 255, 255]], name


def test_printing_colours_become_rgb(tmp_path: Path) -> None:
    image = Image.new("CMYK", (32, 16))
    image.paste((255, 0, 0, 0), (0, 0, 16, 16))  # cyan; the rest has no ink
    image.save(tmp_path / "ink.jpg", quality=100)
    image.save(tmp_path / "ink.tif")
    for name in ("ink.jpg", "ink.tif"):
        found = pixels(tmp_path / name)
        assert np.abs(found[8, 8] - [0, 255, 255]).max() < 4, name
        assert np.abs(found[8, 24] - [255, 255, 255]).max() < 4, name


def test_palette_images_show_their_colours(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([*BLUE, *RED])
    image.putdata([1, 0])
    for name in ("a.png", "a.gif", "a.bmp", "a.tif"):
        image.save(tmp_path / name)
        assert pixels(tmp_path / name)[0].tolist() == [[255, 0, 0], [0, 0, 255]], name


def test_a_progressive_jpeg_equals_the_plain_one(tmp_path: Path) -> None:
    image = Image.fromarray(noise(40, 30))
    image.save(tmp_path / "plain.jpg")
    image.save(tmp_path / "progressive.jpg", progressive=True)
    assert (tmp_path / "plain.jpg").read_bytes() != (tmp_path / "progressive.jpg").read_bytes()
    np.testing.assert_array_equal(pixels(tmp_path / "progressive.jpg"), pixels(tmp_path / "plain.jpg"))


def test_the_suffix_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(encoded(Image.fromarray(noise()), "PNG"))
    np.testing.assert_array_equal(pixels(tmp_path / "photo.jpg"), noise())


# --- several frames -------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_taken_with_a_warning(tmp_path: Path, format: str) -> None:
    first, second = Image.new("RGB", (8, 8), RED), Image.new("RGB", (8, 8), BLUE)
    options = {"lossless": True} if format == "WEBP" else {}
    file = tmp_path / "moving"
    file.write_bytes(encoded(first, format, save_all=True, append_images=[second], **options))
    photo = load(file)
    assert np.asarray(photo.image).reshape(-1, 3).tolist() == [[255, 0, 0]] * 64
    assert len(photo.warnings) == 1
    assert "moving has several frames" in photo.warnings[0]


def test_a_picture_of_one_frame_gives_no_warning(tmp_path: Path) -> None:
    for name in ("a.gif", "a.webp", "a.png", "a.tif", "a.jpg", "a.bmp", "a.ppm"):
        Image.new("RGB", (8, 8), RED).save(tmp_path / name)
        assert load(tmp_path / name).warnings == (), name


def test_the_second_picture_in_a_phones_jpeg_is_no_animation(tmp_path: Path) -> None:
    second = Image.new("RGB", (8, 8), BLUE)
    file = tmp_path / "phone.jpg"
    file.write_bytes(encoded(Image.new("RGB", (16, 8), RED), "MPO", save_all=True, append_images=[second]))
    with Image.open(file) as opened:
        assert opened.format == "MPO"
    photo = load(file)
    assert photo.image.size == (16, 8)
    assert photo.image.getpixel((3, 3))[0] > 250
    assert photo.warnings == ()


# --- what is refused ------------------------------------------------------------------------------


def refusal(path: Path) -> str:
    """The message with which `path` is refused; one line that names it and hides the cause."""
    with pytest.raises(ImageError) as caught:
        load(path)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert path.name in message
    assert caught.value.__cause__ is None and (
        caught.value.__suppress_context__ or not caught.value.__context__
    )
    return message


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
@pytest.mark.parametrize("share", [0.02, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path: Path, format: str, share: float) -> None:
    data = encoded(Image.fromarray(noise(60, 40)), format)
    file = tmp_path / "cut.jpg"
    file.write_bytes(data[: int(len(data) * share)])
    refusal(file)


def test_a_truncated_progressive_jpeg_is_refused(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(noise(60, 40)), "JPEG", progressive=True)
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    assert "truncated" in refusal(tmp_path / "cut.jpg")


def test_a_truncated_image_that_is_open_is_refused_too(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(noise(60, 40)), "JPEG")
    with (
        Image.open(io.BytesIO(data[: len(data) // 2])) as opened,
        pytest.raises(ImageError, match=r"truncated"),
    ):
        load(opened)


def test_damaged_bytes_are_refused(tmp_path: Path) -> None:
    data = bytearray(encoded(Image.fromarray(noise(60, 40)), "PNG"))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "photo.png").write_bytes(data)
    assert "cannot be decoded" in refusal(tmp_path / "photo.png")


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").write_bytes(b"")
    assert "is empty" in refusal(tmp_path / "empty.jpg")
    (tmp_path / "text.jpg").write_text("This is a letter, not a photograph.\n" * 20)
    assert "(JPEG, PNG" in refusal(tmp_path / "text.jpg")


FOREIGN = {
    name: lambda name=name: encoded(Image.new("RGB", (32, 32), RED), name)
    for name in ("ICO", "EPS", "PCX", "TGA", "SGI", "DDS", "PDF")
} | {
    "PSD": lambda: b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(4096),
    "SVG": lambda: b'<svg xmlns="http://www.w3.org/2000/svg" width="4" height="4"/>',
}


@pytest.mark.parametrize("format", FOREIGN)
def test_other_formats_are_refused_even_where_pillow_reads_them(tmp_path: Path, format: str) -> None:
    Image.init()  # registers every parser, as another library in the process may have done
    (tmp_path / "photo.png").write_bytes(FOREIGN[format]())
    assert "not an image" in refusal(tmp_path / "photo.png")


def test_every_format_is_read_in_a_fresh_process_without_pillows_other_parsers(tmp_path: Path) -> None:
    for format in decoding.FORMATS:
        (tmp_path / f"{format}.jpg").write_bytes(encoded(Image.new("RGB", (8, 8), RED), format))
    code = (
        "import sys; from pathlib import Path; from PIL import Image\n"
        "from camkit.images.decoding import load\n"
        "for path in Path(sys.argv[1]).iterdir(): print(load(path).image.size)\n"
        "print('EPS' in Image.OPEN)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["(8, 8)"] * 7 + ["False"], done.stderr


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Image.Image]:
    """Collects the images that are decoded."""
    seen: list[Image.Image] = []
    original = ImageFile.ImageFile.load

    def record(self: ImageFile.ImageFile) -> object:
        seen.append(self)
        return original(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", record)
    return seen


@pytest.mark.parametrize("size", [(12_000, 8_000), (20_000, 10_000)])  # over the limit, over it twice
@pytest.mark.parametrize("limit", ["Pillow's", "no"])
def test_a_small_file_of_far_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path,
    size: tuple[int, int],
    limit: str,
    decoded: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if limit == "no":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    width, height = size
    file = tmp_path / "bomb.png"
    file.write_bytes(png(size, 1, 0, bytes(height * (1 + width // 8))))
    assert file.stat().st_size < 100_000
    start = time.perf_counter()
    assert "too large" in refusal(file)
    assert time.perf_counter() - start < 1
    assert not decoded


def test_a_header_alone_that_promises_too_many_pixels(tmp_path: Path, decoded: list[Image.Image]) -> None:
    (tmp_path / "header.png").write_bytes(png((10_000, 10_000), 8, 2, b""))
    assert " 89,478,485 pixels" in refusal(tmp_path / "header.png")
    (tmp_path / "header.ppm").write_bytes(b"P6 2000000000 2 255\n")
    assert "too large" in refusal(tmp_path / "header.ppm")
    assert not decoded


def test_the_limit_itself_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    Image.new("RGB", (10, 10)).save(tmp_path / "fits.png")
    Image.new("RGB", (10, 11)).save(tmp_path / "more.png")
    assert load(tmp_path / "fits.png").image.size == (10, 10)
    assert " 100 pixels" in refusal(tmp_path / "more.png")
    with pytest.raises(ImageError, match="too large"):
        load(Image.new("RGB", (10, 11)))


def test_a_huge_file_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(decoding.MAX_BYTES + 2**20)  # a hole, which takes no room on the disk
    start = time.perf_counter()
    assert "larger than 512 MiB" in refusal(tmp_path / "huge.jpg")
    assert time.perf_counter() - start < 0.2


def test_strips_are_refused_and_long_photographs_are_not(tmp_path: Path) -> None:
    Image.new("RGB", (2, 101)).save(tmp_path / "strip.png")
    assert "50:1" in refusal(tmp_path / "strip.png")
    Image.new("RGB", (100, 2)).save(tmp_path / "panorama.png")
    assert load(tmp_path / "panorama.png").image.size == (100, 2)
    with pytest.raises(ImageError, match="51 x 1"):
        load(Image.new("RGB", (51, 1)))


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    assert "not a regular file" in refusal(folder)
    assert "missing.jpg cannot be read: No such file" in refusal(tmp_path / "missing.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert "No such file" in refusal(tmp_path / "dangling.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    assert "symbolic links" in refusal(tmp_path / "loop.jpg")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    errors: list[ImageError] = []

    def attempt() -> None:
        try:
            load(tmp_path / "pipe.jpg")
        except ImageError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert errors and "not a regular file" in str(errors[0])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (tmp_path / "secret.png").chmod(0)
    assert "Permission denied" in refusal(tmp_path / "secret.png")


def test_a_file_that_turns_out_not_to_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")

    def refuse(path: Path, limit: int) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(decoding, "read_regular", refuse)
    assert "secret.png cannot be read: Permission denied" in refusal(tmp_path / "secret.png")


# --- names ----------------------------------------------------------------------------------------


def test_a_file_name_need_not_be_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    try:
        path.write_bytes(encoded(Image.fromarray(noise()), "PNG"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    photo = load(path)
    np.testing.assert_array_equal(np.asarray(photo.image), noise())
    assert photo.source.endswith("caf\\xe9.png")
    photo.source.encode()  # is text that can be written anywhere
    path.write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"caf\\xe9\.png ") as caught:
        load(path)
    str(caught.value).encode()


def test_control_characters_in_a_name_do_not_reach_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "two\nlines\x1b[31m.jpg"
    path.write_bytes(b"")
    with pytest.raises(ImageError) as caught:
        load(path)
    assert "two\\nlines\\x1b[31m.jpg is empty" in str(caught.value)
    assert str(caught.value).isprintable()


def test_a_name_with_a_null_character_is_refused() -> None:
    with pytest.raises(ImageError, match=r"a\\x00b\.jpg "):
        load("a\0b.jpg")


# --- images that are open already, and what a photo says ------------------------------------------


def test_an_open_image_is_taken_as_it_is(tmp_path: Path) -> None:
    image = Image.new("RGBA", (2, 1), (*RED, 0))
    image.putpixel((1, 0), (*RED, 1))
    photo = load(image)
    assert (photo.source, photo.warnings) == ("image", ())
    assert photo.image.getpixel((0, 0)) == WHITE
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (255, 0, 0, 0)  # itself unchanged
    assert load(image).sha256 == photo.sha256 == hashlib.sha256(b"\xff" * 4 + b"\xfe" * 2).hexdigest()


def test_an_open_image_that_cannot_become_rgb_is_refused() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        load(Image.new("F", (2, 2)))
    with pytest.raises(ImageError, match="0 x 3"):
        load(Image.new("RGB", (0, 3)))
    with pytest.raises(ImageError, match="conversion from La"):
        load(Image.new("La", (2, 2)))


def test_the_photo_is_a_copy(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 2), RED)
    load(image).image.putpixel((0, 0), BLACK)
    assert image.getpixel((0, 0)) == RED


def test_what_a_photo_says_of_its_file(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(encoded(Image.fromarray(noise()), "PNG"))
    photo = load(str(file))
    assert photo.source == str(file)
    assert photo.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "image=" not in repr(photo)


def test_loading_gives_no_python_warnings(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([*RED, *BLUE])
    image.save(tmp_path / "palette.png", transparency=bytes([0, 128]))  # Pillow warns of these
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(tmp_path / "palette.png")


# --- the sample -----------------------------------------------------------------------------------


def test_the_sample_is_the_photograph_of_scikit_image() -> None:
    data = pytest.importorskip("skimage.data")
    assert np.array_equal(load(sample()).image, data.chelsea())


# --- folders, globs and names ---------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of photographs, of other things, and a subfolder."""
    for name in ("b.jpg", "a.PNG", "notes.txt", "sub/d.webp", "sub/c.tiff", "sub/README"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def names(folder: Path, *patterns: str | os.PathLike[str]) -> list[str]:
    """What `expand` finds, relative to the folder."""
    return [path.relative_to(folder).as_posix() for path in expand(patterns)]


def test_a_folder_means_its_images_sorted_and_those_below(folder: Path) -> None:
    assert names(folder, folder) == ["a.PNG", "b.jpg", "sub/c.tiff", "sub/d.webp"]
    assert names(folder, f"{folder}/sub/") == ["sub/c.tiff", "sub/d.webp"]


def test_photographs_of_formats_that_are_not_read_are_told_by_their_number(folder: Path) -> None:
    """As of an iPhone: they were left out without a word."""
    for name in ("IMG_1.HEIC", "IMG_2.heic", "sub/IMG_3.dng"):
        (folder / name).write_bytes(b"x")
    with pytest.warns(CamkitWarning, match=r"3 files left out: camkit does not read \.dng, \.heic") as said:
        assert names(folder, folder) == ["a.PNG", "b.jpg", "sub/c.tiff", "sub/d.webp"]
    assert len(said) == 1
    for name in ("b.jpg", "a.PNG", "sub/c.tiff", "sub/d.webp"):
        (folder / name).unlink()
    with pytest.raises(UsageError, match=r"no image found in .*: 3 files left out: .*\.heic"):
        names(folder, folder)
    with pytest.raises(UsageError, match=r"no image found in .*: camkit does not read \.heic"):
        names(folder, f"{folder}/*.heic")


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    expected = [f"{f}/{i:02}.jpg" for f in "abcdefgh" for i in range(12)]
    for name in np.random.default_rng(0).permutation(expected):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(tmp_path, tmp_path) == expected


def test_files_are_taken_in_the_order_given_whatever_their_suffix(folder: Path) -> None:
    given = [folder / "notes.txt", folder / "b.jpg", folder / "a.PNG"]
    assert names(folder, *given) == ["notes.txt", "b.jpg", "a.PNG"]


def test_globs_mean_images_sorted(folder: Path) -> None:
    assert names(folder, f"{folder}/*") == ["a.PNG", "b.jpg"]
    assert names(folder, f"{folder}/sub/?.*") == ["sub/c.tiff", "sub/d.webp"]
    assert names(folder, f"{folder}/**/*") == ["a.PNG", "b.jpg", "sub/c.tiff", "sub/d.webp"]
    (folder / "album.jpg").mkdir()
    assert names(folder, f"{folder}/*.jpg") == ["b.jpg"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**", ["a.PNG", "b.jpg", "sub/c.tiff", "sub/d.webp"]),
        ("**/*.jpg", ["b.jpg"]),
        ("**/sub/*", ["sub/c.tiff", "sub/d.webp"]),
        ("**/s?b/**/*.webp", ["sub/d.webp"]),
        ("**/**/[cd].*", ["sub/c.tiff", "sub/d.webp"]),
        ("s*/**/*.webp", ["sub/d.webp"]),
        ("sub/**/*.tiff", ["sub/c.tiff"]),
        ("sub/../**/*.jpg", ["b.jpg"]),
        ("**/.*", [".e.png"]),
        ("**/.h/*", [".h/f.png"]),
        ("*/**", ["sub/c.tiff", "sub/d.webp"]),
    ],
)
def test_globs_of_any_depth_mean_what_they_do_elsewhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, expected: list[str]
) -> None:
    (folder / ".h").mkdir()
    for name in (".e.png", ".h/f.png"):
        (folder / name).write_bytes(b"x")
    monkeypatch.chdir(folder)
    found = [Path(os.path.normpath(path)).as_posix() for path in expand([pattern])]
    assert found == expected
    python = glob.glob(pattern, recursive=True)  # noqa: PTH207
    assert sorted({p for p in python if Path(p).suffix.lower() in finding.SUFFIXES}) == sorted(
        str(path) for path in expand([pattern])
    )


def test_globs_of_any_depth_end_where_links_lead_back(folder: Path) -> None:
    for number in range(5):
        (folder / f"link{number}").symlink_to(".", target_is_directory=True)
    (folder / "album.jpg").symlink_to("sub", target_is_directory=True)
    begun = time.monotonic()
    assert names(folder, f"{folder}/**/*") == ["a.PNG", "b.jpg", "sub/c.tiff", "sub/d.webp"]
    assert len(names(folder, f"{folder}/*/**/*.webp")) == 1
    assert time.monotonic() - begun < 1


def test_folders_within_folders_are_no_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    deep = Path(*["d"] * 1500)
    here = os.open(".", os.O_RDONLY)
    for _ in deep.parts:  # step by step, because `makedirs` calls itself
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("a.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    assert list(expand(["**/*.jpg"])) == [deep / "a.jpg"] == list(expand(["d"]))
    subprocess.run(["rm", "-r", "d"], check=True)  # pytest would call itself for each


def test_a_glob_of_any_depth_lists_only_what_is_asked_for(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[str] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (listed.append(str(path)), scan(path))[1])
    for name in ("other/x", "sub/y"):
        (folder / name).mkdir(parents=True)
    found = expand([f"{folder}/**/*"])
    assert next(found).name == "a.PNG"
    assert {Path(path).name for path in listed} == {folder.name}, "nothing is listed beforehand"
    assert names(folder, f"{folder}/sub/**/*.webp") == ["sub/d.webp"]
    assert str(folder / "other") not in listed


def test_a_glob_relative_to_where_one_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert [str(path) for path in expand(["*.jpg", "sub"])] == ["b.jpg", "sub/c.tiff", "sub/d.webp"]


def test_a_file_is_taken_once(folder: Path) -> None:
    (folder / "link.jpg").symlink_to(folder / "b.jpg")
    found = names(folder, f"{folder}/b.jpg", folder, f"{folder}/*.jpg", f"{folder}/sub/../a.PNG")
    assert found == ["b.jpg", "a.PNG", "sub/c.tiff", "sub/d.webp"]


def test_a_link_to_a_folder_above_is_no_endless_loop(folder: Path) -> None:
    (folder / "sub" / "up").symlink_to(folder, target_is_directory=True)
    assert names(folder, folder) == ["a.PNG", "b.jpg", "sub/c.tiff", "sub/d.webp"]


def test_a_folder_means_nothing_outside_it(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "z.jpg").write_bytes(b"x")
    (folder / "sub" / "link").symlink_to(elsewhere, target_is_directory=True)
    assert names(folder, folder) == ["a.PNG", "b.jpg", "sub/c.tiff", "sub/d.webp"]


def test_a_file_whose_name_looks_like_a_glob(folder: Path) -> None:
    (folder / "cat[1].jpg").write_bytes(b"x")
    (folder / "cat1.jpg").write_bytes(b"x")
    assert names(folder, f"{folder}/cat[1].jpg") == ["cat[1].jpg"]


@pytest.mark.parametrize("name", ["missing.jpg", "b.jpg/missing.jpg", "dangling.jpg", "x" * 5000, "a\0b"])
def test_a_name_that_does_not_exist_is_wrong_usage_before_anything_else(folder: Path, name: str) -> None:
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(UsageError, match="no image"):
        next(expand([folder / "b.jpg", f"{folder}/{name}"]))


def test_a_file_that_may_not_be_looked_at_is_passed_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "stat", refused)
    assert list(expand([folder / "c.jpg"])) == [folder / "c.jpg"]


def test_a_folder_or_glob_without_images_is_wrong_usage(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "empty" / "notes.txt").write_bytes(b"x")
    for pattern in (f"{folder}/empty", f"{folder}/*.gif", f"{folder}/*.txt"):
        with pytest.raises(UsageError) as caught:
            list(expand([folder / "b.jpg", pattern]))
        assert repr(pattern) in str(caught.value)
        assert caught.value.exit_code == 2


def test_results_are_called_as_their_files_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below one folder as they lie in it; of several patterns with its name; one by one with a number."""
    monkeypatch.chdir(folder)
    (folder / "sub" / "b.jpg").write_bytes(b"x")
    (folder / "other" / "sub").mkdir(parents=True)
    (folder / "other" / "sub" / "e.png").write_bytes(b"x")
    for patterns, expected in (
        (["."], ["a.PNG", "b.jpg", "other/sub/e.png", "sub/b.jpg", "sub/c.tiff", "sub/d.webp"]),
        (["sub"], ["b.jpg", "c.tiff", "d.webp"]),
        (["sub/*"], ["b.jpg", "c.tiff", "d.webp"]),
        (["*/*.webp"], ["sub/d.webp"]),
        (["sub/d.webp", "b.jpg", "sub/b.jpg"], ["d.webp", "b.jpg", "b.jpg~2"]),
        (["sub", "b.jpg"], ["sub/b.jpg", "sub/c.tiff", "sub/d.webp", "b.jpg"]),
        (["sub", "other/sub"], ["sub/b.jpg", "sub/c.tiff", "sub/d.webp", "sub~2/e.png"]),
    ):
        assert [source.name for source in find(patterns)] == expected, patterns


def test_a_folder_may_be_left_out_of_those_above_it(folder: Path) -> None:
    def left(*patterns: str) -> list[str]:
        found = find([f"{folder}/{pattern}" for pattern in patterns], without=folder / "sub")
        return [source.path.relative_to(folder).as_posix() for source in found]

    assert left("") == left("", "**/*") == ["a.PNG", "b.jpg"]
    assert left("sub") == left("sub/*.*") == ["sub/c.tiff", "sub/d.webp"]  # it is asked for
    assert left("b.jpg", "sub/d.webp") == ["b.jpg", "sub/d.webp"]


def test_a_folder_that_is_named_twice_is_not_empty_the_second_time(folder: Path) -> None:
    assert len(names(folder, folder, folder)) == 4


def test_a_folder_that_cannot_be_listed_is_passed_on_to_tell_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where root runs the tests, whom no permission stops."""
    listed = os.scandir

    def refused(path: str) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert names(folder, folder) == ["a.PNG", "b.jpg", "sub"]
    assert names(folder, folder / "sub") == ["sub"]
    assert refusal(folder / "sub").startswith(f"{folder}/sub ")


def test_odd_things_in_a_folder_are_passed_on_to_tell_for_themselves(folder: Path) -> None:
    (folder / "sub" / "dangling.jpg").symlink_to(folder / "nowhere.jpg")
    found = list(expand([folder / "sub"]))
    assert [path.name for path in found] == ["c.tiff", "d.webp", "dangling.jpg"]
    assert "No such file" in refusal(found[2])
