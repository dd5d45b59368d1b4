"""The looks: each lays a map over the part of a photograph that the model saw."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from camkit.drawing import colours
from camkit.drawing.colours import Table
from camkit.drawing.evidence import Scale, Values
from camkit.drawing.style import OWN, Look, Style

BAND = 2**20  # pixels that are coloured at once, so that memory does not grow with a picture
LEVELS = (0.25, 0.5, 0.75)  # of the scale, where contours run
LINE = 1 / 250  # of the longest side: how wide they are


def table(scale: Scale, style: Style) -> Table:
    """The colours of a scale."""
    return colours.TABLES[scale.kind] if style.cmap == OWN else colours.table(style.cmap)


def opacity(scale: Scale, style: Style) -> Values:
    """How opaque each colour of a scale is, uint8 `[256]`: the more the further from zero."""
    places = np.linspace(scale.low, scale.high, 256)
    strength = np.abs(places) / max(abs(scale.low), abs(scale.high), 1e-300)
    return np.asarray((255 * style.alpha * strength**0.8).round(), dtype=np.uint8)


def veil(photo: Image.Image, values: Values, scale: Scale, style: Style) -> Image.Image:
    """Colours whose opacity grows with the evidence."""
    index = _index(values, scale)
    heat = Image.fromarray(index).convert("P")
    heat.putpalette(table(scale, style).tobytes())
    mask = Image.fromarray(index).point(opacity(scale, style).tolist())
    return Image.composite(heat.convert("RGB"), photo, mask)


def lesson(photo: Image.Image, values: Values, scale: Scale, style: Style) -> Image.Image:
    """The lesson's: matplotlib's colours, everywhere equally opaque."""
    pixels = np.asarray(photo)
    result = np.empty_like(pixels)
    mixtures = _mixtures(style.cmap, style.alpha)
    count = mixtures.shape[1] // 256
    height = max(1, BAND // photo.width)
    for y in range(0, photo.height, height):
        rows = slice(y, y + height)
        index = (scale.places(values[rows]) * count).astype(np.int32)
        first = 256 * np.minimum(index, count - 1)
        for channel, mixed in enumerate(mixtures):
            result[rows, :, channel] = mixed[first + pixels[rows, :, channel]]
    return Image.fromarray(result)


@lru_cache(maxsize=8)
def _mixtures(cmap: str, alpha: float) -> Table:
    """What each of N colours makes of each byte of a pixel: uint8 `[3, N * 256]`, by channel."""
    colour = colours.floats(cmap).T[:, :, None]
    mixed = (1 - alpha) * np.arange(256, dtype=np.float32) + alpha * colour
    return mixed.round().clip(0, 255).astype(np.uint8).reshape(3, -1)


def contour(photo: Image.Image, values: Values, scale: Scale, style: Style) -> Image.Image:
    """Lines at a quarter, a half and three quarters of the scale, on dark ones that set them off."""
    width = max(1.5, LINE * max(photo.size))
    slope = np.hypot(*np.gradient(np.pad(values, 1, mode="edge")))[1:-1, 1:-1] + 1e-300
    result = photo
    for level, colour in contours(scale, style):
        away = np.abs(values - level) / slope  # pixels from the line, to first order
        for wide, paint in ((width + 2, (0, 0, 0)), (width, colour)):
            cover = style.alpha * np.clip(wide / 2 + 0.5 - away, 0, 1)
            mask = Image.fromarray((255 * cover).astype(np.uint8))
            result = Image.composite(Image.new("RGB", photo.size, paint), result, mask)
    return result


def contours(scale: Scale, style: Style) -> list[tuple[float, tuple[int, int, int]]]:
    """The values at which contours run, each with its colour."""
    full, colour = max(abs(scale.low), abs(scale.high)), table(scale, style)
    signs = (-1, 1) if scale.low < 0 else (1,)
    levels = sorted(sign * part * full for part in LEVELS for sign in signs)
    if not full:
        return []
    places = scale.places(np.array(levels))
    return [
        (level, tuple(colour[round(255 * float(place))].tolist()))
        for level, place in zip(levels, places, strict=True)
    ]


def spotlight(photo: Image.Image, values: Values, scale: Scale, style: Style) -> Image.Image:
    """The photograph in the dark but where the evidence is."""
    mask = Image.fromarray(_index(values, scale)).point(light(scale, style).tolist())
    return Image.composite(photo, Image.new("RGB", photo.size), mask)


def light(scale: Scale, style: Style) -> Values:
    """How much of the photograph each value of a scale leaves visible, uint8 `[256]`."""
    strength = np.linspace(0, 1, 256) if scale.high else np.zeros(256)
    return np.asarray((255 * (1 - style.alpha * (1 - strength**0.8))).round(), dtype=np.uint8)


LOOKS: dict[Look, Callable[[Image.Image, Values, Scale, Style], Image.Image]] = {
    "default": veil,
    "lesson": lesson,
    "contour": contour,
    "spotlight": spotlight,
}


def _index(values: Values, scale: Scale) -> Any:
    """The colour of each value by its number, uint8."""
    places = scale.places(values)
    places *= 255
    places += 0.5
    return places.astype(np.uint8)
