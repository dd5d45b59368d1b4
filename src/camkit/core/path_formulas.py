"""Attributions from gradients at many inputs near one: pure functions.

Shapes: gradients `[T, n, C, *size]` of T class scores at n inputs; steps `[n, C, *size]`, how far each of
them lies from where its path begins, by which its gradient counts; weights `[n]`; maps `[T, *size]`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# By how much of the change of the score a sum may be off, as the paper of integrated gradients advises.
OFF = 0.05
# Rounding of scores, in epsilons of the largest, that is no fault of the path.
ROUNDING = 16


def legendre(steps: int) -> tuple[Tensor, Tensor]:
    """Positions in (0, 1) and weights that sum to 1, float64 `[steps]` both: Gauss's quadrature.

    The integral of a polynomial of degree `2 steps - 1` is exact.
    """
    positions, weights = np.polynomial.legendre.leggauss(steps)
    return torch.from_numpy(positions + 1) / 2, torch.from_numpy(weights) / 2


def added(gradients: Tensor, steps: Tensor, weights: Tensor) -> Tensor:
    """`sum_n w_n sum_k G_nk d_nk`, `k` the channels: what n inputs add to maps `[T, *size]`.

    With steps from a baseline that is integrated gradients, Sundararajan et al. 2017, arXiv:1703.01365,
    equation 1, or over many baselines expected gradients, Erion et al. 2021, arXiv:1906.10670, equation 3.
    With steps of 1 it is SmoothGrad, Smilkov et al. 2017, arXiv:1706.03825, section 2.
    """
    weighted = steps * weights.reshape(-1, *[1] * (gradients.ndim - 2))
    return (gradients * weighted).sum((1, 2))


def off(maps: Tensor, scores: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """How far sums of maps `[T, *size]` are from the change of the scores `[T]` from `before`, `[T]`.

    Also whether that is more than `OFF` of the change, and than rounding.
    """
    change = scores - before
    gap = maps.flatten(1).sum(1) - change
    rounding = ROUNDING * torch.finfo(scores.dtype).eps * torch.maximum(scores.abs(), before.abs())
    return gap, gap.abs() > torch.maximum(OFF * change.abs(), rounding)
