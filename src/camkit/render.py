"""Pictures of maps, in the lesson's look: min-max over the signed map, bilinear, `magma`, alpha 0.6."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from camkit.errors import MapError, UsageError, printable
from camkit.images import Photo
from camkit.preprocess import Preprocess
from camkit.style import Style

Box = tuple[float, float, float, float]
MAX_SIDE = 60  # inches of a confusion matrix: a picture of 150 MB in memory

View = Literal["model", "original"]
BAND = 2**20  # pixels that are coloured at once, so that memory does not grow with a picture


def signed(map: Tensor, style: Style) -> Tensor:
    """The map that is drawn: as it is, rectified, or negated and rectified."""
    if style.counterfactual:
        return (-map).clamp(min=0)
    return map.clamp(min=0) if style.relu else map


Remark = Literal["constant", "nothing for", "nothing against", "least against"]


def remark(map: Tensor, style: Style) -> Remark | None:
    """What the picture of a map cannot show by itself, because it is stretched to what there is.

    `least against`: no value is positive, so the brightest place of the signed picture is no evidence.
    """
    if is_flat(map):
        return "constant"
    if is_flat(signed(map, style)):
        return "nothing against" if style.counterfactual else "nothing for"
    return "least against" if float(signed(map, style).max()) <= 0 else None


def is_flat(map: Tensor) -> bool:
    """Whether all values are equal, so that a picture shows nothing."""
    return bool(map.max() == map.min())


def overlay(
    image: Image.Image,
    map: Tensor,
    style: Style,
    box: Box | None = None,
    scale: tuple[float, float] | None = None,
) -> Image.Image:
    """`image` with the map `[h, w]` over it.

    box: the part of `image` that the map covers (left, top, right, bottom in pixels); the rest, which
    the model did not see, is shown in grey. `None`: all of it.
    scale: the values that get the lowest and the highest colour; `None`: minimum and maximum of the map.
    Raises `MapError` if the map is not finite.
    """
    check_finite(map)
    drawn = signed(map.detach().double(), style)  # in which no range of float32 values overflows
    photo = np.asarray(image.convert("RGB"))
    left, top, right, bottom = box or (0, 0, *image.size)
    x0, x1 = max(0, round(left)), min(image.width, round(right))
    y0, y1 = max(0, round(top)), min(image.height, round(bottom))
    result = photo.copy() if box is None else _unseen(image)
    values = _sample(drawn, (left, top, right, bottom), (x0, y0, x1, y1))
    scale = scale or extent([drawn])
    height = max(1, BAND // image.width)
    for y in range(y0, y1, height):
        rows = slice(y, min(y + height, y1))
        heat = _colours(_normalised(values[y - y0 : rows.stop - y0], *scale), style.cmap)
        mixed = (1 - style.alpha) * photo[rows, x0:x1].astype(np.float32) + style.alpha * heat
        result[rows, x0:x1] = mixed.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(result)


def draw(
    photo: Photo,
    map: Tensor,
    preprocess: Preprocess,
    view: View,
    style: Style,
    scale: tuple[float, float] | None = None,
) -> Image.Image:
    """A map `[h, w]` over what the model saw of a photograph, or over all of it; as `overlay`."""
    if view == "model":
        return overlay(seen(photo, preprocess), map, style, scale=scale)
    if photo.cut:
        raise UsageError(f"only what the model saw of {photo.source} was kept: use view='model'")
    width, height = photo.whole or photo.image.size
    x, y = photo.image.width / width, photo.image.height / height
    left, top, right, bottom = preprocess.box(width, height)
    return overlay(photo.image, map, style, (left * x, top * y, right * x, bottom * y), scale)


def seen(photo: Photo, preprocess: Preprocess) -> Image.Image:
    """What the model sees of a photograph."""
    if photo.view is not None:
        return photo.view
    return photo.image if photo.cut else preprocess.view(photo.image)


def picture(pixels: Tensor) -> Image.Image:
    """Values `[3, H, W]` in [0, 1] as a picture; what lies outside is cut off."""
    values = pixels.clamp(0, 1).permute(1, 2, 0).mul(255).round()
    return Image.fromarray(values.to(torch.uint8).numpy())


def extent(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Minimum and maximum over raw maps, so that a scale does not depend on the size of a picture."""
    return min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)


def check_finite(map: Tensor) -> None:
    """Raise `MapError` if a value of `map` is NaN or infinite."""
    bad = int((~torch.isfinite(map)).sum())
    if bad:
        raise MapError(
            f"{bad} of the map's {map.numel()} values are NaN or infinite; the model's activations or "
            "gradients overflow (try --dtype float32)"
        )


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet: a title of one or two lines over an image."""

    title: str
    image: Image.Image


def sheet(rows: Sequence[Sequence[Panel]], heading: str) -> Image.Image:
    """Panels in rows under one heading, for looking at maps side by side."""
    columns = max(len(row) for row in rows)
    tallest = max(panel.image.height / panel.image.width for row in rows for panel in row)
    figure = _figure(2.9 * columns, (2.9 * tallest + 0.5) * len(rows) + 0.4)
    # Names may hold dollar signs, which are no formulas.
    figure.suptitle(heading, fontsize=10, parse_math=False)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for row, line in zip(rows, axes, strict=True):
        for index, ax in enumerate(line):
            ax.axis("off")
            if index < len(row):
                ax.imshow(np.asarray(row[index].image))
                ax.set_title(row[index].title, fontsize=8, parse_math=False)
    return _drawn(figure)


def curves(
    history: Sequence[Mapping[str, float]], steps: Sequence[Mapping[str, float]] = ()
) -> Image.Image:
    """Loss and error over the epochs, and loss and learning rate over the steps where they are known."""
    figure = _figure(9, 3 if not steps else 6)
    axes = figure.subplots(2 if steps else 1, 2, squeeze=False)
    for ax, keys in zip(axes[0], (("train_loss", "valid_loss"), ("error_rate",)), strict=True):
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
        ax.set_xlabel("step")
        ax.set_ylabel("training loss" if key == "loss" else "learning rate")
        ax.set_ylim(bottom=0)
    return _drawn(figure)


def confusion(counts: np.ndarray[Any, Any], names: Sequence[str], title: str = "") -> Image.Image:
    """A confusion matrix, actual class in rows, with the counts written in."""
    cell = min(0.28, MAX_SIDE / len(names))  # inches
    side, size = max(4.0, cell * len(names) + 2), 25 * cell
    figure = _figure(side, side)
    ax = figure.subplots()
    ax.imshow(counts, cmap="Blues")
    shown = [printable(name) for name in names]
    ax.set_xticks(range(len(names)), shown, rotation=90, fontsize=size, parse_math=False)
    ax.set_yticks(range(len(names)), shown, fontsize=size, parse_math=False)
    ax.set_title(title)
    ax.set_xlabel("predicted")
    ax.set_ylabel("actual")
    for row, column in zip(*counts.nonzero(), strict=True):
        colour = "white" if counts[row, column] > counts.max() / 2 else "black"
        ax.text(
            column, row, str(counts[row, column]), ha="center", va="center", fontsize=size, color=colour
        )
    return _drawn(figure)


def distributions(samples: Mapping[str, Sequence[float]], label: str) -> Image.Image:
    """Every sample as a point and the median as a bar, a line for each name; logarithmic."""
    figure = _figure(8, 0.42 * len(samples) + 1)
    ax = figure.subplots()
    for row, values in enumerate(samples.values()):
        ax.plot(values, [row] * len(values), "|", color="#4477aa", alpha=0.5, markersize=12)
        ax.plot([np.median(values)], [row], "|", color="#aa3377", markersize=20, markeredgewidth=2.5)
    ax.set_yticks(range(len(samples)), list(samples), fontsize=8, parse_math=False)
    ax.set_ylim(len(samples) - 0.5, -0.5)
    _logarithmic(ax, min(map(min, samples.values())), max(map(max, samples.values())))
    ax.set_xlabel(label)
    return _drawn(figure)


def tradeoff(
    points: Mapping[str, tuple[float, float]], front: Sequence[str], labels: tuple[str, str]
) -> Image.Image:
    """Cost against worth, logarithmic in cost; the names in `front` are joined, from cheap to dear."""
    figure = _figure(7, 4.5)
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
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    return _drawn(figure)


def matrix(names: Sequence[str], values: Sequence[Sequence[float | None]], title: str) -> Image.Image:
    """A symmetric table of values from -1 to 1, written in; `None` is left empty."""
    side = 0.62 * len(names) + 2.2
    figure = _figure(side + 1, side)
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
    return _drawn(figure)


def bands(lines: Mapping[str, np.ndarray[Any, Any]], labels: tuple[str, str]) -> Image.Image:
    """Curves `[N, S]` over [0, 1]: for each name the mean, and a band between the quartiles."""
    figure = _figure(7, 4)
    ax = figure.subplots()
    for name, curves in lines.items():
        x = np.linspace(0, 1, curves.shape[1])
        (line,) = ax.plot(x, curves.mean(0), label=name)
        low, high = np.quantile(curves, [0.25, 0.75], axis=0)
        ax.fill_between(x, low, high, alpha=0.12, color=line.get_color())
    for text in ax.legend(fontsize=7).get_texts():
        text.set_parse_math(False)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    return _drawn(figure)


def _logarithmic(ax: Any, low: float, high: float) -> None:
    """A logarithmic x axis from `low` to `high`, with plain numbers that do not run into each other."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    ax.set_xscale("log")
    between = (1, 2, 5) if high < 300 * low else (1,)
    ax.xaxis.set_major_locator(LogLocator(subs=between, numticks=12))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def _figure(width: float, height: float) -> Any:
    """A matplotlib figure in inches that no window knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _drawn(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, bbox_inches="tight", pad_inches=0.1)
    return Image.open(buffer).convert("RGB")


def _sample(map: Tensor, box: Box, pixels: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    """The map, stretched over `box`, at the centres of `pixels`; bilinear, float64 `[y1 - y0, x1 - x0]`.

    On whole boxes this is `interpolate(mode="bilinear", align_corners=False)`. In numpy, because several
    pictures are drawn at a time, beside a model that has torch's threads for itself.
    """
    left, top, right, bottom = box
    x0, y0, x1, y1 = pixels
    values = map.detach().cpu().double().numpy()
    rows = _hats((np.arange(y0, y1) + 0.5 - top) / (bottom - top), values.shape[0])
    columns = _hats((np.arange(x0, x1) + 0.5 - left) / (right - left), values.shape[1])
    return np.asarray(rows @ values @ columns.T)


def _hats(places: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """The weight of each of `count` cells of [0, 1] at `places`: `[len(places), count]`; rows sum to 1."""
    centres = np.clip(places * count - 0.5, 0, count - 1)
    return np.asarray(np.clip(1 - np.abs(centres[:, None] - np.arange(count)), 0, None))


def _normalised(values: np.ndarray[Any, Any], low: float, high: float) -> np.ndarray[Any, Any]:
    if low == high:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)


def _colours(values: np.ndarray[Any, Any], cmap: str) -> np.ndarray[Any, Any]:
    table = _table(cmap)
    return np.asarray(table[np.minimum((values * len(table)).astype(np.int64), len(table) - 1)])


@lru_cache(maxsize=8)
def _table(cmap: str) -> np.ndarray[Any, Any]:
    """The colours of a map, float32 `[N, 3]` from 0 to 255."""
    from matplotlib import colormaps

    colours = colormaps[cmap]
    return np.asarray(colours(np.arange(colours.N))[:, :3] * 255, dtype=np.float32)


def _unseen(image: Image.Image) -> np.ndarray[Any, Any]:
    """A picture in dark grey, uint8 `[H, W, 3]`."""
    darker = (np.arange(256, dtype=np.float32) * 0.6).round().astype(np.uint8)
    return np.asarray(darker[np.asarray(ImageOps.grayscale(image).convert("RGB"))])
