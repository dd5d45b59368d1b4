"""Whether an explainer is better than maps that know nothing of the model: tests with Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from camkit.bench import statistics
from camkit.bench.results import ENERGY, GAIN, Document, Score

Curves = np.ndarray[Any, np.dtype[Any]]
ALIKE = 1e-3  # of the score: those of one method that are nowhere further apart count as one

# The metrics that tell an explainer from the controls, and how far two of their values may be apart.
WORTH = {GAIN: 2.0, "road": 2.0, "pointing-game": 1.0, ENERGY: 1.0, "relevance-rank": 1.0}
BLIND = ("random", "centre", "uniform", "edges")  # the blurred map knows what the map knows
BETTER = ("BACKEND", "METHOD", "SCORE", "IMAGES", "MEAN", "BEST CONTROL", "DIFFERENCE", "P", "VERDICT")
BETTER_WORDS = (
    "Each explainer against the controls on the same images; of what belongs to one photograph, the mean "
    "counts as one. DIFFERENCE is the mean difference from the "
    "best control, with its 95 % interval (the wider one of Student's t and the studentised bootstrap). "
    "BETTER means better than each control, WORSE means worse than one of them, corrected for their "
    "number. P is corrected for the number of rows, too (Holm), and at most 0.05 for a verdict: where "
    "nothing is better or worse, at most 1 of 20 tables has a verdict at all. Of backends with equal maps, "
    "one is shown."
)
ERROR = 0.05


@dataclass(frozen=True)
class _Contest:
    """An explainer against the controls: cells before the verdict, whether it is ahead, and its p-value."""

    cells: Sequence[str]
    ahead: bool
    p: float


def better(document: Document) -> list[list[str]]:
    """The cells below `BETTER`: each explainer against the controls, by each score that suits it."""
    found = list(_contests(document))
    lines = []
    for contest, p in zip(found, statistics.holm([contest.p for contest in found]), strict=True):
        verdict = "UNCLEAR" if p > ERROR else "BETTER" if contest.ahead else "WORSE"
        lines.append([*contest.cells, f"{p:.2g}", verdict])
    return lines


def _contests(document: Document) -> Iterator[_Contest]:
    for facts, metric in ((scene, metric) for scene in document.scenes for metric in WORTH):
        scene = facts.name
        scores = [
            (row, score)
            for row in document.rows
            if (score := row.scores.get(scene, {}).get(metric)) and score.mean is not None
        ]
        controls = {row.method: score for row, score in scores if row.method in BLIND}
        seen: list[tuple[str, Curves]] = []
        for row, own in scores:
            if row.kind != "explainer" or not controls:
                continue
            values = np.array(own.values, dtype=float)
            # Of other methods the same scores may be of other maps.
            of_method = [other for method, other in seen if method == row.method]
            if any(np.allclose(values, other, atol=ALIKE, equal_nan=True) for other in of_method):
                continue
            seen.append((row.method, values))
            names = row.backend, row.method, f"{metric}, {scene}"
            if contest := _contest(names, own, controls, facts.photographs, WORTH[metric]):
                yield contest


def _contest(
    names: Sequence[str],
    own: Score,
    controls: Mapping[str, Score],
    photographs: Sequence[int],
    reach: float,
) -> _Contest | None:
    """One explainer by one score; `None` if it has no image in common with the best control.

    Of several values of one of the `photographs`, the mean difference counts as one.
    Better than each: the largest p-value. Worse than one: the smallest, times the number of controls.
    """
    best_control = max(controls, key=lambda method: controls[method].mean or 0.0)
    differences = {method: _differences(own, other, photographs) for method, other in controls.items()}
    if not differences[best_control]:
        return None
    means = {method: float(np.mean(values)) for method, values in differences.items() if values}
    ps = {method: float(statistics.mean_p(differences[method])) for method in means}
    ahead = all(mean > 0 for mean in means.values())
    behind = [ps[method] for method, mean in means.items() if mean < 0]
    p = max(ps.values()) if ahead else min(1.0, len(ps) * min(behind, default=1.0))
    gain = statistics.estimate(differences[best_control], limits=(-reach, reach))
    span = "too few images"
    if gain.low is not None and gain.high is not None:
        span = f"[{gain.low:+.3f}, {gain.high:+.3f}]"
    cells = [
        *(*names, str(len(differences[best_control])), f"{own.mean:.3f}"),
        *(best_control, f"{gain.middle:+.3f} {span}"),
    ]
    return _Contest(cells, ahead, p)


def _differences(own: Score, other: Score, photographs: Sequence[int]) -> list[float]:
    pairs = zip(own.values, other.values, strict=True)
    values = [math.nan if a is None or b is None else a - b for a, b in pairs]
    return [value for value in statistics.of_groups(values, photographs) if not math.isnan(value)]
