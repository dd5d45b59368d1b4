"""What a line of the manifest says of a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Literal

import torch

import camkit
from camkit.drawing.overlay import View
from camkit.drawing.style import Style
from camkit.explaining import stored_maps
from camkit.explaining.explanation import REMARKS, Explanation
from camkit.explaining.manifest import SCHEMA, Line
from camkit.explaining.plan import Plan
from camkit.images.decoding import REDUCED, Photo
from camkit.images.workers import Failure
from camkit.registry import discovery

Result = Explanation | Failure
Format = Literal["png", "npz", "parquet"]

# Fields of a line that are called as those of an `Explanation`.
COPIED = (
    "method layer layout class_index class_name probability logit predicted_index predicted_name scores"
).split()


def facts(result: Explanation | Failure) -> dict[str, Any]:
    """The fields that a result brings, whatever is written of it."""
    shared: dict[str, Any] = {
        "schema": SCHEMA,
        "camkit_version": camkit.__version__,
        "torch_version": str(torch.__version__),
    }
    photo = result if isinstance(result, Failure) else result.photo
    shared |= {
        "image": photo.source,
        "image_path": photo.path,
        "image_name": photo.path and photo.name,
        "image_sha256": photo.sha256,
    }
    if isinstance(result, Failure):
        return shared | {"status": "error", "error": str(result.error), "warnings": []}
    found, model = discovery.get("explainer", result.backend), result.model
    return (
        shared
        | {name: getattr(result, name) for name in COPIED}
        | {
            "status": "ok",
            "backend": found.name,
            "backend_dist": found.dist,
            "backend_version": found.version,
            "options": dict(result.options),
            "predicted": list(result.predicted),
            "model": model.name,
            "model_sha256": model.sha256,
            "preprocessing": model.preprocess.to_dict(),
            "device": str(model.device),
            "dtype": str(model.dtype).removeprefix("torch."),
            "warnings": list(result.warnings),
        }
    )


def measured(map: torch.Tensor) -> dict[str, Any]:
    """What the manifest tells of the values of a map."""
    return {
        "map_sha256": stored_maps.map_digest(map.numpy()),
        "map_shape": list(map.shape),
        "map_range": [float(map.min()), float(map.max())],
    }


def warnings(line: Line, remarks: Iterable[str], photo: Photo) -> list[str]:
    """The warnings of a line with what has to be said of its picture, and without that of another one.

    remarks: on the map as it is drawn. photo: as it is drawn on.
    """
    about = f"{line['backend']} {line['method']}, {line['class_name']}: "
    others = {about + text for texts in REMARKS.values() for text in texts}
    # That a map is constant was told when it was computed, with what can be done about it.
    new = [about + text for text in remarks if text not in REMARKS["constant"]]
    size = [text for text in photo.warnings if REDUCED.search(text)]
    before = line["warnings"] if isinstance(line["warnings"], list) else []
    kept = [text for text in before if text not in others and not REDUCED.search(str(text))]
    return [*kept, *size, *new]


def request_id(work: Plan, classes: Sequence[str], *, style: Style, view: View, format: Format) -> str:
    """What a run asks for, apart from the photographs: the same for two runs with the same results."""
    model = work.model
    backends = []
    for backend in work.backends:
        found = discovery.get("explainer", backend.name)
        options = vars(backend.explainer.options)
        backends.append([found.full_name, found.version, backend.methods, options])
    facts = {
        "model": [model.sha256, model.preprocess.to_dict(), list(model.classes), model.scores],
        "where": [str(model.device), str(model.dtype)],
        "backends": backends,
        "layers": [*work.layers, *([work.layout] if work.layout else [])],
        "classes": list(classes),
        "picture": [format, view, asdict(style)],
        "versions": [SCHEMA, camkit.__version__, str(torch.__version__)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
