"""Maps on their way to the browser: half precision, each with a scale of its own.

    uint32      length of the header in bytes, little-endian like all that follows
    header      JSON, filled up with blanks to a multiple of 8 together with its length
    float64     the scale of each map
    float16     the maps, row by row; times its scale a value is what it was, to 2^-11 of the peak

So no value overflows, whatever the size of a model's scores, and small maps do not vanish.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor


def pack(header: Mapping[str, Any], maps: Tensor) -> bytes:
    """A header and maps, finite `[T, h, w]`; `count`, `height` and `width` are added to the header."""
    values = maps.double().numpy()
    count, height, width = values.shape
    peaks = np.abs(values).max(axis=(1, 2), initial=0)
    scales = np.where(peaks > 0, peaks, 1.0)
    said = {**header, "count": count, "height": height, "width": width}
    text = json.dumps(said, ensure_ascii=False, allow_nan=False).encode()
    text += b" " * (-(len(text) + 4) % 8)
    halves = (values / scales[:, None, None]).astype("<f2")
    return struct.pack("<I", len(text)) + text + scales.astype("<f8").tobytes() + halves.tobytes()
