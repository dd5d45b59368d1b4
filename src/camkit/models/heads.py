"""Heads that users put on a network in place of its own, told from the names and shapes of their tensors.

A head is one layer in JSON, `["Linear", 512, 3, true]`, or a list of layers for a `Sequential`, so that a
bundle can hold it. What has no tensors leaves no trace but a gap in the numbering of a `Sequential`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from camkit.errors import ModelError

Layers = list[Any]

MAX_LAYERS = 64
# What a layer of the list becomes. Gaps are `Identity`: dropout does nothing in evaluation.
KINDS: dict[str, Callable[..., nn.Module]] = {
    "Linear": lambda inputs, outputs, bias: nn.Linear(inputs, outputs, bias=bias),
    "BatchNorm1d": nn.BatchNorm1d,
    "LayerNorm": nn.LayerNorm,
    "ReLU": nn.ReLU,
    "Flatten": nn.Flatten,
    "Identity": nn.Identity,
}


def read_head(tensors: Mapping[str, Tensor]) -> Layers | None:
    """The layers of a head with these tensors, `1.weight` and so on; `None` if that cannot be told.

    Between two `Linear` a gap begins with an activation, of which nothing is known: a ReLU, as is usual.
    A gap at the beginning flattens, which does nothing to vectors.
    """
    if tensors and set(tensors) <= {"weight", "bias"}:
        return _layer(tensors)
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(\d{1,2})\.(\w+)", name)
        if not found:
            return None
        parts.setdefault(int(found[1]), {})[found[2]] = tensor
    if not parts or max(parts) >= MAX_LAYERS:
        return None
    layers: Layers = []
    waits = False  # whether the scores of a Linear have had no activation yet
    for position in range(max(parts) + 1):
        if position in parts:
            layer = _layer(parts[position])
            if layer is None:
                return None
            waits = waits or layer[0] == "Linear"
        elif position == 0:
            layer = ["Flatten"]
        else:
            layer, waits = (["ReLU"], False) if waits else (["Identity"], False)
        layers.append(layer)
    return layers


def build_head(head: object) -> nn.Module:
    """The module of a head, which may be a stranger's. `ModelError` if it is none."""
    if not isinstance(head, list) or not 1 <= len(head) <= MAX_LAYERS:
        raise ModelError(f"a head is a list of 1 to {MAX_LAYERS} layers, not {head!r:.80}")
    made = [_built(layer) for layer in layers_of(head)]
    return made[0] if isinstance(head[0], str) else nn.Sequential(*made)


def layers_of(head: Layers) -> list[list[Any]]:
    """The layers of a head, be it one or several."""
    return [head] if isinstance(head[0], str) else head


def outputs(head: Layers) -> int:
    """How many scores a head makes."""
    return next((int(layer[2]) for layer in reversed(layers_of(head)) if layer[0] == "Linear"), 0)


def shown(head: Layers) -> str:
    """A head for people: `Linear(512, 256), ReLU, Linear(256, 3)`."""
    texts = [
        f"{name}({', '.join(map(str, sizes[:2]))})" if sizes else name for name, *sizes in layers_of(head)
    ]
    return ", ".join(text for text in texts if text not in ("Identity", "Flatten"))


def assumptions(head: Layers) -> list[str]:
    """What is assumed of the layers that have no tensors, for people."""
    kinds = [layer[0] for layer in layers_of(head)]
    relu = ["the ReLU in the head is assumed"] if "ReLU" in kinds else []
    return relu + (["gaps in the head are taken for dropout"] if {"Identity", "Flatten"} & {*kinds} else [])


def _built(layer: object) -> nn.Module:
    if not isinstance(layer, list) or not layer or not isinstance(layer[0], str) or layer[0] not in KINDS:
        raise ModelError(f"a head has no layer {layer!r:.80}: {', '.join(KINDS)}")
    if not all(isinstance(size, int) and 0 <= size <= 1_000_000 for size in layer[1:]):
        raise ModelError(f"the layer {layer!r:.80} of a head has impossible sizes")
    try:
        return KINDS[layer[0]](*layer[1:])
    except TypeError:
        raise ModelError(f"the layer {layer!r:.80} of a head has another number of sizes") from None


def _layer(tensors: Mapping[str, Tensor]) -> list[Any] | None:
    """A layer with these tensors."""
    names = set(tensors) - {"num_batches_tracked"}
    weight = tensors.get("weight")
    if weight is None or not names <= {"weight", "bias", "running_mean", "running_var"}:
        return None
    if weight.ndim == 2 and "running_mean" not in names:
        return ["Linear", weight.shape[1], weight.shape[0], "bias" in names]
    if weight.ndim == 1 and names == {"weight", "bias", "running_mean", "running_var"}:
        return ["BatchNorm1d", weight.shape[0]]
    if weight.ndim == 1 and names == {"weight", "bias"}:
        return ["LayerNorm", weight.shape[0]]
    return None
