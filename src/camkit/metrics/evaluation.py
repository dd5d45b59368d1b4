"""Scores of changed inputs, for the metrics that ask the model often.

`f` is the model, from inputs `[B, C, H, W]` to scores `[B, n_classes]`; `targets` int64 `[B]`. Scores of
the target are probabilities, as in the papers, or with `logits=True` the model's own scores; `scores` says
what those are (`camkit.contracts.scores`), and of `none` there are no probabilities. Maps `[B, h, w]` are
brought to the size of the inputs as they are drawn; equal pixels are ranked in reading order. `chunk` is
how many changed inputs the model is given at once. NaN where a map is constant or not finite, unless said
otherwise: there is nothing to rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from camkit.contracts.options import option
from camkit.contracts.scores import ScoreKind, meaning, probabilities, squashed
from camkit.metrics.function_metric import FunctionMetric

Model = Callable[[Tensor], Tensor]
CHUNK = 64


def evaluate(
    f: Model,
    targets: Tensor,
    change: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    chunk: int,
    logits: bool,
    scores: ScoreKind,
) -> Tensor:
    """Scores `[B, steps]` of the inputs `change(step, image)`, int64 `[N]` both, in chunks of N.

    Step and image run over all pairs, so a chunk is full whatever the size of the batch. What the scores
    are is decided once, for all chunks.
    """
    batch = len(targets)
    jobs = torch.arange(steps * batch, device=targets.device)
    with torch.no_grad():
        parts = [f(change(part // batch, part % batch)).float() for part in torch.split(jobs, chunk)]
    found = torch.cat(parts)
    if not logits:
        first = jobs[:1]
        kind = meaning(scores, found, lambda: squashed(f, change(first, first)))
        found = found if (likely := probabilities(found, kind)) is None else likely
    return found.gather(1, targets.repeat(steps)[:, None]).view(steps, batch).T


@dataclass(frozen=True)
class ModelOptions:
    """Options of the metrics that ask the model often."""

    chunk: int = option(CHUNK, help="changed inputs in one forward", min=1)


@dataclass(frozen=True)
class ScoreOptions(ModelOptions):
    """Options of those that can look at either kind of scores."""

    logits: bool = option(False, help="the model's own scores instead of probabilities")


class FaithfulnessMetric(FunctionMetric):
    """A metric of faithfulness."""

    category = "faithfulness"
    Options: ClassVar[type] = ModelOptions
