"""Two documents: is a row faster or slower than it was?

Explainers are compared by their multiple of the bare forward of the same rounds, so a slower machine
does not matter; the forward itself by its time. Processes are compared, not rounds: between processes the
same code differs by more than the rounds of one show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from camkit.bench import statistics
from camkit.bench.results import FORWARD, Document
from camkit.bench.statistics import Estimate, Verdict
from camkit.errors import UsageError

TOLERANCE = 0.05
# What must be the same for a comparison to mean anything.
SAME: dict[str, Callable[[Document], Any]] = {
    "model": lambda document: document.settings.model_sha256,
    "layer": lambda document: document.settings.layer,
    "input size": lambda document: document.settings.size,
    "dtype": lambda document: document.settings.dtype,
    "precision": lambda document: document.environment.rest.get("precision", "ieee"),
    "options": lambda document: document.settings.options,
    "device": lambda document: document.environment.device_name,
    "number of threads": lambda document: document.environment.threads,
}


@dataclass(frozen=True)
class Comparison:
    """One row at one batch size: the new time over the old, and the verdict."""

    backend: str
    method: str
    batch: int
    ratio: Estimate
    verdict: Verdict


def compare(
    before: Document,
    after: Document,
    *,
    tolerance: float = TOLERANCE,
    force: bool = False,
) -> list[Comparison]:
    """Compare every row and batch size in both documents; with 95 %, all verdicts are right at once.

    tolerance: a change that is surely smaller is SAME, one that is surely larger FASTER or SLOWER. force:
    compare even what was measured under different conditions. Raises `UsageError` if conditions differ, or
    if the documents share nothing.
    """
    if not force and (different := list(_differences(before, after))):
        raise UsageError(f"these cannot be compared: {'; '.join(different)} (--force compares them anyway)")
    old, new = figures(before), figures(after)
    shared = [key for key in old if key in new]
    if not shared:
        raise UsageError("these cannot be compared: no row and batch size was timed in both")
    found = statistics.verdicts([statistics.change(old[key], new[key]) for key in shared], tolerance)
    return [Comparison(*key, *one) for key, one in zip(shared, found, strict=True)]


def unknown_spread(before: Document, after: Document) -> str | None:
    """The line that says why nothing is clear, if a document has rows of one process only."""
    fewest = {
        which: min(map(len, figures(d).values())) for which, d in (("before", before), ("after", after))
    }
    if not (single := [which for which, count in fewest.items() if count < 2]):
        return None
    return (
        f"{' and '.join(single)}: measured in one process, so how much processes differ is not known, and "
        "differences are UNCLEAR; measure again with --processes 3 or more"
    )


def _differences(before: Document, after: Document) -> Iterator[str]:
    for name, read in SAME.items():
        if (old := read(before)) != (new := read(after)):
            yield f"{name} {_shown(old)} and {_shown(new)}"


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text[:200]


def unmatched(before: Document, after: Document) -> list[str]:
    """A line for each document with the rows and batch sizes that the other does not have."""
    old, new = figures(before), figures(after)
    lines = []
    for which, own, other in (("before", old, new), ("after", new, old)):
        names = [f"{backend} {method} at {batch}" for backend, method, batch in own.keys() - other.keys()]
        if names:
            lines.append(f"only {which}: {', '.join(sorted(names))}")
    return lines


def figures(document: Document) -> dict[tuple[str, str, int], list[float]]:
    """For each process, the median multiple of the forward of the same round; for the forward, seconds."""
    raw = {
        (row.backend, row.method, record.batch): record.samples.by_process()
        for row in document.rows
        for record in row.latency
        if record.samples.host
    }
    found = {}
    for (backend, method, batch), parts in raw.items():
        bare = raw.get((*FORWARD, batch))
        if (backend, method) == FORWARD:
            found[backend, method, batch] = [statistics.median(part).middle for part in parts.values()]
        elif bare and (shared := parts.keys() & bare.keys()):
            found[backend, method, batch] = [
                statistics.paired(parts[process], bare[process]).middle for process in sorted(shared)
            ]
    return found
