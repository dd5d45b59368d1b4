"""Two documents: is a row faster or slower than it was?

Explainers are compared by their multiple of the bare forward of the same rounds, so that a machine that is
slower today slows nobody; the forward itself by its time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from camkit.bench import stats
from camkit.bench.document import FORWARD
from camkit.bench.stats import Estimate, Verdict
from camkit.errors import UsageError

TOLERANCE = 0.05
# What must be the same for a comparison to mean anything: where it stands, and what it is called.
SAME = {
    ("settings", "model_sha256"): "model",
    ("settings", "layer"): "layer",
    ("settings", "size"): "input size",
    ("settings", "dtype"): "dtype",
    ("settings", "options"): "options",
    ("environment", "device_name"): "device",
    ("environment", "threads"): "number of threads",
}


@dataclass(frozen=True)
class Comparison:
    """One row at one batch size: the new time over the old, and what that allows one to say."""

    backend: str
    method: str
    batch: int
    ratio: Estimate
    verdict: Verdict


def compare(
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    *,
    tolerance: float = TOLERANCE,
    force: bool = False,
    seed: int = 0,
) -> list[Comparison]:
    """Every row and batch size that both documents have.

    tolerance: a change that is surely less is SAME. force: compare what was measured under different
    conditions, too. Raises `UsageError` if conditions differ, or if nothing is in both.
    """
    if not force and (different := list(_differences(before, after))):
        raise UsageError(
            f"these cannot be compared: {'; '.join(different)} (--force compares all the same)"
        )
    old, new = samples(before), samples(after)
    shared = [key for key in old if key in new]
    if not shared:
        raise UsageError("these cannot be compared: no row and batch size was timed in both")
    found = []
    for key in shared:
        ratio = stats.quotient(old[key], new[key], seed)
        found.append(Comparison(*key, ratio, stats.verdict(ratio, tolerance)))
    return found


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for (section, key), name in SAME.items():
        old, new = before[section].get(key), after[section].get(key)
        if old != new:
            yield f"{name} {_shown(old)} and {_shown(new)}"


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text


def unmatched(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """A line for each document with the rows and batch sizes that the other does not have."""
    old, new = samples(before), samples(after)
    lines = []
    for which, own, other in (("before", old, new), ("after", new, old)):
        names = [f"{backend} {method} at {batch}" for backend, method, batch in own.keys() - other.keys()]
        if names:
            lines.append(f"only {which}: {', '.join(sorted(names))}")
    return lines


def samples(document: Mapping[str, Any]) -> dict[tuple[str, str, int], list[float]]:
    """Multiples of the forward of the same round; of the forward itself seconds."""
    raw = {
        (row["backend"], row["method"], record["batch"]): record["samples"]["host"]
        for row in document["rows"]
        for record in row["latency"]
        if record["samples"]["host"]
    }
    found = {}
    for (backend, method, batch), samples in raw.items():
        bare = raw.get((*FORWARD, batch))
        if (backend, method) == FORWARD:
            found[backend, method, batch] = samples
        elif bare:
            pairs = zip(samples, bare, strict=False)
            found[backend, method, batch] = [own / base for own, base in pairs]
    return found
