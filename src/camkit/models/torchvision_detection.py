"""Torchvision's detectors: Faster, Mask and Keypoint R-CNN, RetinaNet, FCOS, SSD, SSDlite.

They resize and normalise photographs themselves, and fill the edges up to a multiple of 32 pixels, on which
a map over the photograph would be shifted. So they are shown photographs of one size, which they resize to
multiples of 32 instead. Boxes come back in pixels of what they are shown.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from camkit.contracts.detections import Detections
from camkit.contracts.model import LoadedModel
from camkit.errors import ModelError
from camkit.images.preprocess import Preprocess
from camkit.models import labels
from camkit.models.weights import seeded

COCO = "fasterrcnn_resnet50_fpn"  # which has weights with the names of its classes
LOWEST = 0.01  # boxes with lower scores are left out, of which there are many; the models leave out more


@dataclass(frozen=True)
class Family:
    """What is own to detectors of a kind.

    collecting: the part of its backbone whose children are the stages. count: how many classes it knows.
    """

    collecting: str
    count: Callable[[Any], int]


# Every level of a feature pyramid gets something of the last stage of the backbone. SSD has no such way
# back: boxes of the first of its levels depend on what is below that alone.
FAMILIES: Mapping[str, Family] = {
    **dict.fromkeys(
        ("FasterRCNN", "MaskRCNN", "KeypointRCNN"),
        Family("backbone.body", lambda m: int(m.roi_heads.box_predictor.cls_score.out_features)),
    ),
    "RetinaNet": Family("backbone.body", lambda m: int(m.head.classification_head.num_classes)),
    "FCOS": Family("backbone.body", lambda m: int(m.head.classification_head.num_classes)),
    "SSD": Family("backbone.features", lambda m: int(m.head.classification_head.num_columns)),
}
# The classes of which their modules are.
KINDS = tuple(
    f"torchvision.models.detection.{module}"
    for module in ("generalized_rcnn.GeneralizedRCNN", "retinanet.RetinaNet", "fcos.FCOS", "ssd.SSD")
)


def names() -> list[str]:
    """The detectors of torchvision."""
    from torchvision import models

    return list(models.list_models(module=models.detection))


def categories(weights: Any) -> tuple[str, ...]:
    """The classes of torchvision's weights, of which some have no name."""
    known = enumerate(weights.meta["categories"])
    return tuple(f"unused {index}" if name == "N/A" else name for index, name in known)


def build(name: str, count: int) -> nn.Module:
    """A detector with random weights; or a segmentation, without the head that only training needs."""
    from torchvision.models import get_model

    def make() -> nn.Module:
        made: nn.Module = get_model(name, weights=None, weights_backbone=None, num_classes=count)
        return made

    return seeded(make)


def class_count(state: Mapping[str, Tensor], name: str) -> int:
    """How many classes weights of a detector tell apart; `ModelError` if they are of another network."""
    reference = build(name, 91).state_dict()
    for key, tensor in reference.items():
        own = state.get(key)
        if own is None or own.ndim != tensor.ndim:
            raise ModelError(f"these are no weights of {name}: {key} is missing or has another shape")
        if len(tensor) != len(own) and len(tensor) % 91 == 0 and "bbox" not in key:
            count, rest = divmod(len(own), len(tensor) // 91)
            if not rest:
                return count
    return 91


def from_module(module: Any, name: str, classes: tuple[str, ...] = ()) -> LoadedModel:
    """A detector of torchvision as a model, without a change to it: parts are shared with `module`."""
    from torchvision.models import get_model_weights

    kind = next(kind for kind in (cls.__name__ for cls in type(module).__mro__) if kind in FAMILIES)
    family = FAMILIES[kind]
    made = _shared(module, transform=_resizing(module.transform))
    if hasattr(made, "roi_heads"):
        made = _shared(made, roi_heads=_shared(made.roi_heads))
    of_scores = made.roi_heads if hasattr(made, "roi_heads") else made
    of_scores.score_thresh = min(of_scores.score_thresh, LOWEST)
    height, width = made.transform.shown
    shown = Preprocess(size=(height, width), fit="pad", mean=(0.0,) * 3, std=(1.0,) * 3)
    if module.transform.fixed_size is not None:
        shown = Preprocess(size=(height, width), fit="squash", mean=(0.0,) * 3, std=(1.0,) * 3)
    notes, count = {}, family.count(module)
    if not classes and count == len(coco := categories(get_model_weights(COCO).DEFAULT)):
        classes, notes = coco, {"classes": f"its {count} classes are taken for those of COCO: --classes"}
    classes = classes or labels.numbered(count)
    layer = _layer(module, family.collecting)
    return LoadedModel(made, classes, shown, name, default_layer=layer, detections=read, notes=notes)


def read(returned: Any) -> Detections:
    """Of the list of dicts that they return."""
    return Detections.padded([(one["scores"], one["labels"], one["boxes"]) for one in returned])


def _layer(module: nn.Module, collecting: str) -> str:
    """The deepest layer that all boxes depend on, by how torchvision builds backbones; of others `auto`.

    collecting: the part of the backbone whose children are its stages.
    """
    parts = dict(module.named_modules())
    backbone, part = parts["backbone"], parts.get(collecting)
    if part is None:
        return "auto"
    if type(backbone).__name__ == "SSDFeatureExtractorVGG":  # all of it is below the first level
        return collecting
    stages = [name for name, _ in part.named_children()]
    return f"{collecting}.{stages[0 if collecting == 'backbone.features' else -1]}"


def _shared(module: Any, **parts: nn.Module) -> Any:
    """Another module with the same parts and tensors, but for `parts`."""
    made = copy.copy(module)
    made.__dict__["_modules"] = {**module._modules, **parts}
    return made


def _resizing(transform: Any) -> Any:
    """Torchvision's transform, resizing to multiples of its divisor, so that no edge is filled up."""
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    class Resizing(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
        """Sides become multiples of the divisor; `shown`: height and width that stay as they are."""

        def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
            """`image` `[C, H, W]` at another size."""
            if self.fixed_size is not None:
                resized: tuple[Tensor, Any] = super().resize(image, target)
                return resized
            high, wide = image.shape[-2:]
            scale = min(self.min_size[-1] / min(high, wide), self.max_size / max(high, wide))
            size = [self.rounded(side * scale) for side in (high, wide)]
            if size == [high, wide]:
                return image, target
            return nn.functional.interpolate(image[None], size, mode="bilinear")[0], target

        def rounded(self, side: float) -> int:
            """The next multiple of the divisor, at least one."""
            step: int = self.size_divisible
            return max(1, round(side / step)) * step

        @property
        def shown(self) -> tuple[int, int]:
            if self.fixed_size is not None:
                return self.fixed_size[1], self.fixed_size[0]
            side = self.rounded(self.min_size[-1])
            return side, side

    made = Resizing.__new__(Resizing)
    made.__dict__ = {**transform.__dict__}
    return made
