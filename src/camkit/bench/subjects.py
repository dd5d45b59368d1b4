"""What is explained of photographs: their classes, boxes, segments, or functions of what the model returns.

Each becomes a column of scores `[B, n]`, so that a benchmark treats all of them as it treats classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.bench.request import BenchRequest
from camkit.bench.results import BOXES, OF_CLASSES, SEGMENTS
from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind
from camkit.core.scored import Output, Score, classifier, selected
from camkit.core.segment_scores import SegmentScores
from camkit.core.targets import class_selector
from camkit.explaining import boxes, detection, segmentation
from camkit.explaining.plan import check_functions
from camkit.explaining.planning import asked_model
from camkit.images.decoding import Photo

# What a metric cannot say, by its name, and why.
_NO_OTHER = "there is no other class to compare with"
_NOTHING_LEFT = "with random weights a detector finds none of its boxes"
Without = Mapping[str, str]
OF_BOXES: Without = {
    "random-logit": _NO_OTHER,
    "sanity-cascading": _NOTHING_LEFT,
    "sanity-independent": _NOTHING_LEFT,
}
OF_OTHERS: Without = {"random-logit": _NO_OTHER}


@dataclass(frozen=True)
class Asked:
    """What to explain; by default the predicted class, or the best box.

    functions: in place of classes, by their names. The other fields are those of `explaining.plan`.
    """

    classes: tuple[str, ...] = ("pred",)
    functions: Mapping[str, Score] = field(default_factory=dict)
    boxes: tuple[str, ...] = ()
    min_score: float | None = None
    at: tuple[tuple[float, float], ...] = ()


PREDICTED = Asked()


def without(model: LoadedModel, functions: Mapping[str, Score]) -> Without:
    """The metrics that say nothing of what is explained of a model, and why."""
    if model.detections is not None:
        return OF_BOXES
    return OF_OTHERS if model.segments is not None or functions else {}


@dataclass(frozen=True)
class Subjects:
    """What is explained, one by one.

    kind: `photographs` where it is a class, else one of `PLACES` or `targets`.
    rows: int64 `[N]`, the photograph of each. targets: int64 `[N]`, its column among the scores, which
    `output` makes of what the model returns; scores: what these are. names: for people.
    truth: bool `[N, H, W]`, where boxes and segments are. failures: why others are not there.
    without: metrics that say nothing of them.
    """

    kind: str
    rows: Tensor
    targets: Tensor
    names: tuple[str, ...]
    output: Output
    scores: ScoreKind
    truth: Tensor | None = None
    failures: tuple[str, ...] = ()
    without: Without = field(default_factory=dict)


def of_request(request: BenchRequest) -> tuple[LoadedModel, Asked]:
    """The model of a request, and what it asks of it; raises what `camkit explain` raises."""
    _, _, found = asked_model(
        request.model,
        texts=request.texts,
        like=request.like,
        targets=request.targets,
        facts=request.facts,
        device=request.device,
        dtype=request.dtype,
        trust_pickle=request.trust_pickle,
    )
    asked = Asked(request.classes, found.functions, request.boxes, request.min_score, request.at)
    return found.model, asked


def subjects(
    model: LoadedModel, asked: Asked, inputs: Tensor, photos: Sequence[Photo], batch: int
) -> Subjects:
    """What is asked for, of inputs `[P, C, H, W]` that were made of `photos`; `batch` at once.

    Raises `UsageError` for what the model has not, as `camkit explain` does.
    """
    check_functions(model, asked.functions)
    wanted = boxes.wanted(model, asked.boxes, asked.min_score, asked.classes, asked.at)
    if wanted is not None:
        return _found(model, wanted, inputs, photos, batch)
    if asked.functions:
        return _functions(model, asked.functions, len(inputs), inputs.device)
    return _classes(model, asked.classes, inputs, batch)


def _classes(model: LoadedModel, classes: Sequence[str], inputs: Tensor, batch: int) -> Subjects:
    with torch.inference_mode():
        scores = torch.cat([classifier(model)(part) for part in torch.split(inputs, batch)]).clone()
    columns = class_selector(classes, model.classes)(scores)  # [P, T]
    pairs = [(row, one) for row, own in enumerate(columns.tolist()) for one in dict.fromkeys(own)]
    rows, targets = torch.tensor(pairs, device=inputs.device).T
    names = tuple(model.classes[one] for _, one in pairs)
    return Subjects(OF_CLASSES, rows, targets, names, model.output, model.scores)


def _functions(
    model: LoadedModel, functions: Mapping[str, Score], count: int, device: torch.device
) -> Subjects:
    """Every function of every photograph; each is a column of its own."""

    def values(returned: Any) -> Tensor:
        chosen = selected(returned, model.output)
        return torch.stack([function(chosen) for function in functions.values()], 1)

    every = torch.arange(count * len(functions), device=device)
    rows, targets = every // len(functions), every % len(functions)
    names = tuple(functions) * count
    return Subjects("targets", rows, targets, names, values, "none", without=OF_OTHERS)


def _found(
    model: LoadedModel, wanted: boxes.Wanted, inputs: Tensor, photos: Sequence[Photo], batch: int
) -> Subjects:
    """Boxes or segments of all photographs, each with the scores that the model gives it."""
    look: Callable[..., Any] = detection.find if model.segments is None else segmentation.find
    found: list[Any] = []
    for start in range(0, len(inputs), batch):
        part = slice(start, start + batch)
        found += look(model, wanted, inputs[part], photos[part])
    counts = torch.tensor([len(one.told) for one in found])
    rows = torch.arange(len(found)).repeat_interleave(counts).to(inputs.device)
    about: dict[str, Any] = {
        "rows": rows,
        "targets": torch.arange(len(rows), device=inputs.device),
        "names": tuple(f"{box.label}, {box}" for one in found for box in one.told),
        "failures": tuple(
            f"{photo.source}: {one.missing}"
            for one, photo in zip(found, photos, strict=True)
            if one.missing is not None
        ),
    }
    size = inputs.shape[-2:]
    if model.detections is not None:
        scores = detection.scores_of(model, found, inputs.device)
        truth = _rectangles(scores.boxes, size)
        return Subjects(
            BOXES, output=scores, scores="probabilities", truth=truth, without=OF_BOXES, **about
        )
    assert model.segments is not None
    labels, masks, _ = segmentation.chosen(found, inputs.device)
    inside = F.interpolate(masks[:, None].float(), size=size)[:, 0] > 0.5 if len(masks) else None
    return Subjects(
        SEGMENTS,
        output=SegmentScores(model.segments, labels, masks),
        scores="none",
        truth=None if wanted.at else inside,  # of a place it is not known what belongs to it
        without=OF_OTHERS,
        **about,
    )


def _rectangles(places: Tensor, size: torch.Size) -> Tensor:
    """Boxes `[N, 4]` in pixels as masks bool `[N, H, W]`: the pixels whose centres lie in them."""
    y, x = (torch.arange(length, device=places.device) + 0.5 for length in size)
    left, top, right, bottom = (edge[:, None] for edge in places.float().unbind(1))
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]
