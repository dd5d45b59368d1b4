"""What photographs are explained for: classes, functions of the scores, boxes; and what is told of each.

A question is put to the explainer for a whole batch. Its answer has a column for each class, function or
box, and the question knows what the columns of a photograph are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from camkit.core.box_scores import BoxScores
from camkit.core.call_types import Answer, Call
from camkit.core.scored import Score
from camkit.core.segment_scores import SegmentScores
from camkit.core.targets import Fixed, Selector, every
from camkit.explaining import detection, segmentation
from camkit.explaining.boxes import Box
from camkit.explaining.detection import Found as FoundBoxes
from camkit.explaining.plan import Plan
from camkit.explaining.prediction import Prediction, predictions
from camkit.explaining.score_targets import ALIKE, Likeness
from camkit.explaining.segmentation import FoundSegments

Found = FoundBoxes | FoundSegments


@dataclass(frozen=True)
class Subject:
    """What a map of a photograph is of.

    column: of the answer. name: of the class, or of a function. score: what is explained. kind: what that
    is, for messages. likely: what predictions are made by. box: of a detector. like_sha256: of the
    photograph that a likeness is to.
    """

    column: int
    kind: str
    name: str
    index: int | None
    score: float
    probability: float | None
    likely: float
    box: Box | None = None
    like_sha256: str | None = None


@dataclass(frozen=True)
class Told:
    """What is told of a photograph: its subjects, and fields of an `Explanation` that all of them share.

    nothing: why there is nothing to explain, in place of what else is said of maps.
    """

    subjects: tuple[Subject, ...]
    fields: dict[str, Any]
    warnings: tuple[str, ...] = ()
    nothing: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked of an explainer; told: makes of its answer, on the CPU, what is told of each row."""

    selector: Selector
    call: Call
    told: Callable[[Answer], Sequence[Told]]


def questions(
    work: Plan, batch: Tensor, positions: Sequence[int], found: Sequence[Found] | None
) -> list[Question]:
    """The questions to a batch `[B, C, H, W]`, whose rows may be more than the photographs: the last again.

    positions: of the photographs. found: the boxes in each, of a detector.
    """
    # Nobody changes the model while it is camkit's.
    call = Call(output=work.model.output, layout=work.layout, frozen=True, precision=work.precision)
    if found is not None:
        return [_of_boxes(work, batch, found, call)]
    if work.functions:
        return [_of_function(name, score, call) for name, score in work.functions.items()]
    selector = work.selector
    if work.targets is not None:
        classes = [[work.targets[position]] for position in positions]
        selector = Fixed(torch.tensor([*classes, *classes[-1:] * (len(batch) - len(classes))]))
    return [Question(selector, call, partial(_classes, work, batch))]


def _columns(targets: Tensor) -> dict[int, int]:
    """Each index that is asked for with its first column; targets: int64 `[T]`."""
    found = {index: column for column, index in reversed(list(enumerate(targets.tolist())))}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def _classes(work: Plan, batch: Tensor, answer: Answer) -> list[Told]:
    found = predictions(work.model, answer.scores, batch)
    return [
        Told(
            tuple(_class(work, own, *item) for item in _columns(targets).items()),
            own.fields(work.model.classes),
            own.warnings,
        )
        for own, targets in zip(found, answer.targets, strict=True)
    ]


def _class(work: Plan, own: Prediction, index: int, column: int) -> Subject:
    likely, name = float(own.likely[index]), work.model.classes[index]
    probability = None if own.kind == "none" else likely
    return Subject(column, "class", name, index, float(own.logits[index]), probability, likely)


def _of_function(name: str, score: Score, call: Call) -> Question:
    like, one = (score.sha256, score.one) if isinstance(score, Likeness) else (None, math.inf)

    def told(answer: Answer) -> list[Told]:
        return [
            Told(
                (Subject(0, "target", name, None, value, None, value, like_sha256=like),),
                {"scores": "none", "exclusive": False},
                nothing=ALIKE if value >= one else "",
            )
            for value in answer.scores[:, 0].tolist()
        ]

    return Question(every, replace(call, score=score), told)


def _of_boxes(work: Plan, batch: Tensor, found: Sequence[Found], call: Call) -> Question:
    found = [*found, *[found[-1]] * (len(batch) - len(found))]
    of_boxes = [one for one in found if isinstance(one, FoundBoxes)]
    of_segments = [one for one in found if isinstance(one, FoundSegments)]
    scores: BoxScores | SegmentScores
    if of_boxes and work.model.detections is not None:
        scores = detection.scores_of(work.model, of_boxes, batch.device)
        targets = detection.columns([len(one.told) for one in of_boxes])
    else:
        assert work.model.segments is not None
        labels, masks, targets = segmentation.chosen(of_segments, batch.device)
        scores = SegmentScores(work.model.segments, labels, masks)
    return Question(Fixed(targets), replace(call, output=scores), partial(_boxes, work, found))


def _box(column: int, label: int, score: float, box: Box, found: Found) -> Subject:
    """A box by its score; of a segment that is no probability, but a mean over its places may be."""
    if isinstance(found, FoundSegments):
        probability = None if found.kind == "none" else box.score
        return Subject(column, "segment", box.label, label, score, probability, box.score, box)
    return Subject(column, "box", box.label, label, score, score, score, box)


def _boxes(work: Plan, found: Sequence[Found], answer: Answer) -> list[Told]:
    told = []
    for one, scores, targets in zip(found, answer.scores, answer.targets, strict=True):
        pairs = zip(_columns(targets).items(), one.told, one.labels.tolist(), strict=True)
        subjects = (
            _box(column, label, float(scores[index]), box, one) for (index, column), box, label in pairs
        )
        classes, first = work.model.classes, one.best[0][0]
        names = tuple(classes[label] for label in dict.fromkeys(label for label, _ in one.best))
        fields = {
            "top": tuple((classes[label], score) for label, score in one.best[:5]),
            "predicted": names,
            "predicted_index": first,
            "predicted_name": classes[first],
            "scores": one.kind if isinstance(one, FoundSegments) else "probabilities",
            "exclusive": False,
        }
        told.append(Told(tuple(subjects), fields, one.warnings if isinstance(one, FoundSegments) else ()))
    return told
