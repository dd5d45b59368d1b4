"""Charts of trainings and benchmarks."""

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


def distributions(samples: Mapping[str, Sequence[float]], label: str) -> Image.Image:
    """Every sample as a point and the median as a bar, a line for each name; logarithmic."""
    figure = new_figure(8, 0.42 * len(samples) + 1)
    ax = figure.subplots()
    for row, values in enumerate(samples.values()):
        ax.plot(values, [row] * len(values), "|", color="#4477aa", alpha=0.5, markersize=12)
        ax.plot([np.median(values)], [row], "|", color="#aa3377", markersize=20, markeredgewidth=2.5)
    ax.set_yticks(range(len(samples)), list(samples), fontsize=8, parse_math=False)
    ax.set_ylim(len(samples) - 0.5, -0.5)
    _logarithmic(ax, min(map(min, samples.values())), max(map(max, samples.values())))
    ax.set_xlabel(label)
    return drawn(figure)


def tradeoff(
    points: Mapping[str, tuple[float, float]], front: Sequence[str], labels: tuple[str, str]
) -> Image.Image:
    """Cost against worth, logarithmic in cost; the names in `front` are joined, cheapest first."""
    figure = new_figure(7, 4.5)
    ax = figure.subplots()
    ax.plot(*zip(*(points[name] for name in front), strict=True), color="#aa3377", drawstyle="steps-post")
    costs = [x for x, _ in points.values()]
    cheapest, dearest = min(costs), max(costs)
    for number, (name, (x, y)) in enumerate(points.items()):
        ax.plot([x], [y], "o", color="#aa3377" if name in front else "#4477aa")
        # At different heights: points of equal worth stand in a line. On the inner side of the point.
        left = x * x > dearest * cheapest
        at, side = (-5 if left else 5, 5 + 11 * (number % 4)), "right" if left else "left"
        ax.annotate(name, (x, y), at, textcoords="offset points", fontsize=7, ha=side, parse_math=False)
    _logarithmic(ax, cheapest, dearest)
    ax.margins(0.1, 0.2)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    return drawn(figure)


def matrix(names: Sequence[str], values: Sequence[Sequence[float | None]], title: str) -> Image.Image:
    """A symmetric table of values from -1 to 1, written in; `None` is left empty."""
    side = 0.62 * len(names) + 2.2
    figure = new_figure(side + 1, side)
    ax = figure.subplots()
    table = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
    ax.imshow(table, cmap="RdBu", vmin=-1, vmax=1)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=7, parse_math=False)
    ax.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
    for row, column in zip(*np.nonzero(np.isfinite(table)), strict=True):
        value = table[row, column]
        colour = "white" if abs(value) > 0.6 else "black"
        ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    ax.set_title(title, fontsize=9, parse_math=False)
    return drawn(figure)


def bands(lines: Mapping[str, np.ndarray[Any, Any]], labels: tuple[str, str]) -> Image.Image:
    """Curves `[N, S]` over [0, 1]: for each name the mean, and a band between the quartiles."""
    figure = new_figure(7, 4)
    ax = figure.subplots()
    for name, curves in lines.items():
        x = np.linspace(0, 1, curves.shape[1])
        (line,) = ax.plot(x, curves.mean(0), label=name)
        low, high = np.quantile(curves, [0.25, 0.75], axis=0)
        ax.fill_between(x, low, high, alpha=0.12, color=line.get_color())
    for text in ax.legend(fontsize=7).get_texts():
        text.set_parse_math(False)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    return drawn(figure)


def _logarithmic(ax: Any, low: float, high: float) -> None:
    """A logarithmic x axis from `low` to `high`, with plain numbers that do not run into each other."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    ax.set_xscale("log")
    between = (1, 2, 5) if high < 300 * low else (1,)
    ax.xaxis.set_major_locator(LogLocator(subs=between, numticks=12))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
