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
from camkit.errors import CamkitError, UsageError, reason
from camkit.explaining import manifest, parquet
from camkit.explaining.parquet import Map

MAX_FILE = 2**30  # bytes of a table
PART = re.compile(r"part-(?P<id>[0-9a-f]{16})\.parquet")
FAILED = re.compile(r"_failed-(?P<id>[0-9a-f]{16})\.json")


def name_of(part: str) -> str:
    """The file of the part with this id."""
    return f"part-{part}.parquet"


def id_of(name: str) -> str:
    """The id of the part whose file has this name; `CamkitError` if it is none."""
    if match := PART.fullmatch(name):
        return match["id"]
    raise CamkitError(f"{name!r} is no table of an engine")


def write(
    place: str,
    part: Part,
    request: str,
    lines: Sequence[Mapping[str, Any]],
    maps: Sequence[Map | None],
) -> None:
    """Write the table of a part, whole; `CamkitError` if that cannot be done."""
    failed = [[line["image"], line["error"]] for line in lines if line["status"] == "error"]
    facts: dict[str, Any] = {"request": request}
    facts |= {
        "keys": [f"{key:016x}" for key in part.keys],
        "marks": [f"{mark:016x}" for mark in part.marks],
    }
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


@dataclass(frozen=True)
class Left:
    """What a run that is resumed has to do.

    skipped: how many parts are done. stale: ids of parts to remove, of which some photographs are others
    now, or failed and lie in another part today: those that are listed are done anew.
    """

    parts: Parts
    skipped: int = 0
    stale: tuple[str, ...] = ()


def left(parts: Parts, place: str) -> Left:
    """What is left to do of `parts`.

    A listing that has changed since has other parts: then the photographs that are done are told by the
    footers of the parts that are there. Raises `UsageError` for tables of another request.
    """
    found = there(place)
    if not found.parts:
        return Left(parts)
    done = found.parts - found.failed
    own = {parts.part(number, group).id for number, group in enumerate(parts.groups())}
    others = sorted(found.parts - own)
    if not others:
        return Left(parts.without(done & own), len(done & own))
    now = _marks_by_name(parts)
    known: list[Any] = []
    stale = []
    for one in others:
        keys, marks = _footer(place, one, parts.request)
        listed = np.isin(keys, now[0], kind="sort")  # tables of integers overflow with numpy 2.0
        changed = listed & (now[1][np.searchsorted(now[0], keys).clip(max=len(now[0]) - 1)] != marks)
        if changed.any() or (one in found.failed and listed.any()):
            stale.append(one)
        else:
            known.append(marks)
    marks = np.sort(np.concatenate(known)) if known else np.zeros(0, np.uint64)
    return Left(parts.without(done & own, marks), len(done & own), tuple(stale))


def remove(place: str, ids: Sequence[str]) -> None:
    """Take the tables of these parts away, and what tells of their failures."""
    for one in ids:
        store.remove(place, name_of(one))
        store.remove(place, f"_failed-{one}.json")


def _marks_by_name(parts: Parts) -> tuple[Any, Any]:
    """Sorted keys of all photographs of a listing, and their marks in this order: two of `uint64 [n]`."""
    table = np.array([(one.key, one.fingerprint) for group in parts.groups() for one in group], np.uint64)
    table = table[np.argsort(table[:, 0], kind="stable")]
    return table[:, 0], table[:, 1]


def _footer(place: str, part: str, request: str) -> tuple[Any, Any]:
    """Keys and marks of the photographs of a part; `UsageError` if it is of another request."""
    data = store.read(place, name_of(part), MAX_FILE)
    try:
        facts = parquet.read_facts(data)
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        where = store.joined(place, name_of(part))
        raise CamkitError(
            f"{where} is damaged: remove it, and --resume does it again: {reason(error)}"
        ) from None
    if facts.get("request") != request:
        raise UsageError(
            f"{place} holds tables of another request (model, classes, method, batch size, ...): choose "
            "another --out"
        )
    keys, marks = (np.array([int(one, 16) for one in facts[name]], np.uint64) for name in ("keys", "marks"))
    return keys, marks


def check_new(place: str) -> None:
    """Raise `UsageError` if there are parts already, which a run would do a second time."""
    if there(place).parts:
        raise UsageError(
            f"{place} holds parts of an earlier run: --resume does the rest, or choose another --out"
        )


def check_tables_alone(place: str) -> None:
    """Raise `UsageError` if results of another kind lie there, which would be there twice."""
    names = set(store.names(place))
    if manifest.NAME in names and not any(map(PART.fullmatch, names)):
        raise UsageError(f"{place} holds results that are no tables of an engine: choose another --out")


def check_results(place: str) -> None:
    """Raise `UsageError` if no results lie there, neither tables nor those of a folder."""
    if manifest.NAME not in set(store.names(place)) and not there(place).parts:
        raise UsageError(
            f"{place} holds neither {manifest.NAME} nor tables of an engine: nothing was finished there, "
            "or it is no folder of `camkit explain`"
        )
