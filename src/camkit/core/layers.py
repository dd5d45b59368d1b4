"""Layers of a model: finding them by name and listing them. A layer is known by its dotted name."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camkit.core.layout import OpenOrder, layout, settle_many
from camkit.errors import LayerError, ModelError, closest


def find(module: nn.Module, pattern: str) -> list[str]:
    """Dotted names of the layers that `pattern` means, in the order of the model.

    `layer4`, `layer4.-1`, `layer4[-1]`, and globs in which `*` and `?` stay within one part
    (`layer*.0`). Raises `LayerError` with the closest names if there is none.
    """
    text = re.sub(r"\[(-?\d+)\]", r".\1", pattern.strip()).strip(".")
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
            f"{type(module).__name__} has no layer {pattern!r}{hint} (`camkit model layers` lists them)"
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


_KINDS = ("AdaptiveAvgPool", "AdaptiveMaxPool", "AvgPool", "MaxPool", "Dropout")
POOLING: tuple[type[nn.Module], ...] = (
    nn.Dropout,
    *(getattr(nn, f"{kind}{dimensions}d") for kind in _KINDS for dimensions in (1, 2, 3)),
)


def trace(module: nn.Module, inputs: Tensor, *extras: Tensor) -> list[LayerRecord]:
    """Every layer that runs in one forward of `inputs`, in the order in which they finish.

    extras: what the module takes besides them.
    """
    outputs: dict[str, list[Any]] = {}
    with ExitStack() as stack, torch.no_grad():
        for name, layer in module.named_modules():

            def record(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                runs = outputs.pop(name, [])  # re-inserted, to keep the order of finishing
                outputs[name] = [*runs, output.to("meta") if isinstance(output, Tensor) else output]

            stack.enter_context(layer.register_forward_hook(record))
        module(inputs, *extras)
    once = {name: runs[0] for name, runs in outputs.items() if len(runs) == 1 and name}
    unsettled = [name for name, output in once.items() if _grid(output, inputs, name, module) is None]
    settle_many(unsettled, module, inputs, *extras)
    return [
        _layer_record(
            name,
            module.get_submodule(name),
            runs,
            _grid(runs[0], inputs, name, module) if name in once else None,
        )
        for name, runs in outputs.items()
    ]


def parameter_totals(module: nn.Module) -> tuple[int, int]:
    """All parameters and those that require a gradient."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def _layer_record(
    name: str, layer: nn.Module, runs: list[Any], grid: tuple[int, ...] | None
) -> LayerRecord:
    own = list(layer.parameters(recurse=False))
    return LayerRecord(
        name=name,
        type=type(layer).__name__,
        shapes=tuple(tuple(run.shape) if isinstance(run, Tensor) else () for run in runs),
        parameters=sum(p.numel() for p in own),
        trainable=sum(p.numel() for p in own if p.requires_grad),
        leaf=next(layer.children(), None) is None,
        pooling=isinstance(layer, POOLING),
        grid=grid,
    )


def _grid(output: Any, inputs: Tensor, name: str, module: nn.Module) -> tuple[int, ...] | None:
    try:
        return layout(output, inputs.shape, name, module=module).grid
    except OpenOrder as error:  # which changes no grid
        return error.reading.grid
    except LayerError:
        return None


def resolve(
    module: nn.Module,
    wanted: Sequence[str | nn.Module],
    auto: Callable[[], str],
    every: Callable[[], Sequence[str]] = tuple,
) -> list[str]:
    """Dotted names for patterns, modules, `auto` and `all`, in order and without repetition."""
    names: list[str] = []
    for layer in wanted:
        if isinstance(layer, nn.Module):
            names.append(name_of(module, layer))
        elif isinstance(layer, str):
            names += [auto()] if layer == "auto" else every() if layer == "all" else find(module, layer)
        else:
            raise LayerError(f"a layer is a name or a module of the model, not {layer!r}")
    return list(dict.fromkeys(names))


def example_inputs(size: tuple[int, int], like: Tensor, channels: int = 3) -> Tensor:
    """Noise `[1, channels, *size]`, always the same, of the device and type of `like`."""
    if min(size) < 1:
        raise ModelError(f"input size {size} must be positive")
    noise = torch.randn(1, channels, *size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)
