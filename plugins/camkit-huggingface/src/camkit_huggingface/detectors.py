"""Detectors of transformers, `...ForObjectDetection`: DETR and those after it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camkit.errors import ModelError
from camkit.plugin import Detections, Preprocess
from camkit_huggingface import processor as processors

MAX_SIDE = 2048  # pixels of what a model is shown


class Detector(nn.Module):
    """From pixels `[B, 3, H, W]` to logits `[B, N, n]` and boxes `[B, N, 4]` in pixels, left to bottom.

    flip: as of `Classifier`.
    """

    def __init__(self, model: Any, flip: bool = False) -> None:
        super().__init__()
        self.model = model
        self.flip = flip

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of all queries."""
        pixels = pixels.flip(1) if self.flip else pixels
        found = self.model(pixel_values=pixels, return_dict=True)
        x, y, width, height = found.pred_boxes.unbind(2)
        sides = pixels.shape[3], pixels.shape[2], pixels.shape[3], pixels.shape[2]
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        boxes = torch.stack([value * side for value, side in zip(corners, sides, strict=True)], 2)
        return found.logits, boxes


class Reader:
    """Makes detections of what a `Detector` returns: each query with its best class.

    classes: how many there are. With one logit more it is that of no object, and all are a softmax; with as
    many each is a sigmoid.
    """

    def __init__(self, classes: int) -> None:
        self._classes = classes

    def __call__(self, returned: tuple[Tensor, Tensor]) -> Detections:
        """`ModelError` for another number of logits."""
        logits, boxes = returned
        if logits.shape[2] not in (self._classes, self._classes + 1):
            raise ModelError(f"it has {logits.shape[2]} logits of a box for {self._classes} classes")
        exclusive = logits.shape[2] > self._classes
        likely = logits.softmax(2)[..., :-1] if exclusive else logits.sigmoid()
        scores, labels = likely.max(2)
        return Detections(scores, labels, boxes, likely)


def shown(processor: Any) -> tuple[Preprocess, bool]:
    """What the model is shown, and whether with its channels turned round; of one size, so without a mask.

    The whole photograph: squashed where the processor has height and width, else in a square of its shorter
    edge, filled up with black. Raises `ModelError` for a processor that has neither.
    """
    sides = {name: int(value) for name, value in dict(processor.size or {}).items() if value}
    if processor.do_resize and "shortest_edge" in sides:
        mean, std = processors.colours(processor)
        preprocess = Preprocess(
            size=(sides["shortest_edge"],) * 2,
            fit="pad",
            interpolation=processors.filter_of(processor),
            mean=mean,
            std=std,
        )
        flip = bool(getattr(processor, "do_flip_channel_order", False))
    else:
        preprocess, flip = processors.shown(processor, beside=("pixel_mask",))
    if max(preprocess.size) > MAX_SIDE:
        height, width = preprocess.size
        raise ModelError(f"its image processor shows {height} x {width} pixels: more than {MAX_SIDE}")
    return preprocess, flip


def layer(module: Detector, size: tuple[int, int]) -> str:
    """The last layer of the coarsest stage of the backbone, on which all boxes depend.

    Raises `ModelError` where there is no backbone whose outputs are maps, as of YOLOS: elsewhere queries
    would be taken for places.
    """
    outputs: dict[str, list[Tensor]] = {}
    hooks = []
    for name, part in module.named_modules():
        if ".backbone." in f".{name}.":

            def note(_: nn.Module, __: Any, output: Any, name: str = name) -> None:
                if isinstance(output, Tensor) and output.ndim == 4:
                    outputs.setdefault(name, []).append(output)

            hooks.append(part.register_forward_hook(note))
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, *size))
            module(torch.linspace(-2, 2, 3 * size[0] * size[1]).reshape(1, 3, *size))
    finally:
        for hook in hooks:
            hook.remove()
    # What no pixel changes, as where positions are embedded, is no layer that sees; nor is what runs twice.
    grids = {
        name: seen[0].shape[2] * seen[0].shape[3]
        for name, seen in outputs.items()
        if len(seen) == 2 and not torch.equal(*seen)
    }
    coarse = [name for name, count in grids.items() if count == min(grids.values()) and count > 1]
    if not coarse:
        raise ModelError("it has no backbone whose output is a map, so no box of it can be explained")
    return coarse[-1]
