"""Filling removed pixels in from what is around them (ROAD's noisy linear imputation).

A removed pixel is the weighted mean of its neighbours, 1/6 for the four direct ones and 1/12 for the
diagonal ones, divided by the sum of the weights inside the image (Rong et al. 2022, arXiv:2202.00449): a
sparse linear system. It is solved by conjugate gradients for a whole batch at once. A preconditioner of one
multigrid cycle makes the number of steps independent of the size of the holes: about ten.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NOISE = 0.01
# Pixels that are solved together on the CPU: more of them would leave its cache.
CPU_PIXELS = 100_000


def impute(inputs: Tensor, known: Tensor, *, tolerance: float = 3e-4, limit: int = 200) -> Tensor:
    """`inputs` with every pixel that is not known filled in, without noise.

    inputs `[B, C, H, W]`; known bool `[B, H, W]`, with at least one known pixel in each image: NaN
    otherwise. tolerance: ends when the last correction of no pixel was greater; limit: of the number of
    steps.
    """
    on_cpu = inputs.device.type == "cpu"
    group = max(1, CPU_PIXELS // known[0].numel()) if on_cpu else len(inputs)
    parts = zip(torch.split(inputs, group), torch.split(known, group), strict=True)
    filled = torch.cat([_solve(x.float(), k[:, None], tolerance, limit) for x, k in parts])
    return torch.where(known.flatten(1).any(1)[:, None, None, None], filled, torch.nan).to(inputs.dtype)


def _solve(inputs: Tensor, known: Tensor, tolerance: float, limit: int) -> Tensor:
    """Preconditioned conjugate gradients, from zero; one step size for each image."""
    system, tiny = _System(~known), torch.finfo(inputs.dtype).tiny
    found = torch.zeros_like(inputs)
    residual = _neighbours(torch.where(known, inputs, 0.0)).mul_(system.missing)
    direction = step = system.precondition(residual)
    energy = _dot(residual, step)
    for _ in range(limit):
        image = system(direction)
        length = energy / _dot(direction, image).clamp(min=tiny)
        found.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        if float((length * direction.abs().amax((1, 2, 3), keepdim=True)).max()) <= tolerance:
            break
        step = system.precondition(residual)
        before, energy = energy, _dot(residual, step)
        direction = torch.addcmul(step, energy / before.clamp(min=tiny), direction)
    return torch.where(known, inputs, found)


class _System:
    """`s x - sum of the weighted neighbours` on the missing pixels; symmetric, positive definite."""

    def __init__(self, missing: Tensor) -> None:
        self.missing = missing.float()  # [B, 1, H, W]
        self.weights = _neighbours(torch.ones_like(self.missing[:1]))
        self.inverse = self.missing / self.weights
        self.coarse: _System | None = None
        if max(missing.shape[-2:]) > 2:
            share = F.avg_pool2d(self.missing, 2, ceil_mode=True, count_include_pad=False)
            self.coarse = _System(share == 1)  # where all four are missing

    def __call__(self, x: Tensor) -> Tensor:
        return torch.sub(self.weights * x, _neighbours(x)).mul_(self.missing)

    def precondition(self, residual: Tensor) -> Tensor:
        """One multigrid cycle: Jacobi, the same system on half the resolution, Jacobi.

        From zero, a Jacobi step is `inverse * residual` and leaves the residual `missing * neighbours`.
        """
        x = self.inverse * residual
        if self.coarse is not None:
            height, width = residual.shape[-2:]
            left = _neighbours(x).mul_(self.missing)
            pooled = F.avg_pool2d(left, 2, ceil_mode=True, divisor_override=1)
            smooth = F.interpolate(self.coarse.precondition(pooled), scale_factor=2, mode="nearest")
            x = x.addcmul_(self.missing, smooth[..., :height, :width])
        return _neighbours(x).add_(residual).mul_(self.inverse)


def _neighbours(x: Tensor) -> Tensor:
    """Twelve times the weighted sum of the eight neighbours; outside is zero.

    As rows times columns, `(1 2 1) x (1 2 1)` less the middle: far quicker than a convolution.
    """
    rows = 2 * x
    rows[..., 1:, :] += x[..., :-1, :]
    rows[..., :-1, :] += x[..., 1:, :]
    both = 2 * rows
    both[..., 1:] += rows[..., :-1]
    both[..., :-1] += rows[..., 1:]
    return both.sub_(x, alpha=4)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a.flatten(1)[:, None], b.flatten(1)[:, :, None])[..., None]
