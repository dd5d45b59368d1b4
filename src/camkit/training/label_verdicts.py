"""What a model says to photographs with several labels, each a question by itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import THRESHOLD
from camkit.errors import printable
from camkit.training import objective


@dataclass(frozen=True)
class LabelVerdicts:
    """What a model says to photographs with several labels.

    labels: float `[N, n_classes]`, 1 for those that are there; probabilities: `[N, n_classes]`, on the CPU.
    """

    CAPTION: ClassVar = "highest losses: the label that is most wrong, with its Grad-CAM"

    model: LoadedModel
    paths: tuple[Path, ...]
    labels: Tensor
    probabilities: Tensor

    @property
    def predicted(self) -> Tensor:
        """The labels above 50 %, bool `[N, n_classes]`."""
        return self.probabilities > THRESHOLD

    @property
    def losses(self) -> Tensor:
        """The mean binary cross-entropy of the labels of each photograph."""
        return self._each().mean(1)

    @property
    def mean_average_precision(self) -> float:
        """Over the classes that are there."""
        return float(objective.mean_average_precision(self.probabilities, self.labels))

    def classes(self) -> list[dict[str, object]]:
        """For each class the held-out photographs with it, and how well it is told from the rest."""
        truth = self.labels > THRESHOLD
        columns = {
            "held_out": truth.sum(0),
            "accuracy": (self.predicted == truth).float().mean(0),
            "recall": (self.predicted & truth).sum(0) / truth.sum(0),
            "precision": (self.predicted & truth).sum(0) / self.predicted.sum(0),
            "f1": objective.f1s(self.probabilities, self.labels),
            "average_precision": objective.average_precisions(self.probabilities, self.labels),
        }
        names = list(columns)
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        # What is no number is a share of nothing.
        return [
            {name: "" if value != value else value for name, value in zip(names, row, strict=True)}
            for row in rows
        ]

    def worst(self, index: int) -> tuple[int, str]:
        """The label of a photograph that is most wrong, and in which way."""
        label = int(self._each()[index].argmax())
        there = "is there" if self.labels[index, label] > THRESHOLD else "is not there"
        name, likely = printable(self.model.classes[label]), float(self.probabilities[index, label])
        return label, f"{name} {there}\ngiven {likely:.0%}, "

    def lines(self, count: int = 5) -> Iterable[str]:
        """The report in words: all labels, then the classes that are told worst."""
        right = (self.predicted == (self.labels > THRESHOLD)).float().mean()
        there = (self.labels > THRESHOLD).any(0)
        f1 = objective.f1s(self.probabilities, self.labels)
        yield (
            f"mean average precision {self.mean_average_precision:.1%}, "
            f"F1 {float(f1[there].mean().nan_to_num()):.1%}, {float(right):.1%} of the labels of "
            f"{len(self.paths)} held-out photographs right"
        )
        figures = objective.average_precisions(self.probabilities, self.labels)
        for i in figures.nan_to_num(2.0).argsort(stable=True).tolist()[:count]:
            if there[i]:
                name = self.model.classes[i]
                yield f"  {name}: average precision {float(figures[i]):.1%}, F1 {float(f1[i]):.1%}"

    def _each(self) -> Tensor:
        """The binary cross-entropy of each label, `[N, n_classes]`."""
        likely = self.probabilities.clamp(1e-7, 1 - 1e-7)
        return -torch.where(self.labels > THRESHOLD, likely, 1 - likely).log()
