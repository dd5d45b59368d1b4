"""Sheets: the maps of a photograph side by side."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from camkit.drawing.overlay import View, extent, signed
from camkit.drawing.sheet import Panel, sheet
from camkit.drawing.style import Style
from camkit.explaining.explanation import Explanation

MAX_CLASSES, MAX_COLUMNS = 8, 6
PANEL = 1024, 1024  # pixels of a picture on a sheet, at most
_DRAWING = threading.Lock()  # matplotlib's sheets are not made for threads

# The index of a class, if it is one, and its name.
Target = tuple[int | None, str]


def sheet_of(results: Sequence[Explanation], view: View, style: Style) -> Image.Image | None:
    """The maps of one photograph side by side, a row for each class; nothing if there is only one.

    Backends share the colour scale of a method, so that a difference can be seen. Of many classes the
    first eight are shown.
    """
    columns = list(dict.fromkeys((r.backend, r.method, r.layer) for r in results))
    if len(columns) < 2:
        return None
    rows: dict[Target, list[Panel]] = {}
    scales = _scales(results, style)
    for result in results:
        where = f"{result.backend} · {result.method} · {result.layer}"
        what = f"{result.class_name} {result.figure}"
        title = "\n".join([where, what, *result.remarks(style)])
        target = result.class_index, result.class_name
        if target in rows or len(rows) < MAX_CLASSES:
            scale = scales[result.method, result.layer, target]
            picture = result.overlay(view=view, style=style, scale=scale)
            picture.thumbnail(PANEL)
            rows.setdefault(target, []).append(Panel(title, picture))
    heading = Path(results[0].photo.source).name
    with _DRAWING:
        return sheet([part for row in rows.values() for part in _folded(row)], heading)


def _scales(
    results: Sequence[Explanation], style: Style
) -> dict[tuple[str, str, Target], tuple[float, float]]:
    maps: dict[tuple[str, str, Target], list[Tensor]] = {}
    for r in results:
        maps.setdefault((r.method, r.layer, (r.class_index, r.class_name)), []).append(signed(r.map, style))
    return {key: extent(group) for key, group in maps.items()}


def _folded(panels: list[Panel]) -> list[list[Panel]]:
    """A row that is too wide, as several of about the same length."""
    rows = math.ceil(len(panels) / MAX_COLUMNS)
    width = math.ceil(len(panels) / rows)
    return [panels[start : start + width] for start in range(0, len(panels), width)]
