"""Whether maps tell what the model uses: the score under the map as a mask.

Average drop and increase; what they have in common is said in `evaluation`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from camkit.contracts.scores import ScoreKind
from camkit.metrics.evaluation import CHUNK, FaithfulnessMetric, Model, evaluate
from camkit.metrics.map_tools import all_finite, not_constant, resized, scaled, where_defined


def average_drop(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    chunk: int = CHUNK,
    scores: ScoreKind = "auto",
) -> Tensor:
    """`max(0, Y - O) / Y`, Y the probability, O that of input times map: `[B]`, 0 to 1, lower is better.

    The map is rectified, scaled to [0, 1] and brought to the size of the input. NaN if nothing in it is
    positive or everything equal, and for scores of which a share means nothing (`none`). A map that shows
    the whole image wins. Chattopadhyay et al. 2018, arXiv:1710.11063.
    """
    whole, masked = _masked(f, inputs, maps, targets, chunk, scores).unbind(1)
    return (whole - masked).clamp(min=0) / whole if scores != "none" else torch.full_like(whole, torch.nan)


def increase(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    chunk: int = CHUNK,
    scores: ScoreKind = "auto",
) -> Tensor:
    """Whether O is greater than Y of `average_drop`: `[B]`, 0 or 1, higher is better; same paper."""
    whole, masked = _masked(f, inputs, maps, targets, chunk, scores).unbind(1)
    return where_defined(~masked.isnan(), (masked > whole).to(whole.dtype))


def _masked(
    f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, chunk: int, scores: ScoreKind
) -> Tensor:
    """Probabilities `[B, 2]`: of the input, and of the input times the map."""
    positive = maps.clamp(min=0)
    mask = resized(scaled(positive), inputs.shape[-2:]).nan_to_num()[:, None].to(inputs.dtype)

    def change(step: Tensor, image: Tensor) -> Tensor:
        return torch.where((step == 0)[:, None, None, None], inputs[image], inputs[image] * mask[image])

    both = evaluate(f, targets, change, 2, chunk, False, scores)
    return where_defined((all_finite(maps) & not_constant(positive))[:, None], both)


class AverageDrop(FaithfulnessMetric):
    """`average_drop`."""

    summary = "Share of the probability that is lost under the map as a mask"
    direction = "lower"
    paper = "Chattopadhyay et al. 2018, arXiv:1710.11063"
    function = staticmethod(average_drop)


class Increase(FaithfulnessMetric):
    """`increase`."""

    summary = "Share of images whose probability rises under the map as a mask"
    paper = "Chattopadhyay et al. 2018, arXiv:1710.11063"
    function = staticmethod(increase)
