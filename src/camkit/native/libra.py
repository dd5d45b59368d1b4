"""LibraGrad: the same forward, with gradients that add up, seen where a forward calls torch.

F. Mehri, M. S. Baghshah, M. T. Pilehvar, "LibraGrad: Balancing Gradient Flow for Universally Better Vision
Transformer Attributions", CVPR 2025, arXiv:2411.16760. Where a network is locally affine, as of ReLU and
convolutions, a score is the sum of gradient times value over inputs and biases. Transformers are not: a
product counts twice, a norm or a gate bends. So the way back is pruned or scaled:

    normalisation      the deviation is a constant
    gates              GELU(x) = x * gate(x): the gate is a constant, as is a sigmoid that multiplies
    attention          the weights that a softmax gives are constants: the gradient goes through values
    other products     half of the gradient goes through each factor

Values are those of the forward itself, to the bit. Nothing of the model is changed, and nothing in other
threads: a mode of torch belongs to its thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from camkit.core.hooks import tensors_in
from camkit.core.stand_in import wide
from camkit.errors import UsageError
from camkit.native.attention import TRANSPARENT, transparent

# What gates are made by, and what leaves one a gate, if nothing else in it depends on the input.
GATES = ("sigmoid", "tanh", "softmax", "hardsigmoid", "erf", "exp", "rsqrt", "reciprocal", "rdiv")
FOLLOWED = (
    *("add", "radd", "iadd", "sub", "rsub", "mul", "rmul", "imul", "div", "truediv", "neg", "clamp"),
    *("to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "dropout"),
    *("view", "reshape", "expand", "expand_as", "flatten", "unflatten", "permute", "transpose", "mT", "T"),
    *("unsqueeze", "squeeze", "masked_fill", "getitem", "linear", "conv2d", "where", "movedim", "sum"),
)

# Functions that call others: attention, and the way back, on which checkpoints run parts of a model again.
INSIDE = {
    F.multi_head_attention_forward: TRANSPARENT,
    torch.autograd.grad: transparent(torch.autograd.grad),
}


class Libra(TorchFunctionMode):
    """Balances the gradients of what runs inside. applied: whether any were."""

    def __init__(self) -> None:
        super().__init__()
        self.applied = False
        # Tensors that depend on an input, and whether as gates; and those made of parameters alone.
        self._inner: Any = WeakTensorKeyDictionary()
        self._weights: Any = WeakTensorKeyDictionary()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in INSIDE:
            with self:  # which sees what is called inside
                return INSIDE[func](*args, **kwargs)
        name = getattr(func, "__name__", "").strip("_")
        if name == "get":  # of a property, such as `mT`
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        given = tensors_in((args, kwargs))
        inner = [one for one in given if self._depends(one)]
        if len(inner) < len(given):
            self._check_seen(given)
        rule = RULES.get(name) if inner else None
        result = rule(self, func, *args, **kwargs) if rule else func(*args, **kwargs)
        gate = name in GATES or (name in FOLLOWED and all(self.is_gate(one) for one in inner))
        for one in tensors_in(args[0] if name == "setitem" else result):
            if one.requires_grad and inner:
                self._inner[one] = gate
            elif one.requires_grad:
                self._weights[one] = True
        return result

    def _check_seen(self, given: list[Tensor]) -> None:
        """Refuse what is made by a function that no mode sees: nothing above it would be balanced."""
        for one in given:
            known = not one.requires_grad or one.is_leaf or one in self._inner or one in self._weights
            if not known:
                raise UsageError(
                    "libra=true does not see how the model makes a value, as in TorchScript, a function of "
                    "its own for autograd, or a write into a view: leave it out"
                )

    def _depends(self, tensor: Tensor) -> bool:
        """Whether a tensor is part of the graph, and not a parameter or made of parameters alone."""
        if not tensor.requires_grad:
            return False
        return (tensor.is_leaf and not isinstance(tensor, nn.Parameter)) or tensor in self._inner

    def is_gate(self, tensor: Any) -> bool:
        """Whether a tensor is a gate, or weights of attention."""
        return isinstance(tensor, Tensor) and bool(self._inner.get(tensor, False))

    def both(self, first: Any, second: Any) -> bool:
        """Whether both factors of a product depend on the input."""
        return all(isinstance(one, Tensor) and self._depends(one) for one in (first, second))

    def constant(self, value: Any) -> Any:
        """What depends on the input without its graph; all else as it is."""
        if not (isinstance(value, Tensor) and self._depends(value)):
            return value
        self.applied = True
        return value.detach()

    def instead(self, value: Tensor, balanced: Tensor) -> Tensor:
        """`value`, with the gradients of `balanced`, which is the same but for rounding."""
        self.applied = True
        return value.detach() + (balanced - balanced.detach())


# --- rules: from the mode, the function and its arguments to the result ----------------------------------


def _layer_norm(mode: Libra, func: Any, x: Tensor, shape: Any, *more: Any, **named: Any) -> Tensor:
    value: Tensor = func(x, shape, *more, **named)
    weight, bias, eps = _affine(more, named, 1e-5)
    dims = tuple(range(-len(tuple(shape)), 0))
    return mode.instead(value, _scaled(_centred(wide(x), dims), dims, eps, weight, bias).to(value.dtype))


def _rms_norm(mode: Libra, func: Any, x: Tensor, shape: Any, weight: Any = None, eps: Any = None) -> Tensor:
    value: Tensor = func(x, shape, weight, eps)
    dims = tuple(range(-len(tuple(shape)), 0))
    least = torch.finfo(x.dtype).eps if eps is None else eps
    return mode.instead(value, _scaled(wide(x), dims, least, weight, None).to(value.dtype))


def _group_norm(mode: Libra, func: Any, x: Tensor, groups: int, *more: Any, **named: Any) -> Tensor:
    value: Tensor = func(x, groups, *more, **named)
    weight, bias, eps = _affine(more, named, 1e-5)
    along = (1, -1, *[1] * (x.ndim - 2))
    parts = wide(x).reshape(len(x), groups, -1)
    normal = _scaled(_centred(parts, (2,)), (2,), eps, None, None).reshape(x.shape)
    weight, bias = (None if one is None else one.reshape(along) for one in (weight, bias))
    return mode.instead(value, _with(normal, weight, bias).to(value.dtype))


def _instance_norm(mode: Libra, func: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
    value: Tensor = func(x, *more, **named)
    names = ("running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
    given = dict(zip(names, more, strict=False)) | named
    if not given.get("use_input_stats", True):
        return value  # affine
    return _of_channels(mode, value, x, given, tuple(range(2, x.ndim)))


def _batch_norm(mode: Libra, func: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
    value: Tensor = func(x, *more, **named)
    names = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
    given = dict(zip(names, more, strict=False)) | named
    if not given.get("training", False):
        return value  # affine
    return _of_channels(mode, value, x, given, (0, *range(2, x.ndim)))


def _of_channels(mode: Libra, value: Tensor, x: Tensor, given: Any, dims: tuple[int, ...]) -> Tensor:
    """Of a norm of each channel by its own mean and deviation."""
    along = (1, -1, *[1] * (x.ndim - 2))
    parts = (given.get("weight"), given.get("bias"))
    weight, bias = (None if one is None else one.reshape(along) for one in parts)
    normal = _scaled(_centred(wide(x), dims), dims, given.get("eps", 1e-5), weight, bias)
    return mode.instead(value, normal.to(value.dtype))


def _affine(more: tuple[Any, ...], named: dict[str, Any], eps: float) -> tuple[Any, Any, float]:
    """Weight, bias and epsilon of a norm."""
    given = dict(zip(("weight", "bias", "eps"), more, strict=False)) | named
    return given.get("weight"), given.get("bias"), given.get("eps", eps)


def _centred(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x - x.mean(dims, keepdim=True)


def _scaled(x: Tensor, dims: tuple[int, ...], eps: float, weight: Any, bias: Any) -> Tensor:
    """Divided by the root of the mean square, which is a constant."""
    return _with(x * (x.detach().square().mean(dims, keepdim=True) + eps).rsqrt(), weight, bias)


def _with(x: Tensor, weight: Any, bias: Any) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _gated(at_zero: float) -> Callable[..., Tensor]:
    """Of an activation `x * gate(x)`; at_zero: the gate of zero."""

    def rule(mode: Libra, func: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
        before = x.clone()  # it may be written over
        value: Tensor = func(x, *more, **named)
        gate = (value.detach() / before.detach()).where(before.detach() != 0, at_zero)
        return mode.instead(value, before * gate)

    return rule


def _glu(mode: Libra, func: Any, x: Tensor, dim: int = -1) -> Tensor:
    first, second = x.chunk(2, dim)
    return mode.instead(func(x, dim), first * second.detach().sigmoid())


def _attention(
    mode: Libra, func: Any, query: Tensor, key: Tensor, value: Tensor, *more: Any, **named: Any
) -> Tensor:
    # A mask made of parameters stays as it is: torch chooses another kernel for one without a graph.
    more = tuple(map(mode.constant, more))
    named = {name: mode.constant(one) for name, one in named.items()}
    found: Tensor = func(mode.constant(query), mode.constant(key), value, *more, **named)
    return found


def _product(mode: Libra, func: Any, first: Any, second: Any, **named: Any) -> Tensor:
    if not mode.both(first, second):
        return func(first, second, **named)  # type: ignore[no-any-return]
    gates = mode.is_gate(first), mode.is_gate(second)
    if getattr(func, "__name__", "") == "mul_" or gates == (False, True):
        return func(first, mode.constant(second), **named)  # type: ignore[no-any-return]
    if gates == (True, False):
        return torch.mul(mode.constant(first), second) if _is_mul(func) else func(first.detach(), second)
    value: Tensor = func(first, second, **named)
    return mode.instead(value, value / 2)


def _is_mul(func: Any) -> bool:
    """Whether a product is one of elements, which may be written over the first."""
    return "mul" in func.__name__ and "matmul" not in func.__name__


def _matrix_product(mode: Libra, func: Any, first: Any, second: Any, **named: Any) -> Tensor:
    if mode.is_gate(first) and mode.both(first, second):
        return func(mode.constant(first), second, **named)  # type: ignore[no-any-return]
    return _product(mode, func, first, second, **named)


def _einsum(mode: Libra, func: Any, equation: Any, *factors: Any) -> Tensor:
    factors = tuple(factors[0]) if len(factors) == 1 and isinstance(factors[0], list | tuple) else factors
    if len(factors) != 2:
        if sum(mode.both(one, one) for one in factors) > 1:
            raise _unruled("a product of more than two factors")
        return func(equation, *factors)  # type: ignore[no-any-return]
    return _matrix_product(mode, lambda first, second: func(equation, first, second), *factors)


def _quotient(mode: Libra, func: Any, first: Any, second: Any, **named: Any) -> Tensor:
    return func(first, mode.constant(second), **named)  # type: ignore[no-any-return]


def _power(mode: Libra, func: Any, x: Any, exponent: Any = 2) -> Tensor:
    value: Tensor = func(x) if func.__name__ == "square" else func(x, exponent)
    if mode.both(exponent, exponent):
        raise _unruled("an exponent that depends on the input")
    if isinstance(exponent, Tensor):
        return mode.instead(value, value / exponent.where(exponent != 0, 1))
    if exponent not in (0, 1) and isinstance(x, Tensor):
        return mode.instead(value, value / exponent)
    return value


def _root(mode: Libra, func: Any, x: Tensor) -> Tensor:
    value: Tensor = func(x)
    return mode.instead(value, value * 2)


def _normalize(
    mode: Libra, func: Any, x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, **named: Any
) -> Tensor:
    value: Tensor = func(x, p, dim, eps, **named)
    length = torch.linalg.vector_norm(x.detach(), p, dim, keepdim=True).clamp_min(eps)
    return mode.instead(value, x / length)


def _cosine(mode: Libra, func: Any, x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    value: Tensor = func(x1, x2, dim, eps)
    first, second = (F.normalize(one, dim=dim, eps=eps) for one in (x1.detach(), x2.detach()))
    lengths = [torch.linalg.vector_norm(one.detach(), dim=dim).clamp_min(eps) for one in (x1, x2)]
    balanced = (
        (x1 * second).sum(dim) / lengths[0] if mode.both(x1, x1) else (first * x2).sum(dim) / lengths[1]
    )
    if mode.both(x1, x2):
        balanced = (balanced + (first * x2).sum(dim) / lengths[1]) / 2
    return mode.instead(value, balanced)


def _of_two(first: int, second: int) -> Callable[..., Tensor]:
    """Of a function that has a product of two of its arguments in it, such as a layer with its weights."""

    def rule(mode: Libra, func: Any, *args: Any, **named: Any) -> Tensor:
        if len(args) <= second or not mode.both(args[first], args[second]):
            return func(*args, **named)  # type: ignore[no-any-return]
        if func.__name__.endswith("_"):
            raise _unruled(f"{func.__name__} of two values that depend on the input")
        value: Tensor = func(*args, **named)
        halves = []
        for constant in (first, second):
            parts = (one.detach() if at == constant else one for at, one in enumerate(args))
            halves.append(func(*parts, **named) / 2)
        return mode.instead(value, halves[0] + halves[1])

    return rule


def _without_rule(at: int) -> Callable[..., Tensor]:
    """Of a function that is refused if the argument `at` depends on the input."""

    def rule(mode: Libra, func: Any, *args: Any, **named: Any) -> Tensor:
        asked = args[at] if len(args) > at else named.get("weight")
        if mode.both(asked, asked):
            raise _unruled(func.__name__)
        return func(*args, **named)  # type: ignore[no-any-return]

    return rule


def _unruled(what: str) -> UsageError:
    return UsageError(f"libra=true has no rule for {what}: leave it out")


def _recurrent(mode: Libra, func: Any, *_: Any, **__: Any) -> Any:
    raise _unruled(f"recurrent layers ({func.__name__})")


RULES: dict[str, Callable[..., Any]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "gelu": _gated(0.5),
    "silu": _gated(0.5),
    "hardswish": _gated(0.5),
    "mish": _gated(0.6),
    "elu": _gated(1.0),
    "celu": _gated(1.0),
    "selu": _gated(1.0507),
    "instance_norm": _instance_norm,
    "batch_norm": _batch_norm,
    "glu": _glu,
    "scaled_dot_product_attention": _attention,
    "einsum": _einsum,
    "normalize": _normalize,
    "cosine_similarity": _cosine,
    **dict.fromkeys(("matmul", "bmm", "mm"), _matrix_product),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recurrent),
    **dict.fromkeys(("mul", "rmul", "imul", "multiply"), _product),
    **dict.fromkeys(("div", "truediv", "itruediv", "divide", "true_divide"), _quotient),
    **dict.fromkeys(("pow", "square"), _power),
    "sqrt": _root,
    **dict.fromkeys(("linear", "bilinear"), _of_two(0, 1)),
    **{f"conv{more}{n}d": _of_two(0, 1) for more in ("", "_transpose") for n in (1, 2, 3)},
    **dict.fromkeys(("addcmul", "addmm", "addbmm", "baddbmm", "addmv"), _of_two(1, 2)),
    **dict.fromkeys(("prod", "cumprod"), _without_rule(0)),
    "lerp": _without_rule(2),
}
