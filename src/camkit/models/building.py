"""What the sources of models share: modules with the right number of classes, and their names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError, ModelNotFound, closest
from camkit.images.preprocess import Preprocess
from camkit.models.weights import built_for, head_size, put_weights, seeded

Architecture = dict[str, Any]  # JSON values: `source`, `name`, `num_classes` and what else a network needs


class LibrarySource(ModelSource):
    """The classifiers of a library, `SCHEME:NAME[@WEIGHTS]`: its own weights, a file, or random ones."""

    scheme: ClassVar[str]

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """WEIGHTS is a file with a state dict or `none`; left out, the library's own are fetched."""
        name, _, weights = reference.partition("@")
        self._check_name(name)
        module, architecture, preprocess = self._load({"source": self.scheme, "name": name}, weights)
        return LoadedModel(
            module.to(device).eval(),
            class_names(architecture["num_classes"]),
            preprocess,
            name=f"{self.scheme}:{reference}",
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"name": ..., "num_classes": ...}`, and what else the network needs; weights are random."""
        name, count = read_architecture(architecture)
        self._check_name(name)
        return seeded(lambda: self._build(name, count, architecture))

    @abstractmethod
    def _load(self, architecture: Architecture, weights: str) -> tuple[nn.Module, Architecture, Preprocess]:
        """The module with its weights, all of its architecture, and how photographs are prepared for it."""

    @abstractmethod
    def _build(self, name: str, count: int, architecture: Mapping[str, Any]) -> nn.Module: ...

    def _names_like(self, name: str) -> Iterable[str]:
        return self.names()

    def _check_name(self, name: str) -> None:
        if name not in (names := list(self._names_like(name))):
            hint = closest(name, names) or f"; `camkit model list '{self.scheme}:*'` shows all"
            raise ModelNotFound(f"{self.scheme} has no classifier {name!r}{hint}")

    def _fitted(
        self, architecture: Architecture, state: Mapping[str, Tensor] | None, where: str
    ) -> tuple[nn.Module, Architecture]:
        """A module, with weights if there are any; they decide the number of classes."""
        module = self.build(architecture)
        if state is None:
            return module, architecture
        count = head_size(state, module)
        if count != architecture["num_classes"]:  # as a stranger's tensor says
            architecture = {**architecture, "num_classes": count}
            with built_for(sum(tensor.nbytes for tensor in state.values())):
                module = self.build(architecture)
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
