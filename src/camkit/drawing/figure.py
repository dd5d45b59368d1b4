"""Figures of matplotlib, of which no window knows."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure in inches that no window knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def drawn(figure: Any) -> Image.Image:
    """A figure as a picture, RGB."""
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight", pad_inches=0.1)
    return Image.open(buffer).convert("RGB")
