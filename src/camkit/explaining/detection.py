"""The boxes that a detector finds in photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.core import hooks
from camkit.core.box_scores import BoxScores
from camkit.core.torch_errors import in_our_words
from camkit.errors import MapError, ModelError, counted
from camkit.explaining.boxes import Box, Corners, Wanted
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess


@dataclass(frozen=True)
class Found:
    """What was found in a photograph.

    labels: int64 `[n]`, the index of each box's class; boxes: float `[n, 4]` in pixels of the input;
    scores: `[n]`; likely: `[n, K]`, if the detector tells it; all of them of those that are explained.
    told: these. missing: why others that were asked for are not. best: classes and scores of all that
    count, the highest first.
    """

    labels: Tensor
    boxes: Tensor
    scores: Tensor
    told: tuple[Box, ...]
    missing: MapError | None
    best: tuple[tuple[int, float], ...]
    likely: Tensor | None = None


def find(model: LoadedModel, asked: Wanted, batch: Tensor, photos: Sequence[Photo]) -> list[Found]:
    """What is found in each photograph of a batch, from one forward without gradients."""
    assert model.detections is not None
    # No inference mode: what a detector keeps for its next forward, such as anchors, may need a graph then.
    with in_our_words(model.module, [batch]), hooks.as_it_was(model.module, batch.device), torch.no_grad():
        seen = model.detections(model.module(batch))
    scores, labels, boxes = (part.detach().cpu() for part in (seen.scores.float(), seen.labels, seen.boxes))
    likely = [None] * len(photos) if seen.likely is None else seen.likely.detach().float().cpu()
    if labels.numel() and int(labels.max()) >= len(model.classes):
        raise ModelError(
            f"{model.name} finds boxes of class {int(labels.max())}, and has {len(model.classes)} classes: "
            f"0 to {len(model.classes) - 1}"
        )
    rows = zip(scores, labels, boxes.float(), likely, photos, strict=True)
    return [_found(model, asked, *row) for row in rows]


def _found(
    model: LoadedModel,
    asked: Wanted,
    scores: Tensor,
    labels: Tensor,
    boxes: Tensor,
    likely: Tensor | None,
    photo: Photo,
) -> Found:
    of_class = labels >= 0
    if asked.labels:
        of_class &= torch.isin(labels, torch.tensor(sorted(asked.labels)))
    order = scores.argsort(descending=True, stable=True)
    seen_at_all = order[(scores[order] >= asked.min_score) & (labels[order] >= 0)]
    order = order[of_class[order]]
    highest = float(scores[order[0]]) if len(order) else None
    order = order[scores[order] >= asked.min_score]
    told = [n for n in range(1, len(order) + 1) if asked.numbers is None or n in asked.numbers]
    chosen = order[torch.tensor(told, dtype=torch.int64) - 1]
    names = tuple(model.classes[label] for label in sorted(asked.labels))
    corners = in_photograph(boxes[chosen], model.preprocess, photo)
    about: dict[str, Any] = {"of": len(order), "min_score": asked.min_score, "classes": names}
    picked = [
        Box(model.classes[int(labels[i])], float(scores[i]), place, number, **about)
        for i, place, number in zip(chosen.tolist(), corners, told, strict=True)
    ]
    best = tuple((int(labels[i]), float(scores[i])) for i in seen_at_all.tolist())
    lacking = [n for n in asked.numbers or () if n > len(order)]
    missing = None
    if lacking or not told:
        others = labels[scores.argsort(descending=True, stable=True)].tolist() if highest is None else []
        seen = dict.fromkeys(model.classes[label] for label in others if label >= 0)
        missing = _missing(asked, names, len(order), lacking, highest, tuple(seen))
    of_chosen = None if likely is None else likely[chosen]
    return Found(labels[chosen], boxes[chosen], scores[chosen], tuple(picked), missing, best, of_chosen)


def _missing(
    asked: Wanted,
    names: Sequence[str],
    count: int,
    lacking: Sequence[int],
    highest: float | None,
    others: Sequence[str],
) -> MapError:
    """Why boxes that were asked for are not there. others: classes that are detected instead."""
    what = " or ".join(names) if names else "nothing"
    least = f"with a score of at least {asked.min_score:g}"
    if not count:
        no = f"no {what}" if names else what
        if highest is None:
            instead = f"but {', '.join(others[:3])}" if others else "nothing at all"
            return MapError(f"{no} is detected {least} ({instead})")
        return MapError(f"{no} is detected {least} (highest {highest:.4g}): --min-score takes less")
    of = f" of {what}" if names else ""
    numbers = " or ".join(map(str, lacking))
    verb = "is" if count == 1 else "are"
    return MapError(
        f"there is no box {numbers}: {counted(count, 'box', 'boxes')}{of} {verb} detected {least}"
    )


def in_photograph(boxes: Tensor, preprocess: Preprocess, photo: Photo) -> list[Corners]:
    """Boxes `[n, 4]` in pixels of the model's input as corners in pixels of the photograph."""
    left, top, right, bottom = region(preprocess, photo)
    height, width = preprocess.size
    x, y = (right - left) / width, (bottom - top) / height
    return [(left + a * x, top + b * y, left + c * x, top + d * y) for a, b, c, d in boxes.tolist()]


def region(preprocess: Preprocess, photo: Photo) -> Corners:
    """The part of the photograph that the model saw; all of what it saw where that is not known."""
    if preprocess.knows_place:
        return preprocess.box(*(photo.whole or photo.image.size))
    height, width = preprocess.size
    return 0.0, 0.0, float(width), float(height)


def columns(counts: Sequence[int]) -> Tensor:
    """Targets `[B, T]`: the numbers of what belongs to each photograph; the last fills the row up."""
    starts = torch.tensor([0, *counts]).cumsum(0).tolist()
    most = max(counts)
    rows = [
        [start + min(n, count - 1) for n in range(most)]
        for start, count in zip(starts, counts, strict=False)
    ]
    return torch.tensor(rows)


def scores_of(model: LoadedModel, found: Sequence[Found], device: torch.device) -> BoxScores:
    """The scores of the boxes of all photographs together, in their order."""
    assert model.detections is not None
    labels = torch.cat([one.labels for one in found]).to(device)
    boxes = torch.cat([one.boxes for one in found]).to(device)
    scores = torch.cat([one.scores for one in found]).to(device)
    known = [one.likely for one in found if one.likely is not None]
    likely = torch.cat(known).to(device) if len(known) == len(found) else None
    return BoxScores(model.detections, labels, boxes, scores, likely)
