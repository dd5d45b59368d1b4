"""Lines around what is explained: white with dark edges, so that they show on any colour."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter

from camkit.drawing.evidence import Box, Values, sampled

BORDER = (255, 255, 255)
EDGE = (17, 17, 17)  # beside a white line, so that it shows on any colour
LINES = EDGE, BORDER, EDGE  # from the outside
THIN = 640  # pixels: the longest side of a picture whose lines are one pixel wide


def wide(picture: Image.Image) -> int:
    """How many pixels a line of a picture has."""
    return 1 if max(picture.size) <= THIN else 2


def around_box(picture: Image.Image, corners: Box) -> None:
    """Draw along a box, in pixels of the picture; the box may reach out of it."""
    step = wide(picture)
    left, top, right, bottom = (round(value) for value in corners)
    left, top = max(left, 0), max(top, 0)
    right, bottom = min(right, picture.width), min(bottom, picture.height)
    draw = ImageDraw.Draw(picture)
    for inset, colour in enumerate(LINES):
        away = inset * step
        box = left + away, top + away, right - 1 - away, bottom - 1 - away
        if box[0] <= box[2] and box[1] <= box[3]:
            draw.rectangle(box, outline=colour, width=step)


def around_mask(picture: Image.Image, mask: Values, box: Box) -> None:
    """Draw along a mask, bool `[h, w]`, that covers a box of the picture, which may reach out of it.

    Where it is narrower than the lines, the inner ones are missing.
    """
    step = wide(picture)
    values = sampled(torch.from_numpy(mask.astype(np.float32)), box, (0, 0, *picture.size), "bilinear")
    values[~_within(box, picture.size)] = 0
    # What is beside the picture is outside: the line goes along the edge of the picture, too.
    inside = Image.fromarray(np.pad((values > 0.5).astype(np.uint8) * 255, step))
    for colour in LINES:
        smaller = inside.filter(ImageFilter.MinFilter(2 * step + 1))
        line = np.asarray(inside) & ~np.asarray(smaller)
        picture.paste(colour, mask=Image.fromarray(line[step:-step, step:-step]))
        inside = smaller


def _within(box: Box, size: tuple[int, int]) -> Values:
    """Which pixels of a picture of a size (width, height) have their middle in a box, bool `[h, w]`."""
    left, top, right, bottom = box
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    return ((y >= top) & (y < bottom))[:, None] & ((x >= left) & (x < right))
