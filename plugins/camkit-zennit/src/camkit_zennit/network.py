"""Whether zennit has a rule for all that a network computes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
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
SAME = 1e-3, 1e-5  # relatively and absolutely: merging batch norms rounds in another way
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


def check(module: nn.Module, inputs: Tensor, name: str, first: tuple[Any, ...] = ()) -> None:
    """`ModelError`, in one line, for a network that zennit's rules do not fit, by its graph for one image.

    A part may have no rule, or run twice, of which zennit sees the last; batch norms may be merged into
    other layers than those before them. module: a copy. inputs: `[B, C, H, W]`. first: of which kind the
    layer is that has a rule of its own.
    """
    owned: set[Any] = set()
    ran: dict[nn.Module, int] = {}

    def own(part: nn.Module, given: tuple[Any, ...], made: Any) -> None:
        if isinstance(part, WITHOUT):
            raise ModelError(f"zennit has no rule for {type(part).__name__}, a part of {name}")
        ran[part] = ran.get(part, 0) + 1
        if isinstance(made, Tensor) and isinstance(part, RULED):
            if made.grad_fn is None:
                raise ModelError(f"a part of {name} computes without a graph, and zennit needs one")
            ends = {one.grad_fn for one in given if isinstance(one, Tensor)}
            owned.update(_behind(made.grad_fn, ends))

    with torch.no_grad():
        before = module(inputs[:1].detach().clone())
    try:
        with (
            torch.enable_grad(),
            Composite(canonizers=canonizers()).context(module) as made,
            ExitStack() as stack,
        ):
            for part in made.modules():
                stack.enter_context(part.register_forward_hook(own))
            scores = made(inputs[:1].detach().clone().requires_grad_())
    except RuntimeError:  # of other shapes, as of DenseNet
        raise _merged_wrongly(name) from None
    if isinstance(scores, Tensor) and not torch.allclose(scores, before, *SAME):
        raise _merged_wrongly(name)
    _check_runs(module, ran, name, first)
    if not isinstance(scores, Tensor) or scores.grad_fn is None:
        raise ModelError(f"{name} returns scores without a graph, and zennit needs one")
    for node in _behind(scores.grad_fn, set()):
        kind = re.sub(r"Backward\d*$", "", node.name()).rpartition("::")[2]
        if node not in owned and kind not in PLAIN:
            raise ModelError(
                f"zennit has rules for modules alone, and {name} computes {kind!r} in its forward (a "
                "residual connection, attention, a mean?): its values would mean nothing"
            )


def _merged_wrongly(name: str) -> ModelError:
    return ModelError(
        f"zennit merges each batch norm into the layer that was registered before it, and {name} computes "
        "others then: let it register its layers in the order in which they run, or run them once"
    )


def _check_runs(module: nn.Module, ran: Mapping[nn.Module, int], name: str, first: tuple[Any, ...]) -> None:
    """`ModelError` for layers that run twice, and where the first one is not registered first."""
    weighted = {part: where for where, part in module.named_modules() if isinstance(part, types.Linear)}
    if twice := next((where for part, where in weighted.items() if ran.get(part, 0) > 1), None):
        raise ModelError(f"zennit sees one run of each layer, and {twice!r} of {name} runs several times")
    registered = next((part for part in weighted if isinstance(part, first)), None)
    shown = next((part for part in ran if isinstance(part, first)), None)
    if registered is not shown and registered is not None:
        raise ModelError(
            f"the rule of the first layer would be that of {weighted[registered]!r}, which {name} "
            "registers first, and does not run first: choose a method without such a rule"
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
    """A copy in eval mode, without in-place activations, and with weights that are tensors of their own."""
    try:
        made = copy.deepcopy(module).eval()
    except RuntimeError as error:
        raise ModelError(
            f"zennit needs a copy of {type(module).__name__}, which cannot be made, as with "
            f"torch.nn.utils.weight_norm (use that of parametrizations): {error}"
        ) from None
    for part in made.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    for part in [one for one in made.modules() if parametrize.is_parametrized(one)]:
        _plain(part)
    return made


def _plain(part: nn.Module) -> None:
    """A parametrized part with plain weights; torch's function would change the class of the model's."""
    weights = {name: getattr(part, name).detach() for name in part.parametrizations}  # type: ignore[union-attr]
    del part.parametrizations
    part.__class__ = type(part).__mro__[1]
    for name, weight in weights.items():
        part.register_parameter(name, nn.Parameter(weight))
