"""camkit: where did the model look, and can I believe the picture?

    import camkit

    model = camkit.load_model("pets")
    result = camkit.explain(model, "cat.jpg")
    result.show()

Names are imported when they are first used, so that `camkit --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from camkit.contracts.explainer import Explainer, Query, Sweep
    from camkit.contracts.metric import MapBatch, Metric, Scores
    from camkit.contracts.model import LoadedModel, ModelSource
    from camkit.contracts.options import option
    from camkit.contracts.trainer import Trainer, TrainRequest, TrainResult
    from camkit.core.attribution import class_maps, maps, maps_by
    from camkit.core.layout import layout_of
    from camkit.core.stand_in import StandIn, wide
    from camkit.drawing.style import Style
    from camkit.errors import CamkitError
    from camkit.explaining.explain import explain, explain_many
    from camkit.explaining.explanation import Explanation
    from camkit.explaining.interactive import view
    from camkit.explaining.score_targets import likeness
    from camkit.explaining.sheets import sheet
    from camkit.images.decoding import Photo
    from camkit.images.preprocess import Preprocess
    from camkit.models.bundle import save_bundle
    from camkit.models.encoding import encoder
    from camkit.models.loading import load_model
    from camkit.training.train_model import train

__version__ = "0.1.0"

_HOMES = {
    "camkit.contracts.explainer": "Explainer Query Sweep",
    "camkit.contracts.metric": "MapBatch Metric Scores",
    "camkit.contracts.model": "LoadedModel ModelSource",
    "camkit.contracts.options": "option",
    "camkit.contracts.trainer": "Trainer TrainRequest TrainResult",
    "camkit.core.attribution": "class_maps maps maps_by",
    "camkit.core.layout": "layout_of",
    "camkit.core.stand_in": "StandIn wide",
    "camkit.drawing.style": "Style",
    "camkit.errors": "CamkitError",
    "camkit.explaining.explain": "explain explain_many",
    "camkit.explaining.explanation": "Explanation",
    "camkit.explaining.interactive": "view",
    "camkit.explaining.score_targets": "likeness",
    "camkit.explaining.sheets": "sheet",
    "camkit.images.decoding": "Photo",
    "camkit.images.preprocess": "Preprocess",
    "camkit.models.bundle": "save_bundle",
    "camkit.models.encoding": "encoder",
    "camkit.models.loading": "load_model",
    "camkit.training.train_model": "train",
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
    "encoder",
    "explain",
    "explain_many",
    "layout_of",
    "likeness",
    "load_model",
    "maps",
    "maps_by",
    "option",
    "save_bundle",
    "sheet",
    "train",
    "view",
    "wide",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        # Kept, so that the next use is an ordinary one.
        return globals().setdefault(name, getattr(importlib.import_module(_HOME_OF[name]), name))
    raise AttributeError(f"module 'camkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


# Modules of 0.1 that scripts import, and where their names are now. They go with the next version.
_MOVED = {
    "camkit.explanation": "explaining.explanation explaining.plan explaining.pipeline explaining.explain",
    "camkit.host": "core.attribution core.call_types core.layer_lookup core.run_explainer",
    "camkit.manifest": "explaining.manifest explaining.stored_maps",
    "camkit.output": "explaining.output explaining.manifest_lines explaining.writers",
    "camkit.parquet": "explaining.parquet",
    "camkit.preprocess": "images.preprocess",
    "camkit.render": "drawing.overlay drawing.sheet drawing.charts",
}


class _Moved:
    """Finds the modules of `_MOVED` when nothing else has."""

    @staticmethod
    def find_spec(name: str, *_: Any) -> Any:
        if name not in _MOVED:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(name, _Moved)  # type: ignore[arg-type]  # it has what a loader needs

    @staticmethod
    def create_module(spec: Any) -> None:
        """An ordinary module."""

    @staticmethod
    def exec_module(module: Any) -> None:
        """Whose names are looked up where they are now."""
        homes = [f"camkit.{home}" for home in _MOVED[module.__name__].split()]

        def find(name: str) -> Any:
            for home in () if name.startswith("__") else map(importlib.import_module, homes):
                if hasattr(home, name):
                    return getattr(home, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = find


sys.meta_path.append(_Moved)
