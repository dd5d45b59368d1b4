"""What a published benchmark is given, and what it finds."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camkit.core.attribution import maps
from camkit.errors import CamkitWarning

CHUNK = 32  # images that the model is asked about at once


@dataclass(frozen=True)
class Task:
    """One run of a benchmark.

    folder: the data as they are downloaded. spec: the model, as of `camkit explain`, with what is said of
    it in `facts`. methods: empty for those of the paper. limit: the first so many photographs, `None` for
    all. progress: takes one line for people.
    """

    folder: Path
    spec: str
    backend: str = ""
    methods: tuple[str, ...] = ()
    layer: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    device: str = "auto"
    trust_pickle: bool = False
    progress: Callable[[str], None] = lambda text: None

    def maps(self, module: nn.Module, inputs: Tensor, targets: Sequence[int], method: str) -> Tensor:
        """Maps `[T, h, w]` of one input `[1, C, H, W]` for several classes."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CamkitWarning)  # of single maps; they count as they are
            return maps(
                module,
                inputs.expand(len(targets), -1, -1, -1),
                torch.tensor(targets, device=inputs.device),
                layer=self.layer,
                backend=self.backend,
                method=method,
                frozen=True,
                **self.options,
            )

    def first(self, things: Sequence[Any]) -> Sequence[Any]:
        """Those of the photographs that take part."""
        return things if self.limit is None else things[: self.limit]

    def too_few(self, count: int, published: int) -> list[str]:
        """What is said where the published figures are of more data; of `limit` the caller speaks."""
        if self.limit is not None or count == published:
            return []
        return [f"of {count:,} photographs, the published figures of {published:,}: do not compare them"]


@dataclass(frozen=True)
class Figure:
    """One number of a table.

    value: `None` if nothing could be counted. count: of what it is the mean. published: the paper's, if it
    has one for this model and method.
    """

    name: str
    value: float | None
    count: int
    published: float | None = None


def mean(values: Sequence[float]) -> float | None:
    """`None` of nothing."""
    return sum(values) / len(values) if values else None


def scores(module: nn.Module, inputs: Tensor) -> Tensor:
    """What the model says, float64 `[B, n]` on the CPU."""
    with torch.inference_mode():
        return torch.cat([module(part) for part in torch.split(inputs, CHUNK)]).double().cpu()
