"""What samples show, and no more: intervals and verdicts whose levels are tested in simulations.

Means over images: Student's t and the studentised bootstrap, whichever is more careful; shares of hits:
Clopper and Pearson. Medians over rounds: order statistics. Processes: the logarithms of their medians, by
Welch's t. Several verdicts at once: Holm; several intervals: Bonferroni.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from scipy.special import betaincinv, stdtr, stdtrit
from scipy.stats import binom

Array = np.ndarray[Any, np.dtype[np.float64]]
Verdict = Literal["FASTER", "SLOWER", "SAME", "UNCLEAR"]

DRAWS = 4999
MANY_DRAWS = 19_999  # for levels whose tail has fewer than `TAIL` of the usual draws
TAIL = 20
LEVEL = 0.95
LEAST = 6  # samples: the median lies outside the range of five in more than 5 % of cases
# The fewest samples for a percentile: MLPerf's early-stopping floors.
FLOORS = {50: 1, 90: 64, 99: 662}
ROUNDING = 1e-12  # relative difference up to which values count as equal


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, which is `None` where there are too few samples for one."""

    middle: float
    low: float | None = None
    high: float | None = None


# --- means over images ------------------------------------------------------------------------------


def of_groups(values: Sequence[float], groups: Sequence[int]) -> list[float]:
    """The mean of each group's values that are no NaN, in the order of their first ones; NaN of none.

    Values of one photograph depend on each other: counted one by one, they would promise more than they
    show. No groups means that each value has its own.
    """
    if not groups:
        return list(values)
    parts: dict[int, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        known = parts.setdefault(group, [])
        if not math.isnan(value):
            known.append(value)
    return [math.fsum(part) / len(part) if part else math.nan for part in parts.values()]


def estimate(
    values: Sequence[float],
    seed: int = 0,
    limits: tuple[float, float] = (-math.inf, math.inf),
    level: float = LEVEL,
) -> Estimate:
    """The mean with the interval that suits the values: hits, equal ones, or any.

    limits: what a value can be. Where one is beyond them, as of scores that are no probabilities, there are
    none.
    """
    count, middle = len(values), float(np.mean(values))
    if count < LEAST:
        return Estimate(middle)
    if min(values) < limits[0] or max(values) > limits[1]:
        limits = -math.inf, math.inf
    if np.ptp(values) == 0:
        return constant(middle, count, limits, level)
    if set(values) <= {0.0, 1.0} and limits == (0.0, 1.0):  # a difference could be -1, too
        return proportion(int(sum(values)), count, level)
    return mean(values, seed, limits, level)


def mean(
    values: Sequence[float],
    seed: int = 0,
    limits: tuple[float, float] = (-math.inf, math.inf),
    level: float = LEVEL,
) -> Estimate:
    """The mean with the interval that holds both Student's t and the studentised bootstrap.

    The percentile bootstrap of 8 values misses a mean 11 to 16 times in 100; the t of skewed values up to
    10 times, the studentised bootstrap (Hall 1988, doi:10.1214/aos/1176350933) of heavy tails up to 7.
    limits: what a value can be. No interval below `LEAST` values, nor where nearly all are equal and there
    are no limits. level: higher where several intervals shall hold at once, `corrected`; where its tail is
    beyond `MANY_DRAWS`, the bootstrap is as wide as these show.
    """
    sample = np.asarray(values, dtype=np.float64)
    middle = float(sample.mean())
    if len(sample) < LEAST:
        return Estimate(middle)
    error = float(_error(sample))
    if error <= ROUNDING * abs(middle):
        return Estimate(middle, middle, middle)
    tail = (1 - level) / 2
    drawn = _studentised(sample[None], seed, DRAWS if tail * DRAWS >= TAIL else MANY_DRAWS)[0]
    low, high = np.quantile(drawn, [tail, 1 - tail], method="nearest")
    reach = _students(1 - 2 * tail, len(sample) - 1)
    least, most = min(limits[0], sample.min()), max(limits[1], sample.max())
    ends = (
        max(float(middle - error * max(high, reach)), float(least)),
        min(float(middle - error * min(low, -reach)), float(most)),
    )
    return Estimate(middle, *ends) if all(map(math.isfinite, ends)) else Estimate(middle)


def proportion(hits: int, count: int, level: float = LEVEL) -> Estimate:
    """A share of hits with its exact interval (Clopper and Pearson 1934, Biometrika 26, 404-413)."""
    tail = (1 - level) / 2
    low = float(betaincinv(hits, count - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, count - hits, 1 - tail)) if hits < count else 1.0
    return Estimate(hits / count, low, high)


def constant(
    value: float, count: int, limits: tuple[float, float] = (-math.inf, math.inf), level: float = LEVEL
) -> Estimate:
    """The mean where all of `count` values are equal: others, up to the `limits`, may have been missed.

    A share of others that is missed with less than the allowed probability is ruled out; for hits and
    misses that is Clopper and Pearson's interval. None without limits.
    """
    missed = 1 - ((1 - level) / 2) ** (1 / count)
    low, high = value - missed * (value - limits[0]), value + missed * (limits[1] - value)
    return Estimate(value, low, high) if math.isfinite(high - low) else Estimate(value)


def mean_p(samples: Any, seed: int = 0) -> Array:
    """Two-sided p-values `[...]` of samples `[..., n]` for a mean of 0: the larger one of the two methods.

    1 below `LEAST` values. Equal values say nothing about their spread: their p-value is that of a sign
    test, `2^(1 - n)`.
    """
    values = np.atleast_2d(np.asarray(samples, dtype=np.float64))
    count = values.shape[-1]
    if count < LEAST:
        return np.ones(np.shape(samples)[:-1])
    middle, error = values.mean(-1), _error(values)
    equal = error <= ROUNDING * np.abs(middle)
    found = middle / np.where(equal, 1, error)
    drawn = _studentised(values, seed)
    above = (1 + (drawn >= found[..., None]).sum(-1)) / (DRAWS + 1)
    below = (1 + (drawn <= found[..., None]).sum(-1)) / (DRAWS + 1)
    both = np.maximum(np.minimum(above, below), stdtr(count - 1, -np.abs(found)))
    p = np.where(equal, np.where(middle == 0, 1, 2.0 ** (1 - count)), np.minimum(1, 2 * both))
    return np.asarray(p.reshape(np.shape(samples)[:-1]))


def _studentised(values: Array, seed: int, draws: int = DRAWS) -> Array:
    """`[..., draws]`: how many standard errors of its own the mean of a redrawn sample is off.

    Infinite where all drawn values are equal. Small samples are less skewed than their population, so
    deviations are stretched by `n / (n - 1)`, or 8 skewed values would miss the mean 6.2 times in 100.
    """
    count = values.shape[-1]
    centred = values - values.mean(-1, keepdims=True)
    share = _shares(count, seed, draws)
    means = centred @ share
    spread = np.maximum(centred**2 @ share - means**2, 0)
    flat = spread <= ROUNDING * (centred**2).mean(-1, keepdims=True)
    ratio = means / np.sqrt(np.where(flat, 1, spread) / (count - 1)) * count / (count - 1)
    return np.asarray(np.where(flat & (means != 0), np.copysign(np.inf, means), ratio))


@lru_cache(maxsize=4)  # 40 MB each for a thousand values, of many draws 160 MB
def _shares(count: int, seed: int, draws: int = DRAWS) -> Array:
    """`[count, draws]`: the share that each value has in each redrawn sample."""
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    return np.asarray(drawn.T / count)


def _students(level: float, freedom: float) -> float:
    """How many standard errors a two-sided interval of Student's t reaches."""
    return -float(stdtrit(freedom, (1 - level) / 2))


def _error(values: Array) -> Array:
    """The standard error of the mean over the last axis."""
    return np.asarray(values.std(-1, ddof=1) / math.sqrt(values.shape[-1]))


# --- medians over rounds ----------------------------------------------------------------------------


def median(values: Sequence[float]) -> Estimate:
    """The median, between the order statistics that hold it with 95 %, whatever the distribution."""
    middle = float(np.median(values))
    if len(values) < LEAST:
        return Estimate(middle)
    outside = int(binom.ppf((1 - LEVEL) / 2, len(values), 0.5)) - 1
    ordered = sorted(values)
    return Estimate(middle, ordered[outside], ordered[-1 - outside])


def paired(values: Sequence[float], base: Sequence[float]) -> Estimate:
    """The median of `values / base`, samples of the same rounds: what slows both cancels."""
    return median([a / b for a, b in zip(values, base, strict=False)])


def percentile(values: Sequence[float], percent: int) -> float | None:
    """The 50th, 90th or 99th percentile; `None` where there are too few samples for it."""
    return float(np.percentile(values, percent)) if len(values) >= FLOORS[percent] else None


# --- processes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """The logarithm of a figure, its standard error, and the degrees of freedom of that; 0 if not known."""

    middle: float
    error: float = math.nan
    freedom: float = 0.0

    def interval(self, level: float = LEVEL) -> Estimate:
        """The figure itself, with Student's interval."""
        if not self.freedom:
            return Estimate(math.exp(self.middle))
        # With two processes, the ends of an interval may be too large for a number.
        reach = min(self.error * _students(level, self.freedom), 300.0)
        low, high = self.middle - reach, self.middle + reach
        return Estimate(*(math.exp(min(end, 700.0)) for end in (self.middle, low, high)))


def over_processes(figures: Sequence[float]) -> Spread:
    """The geometric mean of one figure of each process."""
    with np.errstate(all="ignore"):  # a document may come from anybody; with NaN nothing is clear
        logs = np.log(figures)
    if len(logs) < 2:
        return Spread(float(logs.mean()))
    return Spread(float(logs.mean()), float(_error(logs)), len(logs) - 1)


def change(before: Sequence[float], after: Sequence[float]) -> Spread:
    """`after / before`, for the figures of independent processes.

    Welch 1947, doi:10.1093/biomet/34.1-2.28. The spread is known if each has two processes at least.
    """
    old, new = over_processes(before), over_processes(after)
    middle = new.middle - old.middle
    if not (old.freedom and new.freedom):
        return Spread(middle)
    a, b = old.error**2, new.error**2
    parts = a**2 / old.freedom + b**2 / new.freedom
    freedom = (a + b) ** 2 / parts if parts else old.freedom + new.freedom
    return Spread(middle, math.sqrt(a + b), freedom)


def verdicts(found: Sequence[Spread], tolerance: float = 0.0) -> list[tuple[Estimate, Verdict]]:
    """The verdicts that ratios of new time over old time allow, for all of them at once.

    SLOWER, FASTER: the whole interval is beyond `1 + tolerance`, below `1 / (1 + tolerance)`. SAME: it is
    between them. Otherwise UNCLEAR. The intervals are as wide as Holm's correction demands, so that with
    95 % all verdicts are right. Without a spread there is no interval, and nothing is clear.
    """
    known = [index for index, spread in enumerate(found) if spread.freedom]
    bound = math.log1p(tolerance)
    ps = {index: _least_p(found[index], bound) for index in known}
    result: list[tuple[Estimate, Verdict]] = [(one.interval(), "UNCLEAR") for one in found]
    miss, sure = 1 - LEVEL, True
    for rank, index in enumerate(sorted(known, key=lambda index: ps[index])):
        if sure:  # from the first that is not, all have its level
            miss = (1 - LEVEL) / (len(known) - rank)
            sure = ps[index] <= miss
        estimate = found[index].interval(1 - miss)
        result[index] = (estimate, _verdict(estimate, tolerance))
    return result


def _least_p(spread: Spread, bound: float) -> float:
    """The smallest share of misses for which the interval allows one to say anything."""
    if not spread.error:
        return 1.0 if abs(spread.middle) == bound else 0.0
    above = float(stdtr(spread.freedom, (bound - spread.middle) / spread.error))
    below = float(stdtr(spread.freedom, (bound + spread.middle) / spread.error))
    return 2 * min(above, below, max(1 - above, 1 - below))


def _verdict(ratio: Estimate, tolerance: float) -> Verdict:
    low, high, most = ratio.low, ratio.high, 1 + tolerance
    if low is None or high is None:
        return "UNCLEAR"
    if low > most:
        return "SLOWER"
    if high < 1 / most:
        return "FASTER"
    return "SAME" if 1 / most < low and high < most else "UNCLEAR"


# --- several at once --------------------------------------------------------------------------------


def corrected(count: int) -> float:
    """The level of each of `count` intervals that with 95 % hold all at once (Bonferroni)."""
    return 1 - (1 - LEVEL) / max(1, count)


def holm(ps: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979, Scandinavian Journal of Statistics 6, 65-70)."""
    result, least = [0.0] * len(ps), 0.0
    for rank, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        least = max(least, min(1.0, ps[index] * (len(ps) - rank)))
        result[index] = least
    return result


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """The indices of the points `(cost, worth)` that no other beats in both, cheapest first."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
