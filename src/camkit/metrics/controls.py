"""Maps that know nothing of the model: what a metric says of them tells what its figures are worth.

Each takes inputs `[B, C, H, W]`, maps `[B, h, w]` of a real explainer and a seed, and gives maps like
those; only the controls in `OF_MAPS` look at the values.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.metrics.map_tools import uniform as drawn


def random(inputs: Tensor, maps: Tensor, seed: int = 0) -> Tensor:
    """Uniform values in [0, 1), other ones for every image, whatever the batch that it comes in."""
    own = [seed + zlib.crc32(image.float().cpu().numpy().tobytes()) for image in inputs]
    return torch.stack([drawn(tuple(maps.shape[1:]), number, maps) for number in own])


def centre(inputs: Tensor, maps: Tensor, seed: int = 0) -> Tensor:
    """A Gaussian in the middle, a quarter of the side wide: photographers centre what matters."""
    y, x = (torch.linspace(-1, 1, n + 2, device=maps.device)[1:-1] for n in maps.shape[-2:])
    bump = torch.exp(-2 * (y[:, None] ** 2 + x**2))
    return bump.to(maps.dtype).expand_as(maps).clone()


def uniform(inputs: Tensor, maps: Tensor, seed: int = 0) -> Tensor:
    """One everywhere: not defined where a metric ranks, the level of chance where it measures mass."""
    return torch.ones_like(maps)


def edges(inputs: Tensor, maps: Tensor, seed: int = 0) -> Tensor:
    """An edge detector: Sobel's gradient of the mean over the channels, averaged to the maps' size."""
    grey = F.pad(inputs.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=inputs.device)
    slopes = F.conv2d(grey, torch.stack([kernel, kernel.T])[:, None])
    return F.adaptive_avg_pool2d(slopes.norm(dim=1), (maps.shape[-2], maps.shape[-1])).to(maps.dtype)


def blurred(inputs: Tensor, maps: Tensor, seed: int = 0) -> Tensor:
    """The map under a 3 x 3 box: if a metric likes it as well, it does not see such detail."""
    padded = F.pad(maps[:, None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(padded, 3, stride=1)[:, 0]


CONTROLS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "random": random,
    "centre": centre,
    "uniform": uniform,
    "edges": edges,
    "blurred": blurred,
}
OF_MAPS = ("blurred",)
