"""Whether maps depend on what the model has learnt: with random weights they should change.

A test that is passed or failed; never a ranking (Binder et al. 2022, arXiv:2211.12486).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from camkit.contracts.metric import MapBatch, Scores
from camkit.contracts.options import option
from camkit.errors import UsageError
from camkit.metrics.agreement import spearman
from camkit.metrics.function_metric import FunctionMetric
from camkit.metrics.map_tools import normal

Explain = Callable[[Tensor, Tensor], Tensor]

STAGES = 6
LIMIT = 0.5


def cascading(
    module: nn.Module,
    explain: Explain,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    stages: int = STAGES,
    seed: int = 0,
) -> tuple[tuple[str, ...], Tensor]:
    """Random weights from the top down: names of the layers, and similarity to `maps` after each, `[B, S]`.

    explain: from inputs and targets to maps `[B, h, w]` of `module`, whose weights change in between and
    are restored to the bit. At most `stages` of the layers, evenly spread, are looked at; the last is the
    lowest, where everything is random. Similarity is the absolute Spearman correlation, 0 to 1, lower is
    better; NaN where a map is constant or not finite. Adebayo et al. 2018, arXiv:1810.03292.
    """
    layers = layers_with_weights(module)[::-1]
    looked_at = _spread(len(layers), stages)
    names, curve = [], []
    with _restored(module):
        for index, name in enumerate(layers):
            _randomise(module.get_submodule(name), seed + index)
            if index in looked_at:
                names.append(name)
                curve.append(_similarity(explain(inputs, targets), maps))
    return tuple(names), _stacked(curve, maps)


def independent(
    module: nn.Module,
    explain: Explain,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    stages: int = STAGES,
    seed: int = 0,
) -> tuple[tuple[str, ...], Tensor]:
    """As `cascading`, but with only one layer random at a time, the others as they were learnt."""
    layers = layers_with_weights(module)[::-1]
    chosen = _spread(len(layers), stages)
    curve = []
    for index in chosen:
        with _restored(module):
            _randomise(module.get_submodule(layers[index]), seed + index)
            curve.append(_similarity(explain(inputs, targets), maps))
    return tuple(layers[index] for index in chosen), _stacked(curve, maps)


def random_logit(
    module: nn.Module, explain: Explain, inputs: Tensor, maps: Tensor, targets: Tensor, *, seed: int = 0
) -> Tensor:
    """Similarity to the map of another class, drawn at random: `[B]`, 0 to 1, lower is better.

    Absolute Spearman correlation; 1 if the map does not look at the class. NaN where a map is constant or
    not finite, and for a model of one class. Sixt et al. 2020, arXiv:1912.09818.
    """
    with torch.no_grad():
        classes = module(inputs[:1]).shape[1]
    if classes < 2:
        return maps.new_full((len(maps),), torch.nan)
    # One draw for all: an image's other class must not depend on its place in the batch.
    shift = 1 + int(torch.randint(classes - 1, (1,), generator=torch.Generator().manual_seed(seed)))
    return _similarity(explain(inputs, (targets + shift) % classes), maps)


def layers_with_weights(module: nn.Module) -> list[str]:
    """Dotted names of the modules with parameters of their own, in the order they were registered.

    That is from input to output in all but odd models. A module that is shared counts once.
    """
    return [name for name, part in module.named_modules() if _own(part)]


def _own(part: nn.Module) -> list[nn.Parameter]:
    return [p for p in part.parameters(recurse=False) if p.is_floating_point()]


def _spread(count: int, wanted: int) -> Sequence[int]:
    """`wanted` indices below `count`, evenly spread, the last among them."""
    wanted = min(wanted, count)
    return [count * (k + 1) // wanted - 1 for k in range(wanted)]


def _randomise(part: nn.Module, seed: int) -> None:
    """New normal values of the same mean and spread, so that activations keep their scale."""
    for number, parameter in enumerate(_own(part)):
        old = parameter.detach().float()
        drawn = normal(tuple(old.shape), seed + 7919 * number, old)
        spread = old.std(correction=0)
        spread = torch.where(spread > 0, spread, old.mean().abs())  # a constant, as in a fresh batch norm
        parameter.data = (old.mean() + spread * drawn).to(parameter.dtype)


@contextmanager
def _restored(module: nn.Module) -> Iterator[None]:
    """Afterwards every parameter holds the very memory that it held before."""
    before = [(parameter, parameter.data) for parameter in module.parameters()]
    try:
        yield
    finally:
        for parameter, data in before:
            parameter.data = data


def _similarity(changed: Tensor, maps: Tensor) -> Tensor:
    return spearman(changed.detach().to(maps.dtype), maps).abs()


def _stacked(curve: Sequence[Tensor], maps: Tensor) -> Tensor:
    return torch.stack(list(curve), dim=1) if curve else maps.new_empty(len(maps), 0)


# --- as plugins --------------------------------------------------------------------


@dataclass(frozen=True)
class SanityOptions:
    """Options of the tests with random weights."""

    stages: int = option(STAGES, help="layers that are looked at, evenly spread", min=1)


class _Sanity(FunctionMetric):
    category = "sanity"
    direction = "lower"
    needs = ("explain",)
    paper = "Adebayo et al. 2018, arXiv:1810.03292"


class _RandomWeights(_Sanity):
    Options: ClassVar[type] = SanityOptions

    def result(self, batch: MapBatch) -> tuple[tuple[str, ...], Tensor]:
        names, curves = super().result(batch)
        if not names:
            raise UsageError("the model has no weights that could be made random: it cannot be tested so")
        return names, curves


class SanityCascading(_RandomWeights):
    """`cascading`; the value is the similarity when all weights are random."""

    summary = "Similarity of the map to that of the model with random weights, from the top down"
    limit = LIMIT
    function = staticmethod(cascading)

    def score(self, batch: MapBatch) -> Scores:
        names, curves = self.result(batch)
        return Scores(curves[:, -1], curves, names)


class SanityIndependent(_RandomWeights):
    """`independent`; the value is the mean over the layers, those without a map left out."""

    summary = "Similarity of the map to that of the model with one layer of random weights"
    limit = 0.9  # a single layer need not overturn the map
    function = staticmethod(independent)

    def score(self, batch: MapBatch) -> Scores:
        names, curves = self.result(batch)
        return Scores(curves.nanmean(1), curves, names)


class RandomLogit(_Sanity):
    """`random_logit`."""

    summary = "Similarity of the map to that of another class"
    limit = 0.9  # classes that share evidence may look alike; the same map for all may not pass
    paper = "Sixt et al. 2020, arXiv:1912.09818"
    function = staticmethod(random_logit)
