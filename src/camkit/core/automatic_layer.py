"""The layer that `auto` means: the deepest one whose output is a map and says something about the scores.

One forward and two backwards of a single row show, for every layer that runs once, whether a gradient
arrives there, whether it is more than rounding noise, and whether the layer is not the scores themselves.
That finds the norm before the last attention of a vision transformer, behind which the class token goes on
alone, the features below a convolutional classifier, and either within whatever they are wrapped in. The
choice is kept for as long as the model has the same parts.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camkit.core import formulas
from camkit.core.hooks import Hook, as_leaf
from camkit.core.layers import POOLING
from camkit.core.layout import Layout, OpenLayout, layout, settle
from camkit.core.scored import Output, Score, Scored
from camkit.errors import LayerError

# Of what hirescam sums up, what has to be left: 0.04 and more are usual, 2e-6 before a LayerNorm over
# channels.
BLIND = 1e-3


@dataclass(frozen=True)
class Choice:
    """A layer by its dotted name. checked: gradients have shown that its maps say something."""

    name: str
    checked: bool


def choose(module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None) -> Choice:
    """The automatic layer of `module` for inputs like these; in eval mode, with gradients on.

    output, score: what makes scores of what the module returns. Raises `LayerError` if no layer has a map.
    """
    parts = list(module.modules())
    key = (*(tuple(x.shape) for x in inputs), inputs[0].dtype, *map(_identity, (output, score)))
    kept = _KEPT.setdefault(module, {})
    if key in kept and len(kept[key][0]) == len(parts):
        seen, choice = kept[key]
        if all(reference() is part for reference, part in zip(seen, parts, strict=True)):
            return choice
    choice = _chosen(module, inputs, output, score)
    kept[key] = [weakref.ref(part) for part in parts], choice
    return choice


_KEPT: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[list[weakref.ref[nn.Module]], Choice]]] = (
    weakref.WeakKeyDictionary()
)


def _identity(function: Any) -> Any:
    """Of a function its code: a lambda is made anew for each call."""
    return getattr(function, "__code__", function)


@dataclass
class _Seen:
    """The layers by name in the order in which they finished, and what came out of those that ran once.

    roots: vectors `[1, n]` that went into a layer, from which gradients can start where scores have none.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    roots: list[Tensor] = field(default_factory=list)
    scores: Tensor | None = None


def _observed(module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None) -> _Seen:
    seen = _Seen()

    def note(part: nn.Module, args: Any, returned: Any, name: str) -> Any:
        seen.runs[name] = seen.runs.get(name, 0) + 1
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.ndim == 2 and first.requires_grad:
            seen.roots.append(first)
        if not isinstance(returned, Tensor) or not returned.is_floating_point() or returned.ndim < 3:
            seen.outputs[name] = returned
            return None
        torch.set_grad_enabled(True)  # also within a `no_grad` of the model
        kept = as_leaf(returned)
        seen.outputs.pop(name, None)
        seen.outputs[name] = kept
        return kept.clone()  # what is behind it may write in place

    first, *others = inputs
    with ExitStack() as stack, torch.enable_grad():
        for name, part in module.named_modules():
            if name:
                hook = _Noting(partial(note, name=name))
                stack.enter_context(part.register_forward_hook(hook, prepend=True))
        returned = Scored(module, output, score)(first.clone().requires_grad_(), *others)
    leaves = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.requires_grad]
    seen.scores = leaves[0].reshape(len(first), -1) if leaves else None
    return seen


class _Noting(Hook):
    """A hook that sees the arguments, too."""

    def __init__(self, note: Callable[[nn.Module, Any, Any], Any]) -> None:
        super().__init__(lambda seen: note(*seen))

    def __call__(self, part: nn.Module, args: Any, output: Any) -> Any:
        return super().__call__(part, args, (part, args, output))


def _gradients(seen: _Seen, outputs: Sequence[Tensor]) -> tuple[list[Tensor | None], bool]:
    """Of the highest score; where a head starts at zero, of what went into it.

    And whether they are of the score.
    """
    starts = [] if seen.scores is None else [seen.scores.amax(1)]
    for start in (*starts, *(root @ _noise(root) for root in reversed(seen.roots))):
        try:
            found = torch.autograd.grad(start.sum(), outputs, retain_graph=True, allow_unused=True)
        except RuntimeError:  # of a model whose gradients are lost, or wrong; the explainer will say how
            continue
        if any(gradient is not None and gradient.any() for gradient in found):
            return list(found), bool(starts) and start is starts[0]
    return [None] * len(outputs), False


def _noise(like: Tensor) -> Tensor:
    noise = torch.randn(like.shape[-1], generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def _chosen(module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None) -> Choice:
    seen = _observed(module, inputs, output, score)
    names = [name for name in _in_order(module, seen) if seen.runs.get(name) == 1]
    tensors = [name for name in names if _may_carry(seen.outputs[name])]
    found, are_of_scores = _gradients(seen, [seen.outputs[n] for n in tensors])
    gradients = dict(zip(tensors, found, strict=True))
    reasons, readable = list[str](), list[str]()
    # What is inside an attention is one of several ways for what goes through it.
    attentions = _attentions(module)
    for name in sorted(tensors, key=lambda name: not attentions.isdisjoint(_above(name))):
        reading = _reading(module, inputs, name, seen.outputs[name], reasons)
        if reading is None:
            continue
        readable.append(name)
        gradient = gradients[name]
        if gradient is not None and _tells(
            reading.to_map(seen.outputs[name].detach()), reading.to_map(gradient)
        ):
            return Choice(name, checked=are_of_scores)
    if readable:
        return Choice(readable[0], checked=False)
    why = f": {reasons[0]}" if reasons else ""
    raise LayerError(f"no layer of {type(module).__name__} returns a feature map [B, C, h, w]{why}")


def _in_order(module: nn.Module, seen: _Seen) -> Iterator[str]:
    """Names from the most to the least wanted: what timm says, then from the last that finished."""
    named = []
    for prefix, part in module.named_modules():
        info: Any = getattr(part, "feature_info", None)
        if isinstance(info, list) and info and isinstance(info[-1], dict):
            named.append(f"{prefix}.{info[-1].get('module')}".lstrip("."))
    yield from dict.fromkeys((*(name for name in named if name in seen.outputs), *reversed(seen.outputs)))


def _may_carry(output: Any) -> bool:
    return isinstance(output, Tensor) and output.ndim > 2 and output.is_floating_point()


# By class or by name: `Attention`, `ViTSelfAttention`, `attn`, the `MHSA` of ConViT, the `XCA` of XCiT.
_ATTENTION = re.compile("attention|attn|mhsa|gpsa|xca", re.IGNORECASE)


def _attentions(module: nn.Module) -> set[str]:
    """Names of attentions; not of what is called so but holds one, as a block of class attention."""
    found = {
        name
        for name, part in module.named_modules()
        if next(part.children(), None) is not None
        and _ATTENTION.search(f"{type(part).__name__} {name.rpartition('.')[2]}")
    }
    return found - {above for name in found for above in _above(name)}


def _above(name: str) -> Iterator[str]:
    """The names of what a layer is part of."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def _reading(
    module: nn.Module, inputs: Sequence[Tensor], name: str, output: Tensor, reasons: list[str]
) -> Layout | None:
    """How to read an output that may be the layer's; `None`, and the reason, where it is no map."""
    if isinstance(module.get_submodule(name), POOLING):
        return None
    try:
        try:
            return layout(output, inputs[0].shape, name, module=module)
        except OpenLayout as error:
            settle(error, *inputs)
            return layout(output, inputs[0].shape, name, module=module)
    except LayerError as error:
        reasons.append(str(error))
        return None


def _tells(features: Tensor, gradient: Tensor) -> bool:
    """Whether maps from these say something: not zero, not only rounding noise, not the score itself."""
    if not gradient.any():
        return False
    maps = formulas.hirescam(features, gradient[None])
    if bool((formulas.remainder(maps, formulas.hirescam, features, gradient[None]) < BLIND).all()):
        return False
    # A score that looks at a single channel is that channel: the layer holds the scores, as in a
    # segmentation.
    return int(gradient.flatten(2).any(2).sum(1).max()) > 1
