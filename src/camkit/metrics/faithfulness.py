"""Whether maps tell what the model uses: pixels are removed where they say it matters, or where not.

Deletion, insertion, symmetric relevance gain and ROAD; what they have in common is said in `evaluation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.contracts.metric import MapBatch, Scores
from camkit.contracts.options import option
from camkit.contracts.scores import ScoreKind
from camkit.metrics.evaluation import CHUNK, FaithfulnessMetric, Model, ScoreOptions, evaluate
from camkit.metrics.imputation import NOISE, impute
from camkit.metrics.map_tools import normal, not_constant, positions, resized, where_defined

First = Literal["most", "least"]

STEPS = 20
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def deletion_curve(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    first: First = "most",
    baseline: Tensor | None = None,
    steps: int = STEPS,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """Score while pixels are replaced by `baseline` in `steps` equal parts: `[B, steps + 1]`.

    first: whether the most or the least relevant pixels go first. baseline: `[B, C, H, W]` or what can be
    expanded to it; zero by default. The first point is the input itself, the last the baseline.
    """
    parts = range(steps + 1) if first == "most" else range(0, -steps - 1, -1)
    return _deleted(f, inputs, maps, targets, parts, baseline, steps, chunk, logits, scores)


def _deleted(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    parts: Sequence[int],
    baseline: Tensor | None,
    steps: int,
    chunk: int,
    logits: bool,
    scores: ScoreKind,
) -> Tensor:
    """Score without some of `steps` equal parts of the pixels: `[B, len(parts)]`.

    A part is how many of them are gone: the most relevant ones, or if it is negative the least relevant.
    """
    gone = torch.zeros_like(inputs) if baseline is None else baseline.expand_as(inputs)
    full = resized(maps, inputs.shape[-2:])
    ranks = positions(full).view(full.shape)
    pixels = full[0].numel()
    part = torch.tensor(parts, device=inputs.device)
    counts = torch.linspace(0, pixels, steps + 1, device=inputs.device).round().long()[part.abs()]
    least = part < 0

    def change(step: Tensor, image: Tensor) -> Tensor:
        rank = torch.where(least[step, None, None], pixels - 1 - ranks[image], ranks[image])
        removed = rank < counts[step, None, None]
        return torch.where(removed[:, None], gone[image], inputs[image])

    curves = evaluate(f, targets, change, len(parts), chunk, logits, scores)
    return where_defined((not_constant(maps) & not_constant(full))[:, None], curves)


def insertion_curve(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor | None = None,
    steps: int = STEPS,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """Score while pixels are put into `baseline`, the most relevant first: `[B, steps + 1]`.

    baseline: the inputs `blurred` by default. Putting in the most relevant first is deletion of the least
    relevant first, read backwards.
    """
    start = blurred(inputs) if baseline is None else baseline
    gone = deletion_curve(
        *(f, inputs, maps, targets),
        first="least",
        baseline=start,
        steps=steps,
        chunk=chunk,
        logits=logits,
        scores=scores,
    )
    return gone.flip(1)


def area(curves: Tensor) -> Tensor:
    """Area under curves `[B, n + 1]` over [0, 1]: `(sum s - s_0 / 2 - s_n / 2) / n`, `[B]`."""
    return (curves.sum(1) - (curves[:, 0] + curves[:, -1]) / 2) / (curves.shape[1] - 1)


def deletion(f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    """Area under `deletion_curve`, the most relevant set to zero first: `[B]`, 0 to 1, lower is better.

    Depends on how the model takes to zeros; `symmetric_relevance_gain` does less. settings: as there.
    Petsiuk et al. 2018 (RISE), arXiv:1806.07421.
    """
    return area(deletion_curve(f, inputs, maps, targets, **settings))


def insertion(f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    """Area under `insertion_curve`, from a blurred image: `[B]`, 0 to 1, higher is better.

    settings: those of `insertion_curve`. Petsiuk et al. 2018 (RISE), arXiv:1806.07421.
    """
    return area(insertion_curve(f, inputs, maps, targets, **settings))


def gain_curve(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor | None = None,
    steps: int = STEPS,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """`deletion_curve` with the least relevant pixels first, less that with the most: `[B, steps + 1]`."""
    # Both begin and end with the same image, of which the score is asked for once.
    parts = [*range(steps + 1), *range(-1, -steps, -1)]
    found = _deleted(f, inputs, maps, targets, parts, baseline, steps, chunk, logits, scores)
    most, least = found[:, : steps + 1], found[:, steps + 1 :]
    return torch.cat([most[:, :1], least, most[:, -1:]], dim=1) - most


def symmetric_relevance_gain(
    f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **settings: Any
) -> Tensor:
    """Area under `gain_curve`: `[B]`, -1 to 1, higher is better.

    A random map comes to about 0 whatever the baseline, which is why this is the headline. settings: those
    of `deletion_curve`. Bluecher et al. 2024, arXiv:2401.06654.
    """
    return area(gain_curve(f, inputs, maps, targets, **settings))


def blurred(inputs: Tensor, sigma: float = 5.0) -> Tensor:
    """Inputs `[B, C, H, W]` under a Gaussian of 11 x 11 pixels, edges repeated: the start of insertion."""
    along = torch.arange(-5, 6, device=inputs.device, dtype=torch.float32)
    kernel = torch.exp(-(along**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(inputs.dtype)
    flat = inputs.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (5, 5, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, 5, 5), mode="replicate"), kernel.view(1, 1, -1, 1))
    return flat.view_as(inputs)


def road(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = NOISE,
    seed: int = 0,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """ROAD: half of the score with the least relevant pixels filled in, less that with the most.

    `[B]`, -1/2 to 1/2, the mean over the `fractions` of pixels that are filled in; higher is better. Pixels
    are filled in by `imputation.impute` and noise `N(0, noise^2)`, the same for every image. Rong et al.
    2022, arXiv:2202.00449; the combination is that of pytorch-grad-cam, whose percentiles, unlike the ranks
    here, remove the whole image where a map is mostly zero.
    """
    full = resized(maps, inputs.shape[-2:])
    ranks = positions(full).view(full.shape)
    size = full[0].numel()
    grain = noise * normal(tuple(inputs.shape[1:]), seed, inputs)
    counts = torch.tensor([round(fraction * size) for fraction in fractions], device=inputs.device)

    def change(
        step: Tensor, image: Tensor
    ) -> Tensor:  # even steps fill in the most relevant, odd the least
        order = torch.where((step % 2 == 0)[:, None, None], ranks[image], size - 1 - ranks[image])
        known = order >= counts[step // 2, None, None]
        pixels = inputs[image]
        return torch.where(known[:, None], pixels, impute(pixels, known) + grain)

    found = evaluate(f, targets, change, 2 * len(fractions), chunk, logits, scores)
    most, least = found[:, 0::2], found[:, 1::2]
    return where_defined(not_constant(maps) & not_constant(full), (least - most).mean(1) / 2)


@dataclass(frozen=True)
class StepOptions(ScoreOptions):
    """Options of the metrics that remove pixels step by step."""

    steps: int = option(STEPS, help="equal parts in which pixels are removed", min=1)


class _Curve(FaithfulnessMetric):
    """Sums up one curve of scores over the fraction of pixels that changed."""

    paper = "Petsiuk et al. 2018, arXiv:1806.07421"
    Options: ClassVar[type] = StepOptions

    def score(self, batch: MapBatch) -> Scores:
        curves = self.result(batch)
        count = curves.shape[1] - 1
        return Scores(area(curves), curves, tuple(f"{i / count:.4g}" for i in range(count + 1)))


class Deletion(_Curve):
    """`deletion`."""

    summary = "Area under the probability while the most relevant pixels are set to zero"
    direction = "lower"
    function = staticmethod(deletion_curve)


class Insertion(_Curve):
    """`insertion`."""

    summary = "Area under the probability while the most relevant pixels are put into a blurred image"
    function = staticmethod(insertion_curve)


class SymmetricRelevanceGain(_Curve):
    """`symmetric_relevance_gain`; its curve is the difference of the two that it compares."""

    summary = "Probability with the least relevant pixels removed first, less that with the most relevant"
    range = (-1.0, 1.0)
    paper = "Bluecher et al. 2024, arXiv:2401.06654"
    function = staticmethod(gain_curve)


@dataclass(frozen=True)
class RoadOptions(ScoreOptions):
    """Options of ROAD."""

    noise: float = option(NOISE, help="standard deviation of what is added to filled pixels", min=0)


class Road(FaithfulnessMetric):
    """`road`."""

    summary = "As the gain, with the removed pixels filled in from their surroundings"
    range = (-0.5, 0.5)
    paper = "Rong et al. 2022, arXiv:2202.00449"
    Options: ClassVar[type] = RoadOptions
    function = staticmethod(road)
