"""Whether maps point at the evidence: against boolean masks `[B, H, W]`, and on mosaics of several images.

Maps are brought to the size of the truth as they are drawn. An empty truth, a map that is not finite and
one without what the score counts (a maximum, positive mass) give NaN, which is no hit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.contracts.options import option
from camkit.contracts.scores import ScoreKind, meaning, probabilities, squashed
from camkit.core.devices import double
from camkit.errors import UsageError
from camkit.metrics.function_metric import FunctionMetric
from camkit.metrics.map_tools import all_finite, not_constant, resized, where_defined

USUAL = 224  # pixels of the shorter side of what models are shown


def pointing_game(maps: Tensor, truth: Tensor, tolerance: int = 15) -> Tensor:
    """Whether the maximum lies within `tolerance` pixels of the truth: `[B]`, 0 or 1, higher is better.

    If several pixels share the maximum, the share of them that do. Zhang et al. 2016, arXiv:1608.00507.
    """
    full = resized(maps, truth.shape[-2:])
    top = full == full.amax((-2, -1), keepdim=True)
    hits = (top & _grown(truth, tolerance)).sum((-2, -1)) / top.sum((-2, -1))
    return where_defined(_varied(maps, full) & _any(truth), hits.to(maps.dtype))


def energy_pointing_game(maps: Tensor, truth: Tensor) -> Tensor:
    """Share of the positive mass inside the truth: `[B]`, 0 to 1, higher is better.

    Chance is the share of the truth in the image. Wang et al. 2020 (Score-CAM), arXiv:1910.01279.
    """
    mass = double(resized(maps, truth.shape[-2:]).clamp(min=0))
    total = mass.sum((-2, -1))
    inside = (mass * truth.to(mass.device)).sum((-2, -1)) / total
    positive = (total > 0).to(maps.device)
    return where_defined(all_finite(maps) & positive & _any(truth), inside.to(maps))


def relevance_rank(maps: Tensor, truth: Tensor) -> Tensor:
    """Of the |truth| highest pixels the share inside the truth: `[B]`, 0 to 1, higher is better.

    Equal pixels of which only some are among the highest count in proportion. Arras et al. 2022,
    arXiv:2003.07258.
    """
    full, inside = resized(maps, truth.shape[-2:]).flatten(1), truth.flatten(1)
    count = inside.sum(1)
    ordered = full.sort(dim=1, descending=True).values
    cut = ordered.gather(1, (count - 1).clamp(min=0)[:, None])
    above, tied = full > cut, full == cut
    left = (count - above.sum(1)) / tied.sum(1).clamp(min=1)
    share = ((above & inside).sum(1) + left * (tied & inside).sum(1)) / count
    return where_defined(_varied(maps, full) & _any(truth), share.to(maps.dtype))


def _varied(maps: Tensor, full: Tensor) -> Tensor:
    """Whether maps are not constant, nor become so at the size `full` that they are compared at."""
    return not_constant(maps) & not_constant(full).to(maps.device)


def iou(maps: Tensor, truth: Tensor, threshold: float = 0.2) -> Tensor:
    """Intersection over union of the truth and the pixels of at least `threshold` times the maximum.

    `[B]`, 0 to 1, higher is better; NaN too if nothing in the map is positive. The threshold is that of
    Zhou et al. 2016, arXiv:1512.04150.
    """
    full = resized(maps, truth.shape[-2:])
    peak = full.amax((-2, -1), keepdim=True)
    found = full >= threshold * peak
    share = (found & truth).sum((-2, -1)) / (found | truth).sum((-2, -1))
    return where_defined(_varied(maps, full) & _any(truth) & (peak[:, 0, 0] > 0), share.to(maps.dtype))


def _any(truth: Tensor) -> Tensor:
    return truth.flatten(1).any(1)


def _grown(truth: Tensor, radius: int) -> Tensor:
    """Every pixel within `radius` of the truth: what is near enough beside it, in each row around."""
    height, width = truth.shape[-2:]
    counts = F.pad(F.pad(truth, (radius, radius)).int().cumsum(-1), (1, 0))
    found = torch.zeros_like(truth)
    for away in range(min(radius, height - 1) + 1):
        half = math.isqrt(radius**2 - away**2)
        first, last = radius - half, radius + half + 1
        near = counts[..., last : last + width] > counts[..., first : first + width]
        found[..., away:, :] |= near[..., : height - away, :]
        found[..., : height - away, :] |= near[..., away:, :]
    return found


# --- mosaics --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mosaics:
    """Mosaics of `n * n` images of different classes, each once for every class that is in it.

    inputs `[M, C, n H, n W]`; targets int64 `[M]`, the class to explain; truth bool `[M, n H, n W]`, its
    cell. The score is `energy_pointing_game`, and chance is `1 / n ** 2`.
    """

    inputs: Tensor
    targets: Tensor
    truth: Tensor


def mosaics(
    f: Callable[[Tensor], Tensor],
    inputs: Tensor,
    *,
    n: int = 2,
    confidence: float = 0.99,
    count: int = 8,
    seed: int = 0,
    scores: ScoreKind = "auto",
) -> Mosaics:
    """The grid pointing game: up to `count` mosaics of images that the model is sure of.

    f: from inputs `[B, C, H, W]` to scores `[B, n_classes]` of the kind `scores`
    (`camkit.contracts.scores`); it must take images `n` times as large. The class is the
    predicted one, at `confidence` or more. Boehle et al. 2021, arXiv:2104.00032. Raises `UsageError` if
    fewer than `n * n` classes are recognised so surely, or if there are no probabilities.
    """
    with torch.no_grad():
        found = f(inputs).float()
    likely = probabilities(found, meaning(scores, found, lambda: squashed(f, inputs[:1])))
    if likely is None:
        raise UsageError("a mosaic needs probabilities, and the scores of this model are none")
    sure, classes = likely.max(1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator).tolist()
    queues: dict[int, list[int]] = {}
    for i in order:
        if float(sure[i]) >= confidence:
            queues.setdefault(int(classes[i]), []).append(i)
    if len(queues) < n * n:
        raise UsageError(
            f"a mosaic of {n} x {n} needs images of {n * n} classes that the model recognises with "
            f"{confidence:.0%} or more; there are {len(queues)}"
        )
    chosen: list[list[int]] = []
    while len(queues) >= n * n and len(chosen) < count:
        fullest = sorted(queues, key=lambda c: -len(queues[c]))[: n * n]
        fullest = [fullest[i] for i in torch.randperm(n * n, generator=generator).tolist()]
        chosen.append([queues[c].pop() for c in fullest])
        queues = {c: queue for c, queue in queues.items() if queue}
    tiles = torch.tensor(chosen, device=inputs.device)  # [G, n * n]
    pictures = torch.stack([mosaic(inputs[row], n) for row in tiles])
    return Mosaics(
        inputs=pictures.repeat_interleave(n * n, dim=0),
        targets=classes[tiles].flatten(),
        truth=cells(n, inputs.shape[-2:]).to(inputs.device).repeat(len(tiles), 1, 1),
    )


def mosaic(tiles: Tensor, n: int) -> Tensor:
    """`[n * n, C, H, W]` in reading order as one image `[C, n H, n W]`."""
    _, c, h, w = tiles.shape
    return tiles.view(n, n, c, h, w).permute(2, 0, 3, 1, 4).reshape(c, n * h, n * w)


def cells(n: int, size: tuple[int, int] | torch.Size) -> Tensor:
    """bool `[n * n, n H, n W]`: the cell of each tile, in reading order."""
    height, width = size
    eye = torch.eye(n * n, dtype=torch.bool).view(n * n, n, n)
    return eye.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)


def place(scores: Tensor, targets: Tensor) -> Tensor:
    """int64 `[B]`: how many classes score higher than the target; 0 is the model's first choice.

    A mosaic on which the model no longer sees the class says little about the explainer.
    """
    return (scores > scores.gather(1, targets[:, None])).sum(1)


# --- as plugins --------------------------------------------------------------------


class _Localisation(FunctionMetric):
    category = "localisation"
    needs = ("truth",)


@dataclass(frozen=True)
class PointingOptions:
    """Options of the pointing game."""

    tolerance: int = option(
        15, help=f"pixels by which the maximum may miss, of {USUAL}; of other sizes as large a part", min=0
    )


def _within_a_part(maps: Tensor, truth: Tensor, tolerance: int) -> Tensor:
    """As `pointing_game`; on 64 pixels, 15 would make nearly every place a hit."""
    return pointing_game(maps, truth, round(tolerance * min(truth.shape[-2:]) / USUAL))


class PointingGame(_Localisation):
    """`pointing_game`, with the tolerance as a part of what the model sees."""

    summary = "Share of images whose map is highest on the object, or within 15 of 224 pixels of it"
    paper = "Zhang et al. 2016, arXiv:1608.00507, which allows 15 pixels of the photograph"
    Options: ClassVar[type] = PointingOptions
    function = staticmethod(_within_a_part)


class EnergyPointingGame(_Localisation):
    """`energy_pointing_game`."""

    summary = "Share of the map's positive mass on the object"
    paper = "Wang et al. 2020, arXiv:1910.01279"
    function = staticmethod(energy_pointing_game)


class RelevanceRank(_Localisation):
    """`relevance_rank`."""

    summary = "Share on the object of as many of the highest pixels as it has"
    paper = "Arras et al. 2022, arXiv:2003.07258"
    function = staticmethod(relevance_rank)


@dataclass(frozen=True)
class IouOptions:
    """Options of the intersection over union."""

    threshold: float = option(0.2, help="of the map's maximum, from which a pixel counts", min=0.0, max=1.0)


class Iou(_Localisation):
    """`iou`."""

    summary = "Intersection over union of the object and the high part of the map"
    paper = "Zhou et al. 2016, arXiv:1512.04150"
    Options: ClassVar[type] = IouOptions
    function = staticmethod(iou)
