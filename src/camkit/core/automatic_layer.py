"""The layer that `auto` means: the deepest one whose output is a map and says something about the scores.

One forward and two backwards of noise show, for every layer that runs once, whether a gradient
arrives there, whether it is more than rounding noise, and whether the layer is not the scores themselves.
That finds the norm before the last attention of a vision transformer, after which only the class token is
used, and the features below a convolutional classifier, whatever wraps them. The choice is kept as long as
the model has the same parts.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camkit.contracts.scores import KEEPING, SQUASHING
from camkit.core import formulas
from camkit.core.hooks import Hook, as_leaf
from camkit.core.layers import POOLING
from camkit.core.layout import Layout, OpenLayout, layout, settle
from camkit.core.scored import Output, Score, Scored
from camkit.errors import LayerError

T = TypeVar("T")

# The share of its terms that must remain in a sum of hirescam: 0.04 and more is usual, 2e-6 before a
# LayerNorm over channels.
BLIND = 1e-3


@dataclass(frozen=True)
class Choice:
    """A layer by its dotted name. checked: gradients have shown that its maps are meaningful.

    of_noise: for noise, and not for the inputs.
    """

    name: str
    checked: bool
    of_noise: bool = False


def choose(module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None) -> Choice:
    """The automatic layer of `module` for inputs like these; in eval mode, with gradients on.

    output, score: what turns the module's output into scores. Raises `LayerError` if no layer has a map.
    """
    return kept(_looked_at, module, inputs, output, score)


def _looked_at(module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None) -> Choice:
    """The layer as noise shows it: what came first, such as a black photograph, must not decide.

    As the inputs show it where they are no photographs, or noise shows nothing.
    """
    if inputs[0].is_floating_point():
        with suppress(Exception):  # whatever a module says to noise
            choice = _chosen(module, as_noise(inputs), output, score)
            if choice.checked:
                return replace(choice, of_noise=True)
    return _chosen(module, inputs, output, score)


def as_noise(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Noise in place of the first of the inputs, which maps lie over; always the same for a shape."""
    first, *others = inputs
    return [torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first), *others]


def kept(
    find: Callable[[nn.Module, Sequence[Tensor], Output, Score | None], T],
    module: nn.Module,
    inputs: Sequence[Tensor],
    output: Output,
    score: Score | None,
) -> T:
    """What `find` says, found once for inputs of these shapes, as long as the model has the same parts."""
    parts = list(module.modules())
    key = (find, *(tuple(x.shape) for x in inputs), inputs[0].dtype, *map(_identity, (output, score)))
    known = _KEPT.setdefault(module, {})
    if key in known and len(known[key][0]) == len(parts):
        seen, found = known[key]
        if all(reference() is part for reference, part in zip(seen, parts, strict=True)):
            return found  # type: ignore[no-any-return]
    found = find(module, inputs, output, score)
    known[key] = [weakref.ref(part) for part in parts], found
    return found


_KEPT: weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[list[weakref.ref[nn.Module]], Any]]] = (
    weakref.WeakKeyDictionary()
)


def _identity(function: Any) -> Any:
    """The code of a function with what it holds, because a lambda is a new object in each call."""
    if not isinstance(function, FunctionType):
        return function
    held = [cell.cell_contents for cell in function.__closure__ or ()]
    return function.__code__, *map(_Same, (*held, *(function.__defaults__ or ())))


class _Same:
    """Equal to what holds an equal number or text, or the same object, as long as that lives."""

    def __init__(self, value: Any) -> None:
        self._value = value if isinstance(value, str | int | float | None) else None
        self._key = type(value), id(value) if self._value is None else self._value
        try:
            self._lives: Callable[[], Any] = weakref.ref(value)
        except TypeError:  # of numbers and texts, and of lists, which may change
            self._lives = object if self._value is None and value is not None else lambda: None

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._key == other._key and self._lives() is other._lives()


@dataclass
class Seen:
    """The layers by name, in the order in which they finished, with the outputs of those that ran once.

    roots: vectors `[1, n]` that went into a layer; gradients start from them if the scores have none.
    """

    outputs: dict[str, Any] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    roots: list[Tensor] = field(default_factory=list)
    scores: Tensor | None = None


def observed(module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None) -> Seen:
    """One forward in which every layer's output starts a graph."""
    seen = Seen()

    def note(part: nn.Module, args: Any, returned: Any, name: str) -> Any:
        seen.runs[name] = seen.runs.get(name, 0) + 1
        first = args[0] if args else None
        if isinstance(first, Tensor) and first.ndim == 2 and first.requires_grad:
            seen.roots.append(first)
        if not isinstance(returned, Tensor) or not returned.is_floating_point() or returned.ndim < 3:
            seen.outputs[name] = returned
            return None
        torch.set_grad_enabled(True)  # even within the model's own `no_grad`
        kept = as_leaf(returned)
        seen.outputs.pop(name, None)
        seen.outputs[name] = kept
        return kept.clone()  # what follows may write in place

    first, *others = inputs
    with ExitStack() as stack, torch.enable_grad():
        for name, part in module.named_modules():
            if name:
                hook = _Noting(partial(note, name=name))
                stack.enter_context(part.register_forward_hook(hook, prepend=True))
        returned = Scored(module, output, score)(first.clone().requires_grad_(), *others)
    leaves = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor) and leaf.requires_grad]
    if leaves:
        # Of scores of places their means: a single place sees little of the layers.
        scores = leaves[0].mean((2, 3)) if leaves[0].ndim == 4 else leaves[0]
        seen.scores = scores.reshape(len(first), -1)
    return seen


class _Noting(Hook):
    """A hook that also sees the arguments."""

    def __init__(self, note: Callable[[nn.Module, Any, Any], Any]) -> None:
        super().__init__(lambda seen: note(*seen))

    def __call__(self, part: nn.Module, args: Any, output: Any) -> Any:
        return super().__call__(part, args, (part, args, output))


def gradients_of(seen: Seen, outputs: Sequence[Tensor]) -> tuple[list[Tensor | None], bool]:
    """Gradients of the highest score, or of what goes into a head that is still zero.

    Also whether they are those of the score.
    """
    starts = [] if seen.scores is None else [seen.scores.amax(1)]
    if not outputs:  # releases of torch before 2.12 refuse to look for none
        return [], False
    for start in (*starts, *(root @ _noise(root) for root in reversed(seen.roots))):
        try:
            found = torch.autograd.grad(start.sum(), outputs, retain_graph=True, allow_unused=True)
        except RuntimeError:  # gradients are lost or wrong; the explainer will say how
            continue
        if any(gradient is not None and gradient.any() for gradient in found):
            return list(found), bool(starts) and start is starts[0]
    return [None] * len(outputs), False


def _noise(like: Tensor) -> Tensor:
    noise = torch.randn(like.shape[-1], generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def _chosen(module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None) -> Choice:
    seen = observed(module, inputs, output, score)
    names = [name for name in _in_order(module, seen) if seen.runs.get(name) == 1]
    tensors = [name for name in names if may_carry(seen.outputs[name])]
    found, are_of_scores = gradients_of(seen, [seen.outputs[n] for n in tensors])
    gradients = dict(zip(tensors, found, strict=True))
    reasons, readable = list[str](), list[str]()
    # A layer inside an attention is only one of several paths through it.
    attentions = attentions_in(module)
    for name in sorted(tensors, key=lambda name: not attentions.isdisjoint(above(name))):
        reading = reading_of(module, inputs, name, seen.outputs[name], reasons)
        if reading is None:
            continue
        readable.append(name)
        gradient = gradients[name]
        if gradient is not None and is_meaningful(seen, name, reading, gradient):
            return Choice(name, checked=are_of_scores)
    if readable:
        return Choice(readable[0], checked=False)
    repeated = [
        f"layer {name!r} ran {runs} times in one forward, so it has no single map"
        for name, runs in seen.runs.items()
        if runs > 1 and may_carry(seen.outputs[name])
    ]
    why = f": {[*repeated, *reasons][0]}" if repeated or reasons else ""
    raise LayerError(f"no layer of {type(module).__name__} returns a feature map [B, C, h, w]{why}")


def _in_order(module: nn.Module, seen: Seen) -> Iterator[str]:
    """Names by preference: those that timm declares, then from the last layer that finished."""
    named = []
    for prefix, part in module.named_modules():
        info: Any = getattr(part, "feature_info", None)
        if isinstance(info, list) and info and isinstance(info[-1], dict):
            named.append(f"{prefix}.{info[-1].get('module')}".lstrip("."))
    yield from dict.fromkeys((*(name for name in named if name in seen.outputs), *reversed(seen.outputs)))


def may_carry(output: Any) -> bool:
    """Whether an output has positions, and values that can be differentiated."""
    return isinstance(output, Tensor) and output.ndim > 2 and output.is_floating_point()


# By class or by name: `Attention`, `ViTSelfAttention`, `attn`, the `MHSA` of ConViT, the `XCA` of XCiT.
_ATTENTION = re.compile("attention|attn|mhsa|gpsa|xca", re.IGNORECASE)


def attentions_in(module: nn.Module) -> set[str]:
    """Names of attentions, without those that contain another one, such as class-attention blocks."""
    found = {
        name
        for name, part in module.named_modules()
        if next(part.children(), None) is not None
        and _ATTENTION.search(f"{type(part).__name__} {name.rpartition('.')[2]}")
    }
    return found - {around for name in found for around in above(name)}


def above(name: str) -> Iterator[str]:
    """The names of the modules that contain a layer."""
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def reading_of(
    module: nn.Module, inputs: Sequence[Tensor], name: str, output: Tensor, reasons: list[str]
) -> Layout | None:
    """How to read a layer's output as a map; `None`, and a new entry in `reasons`, if it is none."""
    if isinstance(module.get_submodule(name), POOLING):
        return None
    try:
        for _ in range(2):  # it may be open where the channels are, and whether tokens are behind
            try:
                return layout(output, inputs[0].shape, name, module=module)
            except OpenLayout as error:
                settle(error, *inputs)
        return layout(output, inputs[0].shape, name, module=module)
    except LayerError as error:
        reasons.append(str(error))
        return None


def is_meaningful(seen: Seen, name: str, reading: Layout, gradient: Tensor) -> bool:
    """Whether maps of a layer are neither zero, nor only rounding noise, nor the score itself."""
    features, gradient = reading.to_map(seen.outputs[name].detach()), reading.to_map(gradient)
    if not gradient.any():
        return False
    maps = formulas.hirescam(features, gradient[None])
    if bool((formulas.remainder(maps, formulas.hirescam, features, gradient[None]) < BLIND).all()):
        return False
    # A score that depends on a single channel is that channel: the layer holds the scores, as in
    # segmentation.
    return int(gradient.flatten(2).any(2).sum(1).max()) > 1 and not _is_squashed(seen, name)


# Operations of a graph between the scores of places and those of a photograph.
_MIXING = SQUASHING | {"LogSoftmax"}
_FIXED = KEEPING | {"AdaptiveAvgPool2D", "AvgPool2D", "Relu"}


def _is_squashed(seen: Seen, name: str) -> bool:
    """Whether the scores are a softmax of what a layer returns, pooled or enlarged: it holds the scores."""
    layer: Any = seen.outputs[name].grad_fn
    start = None if seen.scores is None else seen.scores.grad_fn
    waiting, known = [(start, False)], set[tuple[Any, bool]]()
    while waiting:
        node, squashed = waiting.pop()
        if node is None or (node, squashed) in known:
            continue
        known.add((node, squashed))
        if node is layer:
            return squashed
        kind = re.sub(r"Backward\d*$", "", node.name())
        if kind in _MIXING or kind in _FIXED:
            squashed |= kind in _MIXING
            waiting += [(before, squashed) for before, _ in node.next_functions]
    return False
