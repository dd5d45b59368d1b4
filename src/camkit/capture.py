"""Hooks and their clean-up: one forward that keeps a layer's output as the start of a small graph.

Everything below the lowest target layer runs without a graph, so nothing there is differentiated or
kept in memory and frozen models work. The hook hands a *clone* on, so an in-place operation behind the
layer (VGG, DenseNet) cannot change what was kept.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from camkit.errors import LayerError
from camkit.layers import Layout, layout


class Hook:
    """A forward hook of camkit's own: in the thread that made it, it replaces what the layer returns."""

    def __init__(self, replace: Callable[[Any], Any]) -> None:
        self._replace, self._owner = replace, threading.get_ident()

    def __call__(self, _: nn.Module, __: Any, output: Any) -> Any:
        """What takes the place of `output`; nothing if another thread uses the same model."""
        return self._replace(output) if threading.get_ident() == self._owner else None


def has_hooks(part: nn.Module) -> bool:
    """Whether someone else than camkit, perhaps in another thread, listens to `part`."""
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    return not all(isinstance(hook, Hook) for hook in hooks)


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
    module: nn.Module, inputs: Tensor, names: Sequence[str], extras: Sequence[Tensor] = ()
) -> tuple[Any, dict[str, Captured]]:
    """Run `module` once; its output, connected to the captured outputs of the layers `names`.

    extras: what the module takes beside `inputs`, which the maps lie over.
    `autograd.grad` of the output with respect to `Captured.output` works, also under `no_grad`; inference
    mode must be off, as it is within `as_it_was`. Raises `LayerError` for a layer that did not run, ran
    twice or returned no feature map.
    """
    with captured(module, names, inputs.shape) as found, torch.no_grad():
        output = module(inputs, *extras)
    return output, found


@contextmanager
def captured(module: nn.Module, names: Sequence[str], size: Sequence[int]) -> Iterator[dict[str, Captured]]:
    """Captures the layers `names` while `module`, or a part of it, runs inside; errors as in `forward`.

    size: the shape of the inputs.
    """
    found: dict[str, Captured] = {}

    def keep(output: Any, name: str) -> Tensor:
        if name in found:
            raise LayerError(
                f"layer {name!r} ran more than once in one forward, so it has no single map; "
                "choose a layer that runs once (`camkit model layers`)"
            )
        shape = layout(output, size, name)
        torch.set_grad_enabled(True)  # from here upwards; `no_grad` of the caller restores it at the end
        kept = output if output.requires_grad else _leaf(output)
        found[name] = Captured(kept, shape)
        return kept.clone()

    handles = []
    try:
        for name in names:
            layer = module.get_submodule(name)
            handles.append(layer.register_forward_hook(Hook(partial(keep, name=name))))
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for name in names:
        if name not in found:
            raise LayerError(
                f"layer {name!r} did not run in the forward, or its hook did not fire: hooks do not "
                "fire inside compiled, traced or exported modules; pass the original module"
            )


def with_output(module: nn.Module, inputs: Sequence[Tensor], name: str, output: Tensor) -> Any:
    """What `module` returns for `inputs` if the layer `name` returns `output`, without a graph."""
    handle = module.get_submodule(name).register_forward_hook(Hook(lambda _: output))
    try:
        with torch.no_grad():
            return module(*inputs)
    finally:
        handle.remove()


@contextmanager
def as_it_was(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Eval mode and plain gradient mode inside; afterwards every mode and RNG state is as before."""
    training = _training(module)
    # Not by `fork_rng`, which takes five times as long: that is seen beside one image.
    generators = [torch.default_generator]
    generators += [torch.cuda.default_generators[device.index]] if device.type == "cuda" else []
    states = [generator.get_state() for generator in generators]
    with torch.inference_mode(False), torch.enable_grad():
        try:  # one by one, not by `train()`, which modules override
            for part in training:
                part.training = False
            yield
        finally:
            for part in training:
                part.training = True
            for generator, state in zip(generators, states, strict=True):
                generator.set_state(state)


def _training(module: nn.Module) -> list[nn.Module]:
    """Those of `module.modules()` in training mode; beside one image the time of `modules()` is seen."""
    seen: set[nn.Module | None] = {None}
    parts, training = [module], []
    for part in parts:  # which grows
        if part not in seen:
            seen.add(part)
            parts += part._modules.values()  # type: ignore[arg-type]
            if part.training:
                training.append(part)
    return training


def usable(tensor: Tensor) -> Tensor:
    """`tensor`, or a copy if it was made in inference mode and could not take part in a graph."""
    return tensor.clone() if tensor.is_inference() else tensor


def _leaf(output: Tensor) -> Tensor:
    return usable(output.detach()).requires_grad_()
