"""Charts of a page: the numbers behind them; templates draw, and the stylesheet colours them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import ClassVar, Literal, TypeVar

WIDTH, HEIGHT = 380, 240  # of the drawing, in units of its own
LEFT, RIGHT, TOP, BOTTOM = 48, 12, 12, 40  # around what is plotted
MOST = 400  # points of a curve: there are no more pixels
APART = 14  # units between two marks that do not cover each other
FINE = 1000  # places along a strip
STEPS = 5  # of colour in a matrix

Points = Sequence[tuple[float, float]]
T = TypeVar("T", bound=tuple[float, ...])


@dataclass(frozen=True)
class Tick:
    """A line across the plot, where it is, and the number at its end."""

    at: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point of a chart, where it is, and whether it is one to look at."""

    x: float
    y: float
    chosen: bool


@dataclass(frozen=True)
class Chart:
    """Curves over a common axis, with bands around them, or numbered marks.

    curves: their names, and `x,y x,y ...` as SVG's `polyline` takes them; one of a single point is a dot.
    bands: outlines of what lies around curves, by the same names. marks: points with their names.
    """

    kind: ClassVar = "chart"

    title: str
    below: str
    curves: Mapping[str, str]
    across: Sequence[Tick]
    up: Sequence[Tick]
    bands: Mapping[str, str] = field(default_factory=dict)
    marks: Mapping[str, Mark] = field(default_factory=dict)
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Strip:
    """Samples along an axis. path: of a line for each; middle: where their median is; text: what it is."""

    name: str
    path: str
    middle: int
    text: str


@dataclass(frozen=True)
class Strips:
    """Samples of several names along one logarithmic axis of `FINE` places."""

    kind: ClassVar = "strips"

    title: str
    rows: Sequence[Strip]
    across: Sequence[Tick]
    fine: int = FINE


@dataclass(frozen=True)
class Cell:
    """A cell of a matrix: its text, how strong its colour is, of 0 to `STEPS`, and which of two it is."""

    text: str
    heat: int
    good: bool


@dataclass(frozen=True)
class Matrix:
    """A square table whose cells are coloured by what they hold."""

    kind: ClassVar = "matrix"

    title: str
    names: Sequence[str]
    rows: Sequence[Sequence[Cell]]


# --- curves and marks -------------------------------------------------------------------------------


def chart(
    title: str,
    below: str,
    curves: Mapping[str, Points],
    bands: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
    axis: Literal["count", "share"] = "count",
) -> Chart | None:
    """A chart of curves of points (x, y), of which those that are not finite are left out; none of nothing.

    below: what the horizontal axis is: a count, or a share of 1. bands: (x, low, high) around curves. The
    vertical axis begins at zero, or lower if a value does.
    """
    found = {name: _thinned(_finite(points)) for name, points in curves.items()}
    found = {name: points for name, points in found.items() if points}
    if not found:
        return None
    around = {name: _thinned(_finite((bands or {}).get(name, ()))) for name in found}
    every = [point for points in found.values() for point in points]
    heights = [y for _, y in every] + [y for points in around.values() for _, *ys in points for y in ys]
    place = _Plane(min(x for x, _ in every), max(x for x, _ in every), min(0, *heights), max(0, *heights))
    whole = _whole(place.first, place.last) if axis == "count" else _round_numbers(place.first, place.last)
    return Chart(
        title,
        below,
        {name: _path(place, points) for name, points in found.items()},
        [Tick(place.x(x), f"{x:,.0f}" if axis == "count" else f"{x:.0%}") for x in whole],
        [Tick(place.y(y), f"{y:g}") for y in place.levels],
        {name: _path(place, _outline(points)) for name, points in around.items() if points},
    )


def scatter(
    title: str, below: str, points: Mapping[str, tuple[float, float]], line: Sequence[str]
) -> Chart:
    """A chart of points (x, y), x above zero on a logarithmic axis; those named in `line` are joined."""
    logs = {name: (math.log10(x), y) for name, (x, y) in points.items()}
    heights = [y for _, y in logs.values()]
    first, last = min(x for x, _ in logs.values()), max(x for x, _ in logs.values())
    room = max(0.05, (last - first) / 20)  # so that no mark is on the edge
    place = _Plane(first - room, last + room, min(0, *heights), max(0, *heights))
    marks = {name: Mark(place.x(x), place.y(y), name in line) for name, (x, y) in logs.items()}
    return Chart(
        title,
        below,
        {"": _path(place, [logs[name] for name in line])},
        [Tick(place.x(math.log10(x)), f"{x:,g}") for x in _decades(10**place.first, 10**place.last)],
        [Tick(place.y(y), f"{y:g}") for y in place.levels],
        marks=_together(marks),
    )


def _together(marks: Mapping[str, Mark]) -> dict[str, Mark]:
    """Marks of which none covers another: those that would share one, and so do their names."""
    groups: list[tuple[list[str], Mark]] = []
    for name, mark in sorted(marks.items(), key=lambda item: not item[1].chosen):
        for names, other in groups:
            if math.dist((mark.x, mark.y), (other.x, other.y)) < APART:
                names.append(name)
                break
        else:
            groups.append(([name], mark))
    return {", ".join(names): mark for names, mark in groups}


def _outline(points: Sequence[tuple[float, float, float]]) -> Points:
    """Along the lower end of a band, and back along the upper one."""
    return [(x, low) for x, low, _ in points] + [(x, high) for x, _, high in reversed(points)]


class _Plane:
    """Where values lie in a drawing. levels: the numbers along the vertical axis, which they reach to."""

    def __init__(self, first: float, last: float, low: float, high: float) -> None:
        self.first, self.last = first, last
        self.levels = _ticks(low, high if high > low else low + 1)
        self._low, self._high = self.levels[0], self.levels[-1]

    def x(self, value: float) -> float:
        share = (value - self.first) / (self.last - self.first) if self.last > self.first else 0.5
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self._low) / (self._high - self._low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)


def _path(place: _Plane, points: Points) -> str:
    return " ".join(f"{place.x(x)},{place.y(y)}" for x, y in points)


def _finite(points: Sequence[T]) -> list[T]:
    return [point for point in points if all(map(math.isfinite, point))]


def _thinned(points: list[T]) -> list[T]:
    step = math.ceil(len(points) / MOST)
    return points if step <= 1 else [*points[:-1:step], points[-1]]


# --- strips -----------------------------------------------------------------------------------------


def strips(title: str, samples: Mapping[str, Sequence[float]]) -> Strips:
    """Every sample, above zero, as a line and their median as a thick one, for each name that has some."""
    every = [value for values in samples.values() for value in values]
    low, high = min(every) / 1.03, max(every) * 1.03
    wide = math.log(high / low)

    def place(value: float) -> int:
        return round(FINE * math.log(value / low) / wide)

    rows = [
        Strip(
            name,
            "".join(f"M{at} 0v1" for at in sorted(set(map(place, values)))),
            place(median(values)),
            _three_digits(median(values)),
        )
        for name, values in samples.items()
    ]
    return Strips(title, rows, [Tick(place(value), f"{value:,g}") for value in _decades(low, high)])


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


# --- numbers along an axis --------------------------------------------------------------------------


def _ticks(low: float, high: float) -> list[float]:
    """Four to eight round numbers from just below `low` to just above `high`."""
    step = _step(low, high)
    start = math.floor(low / step + 1e-9)
    return [round(n * step, 12) for n in range(start, math.ceil(high / step - 1e-9) + 1)]


def _round_numbers(low: float, high: float) -> list[float]:
    """Round numbers within a range."""
    return [value for value in _ticks(low, high if high > low else low + 1) if low <= value <= high]


def _step(low: float, high: float) -> float:
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough)


def _whole(first: float, last: float) -> Iterator[float]:
    """Whole round numbers within a range."""
    step = max(1, round(_step(0, max(last - first, 1))))
    start = math.ceil(first / step) * step
    yield from (float(start + n * step) for n in range(int((last - start) // step) + 1))


def _decades(low: float, high: float) -> list[float]:
    """Some round numbers of a logarithmic axis within a range; of a narrow one evenly spread ones."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        found = [round(value, 12) for value in found if low <= value <= high]
        if len(found) >= 3:
            return found[:: math.ceil(len(found) / 8)]
    return _round_numbers(low, high)
