"""The scores of boxes that were found before: what is explained of a detector.

A detector that runs again, on the same input or on one with parts hidden, returns other boxes in another
order. So a box is looked for among them: if it is there again, its score counts, and if not, the best of
overlap times score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camkit.contracts.detections import Detections

# What tells that a box is found again with other rounding: the overlap, or without an area the corners.
SAME, PIXELS = 0.999, 0.01


@dataclass(frozen=True)
class BoxScores:
    """From what a detector returns for `n` inputs to scores `[n, M]`, one for each of M wanted boxes.

    read: makes detections of what it returns. labels: int64 `[M]`; boxes: float `[M, 4]`, in pixels of the
    input; scores: `[M]`, those that they were found with. Inputs and boxes need not belong together: an
    input without such a box has the score 0.

    likely: `[M, K]`, their classes' probabilities, of a detector that tells them.

    The score of a box is that of D-RISE (Petsiuk et al. 2021, arXiv:2006.03204): over the detections `d`,
    `max_d IoU(box, d) * cos(likely(box), likely(d)) * score(d)`; where a detector tells one score of a box,
    the cosine is 1 for detections of its class and 0 for others. Of a box that is found again it is that
    score; of several such, which a detector without NMS finds, the one that is closest to the score before.
    Overlap and cosine are constants for gradients.
    """

    read: Callable[[Any], Detections]
    labels: Tensor
    boxes: Tensor
    scores: Tensor
    likely: Tensor | None = None

    def __call__(self, returned: Any) -> Tensor:
        """The scores `[n, M]`, with the graph of those of the detections."""
        found = self.read(returned)
        rows, count = found.scores.shape
        if count == 0:
            return found.scores.new_zeros(rows, len(self.labels))
        with torch.no_grad():
            boxes, wanted = found.boxes.detach().float()[:, :, None], self.boxes.float()
            overlap = iou(boxes, wanted)  # [n, N, M]
            same = found.labels[:, :, None] == self.labels
            again = ((overlap >= SAME) | ((boxes - wanted).abs().amax(-1) <= PIXELS)) & same
            overlap = overlap * self._alike(found, same)
            overlap = torch.where(again, 1, overlap).to(found.scores.dtype)
            scores = found.scores.detach()[:, :, None]
            closeness = 3 - (scores - self.scores.to(scores)).abs()  # above all scores
            best = torch.where(again, closeness, overlap * scores).argmax(1)  # [n, M]
            overlap = overlap.gather(1, best[:, None])[:, 0]
        return found.scores.gather(1, best) * overlap

    def _alike(self, found: Detections, same: Tensor) -> Tensor:
        """How alike the classes of detections and wanted boxes are, 0 to 1, `[n, N, M]`."""
        if self.likely is None or found.likely is None:
            return same
        first, second = found.likely.detach().float()[:, :, None], self.likely.float()
        return torch.cosine_similarity(first, second, dim=-1).clamp(min=0)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """The shared part of boxes `[..., 4]`, of all that either covers; 0 of boxes without an area."""
    high = torch.minimum(first[..., 2:], second[..., 2:])
    low = torch.maximum(first[..., :2], second[..., :2])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (first, second)]
    return (shared / (areas[0] + areas[1] - shared)).nan_to_num(0)
