"""What the sources of models share: modules with the right number of classes, and their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from camkit.contracts.model import ModelSource
from camkit.errors import ModelError
from camkit.models.weights import (
    built_for,
    head_size,
    put_weights,
)


def built(
    source: ModelSource, architecture: dict[str, Any], state: Mapping[str, Tensor] | None, where: str
) -> tuple[nn.Module, dict[str, Any]]:
    """A module, with weights if there are any; they decide the number of classes."""
    module = source.build(architecture)
    if state is None:
        return module, architecture
    count = head_size(state, module)
    if count != architecture["num_classes"]:  # as a stranger's tensor says
        architecture = {**architecture, "num_classes": count}
        with built_for(sum(tensor.nbytes for tensor in state.values())):
            module = source.build(architecture)
    put_weights(module, state, where)
    return module, architecture


def read_architecture(data: Mapping[str, Any]) -> tuple[str, int]:
    """Name and number of classes of a bundle's architecture; `ModelError` if they are none."""
    name, count = data.get("name"), data.get("num_classes")
    if not isinstance(name, str) or not isinstance(count, int) or not 1 <= count <= 100_000:
        raise ModelError(f"architecture needs a name and 1 to 100000 num_classes, not {dict(data)}")
    return name, count


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 readable class names of ImageNet-1k, in the order every model uses."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def class_names(count: int) -> tuple[str, ...]:
    """Those of ImageNet for 1000 classes, else numbered ones."""
    return imagenet_classes() if count == 1000 else tuple(f"class_{i}" for i in range(count))
