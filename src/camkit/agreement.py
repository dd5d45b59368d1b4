"""How far maps agree. Agreement is not correctness: two explainers may be wrong in the same way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from scipy import stats
from torch import Tensor

from camkit.explanation import Explanation


@dataclass(frozen=True)
class Agreement:
    """Of two maps of one method, layer and class.

    spearman: rank correlation, -1 to 1; not a number if a map is constant.
    difference: the largest absolute difference, relative to the peak of the first map; 0 is equal.
    """

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
        Agreement(a.backend, b.backend, a.method, a.layer, a.class_name, *figures(a.map, b.map))
        for a, b in combinations(results, 2)
        if (a.method, a.layer, a.class_index) == (b.method, b.layer, b.class_index)
        and a.backend != b.backend
        and a.map.shape == b.map.shape
    ]


def figures(first: Tensor, second: Tensor) -> tuple[float, float]:
    """Spearman's rank correlation and the relative largest difference of two maps `[h, w]`."""
    a, b = first.double().flatten(), second.double().flatten()
    constant = a.min() == a.max() or b.min() == b.max()
    spearman = float("nan") if constant else float(stats.spearmanr(a.numpy(), b.numpy()).statistic)
    peak = float(a.abs().max())
    return spearman, float((a - b).abs().max()) / peak if peak else float((a - b).abs().max())
