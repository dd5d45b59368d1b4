"""Whether zennit has a rule for all that a network computes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from zennit import types
from zennit.core import Composite
from zennit.layer import Sum
from zennit.torchvision import ResNetCanonizer

from camkit.errors import ModelError

# Modules whose gradient is changed by a rule, or needs none.
RULED: tuple[Any, ...] = (
    *(types.Activation, types.AvgPool, types.BatchNorm, types.Linear, types.MaxPool, Sum),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
WITHOUT = (nn.MultiheadAttention, nn.Softmax)  # which zennit takes for activations
# Operations of a graph outside such modules: those that lay values out anew, or whose gradient is what
# relevance wants, as a ReLU hands nothing to what it left out.
PLAIN = set(
    "AccumulateGrad Alias AsStrided Cat Clone Index MaxPool1DWithIndices MaxPool2DWithIndices Permute Relu "
    "Reshape ReshapeAlias Select Slice Split SplitWithSizes Squeeze Stack T ToCopy Transpose UnsafeView "
    "Unsqueeze View".split()
)


def canonizers() -> list[Any]:
    """What prepares networks: batch norm is merged, sums of torchvision's ResNets become modules."""
    return [ResNetCanonizer()]


def check(module: nn.Module, inputs: Tensor, name: str) -> None:
    """`ModelError`, in one line, for a network of which a part has no rule, by its graph for one image.

    module: a copy. inputs: `[B, C, H, W]`.
    """
    owned: set[Any] = set()

    def own(part: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        if isinstance(part, WITHOUT):
            raise ModelError(f"zennit has no rule for {type(part).__name__}, a part of {name}")
        if isinstance(made, Tensor) and isinstance(part, RULED):
            if made.grad_fn is None:
                raise ModelError(f"a part of {name} computes without a graph, and zennit needs one")
            ends = {one.grad_fn for one in given if isinstance(one, Tensor)}
            owned.update(_behind(made.grad_fn, ends))

    with torch.enable_grad(), Composite(canonizers=canonizers()).context(module) as made:
        handles = [part.register_forward_hook(own) for part in made.modules()]
        try:
            scores = made(inputs[:1].detach().clone().requires_grad_())
        finally:
            for handle in handles:
                handle.remove()
    if not isinstance(scores, Tensor) or scores.grad_fn is None:
        raise ModelError(f"{name} returns scores without a graph, and zennit needs one")
    for node in _behind(scores.grad_fn, set()):
        kind = re.sub(r"Backward\d*$", "", node.name()).rpartition("::")[2]
        if node not in owned and kind not in PLAIN:
            raise ModelError(
                f"zennit has rules for modules alone, and {name} computes {kind!r} in its forward (a "
                "residual connection, attention, a mean?): its values would mean nothing"
            )


def _behind(node: Any, ends: Iterable[Any]) -> set[Any]:
    """The nodes of a graph from `node` down to those in `ends`, which are not among them."""
    seen: set[Any] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen and one not in ends:
            seen.add(one)
            waiting += [before for before, _ in one.next_functions]
    return seen


def copied(module: nn.Module) -> nn.Module:
    """A copy in eval mode, without in-place activations."""
    made = copy.deepcopy(module).eval()
    for part in made.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    return made
