"""Curves as inline SVG: the numbers behind them; templates draw, and the stylesheet colours them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 460, 250  # of the drawing, in units of its own
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40  # around what is plotted
MOST = 400  # points of a curve: there are no more pixels

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A line across the plot, where it is, and the number at its end."""

    at: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis; the vertical axis begins at zero.

    curves: their names, and `x,y x,y ...` as SVG's `polyline` takes them; one of a single point is a dot.
    """

    title: str
    below: str
    curves: Mapping[str, str]
    across: Sequence[Tick]
    up: Sequence[Tick]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def chart(title: str, below: str, curves: Mapping[str, Points]) -> Chart | None:
    """A chart of curves of points (x, y), of which those that are not finite are left out; none of nothing.

    below: what the horizontal axis is.
    """
    finite = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in curves.items()}
    found = {name: _thinned(points) for name, points in finite.items() if points}
    if not found:
        return None
    every = [point for points in found.values() for point in points]
    first, last = min(x for x, _ in every), max(x for x, _ in every)
    highest = max(max(y for _, y in every), 0) or 1.0
    ticks = _ticks(0, highest)
    top = max(highest, ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        share = (x - first) / (last - first) if last > first else 0.5
        return (
            round(LEFT + share * (WIDTH - LEFT - RIGHT), 1),
            round(HEIGHT - BOTTOM - max(y, 0) / top * (HEIGHT - TOP - BOTTOM), 1),
        )

    return Chart(
        title,
        below,
        {name: " ".join("{},{}".format(*place(*p)) for p in points) for name, points in found.items()},
        [Tick(place(x, 0)[0], f"{x:,.0f}") for x in _whole(first, last)],
        [Tick(place(first, y)[1], f"{y:g}") for y in ticks],
    )


def _thinned(points: Points) -> Points:
    step = math.ceil(len(points) / MOST)
    return points if step == 1 else [*points[:-1:step], points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from `low` to just above `high`."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)
    return [round(low + n * step, 12) for n in range(math.ceil((high - low) / step - 1e-9) + 1)]


def _whole(first: float, last: float) -> Iterator[float]:
    """Whole round numbers within a range."""
    step = max(1, round(_ticks(0, max(last - first, 1))[1]))
    start = math.ceil(first / step) * step
    yield from (float(start + n * step) for n in range(int((last - start) // step) + 1))
