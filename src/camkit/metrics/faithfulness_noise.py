"""Whether maps tell what the model uses: small changes of the input.

Infidelity and max-sensitivity; what they have in common is said in `evaluation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from camkit.contracts.options import option
from camkit.contracts.scores import ScoreKind
from camkit.core.devices import double
from camkit.metrics.evaluation import CHUNK, FaithfulnessMetric, Model, ScoreOptions, evaluate
from camkit.metrics.map_tools import all_finite, resized, uniform, where_defined


def infidelity(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    samples: int = 64,
    side: float = 0.25,
    seed: int = 0,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """`E (b I.M - (f(x) - f(x without I)))^2`, I a random square set to zero: `[B]`, 0 is best.

    0 or more, lower is better. I.M is the sum of the map over the square, and b >= 0 the factor that
    suits each image best, because maps have no unit. side: of the square, as a share of the shorter side;
    the squares are the same for every image. NaN if the map is zero everywhere or not finite. Yeh et al.
    2019, arXiv:1901.09392, with its scaling and square removal.
    """
    height, width = inputs.shape[-2:]
    length = max(1, round(side * min(height, width)))
    corner = uniform((samples, 2), seed, inputs.float())
    top = (corner[:, 0] * (height - length + 1)).long()[:, None]
    left = (corner[:, 1] * (width - length + 1)).long()[:, None]
    y, x = (torch.arange(n, device=inputs.device) for n in (height, width))
    inside_y, inside_x = (y >= top) & (y < top + length), (x >= left) & (x < left + length)
    squares = inside_y[:, :, None] & inside_x[:, None, :]  # [S, H, W]

    def change(step: Tensor, image: Tensor) -> Tensor:  # step 0 is the input itself
        square = squares[(step - 1).clamp(min=0)] & (step > 0)[:, None, None]
        return torch.where(square[:, None], 0.0, inputs[image])

    found = double(evaluate(f, targets, change, samples + 1, chunk, logits, scores))
    drops = found[:, :1] - found[:, 1:]
    full = double(resized(maps, (height, width)))
    foretold = full.flatten(1) @ double(squares.flatten(1)).T
    energy = (foretold**2).mean(1)
    factor = ((foretold * drops).mean(1) / energy).clamp(min=0)
    error = ((factor[:, None] * foretold - drops) ** 2).mean(1)
    return where_defined(all_finite(maps) & (energy > 0).to(maps.device), error.to(maps))


def max_sensitivity(
    explain: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    samples: int = 10,
    radius: float = 0.02,
    seed: int = 0,
) -> Tensor:
    """Largest change of the map, `|M(x + d) - M(x)| / |M(x)|`, for noise d of at most `radius`: `[B]`.

    0 or more, lower is better, whatever the unit of the maps. explain: from inputs and targets to maps
    `[B, h, w]`. The noise is uniform and the same for every image. NaN if the map is zero everywhere or not
    finite. Yeh et al. 2019, arXiv:1901.09392.
    """
    noise = radius * (2 * uniform((samples, *inputs.shape[1:]), seed, inputs) - 1)
    # In units of the peak: squares of small values would vanish in the norm, those of large ones overflow.
    peak = maps.abs().flatten(1).amax(1, keepdim=True)
    original = maps.flatten(1) / peak
    changes = [(explain(inputs + d, targets).flatten(1) / peak - original).norm(dim=1) for d in noise]
    largest = torch.stack(changes).amax(0) / original.norm(dim=1)
    return where_defined(all_finite(maps) & (peak[:, 0] > 0), largest)


@dataclass(frozen=True)
class InfidelityOptions(ScoreOptions):
    """Options of the infidelity."""

    samples: int = option(64, help="random squares", min=1)
    side: float = option(0.25, help="of a square, as a share of the shorter side", min=0.0, max=1.0)


class Infidelity(FaithfulnessMetric):
    """`infidelity`."""

    summary = "Squared error of the drops that the map foretells, for random squares set to zero"
    direction = "lower"
    range = (0.0, math.inf)
    paper = "Yeh et al. 2019, arXiv:1901.09392"
    Options: ClassVar[type] = InfidelityOptions
    function = staticmethod(infidelity)


@dataclass(frozen=True)
class SensitivityOptions:
    """Options of the sensitivity."""

    samples: int = option(10, help="noisy copies of each input", min=1)
    radius: float = option(0.02, help="largest noise, in units of the normalised input", min=0.0)


class MaxSensitivity(FaithfulnessMetric):
    """`max_sensitivity`."""

    summary = "Largest relative change of the map under noise that nobody sees"
    direction = "lower"
    range = (0.0, math.inf)
    needs = ("explain",)
    paper = "Yeh et al. 2019, arXiv:1901.09392"
    Options: ClassVar[type] = SensitivityOptions
    function = staticmethod(max_sensitivity)
