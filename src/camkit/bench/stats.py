"""What samples tell: medians with bootstrap intervals, and no more than there are samples for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Verdict = Literal["FASTER", "SLOWER", "SAME", "UNCLEAR"]

DRAWS = 2000
LEVEL = 0.95
LEAST = 5  # samples, below which an interval would mean nothing
# The fewest samples for a percentile: MLPerf's early-stopping floors.
FLOORS = {50: 1, 90: 64, 99: 662}


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, which is `None` below five samples."""

    middle: float
    low: float | None = None
    high: float | None = None


def median(values: Sequence[float], seed: int = 0) -> Estimate:
    """The median and its percentile bootstrap interval (Efron 1979, doi:10.1214/aos/1176344552)."""
    return _estimate(np.median, values, seed)


def mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """The mean and its percentile bootstrap interval."""
    return _estimate(np.mean, values, seed)


def paired(values: Sequence[float], base: Sequence[float], seed: int = 0) -> Estimate:
    """The median of `values / base`, samples of the same rounds: what slows both cancels."""
    return median([a / b for a, b in zip(values, base, strict=False)], seed)


def quotient(before: Sequence[float], after: Sequence[float], seed: int = 0) -> Estimate:
    """`median(after) / median(before)` of samples that have nothing to do with each other."""
    middle = float(np.median(after) / np.median(before))
    if min(len(before), len(after)) < LEAST:
        return Estimate(middle)
    random = np.random.default_rng(seed)
    drawn = _resampled(np.median, after, random) / _resampled(np.median, before, random)
    return Estimate(middle, *_middle_part(drawn))


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The 50th, 90th or 99th percentile; `None` where there are too few samples for it."""
    return float(np.percentile(values, percent)) if len(values) >= FLOORS[percent] else None


def verdict(ratio: Estimate, tolerance: float = 0.0) -> Verdict:
    """What an estimate of new time over old time allows one to say.

    SAME: the whole interval is within `tolerance` of 1. FASTER, SLOWER: it excludes 1. Otherwise UNCLEAR.
    """
    if ratio.low is None or ratio.high is None:
        return "UNCLEAR"
    if 1 / (1 + tolerance) <= ratio.low and ratio.high <= 1 + tolerance:
        return "SAME"
    if ratio.high < 1:
        return "FASTER"
    return "SLOWER" if ratio.low > 1 else "UNCLEAR"


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points `(cost, worth)` that no other beats in both, from cheap to dear."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


def _estimate(statistic: Callable[..., Any], values: Sequence[float], seed: int) -> Estimate:
    middle = float(statistic(values))
    if len(values) < LEAST:
        return Estimate(middle)
    drawn = _resampled(statistic, values, np.random.default_rng(seed))
    return Estimate(middle, *_middle_part(drawn))


def _resampled(
    statistic: Callable[..., Any], values: Sequence[float], random: np.random.Generator
) -> Array:
    draws = random.choice(np.asarray(values, dtype=np.float64), (DRAWS, len(values)))
    return np.asarray(statistic(draws, axis=1))


def _middle_part(drawn: Array) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
