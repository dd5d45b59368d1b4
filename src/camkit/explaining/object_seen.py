"""How much of the evidence lies on the object, of photographs of which it is known where that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from camkit.drawing import evidence
from camkit.errors import CamkitError
from camkit.explaining.explanation import Explanation
from camkit.images.workers import Failure
from camkit.metrics.ground_truth import Truth, as_seen, of_photograph
from camkit.metrics.localisation import energy_pointing_game


@dataclass(frozen=True)
class ObjectSeen:
    """What the model saw of the object in a photograph.

    mask: bool `[H, W]`; `None` if nothing is known. warnings: why, if that is a mistake.
    """

    mask: Tensor | None
    warnings: tuple[str, ...] = ()

    def of(self, map: Tensor) -> dict[str, Any]:
        """What the manifest tells of a map `[h, w]`: the share of its positive values on the object.

        And the share of what the model saw that the object covers, which an even map would reach.
        """
        if self.mask is None:
            return {}
        share = float(energy_pointing_game(evidence.positive(map.double())[None], self.mask[None])[0])
        return {
            "truth_share": None if math.isnan(share) else round(share, 4),
            "truth_area": round(float(self.mask.double().mean()), 4),
        }


def object_seen(truth: Truth, results: Sequence[Explanation | Failure]) -> ObjectSeen:
    """The object in the photograph of some results."""
    first = next((result for result in results if isinstance(result, Explanation)), None)
    if first is None or (path := first.photo.path) is None:
        return ObjectSeen(None)
    try:
        mask = of_photograph(truth, Path(path), first.photo)
        return ObjectSeen(None if mask is None else as_seen(mask, first.model.preprocess))
    except CamkitError as error:
        return ObjectSeen(None, (f"where the object is, is not known: {error}",))
