"""Charts of trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from camkit.drawing.figure import drawn, new_figure
from camkit.errors import printable

MAX_SIDE = 60  # inches of a confusion matrix: a picture of 150 MB in memory


def curves(
    history: Sequence[Mapping[str, float]], steps: Sequence[Mapping[str, float]] = ()
) -> Image.Image:
    """Loss and figures over the epochs, and loss and learning rate over the steps where they are known."""
    figure = new_figure(9, 3 if not steps else 6)
    axes = figure.subplots(2 if steps else 1, 2, squeeze=False)
    losses, figures = ("train_loss", "valid_loss"), ("error_rate", "mean_average_precision", "f1")
    for ax, keys in zip(axes[0], (losses, figures), strict=True):
        for key in keys:
            values = [(n + 1, epoch[key]) for n, epoch in enumerate(history) if key in epoch]
            if values:
                ax.plot(*zip(*values, strict=True), marker=".", label=key.replace("_", " "))
                ax.legend()
        ax.set_xlabel("epoch")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set_ylim(bottom=0)
    for ax, key in zip(axes[1] if steps else (), ("loss", "lr"), strict=False):
        ax.plot([step.get(key, np.nan) for step in steps])
        ax.set(xlabel="step", ylabel="training loss" if key == "loss" else "learning rate")
        ax.set_ylim(bottom=0)
    return drawn(figure)


def confusion(counts: np.ndarray[Any, Any], names: Sequence[str], title: str = "") -> Image.Image:
    """A confusion matrix, actual class in rows, with the counts written in."""
    cell = min(0.28, MAX_SIDE / len(names))  # inches
    side, size = max(4.0, cell * len(names) + 2), 25 * cell
    figure = new_figure(side, side)
    ax = figure.subplots()
    ax.imshow(counts, cmap="Blues")
    shown = [printable(name) for name in names]
    ax.set_xticks(range(len(names)), shown, rotation=90, fontsize=size, parse_math=False)
    ax.set_yticks(range(len(names)), shown, fontsize=size, parse_math=False)
    ax.set(title=title, xlabel="predicted", ylabel="actual")
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if counts[row, column] > counts.max() / 2 else "black"
        ax.text(
            column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour
        )
    return drawn(figure)
