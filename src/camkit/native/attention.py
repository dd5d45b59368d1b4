"""Attention as a forward computes it, seen where it calls torch, and nothing of the model is changed.

Attention is what multiplies values by weights that come from a softmax: `scaled_dot_product_attention`, the
attention of `nn.MultiheadAttention`, or a softmax and a product. Fused kernels return no weights: they are
computed from queries and keys when they are asked for. Gradients with respect to weights need no weights
either: of `O = A V` they are `dO V^T`. So the forward is the model's own, kernels included.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from math import prod, sqrt
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camkit.core.hooks import Hook, as_leaf
from camkit.core.stand_in import wide
from camkit.errors import UsageError

# What is said of an attention that cannot be read.
WITHOUT = "attention-rollout, generic-attention, legrad and grad-eclip cannot explain it"


Asked = tuple[Tensor, Tensor]
# What the products of queries and keys may go through, by the names of functions and operators without
# underscores, before the softmax: scaled, shifted, masked, cast, and with other dimensions in front.
FOLLOWED = frozenset(
    "mul imul rmul multiply div idiv truediv itruediv add iadd radd masked_fill where "
    "to float double half bfloat16 type clone contiguous "
    "view reshape unflatten flatten squeeze unsqueeze".split()
)


@dataclass(frozen=True)
class Attention:
    """In each of `H` heads `output = weights @ values`, for `q` tokens that attend to `k` tokens.

    output: as it came, `[B, H, q, d]` up to its `shape`, and part of the graph of the scores.
    values: `[B, H, k, d]`, detached. asked: queries `[B, H, q, e]`, which may be scaled, and keys
    `[B, H, k, e]`, detached; `None` where the weights come from something else than their products.
    """

    output: Tensor
    shape: tuple[int, ...]
    values: Tensor
    _weights: Callable[[], Tensor]
    asked: Asked | None = None

    @property
    def queries(self) -> int:
        """How many tokens attend."""
        return self.shape[2]

    @property
    def keys(self) -> int:
        """How many tokens are attended to."""
        return self.values.shape[2]

    def weights(self) -> Tensor:
        """`[B, H, q, k]`, float32 at least."""
        return self._weights()

    def slopes(self, gradients: Tensor) -> Tensor:
        """Gradients by the weights, `[T, B, H, q, k]`, from those by the output, `[T, *output.shape]`."""
        with torch.autocast(gradients.device.type, enabled=False):
            return wide(gradients).reshape(-1, *self.shape) @ wide(self.values).mT


@dataclass(frozen=True)
class Block:
    """The outermost module around one attention that returns tokens: its name, and what it returned."""

    name: str
    kind: type[nn.Module]
    tokens: Tensor


@dataclass
class Seen:
    """What a forward shows: attentions in their order, and the block of each, by its number."""

    attentions: list[Attention] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)


@contextmanager
def watched(module: nn.Module, rows: int, *, blocks: bool = False) -> Iterator[Watch]:
    """See the attention of a forward of `rows` images inside; only this thread is watched.

    From the first attention upwards there is a graph. blocks: keep what the blocks return, too. Raises
    `UsageError` for attention whose rows are not the images, or that is not understood.
    """
    watch = Watch(rows)
    with ExitStack() as stack:
        for name, part in module.named_modules() if blocks else ():
            stack.enter_context(part.register_forward_pre_hook(_Hook(watch.enter)))
            leave = _Hook(partial(watch.leave, name, type(part)))
            stack.enter_context(part.register_forward_hook(leave, prepend=True))
        stack.enter_context(watch)
        yield watch
    if watch.unused and watch.seen.attentions:
        raise UsageError(
            f"the model has a softmax that multiplies no values in a way that is understood: {WITHOUT}"
        )
    if watch.mixed.intersection(attention.keys for attention in watch.seen.attentions):
        raise UsageError(
            f"a part of the model has attention whose weights come from no softmax that is seen: {WITHOUT}"
        )


class _Hook(Hook):
    """A hook before a module, too."""

    def __call__(self, part: nn.Module, args: Any, output: Any = None) -> Any:
        return super().__call__(part, args, output)


class Watch(TorchFunctionMode):
    """Sees each call of a torch function.

    seen: what was found; unused: softmaxes not used so far; mixed: how many tokens products of queries and
    keys mix that went through none.
    """

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._open: list[int] = []
        self.restart(rows)

    def restart(self, rows: int) -> None:
        """Forget what was seen: the next is of `rows` images."""
        self.seen, self._rows, self._heads = Seen(), rows, 0
        # The softmaxes that tensors are made of; the tensors are kept, so that their ids stay their own.
        self._origins: dict[int, tuple[Tensor, set[int]]] = {}
        self.unused: set[int] = set()
        # The products of queries and keys that are on their way to a softmax, and those that softmaxes had.
        self._products: dict[int, tuple[Tensor, Asked]] = {}
        self._asked: dict[int, Asked] = {}
        # What is made of such products so far, in any way.
        self._made: dict[int, Tensor] = {}
        self.mixed: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            self._heads = args[4] if len(args) > 4 else kwargs["num_heads"]
            try:
                with self:  # which sees what is called inside
                    return TRANSPARENT(*args, **kwargs)
            finally:
                self._heads = 0
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._fused(result, *args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        factors = _factors(name, args, kwargs)
        if factors and (softmaxes := self._softmaxes(factors[0])):
            self.unused -= softmaxes
            return self._plain(result, *factors, softmaxes)
        sources = (*args, *kwargs.values())
        if factors and id(factors[0]) in self._made:
            self.mixed.add(factors[0].shape[-1])
            self._made.clear()
        if name == "softmax" and result.ndim > 2:
            self.unused.add(id(result))
            self._origins[id(result)] = (result, {id(result)})
            if product := self._products.get(id(sources[0])):
                self._asked[id(result)] = product[1]
            self._products.clear()
            self._made.clear()
        elif isinstance(result, Tensor) and result.is_floating_point():
            self._follow(result, sources)
            self._follow_product(name, result, args, sources)
            if _asking(name, args) or any(
                id(source) in self._made and source.numel() == result.numel() for source in sources
            ):
                self._made[id(result)] = result
        return result

    def _softmaxes(self, value: Any) -> set[int]:
        """Those that a tensor is made of."""
        found = self._origins.get(id(value))
        return found[1] if found else set()

    def _follow(self, result: Tensor, sources: tuple[Any, ...]) -> None:
        """What has as many values as weights, and is made of them, is weights: cast, mixed, or reshaped."""
        of_all = [
            self._softmaxes(s) for s in sources if isinstance(s, Tensor) and s.numel() == result.numel()
        ]
        if found := set().union(*of_all):
            self._origins[id(result)] = (result, found)

    def _follow_product(self, name: str, result: Tensor, args: Any, sources: tuple[Any, ...]) -> None:
        """A product of queries and keys, or what is made of one product, and no other, is that product."""
        if asked := _asking(name, args):
            self._products[id(result)] = result, asked
        elif self._products and name in FOLLOWED:
            every = (self._products.get(id(source)) for source in sources if isinstance(source, Tensor))
            found = [product for product in every if product and product[0].numel() == result.numel()]
            self._products.pop(id(result), None)
            if len(found) == 1:
                self._products[id(result)] = result, found[0][1]

    def _plain(self, output: Tensor, weights: Tensor, values: Tensor, softmaxes: set[int]) -> Tensor:
        """The product of values and weights that come from `softmaxes`."""
        weights, values = weights.detach(), values.detach()
        values = values.expand(*weights.shape[:-2], *values.shape[-2:])
        heads = self._by_head(weights)
        found = [self._asked.get(one) for one in softmaxes]
        asked = found[0] if len(found) == 1 else None
        by_head = None if asked is None else _as_heads(asked, heads.shape)
        return self._keep(output, self._by_head(values), lambda: wide(heads), by_head)

    def _fused(
        self,
        output: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """What `scaled_dot_product_attention` returned for these arguments."""
        if dropout_p:
            raise UsageError(f"the model draws at random which tokens attend, also in eval mode: {WITHOUT}")
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        query, key = query.detach(), key.detach()

        rows, heads = self._rows, self._heads

        def weights() -> Tensor:
            return _by_head(_softmax(query, key, attn_mask, is_causal, scale), rows, heads)

        asked = self._by_head(query), self._by_head(key)
        return self._keep(output, self._by_head(value.detach()), weights, asked)

    def _keep(
        self,
        output: Tensor,
        values: Tensor,
        weights: Callable[[], Tensor],
        asked: Asked | None = None,
    ) -> Tensor:
        shape = tuple(self._by_head(output).shape)
        torch.set_grad_enabled(True)  # from here upwards, as in `hooks.captured`
        kept = as_leaf(output)
        self.seen.attentions.append(Attention(kept, shape, values, weights, asked))
        return kept.clone()

    def _by_head(self, tensor: Tensor) -> Tensor:
        return _by_head(tensor, self._rows, self._heads)

    # --- blocks -----------------------------------------------------------------------------------

    def enter(self, _: Any) -> None:
        """A module begins."""
        self._open.append(len(self.seen.attentions))

    def leave(self, name: str, kind: type[nn.Module], output: Any) -> Any:
        """A module ends: where it holds one attention and returns its tokens, they are kept."""
        before, found = self._open.pop(), self.seen.attentions
        first = first_of(output)
        if not name or len(found) != before + 1 or not isinstance(first, Tensor) or first.ndim != 3:
            return None
        if sorted(first.shape[:2]) != sorted((self._rows, found[-1].queries)):
            return None
        self.seen.blocks[before] = Block(name, kind, first)
        return with_tokens(output, first.clone())


def _factors(name: str, args: Any, kwargs: Any) -> tuple[Tensor, Tensor] | None:
    """The two matrices of a product over the last dimension of the first; `None` of other functions."""
    if name == "einsum" and len(args) == 3:
        first, second, product = re.split(",|->", args[0].replace(" ", "") + "->")[:3]
        batch, i, j = first[:-2], first[-2:-1], first[-1:]
        if (second[:-1], product[:-1]) == (batch + j, batch + i) and second[-1] == product[-1]:
            return args[1], args[2]
    if name in ("matmul", "bmm"):
        first, second = (*args, *kwargs.values())[:2]
        return first, second
    return None


def _asking(name: str, args: Any) -> Asked | None:
    """Queries and keys, `[..., q, e]` and `[..., k, e]`, if this may be their product."""
    if name == "einsum" and len(args) == 3:
        first, second, product = re.split(",|->", args[0].replace(" ", "") + "->")[:3]
        batch, i, channel = first[:-2], first[-2:-1], first[-1:]
        if second == batch + second[-2:-1] + channel and product == batch + i + second[-2:-1]:
            return args[1].detach(), args[2].detach()
    products = {"matmul": args[:2], "bmm": args[:2], "baddbmm": args[1:3]}
    factors = products.get(name, ())
    if len(factors) == 2 and all(isinstance(one, Tensor) for one in factors):
        query, keys = factors[0].detach(), factors[1].detach()
        return (query, keys.mT) if query.ndim == keys.ndim > 2 else None
    return None


def _as_heads(asked: Asked, shape: torch.Size) -> Asked | None:
    """Queries and keys of weights `[B, H, q, k]`; `None` if they are not of these."""
    query, keys = asked
    lead = [max(pair) for pair in zip(query.shape[:-2], keys.shape[:-2], strict=True)]
    query, keys = (one.expand(*lead, *one.shape[-2:]) for one in asked)
    if prod(lead) != prod(shape[:2]) or (query.shape[-2], keys.shape[-2]) != shape[2:]:
        return None
    return query.reshape(*shape[:2], *query.shape[-2:]), keys.reshape(*shape[:2], *keys.shape[-2:])


def first_of(output: Any) -> Any:
    """What a block returns, or the first of several."""
    return output[0] if isinstance(output, list | tuple) and output else output


def with_tokens(output: Any, tokens: Tensor) -> Any:
    """The output of a block with other tokens."""
    return tokens if isinstance(output, Tensor) else (tokens, *output[1:])


def _by_head(tensor: Tensor, rows: int, heads: int) -> Tensor:
    """`[B, H, n, m]` of `[B, H, n, m]`, `[B H, n, m]` or `[B, n, m]`; `UsageError` for other rows."""
    if tensor.ndim == 3 and heads and len(tensor) == rows * heads:
        return tensor.reshape(rows, heads, *tensor.shape[1:])
    if tensor.ndim == 3:
        tensor = tensor[:, None]
    if tensor.ndim != 4 or len(tensor) != rows:
        images = f"{rows} image{'s' * (rows > 1)}"
        raise UsageError(
            f"the model attends within windows or groups: an attention has the shape {list(tensor.shape)} "
            f"for {images}, where [{rows}, heads, tokens, channels] is needed: {WITHOUT}"
        )
    return tensor


def _softmax(query: Tensor, key: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> Tensor:
    """The weights of `scaled_dot_product_attention`, by its definition."""
    with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
        scores = wide(query) @ wide(key).mT * (1 / sqrt(query.shape[-1]) if scale is None else scale)
        if causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask
        return scores.softmax(-1)


def transparent(function: Any) -> FunctionType:
    """A function of torch that does not hand itself over to a mode, so that a mode sees what it calls."""
    names = {**function.__globals__, "has_torch_function": lambda _: False}
    copy = FunctionType(function.__code__, names, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


TRANSPARENT = transparent(F.multi_head_attention_forward)
