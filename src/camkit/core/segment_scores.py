"""The score of a part of a photograph: what is explained of a segmentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class SegmentScores:
    """From what a segmentation returns for `n` inputs to scores `[n, M]`, one for each of M segments.

    read: makes class scores `[n, K, h, w]` of what it returns. labels: int64 `[M]`; masks: bool
    `[M, h, w]`, of at least one place each. Inputs and masks need not belong together: where parts of an
    input are hidden, the mask stays that of the whole photograph.

    The score of a segment is the mean score of its class over its mask: Seg-Grad-CAM (Vinogradova et al.
    2020, arXiv:2002.11434) sums it, which differs by a factor.
    """

    read: Callable[[Any], Tensor]
    labels: Tensor
    masks: Tensor

    def __call__(self, returned: Any) -> Tensor:
        """The scores `[n, M]`, with their graph."""
        scores = self.read(returned)[:, self.labels]  # [n, M, h, w]
        masks = self.masks.to(scores.dtype)
        found: Tensor = (scores * masks).sum((2, 3)) / masks.sum((1, 2))
        return found
