"""Torchvision's segmentations: FCN, DeepLabV3, LRASPP. They return `{"out": [B, K, H, W]}`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.errors import ModelError
from camkit.images.preprocess import Preprocess
from camkit.models import labels

VOC = "fcn_resnet50"  # which has weights with the names of its classes
SIDE = 520  # pixels of the shorter side of what they were trained on
# The classes of which their modules are, and the last layer of each, which has an output for each class.
HEADS = {"FCN": "classifier.4", "DeepLabV3": "classifier.4", "LRASPP": "classifier.low_classifier"}
KINDS = tuple(
    f"torchvision.models.segmentation.{module}"
    for module in ("_utils._SimpleSegmentationModel", "lraspp.LRASPP")
)


def names() -> list[str]:
    """The segmentations of torchvision."""
    from torchvision import models

    return list(models.list_models(module=models.segmentation))


def categories(weights: Any) -> tuple[str, ...]:
    """The classes of torchvision's weights."""
    return tuple(weights.meta["categories"])


def class_count(state: Mapping[str, Tensor], name: str) -> int:
    """How many classes weights tell apart; `ModelError` if they are of another network."""
    for head in set(HEADS.values()):
        if (weight := state.get(f"{head}.weight")) is not None:
            return len(weight)
    raise ModelError(f"these are no weights of {name}: it has no last layer of a segmentation")


def from_module(module: Any, name: str, classes: tuple[str, ...] = ()) -> LoadedModel:
    """A segmentation as a model; photographs are shown whole, in a square filled up with black."""
    from torchvision.models import get_model_weights

    kind = next(cls.__name__ for cls in type(module).__mro__ if cls.__name__ in HEADS)
    count = int(module.get_submodule(HEADS[kind]).out_channels)
    notes, known = {}, categories(get_model_weights(VOC).DEFAULT)
    if not classes and count == len(known):
        classes, notes = known, {"classes": f"its {count} classes are taken for those of VOC: --classes"}
    last = [part for part, _ in module.backbone.named_children()][-1]
    return LoadedModel(
        module,
        classes or labels.numbered(count),
        Preprocess(size=(SIDE, SIDE), fit="pad"),
        name,
        default_layer=f"backbone.{last}",
        segments=read,
        notes=notes,
    )


def read(returned: Any) -> Tensor:
    """The scores of all classes at all places, `[B, K, H, W]`."""
    scores: Tensor = returned["out"]
    return scores
