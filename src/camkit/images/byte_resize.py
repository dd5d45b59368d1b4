"""How torch resizes bytes, without torch: for image processors of transformers, bit by bit.

Pillow does the same with finer weights, so that a value in a hundred differs, by one or two of 255.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float64]

BLOCK = 16  # columns that are made at a time, from as few as can be


def resized(image: Image.Image, width: int, height: int, interpolation: str) -> Image.Image:
    """`image` (RGB) as torch's `interpolate(..., antialias=True)` of uint8 makes it, first the width."""
    planes = np.ascontiguousarray(np.moveaxis(np.asarray(image), 2, 0))
    across = _columns(planes, width, interpolation)
    made = _columns(np.ascontiguousarray(across.swapaxes(1, 2)), height, interpolation)
    return Image.fromarray(np.ascontiguousarray(made.transpose(2, 1, 0)))


def _columns(planes: NDArray[np.uint8], length: int, interpolation: str) -> NDArray[np.uint8]:
    """Pixels `[channels, rows, columns]` with `length` columns."""
    channels, rows, count = planes.shape
    if count == length:
        return planes
    first, weights, precision = _weights(count, length, interpolation)
    steps = np.arange(weights.shape[1])
    made = np.empty((channels, rows, length), np.uint8)
    for start in range(0, length, BLOCK):
        here = slice(start, start + BLOCK)
        begin = int(first[start])
        banded = np.zeros((len(first[here]), int(first[here][-1]) - begin + len(steps)))
        np.put_along_axis(banded, first[here, None] - begin + steps, weights[here], 1)
        seen = planes[:, :, begin : begin + banded.shape[1]].astype(np.float64)
        # Products and sums of whole numbers, exact in float64, and quick.
        total = seen @ banded[:, : seen.shape[2]].T
        made[:, :, here] = np.clip(np.floor(total / 2**precision + 0.5), 0, 255)
    return made


def _weights(count: int, length: int, interpolation: str) -> tuple[NDArray[np.intp], Floats, int]:
    """Of each new column the first old one and the weights from there, as multiples of `2**-precision`.

    The precision is what keeps the largest weight below 2**15.
    """
    kernel, radius = KERNELS[interpolation]
    scale = count / length
    wide = max(scale, 1.0)
    centre = scale * (np.arange(length) + 0.5)
    first = np.maximum((centre - radius * wide + 0.5).astype(np.intp), 0)
    last = np.minimum((centre + radius * wide + 0.5).astype(np.intp), count)
    steps = np.arange(int((last - first).max()))
    raw = kernel((steps + first[:, None] - centre[:, None] + 0.5) / wide)
    raw = np.where(steps < (last - first)[:, None], raw, 0.0)
    raw /= raw.sum(1, keepdims=True)
    precision = next(p for p in range(23) if p == 22 or int(0.5 + raw.max() * 2 ** (p + 1)) >= 2**15)
    return first, np.trunc(raw * 2**precision + np.copysign(0.5, raw)), precision


def _linear(x: Floats) -> Floats:
    made: Floats = np.maximum(1 - np.abs(x), 0)
    return made


def _cubic(x: Floats) -> Floats:
    """Keys' with a = -0.5, as Pillow has it."""
    x = np.abs(x)
    near: Floats = (1.5 * x - 2.5) * x * x + 1
    far: Floats = -0.5 * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


# With the radius of what they look at.
KERNELS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bilinear": (_linear, 1.0),
    "bicubic": (_cubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
