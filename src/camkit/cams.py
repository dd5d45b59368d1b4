"""The mathematics: pure functions from features and gradients to raw maps.

Shapes, everywhere:
    features   [B, C, h, w]      what the target layer returned
    gradients  [T, B, C, h, w]   of T class scores with respect to the features
    map        [B, T, h, w]      raw: signed, neither rectified nor scaled

Reductions run in float32 at least, so a bfloat16 model loses nothing here.
"""

from __future__ import annotations

import torch
from torch import Tensor


def gradcam(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM without the final ReLU: `sum_k a_k A_k`, `a_k` the mean of the gradient over positions.

    Selvaraju et al. 2017, arXiv:1610.02391, equations 1 and 2.
    """
    return _weighted(_wide(features), _wide(gradients).mean((-2, -1)))


def gradcam_plus_plus(features: Tensor, gradients: Tensor) -> Tensor:
    """Grad-CAM++: `sum_k w_k A_k`, `w_k = sum a relu(G)`, `a = G^2 / (2 G^2 + G^3 sum A)`.

    Chattopadhyay et al. 2018, arXiv:1710.11063, equations 10 and 19. The factor `exp(score)` that the paper
    has in front is left out, as everywhere: it only scales the map, and overflows.
    """
    a, g = _wide(features), _wide(gradients)
    denominator = 2 * g**2 + g**3 * a.sum((-2, -1), keepdim=True)
    share = torch.where(denominator == 0, 0.0, g**2 / denominator)
    return _weighted(a, (share * g.clamp(min=0)).sum((-2, -1)))


def xgradcam(features: Tensor, gradients: Tensor) -> Tensor:
    """XGrad-CAM: `sum_k w_k A_k`, `w_k = sum G A / sum A`; a channel whose sum is zero has no weight.

    Fu et al. 2020, arXiv:2008.02312, equation 8.
    """
    a, g = _wide(features), _wide(gradients)
    total = a.sum((-2, -1))
    weights = torch.where(total == 0, 0.0, (g * a).sum((-2, -1)) / total)
    return _weighted(a, weights)


def hirescam(features: Tensor, gradients: Tensor) -> Tensor:
    """HiResCAM: `sum_k G_k A_k`, position by position.

    Draelos and Carin 2020, arXiv:2011.08891, equation 3.
    """
    return (_wide(gradients) * _wide(features)).sum(2).movedim(0, 1)


def gradcam_elementwise(features: Tensor, gradients: Tensor) -> Tensor:
    """`sum_k relu(G_k A_k)`: HiResCAM rectified channel by channel, as pytorch-grad-cam defines it."""
    return (_wide(gradients) * _wide(features)).clamp(min=0).sum(2).movedim(0, 1)


def layercam(features: Tensor, gradients: Tensor) -> Tensor:
    """LayerCAM: `sum_k relu(G_k) A_k`.

    Jiang et al. 2021, doi:10.1109/TIP.2021.3089943, equations 4 and 5.
    """
    return (_wide(gradients).clamp(min=0) * _wide(features)).sum(2).movedim(0, 1)


def eigengradcam(features: Tensor, gradients: Tensor) -> Tensor:
    """The first principal component of `G A` over the positions, signed like its mean over channels.

    Eigen-CAM (below) with class information, as pytorch-grad-cam defines it.
    """
    return _first_component((_wide(gradients) * _wide(features)).movedim(0, 1))


def eigencam(features: Tensor) -> Tensor:
    """Eigen-CAM: the first principal component of the features over the positions, `[B, 1, h, w]`.

    Muhammad and Yeasin 2020, arXiv:2008.00299; centred over the positions, as pytorch-grad-cam does it. A
    component has no sign of its own: it gets that of its covariance with the mean over channels.
    """
    return _first_component(_wide(features)[:, None])


def activations(features: Tensor) -> Tensor:
    """The mean of the features over the channels, `[B, 1, h, w]`: the same for every class.

    The first heat map of fast.ai's lesson 6, `acts.mean(0)`.
    """
    return _wide(features).mean(1, keepdim=True)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _weighted(features: Tensor, weights: Tensor) -> Tensor:
    """`sum_k w_k A_k` for weights `[T, B, C]`."""
    maps = torch.bmm(weights.movedim(0, 1), features.flatten(2))
    return maps.reshape(*maps.shape[:2], *features.shape[-2:])


def _first_component(values: Tensor) -> Tensor:
    """`[..., C, h, w]` to `[..., h, w]`: positions projected on their first principal axis."""
    points = values.flatten(-2).transpose(-1, -2).double()  # [..., h w, C]
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
    signed = torch.where(sound[..., 0], torch.where(side < 0, -component, component), torch.nan)
    return signed.reshape(*values.shape[:-3], *values.shape[-2:]).to(values.dtype)
