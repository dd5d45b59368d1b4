"""The host: what must be the same for every explainer, around one call of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from camkit import capture, layers, models, plugins
from camkit.api import Explainer, LoadedModel, Sweep
from camkit.errors import CamkitWarning, LayerError, ModelError, UsageError, closest
from camkit.fast import remembered
from camkit.targets import Chooser, Output, Score, Scored, Targets, checked, every, given

Layer = str | nn.Module
Inputs = Tensor | Sequence[Tensor]


@overload
def maps(
    module: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    *,
    layer: Layer = "auto",
    backend: str = "native",
    method: str = "gradcam",
    output: Output = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor: ...
@overload
def maps(
    module: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    output: Output = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]: ...
def maps(
    module: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    output: Output = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]:
    """Raw attribution maps `[B, h, w]` of a batch.

    module: any classifier from `[B, C, H, W]` to scores `[B, n_classes]`; unchanged afterwards.
    inputs: of signals `[B, C, L]` the maps are `[B, l]`, of volumes `[B, C, D, H, W]` `[B, d, h, w]`. Of
        several inputs, `[B, ...]` each, the maps lie over the first.
    targets: a class index for all inputs, one for each, or `None` for the predicted class. Or a function
        from what the model returns to one score for each row, `[B]`, such as the likeness to an embedding
        or the difference of two classes; some methods give it other numbers of rows than `B`.
    layer: a dotted name, a module of the model, or `auto`. A list of layers or of methods gives a dict
        keyed by `(method, dotted name of the layer)`.
    output: where a model returns a tuple or a dict, the index, key or name of what is explained, or a
        function that takes it out.
    device, dtype: run on a moved or cast copy of the model instead.
    options: those of the backend, such as `fast=True` of `native` (`camkit plugin show BACKEND`).

    Maps are at least float32 and on the device of the inputs. NaN in a map stays NaN.
    Raises `UsageError` (no such method, inputs that are none), `LayerError`, `TargetError`, `OptionError`,
    `PluginError`, `ModelError`, all of them in `camkit.errors`.
    """
    several = _inputs(module, inputs)
    chooser, score = given(targets, len(several[0])), targets if callable(targets) else None
    result = _sweep(module, several, chooser, score, layer, backend, method, output, device, dtype, options)
    return _shaped({key: m[:, 0] for key, m in result.items()}, layer, method)


def class_maps(
    module: nn.Module,
    inputs: Inputs,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    output: Output = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]:
    """Raw maps of every class, `[B, n_classes, h, w]`; arguments as for `maps`."""
    several = _inputs(module, inputs)
    result = _sweep(module, several, every, None, layer, backend, method, output, device, dtype, options)
    return _shaped(result, layer, method)


def _sweep(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    choose: Chooser,
    score: Score | None,
    layer: Layer | Sequence[Layer],
    backend: str,
    method: str | Sequence[str],
    output: Output,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    options: Mapping[str, Any],
) -> dict[tuple[str, str], Tensor]:
    explainer: Explainer = plugins.make("explainer", backend, options)
    module = _unwrapped(module)
    home = inputs[0].device
    names = resolve_layers(module, layer, *inputs)
    if device is not None or dtype is not None:
        keep = getattr(explainer.options, "fast", False)  # what is compiled belongs to the copy
        module, inputs = _converted(module, inputs, device, dtype, keep)
    methods = [method] if isinstance(method, str) else list(method)
    if not (methods and names):
        raise UsageError(f"there is nothing to do: no {'layer' if methods else 'method'} is given")
    first, *extras = inputs
    result = run(
        explainer, backend, module, first, names, methods, choose, extras=extras, output=output, score=score
    )
    for (name, at), maps in result.items():
        # As behind the last attention of a ViT, from where the class token alone goes on.
        if name not in explainer.class_agnostic and not maps.any():
            hint = better_layer(module, at, *inputs)
            text = f"{name} is zero everywhere at layer {at!r}, as where no gradient arrives{hint}"
            warnings.warn(CamkitWarning(text), stacklevel=3)
    return {key: value.to(home) for key, value in result.items()}


def resolve_layers(
    module: nn.Module, layer: Layer | Sequence[Layer], inputs: Tensor, *extras: Tensor
) -> list[str]:
    """Dotted names of what `layer` means; `auto` may take a forward of the first rows of the inputs."""
    specs = [layer] if isinstance(layer, str | nn.Module) else list(layer)
    if "auto" not in specs:
        return layers.resolve(module, specs, inputs)
    with capture.as_it_was(module, inputs.device):
        return layers.resolve(module, specs, *(tensor[:1] for tensor in (inputs, *extras)))


def run(
    explainer: Explainer,
    backend: str,
    module: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    methods: Sequence[str],
    choose: Chooser,
    *,
    extras: Sequence[Tensor] = (),
    output: Output = None,
    score: Score | None = None,
) -> dict[tuple[str, str], Tensor]:
    """Let `explainer` answer, with everything around it as every explainer may expect it.

    extras: further inputs; output and score: see `Scored`.
    """
    for method in methods:
        if method not in explainer.methods:
            raise unknown_method(method, backend, explainer.methods)
    kind = str(inputs.dtype).removeprefix("torch.")
    if kind not in explainer.dtypes:
        raise UsageError(f"{backend} works in {', '.join(explainer.dtypes)}, not in {kind}")
    if inputs.ndim - 2 not in explainer.dimensions:
        shapes = " or ".join(f"[B, C, {layers.SPACE[d]}]" for d in explainer.dimensions)
        raise UsageError(f"{backend} explains inputs {shapes}, not {list(inputs.shape)}")
    if extras and not explainer.several_inputs:
        raise UsageError(f"{backend} explains models of one input, not of {1 + len(extras)}")
    # What the caller recorded stays recorded: nothing here is part of a graph of theirs.
    inputs, *others = (capture.usable(tensor.detach()) for tensor in (inputs, *extras))
    adapted = output is not None or score is not None
    model = Scored(module, output, score) if adapted else module
    named = {f"module.{name}".rstrip(".") if adapted else name: name for name in names}
    sweep = Sweep(model, inputs, tuple(named), tuple(methods), checked(choose, len(inputs)), tuple(others))
    with capture.as_it_was(model, inputs.device):
        try:
            found = explainer.many(sweep)
        except LayerError as error:
            error.args = (_renamed(str(error), named),)
            raise
    return {(method, named[layer]): value.detach() for (method, layer), value in found.items()}


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """`text` with the layers as the user calls them."""
    for name, own in names.items():
        text = text.replace(repr(name), repr(own))
    return text


def better_layer(module: nn.Module, layer: str, inputs: Tensor, *extras: Tensor) -> str:
    """A half-sentence with the automatic layer, for a layer whose maps say nothing, or ""."""
    try:
        (better,) = resolve_layers(module, "auto", inputs, *extras)
    except LayerError:
        return ""
    return f"; try layer {better!r}" if better != layer else ""


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
        hint = ": pass its .module" if isinstance(module, LoadedModel) else ""
        raise ModelError(f"a model is a torch.nn.Module, not {type(module).__name__}{hint}")
    return module


def _inputs(module: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
    """The inputs as a tuple, or a `UsageError` that says what is wrong with them."""
    several = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
    first = several[0] if several else None
    if not isinstance(first, Tensor) or not first.is_floating_point():
        kind = first.dtype if isinstance(first, Tensor) else type(first).__name__
        raise UsageError(f"inputs must be a floating-point tensor [B, C, H, W], not {kind}")
    planar = first.ndim == 3 and _first_convolution(module) is nn.Conv2d
    if first.ndim - 2 not in layers.SPACE or 0 in first.shape or planar:
        hint = ": add the batch dimension with inputs[None]" if first.ndim == 3 else ""
        raise UsageError(f"inputs must be [B, C, H, W], not {list(first.shape)}{hint}")
    for extra in several[1:]:
        if not isinstance(extra, Tensor) or extra.shape[:1] != first.shape[:1]:
            got = list(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__
            raise UsageError(
                f"further inputs must be tensors [{len(first)}, ...] like the first, not {got}"
            )
    return several


def _first_convolution(module: nn.Module) -> type[nn.Module] | None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    parts = module.modules() if isinstance(module, nn.Module) else ()
    return next((kind for part in parts for kind in kinds if isinstance(part, kind)), None)


def _converted(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    keep: bool,
) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A moved and cast copy, kept for the next call or not; convert once yourself when calling often."""
    where = inputs[0].device if device is None else models.pick_device(device)
    kind = inputs[0].dtype if dtype is None else models.pick_dtype(dtype)
    moved = tuple(x.to(where, kind if x.is_floating_point() else None) for x in inputs)

    def make() -> nn.Module:
        return copy.deepcopy(module).to(where, kind)

    return remembered(module, ("copy", where, kind), make) if keep else make(), moved
