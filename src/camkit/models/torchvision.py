"""Models of torchvision, with pretrained weights or a file of one's own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from camkit.errors import ModelError, ModelNotFound
from camkit.files import is_file
from camkit.images.preprocess import Preprocess
from camkit.models.building import Architecture, LibrarySource
from camkit.models.weights import download, read_weights

# torchvision's own weights for these two expect inputs normalised once more inside the module.
INCEPTIONS = ("googlenet", "inception_v3")


class TorchvisionSource(LibrarySource):
    """`torchvision:NAME[@WEIGHTS]`; WEIGHTS may also be a name of the model's weights enum."""

    scheme = "torchvision"
    summary = "torchvision's models: NAME, NAME@WEIGHTS, NAME@FILE, NAME@none (random weights)"

    def names(self) -> list[str]:
        """The classification models of torchvision."""
        from torchvision import models

        return list(models.list_models(module=models))

    def _build(self, name: str, count: int, architecture: Mapping[str, Any]) -> nn.Module:
        """For some networks the architecture has `transform_input` or `image_size`."""
        from torchvision.models import get_model

        extra: dict[str, Any] = {}
        if name in INCEPTIONS:
            scaled = bool(architecture.get("transform_input", False))
            extra = {"init_weights": False, "transform_input": scaled}
        if name.startswith("vit_"):
            size = architecture.get("image_size", 224)
            if not isinstance(size, int) or not 1 <= size <= 2048:
                raise ModelError(f"image_size {size!r} of {name} must be 1 to 2048 pixels")
            extra = {"image_size": size}
        return get_model(name, weights=None, num_classes=count, **extra)  # type: ignore[no-any-return]

    def _load(self, architecture: Architecture, weights: str) -> tuple[nn.Module, Architecture, Preprocess]:
        from torchvision.models import get_model_weights

        name = architecture["name"]
        enum = get_model_weights(name)
        by_name = {"": enum.DEFAULT, "DEFAULT": enum.DEFAULT, **{one.name: one for one in enum}}
        chosen = by_name.get(weights, enum.DEFAULT)
        if weights in by_name:
            state = read_weights(download(chosen.url))
        elif weights == "none":
            state = None
        elif is_file(weights):
            state = read_weights(Path(weights))
        else:
            known = ", ".join(one.name for one in enum)
            raise ModelNotFound(f"{weights!r} is neither a file nor weights of {name}: {known} or none")
        transform = chosen.transforms()
        size = transform.crop_size[0]
        architecture = {**architecture, "num_classes": len(chosen.meta["categories"])}
        if name in INCEPTIONS:
            architecture["transform_input"] = weights in by_name
        if name.startswith("vit_"):  # their position embeddings are for one size
            architecture["image_size"] = size
        module, architecture = self._fitted(architecture, _current(state), weights or chosen.name)
        preprocess = Preprocess(
            size=(size, size),
            resize=transform.resize_size[0],
            interpolation=transform.interpolation.value,
            mean=tuple(transform.mean),
            std=tuple(transform.std),
        )
        return module, architecture, preprocess


def _current(state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """Torchvision's DenseNet weights have names that torch no longer allows: `norm.1` is `norm1`."""
    names = {name: re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", name) for name in state or ()}
    if state is None or all(old == new for old, new in names.items()):
        return state
    return {new: state[old] for old, new in names.items()}
