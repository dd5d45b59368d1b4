"""Small pictures for pages."""

from __future__ import annotations

import io

from PIL import Image

from camkit.drawing.evidence import Box

SIDE = 200  # pixels of the longer one, where nothing else is said


def thumbnail(image: Image.Image, box: Box | None = None, side: int = SIDE) -> bytes:
    """A picture, or what is inside of `box`, as a small JPEG file; what is small already stays so."""
    left, top, right, bottom = box or (0, 0, *image.size)
    times = min(1, side / max(right - left, bottom - top))
    size = max(1, round(times * (right - left))), max(1, round(times * (bottom - top)))
    small = image.convert("RGB").resize(
        size, Image.Resampling.BILINEAR, box=(left, top, right, bottom), reducing_gap=2.0
    )
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=82)
    return buffer.getvalue()
