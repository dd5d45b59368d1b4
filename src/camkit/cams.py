"""The mathematics: pure functions from features and gradients to raw maps.

Shapes, everywhere:
    features   [B, C, h, w]      what the target layer returned
    gradients  [T, B, C, h, w]   of T class scores with respect to the features
    map        [B, T, h, w]      raw: signed, neither rectified nor scaled

Reductions run in float32 at least, so a bfloat16 model loses nothing here.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Reduction = Literal["sum", "mean"]


def gradcam(features: Tensor, gradients: Tensor, *, reduction: Reduction = "sum") -> Tensor:
    """Grad-CAM without the final ReLU: `sum_k a_k A_k`, `a_k` the mean of the gradient over positions.

    Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2. `mean` divides by the number of channels:
    the number that fast.ai's lesson 6 computes.
    """
    weights = _wide(gradients).mean((-2, -1)).movedim(0, 1)  # [B, T, C]
    maps = torch.bmm(weights, _wide(features).flatten(2)).reshape(*weights.shape[:2], *features.shape[-2:])
    return maps / features.shape[1] if reduction == "mean" else maps


def activations(features: Tensor, *, reduction: Reduction = "mean") -> Tensor:
    """The mean (or sum) of the features over the channels, `[B, 1, h, w]`: the same for every class.

    The first heat map of fast.ai's lesson 6, `acts.mean(0)`.
    """
    wide = _wide(features)
    return wide.sum(1, keepdim=True) if reduction == "sum" else wide.mean(1, keepdim=True)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
