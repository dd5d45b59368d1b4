"""What several metrics need: maps at another size, ranks of pixels, and which maps say anything."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(maps: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Maps `[B, h, w]` at `size` (height, width), bilinear as they are drawn."""
    if maps.shape[-2:] == tuple(size):
        return maps
    return F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def all_finite(maps: Tensor) -> Tensor:
    """bool `[B]`: all values are finite."""
    return torch.isfinite(maps).flatten(1).all(1)


def not_constant(maps: Tensor) -> Tensor:
    """bool `[B]`: finite and not constant, so that there is a more and a less relevant."""
    flat = maps.flatten(1)
    return all_finite(maps) & (flat.amax(1) > flat.amin(1))


def where_defined(defined: Tensor, values: Tensor) -> Tensor:
    """`values` where they are defined, otherwise NaN."""
    return torch.where(defined, values, torch.nan)


def positions(maps: Tensor) -> Tensor:
    """int64 `[B, h * w]`: how many pixels are more relevant; of equal ones the first is taken first."""
    order = maps.flatten(1).argsort(dim=1, descending=True, stable=True)
    ranks = torch.empty_like(order)
    return ranks.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))


def scaled(maps: Tensor) -> Tensor:
    """Min-max over each map to [0, 1]; NaN if it is constant."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return (maps - low) / (high - low)


def uniform(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Values in [0, 1), the same on every device."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).to(like)


def normal(shape: tuple[int, ...], seed: int, like: Tensor) -> Tensor:
    """Standard normal values, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(like)
