"""Whether maps tell what the model uses: the score under the map as a mask.

Average drop and increase; what they have in common is said in `evaluation`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from camkit.contracts.metric import MapBatch, Metric, Scores
from camkit.contracts.scores import ScoreKind
from camkit.metrics.evaluation import CHUNK, Model, ModelOptions, evaluate, model_and_maps
from camkit.metrics.map_tools import only, resized, scaled, telling, usable


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
    return only(~masked.isnan(), (masked > whole).to(whole.dtype))


def _masked(
    f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, chunk: int, scores: ScoreKind
) -> Tensor:
    """Probabilities `[B, 2]`: of the input, and of the input times the map."""
    positive = maps.clamp(min=0)
    mask = resized(scaled(positive), inputs.shape[-2:]).nan_to_num()[:, None].to(inputs.dtype)

    def change(step: Tensor, image: Tensor) -> Tensor:
        return torch.where((step == 0)[:, None, None, None], inputs[image], inputs[image] * mask[image])

    both = evaluate(f, targets, change, 2, chunk, False, scores)
    return only((usable(maps) & telling(positive))[:, None], both)


class AverageDrop(Metric):
    """`average_drop`."""

    summary = "Share of the probability that is lost under the map as a mask"
    category = "faithfulness"
    direction = "lower"
    range = (0.0, 1.0)
    paper = "Chattopadhyay et al. 2018, arXiv:1710.11063"
    Options: ClassVar[type] = ModelOptions

    def score(self, batch: MapBatch) -> Scores:
        settings = vars(self.options)
        return Scores(average_drop(*model_and_maps(batch), scores=batch.scores, **settings))


class Increase(Metric):
    """`increase`."""

    summary = "Share of images whose probability rises under the map as a mask"
    category = "faithfulness"
    direction = "higher"
    range = (0.0, 1.0)
    paper = "Chattopadhyay et al. 2018, arXiv:1710.11063"
    Options: ClassVar[type] = ModelOptions

    def score(self, batch: MapBatch) -> Scores:
        settings = vars(self.options)
        return Scores(increase(*model_and_maps(batch), scores=batch.scores, **settings))
