"""What a call asks for, and the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from camkit.core.scored import Output, Score

Layer = str | nn.Module
Inputs = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Call:
    """What a call says about the model, besides inputs and targets.

    output, score: see `Scored`. layout, frozen: see `maps`. precision: how float32 is multiplied, see
    `devices.multiplied`.
    """

    output: Output = None
    score: Score | None = None
    layout: str | None = None
    frozen: bool = False
    precision: str | None = None

    @property
    def adapts(self) -> bool:
        """Whether the model alone does not return the scores."""
        return self.output is not None or self.score is not None


PLAIN = Call()  # a call that says nothing


@dataclass(frozen=True)
class Remark:
    """Something that a user must know about maps: which ones, as bool `[B, T]`, and a sentence."""

    method: str
    layer: str
    concerned: Tensor
    text: str


@dataclass(frozen=True)
class Answer:
    """Maps `[B, T, h, w]` by method and layer, with the scores of the forward that they explain.

    scores: `[B, n_classes]`; targets: int64 `[B, T]`. precision: how float32 was multiplied.
    """

    maps: dict[tuple[str, str], Tensor]
    scores: Tensor
    targets: Tensor
    remarks: tuple[Remark, ...]
    precision: str = "ieee"
