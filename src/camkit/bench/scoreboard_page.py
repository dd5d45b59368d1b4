"""A scoreboard as `scoreboard.json`, as a page, as Markdown and in words; nothing is measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from camkit.bench import statistics
from camkit.bench.bench_json import NOTHING
from camkit.bench.page_formats import HTML, MARKDOWN, Report, Section, render
from camkit.bench.request import AGAIN
from camkit.bench.results import GAIN
from camkit.bench.scoreboard_plan import CONTROL
from camkit.bench.scoreboard_table import COLUMNS, Board, BoardLine, Figure, Price, summaries
from camkit.bench.typed_json import mapped, to_json
from camkit.errors import ESCAPES, counted
from camkit.files import write_whole
from camkit.pages import page
from camkit.pages.charts import Chart, scatter

JSON, TEXT = "scoreboard.json", "scoreboard.md"
LINE_HEADERS = ("BACKEND", "METHOD", "COST", *COLUMNS, "NOTES")
SUMMARY_HEADERS = ("BACKEND", "METHOD", "FIRST", "BETTER", "WORSE", "SANE", "COST")
SIGNS = {"BETTER": "+", "WORSE": "-", "UNCLEAR": "?"}
COST_AGAINST = "GAIN"


def write(made: Board, folder: Path) -> list[Path]:
    """`scoreboard.json`, `index.html` and `scoreboard.md` in `folder`."""
    page.check_ours(folder / page.NAME)
    text = json.dumps(made, ensure_ascii=False, allow_nan=False, default=to_json) + "\n"
    told = report(made)
    return [
        write_whole(folder / JSON, text.encode("utf-8", "backslashreplace")),
        write_whole(folder / page.NAME, render(HTML, told)),
        write_whole(folder / TEXT, render(MARKDOWN, told)),
    ]


def report(made: Board) -> Report:
    """All that a page says."""
    made = mapped(made, _visible)
    return Report(
        headline(made),
        list(words(made)),
        list(missing(made)),
        list(_sections(made)),
        made_by="camkit bench scoreboard",
    )


def _visible(value: Any) -> Any:
    return value.translate(ESCAPES) if isinstance(value, str) else value


# --- words ------------------------------------------------------------------------------------------


def headline(made: Board) -> str:
    """How many methods on how many models, and how often they are better than maps that know nothing."""
    found = list(summaries(made))
    better, contests = sum(one.better for one in found), sum(one.contests for one in found)
    models = {line.model for line in made.lines}
    what = f"{counted(len(found), 'method')} on {counted(len(models), 'model')}"
    return f"{what}: better than maps that know nothing in {better} of {contests} comparisons"


def words(made: Board) -> Iterator[str]:
    """What was found, as far as the intervals say it."""
    found = list(summaries(made))
    most = max((one.ranked for one in found), default=0)
    ranked = [one for one in found if one.ranked]
    if ranked:  # one that is missing in a column cannot be the first everywhere
        always = [_name(*one.pair) for one in ranked if one.first == most]
        if len(always) == len(ranked):
            yield "No method is surely better than any other in any column of any model."
        elif always:
            yield f"In no column of any model is another method surely better than {_listed(always)}."
        else:
            first = max(one.first for one in ranked)
            best = [_name(*one.pair) for one in ranked if one.first == first]
            yield (
                f"No method has the first rank everywhere; in {first} of {most} columns, the most, it is "
                f"that of {_listed(best)}{', or shared by them' if len(best) > 1 else ''}."
            )
    if worse := [f"{_name(*one.pair)} ({one.worse})" for one in found if one.worse]:
        yield f"Surely worse than a map that knows nothing, in so many columns: {_listed(worse)}."
    tested = [one for one in found if one.tests]
    if tested:
        failing = [_name(*one.pair) for one in tested if one.passed < one.tests]
        counts = {
            one.count for line in made.lines for one in line.figures.values() if one.passed is not None
        }
        of = f"with {counted(min(counts), 'photograph')}{' or more' if len(counts) > 1 else ''}"
        yield (
            f"The sanity test (random weights), {of}, is failed on a model or more by {_listed(failing)}."
            if failing
            else f"All methods pass the sanity test (random weights), {of}, on all models."
        )
    costs = {_name(*one.pair): one.cost for one in found if one.cost}
    if costs:
        low = min(costs, key=lambda name: costs[name][1])
        high = max(costs, key=lambda name: costs[name][1])
        yield f"The cost is {_range(costs[low])} bare forwards for {low}, {_range(costs[high])} for {high}."


def missing(made: Board) -> Iterator[str]:
    """What has no figures, and why."""
    if made.left:
        yield f"{counted(made.left, 'cell')} not measured yet: the same command goes on."
    yield from (f"No figures: {line}" for line in made.failed)
    for model, groups in made.scenes.items():
        for group, facts in groups.items():
            if failures := facts.get("failures"):
                yield f"{model}, {group}: {counted(len(failures), 'photograph')} could not be read"
    if len(made.environments) > 1:
        yield f"Not all on one machine, or with the same libraries: there are {len(made.environments)}."


def explanation(made: Board) -> list[str]:
    """What the tables mean."""
    return [
        "COST is the time for the photographs of one batch as a multiple of the bare forward of the same "
        "photographs: the median of the rounds with its 95 % interval, within one process.",
        f"The other figures are means over photographs (GRIDPG: over mosaics of four) with intervals that "
        f"all hold at once with 95 %: each is corrected for the number of them, {made.intervals} "
        f"(Bonferroni; the wider one of Student's t and the studentised bootstrap, for POINTING that of "
        "Clopper and Pearson). No interval: fewer than six values. #1 is the rank: 1 and "
        "the number of methods whose whole interval lies above. Methods that share a rank cannot be told "
        "apart by this test; that does not make them equal. The same photographs are behind all of them, "
        "so a test of their differences would tell more of them apart.",
        "+ is better than each control that knows nothing of the model (random, centre, uniform, edges), "
        f"- worse than one of them, ? neither: by the differences on the same photographs, corrected for "
        f"all {made.comparisons} of them (Bonferroni), so that with 95 % no + and no - is wrong.",
        "SANITY is the similarity to maps of the model with random weights: a test, no ranking.",
    ]


# --- tables -----------------------------------------------------------------------------------------


def _sections(made: Board) -> Iterator[Section]:
    yield Section("All models together", [SUMMARY_WORDS], SUMMARY_HEADERS, list(summary_rows(made)))
    for number, model in enumerate(dict.fromkeys(line.model for line in made.lines)):
        lines = [line for line in made.lines if line.model == model]
        headers, rows = table(lines)
        details = [] if number else explanation(made)
        told = [photographs(made, model)]
        drawn = [chart] if (chart := _worth_its_cost(lines)) else []
        yield Section(model, told, headers, rows, details, drawn)
    if made.environments:
        rows = [[name, _fact(value)] for name, value in made.environments[0].items() if value is not None]
        yield Section("Environment", (), ("FACT", "VALUE"), rows)
    yield Section("Again", [AGAIN], code=made.command)


SUMMARY_WORDS = (
    "FIRST: in how many columns of all models no method is surely better. BETTER, WORSE: in how many it is "
    "surely better than all controls, worse than one. SANE: on how many models it passes the test. COST: "
    "lowest and highest median over the models, in bare forwards."
)


def summary_rows(made: Board) -> Iterator[list[str]]:
    """The cells below `SUMMARY_HEADERS`."""
    for one in summaries(made):
        yield [
            *one.pair,
            _of(one.first, one.ranked),
            _of(one.better, one.contests),
            _of(one.worse, one.contests),
            _of(one.passed, one.tests),
            _range(one.cost) if one.cost else NOTHING,
        ]


def table(lines: Sequence[BoardLine]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of one model; columns without figures are left out."""
    rows = [
        [
            *(line.backend, line.method, _price(line.cost)),
            *(_figure(line.figures.get(column)) for column in COLUMNS),
            "; ".join(line.notes) or NOTHING,
        ]
        for line in lines
    ]
    kept = [i for i, _ in enumerate(LINE_HEADERS) if i < 2 or any(row[i] != NOTHING for row in rows)]
    return [LINE_HEADERS[i] for i in kept], [[row[i] for i in kept] for row in rows]


def _figure(figure: Figure | None) -> str:
    if figure is None or figure.mean is None:
        return NOTHING
    parts = [f"{figure.mean:.2f}"]
    if figure.low is not None and figure.high is not None:
        parts.append(f"[{figure.low:.2f}, {figure.high:.2f}]")
    if figure.passed is not None:
        parts.append("pass" if figure.passed else "FAIL")
    parts += [f"#{figure.rank}"] if figure.rank else []
    parts += [SIGNS[figure.verdict]] if figure.verdict in SIGNS else []
    return " ".join(parts)


def _price(cost: Price | None) -> str:
    if cost is None:
        return NOTHING
    interval = "" if cost.low is None or cost.high is None else f" [{cost.low:.2f}, {cost.high:.2f}]"
    return f"{cost.ratio:.2f}{interval}"


def photographs(made: Board, model: str) -> str:
    """What was shown to a model: the layer, and the photographs of each group."""
    groups = made.scenes.get(model, {})
    parts = []
    for group, facts in groups.items():
        share = facts.get("truth_share")
        marked = facts.get("marked", "objects")
        chance = f", of which the {marked} cover {share:.2f}" if group == "localisation" and share else ""
        remark = f" ({facts['remark']})" if facts.get("remark") else ""
        things = facts.get("things") or f"{facts.get('images')} photographs"
        named = f": {facts['named']}" if facts.get("named") else ""
        parts.append(f"{group}: {things}{named}{chance}{remark}")
    layer = next((facts.get("layer") for facts in groups.values()), None)
    return f"Layer {layer}. {'; '.join(parts)}."


def _worth_its_cost(lines: Sequence[BoardLine]) -> Chart | None:
    points = {
        _name(line.backend, line.method): (line.cost.ratio, figure.mean)
        for line in lines
        if line.backend != CONTROL
        and line.cost
        and line.cost.ratio > 0
        and (figure := line.figures.get(COST_AGAINST))
        and figure.mean is not None
    }
    if len(points) < 2:
        return None
    names = list(points)
    front = [names[i] for i in statistics.pareto(list(points.values()))]
    return scatter(f"{GAIN} against cost", "cost in bare forwards", points, front)


def _name(backend: str, method: str) -> str:
    return method if backend == "native" else f"{backend} {method}"


def _of(count: int, total: int) -> str:
    return f"{count} of {total}" if total else NOTHING


def _range(cost: tuple[float, float]) -> str:
    low, high = (f"{value:.0f}" if value >= 100 else f"{value:.2f}" for value in cost)
    return low if low == high else f"{low} to {high}"


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return " and ".join([", ".join(found[:-1]), found[-1]]) if len(found) > 1 else "".join(found)


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items())
    return str(value)
