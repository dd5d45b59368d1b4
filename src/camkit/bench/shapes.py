"""Images whose evidence is known: one of four shapes on a texture, beside a bar that means nothing.

Nothing is downloaded: everything is drawn from a seed. The class is the shape alone; place, size, turn,
colour and texture are random, and a bar of the same kind of colour is in every image, so a map that marks
whatever stands out is caught. `train` trains a small classifier on them within seconds on one core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel
from camkit.images.preprocess import Preprocess

CLASSES = ("disc", "ring", "square", "cross")
SIZE = 64
MEAN, STD = 0.5, 0.25


@dataclass(frozen=True)
class Shapes:
    """inputs: normalised float32 `[B, 3, 64, 64]`; targets: int64 `[B]`; truth: bool `[B, 64, 64]`.

    The truth of a ring includes its hole, which tells it from a disc.
    """

    inputs: Tensor
    targets: Tensor
    truth: Tensor


def draw(count: int, seed: int = 0) -> Shapes:
    """`count` images, equally many of each class, on the CPU; the same for the same count and seed."""
    g = torch.Generator().manual_seed(seed)

    def random(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=g)

    targets = torch.arange(count) % len(CLASSES)
    # The shape lies in one half of the image, the bar in the other; then both may be mirrored.
    x, y, radius = random(15, 19), random(14, SIZE - 14), random(9, 12)
    bar_x, bar_y = random(43, 49), random(14, SIZE - 14)
    turned = random(0, math.pi / 2), random(0, math.pi)
    shape, evidence = _shape(targets, *_moved(x, y, turned[0]), radius[:, None, None])
    along, across = _moved(bar_x, bar_y, turned[1])
    bar = (along.abs() < 11) & (across.abs() < 3)
    mirrored = torch.rand(count, generator=g) < 0.5
    shape, evidence, bar = (
        torch.where(mirrored[:, None, None], mask.flip(2), mask) for mask in (shape, evidence, bar)
    )

    coarse, fine = random(0, 1, 3, 9, 9), random(-0.08, 0.08, 3, SIZE, SIZE)
    pixels = 0.25 + 0.3 * F.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear") + fine
    for mask in (bar, shape):
        pixels = torch.where(mask[:, None], random(0.6, 1, 3, 1, 1) + fine, pixels)
    return Shapes((pixels - MEAN) / STD, targets, evidence)


def train(seed: int = 0, *, steps: int = 300, batch: int = 32, device: str = "cpu") -> LoadedModel:
    """A small classifier of the shapes, in eval mode; the global random state is untouched."""
    with torch.random.fork_rng([]), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        # Channels last: a fifth quicker on a CPU.
        module = _network().to(device).to(memory_format=torch.channels_last)
        pool = draw(32 * batch, seed=seed + 1)
        inputs = pool.inputs.to(device, memory_format=torch.channels_last)
        targets = pool.targets.to(device)
        optimiser = torch.optim.Adam(module.parameters())
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=0.01, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(pool.inputs), (batch,))
            loss = F.cross_entropy(module(inputs[chosen]), targets[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
    module.to(memory_format=torch.contiguous_format)
    preprocess = Preprocess(size=(SIZE, SIZE), mean=(MEAN,) * 3, std=(STD,) * 3)
    return LoadedModel(module.eval(), CLASSES, preprocess, name="shapes", default_layer="features")


def _network() -> nn.Module:
    features: list[nn.Module] = []
    for inside, outside, stride in ((3, 12, 2), (12, 24, 2), (24, 24, 1), (24, 24, 1)):
        convolution = nn.Conv2d(inside, outside, 3, stride=stride, padding=1, bias=False)
        features += [convolution, nn.BatchNorm2d(outside), nn.ReLU()]
    module = nn.Sequential()
    module.add_module("features", nn.Sequential(*features))
    module.add_module("pool", nn.AdaptiveAvgPool2d(1))
    module.add_module("flatten", nn.Flatten())
    module.add_module("head", nn.Linear(24, len(CLASSES)))
    return module


def _moved(x: Tensor, y: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates `[B, 64, 64]` about a centre, rotated."""
    grid = torch.arange(SIZE) + 0.5
    dx, dy = grid - x[:, None, None], grid[:, None] - y[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * dx + sin * dy, cos * dy - sin * dx


def _shape(targets: Tensor, u: Tensor, v: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """bool `[B, 64, 64]`: the painted pixels of each image's shape, and the same with a ring's hole."""
    far, a, b = (u**2 + v**2).sqrt(), u.abs(), v.abs()
    every = (
        far < radius,
        (far < radius) & (far > 0.55 * radius),
        torch.maximum(a, b) < 0.85 * radius,
        (torch.minimum(a, b) < 0.3 * radius) & (torch.maximum(a, b) < radius),
    )
    painted = torch.stack(every)[targets, torch.arange(len(targets))]
    return painted, painted | ((targets == CLASSES.index("ring"))[:, None, None] & every[0])
