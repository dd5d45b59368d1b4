"""Models of torchvision: classifiers, detectors, segmentations; pretrained, or with a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel
from camkit.errors import ModelError, ModelNotFound
from camkit.files import is_file
from camkit.images.preprocess import Preprocess
from camkit.models import torchvision_detection, torchvision_segmentation
from camkit.models.building import LibrarySource
from camkit.models.recognition import modern
from camkit.models.weights import download, put_weights, read_weights

# torchvision's own weights for these two expect inputs normalised once more inside the module.
INCEPTIONS = ("googlenet", "inception_v3")

# Other tasks than classification, with the same functions.
TASKS: tuple[Any, ...] = (torchvision_detection, torchvision_segmentation)


class TorchvisionSource(LibrarySource):
    """`torchvision:NAME[@WEIGHTS]`; WEIGHTS may also be a name of the model's weights enum."""

    scheme = "torchvision"
    summary = "torchvision's models: NAME, NAME@WEIGHTS, NAME@FILE, NAME@none (random weights)"

    def names(self) -> list[str]:
        """The classification models of torchvision."""
        from torchvision import models

        return list(models.list_models(module=models))

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """As of other libraries; of other tasks with weights of torchvision, of a file, or random ones."""
        name, _, weights = reference.partition("@")
        for task in TASKS:
            if name in task.names():
                return _of_task(task, name, weights, f"{self.scheme}:{reference}", device)
        return super().load(reference, device=device, trust=trust)

    def _names_like(self, name: str) -> list[str]:
        return [*self.names(), *(name for task in TASKS for name in task.names())]

    def preprocess(self, architecture: Mapping[str, Any]) -> Preprocess:
        """That of the architecture's usual weights."""
        return _preprocess(_enum(architecture["name"]).DEFAULT)

    def _build(self, name: str, count: int, architecture: Mapping[str, Any]) -> nn.Module:
        """For some networks the architecture has `transform_input`, `aux_logits` or `image_size`."""
        from torchvision.models import get_model

        extra: dict[str, Any] = {}
        if name in INCEPTIONS:
            defaults = {"transform_input": False, "aux_logits": True}
            extra = {key: bool(architecture.get(key, default)) for key, default in defaults.items()}
            extra["init_weights"] = False
        if name.startswith("vit_"):
            size = architecture.get("image_size", 224)
            if not isinstance(size, int) or not 1 <= size <= 2048:
                raise ModelError(f"image_size {size!r} of {name} must be 1 to 2048 pixels")
            extra = {"image_size": size}
        module: nn.Module = get_model(name, weights=None, num_classes=count, **extra)
        return module

    def _weights(self, name: str) -> list[str]:
        return ["DEFAULT", *(one.name for one in _enum(name))]

    def _load(self, name: str, weights: str, device: torch.device) -> LoadedModel:
        own = weights != "none"
        chosen = _enum(name)[weights] if own and weights not in ("", "DEFAULT") else _enum(name).DEFAULT
        categories = tuple(chosen.meta["categories"])
        architecture: dict[str, Any] = {"source": "torchvision", "name": name}
        architecture["num_classes"] = len(categories)
        if name in INCEPTIONS:
            architecture["transform_input"] = own
        if name.startswith("vit_"):  # their position embeddings are for one size
            architecture["image_size"] = chosen.transforms().crop_size[0]
        module = self.build(architecture)
        if own:
            put_weights(module, modern(read_weights(download(chosen.url))), chosen.name)
        shown = _preprocess(chosen)
        return LoadedModel(module.to(device).eval(), categories, shown, name, architecture=architecture)


def _for_use(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without those of a second head, which only training needs."""
    return {name: tensor for name, tensor in state.items() if not name.startswith("aux_classifier.")}


def _of_task(task: Any, name: str, weights: str, called: str, device: torch.device) -> LoadedModel:
    """A detector or segmentation; classes of weights of your own have no names, if they are others."""
    known = _enum(name)
    classes = task.categories(known.DEFAULT)
    path = None
    if weights in ("", "DEFAULT", *(one.name for one in known)):
        path = download((known[weights] if weights else known.DEFAULT).url)
    elif weights != "none":
        path = Path(weights)
        if not is_file(weights):
            options = ", ".join(["DEFAULT", *(one.name for one in known)])
            raise ModelNotFound(f"{weights!r} is neither a file nor weights of {name}: {options} or none")
    state = None if path is None else _for_use(read_weights(path))
    count = len(classes) if state is None else task.class_count(state, name)
    module = torchvision_detection.build(name, count)
    if state is not None:
        put_weights(module, state, str(path))
    own = classes if count == len(classes) else ()
    made: LoadedModel = task.from_module(module.to(device).eval(), called, own)
    return made


def _enum(name: str) -> Any:
    """The enum of the weights that torchvision has for a model."""
    from torchvision.models import get_model_weights

    return get_model_weights(name)


def _preprocess(weights: Any) -> Preprocess:
    transform = weights.transforms()
    return Preprocess(
        size=(transform.crop_size[0], transform.crop_size[0]),
        resize=transform.resize_size[0],
        interpolation=transform.interpolation.value,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )
