"""Whether what a line of a manifest says of a map, and of the model, is so."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from camkit.core.class_names import class_from_path
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest import Line
from camkit.explaining.map_facts import measured
from camkit.images import run_lengths

OF_MAP = ("border_share",)
OF_MODEL = "scores probability logit predicted_probability box".split()
PREDICTED = "predicted_index predicted predicted_name".split()
NAMES = "class_name predicted predicted_name label".split()
# By how much values may be off as they are rounded: shares to four digits, corners to hundredths.
STEP = 1.1e-4
STEPS = {"border_share": STEP, "score": STEP, "area": STEP, "corners": 0.011, "at": 0.011}
UNLIKE = 0.01  # of a mask: how many of its places, and so of its area, may be others on another device


def wrong(line: Line, map: Tensor, again: Explanation, tolerance: float, *, named: bool) -> Iterator[str]:
    """What a line says that is not so, in words; a field that older lines lack says nothing.

    map: as it is stored. again: what is computed now; tolerance: by how much numbers of it may be off, of
    numbers above 1 relative to them. named: whether the names of its classes are known.
    """
    facts = again.facts()
    facts["label"] = class_from_path(line["image_path"], tuple(again.model.classes))
    fields = [*OF_MODEL, *PREDICTED, *NAMES]
    # Elsewhere, and in half precision, another class may be the highest where two are alike.
    if line["dtype"] not in ("float32", "float64") or line["device"] != facts["device"]:
        fields = [field for field in fields if field not in PREDICTED]
    if not named:
        fields = [field for field in fields if field not in NAMES]
    if line["image_path"] is None:  # as of older lines
        fields = [field for field in fields if field != "label"]
    yield from _unlike(line, measured(map), OF_MAP, 0.0)
    yield from _unlike(_comparable(line, named=named), facts, list(dict.fromkeys(fields)), tolerance)


def _comparable(line: Line, *, named: bool) -> Line:
    """A line with what of its box can be compared.

    A place is computed for its class alone; of a segment the corners and their number follow from masks.
    """
    box = line["box"]
    if box is None:
        return line
    left_out = set() if named else {"label"}
    if box.get("at"):
        left_out |= {"number", "of", "classes"}
    elif box.get("mask"):
        left_out |= {"of", "corners"}
    return line | {"box": {key: value for key, value in box.items() if key not in left_out}}


def _unlike(line: Line, facts: Mapping[str, Any], fields: Sequence[str], tolerance: float) -> Iterator[str]:
    for field in fields:
        told, found = line[field], facts[field]
        if told is not None and not _alike(told, found, tolerance, STEPS.get(field, 0.0)):
            yield f"{field}: the manifest says {_shown(told)}, it is {_shown(found)}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if key != "mask"}
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _alike(told: Any, found: Any, tolerance: float, step: float = 0.0) -> bool:
    """Whether two values of JSON say the same. told: a stranger's; of a table fields may be missing.

    step: to which numbers are rounded.
    """
    if isinstance(told, dict) and isinstance(found, dict):
        if "counts" in found:
            return _overlap(told, found)
        return told.keys() <= found.keys() and all(
            _alike_part(key, one, found[key], tolerance) for key, one in told.items()
        )
    if isinstance(told, list) and isinstance(found, list):
        return len(told) == len(found) and all(
            _alike(one, other, tolerance, step) for one, other in zip(told, found, strict=True)
        )
    if _is_number(told) and _is_number(found):
        return bool(abs(told - found) <= step + tolerance * max(1.0, abs(found)))
    return type(told) is type(found) and bool(told == found)


def _alike_part(key: str, told: Any, found: Any, tolerance: float) -> bool:
    """The same of a part of a box; of a segment the area may differ as the mask may."""
    step = STEPS.get(key, 0.0)
    if key == "area" and _is_number(found):
        step += UNLIKE * found
    return _alike(told, found, tolerance, step)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _overlap(told: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Whether two masks, as run lengths, are of nearly the same places."""
    if told == found:
        return True
    try:
        one, other = run_lengths.decoded(told), run_lengths.decoded(found)
    except ValueError:
        return False
    if one.shape != other.shape:
        return False
    return bool(np.count_nonzero(one ^ other) <= UNLIKE * np.count_nonzero(one | other))
