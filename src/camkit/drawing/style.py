"""How a map is drawn, as a user asks for it: known to be right before torch is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from camkit.errors import UsageError, closest

View = Literal["original", "model"]
Look = Literal["default", "lesson", "contour", "spotlight"]
OWN = "camkit"  # the colours of `camkit.drawing.colours`
SIZES = 32, 4096  # pixels of the longest side


class Usual(NamedTuple):
    """What goes without saying of a look."""

    view: View
    alpha: float
    cmap: str
    caption: bool


USUAL: dict[Look, Usual] = {
    "default": Usual("original", 0.8, OWN, True),
    "lesson": Usual("model", 0.6, "magma", False),
    "contour": Usual("original", 1.0, OWN, True),
    "spotlight": Usual("original", 0.85, OWN, True),
}


@dataclass(frozen=True)
class Style:
    """How a map is drawn.

    relu: only what speaks for the class, as in the Grad-CAM paper.
    counterfactual: the negated map, rectified: what speaks against the class.
    alpha: 0 to 1: how opaque the strongest evidence is; of `lesson` the whole map; of `spotlight` the dark.
    cmap: a matplotlib colour map, or `camkit` for the colours of the look.
    look: `default`, colours whose opacity grows with the evidence, zero marked; `lesson`, that of fast.ai's
        lesson 6: minimum to maximum of the map, bilinear, magma, everywhere equally opaque, on what the
        model saw, without a caption; `contour`, lines of equal evidence; `spotlight`, all else in the dark.
    view: the whole photograph (`original`), or what the `model` saw.
    scale: which value has the strongest colour: the largest of the map (`image`), of all maps of its kind
        (`run`), or this one.
    size: pixels of the photograph's longest side in the picture; `None`: its own, at most 1,024.
    caption: whether the picture says what it shows, and what its colours mean.
    cells: the cells of the map as they are, without values between them.
    What is `None` is as usual for the look.
    """

    relu: bool = False
    counterfactual: bool = False
    alpha: float = None  # type: ignore[assignment]
    cmap: str = None  # type: ignore[assignment]
    look: Look = "default"
    view: View = None  # type: ignore[assignment]
    scale: Literal["image", "run"] | float = "image"
    size: int | None = None
    caption: bool = None  # type: ignore[assignment]
    cells: bool = False

    def __post_init__(self) -> None:
        if self.look not in USUAL:
            raise UsageError(f"look must be one of {', '.join(USUAL)}, not {self.look!r}")
        for name, value in USUAL[self.look]._asdict().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.view not in get_args(View):
            raise UsageError(f"view must be original or model, not {self.view!r}")
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must lie between 0 and 1, not {self.alpha}")
        if self.size is not None and not SIZES[0] <= self.size <= SIZES[1]:
            raise UsageError(f"the size of a picture is {SIZES[0]} to {SIZES[1]} pixels, not {self.size}")
        self._check_scale()
        if self.look == "lesson":
            self._check_lesson()
        if self.look == "contour" and self.cells:
            raise UsageError("the look contour has lines between the cells: leave out cells")
        self._check_colours()

    def _check_scale(self) -> None:
        """Raise `UsageError` for a scale that is none."""
        if isinstance(self.scale, str):
            right = self.scale in ("image", "run")
        else:
            right = math.isfinite(self.scale) and self.scale > 0
        if not right:
            raise UsageError(f"scale must be image, run or a value above 0, not {self.scale!r}")

    def _check_lesson(self) -> None:
        """Raise `UsageError` for what would not be the lesson's look any more."""
        if self.view != "model":
            raise UsageError("the look lesson is drawn on what the model saw: leave out view original")
        if self.scale != "image":
            raise UsageError("the look lesson goes from minimum to maximum of each map: leave out scale")
        if self.caption:
            raise UsageError("the look lesson has no caption")
        if self.cells:
            raise UsageError("the look lesson is bilinear: leave out cells")

    def _check_colours(self) -> None:
        """Raise `UsageError` for a colour map that does not exist, or that a look cannot have."""
        if self.cmap == USUAL[self.look].cmap:
            return
        if self.look == "spotlight":
            raise UsageError("the look spotlight has no colours: leave out cmap")
        from matplotlib import colormaps  # takes its time

        if self.cmap != OWN and self.cmap not in colormaps:
            hint = closest(self.cmap, [OWN, *colormaps])
            raise UsageError(f"there is no colour map {self.cmap!r}{hint}")
