"""Photographs as a user filed them: where each lies, what it is labelled with, and in which part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from camkit.images import finding

# What people call the parts of a data set.
PARTS = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Labelled:
    """A photograph with its labels; part: `train`, `valid` or `test`, empty where the user did not say."""

    path: Path
    labels: tuple[str, ...]
    part: str = ""


@dataclass(frozen=True)
class Found:
    """All labelled photographs of a data set.

    root: what their names are relative to. how: where the labels come from, for people.
    several: a photograph may have several labels, or none. left_out: how many files of which kind.
    missing: what is named but not there, with the reason.
    """

    root: Path
    photos: Sequence[Labelled]
    how: str
    several: bool = False
    left_out: Mapping[str, int] = field(default_factory=dict)
    missing: Sequence[tuple[str, str]] = ()


def part_of(name: str) -> str:
    """The part that a word means; empty for any other."""
    return PARTS.get(name.strip().lower(), "")


def is_hidden(path: PurePath) -> bool:
    """Whether a relative path is hidden, or one of those that macOS adds (`._x.jpg`, `__MACOSX`)."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.parts)


def some(names: Sequence[str], separator: str = ", ", count: int = 3) -> str:
    """The first names of many, for a message."""
    shown = [*names[:count], "..."] if len(names) > count else names
    return separator.join(map(finding.display, shown))
