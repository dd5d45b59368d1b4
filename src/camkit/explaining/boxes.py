"""Boxes of a detector, and which of them are asked for; known to be right before torch is imported."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from camkit.core.class_names import class_of
from camkit.errors import CamkitError, UsageError

if TYPE_CHECKING:
    from camkit.contracts.model import LoadedModel
    from camkit.images.run_lengths import Mask

MIN_SCORE = 0.5
MARK = 6  # pixels beside a place that are drawn around
Corners = tuple[float, float, float, float]


@dataclass(frozen=True)
class Box:
    """A detected box.

    label: the name of its class. score: of the detector, 0 to 1. corners: left, top, right and bottom in
    pixels of the photograph (where it is not known which part of that the model saw, of what it saw).
    number: by their scores it is the first, second, ... `of` so many that were found of these `classes`
    (empty: of any) with a score of at least `min_score`.
    """

    label: str
    score: float
    corners: Corners
    number: int
    of: int
    min_score: float = MIN_SCORE
    classes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"box {self.number} of {self.of}"

    @property
    def slug(self) -> str:
        """As part of a file name."""
        return f"box-{self.number}"

    def to_dict(self) -> dict[str, Any]:
        """As a manifest has it: in hundredths of a pixel, so that rounding makes no other box."""
        corners = [round(value, 2) for value in self.corners]
        return asdict(self) | {
            "corners": corners,
            "score": round(self.score, 4),
            "classes": list(self.classes),
        }


@dataclass(frozen=True)
class Segment(Box):
    """The part of a photograph that a segmentation takes for a class, or one place of it.

    label, number, of, classes: as of a box, by their areas. score: the mean probability of the class there,
    or of scores that are none the mean. corners: of the box around it. area: its share of what the model
    saw. at: x and y in pixels of the photograph, of a place that was asked for. mask: of what the model
    saw, bool `[h, w]`, as fine as what it returns; `None` of a place.
    """

    area: float = 0.0
    at: tuple[float, float] | None = None
    mask: Mask | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        if self.at is not None:
            return f"at {self.at[0]:g},{self.at[1]:g}"
        return f"segment {self.number} of {self.of}"

    @property
    def slug(self) -> str:
        """As part of a file name."""
        return f"segment-{self.number}" if self.at is None else f"at-{self.at[0]:g}-{self.at[1]:g}"

    def to_dict(self) -> dict[str, Any]:
        """As of a box; the mask as run lengths of COCO."""
        from camkit.images import run_lengths

        at = None if self.at is None else [round(value, 2) for value in self.at]
        mask = None if self.mask is None else run_lengths.encoded(self.mask)
        return super().to_dict() | {"area": round(self.area, 4), "at": at, "mask": mask}


def is_box(value: Any) -> bool:
    """Whether a value of a manifest, which may be a stranger's, is that of a box."""
    if not isinstance(value, dict):
        return False
    corners, classes = value.get("corners"), value.get("classes")
    numbers = [*corners, value.get("min_score")] if isinstance(corners, list) else []
    return (
        len(numbers) == 5
        and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
        and all(type(value.get(name)) is int for name in ("number", "of"))
        and _is_place(value.get("at"))
        and type(value.get("area", 0.0)) in (int, float)
        and isinstance(value.get("mask"), dict | None)
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
    )


def _is_place(value: Any) -> bool:
    """Whether it is a place of a photograph, or none."""
    if value is None:
        return True
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(type(n) in (int, float) and math.isfinite(n) for n in value)
    )


@dataclass(frozen=True)
class Wanted:
    """Which boxes or segments are explained.

    numbers: by their scores, or areas, from 1; `None`: all. labels: of which classes; empty: of any.
    at: places of the photograph, x and y in pixels, in place of numbers.
    """

    numbers: tuple[int, ...] | None = (1,)
    min_score: float = MIN_SCORE
    labels: frozenset[int] = frozenset()
    at: tuple[tuple[float, float], ...] = ()


def wanted(
    model: LoadedModel,
    boxes: Sequence[str | int] | None,
    min_score: float | None,
    classes: Sequence[str | int],
    at: Sequence[tuple[float, float]] = (),
) -> Wanted | None:
    """What is asked for, of a detector or a segmentation; `None` of another model.

    classes: the boxes of these alone; `pred` and `all` mean any. Raises `UsageError` for what is no box,
    and for what the model has not.
    """
    refused = {
        "is no detector: it has no boxes, leave out --box and --min-score": (
            model.detections is None and model.segments is None and (boxes or min_score is not None)
        ),
        "is no segmentation: leave out --at": model.segments is None and bool(at),
        "is a segmentation: its segments have areas, leave out --min-score": (
            model.segments is not None and min_score is not None
        ),
        "explains places, --at, or segments, --box: leave one out": bool(boxes) and bool(at),
    }
    for why in (why for why, is_so in refused.items() if is_so):
        raise UsageError(f"{model.name} {why}")
    if model.detections is None and model.segments is None:
        return None
    score = MIN_SCORE if min_score is None else min_score
    if not 0 <= score <= 1:
        raise UsageError(f"the lowest score of a box lies between 0 and 1, not {score}")
    names = [one for one in classes if one not in ("pred", "all")]
    if names and len(names) < len(classes):
        raise UsageError(
            f"{model.name} explains the boxes or segments of any class, or of those that are named: leave "
            f"out {'pred' if 'pred' in classes else 'all'}, or the names"
        )
    if any(str(one).startswith("top:") for one in names):
        kind = "a detector" if model.segments is None else "a segmentation"
        raise UsageError(f"{model.name} is {kind}: --box all explains all of it, --box 2 the second")
    labels = frozenset(class_of(one, model.classes) for one in names)
    usual = ("all",) if model.segments is not None and (labels or "all" in classes) else (1,)
    return Wanted(numbers(boxes or usual), score, labels, tuple(at))


def places(texts: Iterable[str]) -> tuple[tuple[float, float], ...]:
    """From `120,80` to x and y; `UsageError` for what is no place."""
    found = []
    for text in texts:
        match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d+)?)\s*,\s*(\d{1,6}(?:\.\d+)?)\s*", text)
        if not match:
            raise UsageError(f"a place is X,Y in pixels of the photograph, such as 120,80, not {text!r}")
        found.append((float(match[1]), float(match[2])))
    return tuple(dict.fromkeys(found))


def numbers(boxes: Iterable[str | int]) -> tuple[int, ...] | None:
    """From `all` and numbers to numbers, `None` for all; `UsageError` for what is neither."""
    given = list(boxes)
    if "all" in given:
        return None
    for one in given:
        if isinstance(one, bool) or not str(one).isdecimal() or not 1 <= int(one) <= 100_000:
            raise UsageError(f"a box is all, or a number from 1 on, the best first, not {one!r}")
    return tuple(dict.fromkeys(int(one) for one in given))


def asked(box: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `plan` that give the box of a manifest again."""
    if box.get("at"):
        return {"at": [tuple(box["at"])]}
    if "area" in box:
        return {"boxes": [box["number"]]}
    return {"boxes": [box["number"]], "min_score": box["min_score"]}


def which(box: Mapping[str, Any]) -> str:
    """Which box or segment it is, as a manifest has it, in a few words."""
    if at := box.get("at"):
        return f"at {at[0]:g},{at[1]:g}"
    if "area" in box:
        return f"segment {box['number']} of {box['of']}, {box['area']:.0%} of what the model saw"
    return f"box {box['number']} of {box['of']}"


def outline(box: Mapping[str, Any] | Box | None) -> Corners | Mask | None:
    """The corners of a box, or the mask of a segment, as an explanation or a line of a manifest has it.

    Raises `CamkitError` for a mask that is none.
    """
    if box is None:
        return None
    told = box.to_dict() if isinstance(box, Box) else box
    if told.get("mask"):
        from camkit.images import run_lengths

        try:
            return run_lengths.decoded(told["mask"])
        except ValueError as error:
            raise CamkitError(f"the mask of its segment cannot be read: {error}") from None
    left, top, right, bottom = map(float, told["corners"])
    if (left, top) == (right, bottom):  # a place
        return left - MARK, top - MARK, right + 1 + MARK, bottom + 1 + MARK
    return left, top, right, bottom
