"""What a training minimises, and how well it did: for one label on a photograph, or several.

Scores are logits `[B, n_classes]`. Targets are class indices `[B]`, or float `[B, n_classes]` with a 1 for
each label of several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from camkit.contracts.scores import THRESHOLD
from camkit.training.dataset import Dataset

# The figures of a finished training, in this order; those of one label and of several.
FINAL = ("error_rate", "mean_average_precision", "f1", "label_accuracy", "valid_loss")


@dataclass(frozen=True)
class Objective:
    """The loss of a training. weights: of the classes `[n_classes]`, of several labels of where one is."""

    several: bool
    weights: Tensor | None = None
    smoothing: float = 0.0

    @property
    def scores(self) -> Literal["softmax", "sigmoid"]:
        """What the scores of a model are that was trained by it."""
        return "sigmoid" if self.several else "softmax"

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, or the binary one of each label, with smoothed labels."""
        if not self.several:
            return F.cross_entropy(scores, targets, self.weights, label_smoothing=self.smoothing)
        targets = targets * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(scores, targets, pos_weight=self.weights)

    def to(self, device: torch.device) -> Objective:
        """The same for scores on a device."""
        return self if self.weights is None else replace(self, weights=self.weights.to(device))

    def figures(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        """Plain loss and figures on photographs that are held out, on the CPU."""
        plain = Objective(self.several).loss(scores, targets)
        if self.several:
            figures = {name: float(figure(scores, targets)) for name, figure in FIGURES.items()}
            return {"valid_loss": float(plain), **figures}
        error = (scores.argmax(1) != targets).float().mean()
        return {"valid_loss": float(plain), "error_rate": float(error)}


def objective(
    data: Dataset, train: Sequence[int], class_weights: str = "none", smoothing: float = 0.0
) -> Objective:
    """What fits the data. class_weights: `balanced` gives each class the same weight in total.

    Of one label `n / (n_classes * count)`, as scikit-learn; of several labels the photographs without a
    label for each with it.
    """
    weights = None
    if class_weights == "balanced":
        count = data.count(train)
        counts = torch.tensor([float(count[i]) for i in range(len(data.classes))]).clamp(min=1)
        many = len(train)
        # A label that every photograph has still counts for something.
        weights = (many - counts).clamp(min=1) / counts if data.several else many / (len(counts) * counts)
    return Objective(data.several, weights, smoothing)


def final(epoch: Mapping[str, float]) -> dict[str, float]:
    """The figures of the last epoch that stand for a training."""
    return {name: epoch[name] for name in FINAL if name in epoch}


def average_precisions(scores: Tensor, truth: Tensor) -> Tensor:
    """Average precision of each class, `[n_classes]`; NaN for a class of which there is none.

    It is the precision at each threshold, weighted by what it adds to the recall. All `[B, n_classes]`.
    """
    return torch.stack(
        [_average_precision(scores[:, i], truth[:, i] > THRESHOLD) for i in range(scores.shape[1])]
    )


def f1s(likely: Tensor, truth: Tensor) -> Tensor:
    """F1 of each class above probability 0.5, `[n_classes]`: 0 where nothing of it was found."""
    said, true = likely > THRESHOLD, truth > THRESHOLD
    hits = (said & true).sum(0)
    return 2 * hits / (said.sum(0) + true.sum(0)).clamp(min=1)


def mean_average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """The mean over the classes that are there; 0 if none is."""
    return average_precisions(scores, truth).nanmean().nan_to_num(0.0)


def mean_f1(scores: Tensor, truth: Tensor) -> Tensor:
    """The mean F1 of the classes that are there, from logits; 0 if none is."""
    there = (truth > THRESHOLD).any(0)
    return f1s(scores.sigmoid(), truth)[there].mean().nan_to_num(0.0)


def label_accuracy(scores: Tensor, truth: Tensor) -> Tensor:
    """The share of decisions on a label of a photograph that are right, from logits."""
    return ((scores > 0) == (truth > THRESHOLD)).float().mean()


FIGURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_average_precision": mean_average_precision,
    "f1": mean_f1,
    "label_accuracy": label_accuracy,
}


def _average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    scores, truth = scores[order], truth[order].float()
    last = torch.ones_like(scores, dtype=torch.bool)  # of those with the same score
    last[:-1] = scores[1:] != scores[:-1]
    hits, taken = truth.cumsum(0)[last], torch.arange(1, len(scores) + 1, device=scores.device)[last]
    recall = hits / truth.sum()
    return ((recall - torch.cat([recall.new_zeros(1), recall[:-1]])) * hits / taken).sum()
