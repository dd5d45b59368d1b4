"""Layers of a model: finding them by name, listing them, choosing one, reading their output as a map.

A target layer is known by its dotted name. Its output may be channels-first `[B, C, h, w]`,
channels-last `[B, h, w, C]` (Swin) or tokens `[B, N, C]` (ViT); a `Layout` says which and turns it,
or a gradient of the same shape, into channels-first. For signals `[B, C, L]` a feature map is
`[B, C, l]`, for volumes `[B, C, D, H, W]` it is `[B, C, d, h, w]` or `[B, d, h, w, C]`.
"""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from camkit.errors import LayerError, ModelError, closest

# --- names ----------------------------------------------------------------------------------------


def find(module: nn.Module, spec: str) -> list[str]:
    """Dotted names of the layers that `spec` means, in the order of the model.

    `layer4`, `layer4.-1`, `layer4[-1]`, and globs in which `*` and `?` stay within one part
    (`layer*.0`). Raises `LayerError` with the closest names if there is none.
    """
    text = re.sub(r"\[(-?\d+)\]", r".\1", spec.strip()).strip(".")
    matches: list[tuple[str, nn.Module]] = [("", module)]
    for part in text.split(".") if text else []:
        matches = [
            (f"{name}.{child}" if name else child, submodule)
            for name, parent in matches
            for child, submodule in _children(parent, part)
        ]
    names = [name for name, _ in matches if name]
    if not names:
        known = [name for name, _ in module.named_modules() if name]
        hint = closest(text, known)
        raise LayerError(
            f"{type(module).__name__} has no layer {spec!r}{hint} (`camkit model layers` lists them)"
        )
    return names


def name_of(module: nn.Module, layer: nn.Module) -> str:
    """The dotted name of `layer` within `module`; `LayerError` if it is not part of it."""
    for name, candidate in module.named_modules():
        if candidate is layer:
            return str(name)
    raise LayerError(f"the layer {type(layer).__name__} is not part of {type(module).__name__}")


def _children(parent: nn.Module, part: str) -> Iterator[tuple[str, nn.Module]]:
    children = list(parent.named_children())
    if re.fullmatch(r"-\d{1,9}", part):
        return iter(children[int(part) :][:1] if len(children) >= -int(part) else [])
    if "*" in part or "?" in part:
        return (item for item in children if fnmatch.fnmatchcase(item[0], part))
    return (item for item in children if item[0] == part)


# --- layouts --------------------------------------------------------------------------------------

# The positions of the inputs by their number of dimensions: signals, images, volumes.
SPACE = {1: "L", 2: "H, W", 3: "D, H, W"}


@dataclass(frozen=True)
class Layout:
    """How a layer's output holds a spatial map. `grid` is `(h, w)`, `prefix` the tokens before it."""

    kind: Literal["channels-first", "channels-last", "tokens"]
    grid: tuple[int, ...]
    prefix: int = 0

    def to_map(self, tensor: Tensor) -> Tensor:
        """`[..., C, h, w]` from an output, or a gradient, in this layout; a view."""
        if self.kind == "channels-first":
            return tensor
        if self.kind == "tokens":
            tokens = tensor[..., self.prefix :, :]
            tensor = tokens.reshape(*tokens.shape[:-2], *self.grid, tokens.shape[-1])
        return tensor.movedim(-1, -1 - len(self.grid))


def layout(output: Any, inputs: Sequence[int], name: str) -> Layout:
    """The layout of a layer's `output`, given the shape `[B, C, H, W]` of the model's inputs.

    A map has the proportions of the inputs: that tells channels-first from channels-last, and the
    grid of tokens from the class tokens before it. Raises `LayerError` if the output is no map.
    """
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise LayerError(f"layer {name!r} returns a {kind}, not a feature map; choose one inside it")
    shape, size = tuple(output.shape), tuple(inputs[2:])
    found: Layout | None = None
    if len(shape) == len(inputs):
        first, last = shape[2:], shape[1:-1]
        is_last = _misfit(last, size) < _misfit(first, size)
        found = Layout("channels-last", last) if is_last else Layout("channels-first", first)
    elif len(shape) == 3 and len(size) == 2:
        found = _token_grid(shape[1], size)
    if found is None or not output.is_floating_point():
        wanted = f"[B, C, {SPACE[len(size)].lower()}]"
        raise LayerError(
            f"the output {list(shape)} of layer {name!r} is not a feature map {wanted}; "
            "choose an earlier layer (`camkit model layers` shows the shapes)"
        )
    if math.prod(found.grid) == 1:
        raise LayerError(
            f"the output {list(shape)} of layer {name!r} has a single position, so there is no map; "
            "choose a layer before the pooling"
        )
    return found


def _token_grid(tokens: int, size: tuple[int, ...]) -> Layout | None:
    """Class and register tokens are few, so the smallest prefix that leaves a fitting grid is right."""
    for prefix in (0, 1, 2, 5):  # none; ViT; DeiT distilled; DINOv2 with registers
        count = tokens - prefix
        height = round(math.sqrt(count * size[0] / size[1])) if count > 1 else 0
        if height and count % height == 0:
            grid = (height, count // height)
            if _misfit(grid, size) < math.log(1.2):
                return Layout("tokens", grid, prefix)
    return None


def _misfit(grid: tuple[int, ...], size: tuple[int, ...]) -> float:
    """How far the proportions of a grid are from those of the inputs; zero for a single dimension.

    The depth of a volume does not count: it may be time.
    """
    scales = [math.log(g / s) for g, s in zip(grid, size, strict=True)][-2:]
    return max(scales) - min(scales)


# --- listing --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerRecord:
    """A layer as one forward saw it.

    shapes: one for each time it ran; `()` for an output that is not a tensor.
    parameters, trainable: its own, without its children's.
    grid: `(h, w)` if its output is a feature map that can carry an attribution map, else `None`.
    """

    name: str
    type: str
    shapes: tuple[tuple[int, ...], ...]
    parameters: int
    trainable: int
    leaf: bool
    pooling: bool
    grid: tuple[int, ...] | None


_POOLING = tuple(
    getattr(nn, f"{kind}{dimensions}d")
    for kind in ("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool", "Dropout")
    for dimensions in (1, 2, 3)
)


def trace(module: nn.Module, inputs: Tensor, *extras: Tensor) -> list[LayerRecord]:
    """Every layer that runs in one forward of `inputs`, in the order in which they finish.

    extras: what the module takes beside them.
    """
    outputs: dict[str, list[Any]] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, layer in module.named_modules():

            def record(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                shape = tuple(output.shape) if isinstance(output, Tensor) else ()
                runs = outputs.pop(name, [])  # re-inserted, so that the order is that of finishing
                outputs[name] = [*runs, (shape, _grid(output, inputs.shape, name))]

            stack.callback(layer.register_forward_hook(record).remove)
        module(inputs, *extras)
    return [_layer_record(name, module.get_submodule(name), runs) for name, runs in outputs.items()]


def parameter_totals(module: nn.Module) -> tuple[int, int]:
    """All parameters and those that require a gradient."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _layer_record(name: str, layer: nn.Module, runs: list[Any]) -> LayerRecord:
    own = list(layer.parameters(recurse=False))
    return LayerRecord(
        name=name,
        type=type(layer).__name__,
        shapes=tuple(shape for shape, _ in runs),
        parameters=sum(p.numel() for p in own),
        trainable=sum(p.numel() for p in own if p.requires_grad),
        leaf=next(layer.children(), None) is None,
        pooling=isinstance(layer, (*_POOLING, nn.Dropout)),
        grid=runs[0][1] if len(runs) == 1 else None,
    )


def _grid(output: Any, inputs: Sequence[int], name: str) -> tuple[int, ...] | None:
    try:
        return layout(output, inputs, name).grid
    except LayerError:
        return None


# --- automatic choice -----------------------------------------------------------------------------

# Where a family's last layer is not the right one: class name -> layer, tried in this order.
# After the last attention block of a ViT only the class token still matters, so the gradients of all
# patch tokens are zero there; the norm before the last attention is the last place where they are not.
FAMILIES: tuple[tuple[str, str], ...] = (
    ("VisionTransformer", "blocks.-1.norm1"),  # timm: ViT, DeiT
    ("VisionTransformerDistilled", "blocks.-1.norm1"),
    ("Eva", "blocks.-1.norm1"),
    ("Beit", "blocks.-1.norm1"),
    ("VisionTransformer", "encoder.layers.-1.ln_1"),  # torchvision
    ("SwinTransformer", "features"),  # torchvision; timm's has feature_info
    ("VGG", "features"),
    ("AlexNet", "features"),
    ("SqueezeNet", "features"),  # its classifier is a convolution with a map of its own
)


def automatic(module: nn.Module, inputs: Tensor, *extras: Tensor) -> str:
    """The layer that `auto` means: the deepest one that still has a map and lets gradients through.

    By the table of families for models whose last layer is not it, then timm's `feature_info`, then
    the last layer of a forward over `inputs` whose output is a feature map.
    """
    ancestors = {cls.__name__ for cls in type(module).__mro__}
    for family, spec in FAMILIES:
        if family in ancestors and (name := _existing(module, spec)):
            return name
    info: Any = getattr(module, "feature_info", None)
    if isinstance(info, list) and info and isinstance(info[-1], dict):
        name = _existing(module, str(info[-1].get("module")))
        if name:
            return name
    candidates = [r.name for r in trace(module, inputs, *extras) if r.name and r.grid and not r.pooling]
    if not candidates:
        raise LayerError(f"no layer of {type(module).__name__} returns a feature map [B, C, h, w]")
    return candidates[-1]


def resolve(
    module: nn.Module, specs: Sequence[str | nn.Module], inputs: Tensor, *extras: Tensor
) -> list[str]:
    """Dotted names for specifications, modules and `auto`, in order and without repetition."""
    names: list[str] = []
    for spec in specs:
        if isinstance(spec, nn.Module):
            names.append(name_of(module, spec))
        elif isinstance(spec, str):
            names += [automatic(module, inputs, *extras)] if spec == "auto" else find(module, spec)
        else:
            raise LayerError(f"a layer is a name or a module of the model, not {spec!r}")
    return list(dict.fromkeys(names))


def _existing(module: nn.Module, spec: str) -> str | None:
    try:
        return find(module, spec)[0]
    except LayerError:
        return None


def example_inputs(size: tuple[int, int], like: Tensor) -> Tensor:
    """Zeros `[1, 3, *size]` with the device and type of `like`, for a forward that only shows shapes."""
    if min(size) < 1:
        raise ModelError(f"input size {size} must be positive")
    return torch.zeros(1, 3, *size, device=like.device, dtype=like.dtype)
