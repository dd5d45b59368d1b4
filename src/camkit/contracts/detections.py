"""What a detector finds in photographs, however its module returns that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Detections:
    """The boxes of a batch; N is the largest number of an image, the others are filled up.

    scores: float `[B, N]` in [0, 1], with their graph if the forward had one; 0 where it is filled up.
    labels: int64 `[B, N]`, the index of a class; -1 where it is filled up.
    boxes: float `[B, N, 4]`: left, top, right, bottom in pixels of the model's input.
    likely: `[B, N, K]`, the probability of each class in each box, where the detector tells it.
    """

    scores: Tensor
    labels: Tensor
    boxes: Tensor
    likely: Tensor | None = None

    @classmethod
    def padded(cls, images: Sequence[tuple[Tensor, ...]]) -> Detections:
        """From scores `[n]`, labels `[n]`, boxes `[n, 4]`, and maybe `likely` `[n, K]`, of each image."""
        from torch.nn.utils.rnn import pad_sequence

        scores, labels, boxes, *likely = map(list, zip(*images, strict=True))
        return cls(
            pad_sequence(scores, batch_first=True),
            pad_sequence(labels, batch_first=True, padding_value=-1),
            pad_sequence(boxes, batch_first=True),
            *(pad_sequence(one, batch_first=True) for one in likely),
        )
