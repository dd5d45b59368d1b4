"""The model source `yolo`: detectors of ultralytics, which is imported when one is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from camkit.errors import ModelError
from camkit.plugin import Detections, LoadedModel, ModelSource, Preprocess, yolo_network

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LOWEST = 0.01  # scores of boxes that are left out
OVERLAP = 0.7  # of boxes of one class of which the better one stays, as in ultralytics
MOST = 300  # boxes of a photograph


class YoloSource(ModelSource):
    """`yolo:FILE`, what `yolo detect train` has written."""

    summary = "ultralytics' YOLO detectors: FILE of `yolo detect train` (pip install ultralytics)"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The detector in a file, without unpickling its network."""
        module, names, settings = yolo_network(Path(reference), "DetectionModel", device)
        side = settings.get("imgsz")
        side = side if isinstance(side, int) and 32 <= side <= 2048 else 640
        shown = Preprocess(size=(side, side), fit="pad", mean=(0.0,) * 3, std=(1.0,) * 3)
        about: dict[str, Any] = {"default_layer": layer(module), "detections": Reader(len(names))}
        return LoadedModel(module.eval(), names, shown, f"yolo:{reference}", **about)


def layer(module: Any) -> str:
    """The last layer of the backbone: the one before anything is enlarged."""
    kinds = [type(part).__name__ for part in module.model]
    if "Upsample" not in kinds[1:]:
        return "auto"
    return f"model.{kinds.index('Upsample') - 1}"


class Reader:
    """Makes detections of what a `DetectionModel` returns; classes: how many there are."""

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def __call__(self, returned: Any) -> Detections:
        """From boxes and scores of all anchors `[B, 4 + n, A]`, or of end-to-end heads `[B, K, 6]`."""
        found: Tensor = returned[0] if isinstance(returned, tuple | list) else returned
        if found.ndim == 3 and found.shape[1] == 4 + self._classes:
            return Detections.padded([_suppressed(image) for image in found])
        if found.ndim == 3 and found.shape[2] == 6:
            return Detections(found[..., 4], found[..., 5].long(), found[..., :4])
        shape = list(found.shape)
        raise ModelError(f"a YOLO of {self._classes} classes returned {shape}, which are no boxes")


def _suppressed(image: Tensor) -> tuple[Tensor, ...]:
    """Scores, labels, boxes and classes of a photograph, `[4 + n, A]`, without what a better one covers."""
    import torch
    from torchvision.ops import batched_nms

    scores, labels = image[4:].max(0)
    best = scores.detach().topk(min(10 * MOST, len(scores))).indices
    best = best[scores.detach()[best] >= LOWEST]
    x, y, width, height = image[:4, best].detach().float()
    boxes = torch.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    keep = batched_nms(boxes, scores.detach()[best].float(), labels[best], OVERLAP)[:MOST]
    keep, boxes = best[keep], boxes[keep]
    return scores[keep], labels[keep], boxes, image[4:, keep].T
