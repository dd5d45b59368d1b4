"""One table over all cells of a scoreboard: means with intervals that hold at once, ranks, controls.

Intervals are corrected for their number (Bonferroni): with 95 % all of them hold. A rank counts the methods
that are surely better, those whose whole interval lies above, so methods that cannot be told apart share
one. Against the controls, differences of the same photographs are taken, corrected for their own number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count, islice
from typing import Annotated, Any

from camkit.bench import statistics
from camkit.bench.request import shown as shown_text
from camkit.bench.results import ENERGY, GAIN, Facts, Line, Name, Value
from camkit.bench.scoreboard_plan import CONTROL, COST, GRID, GROUPS, LOCALISATION, Cell, Measured
from camkit.bench.significance import BLIND
from camkit.bench.typed_json import Fault, Most, finite, from_json, mapped
from camkit.contracts.metric import Metric

SCHEMA = 1
TEST = "sanity-cascading"
DIGITS = 5  # of a value: what differs by less, differs by the rounding of float32
# The columns: what the table calls each metric of a group. In all but the test more is better.
COLUMNS = {
    "POINTING": (LOCALISATION, "pointing-game"),
    "ENERGY": (LOCALISATION, ENERGY),
    "TOP PIXELS": (LOCALISATION, "relevance-rank"),
    "GRIDPG": (GRID, ENERGY),
    "GAIN": ("faithfulness", GAIN),
    "ROAD": ("faithfulness", "road"),
    "SANITY": ("sanity", TEST),
}
Pair = tuple[str, str]  # backend and method


@dataclass(kw_only=True)
class Figure:
    """A mean over photographs, or mosaics, with its corrected interval.

    count: how many have a value. rank: 1 and the number of methods that are surely better; none for
    controls and tests. verdict: against the controls, BETTER, WORSE or UNCLEAR. passed: of a test.
    """

    mean: Value | None
    low: Value | None = None
    high: Value | None = None
    count: int = 0
    rank: int | None = None
    verdict: Name | None = None
    passed: bool | None = None


@dataclass(kw_only=True)
class Price:
    """What an explainer costs: its time as a multiple of the bare forward's, median of the rounds, 95 %."""

    ratio: Value
    low: Value | None
    high: Value | None
    milliseconds: Value
    batch: int
    rounds: int


@dataclass(kw_only=True)
class BoardLine:
    """One method, or control, on one model; figures by column."""

    model: Line
    backend: Name
    method: Name
    cost: Price | None = None
    figures: Annotated[dict[str, Figure], Most(20)] = field(default_factory=dict)
    notes: Annotated[list[Line], Most(100)] = field(default_factory=list)


@dataclass(kw_only=True)
class Board:
    """`scoreboard.json`: everything that the page, the Markdown and the terminal show.

    scenes: by model and group, what is known of the photographs. intervals, comparisons: how many the means
    and the verdicts are corrected for. failed: cells without figures, and why; left: how many are
    not measured yet.
    """

    schema: int = SCHEMA
    created: Name = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    command: Line = ""
    lines: Annotated[list[BoardLine], Most(2000)]
    scenes: Annotated[dict[str, Annotated[dict[str, Facts], Most(20)]], Most(200)]
    environments: Annotated[list[Facts], Most(200)]
    intervals: int
    comparisons: int
    failed: Annotated[list[Line], Most(10_000)] = field(default_factory=list)
    left: int = 0


def read(table: Any) -> Board:
    """A board from JSON; `Fault` for the first thing that is wrong with it."""
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        raise Fault(f" is no scoreboard of schema {SCHEMA}")
    return from_json(Board, table)


def board(
    cells: Mapping[Cell, Measured], metrics: Mapping[str, type[Metric]], seed: int = 0, **told: Any
) -> Board:
    """The table of finished cells; metrics: the classes, for their ranges. told: further fields."""
    values = {
        (cell, column): found
        for cell, measured in cells.items()
        for column, found in _values(cell, measured).items()
        if any(value is not None for value in found)
    }
    shown = _shown(cells)
    labels = model_labels([cell.model for cell in cells])
    means = [key for key in values if key[0] in shown]
    contests = {key: _rivals(key, values) for key in means}
    comparisons = sum(map(len, contests.values()))
    lines: dict[tuple[str, str, str], BoardLine] = {}
    for cell in shown:
        line = lines.setdefault(
            (cell.model, cell.backend, cell.method),
            BoardLine(model=labels[cell.model], backend=cell.backend, method=cell.method),
        )
        line.notes += [note for note in cells[cell].notes if note not in line.notes]
        if cell.group == COST:
            line.cost = _price(cells[cell])
    for cell, column in means:
        metric = COLUMNS[column][1]
        own, limits = values[cell, column], metrics[metric].range
        figure = _figure(own, seed, limits, statistics.corrected(len(means)))
        if (score := cells[cell].scores[metric]) and metric == TEST:
            figure.passed = score.passed
        elif rivals := contests[cell, column]:
            figure.verdict = _verdict(own, rivals, seed, limits, statistics.corrected(comparisons))
        lines[cell.model, cell.backend, cell.method].figures[column] = figure
    _rank(lines.values())
    made = Board(
        lines=list(lines.values()),
        scenes={labels[model]: groups for model, groups in _scenes(cells).items()},
        environments=_environments(cells.values()),
        intervals=len(means),
        comparisons=comparisons,
        **told,
    )
    return mapped(made, finite)


def model_labels(specs: Iterable[str]) -> dict[str, str]:
    """What models are called: of an absolute path only the last part, with a number where that is taken."""
    labels: dict[str, str] = {}
    for spec in dict.fromkeys(specs):
        label, taken = shown_text(spec), set(labels.values())
        numbered = (f"{label} ({number})" for number in count(2))
        labels[spec] = next(name for name in (label, *islice(numbered, len(taken))) if name not in taken)
    return labels


def failures(failed: Mapping[Cell, str]) -> list[str]:
    """Failed cells, those of one reason in a line: the model, what was not measured, of what, and why."""
    labels = model_labels(cell.model for cell in failed)
    groups: dict[tuple[str, str, str], list[str]] = {}
    for cell, why in failed.items():
        groups.setdefault((labels[cell.model], cell.group, why), []).append(f"{cell.backend} {cell.method}")
    return [
        f"{model}, {group}, {names[0] if len(names) == 1 else f'{len(names)} rows'}: {why}"
        for (model, group, why), names in groups.items()
    ]


def _values(cell: Cell, measured: Measured) -> dict[str, list[float | None]]:
    """By column the values of each photograph: the mean of all that belongs to it, as of each mosaic."""
    found = {}
    for column, (group, metric) in COLUMNS.items():
        if group == cell.group and metric in measured.scores:
            values = measured.scores[metric].values
            means = _of_groups(values, measured.photographs)
            found[column] = [None if value is None else round(value, DIGITS) for value in means]
    return found


def _of_groups(values: Sequence[float | None], groups: Sequence[int]) -> list[float | None]:
    means = statistics.of_groups([math.nan if value is None else value for value in values], groups)
    return [None if math.isnan(mean) else mean for mean in means]


def _shown(cells: Mapping[Cell, Measured]) -> list[Cell]:
    """The cells of the table: of a control's, that with the most photographs."""
    most: dict[tuple[str, ...], int] = {}
    for cell in cells:
        key = (cell.model, cell.backend, cell.method, cell.group)
        most[key] = max(cell.count, most.get(key, 0))
    return [cell for cell in cells if cell.count == most[cell.model, cell.backend, cell.method, cell.group]]


def _rivals(
    key: tuple[Cell, str], values: Mapping[tuple[Cell, str], list[float | None]]
) -> list[list[float | None]]:
    """What the controls that know nothing of the model reach on the same photographs; none in a test."""
    cell, column = key
    if cell.backend == CONTROL or COLUMNS[column][1] == TEST:
        return []
    others = (Cell(cell.model, CONTROL, name, cell.group, cell.count) for name in BLIND)
    return [values[other, column] for other in others if (other, column) in values]


def _figure(values: Sequence[float | None], seed: int, limits: tuple[float, float], level: float) -> Figure:
    known = [value for value in values if value is not None]
    found = statistics.estimate(known, seed, limits, level)
    return Figure(mean=found.middle, low=found.low, high=found.high, count=len(known))


def _verdict(
    own: Sequence[float | None],
    rivals: Sequence[Sequence[float | None]],
    seed: int,
    limits: tuple[float, float],
    level: float,
) -> str:
    """BETTER than each rival, WORSE than one, otherwise UNCLEAR; by differences of the same photographs."""
    reach = limits[1] - limits[0]
    spans = []
    for rival in rivals:
        pairs = zip(own, rival, strict=True)
        differences = [a - b for a, b in pairs if a is not None and b is not None]
        if not differences:
            return "UNCLEAR"
        spans.append(statistics.estimate(differences, seed, (-reach, reach), level))
    if all(span.low is not None and span.low > 0 for span in spans):
        return "BETTER"
    return "WORSE" if any(span.high is not None and span.high < 0 for span in spans) else "UNCLEAR"


def _rank(lines: Iterable[BoardLine]) -> None:
    """Ranks within each model and column, of all methods that have an interval."""
    fields: dict[tuple[str, str], list[Figure]] = {}
    for line in lines:
        for column, figure in line.figures.items():
            if line.backend != CONTROL and figure.low is not None and COLUMNS[column][1] != TEST:
                fields.setdefault((line.model, column), []).append(figure)
    for figures in fields.values():
        for figure in figures:
            assert figure.high is not None
            figure.rank = 1 + sum(other.low > figure.high for other in figures if other.low is not None)


def _price(measured: Measured) -> Price | None:
    cost = measured.cost
    if cost is None or not cost.explainer:
        return None
    ratio = statistics.paired(cost.explainer, cost.forward)
    seconds = statistics.median(cost.explainer).middle
    return Price(
        ratio=ratio.middle,
        low=ratio.low,
        high=ratio.high,
        milliseconds=1000 * seconds,
        batch=cost.batch,
        rounds=len(cost.explainer),
    )


def _scenes(cells: Mapping[Cell, Measured]) -> dict[str, dict[str, Any]]:
    """By model and group what is known of the photographs, of the cell with the most."""
    found: dict[str, dict[str, Any]] = {}
    for cell, measured in sorted(cells.items(), key=lambda item: item[0].count):
        found.setdefault(cell.model, {})[cell.group] = measured.scene
    return {model: {g: groups[g] for g in GROUPS if g in groups} for model, groups in found.items()}


def _environments(cells: Iterable[Measured]) -> list[dict[str, Any]]:
    """The different machines and libraries, without the commit: that of the backend decides a cell."""
    found: list[dict[str, Any]] = []
    for cell in cells:
        facts = {name: value for name, value in cell.environment.items() if name != "git"}
        if facts not in found:
            found.append(facts)
    return found


# --- over all models --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """What a method reached in all columns of all models: how often it shares the first rank, and so on."""

    pair: Pair
    first: int
    ranked: int
    better: int
    worse: int
    contests: int
    passed: int
    tests: int
    cost: tuple[float, float] | None

    @property
    def order(self) -> tuple[float, float]:
        """For sorting: most first ranks, then cheapest."""
        return -self.first, self.cost[0] if self.cost else math.inf


def summaries(made: Board) -> Iterator[Summary]:
    """A summary of each method that is no control, best first."""
    by_pair: dict[Pair, list[BoardLine]] = {}
    for line in made.lines:
        if line.backend != CONTROL:
            by_pair.setdefault((line.backend, line.method), []).append(line)
    found = []
    for pair, lines in by_pair.items():
        figures = [figure for line in lines for figure in line.figures.values()]
        tests = [figure.passed for figure in figures if figure.passed is not None]
        verdicts = [figure.verdict for figure in figures if figure.verdict]
        ranks = [figure.rank for figure in figures if figure.rank]
        costs = [line.cost.ratio for line in lines if line.cost]
        found.append(
            Summary(
                pair=pair,
                first=ranks.count(1),
                ranked=len(ranks),
                better=verdicts.count("BETTER"),
                worse=verdicts.count("WORSE"),
                contests=len(verdicts),
                passed=sum(tests),
                tests=len(tests),
                cost=(min(costs), max(costs)) if costs else None,
            )
        )
    yield from sorted(found, key=lambda one: one.order)
