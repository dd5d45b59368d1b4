"""The files of a run that an engine does: `part-ID.parquet`, a row for each map, or for what failed.

Beside a part with failures lies `_failed-ID.json`, written before it, which says what they were; a run that
is resumed does such a part again. Nothing else is kept: what is there is what is done.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from camkit.contracts.engine import Part
from camkit.engines import store
from camkit.engines.parts import Parts
from camkit.errors import UsageError
from camkit.explaining import manifest, parquet
from camkit.explaining.parquet import Map

MAX_FILE = 2**30  # bytes of a table
PART = re.compile(r"part-(?P<id>[0-9a-f]{16})\.parquet")
FAILED = re.compile(r"_failed-(?P<id>[0-9a-f]{16})\.json")


def name_of(part: str) -> str:
    """The file of the part with this id."""
    return f"part-{part}.parquet"


def write(
    place: str,
    part: Part,
    request: str,
    lines: Sequence[Mapping[str, Any]],
    maps: Sequence[Map | None],
) -> None:
    """Write the table of a part, whole; `CamkitError` if that cannot be done."""
    failed = [[line["image"], line["error"]] for line in lines if line["status"] == "error"]
    facts = {"request": request, "marks": [f"{mark:016x}" for mark in part.marks]}
    beside = f"_failed-{part.id}.json"
    if failed:
        store.write(
            place, beside, json.dumps(failed, ensure_ascii=False).encode("utf-8", "backslashreplace")
        )
    store.write(place, name_of(part.id), parquet.to_bytes(lines, maps, facts))
    if not failed:
        store.remove(place, beside)


@dataclass(frozen=True)
class There:
    """What lies in a place: ids of parts, and of those of which something failed."""

    parts: frozenset[str] = field(default_factory=frozenset)
    failed: frozenset[str] = field(default_factory=frozenset)


def there(place: str) -> There:
    """The parts in a place; none if there is no such place yet."""
    parts, failed = set[str](), set[str]()
    for name in store.names(place):
        for pattern, found in ((PART, parts), (FAILED, failed)):
            if match := pattern.fullmatch(name):
                found.add(match["id"])
    return There(frozenset(parts), frozenset(failed))


def missing(parts: Parts, place: str) -> tuple[Parts, int]:
    """The parts that are left to do, those of which something failed among them, and how many are done.

    A listing that has changed since has other parts: then the photographs that are done are told by the
    footers of the parts that are there.
    """
    found = there(place)
    done = found.parts - found.failed
    if not found.parts:
        return parts, 0
    own = {parts.part(number, group).id for number, group in enumerate(parts.groups())}
    others = sorted(done - own)
    known = _marks(place, others, parts.request)
    return parts.without(done & own, known), len(done & own)


def _marks(place: str, ids: Sequence[str], request: str) -> Any:
    """Sorted marks of the photographs in these parts, if they are of the request: `uint64 [n]`."""
    found: list[np.ndarray[Any, Any]] = []
    for one in ids:
        facts = parquet.read_facts(store.read(place, name_of(one), MAX_FILE))
        if facts.get("request") == request:
            found.append(np.array([int(mark, 16) for mark in facts["marks"]], np.uint64))
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.uint64)


def check_new(place: str) -> None:
    """Raise `UsageError` if there are parts already, which a run would do a second time."""
    if there(place).parts:
        raise UsageError(
            f"{place} holds parts of an earlier run: --resume does the rest, or choose another --out"
        )


def check_results(place: str) -> None:
    """Raise `UsageError` if no results lie there, neither tables nor those of a folder."""
    if manifest.NAME not in set(store.names(place)) and not there(place).parts:
        raise UsageError(
            f"{place} holds neither {manifest.NAME} nor tables of an engine: nothing was finished there, "
            "or it is no folder of `camkit explain`"
        )
