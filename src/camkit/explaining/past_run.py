"""What a folder of results tells of the run that wrote it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from camkit.explaining import manifest
from camkit.explaining.checked_reading import photograph


@dataclass(frozen=True)
class PastPhotograph:
    """A photograph that was explained: the name of its results, where it lay, and the hash of its file."""

    name: str
    path: Path
    sha256: str


@dataclass(frozen=True)
class PastRun:
    """A run of `camkit explain`.

    model: the specification of the model of its latest result, empty if there is none. photographs: those
    that were explained and are still where they were, in the order of the manifest.
    """

    model: str
    photographs: tuple[PastPhotograph, ...]


def past_run(folder: Path) -> PastRun | None:
    """What the manifest in a folder tells; `None` if there is no manifest.

    A stranger's manifest may name any model, which code may belong to, and any file: show none of another
    hash.
    """
    if not (folder / manifest.NAME).is_file():
        return None
    lines = [line for line in manifest.latest(folder) if line["status"] == "ok"]
    found = {Path(photograph(line, None)): line for line in lines}
    spec = next((line["model_spec"] or line["model"] for line in reversed(lines)), "")
    there = (
        PastPhotograph(line["name"] or line["image"], path, line["image_sha256"])
        for path, line in found.items()
        if path.is_file()
    )
    return PastRun(spec, tuple(there))
