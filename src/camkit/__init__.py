"""camkit: where did the model look, and can I believe the picture?

    import camkit

    model = camkit.load_model("imagenet")
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
        ModelSource,
        Query,
        Sweep,
        Trainer,
        TrainRequest,
        TrainResult,
        option,
    )
    from camkit.errors import CamkitError
    from camkit.host import Explanation, class_maps, explain, explain_many, maps
    from camkit.images import Photo
    from camkit.models import load_model, save_bundle
    from camkit.preprocess import Preprocess
    from camkit.render import Style

__version__ = "0.1.0"

_HOMES = {
    "camkit.api": ("Explainer LoadedModel ModelSource Query Sweep Trainer TrainRequest TrainResult option"),
    "camkit.errors": "CamkitError",
    "camkit.host": "Explanation class_maps explain explain_many maps",
    "camkit.images": "Photo",
    "camkit.models": "load_model save_bundle",
    "camkit.preprocess": "Preprocess",
    "camkit.render": "Style",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = [
    "CamkitError",
    "Explainer",
    "Explanation",
    "LoadedModel",
    "ModelSource",
    "Photo",
    "Preprocess",
    "Query",
    "Style",
    "Sweep",
    "TrainRequest",
    "TrainResult",
    "Trainer",
    "class_maps",
    "explain",
    "explain_many",
    "load_model",
    "maps",
    "option",
    "save_bundle",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'camkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
