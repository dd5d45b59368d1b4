"""How a map is drawn, as a user asks for it: known to be right before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from camkit.errors import UsageError, closest


@dataclass(frozen=True)
class Style:
    """How a map is drawn.

    relu: only what speaks for the class, as in the Grad-CAM paper.
    counterfactual: the negated map, rectified: what speaks against the class.
    alpha: opacity of the heat over the photograph, 0 to 1.
    cmap: a matplotlib colour map.
    """

    relu: bool = False
    counterfactual: bool = False
    alpha: float = 0.6
    cmap: str = "magma"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must lie between 0 and 1, not {self.alpha}")
        if self.cmap == Style.cmap:
            return
        from matplotlib import colormaps  # takes its time

        if self.cmap not in colormaps:
            hint = closest(self.cmap, colormaps)
            raise UsageError(f"there is no colour map {self.cmap!r}{hint}")
