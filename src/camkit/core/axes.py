"""Axes: where the channels of a layer's output are, judged by the operations before and behind it.

One forward is watched function by function. A convolution, a normalisation or a pooling has its channels at
dimension 1, a LayerNorm and a linear layer at the last one; but a linear layer may also mix positions
(MLP-Mixer), so it counts only where there is no other evidence. Tensors are followed from before
the layer and on behind it, through permutations, reshapes and element-wise functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camkit.core.own_hook import Hook

TOKENS_FIRST = -1  # instead of a dimension: the images are at dimension 1, so the channels are the last

# Functions that take and return channels at dimension 1, by name without the `_` of in-place ones.
_FIRST = {
    *(f"conv{d}d" for d in (1, 2, 3)),
    *(f"conv_transpose{d}d" for d in (1, 2, 3)),
    *(f"{kind}_pool{d}d" for kind in ("max", "avg", "lp") for d in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{d}d" for kind in ("max", "avg") for d in (1, 2, 3)),
    *(f"max_pool{d}d_with_indices" for d in (1, 2, 3)),
    *(f"dropout{d}d" for d in (1, 2, 3)),
    *("batch_norm", "instance_norm", "group_norm", "interpolate", "upsample", "unfold", "grid_sample"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "local_response_norm"),
}
# Those with channels at the last dimension, always and mostly.
_LAST = {"layer_norm", "rms_norm", "native_multi_head_attention", "transformer_encoder_layer_fwd"}
_LAST |= {"multi_head_attention_forward"}
_MOSTLY_LAST = {"linear", "bilinear", "scaled_dot_product_attention"}
_REDUCTIONS = {"mean", "sum", "amax", "logsumexp", "std", "var", "max"}
_JOINED = {"cat", "concat", "concatenate"}
_MIXED = {"matmul", "rmatmul", "bmm", "mm", "einsum", "baddbmm"}


@dataclass
class Found:
    """What a forward showed: dimensions that certainly, and that probably, hold the channels."""

    certain: set[int] = field(default_factory=set)
    likely: set[int] = field(default_factory=set)
    dimensions: int = 0

    @property
    def channels(self) -> int | None:
        """The dimension of the channels, or `TOKENS_FIRST`; `None` without evidence, or if it conflicts."""
        found = self.certain or self.likely
        return next(iter(found)) if len(found) == 1 else None


@dataclass(frozen=True)
class _Fact:
    """A tensor's channel dimension, whether it is certain, and which dimension of the output each was."""

    channels: int | None = None
    certain: bool = False
    origin: tuple[int | None, ...] | None = None


_NOTHING = _Fact()


def follow(module: nn.Module, layer: str, *inputs: Tensor) -> Found:
    """What one forward shows about the output of `layer`; modes and gradients are up to the caller.

    inputs: of one row, so an output with more rows has its images at another dimension.
    """
    found = Found()
    mode = _Follow(found)

    def begin(output: Any) -> None:
        if isinstance(output, Tensor) and not found.dimensions:
            mode.begin(output)

    try:
        with (
            module.get_submodule(layer).register_forward_hook(Hook(begin), prepend=True),
            torch.no_grad(),
            mode,
        ):
            module(*inputs)
    except Exception:
        if not found.dimensions:  # behind the layer a user's function may want all rows
            raise
    return found


def made_of(module: nn.Module, layers: Iterable[str], *inputs: Tensor) -> dict[str, Found]:
    """What one forward shows about many layers, judged only by the operations before them."""
    mode, found = _Follow(Found()), dict[str, Found]()

    def note(output: Any, name: str) -> None:
        if isinstance(output, Tensor) and name not in found:
            found[name] = mode.known(output)

    with ExitStack() as stack, torch.no_grad():
        for name in layers:
            hook = Hook(partial(note, name=name))
            stack.enter_context(module.get_submodule(name).register_forward_hook(hook, prepend=True))
        with mode:
            module(*inputs)
    return found


class _Follow(TorchFunctionMode):
    """Keeps a fact for every tensor, and the tensor itself, so that its id stays unique."""

    def __init__(self, found: Found) -> None:
        super().__init__()
        self._found = found
        self._facts: dict[int, tuple[Tensor, _Fact]] = {}

    def begin(self, output: Tensor) -> None:
        """Start to follow `output`."""
        self._found.dimensions = output.ndim
        if output.ndim == 3 and len(output) > 1 and output.shape[1] == 1:
            self._found.certain.add(TOKENS_FIRST)
            return
        before = self._fact(output)
        everything = tuple(range(output.ndim))
        self._record(_Fact(origin=everything), before.channels, before.certain)
        self._keep(output, _Fact(before.channels, before.certain, everything))

    def known(self, output: Tensor) -> Found:
        """What is known about a tensor so far."""
        fact = self._fact(output)
        certain = {fact.channels} if fact.channels is not None and fact.certain else set()
        return Found(certain, dimensions=output.ndim)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        with suppress(Exception):  # what cannot be followed is no evidence
            self._note(name, args, kwargs, result)
        return result

    def _note(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        tensors = [value for value in _flat((*args, *kwargs.values())) if isinstance(value, Tensor)]
        results = [value for value in _flat((result,)) if isinstance(value, Tensor)]
        if not tensors or not results:
            return
        source = tensors[0]
        if name in _JOINED:  # with class tokens, say
            source = next((t for t in tensors if self._fact(t) != _NOTHING), source)
        fact = self._fact(source)
        if name in _FIRST or name in _LAST or name in _MOSTLY_LAST:
            axis, certain = (1 if name in _FIRST else source.ndim - 1), name not in _MOSTLY_LAST
            if name != "layer_norm" or _is_one_dimensional(args, kwargs):
                self._record(fact, axis, certain)
                after = 1 if name in _FIRST else results[0].ndim - 1
                self._keep(results[0], _Fact(after, certain, fact.origin))
            return
        if name in _REDUCTIONS and (results[0].ndim < source.ndim or source.ndim > 3):
            self._reduced(source, fact, args, kwargs)
        if name in _MIXED:
            if name == "matmul" and isinstance(tensors[-1], nn.Parameter):
                self._record(fact, source.ndim - 1, certain=False)
            return
        move = _MOVES.get(name)
        for part in results:
            if move is None:
                self._keep(part, self._joined([self._fact(t) for t in tensors if t.shape == part.shape]))
            elif (sources := move(source, part, args, kwargs)) is not None:
                self._keep(part, _moved(fact, sources))

    def _joined(self, facts: list[_Fact]) -> _Fact:
        """The fact about an element-wise result: channels known for one tensor hold for the others."""
        surest = max(facts, key=lambda f: (f.channels is not None, f.certain), default=_NOTHING)
        origin = next((f.origin for f in facts if f.origin is not None), None)
        for fact in facts:
            if fact.origin is None:
                self._record(_Fact(origin=origin), fact.channels, fact.certain)
        return _Fact(surest.channels, surest.certain, origin)

    def _reduced(self, source: Tensor, fact: _Fact, args: Any, kwargs: Any) -> None:
        """A mean over all positions leaves images and channels."""
        dims = kwargs.get("dim", args[1] if len(args) > 1 else None)
        if fact.origin is None or dims is None:
            return
        gone = {d % source.ndim for d in ([dims] if isinstance(dims, int) else dims)}
        left = [axis for axis in range(1, source.ndim) if axis not in gone]
        if len(left) == 1 and 0 not in gone:
            self._record(fact, left[0], certain=True)

    def _record(self, fact: _Fact, axis: int | None, certain: bool) -> None:
        """Record that dimension `axis` of a tensor holds channels."""
        if fact.origin is not None and axis is not None and axis < len(fact.origin):
            dimension = fact.origin[axis]
            if dimension:  # never that of the images
                (self._found.certain if certain else self._found.likely).add(dimension)

    def _fact(self, tensor: Tensor) -> _Fact:
        return self._facts.get(id(tensor), (None, _NOTHING))[1]

    def _keep(self, tensor: Tensor, fact: _Fact) -> None:
        if fact.origin is not None and len(fact.origin) != tensor.ndim:
            fact = replace(fact, origin=None)
        self._facts[id(tensor)] = (tensor, fact)


def _moved(fact: _Fact, sources: list[int | None]) -> _Fact:
    """The fact about a tensor whose dimension i was `sources[i]` in the tensor that `fact` is about."""
    channels = sources.index(fact.channels) if fact.channels in sources else None
    origin = fact.origin and tuple(None if s is None else fact.origin[s] for s in sources)
    return _Fact(None if fact.channels is None else channels, fact.certain, origin)


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def _is_one_dimensional(args: Any, kwargs: Any) -> bool:
    shape = kwargs.get("normalized_shape", args[1] if len(args) > 1 else ())
    return len(shape) == 1


# From source, result and arguments to the source's dimension for each dimension of the result.
_Move = Callable[[Tensor, Tensor, Any, Any], "list[int | None] | None"]


def _permuted(source: Tensor, result: Tensor, args: Any, kwargs: Any) -> list[int | None]:
    dims = kwargs.get("dims", args[1:])
    return [d % source.ndim for d in _flat(dims if isinstance(dims, list | tuple) else [dims])]


def _transposed(source: Tensor, result: Tensor, args: Any, kwargs: Any) -> list[int | None]:
    a, b = (d % source.ndim for d in (*args[1:], *kwargs.values())[:2])
    order: list[int | None] = list(range(source.ndim))
    order[a], order[b] = b, a
    return order


def _moved_dims(source: Tensor, result: Tensor, args: Any, kwargs: Any) -> list[int | None]:
    labels = torch.arange(source.ndim).tolist()
    sample = torch.empty([1] * source.ndim).as_strided([1] * source.ndim, labels)
    return list(sample.movedim(*args[1:], **kwargs).stride())


def _reshaped(source: Tensor, result: Tensor, args: Any, kwargs: Any) -> list[int | None]:
    """A dimension survives if its length, and the number of elements before it, stay the same."""
    places = {
        (math.prod(source.shape[:i]), source.shape[i]): i
        for i in reversed(range(source.ndim))
        if source.shape[i] > 1 or i == 0
    }
    return [places.get((math.prod(result.shape[:j]), result.shape[j])) for j in range(result.ndim)]


def _indexed(source: Tensor, result: Tensor, args: Any, kwargs: Any) -> list[int | None] | None:
    index = args[1] if isinstance(args[1], tuple) else (args[1],)
    if any(not isinstance(i, int | slice | type(None) | type(...)) for i in index):
        return None
    taken = sum(isinstance(i, int | slice) for i in index)
    order: list[int | None] = []
    place = 0
    for i in index:
        if i is None:
            order.append(None)
        elif i is ...:
            order += range(place, place + source.ndim - taken)
            place += source.ndim - taken
        else:
            order += [place] if isinstance(i, slice) else []
            place += 1
    return [*order, *range(place, source.ndim)]


def _selected(source: Tensor, result: Tensor, args: Any, kwargs: Any) -> list[int | None]:
    dim = (kwargs.get("dim", args[1] if len(args) > 1 else 0)) % source.ndim
    return [d for d in range(source.ndim) if d != dim]


def _kept(source: Tensor, result: Tensor, args: Any, kwargs: Any) -> list[int | None] | None:
    return list(range(source.ndim)) if source.ndim == result.ndim else None


_MOVES: dict[str, _Move] = {
    "permute": _permuted,
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), _transposed),
    **dict.fromkeys(("movedim", "moveaxis"), _moved_dims),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshaped),
    "getitem": _indexed,
    **dict.fromkeys(("select", "unbind"), _selected),
    **dict.fromkeys(("narrow", "chunk", "split", "tensor_split", "roll", "flip", "pad"), _kept),
    **dict.fromkeys((*_JOINED, "expand", "index_select"), _kept),
}
