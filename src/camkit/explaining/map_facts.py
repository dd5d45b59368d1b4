"""What a line of the manifest says of the values of a map, and of what computed it."""

from __future__ import annotations

from typing import Any

import torch

import camkit
from camkit.drawing import evidence
from camkit.explaining import stored_maps
from camkit.explaining.manifest import SCHEMA


def versions() -> dict[str, Any]:
    """What every line says, whatever it is of."""
    return {
        "schema": SCHEMA,
        "camkit_version": camkit.__version__,
        "torch_version": str(torch.__version__),
    }


def measured(map: torch.Tensor) -> dict[str, Any]:
    """What the manifest tells of the values of a map."""
    return {
        "map_sha256": stored_maps.map_digest(map.numpy()),
        "map_shape": list(map.shape),
        "map_range": [float(map.min()), float(map.max())],
        "border_share": border_share(map),
    }


def border_share(map: torch.Tensor) -> float | None:
    """How much of the positive values of a map `[h, w]` lies in its outermost cells, 0 to 1.

    `None` where no value is positive but by rounding, or where there is no cell but these.
    """
    positive = evidence.positive(map.double())
    whole = float(positive.sum())
    if min(map.shape) < 3 or whole <= 0:
        return None
    return round(1 - float(positive[1:-1, 1:-1].sum()) / whole, 4)
