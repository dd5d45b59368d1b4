"""The network as captum gets it: a twin of the model, which captum may hook and change."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from camkit.errors import UsageError
from camkit.plugin import Query, StandIn, wide

_TORCHS = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict)}


def twin(module: nn.Module) -> nn.Module:
    """The same network on the same tensors, in module objects of its own.

    captum hooks modules and hangs tensors on them. Done to a twin, this leaves no trace on the model
    even after an error, and two threads that explain one model do not meet.
    """
    # Scripted modules stay themselves: hooks do not fire in them anyway.
    scripted = torch.jit.ScriptModule
    parts = {m: m if isinstance(m, scripted) else object.__new__(type(m)) for m in module.modules()}

    def own(name: str, value: Any) -> Any:
        if (
            name in _TORCHS
        ):  # parameters, buffers, hooks; a dict of the user's stays the one their hooks fill
            return copy.copy(value)
        if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):  # a patched forward
            return MethodType(value.__func__, parts.get(value.__self__, value.__self__))
        return value

    for part, other in parts.items():
        if other is not part:
            vars(other).update({name: own(name, value) for name, value in vars(part).items()})
            other._modules.update({k: m if m is None else parts[m] for k, m in part._modules.items()})
    return parts[module]


class Network(nn.Module):
    """The model, taking and returning float32 at least, whatever the type of its parameters.

    watched: `view` is the target layer's feature map, which every forward must run exactly once.
    ruled: captum changes how modules pass gradients, so it gets a twin; else nothing below the layer has a
        graph.
    """

    def __init__(self, query: Query, *, watched: bool, ruled: bool) -> None:
        super().__init__()
        self.inner, self._query = twin(query.module) if ruled else query.module, query
        self.dtype = query.inputs.dtype
        self.watched = StandIn(query, self.inner, cut=not ruled) if watched else None

    @property
    def view(self) -> nn.Module:
        """The module that captum gets in place of the layer."""
        assert self.watched is not None, "only of methods that look at the layer"
        return self.watched.layer

    def forward(self, x: Tensor) -> Tensor:
        """Scores `[B, n_classes]`."""
        if self.watched is not None:
            return self.watched(x)  # type: ignore[no-any-return]
        scores = self.inner(x.to(self.dtype, copy=True))  # a copy: the first layer may be in-place
        if x.shape == self._query.inputs.shape and torch.equal(x, wide(self._query.inputs)):
            self._query.seen(scores)
        return wide(scores)


# --- modules for captum's rules -------------------------------------------------------------------

# Module class -> a function that makes a module which does the same, and which a rule holds for.
StandIns = Mapping[type[nn.Module], Callable[[Any], nn.Module]]


def replace(network: Network, stand_ins: StandIns, example: Tensor, method: str) -> None:
    """Prepare `network` for the rules of guided backprop or DeepLIFT.

    The rules see modules only, and go wrong where a module runs twice or shares its input. So one forward
    of `example` counts how often each runs, and every run gets a module and an input of its own.
    Raises `UsageError` for a ReLU that is no module.
    """
    runs: Counter[nn.Module] = Counter()
    parts = [part for part in network.modules() if type(part) in stand_ins]
    handles = [part.register_forward_hook(lambda part, *_: runs.update([part])) for part in parts]
    with _ReluCalls() as relus, torch.no_grad():
        network.inner(example)
    for handle in handles:
        handle.remove()
    functions = relus.calls - sum(n for part, n in runs.items() if isinstance(part, nn.ReLU | nn.ReLU6))
    model = type(network.inner).__name__
    if functions > 0:
        raise UsageError(
            f"{method} needs nn.ReLU modules, but {model} calls ReLU as a function ({functions} times): "
            "rewrite it or choose another method"
        )
    if not runs and stand_ins is GUIDED:
        raise UsageError(f"{method} changes how ReLU modules pass gradients, but {model} runs none")
    turns = {part: _InTurn(stand_ins[type(part)](part) for _ in range(n)) for part, n in runs.items()}
    for parent in list(network.modules()):
        parent._modules.update({k: turns[m] for k, m in parent._modules.items() if m in turns})


class _ReluCalls(TorchFunctionMode):
    """Counts the calls of ReLU functions, those by modules included."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += getattr(func, "__name__", "") in ("relu", "relu_", "relu6")
        return func(*args, **(kwargs or {}))


class _InTurn(nn.ModuleList):
    """One module for each run in a forward, on a copy of the input."""

    turn = -1

    def forward(self, x: Tensor) -> Tensor:
        self.turn = (self.turn + 1) % len(self)
        return self[self.turn](x.clone())  # type: ignore[no-any-return]


class _Relu6(nn.Module):
    """nn.ReLU6 out of two ReLUs: `6 - relu(6 - relu(x))`."""

    def __init__(self, _: nn.ReLU6) -> None:
        super().__init__()
        self.low, self.high = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return 6 - self.high(6 - self.low(x))  # type: ignore[no-any-return]


class _Windows(nn.Module):
    """nn.MaxPool2d with each window in a row of its own: captum's rule loses windows that overlap."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        pairs = (pool.kernel_size, pool.stride, pool.padding)
        self.kernel, self.stride, self.padding = ((p, p) if isinstance(p, int) else p for p in pairs)
        self.ceil_mode = pool.ceil_mode
        self.row = nn.MaxPool1d(self.kernel[0] * self.kernel[1])

    def forward(self, x: Tensor) -> Tensor:
        shape = F.max_pool2d(x, self.kernel, self.stride, self.padding, ceil_mode=self.ceil_mode).shape
        pad: list[int] = []
        for axis in (1, 0):  # F.pad begins with the last
            end = (shape[axis + 2] - 1) * self.stride[axis] + self.kernel[axis]
            pad += [self.padding[axis], end - self.padding[axis] - x.shape[axis + 2]]
        padded = F.pad(x, pad, value=torch.finfo(x.dtype).min)
        windows = padded.unfold(2, self.kernel[0], self.stride[0]).unfold(3, self.kernel[1], self.stride[1])
        rows: Tensor = self.row(windows.reshape(len(x), -1, self.kernel[0] * self.kernel[1]))
        return rows.reshape(shape)


def _max_pool(pool: nn.MaxPool2d) -> nn.Module:
    return _Windows(pool) if pool.dilation in (1, (1, 1)) and not pool.return_indices else twin(pool)


GUIDED: StandIns = {nn.ReLU: twin, nn.ReLU6: lambda _: nn.Sequential(nn.ReLU(), nn.ReLU6())}
DEEPLIFT: StandIns = {
    **dict.fromkeys((nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus), twin),
    nn.ReLU6: _Relu6,
    nn.MaxPool2d: _max_pool,
}
