"""What a line of the manifest says of a result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal

import torch

import camkit
from camkit.core import devices
from camkit.drawing.style import Style
from camkit.explaining import boxes
from camkit.explaining.captions import REMARKS
from camkit.explaining.embedding import ImageFormat
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest import FIELDS, SCHEMA, Line
from camkit.explaining.map_facts import measured, versions
from camkit.explaining.map_keys import Keys
from camkit.explaining.plan import Plan
from camkit.images.workers import Failure
from camkit.registry import discovery

if TYPE_CHECKING:
    from camkit.explaining.object_seen import ObjectSeen

Result = Explanation | Failure
Format = Literal["png", "npz", "parquet"]


def facts(result: Explanation | Failure) -> dict[str, Any]:
    """The fields that a result brings, whatever is written of it."""
    if isinstance(result, Explanation):
        return versions() | result.facts()
    return versions() | {
        "image": result.source,
        "image_path": result.path,
        "image_name": result.path and result.name,
        "image_sha256": result.sha256,
        "status": "error",
        "error": str(result.error),
        "warnings": [],
    }


def line_of(result: Result, name: str, count: int, keys: Keys, objects: ObjectSeen | None = None) -> Line:
    """The line of a result, before any file is written of it.

    name: of the photograph's results, of which there are `count`. objects: in the photograph.
    """
    line: Line = dict.fromkeys(FIELDS) | facts(result) | dict(keys.shared)
    line |= {"name": name, "results": count}
    if isinstance(result, Explanation):
        line |= {"map_key": keys.of(result), **measured(result.map)}
        if objects is not None:
            line |= objects.of(result.map)
            line["warnings"] = [*line["warnings"], *objects.warnings]
    return line


def warnings(line: Line, remarks: Iterable[str]) -> list[str]:
    """The warnings of a line with what has to be said of its picture, and without that of another one.

    remarks: on the map as it is drawn.
    """
    box = f" {boxes.which(line['box'])}" if line["box"] else ""
    about = f"{line['backend']} {line['method']}, {line['class_name']}{box}: "
    others = {about + text.format(it="it") for texts in REMARKS.values() for text in texts}
    # That a map is constant was told when it was computed, with what can be done about it.
    new = [about + text for text in remarks if text not in REMARKS["constant"]]
    before = line["warnings"] if isinstance(line["warnings"], list) else []
    return [*(text for text in before if text not in others), *new]


def request_id(
    work: Plan,
    classes: Sequence[str],
    *,
    model: str,
    style: Style,
    format: Format,
    image_format: ImageFormat,
    truth: str | None = None,
) -> str:
    """What a run asks for, apart from the photographs: the same for two runs with the same results.

    model: its `identity`. truth: a hash of the annotations.
    """
    backends = []
    for backend in work.backends:
        found = discovery.get("explainer", backend.name)
        options = vars(backend.explainer.options)
        backends.append([found.full_name, found.version, backend.methods, options])
    facts = {
        "model": model,
        "where": [
            devices.kind(work.model.device),
            str(work.model.dtype),
            devices.as_multiplied(work.model.device, work.precision),
        ],
        "backends": backends,
        "layers": [*work.layers, *([work.layout] if work.layout else [])],
        "classes": list(classes),
        **({"boxes": [work.boxes.numbers, work.boxes.min_score, *work.boxes.at]} if work.boxes else {}),
        "picture": [format, image_format, asdict(style)],
        **({"truth": truth} if truth else {}),
        "versions": [SCHEMA, camkit.__version__, str(torch.__version__)],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
