"""The mathematics: pure functions from features, gradients and scores to raw maps.

Shapes, everywhere; for signals and volumes `[l]` and `[d, h, w]` stand in place of `[h, w]`:
    features   [B, C, h, w]      what the target layer returned
    gradients  [T, B, C, h, w]   of T class scores with respect to the features; [T, B, C, 1, 1] where
                                 they are the same at all positions
    scores     [B, n]            of the model; targets int64 [B, T] are the classes explained
    map        [B, T, h, w]      raw: signed, neither rectified nor scaled

Reductions run in float32 at least, so a bfloat16 model loses nothing here.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.core.devices import double

LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}  # interpolation, by the number of dimensions


def gradcam(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM without the final ReLU: `sum_k a_k A_k`, `a_k` the mean of the gradient over positions.

    Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2.
    """
    return _weighted(_float(features), _float(gradients).mean(_positions(features)))


def gradcam_plus_plus(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++: `sum_k w_k A_k`, `w_k = sum a relu(G)`, `a = G^2 / (2 G^2 + G^3 sum A)`.

    Chattopadhyay et al. 2018, arXiv:1710.11063, equations 10 and 19. The leading factor `exp(score)` of the
    paper is left out, as everywhere: it only scales the map, and overflows.
    """
    a, g, space = _float(features), _float(gradients), _positions(features)
    denominator = 2 * g**2 + g**3 * a.sum(space, keepdim=True)
    share = torch.where(denominator == 0, 0.0, g**2 / denominator)
    return _weighted(a, (share * g.clamp(min=0)).mean(space) * prod(features.shape[2:]))


def xgradcam(features: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM: `sum_k w_k A_k`, `w_k = sum G A / sum A`; a channel whose sum is zero has no weight.

    Fu et al. 2020, arXiv:2008.02312, equation 8. Where features are signed, as without a ReLU, a sum may
    nearly cancel, and rounding decides the weight.
    """
    a, g, space = _float(features), _float(gradients), _positions(features)
    total = a.sum(space)
    weights = torch.where(total == 0, 0.0, (g * a).sum(space) / total)
    return _weighted(a, weights)


def hirescam(features: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM: `sum_k G_k A_k`, position by position.

    Draelos and Carin 2020, arXiv:2011.08891, equation 3.
    """
    return (_float(gradients) * _float(features)).sum(2).movedim(0, 1)


def gradcam_elementwise(features: Tensor, gradients: Tensor) -> Tensor:
    """`sum_k relu(G_k A_k)`: HiResCAM rectified channel by channel, as pytorch-grad-cam defines it."""
    return (_float(gradients) * _float(features)).clamp(min=0).sum(2).movedim(0, 1)


def layercam(features: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: `sum_k relu(G_k) A_k`.

    Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, equations 4 and 5.
    """
    return (_float(gradients).clamp(min=0) * _float(features)).sum(2).movedim(0, 1)


def shapleycam(features: Tensor, gradients: Tensor, curvatures: Tensor) -> Tensor:
    """ShapleyCAM: `sum_k a_k A_k`, `a_k` the mean over positions of `G - H A / 2`, `H` the Hessian.

    curvatures: `H A`, shaped like the gradients. The Shapley value of a feature to second order.
    Cai 2025, arXiv:2501.06261, with the score of the class as its utility.
    """
    return gradcam(features, _float(gradients) - _float(curvatures) / 2)


def eigengradcam(features: Tensor, gradients: Tensor) -> Tensor:
    """The first principal component of `G A` over the positions, signed like its mean over channels.

    Eigen-CAM (below) with class information, as pytorch-grad-cam defines it. Where features are signed, as
    without a ReLU, the component may hardly covary with the mean: its sign is then all but arbitrary.
    """
    terms = (_float(gradients) * _float(features)).movedim(0, 1)
    return _first_component(terms, features.ndim - 2, features.dtype)


def eigencam(features: Tensor) -> Tensor:
    """Eigen-CAM: the first principal component of the features over the positions, `[B, 1, h, w]`.

    Muhammad and Yeasin 2020, arXiv:2008.00299; centred over the positions, as pytorch-grad-cam does it. A
    component has no sign of its own: it gets that of its covariance with the mean over channels, or where
    that is only rounding, as behind a LayerNorm without weights, the one by which few positions stand out.
    """
    return _first_component(_float(features)[:, None], features.ndim - 2, features.dtype)


def activations(features: Tensor) -> Tensor:
    """The mean of the features over the channels, `[B, 1, h, w]`: the same for every class.

    The first heat map of fast.ai's lesson 6, `acts.mean(0)`.
    """
    return _float(features).mean(1, keepdim=True)


def contrast(scores: Tensor, targets: Tensor, alpha: float, comparisons: int) -> Tensor:
    """What Finer-CAM explains, `[B, T]`: `y_c - alpha mean_d y_d` over the classes `d` most like `c`.

    Those are the `comparisons` classes whose scores are nearest to that of `c`, or all if there are fewer.
    Zhang et al. 2025, arXiv:2501.11309; the map is the Grad-CAM of this.
    """
    scores = _float(scores)  # in bfloat16, neighbours and means put a map off by 0.17 of its peak
    count, similar = min(comparisons, scores.shape[1] - 1), []
    for column in torch.split(targets, 1, dim=1):  # one by one: [B, T, n] may be large
        distance = (scores - scores.gather(1, column)).detach().abs()
        distance.scatter_(1, column, torch.inf)  # the class itself comes last
        similar.append(distance.topk(count, dim=1, largest=False).indices)
    near = scores.gather(1, torch.cat(similar, dim=1)).reshape(*targets.shape, count)
    return scores.gather(1, targets) - alpha * near.mean(2)


# --- doubts ---------------------------------------------------------------------------------------

# How large a sum must be, relative to its terms and in epsilons of their type, to be more than rounding.
# Where the true sum is zero, before a LayerNorm over channels, 0.5 to 15 were seen; 1e5 where it is not.
# Half precision has no such margin: there a smaller multiple is noise.
NOISE = {torch.float32: 64.0, torch.float64: 64.0, torch.bfloat16: 2.0, torch.float16: 2.0}
NOISY = (
    "is only rounding noise, as before a LayerNorm over channels: its terms cancel; choose the layer "
    "behind that, or another method"
)
SAMPLE = 1024  # positions whose terms are examined


def negligible(dtype: torch.dtype) -> float:
    """The share of the mean size of its terms below which a mean over channels is only rounding.

    Measured at 53 convolutions and fewer: noise is at most 4e-8 in float32 and 1 to 3 % of an eps in half
    precision; means of gradients behind batch norms are 1e-3 and more, the smallest single one 3e-5. Of
    features noise is 1e-9 behind a LayerNorm without weights, and 7e-5 with weights of 1 +- 0.02.
    """
    return max(1e-6, 0.03 * torch.finfo(dtype).eps)


def remainder(maps: Tensor, formula: Callable[..., Tensor], features: Tensor, gradients: Tensor) -> Tensor:
    """How much remains of the terms of maps after they cancel, `[B]`, for the first of the T classes.

    The largest value of `maps`, which `formula` made of features and gradients, over that of their
    absolute values; 0 where there are none. A LayerNorm over the channels right behind a layer makes
    `sum_k G_k A_k` zero at every position, since the score does not change with the scale of a position.
    """
    largest, terms = _extent(maps, formula, features, gradients)
    return torch.where(terms == 0, 0.0, largest / terms)


def is_noise(maps: Tensor, formula: Callable[..., Tensor], features: Tensor, gradients: Tensor) -> Tensor:
    """Which images have a map that is not zero, but only rounding noise, bool `[B]`."""
    largest, terms = _extent(maps, formula, features, gradients)
    return (largest > 0) & (largest <= terms * (NOISE[features.dtype] * torch.finfo(features.dtype).eps))


def _extent(
    maps: Tensor, formula: Callable[..., Tensor], features: Tensor, gradients: Tensor
) -> tuple[Tensor, Tensor]:
    """The largest absolute value of each map, and of a sample of its sums of absolute terms, both `[B]`."""
    step = max(1, round((prod(features.shape[2:]) / SAMPLE) ** (1 / (features.ndim - 2))))
    sample: Any = (..., *[slice(None, None, step)] * (features.ndim - 2))
    terms = formula(features[sample].abs(), gradients[:1][sample].abs())
    return maps[:, 0].abs().flatten(1).amax(1), terms.flatten(1).amax(1)


# --- perturbation: weights from scores of other features or inputs --------------------------------


def ablationcam(features: Tensor, scores: Tensor, ablated: Tensor) -> Tensor:
    """Ablation-CAM: `sum_k (y - y_k) A_k`, `y_k` the score without channel `k`.

    scores: of the explained classes, `[B, T]`; ablated: the same without one channel, `[T, B, C]`.
    Desai and Ramaswamy 2020, doi:10.1109/WACV45572.2020.9093360, who divide the drop by `y`. That is left
    out: it scales the map, flips it where the score is negative and fails where it is zero.
    """
    return _weighted(_float(features), _float(scores).t()[..., None] - _float(ablated))


def ablationcam_affine(features: Tensor, gradients: Tensor) -> Tensor:
    """Ablation-CAM where the scores are affine in the features: without channel `k` they lose `G_k A_k`.

    Behind a global mean and a linear layer with weights `W` that is `W_ck mean(A_k)`.
    """
    a = _float(features)
    return _weighted(a, (_float(gradients) * a).sum(_positions(features)))


def scorecam(features: Tensor, masked: Tensor) -> Tensor:
    """Score-CAM: `sum_k a_k A_k`, `a` the softmax over channels of the scores `masked` `[T, B, C]`.

    Those are of the input seen through channel `k`. Wang et al. 2020, arXiv:1910.01279, algorithm 1, which
    also subtracts a baseline, to which the softmax is blind.
    """
    return _weighted(_float(features), _float(masked).softmax(-1))


def masks(channels: Tensor, size: tuple[int, ...]) -> Tensor:
    """Score-CAM's masks `[n, 1, *size]` of channels `[n, h, w]`: enlarged, then scaled to [0, 1] each.

    Wang et al. 2020, arXiv:1910.01279. A constant channel lets nothing through.
    """
    large = F.interpolate(_float(channels)[:, None], size, mode=LINEAR[len(size)])
    low, high = large.flatten(1).aminmax(dim=1)
    low, span = (v.reshape(-1, *[1] * (large.ndim - 1)) for v in (low, high - low))
    return (large - low) / torch.where(span == 0, 1.0, span)


# --- shared steps ---------------------------------------------------------------------------------


def _positions(features: Tensor) -> tuple[int, ...]:
    """The dimensions of the positions, counted from the end, so they fit gradients too."""
    return tuple(range(2 - features.ndim, 0))


def _float(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """`sum_k w_k A_k` for weights `[T, B, C]`."""
    with torch.autocast(features.device.type, enabled=False):  # which would sum in half precision
        maps = torch.bmm(weights.movedim(0, 1), features.flatten(2))
    return maps.reshape(*maps.shape[:2], *features.shape[2:])


def _first_component(values: Tensor, dimensions: int, dtype: torch.dtype) -> Tensor:
    """`[..., C, h, w]` to `[..., h, w]`: positions projected on their first principal axis.

    dtype: in which the values were computed.
    """
    points = double(values.flatten(-dimensions).transpose(-1, -2))  # [..., h w, C]
    sizes = points.abs().mean(-1)
    points = points - points.mean(-2, keepdim=True)
    sound = points.isfinite().all(-1, keepdim=True).all(-2, keepdim=True)
    points = torch.where(sound, points, 0.0)  # the solver raises on NaN
    if points.shape[-2] <= points.shape[-1]:  # by the smaller of the two matrices: 49 x 49 for 7 x 7
        strengths, axes = torch.linalg.eigh(points @ points.transpose(-1, -2))
        component = axes[..., -1] * strengths[..., -1:].clamp(min=0).sqrt()
    else:
        axes = torch.linalg.eigh(points.transpose(-1, -2) @ points).eigenvectors
        component = (points @ axes[..., -1:]).squeeze(-1)
    side = (component * points.mean(-1)).sum(-1, keepdim=True)
    noise = side.abs() < negligible(dtype) * (component.abs() * sizes).sum(-1, keepdim=True)
    side = torch.where(noise, component.pow(3).sum(-1, keepdim=True), side)
    signed = torch.where(sound[..., 0], torch.where(side < 0, -component, component), torch.nan)
    return signed.reshape(*values.shape[: -dimensions - 1], *values.shape[-dimensions:]).to(values)
