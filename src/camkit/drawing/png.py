"""PNG files, written quickly.

Pillow tries five filters on each row and compresses with zlib, which takes longer than drawing the picture.
One filter and ISA-L's Deflate give files of the same size in a sixth of the time (`benchmarks/drawing.py`).
The format: PNG, third edition (W3C 2025).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

Pixels = np.ndarray[Any, np.dtype[np.uint8]]

SIGNATURE = b"\x89PNG\r\n\x1a\n"
COLOUR_TYPES = {"L": 0, "RGB": 2}  # by Pillow's mode
AVERAGE = 3  # the filter: of photographs it leaves nearly as little as the best one of each row does


def to_png(image: Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a PNG file with the pixels of `image`; any mode but `L` becomes RGB.

    texts: ASCII, by keyword; they stand in front of the pixels, as `tEXt`.
    """
    image = image if image.mode in COLOUR_TYPES else image.convert("RGB")
    header = struct.pack(">IIBBBBB", image.width, image.height, 8, COLOUR_TYPES[image.mode], 0, 0, 0)
    chunks = [_chunk(b"IHDR", header)]
    for keyword, text in (texts or {}).items():
        chunks.append(_chunk(b"tEXt", keyword.encode("ascii") + b"\0" + text.encode("ascii")))
    pixels = np.asarray(image).reshape(image.height, image.width, -1)
    chunks += [_chunk(b"IDAT", _compressed(_filtered(pixels).data)), _chunk(b"IEND", b"")]
    return SIGNATURE + b"".join(chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _filtered(pixels: Pixels) -> Pixels:
    """Rows `[height, 1 + width * channels]`: each byte without the mean of those to its left and above."""
    height, width, channels = pixels.shape
    rows = pixels.reshape(height, width * channels)
    left, above = np.zeros_like(rows), np.zeros_like(rows)
    left[:, channels:] = rows[:, :-channels]
    above[1:] = rows[:-1]
    mean = (left & above) + ((left ^ above) >> 1)  # rounded down, without the ninth bit of a sum
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = AVERAGE
    np.subtract(rows, mean, out=filtered[:, 1:])
    return filtered


def _with_zlib(data: memoryview) -> bytes:
    """As quickly as zlib can: it looks for runs alone."""
    stream = zlib.compressobj(1, strategy=zlib.Z_RLE)
    return stream.compress(data) + stream.flush()


try:
    from isal import isal_zlib

    _compressed: Callable[[memoryview], bytes] = isal_zlib.compress  # its default level is quick, too
except ImportError:  # it has no wheel for every machine
    _compressed = _with_zlib
