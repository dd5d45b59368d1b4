"""camkit: where did the model look, and can I believe the picture?

    import camkit

    model = camkit.load_model("pets")
    result = camkit.explain(model, "cat.jpg")
    result.show()

Names are imported when they are first used, so that `camkit --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camkit.api import (
        Explainer,
        LoadedModel,
        MapBatch,
        Metric,
        ModelSource,
        Query,
        Scores,
        Sweep,
        Trainer,
        TrainRequest,
        TrainResult,
        option,
    )
    from camkit.bundle import save_bundle
    from camkit.errors import CamkitError
    from camkit.explanation import Explanation, explain, explain_many
    from camkit.host import class_maps, maps
    from camkit.images import Photo
    from camkit.layout import layout_of
    from camkit.models import load_model
    from camkit.preprocess import Preprocess
    from camkit.stand_in import StandIn, wide
    from camkit.style import Style
    from camkit.training import train

__version__ = "0.1.0"

_HOMES = {
    "camkit.api": (
        "Explainer LoadedModel MapBatch Metric ModelSource Query Scores Sweep "
        "Trainer TrainRequest TrainResult option"
    ),
    "camkit.errors": "CamkitError",
    "camkit.bundle": "save_bundle",
    "camkit.explanation": "Explanation explain explain_many",
    "camkit.host": "class_maps maps",
    "camkit.images": "Photo",
    "camkit.layout": "layout_of",
    "camkit.models": "load_model",
    "camkit.preprocess": "Preprocess",
    "camkit.stand_in": "StandIn wide",
    "camkit.style": "Style",
    "camkit.training": "train",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "CamkitError",
    "Explainer",
    "Explanation",
    "LoadedModel",
    "MapBatch",
    "Metric",
    "ModelSource",
    "Photo",
    "Preprocess",
    "Query",
    "Scores",
    "StandIn",
    "Style",
    "Sweep",
    "TrainRequest",
    "TrainResult",
    "Trainer",
    "class_maps",
    "explain",
    "explain_many",
    "layout_of",
    "load_model",
    "maps",
    "option",
    "save_bundle",
    "train",
    "wide",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        # Kept, so that the next use is an ordinary one.
        return globals().setdefault(name, getattr(importlib.import_module(_HOME_OF[name]), name))
    raise AttributeError(f"module 'camkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
