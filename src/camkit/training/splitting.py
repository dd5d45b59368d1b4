"""Which photographs are held out: indices, from a seed and nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from camkit.errors import UsageError


def split(
    count: int, groups: Sequence[int] | None, *, valid: float, seed: int, fold: int
) -> tuple[list[int], list[int]]:
    """Indices for training and for validation: the fold is a slice of a seeded permutation.

    The lesson's is `np.random.RandomState(2).permutation(n)[: int(0.2 * n)]`; a further fold takes the
    next slice. groups: each is spread evenly over the permutation, so that every slice has its share.
    """
    order = np.random.RandomState(seed).permutation(count).tolist()
    if groups is not None:
        order = _spread(order, groups)
    size = int(valid * count)
    start = fold * size
    if not 0 < size < count or start + size > count:
        raise UsageError(
            f"no fold {fold} of {valid:.0%} in {count} photographs: add some, or change "
            "`valid` or `fold` in the recipe"
        )
    return order[:start] + order[start + size :], order[start : start + size]


def groups(labels: Sequence[int | tuple[int, ...]]) -> list[int]:
    """What to spread: the class of each photograph, of several labels the rarest, of none -1."""
    each = [(label,) if isinstance(label, int) else label for label in labels]
    counts = Counter(label for several in each for label in several)
    return [min(several, key=lambda label: (counts[label], label), default=-1) for several in each]


def _spread(order: Sequence[int], groups: Sequence[int]) -> list[int]:
    """`order` with the members of each group at equal distances, in the order that they had."""
    sizes, seen = Counter(groups), Counter[int]()
    places = {}
    for index in order:
        group = groups[index]
        places[index] = (seen[group] + 0.5) / sizes[group]
        seen[group] += 1
    return sorted(order, key=places.__getitem__)  # stable: equals stay as they were drawn
