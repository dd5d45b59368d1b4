"""Pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from camkit.drawing.figure import drawn, new_figure


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet: a title of one or two lines over an image."""

    title: str
    image: Image.Image


def sheet(rows: Sequence[Sequence[Panel]], heading: str) -> Image.Image:
    """Panels in rows under one heading, for looking at maps side by side."""
    columns = max(len(row) for row in rows)
    tallest = max(panel.image.height / panel.image.width for row in rows for panel in row)
    figure = new_figure(2.9 * columns, (2.9 * tallest + 0.5) * len(rows) + 0.4)
    # Names may hold dollar signs, which are no formulas.
    figure.suptitle(heading, fontsize=10, parse_math=False)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        for index, ax in enumerate(line):
            ax.axis("off")
            if index < len(row):
                ax.imshow(np.asarray(row[index].image))
                ax.set_title(row[index].title, fontsize=8, parse_math=False)
    return drawn(figure)
