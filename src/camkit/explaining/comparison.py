"""Whether backends agree on a photograph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from camkit.explaining.explanation import Explanation
from camkit.metrics.agreement import difference, spearman


@dataclass(frozen=True)
class Agreement:
    """Of two maps of one method, layer and class: their `spearman` and their `difference`."""

    first: str
    second: str
    method: str
    layer: str
    class_name: str
    spearman: float
    difference: float


def compare(results: Sequence[Explanation]) -> list[Agreement]:
    """All pairs of backends of one photograph that explain the same thing at the same resolution."""
    return [
        Agreement(
            *(a.backend, b.backend, a.method, a.layer, a.class_name),
            *(float(measure(a.map[None], b.map[None])) for measure in (spearman, difference)),
        )
        for a, b in combinations(results, 2)
        if (a.method, a.layer, a.class_index, a.subject) == (b.method, b.layer, b.class_index, b.subject)
        and a.backend != b.backend
        and a.map.shape == b.map.shape
    ]
