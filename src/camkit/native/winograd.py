"""3x3 convolutions with a quarter of the multiplications, for the fast mode on CPUs.

Winograd's F(4x4, 3x3) as in Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks"
(arXiv:1509.09308): 16 outputs take 36 multiplications for each pair of channels, not 144. oneDNN, which
torch convolves with, multiplies them all. In float32 the results agree to about ten
roundings. The kernel is `winograd.cpp`, for the C++ compiler that inductor needs anyway; it also adds the
bias (with BatchNorm folded in) and the residual, and applies the ReLU.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from importlib.resources import files
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.nn.utils.fusion import fuse_conv_bn_weights

from camkit.native import cache

if TYPE_CHECKING:
    from torch.export import ExportedProgram

PANEL = 64  # the kernel takes output channels in groups of 64, and input channels in groups of at most 16
LANES = 16

# Few tiles do not repay reading four times as many weights, and tiles that reach beyond the image compute
# values that are not needed. Measured within these bounds: 2 to 3 times as fast as oneDNN.
FEWEST_TILES = 8
MOST_MULTIPLICATIONS = 0.5  # as a share of the plain way's

# G of the paper: three weights to six, along one side.
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)

_ATEN = torch.ops.aten


def rewritten(program: ExportedProgram, kept: dict[str, Tensor]) -> fx.GraphModule:
    """The exported program as a module, with replacements for the convolutions that are faster this way.

    program: with channels-last images. On other devices than the CPU it stays as it is.
    kept: transformed weights by name, for programs of the same model: they are read, and new ones added.
    """
    if not any(map(_suits, _convolutions(program.graph))) or _kernel() is None:
        return program.module(check_guards=False)
    module: Any = program.run_decompositions({}).module(check_guards=False)  # no more in-place operations
    for node in filter(_suits, _convolutions(module.graph)):
        _replace(module, node, kept)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module  # type: ignore[no-any-return]


def transformed(weight: Tensor) -> Tensor:
    """Weights `[K, C, 3, 3]` as `[36, K / 64, C, 64]` for the kernel."""
    g = torch.tensor(_G, dtype=torch.float64)
    spread = torch.einsum("ia,kcab,jb->ijck", g, weight.double(), g)
    panels = spread.reshape(36, weight.shape[1], -1, PANEL).transpose(1, 2)
    return panels.float().contiguous()


def convolve(
    x: Tensor, weights: Tensor, bias: Tensor, padding: Sequence[int], residual: Tensor | None, relu: bool
) -> Tensor:
    """The convolution of `x` `[B, C, H, W]` with `transformed` weights, `[B, K, H', W']`, channels-last.

    bias: `[K]`. padding: rows above and below, columns left and right. residual: added, as large as the
    result. relu: whether negative values become zero.
    """
    kernel = _kernel()
    if kernel is None:
        raise RuntimeError("the kernel cannot be compiled here")
    if weights.shape != (36, len(bias) // PANEL, x.shape[1], PANEL) or x.shape[1] % LANES:
        raise ValueError(f"weights {list(weights.shape)} are not those of inputs {list(x.shape)}")
    y = _empty(x, weights, bias, padding, residual, relu)
    x = x.contiguous(memory_format=torch.channels_last)
    if residual is not None:
        residual = residual.contiguous(memory_format=torch.channels_last)
    pointers = [None if t is None else t.data_ptr() for t in (x, weights, bias, residual)]
    sizes = (*x.shape, y.shape[1], *padding, torch.get_num_threads())
    kernel(*pointers, relu, y.data_ptr(), *sizes)
    return y


def _empty(x: Tensor, weights: Tensor, bias: Tensor, padding: Sequence[int], *_: Any) -> Tensor:
    size = (len(x), len(bias), x.shape[2] + 2 * padding[0] - 2, x.shape[3] + 2 * padding[1] - 2)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@functools.cache
def _kernel() -> Callable[..., None] | None:
    """The kernel, or `None` where it cannot be compiled; then oneDNN serves."""
    try:
        return _compiled(files("camkit.native").joinpath("winograd.cpp").read_text(encoding="utf-8"))
    except Exception:  # no compiler, or one without vector types
        return None


def _compiled(source: str) -> Callable[..., None]:
    """The kernel, compiled for this machine as inductor compiles, and kept in the cache folder."""
    with cache.compiling():
        from torch._inductor import config
        from torch._inductor.codecache import CppCodeCache  # takes its time

        with config.patch({"cpp.enable_floating_point_contract_flag": "fast"}):  # multiply and add at once
            kernel: Any = CppCodeCache.load(source).winograd
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    kernel.argtypes = [*[pointer] * 4, ctypes.c_int, pointer, *[number] * 7, ctypes.c_int]
    kernel.restype = None
    return kernel  # type: ignore[no-any-return]


# An operation of torch's own, so that inductor calls it as it is.
_LIBRARY: Any = torch.library.Library("camkit", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "winograd(Tensor x, Tensor weights, Tensor bias, int[2] padding, Tensor? residual, bool relu) -> Tensor"
)
_LIBRARY.impl("winograd", convolve, "CPU")
_LIBRARY.impl("winograd", _empty, "Meta")


def _convolutions(graph: fx.Graph) -> list[fx.Node]:
    return list(graph.find_nodes(op="call_function", target=_ATEN.conv2d.default))


def _arguments(convolution: fx.Node) -> list[Any]:
    """Input, weight, bias, stride, padding, dilation and groups, defaults included."""
    defaults = [None, [1, 1], [0, 0], [1, 1], 1]
    return [*convolution.args, *defaults[len(convolution.args) - 2 :]]


def _suits(convolution: fx.Node) -> bool:
    """Whether the kernel can do it, and faster."""
    x, weight, _, stride, _, dilation, groups = _arguments(convolution)
    outputs, channels, *sides = weight.meta["val"].shape
    if (sides, *map(set, (stride, dilation)), groups) != ([3, 3], {1}, {1}, 1):
        return False
    *several, _, height, width = convolution.meta["val"].shape
    batch = prod(several)
    tiles, pixels = batch * ceil(height / 4) * ceil(width / 4), batch * height * width
    return bool(
        (x.meta["val"].device.type, x.meta["val"].dtype) == ("cpu", torch.float32)
        and several  # it may be a single image without a batch
        and (outputs % PANEL, channels % LANES) == (0, 0)
        and tiles >= FEWEST_TILES
        and 36 * tiles <= MOST_MULTIPLICATIONS * 9 * pixels
    )


def _replace(module: fx.GraphModule, convolution: fx.Node, kept: dict[str, Tensor]) -> None:
    """Replace a convolution, and a BatchNorm, sum and ReLU behind it, by a call of the kernel."""
    x, weight, bias, _, padding, *_ = _arguments(convolution)
    constants, last, residual, relu = [weight, bias], convolution, None, False
    if not _constant(constants):  # weights that are standardised anew in each forward
        return
    norm = _only_user(last, _ATEN._native_batch_norm_legit_no_training.default)
    if norm and len(norm.users) == 1 and _constant(norm.args[1:5]):
        constants, last = [*constants, *norm.args[1:5]], next(iter(norm.users))
    add = _only_user(last, _ATEN.add.Tensor)
    if add and not add.kwargs:
        other = add.args[1] if add.args[0] is last else add.args[0]
        if isinstance(other, fx.Node) and other is not last and _alike(other, last):
            residual, last = other, add
    if rectifier := _only_user(last, _ATEN.relu.default):
        relu, last = True, rectifier
    name = "winograd:" + ",".join(str(c and c.target) for c in constants)
    if name not in kept:
        tensors = [c and _tensor(module, c.target).double() for c in constants]
        eps: Any = norm.args[6] if norm and len(constants) > 2 else None
        kept |= zip((name, name + " bias"), _folded(tensors, eps), strict=True)
    with module.graph.inserting_before(last):
        parts = []
        for key in (name, name + " bias"):
            attribute = key.replace(".", "_")
            module.register_buffer(attribute, kept[key], persistent=False)
            parts.append(module.graph.get_attr(attribute))
        arguments = (x, *parts, [padding[0], padding[-1]], residual, relu)
        new = module.graph.call_function(torch.ops.camkit.winograd.default, arguments)
    new.meta = dict(last.meta)
    last.replace_all_uses_with(new)


def _folded(tensors: Sequence[Any], eps: float | None) -> tuple[Tensor, Tensor]:
    """Transformed weights and bias of a convolution, with the BatchNorm of `eps` behind it."""
    weight, bias, *norm = tensors
    if eps is not None:
        scale, shift, mean, variance = norm
        weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, eps, scale, shift)
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return transformed(weight.detach()), bias.detach().float()


def _constant(nodes: Sequence[Any]) -> bool:
    return all(node is None or node.op == "get_attr" for node in nodes)


def _only_user(node: fx.Node, target: Any) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target is target else None


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two values have the same size and type; otherwise a sum would broadcast."""
    one, other = a.meta["val"], b.meta["val"]
    return bool(one.shape == other.shape and one.dtype == other.dtype)


def _tensor(module: fx.GraphModule, name: str) -> Tensor:
    parent, _, attribute = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(parent), attribute)
    return tensor
