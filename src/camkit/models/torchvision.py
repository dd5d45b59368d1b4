"""Models of torchvision, with pretrained weights or a file of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError, ModelNotFound, closest
from camkit.files import is_file
from camkit.images.preprocess import Preprocess
from camkit.models.building import built, class_names, read_architecture
from camkit.models.weights import (
    download,
    read_weights,
    seeded,
)

# torchvision's own weights for these two expect inputs normalised once more inside the module.
INCEPTIONS = ("googlenet", "inception_v3")


class TorchvisionSource(ModelSource):
    """`torchvision:NAME[@WEIGHTS]`."""

    summary = "torchvision's models: NAME, NAME@WEIGHTS, NAME@FILE, NAME@none (random weights)"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """WEIGHTS is a name of the model's weights enum, a file, or `none`; left out, the default."""
        from torchvision.models import get_model_weights

        name, _, wanted = reference.partition("@")
        self._known(name)
        enum = get_model_weights(name)
        by_name = {weights.name: weights for weights in enum}
        chosen = by_name.get(wanted) or enum.DEFAULT
        if wanted in by_name or wanted in ("", "DEFAULT"):
            state = read_weights(download(chosen.url))
        elif wanted == "none":
            state = None
        elif is_file(wanted):
            state = read_weights(Path(wanted))
        else:
            raise ModelNotFound(
                f"{wanted!r} is neither a file nor weights of {name}: {', '.join(by_name)} or none"
            )
        count = len(chosen.meta["categories"])
        architecture: dict[str, Any] = {"source": "torchvision", "name": name, "num_classes": count}
        if name in INCEPTIONS:
            architecture["transform_input"] = wanted in ("", "DEFAULT", *by_name)
        transform = chosen.transforms()
        if name.startswith("vit_"):  # their position embeddings are for one size
            architecture["image_size"] = transform.crop_size[0]
        module, architecture = built(self, architecture, _current(state), wanted or chosen.name)
        preprocess = Preprocess(
            size=(transform.crop_size[0], transform.crop_size[0]),
            resize=transform.resize_size[0],
            interpolation=transform.interpolation.value,
            mean=tuple(transform.mean),
            std=tuple(transform.std),
        )
        return LoadedModel(
            module.to(device).eval(),
            class_names(architecture["num_classes"]),
            preprocess,
            name=f"torchvision:{reference}",
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"name": ..., "num_classes": ...}`, for some with `transform_input` or `image_size`."""
        from torchvision.models import get_model

        name, count = read_architecture(architecture)
        self._known(name)
        extra: dict[str, Any] = {}
        if name in INCEPTIONS:
            scaled = bool(architecture.get("transform_input", False))
            extra = {"init_weights": False, "transform_input": scaled}
        if name.startswith("vit_"):
            size = architecture.get("image_size", 224)
            if not isinstance(size, int) or not 1 <= size <= 2048:
                raise ModelError(f"image_size {size!r} of {name} must be 1 to 2048 pixels")
            extra = {"image_size": size}
        return seeded(lambda: get_model(name, weights=None, num_classes=count, **extra))

    def names(self) -> list[str]:
        """The classification models of torchvision."""
        from torchvision import models

        return list(models.list_models(module=models))

    def _known(self, name: str) -> None:
        if name not in (names := self.names()):
            hint = closest(name, names) or "; `camkit model list 'torchvision:*'` shows all"
            raise ModelNotFound(f"torchvision has no classifier {name!r}{hint}")


def _current(state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """Torchvision's DenseNet weights have names that torch no longer allows: `norm.1` is `norm1`."""
    names = {name: re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", name) for name in state or ()}
    if state is None or all(old == new for old, new in names.items()):
        return state
    return {new: state[old] for old, new in names.items()}
