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
OF_MODEL = "scores probability logit predicted_index predicted_probability box".split()
NAMES = "class_name predicted predicted_name label".split()
ASKED = "number of classes".split()  # of a box: what was asked for beside it
SHARE = 1e-4  # by which a share, which is rounded to four digits, may be off
UNLIKE = 0.01  # of a mask: how many of its places may be others on another device


def wrong(line: Line, map: Tensor, again: Explanation, tolerance: float, *, named: bool) -> Iterator[str]:
    """What a line says that is not so, in words; a field that older lines lack says nothing.

    map: as it is stored. again: what is computed now; tolerance: by how much numbers of it may be off, of
    numbers above 1 relative to them. named: whether the names of its classes are known.
    """
    facts = again.facts()
    facts["label"] = class_from_path(line["image_path"], tuple(again.model.classes))
    box = line["box"]
    if box is not None and (box.get("at") or not named):  # a place is computed for its class alone
        left_out = [*ASKED, *([] if named else ["label"])]
        line = line | {"box": {key: value for key, value in box.items() if key not in left_out}}
    yield from _unlike(line, measured(map), OF_MAP, SHARE)
    yield from _unlike(line, facts, [*OF_MODEL, *(NAMES if named else [])], tolerance)


def _unlike(line: Line, facts: Mapping[str, Any], fields: Sequence[str], tolerance: float) -> Iterator[str]:
    for field in fields:
        told, found = line[field], facts[field]
        if told is not None and not _alike(told, found, tolerance):
            yield f"{field}: the manifest says {_shown(told)}, it is {_shown(found)}"


def _shown(value: Any) -> str:
    text = str(
        {key: one for key, one in value.items() if key != "mask"} if isinstance(value, dict) else value
    )
    return text if len(text) <= 200 else f"{text[:200]}..."


def _alike(told: Any, found: Any, tolerance: float) -> bool:
    """Whether two values of JSON say the same. told: a stranger's; of a table fields may be missing."""
    if isinstance(told, dict) and isinstance(found, dict):
        if "counts" in found:
            return _overlap(told, found)
        return all(key in found and _alike(one, found[key], tolerance) for key, one in told.items())
    if isinstance(told, list) and isinstance(found, list):
        return len(told) == len(found) and all(
            _alike(one, other, tolerance) for one, other in zip(told, found, strict=True)
        )
    if _is_number(told) and _is_number(found):
        return bool(abs(told - found) <= tolerance * max(1.0, abs(found)))
    return type(told) is type(found) and bool(told == found)


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
