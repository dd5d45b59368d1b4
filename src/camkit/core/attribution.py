"""Attribution maps of any `nn.Module`: `maps`, `maps_by`, `class_maps`.

What surrounds a call in the same way for every explainer is in `run_explainer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.explainer import Explainer
from camkit.contracts.model import LoadedModel
from camkit.core import devices, layers
from camkit.core.call_types import Call, Inputs, Layer
from camkit.core.layer_lookup import as_list, resolve_layers
from camkit.core.layout import SPACE
from camkit.core.model_cache import remembered
from camkit.core.model_changes import copied
from camkit.core.run_explainer import check_module, run
from camkit.core.scored import Output, Score
from camkit.core.targets import Selector, Targets, every, target_selector
from camkit.errors import ModelError, UsageError, warn
from camkit.registry import loading


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
    layout: str | None = None,
    frozen: bool = False,
    **options: Any,
) -> Tensor:
    """Raw attribution maps `[B, h, w]` of a batch.

    module: any classifier from `[B, C, H, W]` to scores `[B, n_classes]`; unchanged afterwards.
    inputs: signals `[B, C, L]` have maps `[B, l]`, volumes `[B, C, D, H, W]` have `[B, d, h, w]`. Of
        several inputs, `[B, ...]` each, the maps lie over the first.
    targets: a class index for all inputs, one for each, or `None` for the predicted class. Or a function
        from what the model returns to one score for each row, `[B]`, such as the similarity to an embedding
        or the difference of two classes; some methods call it with a number of rows other than `B`.
    layer: a dotted name, a module of the model, or `auto`.
    output: where a model returns a tuple or a dict, the index, key or name of what is explained, or a
        function that extracts it.
    device, dtype: run on a moved or cast copy of the model instead.
    layout: how to read the layer's output, where that cannot be inferred: `channels-first`,
        `channels-last`, `tokens` `[B, N, C]` or `tokens-first` `[N, B, C]`.
    frozen: a promise that the model does not change between calls, so `fast=True` need not check.
    options: those of the backend, such as `fast=True` of `native` (`camkit plugin show BACKEND`).

    Maps are at least float32 and on the device of the inputs. NaN in a map stays NaN. For several layers or
    methods there is `maps_by`, for all classes `class_maps`.
    Raises `UsageError` (no such method, unusable inputs), `LayerError`, `TargetError`, `OptionError`,
    `PluginError`, `ModelError`, all of them in `camkit.errors`.
    """
    settings = {"output": output, "layout": layout, "frozen": frozen, "device": device, "dtype": dtype}
    found = maps_by(
        module, inputs, targets, layer=layer, method=method, backend=backend, **settings, **options
    )
    return _single(found, layer, method)


def maps_by(
    module: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    method: str | Sequence[str] = "gradcam",
    **call: Any,
) -> dict[tuple[str, str], Tensor]:
    """Raw maps `[B, h, w]` of several layers or methods from one call, by `(method, layer)`.

    The keys hold the full dotted name of a layer, even if an index or glob was given. call: everything
    else that `maps` takes.
    """
    tensors = _inputs(module, inputs)
    score = targets if callable(targets) else None
    found = _sweep(module, tensors, target_selector(targets, len(tensors[0])), layer, method, score, **call)
    return {key: value[:, 0] for key, value in found.items()}


def class_maps(
    module: nn.Module, inputs: Inputs, *, layer: Layer = "auto", method: str = "gradcam", **call: Any
) -> Tensor:
    """Raw maps of every class, `[B, n_classes, h, w]`; call: everything else that `maps` takes."""
    found = _sweep(module, _inputs(module, inputs), every, layer, method, None, **call)
    return _single(found, layer, method)


def _sweep(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    selector: Selector,
    layer: Layer | Sequence[Layer],
    method: str | Sequence[str],
    score: Score | None,
    /,  # options may have these names
    *,
    backend: str = "native",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    output: Output = None,
    layout: str | None = None,
    frozen: bool = False,
    **options: Any,
) -> dict[tuple[str, str], Tensor]:
    """Maps `[B, T, h, w]` by method and layer."""
    explainer: Explainer = loading.make("explainer", backend, options)
    module = _unwrapped(module)
    home, call = inputs[0].device, Call(output, score, layout, frozen)
    if device is not None or dtype is not None:
        keep = getattr(explainer.options, "fast", False)  # compiled code belongs to the copy
        original = module
        module, layer, inputs = _converted(module, layer, inputs, device, dtype, keep, call.frozen)
        call = replace(call, frozen=call.frozen or module is not original)  # nobody else has the copy
    first, *extras = inputs
    methods = [method] if isinstance(method, str) else list(method)
    needed = not set(methods) <= set(explainer.layerless)
    names = resolve_layers(module, layer, first, *extras, call=call, needed=needed)
    if not (methods and names):
        raise UsageError(f"there is nothing to do: no {'layer' if methods else 'method'} is given")
    answer = run(explainer, backend, module, first, names, methods, selector, extras=extras, call=call)
    for remark in answer.remarks:
        rows = remark.concerned.any(1).nonzero().flatten().tolist()
        prefix = "" if len(rows) == len(first) else f"image {', '.join(map(str, rows))}: "
        warn(prefix + remark.text)
    return {key: value.to(home) for key, value in answer.maps.items()}


def _single(found: dict[tuple[str, str], Tensor], layer: Any, method: Any) -> Tensor:
    """The one map of a call for one layer and one method."""
    if not isinstance(method, str) or not isinstance(layer, str | nn.Module):
        text = "a list of layers or methods gives a dict: call camkit.maps_by instead"
        warn(text, DeprecationWarning)
        return found  # type: ignore[return-value]  # as 0.1 did
    if len(found) > 1:
        names = ", ".join(name for _, name in found)
        raise UsageError(f"layer {layer!r} means several layers ({names}): camkit.maps_by takes them")
    return next(iter(found.values()))


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, on which hooks fire."""
    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, nn.Module):
        hint = ": pass its .module" if isinstance(module, LoadedModel) else ""
        raise ModelError(f"a model is a torch.nn.Module, not {type(module).__name__}{hint}")
    check_module(module)
    return module


def _inputs(module: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
    """The inputs as a tuple, or a `UsageError` that says what is wrong with them."""
    tensors = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
    first = tensors[0] if tensors else None
    if not isinstance(first, Tensor) or not first.is_floating_point():
        kind = first.dtype if isinstance(first, Tensor) else type(first).__name__
        raise UsageError(f"inputs must be a floating-point tensor [B, C, H, W], not {kind}")
    planar = first.ndim == 3 and _first_convolution(module) is nn.Conv2d
    if first.ndim - 2 not in SPACE or 0 in first.shape or planar:
        hint = ": add the batch dimension with inputs[None]" if first.ndim == 3 else ""
        raise UsageError(f"inputs must be [B, C, H, W], not {list(first.shape)}{hint}")
    for extra in tensors[1:]:
        if not isinstance(extra, Tensor) or extra.shape[:1] != first.shape[:1]:
            got = list(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__
            raise UsageError(
                f"further inputs must be tensors [{len(first)}, ...] like the first, not {got}"
            )
    return tensors


def _first_convolution(module: nn.Module) -> type[nn.Module] | None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    parts = module.modules() if isinstance(module, nn.Module) else ()
    return next((kind for part in parts for kind in kinds if isinstance(part, kind)), None)


def _converted(
    module: nn.Module,
    layer: Layer | Sequence[Layer],
    inputs: tuple[Tensor, ...],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    keep: bool,
    frozen: bool,
) -> tuple[nn.Module, Layer | Sequence[Layer], tuple[Tensor, ...]]:
    """A moved and cast copy, which `keep` keeps for the next call; for many calls, convert once yourself.

    If nothing changes it is the module itself. Layers given as modules become names: the copy has others.
    """
    where = inputs[0].device if device is None else devices.pick_device(device)
    kind = inputs[0].dtype if dtype is None else devices.pick_dtype(dtype)
    moved = tuple(x.to(where, kind if x.is_floating_point() else None) for x in inputs)
    tensors = [*module.parameters(), *module.buffers()]
    if all(t.device == where and (t.dtype == kind or not t.is_floating_point()) for t in tensors):
        return module, layer, moved

    def make() -> nn.Module:
        return copied(module).to(where, kind)

    names = [layers.name_of(module, one) if isinstance(one, nn.Module) else one for one in as_list(layer)]
    key = ("copy", where, kind)
    return remembered(module, key, make, frozen=frozen) if keep else make(), names, moved
