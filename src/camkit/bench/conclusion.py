"""What a benchmark came to, in a few sentences: who is fastest, how far maps agree, what was not measured.

Everything is read from the document, and nothing is claimed that its intervals do not allow.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from camkit.bench import bench_json, scene_words, statistics
from camkit.bench.request import LEFT_OUT
from camkit.bench.results import ALIKE, EQUAL, SHAPES, Document, LatencyRecord, Median, Row
from camkit.bench.significance import better
from camkit.bench.statistics import LEAST, LEVEL, Estimate
from camkit.core.device_names import ROUNDED
from camkit.errors import counted

WORDS = {"BETTER": "better", "WORSE": "worse", "UNCLEAR": "undecided"}
MANY = 3  # names in a sentence; the others are counted


@dataclass(frozen=True)
class Conclusion:
    """A headline, what was found in words, and lines that say what was not measured, and why."""

    headline: str
    words: Sequence[str]
    missing: Sequence[str]


@dataclass(frozen=True)
class _Race:
    """The times of explainers at one batch size, the lowest median first.

    ratios: of the others to the first, from paired rounds, with intervals that are right for all pairs at
    once, because the first was not known before. processes: how many timed them all.
    """

    batch: int
    rows: Sequence[tuple[Row, LatencyRecord]]
    ratios: Sequence[Estimate]
    processes: int
    rounds: int

    @property
    def surely_slower(self) -> list[tuple[Row, Estimate]]:
        """Those that are slower than the first, the slowest last."""
        return [(row, ratio) for row, ratio in self._others if self.processes > 1 and (ratio.low or 0) > 1]

    @property
    def close(self) -> list[tuple[Row, Estimate]]:
        """Those that may or may not be slower."""
        sure = {row.key for row, _ in self.surely_slower}
        return [(row, ratio) for row, ratio in self._others if row.key not in sure]

    @property
    def _others(self) -> list[tuple[Row, Estimate]]:
        pairs = zip((row for row, _ in self.rows[1:]), self.ratios, strict=True)
        return sorted(pairs, key=lambda pair: pair[1].middle)


def conclusion(document: Document) -> Conclusion:
    """The conclusion from a document."""
    race = _race(document)
    words = [" ".join(sentences) for sentences in (_speed(race), _agreement(document), _worth(document))]
    return Conclusion(_headline(document, race), [text for text in words if text], list(_missing(document)))


# --- how fast ---------------------------------------------------------------------------------------


def _race(document: Document) -> _Race | None:
    """The times at the smallest batch size that every explainer with times has."""
    found = [
        (row, records)
        for row in _explainers(document)
        if (records := {record.batch: record for record in row.latency if record.samples.host})
    ]
    shared = set.intersection(*(set(records) for _, records in found)) if found else set()
    if not shared:
        return None
    batch = min(shared)
    entries = sorted(
        ((row, records[batch]) for row, records in found), key=lambda entry: entry[1].seconds.median
    )
    parts = [record.samples.by_process() for _, record in entries]
    processes = sorted(set.intersection(*map(set, parts)))
    if not processes:
        return None
    pairs = max(1, len(parts) * (len(parts) - 1) // 2)
    timed = [[part[process] for process in processes] for part in parts]
    ratios = [_ratio(own, timed[0], pairs) for own in timed[1:]]
    rounds = min(len(samples) for own in timed for samples in own)
    return _Race(batch, entries, ratios, len(processes), rounds)


def _ratio(own: Sequence[Sequence[float]], first: Sequence[Sequence[float]], pairs: int) -> Estimate:
    """The geometric mean of the processes' paired medians; for one process, its own with its interval."""
    paired = [statistics.paired(a, b) for a, b in zip(own, first, strict=True)]
    if len(paired) == 1:
        return paired[0]
    return statistics.over_processes([one.middle for one in paired]).interval(1 - (1 - LEVEL) / pairs)


def _headline(document: Document, race: _Race | None) -> str:
    explainers = _explainers(document)
    if race is None:
        return f"{counted(len(explainers), 'explainer')}, not timed"
    first = race.rows[0][0]
    if len(race.rows) == 1:
        return f"{first.key}, measured"
    if race.processes == 1:
        return f"{first.key} had the lowest time, in a single process"
    if not race.close:
        return f"{first.key} is the fastest of {len(race.rows)}"
    return "No explainer is clearly the fastest"


def _speed(race: _Race | None) -> Iterator[str]:
    if race is None:
        return
    row, record = race.rows[0]
    bare = f", {_span(record.ratio)} times as long as a bare forward" if record.ratio else ""
    time = f"{bench_json.span(record.seconds, 1000)} ms for {counted(race.batch, 'photograph')}{bare}"
    yield f"{row.key} has the lowest median: {time}." if race.close else f"{row.key} takes {time}."
    if slower := race.surely_slower:
        yield f"Slower: {_listed(slower)}."
    if close := race.close:
        if race.processes > 1:
            yield f"Not clearly slower: {_listed(close)}."
        else:
            yield (
                f"In its {counted(race.rounds, 'round')}: {_listed(close)}. A single process proves "
                "nothing, because the next may be faster or slower: --processes 3 tells."
            )
    if len(race.rows) > 1 and race.processes > 1:
        pairs = len(race.rows) * (len(race.rows) - 1) // 2
        width = f"wide enough for all {pairs} pairs at once" if pairs > 1 else "of the one pair"
        yield f"Intervals are those of 95 % over {race.processes} processes, {width}."


def _listed(found: Sequence[tuple[Row, Estimate]]) -> str:
    """Rows with how many times as long they take: the nearest, and the furthest of many."""
    names = [f"{row.key} ({_span(ratio)} times as long)" for row, ratio in found]
    if len(names) > MANY:
        between = counted(len(names) - MANY, "other")
        names = [*names[: MANY - 1], f"{between} in between", names[-1]]
    return _joined(names)


def _span(ratio: Median | Estimate) -> str:
    if isinstance(ratio, Estimate):
        ratio = Median.of(ratio)
    return bench_json.span(ratio)


# --- how far maps agree -----------------------------------------------------------------------------


def _without_parity(document: Document) -> list[str]:
    """Explainers beside the reference of their method without a comparison: NaN, or another resolution."""
    rows = list(_explainers(document))
    first = {row.method: row.key for row in reversed(rows)}
    return [
        row.key
        for row in rows
        if row.parity is None
        and not row.failed
        and row.key != first[row.method]
        and f"{row.backend} has no {row.method}" not in row.notes
    ]


def _agreement(document: Document) -> Iterator[str]:
    scene = document.scenes[0] if document.scenes else None
    if scene is None:
        return
    compared = [(row.key, row.parity) for row in _explainers(document) if row.parity is not None]
    rounding = ROUNDED.get(str(document.environment.rest.get("precision")), 0.0)
    least = max(EQUAL.get(document.settings.dtype, EQUAL["float32"]), rounding)
    if other := [(key, value) for key, value in compared if not value <= least]:
        names = _joined([f"{key} (by {value:.1e} of the peak)" for key, value in other[:MANY]])
        more = f" and {len(other) - MANY} more" if len(other) > MANY else ""
        yield f"Maps differ from those of the reference of the same method for {names}{more}."
    elif compared and (failed := _without_parity(document)):
        yield f"{_joined(failed)} could not be compared with the reference of the same method."
    elif compared:
        worst = max(value for _, value in compared)
        by = f", up to {worst:.1e} of the peak" if worst else ""
        yield f"Maps of one method are the same from all backends{by}."
    found = _least_alike(document, scene.name)
    if found:
        a, b, value, most = found
        chance = "" if most is None else f"; one in 40 pairs of random maps reaches {most:.2f}"
        yield (
            f"{a} and {b} agree least, with a mean rank correlation of {value:.2f} over "
            f"{scene_words.things(scene)}{chance}."
        )
    if (compared or found) and scene.independent < LEAST:
        yield f"{scene_words.things(scene).capitalize()} cannot speak for others."


def _least_alike(document: Document, scene: str) -> tuple[str, str, float, float | None] | None:
    """The pair of explainers with the lowest rank correlation, and what random maps reach in 1 of 40."""
    agreement = document.agreement.get(scene)
    measure = agreement.measures.get("spearman") if agreement else None
    if agreement is None or measure is None:
        return None
    real = {row.key for row in _explainers(document)}
    pairs = [
        (a, b, value)
        for (i, a), (j, b) in combinations(enumerate(agreement.names), 2)
        if a in real and b in real and (value := measure.mean[i][j]) is not None
    ]
    if not pairs:
        return None
    a, b, value = min(pairs, key=lambda pair: pair[2])
    return (a, b, value, measure.null[2]) if value < ALIKE else None


# --- whether they are worth anything ----------------------------------------------------------------


def _worth(document: Document) -> Iterator[str]:
    """At what explainers are better than maps that know nothing, at what worse, at what undecided."""
    rows = better(document)
    parts = [
        f"{word} in {_contests(cells)}"
        for verdict, word in WORDS.items()
        if (cells := [cells for cells in rows if cells[-1] == verdict])
    ]
    if parts:
        yield f"Compared with maps that know nothing of the model: {'; '.join(parts)}."


def _contests(rows: Sequence[Sequence[str]]) -> str:
    """`pointing-game on drawn shapes (native gradcam, captum gradcam)`; of many explainers how many."""
    explainers: dict[str, list[str]] = {}
    for backend, method, what, *_ in rows:
        explainers.setdefault(_where(what), []).append(f"{backend} {method}")
    said = {
        what: ", ".join(names) if len(names) <= MANY else counted(len(names), "explainer")
        for what, names in explainers.items()
    }
    return _joined([f"{what} ({names})" for what, names in said.items()])


def _where(what: str) -> str:
    """`pointing-game, shapes`, as a sentence has it."""
    metric, scene = what.split(", ")
    return f"{metric} on {'drawn shapes' if scene == SHAPES else scene}"


# --- what was not measured --------------------------------------------------------------------------


def _missing(document: Document) -> Iterator[str]:
    settings, explainers = document.settings, _explainers(document)
    for row in explainers:
        if row.failed or not (row.latency or row.scores):
            yield f"{row.key}: {'; '.join(row.notes) or 'not measured'}"
    for scene in document.scenes:
        if scene.failures:
            yield f"{counted(len(scene.failures), 'photograph')} could not be used: {scene.failures[0]}"
        if why := scene_words.left_out(scene):
            yield f"Of {scene.name}: {why}."
    asked = settings.metrics
    if isinstance(asked, list):
        yield f"Only what was asked for was measured: {', '.join(map(str, asked))}."
    elif settings.quick and (left_out := sorted(LEFT_OUT - document.metrics.keys())):
        yield f"A quick run leaves out mosaics and the metrics {', '.join(left_out)}."
    if len(explainers) == 1 and "spearman" in document.metrics:
        yield "How far maps agree: there was one explainer only."
    if why := scene_words.of_shapes(document.scenes):
        yield f"Whether maps point at the object in these photographs: {why}."


def _explainers(document: Document) -> list[Row]:
    return [row for row in document.rows if row.kind == "explainer"]


def _joined(texts: Sequence[str]) -> str:
    return " and ".join([", ".join(texts[:-1]), texts[-1]]) if len(texts) > 1 else "".join(texts)
