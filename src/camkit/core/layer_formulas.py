"""Maps from several layers at once: pure functions.

Shapes as in `formulas`, for each of L layers, whose grids may differ: features `[B, C, h, w]`, gradients
`[T, B, C, h, w]`. Maps `[B, T, *size]` have the resolution of the input, and no sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.core import devices, formulas

LEAST = 0.1  # the weight of the least important layer that counts at all


def winsorcam(
    features: Sequence[Tensor], gradients: Sequence[Tensor], size: tuple[int, ...], percentile: float
) -> Tensor:
    """Winsor-CAM: `sum_l w_l U(N(relu(M_l)))`, `M_l` the Grad-CAM of layer `l`.

    N scales to [0, 1] from minimum to maximum, a constant map to 0; U enlarges linearly. `w_l` is the mean
    of the layer's weights, `mean_k a_k`, 0 if negative or `_noise`, and then `winsorised` over the layers.
    Wall et al. 2025, arXiv:2507.10846; its authors offer other importances, and use this one.
    """
    maps = [_scaled(formulas.gradcam(a, g).clamp(min=0)) for a, g in zip(features, gradients, strict=True)]
    importance = [torch.where(_noise(g), 0, g.flatten(2).mean(2)).t().to(maps[0]) for g in gradients]
    weights = winsorised(torch.stack(importance).clamp(min=0), percentile)
    sums: dict[tuple[int, ...], Tensor] = {}  # enlarging is linear: once for each grid
    for map, weight in zip(maps, weights, strict=True):
        grid = tuple(map.shape[2:])
        term = map * weight.reshape(*weight.shape, *[1] * len(grid))
        sums[grid] = sums[grid] + term if grid in sums else term
    return sum((_enlarged(total, size) for total in sums.values()), maps[0].new_zeros(()))


def winsorised(values: Tensor, percentile: float) -> Tensor:
    """Values `[L, ...]`: those above 0 clipped at their percentile over L, then scaled to [`LEAST`, 1].

    Where all that are above 0 are the same, they are 1. Zeros stay.
    """
    positive = values > 0
    among = devices.double(torch.where(positive, values, torch.nan))  # where `nanquantile` computes
    bound = among.nanquantile(percentile / 100, dim=0).to(values)
    clipped = torch.minimum(values, bound.nan_to_num())
    low = torch.where(positive, clipped, torch.inf).amin(0)
    span = clipped.amax(0) - low
    share = torch.where(span > 0, (clipped - low) / span, 1.0)
    return torch.where(positive, LEAST + (1 - LEAST) * share, 0.0)


def refinecam(features: Sequence[Tensor], gradients: Sequence[Tensor], size: tuple[int, ...]) -> Tensor:
    """RefineCAM: `prod_l U(N(relu(M_l)))`, `M_l` the Grad-CAM++ of layer `l`; N and U as in `winsorcam`.

    Domeniconi et al. 2026, arXiv:2605.14641, as its authors have it in pytorch-grad-cam, where the product
    is scaled to [0, 1] once more.
    """
    product = torch.ones((), device=features[0].device)
    for a, g in zip(features, gradients, strict=True):
        product = product * _enlarged(_scaled(formulas.gradcam_plus_plus(a, g).clamp(min=0)), size)
    return product


def _noise(gradients: Tensor) -> Tensor:
    """Whether a mean over `[T, B, C, ...]` is nothing but rounding, bool `[T, B]`.

    Behind a norm over channels (LayerNorm, GroupNorm) gradients add up to 0, and the sign of what is left
    would decide whether a layer counts.
    """
    flat, exact = gradients.flatten(2), torch.promote_types(gradients.dtype, torch.float32)
    sizes = torch.linalg.vector_norm(flat, 1, 2, dtype=exact) / flat.shape[2]
    noise: Tensor = flat.mean(2).abs() < formulas.negligible(gradients.dtype) * sizes
    return noise


def _scaled(maps: Tensor) -> Tensor:
    """Each of the maps `[B, T, ...]` from 0 to 1."""
    low, high = maps.flatten(2).aminmax(dim=2)
    low, span = (v.reshape(*v.shape, *[1] * (maps.ndim - 2)) for v in (low, high - low))
    return (maps - low) / torch.where(span == 0, 1.0, span)


def _enlarged(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """Maps `[B, T, ...]` linearly, to the input's resolution."""
    return F.interpolate(maps, size, mode=formulas.LINEAR[len(size)])
