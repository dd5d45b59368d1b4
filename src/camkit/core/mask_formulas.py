"""The mathematics of methods that hide parts of the input: from scores of masked inputs to maps.

Shapes, everywhere:
    scores     [n, T]    of T classes, one row for each masked input
    values     [T, P]    at P positions, or cells of a grid
    errors     [T, P]    their standard errors

A standard error takes the masks for independent draws. Those of a Sobol sequence are spread more evenly,
so there it is, if anything, too large.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

SHARE = 0.5  # of the cells that stay, in RISE and HSIC, as in both papers
Z = 1.96  # standard errors on each side of a 95 % interval
BANDWIDTH_SAMPLE = 512  # scores whose distances give the bandwidth of HSIC's kernel


def rise_weights(scores: Tensor, centred: bool) -> Tensor:
    """What each mask is multiplied with, `[n, T]`: RISE is the sum of the masks so weighted.

    Petsiuk et al. 2018, arXiv:1806.07421, equation 6: `f / (n E[M])`. centred: with the mean score taken
    off `f`, which takes nearly the same number off the map everywhere, and much of its noise.
    """
    taken = scores - scores.mean(0) if centred else scores
    return taken.div(len(scores) * SHARE)


def rise_errors(scores: Tensor, masks: Tensor, centred: bool) -> Tensor:
    """The standard errors of RISE at the positions of `masks` `[n, P]`."""
    if centred:
        scores, masks = scores - scores.mean(0), masks - SHARE
    n = len(scores)
    mean = scores.t() @ masks / n
    variance = ((scores**2).t() @ masks**2 / n - mean**2).clamp(min=0)
    return variance.sqrt() / (SHARE * sqrt(n))


def sobol(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Total Sobol indices of the d cells, by Jansen's estimator, with their errors, `[T, d]` both.

    scores: `[n, 1 + d, T]`: with the masks `A`, then with each cell in turn as in `B`.
    Fel et al. 2021, arXiv:2111.04138, equation 6: the share of the variance of the score that goes when all
    other cells are known. The errors are those of a ratio of means (the delta method).
    """
    own, replaced = scores[:, :1], scores[:, 1:]
    around = own - own.mean(0)
    variance = (around**2).sum(0) / (len(scores) - 1)
    terms = (own - replaced) ** 2 / 2
    index = torch.where(variance == 0, 0.0, terms.mean(0) / variance)
    influence = torch.where(variance == 0, 0.0, (terms - index * around**2) / variance)
    return index.t(), (influence.std(0) / sqrt(len(scores))).t()


def hsic(scores: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """The dependence of the scores on each of the d cells (HSIC), with its errors, `[T, d]` both.

    cells: `[n, d]`, 0 or 1. Novello et al. 2022, arXiv:2206.06219: `tr(K H L H) / (n - 1)^2`, where `K` is
    1 for equal cells, else 0, `L` is the Gaussian kernel of the scores, and `H` takes means off. The
    bandwidth is the median distance of two scores. `H K H` is `2 z z^T`, `z` the cells without their mean,
    so each class takes one product of matrices.
    """
    n, z = len(scores), cells - cells.mean(0)
    found = []
    for column in scores.t():
        kernel = _gaussian(column)
        smooth = kernel @ z
        parts = 2 * z * (smooth - smooth.mean(0)) / (n - 1)
        found.append((parts.sum(0) / (n - 1), 2 * parts.std(0) / sqrt(n)))
    values, errors = zip(*found, strict=True)
    return torch.stack(values), torch.stack(errors)


def _gaussian(scores: Tensor) -> Tensor:
    """`exp(-(y - y')^2 / (2 s^2))`, `[n, n]`; all ones where no two of the scores differ."""
    some = scores[:BANDWIDTH_SAMPLE]
    distances = torch.pdist(some[:, None])
    width = distances.median()
    width = torch.where(width == 0, distances.mean(), width)
    scaled = scores / torch.where(width == 0, 1.0, width)
    return torch.exp((scaled[:, None] - scaled) ** 2 / -2)
