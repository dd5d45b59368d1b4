"""What a model says to a photograph: its scores, what they are, and what they predict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts import scores as meanings
from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind
from camkit.core import hooks
from camkit.core.automatic_layer import kept
from camkit.core.scored import Output, Score, Scored, classifier
from camkit.core.targets import checked_targets, every
from camkit.errors import ModelError, counted


@dataclass(frozen=True)
class Prediction:
    """What a model predicts for a photograph.

    logits: the score of each class, float32 `[n_classes]`. likely: what predictions are made by:
    probabilities, or the scores again where these are of the kind `none`.
    kind: what the scores are, never `auto`. exclusive: whether just one class is right.
    predicted: the classes, the highest first. warnings: that it is a guess what the scores are.
    top: up to five classes, the likeliest first, each with what predictions are made by.
    """

    logits: Tensor
    likely: Tensor
    kind: ScoreKind
    exclusive: bool
    predicted: tuple[int, ...]
    warnings: tuple[str, ...]
    top: tuple[tuple[int, float], ...] = ()

    def fields(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Those of an `Explanation` that all of its results share; names: of the classes."""
        first = self.predicted[0] if self.predicted else None
        return {
            "top": tuple((names[i], value) for i, value in self.top),
            "predicted": tuple(names[i] for i in self.predicted),
            "predicted_index": first,
            "predicted_name": None if first is None else names[first],
            "scores": self.kind,
            "exclusive": self.exclusive,
        }


def predict(model: LoadedModel, inputs: Tensor) -> Prediction:
    """The prediction for one photograph, `[1, C, H, W]` as `model.preprocess` makes them.

    Its device and type are those of the model. Raises `ModelError` for what returns no scores.
    """
    with hooks.as_it_was(model.module, model.device), torch.inference_mode():
        scores = classifier(model)(inputs)
    checked_targets(every, len(inputs), scores)
    return predictions(model, scores.float().cpu(), inputs)[0]


def predictions(model: LoadedModel, scores: Tensor, inputs: Tensor) -> list[Prediction]:
    """The prediction of each row of `scores`, `[B, n_classes]` on the CPU, of `model` for `inputs`."""
    if len(model.classes) != scores.shape[1]:
        raise ModelError(
            f"model {model.name!r} names {counted(len(model.classes), 'class', 'classes')} but returns "
            f"{counted(scores.shape[1], 'score')}"
        )
    kind, warnings = meaning(model, scores, inputs[:1])
    probabilities = meanings.probabilities(scores, kind)
    likely = scores if probabilities is None else probabilities
    exclusive = meanings.excludes(scores, kind)
    top = likely.topk(min(5, likely.shape[1]))
    tops = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return [
        Prediction(
            *(logits, own, kind, exclusive),
            tuple(meanings.predictions(own, exclusive=exclusive)),
            warnings,
            tuple(zip(*first, strict=True)),
        )
        for logits, own, first in zip(scores, likely, tops, strict=True)
    ]


def _squashing(
    module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None
) -> bool | None:
    """Whether scores come out of a softmax or sigmoid, which they alone do not tell."""
    with hooks.as_it_was(module, inputs[0].device):
        return meanings.squashed(Scored(module, output, score), inputs[0])


def meaning(model: LoadedModel, scores: Tensor, inputs: Tensor) -> tuple[ScoreKind, tuple[str, ...]]:
    """What scores `[n, n_classes]` are, never `auto`, and a warning where that is a guess.

    inputs: for which the model is asked once, where the scores alone do not tell.
    """
    output = model.output if model.segments is None else model.segments
    squashed = partial(kept, _squashing, model.module, [inputs], output, None)
    kind = meanings.meaning(model.scores, scores, squashed)
    if (model.scores, kind) == ("softmax", "sigmoid"):
        return kind, ("a softmax over one score is always 1, so the score was taken for that of a sigmoid",)
    if model.scores in ("softmax", "sigmoid") and meanings.within_unit(scores) and squashed():
        return kind, (
            f"the scores come out of a softmax or sigmoid already, and went through a {kind} again: say "
            "--scores probabilities",
        )
    ambiguous = model.scores == "auto" and kind != "probabilities" and meanings.within_unit(scores)
    if not ambiguous or squashed() is not None:
        return kind, ()
    return kind, (
        f"all scores lie between 0 and 1, and were taken for logits ({kind}); of a model that returns "
        "probabilities say so: --scores probabilities",
    )
