"""The host: what must be the same for every explainer, around one call of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from camkit import capture, layers, models, plugins
from camkit.api import Explainer, Sweep
from camkit.errors import ModelError, UsageError, closest
from camkit.targets import Chooser, Targets, checked, every, given

Layer = str | nn.Module


@overload
def maps(
    module: nn.Module,
    inputs: Tensor,
    targets: Targets = None,
    *,
    layer: Layer = "auto",
    backend: str = "native",
    method: str = "gradcam",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor: ...
@overload
def maps(
    module: nn.Module,
    inputs: Tensor,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]: ...
def maps(
    module: nn.Module,
    inputs: Tensor,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]:
    """Raw attribution maps `[B, h, w]` of a batch.

    module: any classifier from `[B, C, H, W]` to scores `[B, n_classes]`; unchanged afterwards.
    targets: a class index for all inputs, one for each, or `None` for the predicted class.
    layer: a dotted name, a module of the model, or `auto`. A list of layers or of methods gives a dict
        keyed by `(method, dotted name of the layer)`.
    device, dtype: run on a moved or cast copy of the model instead.
    options: those of the backend (`camkit plugin show BACKEND`).

    Maps are at least float32 and on the device of the inputs. NaN in a map stays NaN.
    Raises `LayerError`, `TargetError`, `OptionError`, `PluginError`, `ModelError`.
    """
    chooser = given(targets, len(inputs) if isinstance(inputs, Tensor) else 0)
    result = _sweep(module, inputs, chooser, layer, backend, method, device, dtype, options)
    return _shaped({key: m[:, 0] for key, m in result.items()}, layer, method)


def class_maps(
    module: nn.Module,
    inputs: Tensor,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]:
    """Raw maps of every class, `[B, n_classes, h, w]`; arguments as for `maps`."""
    result = _sweep(module, inputs, every, layer, backend, method, device, dtype, options)
    return _shaped(result, layer, method)


def _sweep(
    module: nn.Module,
    inputs: Tensor,
    choose: Chooser,
    layer: Layer | Sequence[Layer],
    backend: str,
    method: str | Sequence[str],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    options: Mapping[str, Any],
) -> dict[tuple[str, str], Tensor]:
    explainer: Explainer = plugins.make("explainer", backend, options)
    module = _unwrapped(module)
    home = inputs.device if isinstance(inputs, Tensor) else None
    _check_inputs(inputs)
    names = resolve_layers(module, layer, inputs[:1])
    if device is not None or dtype is not None:
        module, inputs = _converted(module, inputs, device, dtype)
    methods = [method] if isinstance(method, str) else list(method)
    result = run(explainer, backend, module, inputs, names, methods, choose)
    return {key: value.to(home) for key, value in result.items()}


def resolve_layers(module: nn.Module, layer: Layer | Sequence[Layer], example: Tensor) -> list[str]:
    """Dotted names of what `layer` means; `auto` may take a forward of `example`."""
    specs = [layer] if isinstance(layer, str | nn.Module) else list(layer)
    if "auto" not in specs:
        return layers.resolve(module, specs, example)
    with capture.as_it_was(module, example.device):
        return layers.resolve(module, specs, example)


def run(
    explainer: Explainer,
    backend: str,
    module: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    methods: Sequence[str],
    choose: Chooser,
) -> dict[tuple[str, str], Tensor]:
    """Let `explainer` answer, with everything around it as every explainer may expect it."""
    for method in methods:
        if method not in explainer.methods:
            raise unknown_method(method, backend, explainer.methods)
    kind = str(inputs.dtype).removeprefix("torch.")
    if kind not in explainer.dtypes:
        raise UsageError(f"{backend} works in {', '.join(explainer.dtypes)}, not in {kind}")
    # What the caller recorded stays recorded: nothing here is part of a graph of theirs.
    inputs = capture.usable(inputs.detach())
    sweep = Sweep(module, inputs, tuple(names), tuple(methods), checked(choose, len(inputs)))
    with capture.as_it_was(module, inputs.device):
        return {key: value.detach() for key, value in explainer.many(sweep).items()}


def unknown_method(method: str, owner: str, known: Sequence[str]) -> UsageError:
    """The error for a method that does not exist."""
    return UsageError(
        f"{owner} has no method {method!r}{closest(method, known)} (methods: {', '.join(known)})"
    )


def _shaped(
    result: dict[tuple[str, str], Tensor], layer: Any, method: Any
) -> Tensor | dict[tuple[str, str], Tensor]:
    if not (isinstance(layer, str | nn.Module) and isinstance(method, str)):
        return result
    if len(result) > 1:
        names = ", ".join(name for _, name in result)
        raise UsageError(f"layer {layer!r} means several layers ({names}): pass a list of them")
    return next(iter(result.values()))


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, on which hooks fire."""
    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module, not {type(module).__name__}")
    return module


def _check_inputs(inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(f"inputs must be a floating-point tensor [B, C, H, W], not {kind}")
    if inputs.ndim != 4 or 0 in inputs.shape:
        hint = ": add the batch dimension with inputs[None]" if inputs.ndim == 3 else ""
        raise UsageError(f"inputs must be [B, C, H, W], not {list(inputs.shape)}{hint}")


def _converted(
    module: nn.Module,
    inputs: Tensor,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> tuple[nn.Module, Tensor]:
    """A moved and cast copy; convert once yourself when calling often."""
    where = inputs.device if device is None else models.pick_device(device)
    kind = inputs.dtype if dtype is None else models.pick_dtype(dtype)
    return copy.deepcopy(module).to(where, kind), inputs.to(where, kind)
