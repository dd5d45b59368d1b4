"""Boxes of a detector, and which of them are asked for; known to be right before torch is imported."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from camkit.core.class_names import class_of
from camkit.errors import UsageError

if TYPE_CHECKING:
    from camkit.contracts.model import LoadedModel

MIN_SCORE = 0.5
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

    def to_dict(self) -> dict[str, Any]:
        """As a manifest has it: in hundredths of a pixel, so that rounding makes no other box."""
        corners = [round(value, 2) for value in self.corners]
        return asdict(self) | {
            "corners": corners,
            "score": round(self.score, 4),
            "classes": list(self.classes),
        }


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
        and isinstance(classes, list)
        and all(isinstance(name, str) for name in classes)
    )


@dataclass(frozen=True)
class Wanted:
    """Which boxes are explained.

    numbers: by their scores, from 1; `None`: all. labels: of which classes; empty: of any.
    """

    numbers: tuple[int, ...] | None = (1,)
    min_score: float = MIN_SCORE
    labels: frozenset[int] = frozenset()


def wanted(
    model: LoadedModel,
    boxes: Sequence[str | int] | None,
    min_score: float | None,
    classes: Sequence[str | int],
) -> Wanted | None:
    """What is asked for, of a detector; `None` of another model.

    classes: the boxes of these alone; `pred` and `all` mean any. Raises `UsageError` for what is no box, or
    no detector.
    """
    if model.detections is None:
        if boxes or min_score is not None:
            raise UsageError(
                f"{model.name} is no detector: it has no boxes, leave out --box and --min-score"
            )
        return None
    score = MIN_SCORE if min_score is None else min_score
    if not 0 <= score <= 1:
        raise UsageError(f"the lowest score of a box lies between 0 and 1, not {score}")
    names = [one for one in classes if one not in ("pred", "all")]
    if any(str(one).startswith("top:") for one in names):
        raise UsageError(f"{model.name} is a detector: --box all explains every box, --box 2 the second")
    labels = frozenset(class_of(one, model.classes) for one in names)
    return Wanted(numbers(boxes or (1,)), score, labels)


def numbers(boxes: Iterable[str | int]) -> tuple[int, ...] | None:
    """From `all` and numbers to numbers, `None` for all; `UsageError` for what is neither."""
    given = list(boxes)
    if "all" in given:
        return None
    for one in given:
        if isinstance(one, bool) or not str(one).isdecimal() or not 1 <= int(one) <= 100_000:
            raise UsageError(f"a box is all, or a number from 1 on, the best first, not {one!r}")
    return tuple(dict.fromkeys(int(one) for one in given))


def outline(box: Mapping[str, Any] | Box | None) -> Corners | None:
    """The corners of a box, as an explanation or a line of a manifest has it."""
    if box is None:
        return None
    corners = box.corners if isinstance(box, Box) else box["corners"]
    return tuple(map(float, corners))  # type: ignore[return-value]
