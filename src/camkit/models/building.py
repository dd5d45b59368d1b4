"""What the sources of models share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError, ModelNotFound, closest
from camkit.files import is_file
from camkit.models.checkpoint import WholeModel
from camkit.models.recognition import changed
from camkit.models.weights import seeded
from camkit.models.weights_file import load_weights
from camkit.registry import loading


class LibrarySource(ModelSource):
    """The classifiers of a library, `SCHEME:NAME[@WEIGHTS]`: its own weights, a file, or random ones."""

    scheme: ClassVar[str]

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """WEIGHTS is a file of them or `none`; left out, the library's own are fetched."""
        name, _, weights = reference.partition("@")
        self._check_name(name)
        own = self._weights(name)
        if weights not in ("", "none", *own):
            if own and not is_file(weights):
                raise ModelNotFound(
                    f"{weights!r} is neither a file nor weights of {name}: {', '.join(own)} or none"
                )
            try:
                return load_weights(Path(weights), device=device, name=f"{self.scheme}:{name}")
            except WholeModel:  # which is its own architecture
                if not trust:
                    raise
                source: ModelSource = loading.make("model", "file")
                return source.load(weights, device=device, trust=True)
        return replace(self._load(name, weights, device), name=f"{self.scheme}:{reference}")

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"name": ..., "num_classes": ...}`, and what else the network needs; weights are random."""
        name, count = read_architecture(architecture)
        self._check_name(name)
        return seeded(lambda: changed(self._build(name, count, architecture), architecture))

    @abstractmethod
    def _load(self, name: str, weights: str, device: torch.device) -> LoadedModel:
        """The model with weights of the library, its usual ones if none are named, or with random ones."""

    def _weights(self, name: str) -> Sequence[str]:
        """What weights of its own the library has for a model, by their names."""
        return ()

    @abstractmethod
    def _build(self, name: str, count: int, architecture: Mapping[str, Any]) -> nn.Module: ...

    def _names_like(self, name: str) -> Iterable[str]:
        return self.names()

    def _check_name(self, name: str) -> None:
        if name not in (names := list(self._names_like(name))):
            hint = closest(name, names) or f"; `camkit model list '{self.scheme}:*'` shows all"
            raise ModelNotFound(f"{self.scheme} has no classifier {name!r}{hint}")


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
