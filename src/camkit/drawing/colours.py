"""Tables of colours, uint8 `[256, 3]`: the same in every picture, page and browser.

`SIGNED` goes from evidence against the class (dark blue) over nothing (grey, of which pictures show none)
to evidence for it (yellow). `FOR` and `AGAINST` are of rectified maps, from nothing to the most. In each of
them lightness only grows, so that they can be read by the colour-blind and in print without colours.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

Table = np.ndarray[Any, np.dtype[np.uint8]]


def between(*anchors: str) -> Table:
    """A table through colours `#rrggbb` at equal distances."""
    colours = np.array([list(bytes.fromhex(anchor[1:])) for anchor in anchors], dtype=float)
    places = np.linspace(0, len(anchors) - 1, 256)
    channels = [np.interp(places, np.arange(len(anchors)), channel) for channel in colours.T]
    return np.stack(channels, axis=1).round().astype(np.uint8)


SIGNED = between("#0a1a5c", "#163fae", "#2f5ab4", "#707070", "#ee8a22", "#ffb42a", "#ffe55c")
FOR = between("#707070", "#ee8a22", "#ffb42a", "#ffe55c")
AGAINST = between("#707070", "#1f9fa7", "#35ccd4", "#9ff5f7")
TABLES = {"signed": SIGNED, "for": FOR, "against": AGAINST}


@lru_cache(maxsize=8)
def table(name: str) -> Table:
    """A colour map of matplotlib."""
    colours = floats(name)
    places = np.linspace(0, len(colours) - 1, 256).round().astype(int)
    return np.asarray(colours[places].round(), dtype=np.uint8)


@lru_cache(maxsize=8)
def floats(name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The colours of a colour map of matplotlib as it has them, float32 `[N, 3]` from 0 to 255."""
    from matplotlib import colormaps

    colours = colormaps[name]
    return np.asarray(colours(np.arange(colours.N))[:, :3] * 255, dtype=np.float32)
