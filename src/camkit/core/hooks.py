"""Hooks and their clean-up: one forward that keeps a layer's output as the start of a small graph.

Everything below the lowest target layer runs without a graph, so nothing there is differentiated or
kept in memory and frozen models work. The hook hands a *clone* on, so an in-place operation behind the
layer (VGG, DenseNet) cannot change what was kept.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from camkit.core import devices
from camkit.core.layout import Layout, layout
from camkit.core.own_hook import Hook as Hook
from camkit.core.own_hook import has_hooks as has_hooks
from camkit.core.own_inputs import own_inputs
from camkit.core.scored import Scored, own_name
from camkit.errors import LayerError


@dataclass(frozen=True)
class Captured:
    """A layer's output in one forward, as it came, and how to read it."""

    output: Tensor
    layout: Layout

    @property
    def features(self) -> Tensor:
        """`[B, C, h, w]`, detached."""
        return self.layout.to_map(self.output.detach())


def forward(
    module: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    extras: Sequence[Tensor] = (),
    *,
    kind: str | None = None,
) -> tuple[Any, dict[str, Captured]]:
    """Run `module` once: its output, connected to the captured outputs of the layers `names`.

    extras: what the module takes besides `inputs`, which the maps lie over. kind: the layout of the layers,
    if the user named one.
    `autograd.grad` of the output with respect to `Captured.output` works, also under `no_grad`; inference
    mode must be off, as it is within `as_it_was`. Raises `LayerError` for a layer that did not run, ran
    twice or returned no feature map.
    """
    with captured(module, names, inputs.shape, kind=kind) as found, torch.no_grad():
        output = module(inputs, *extras)
    return output, found


@contextmanager
def captured(
    module: nn.Module, names: Sequence[str], size: Sequence[int], *, kind: str | None = None
) -> Iterator[dict[str, Captured]]:
    """Captures the layers `names` while `module`, or a part of it, runs inside; errors as in `forward`.

    size: the shape of the inputs.
    """
    found: dict[str, Captured] = {}

    def keep(output: Any, name: str) -> Tensor:
        if name in found:
            raise ran(module, name, 2)
        reading = layout(output, size, name, module=module, kind=kind)
        torch.set_grad_enabled(True)  # from here upwards; the caller's `no_grad` restores it at the end
        # A model that runs its body in inference mode gets a copy that can still take part in a graph.
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
            kept = as_leaf(output)
            found[name] = Captured(kept, reading)
            return kept.clone()

    with ExitStack() as stack:
        for name in names:
            layer = module.get_submodule(name)
            # Before other people's hooks, so what they store of the output is part of the graph.
            stack.enter_context(layer.register_forward_hook(Hook(partial(keep, name=name)), prepend=True))
        yield found
    for name in names:
        if name not in found:
            raise ran(module, name, 0)


def ran(module: nn.Module, layer: str, times: int) -> LayerError:
    """The error for a layer that did not run exactly once in a forward."""
    name = own_name(module, layer)
    if times:
        return LayerError(
            f"layer {name!r} ran more than once in one forward, so it has no single map; "
            "choose a layer that runs once (`camkit model layers`)"
        )
    return LayerError(
        f"layer {name!r} did not run in the forward, or its hook did not fire, as when the model calls "
        "its `forward` directly, or is compiled, traced or exported; pass the original module"
    )


def with_output(module: nn.Module, inputs: Sequence[Tensor], name: str, output: Tensor) -> Any:
    """What `module` returns for `inputs` if the layer `name` returns `output`, without a graph."""
    hook = Hook(lambda _: output)
    with module.get_submodule(name).register_forward_hook(hook), torch.no_grad():
        return module(*inputs)


@contextmanager
def as_it_was(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode and plain gradient mode inside; every mode and RNG state is restored afterwards.

    A module that writes into its inputs gets copies of them.
    """
    training, compiled = _training(module)
    eager = torch.compiler.set_stance("force_eager") if compiled else nullcontext()
    laid_out = module.register_forward_hook(Hook(lay_out_gradients))
    with (
        own_inputs(module.module if isinstance(module, Scored) else module),
        devices.random_state_kept(device),
        torch.inference_mode(False),
        torch.enable_grad(),
        eager,
        laid_out,
        _in_eval_mode(training),
    ):
        yield


@contextmanager
def _in_eval_mode(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Eval mode of parts inside, and training mode afterwards, once no other thread needs them."""
    with _LOCK:
        for part in parts:  # one by one, not by `train()`, which modules override
            _HELD[part] = _HELD.get(part, 0) + 1
            part.training = False
    try:
        yield
    finally:
        with _LOCK:
            for part in parts:
                if _HELD[part] > 1:
                    _HELD[part] -= 1
                else:  # in this order, for those who ask meanwhile
                    part.training = True
                    del _HELD[part]


# The parts of models that are in training mode but for calls that go on, with the number of these.
_HELD: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


def _training(module: nn.Module) -> tuple[list[nn.Module], bool]:
    """Those of `module.modules()` in training mode, but for other calls, and whether one is compiled.

    With a single image, the time of `modules()` itself is noticeable.
    """
    seen: set[nn.Module | None] = {None}
    parts, training, compiled = [module], [], False
    for part in parts:  # grows meanwhile
        if part not in seen:
            seen.add(part)
            parts += part._modules.values()  # type: ignore[arg-type]
            if part.training or (_HELD and part in _HELD):
                training.append(part)
            # Hooks do not fire in compiled code.
            compiled = compiled or part._compiled_call_impl is not None or "_orig_mod" in part._modules
    return training, compiled


def lay_out_gradients(output: Any) -> None:
    """Let the gradients of one image come into every batch norm behind `output` laid out as its input is.

    On a CPU its backward mixes up the order of channels and positions where one of them comes from tokens
    and the other does not, as with convolutions below a transformer (seen in torch 2.14): the strides of a
    single image are ambiguous.
    """
    tensors = [one for one in tensors_in(output) if one.is_cpu and one.ndim and len(one) == 1]
    ahead: list[Any] = [one.grad_fn for one in tensors if one.grad_fn is not None]
    seen = set(ahead)
    for node in ahead:  # grows meanwhile
        if node.name() == "NativeBatchNormBackward0":
            node.register_prehook(_contiguous if node._saved_input.is_contiguous() else _channels_last)
        fresh = {before for before, _ in node.next_functions} - seen - {None}
        seen |= fresh
        ahead += fresh


Gradients = tuple[Tensor | None, ...]


def _contiguous(gradients: Gradients) -> Gradients:
    return tuple(one if one is None else one.contiguous() for one in gradients)


def _channels_last(gradients: Gradients) -> Gradients:
    # Not by `memory_format`, which gradients of many classes at once do not know.
    return tuple(
        one if one is None else one.movedim(1, -1).contiguous().movedim(-1, 1) for one in gradients
    )


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors of arguments or results, in lists and tables within each other.

    None of what stands for a tensor while a model is traced.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return []
    return [one for part in value for one in tensors_in(part)]


@contextmanager
def gradients_everywhere() -> Iterator[None]:
    """Inside, a forward runs with gradients even where it sets `no_grad`, and without its checkpoints.

    Otherwise models that run a frozen body under `no_grad` have no gradient. Reentrant checkpoints run
    their part without gradients, and again in the backward; here it simply runs.
    """
    owner, checkpointed = threading.get_ident(), CheckpointFunction.apply

    def run(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        if threading.get_ident() == owner:
            return function(*args)
        return checkpointed(function, preserve, *args)

    with _CHECKPOINTS:
        CheckpointFunction.apply = run
        try:
            with _NeverOff():
                yield
        finally:
            del CheckpointFunction.apply  # which uncovers the base class's


_CHECKPOINTS = threading.Lock()  # torch has one function for them in each process


class _NeverOff(TorchFunctionMode):
    """Ignores what would switch gradients off."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch._C._set_grad_enabled and not args[0]:
            return None
        return func(*args, **(kwargs or {}))


def differentiable_rnns(module: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """cuDNN differentiates recurrent layers in training mode only; torch's own kernels always do."""
    if devices.needs_no_cudnn(device) and any(isinstance(part, nn.RNNBase) for part in module.modules()):
        return devices.without_cudnn()
    return nullcontext()


def normal_tensor(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy if it was made in inference mode and could not take part in a graph."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):  # in the caller's mode the copy would be such a tensor again
        return tensor.clone()


def as_leaf(output: Tensor) -> Tensor:
    """`output`, or where it has no graph yet, the start of one."""
    return output if output.requires_grad else normal_tensor(output.detach()).requires_grad_()
