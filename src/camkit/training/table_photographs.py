"""The photographs that the cells of a table name."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from functools import cached_property
from pathlib import Path, PurePosixPath

from camkit.errors import UsageError
from camkit.images import finding
from camkit.training.labelled import is_hidden, part_of


class Photographs:
    """Photographs by the names that a table has for them: paths from its folder, or any lower end of one.

    A suffix may be missing, and capitals do not matter.
    """

    def __init__(self, table: Path) -> None:
        self.folder, self.stem = Path(os.path.normpath(table.parent)), table.stem.lower()

    @staticmethod
    def is_name(cell: str) -> bool:
        """Whether a cell looks like the name of a photograph."""
        return PurePosixPath(cell).suffix.lower() in finding.SUFFIXES

    def find(self, cell: str) -> list[Path]:
        """The photographs that a cell may mean: none, one, or several that no rule tells apart."""
        if not cell or "\0" in cell:
            return []
        text = cell.replace("\\", "/")
        path = Path(os.path.normpath(self.folder / text))
        if self.is_name(text) and os.path.isfile(path):  # noqa: PTH113  is_file raises on some names
            return [path]
        wanted = PurePosixPath(text.lower().removeprefix("./"))
        found = [
            path
            for path in self._listed.get(wanted.name, ())
            if self._parts(path)[-len(wanted.parts) :][:-1] == wanted.parts[:-1]
        ]
        rules: list[Callable[[Path], bool]] = [
            lambda path: text.endswith((path.name, path.stem)),
            lambda path: self._parts(path)[0].startswith(self.stem),
            lambda path: part_of(self._parts(path)[0]) != "test",
        ]
        for rule in rules:
            found = [path for path in found if rule(path)] or found
        return found

    def get(self, cell: str, where: str) -> Path | None:
        """The photograph of a cell, if it is there; `UsageError` if several are meant."""
        found = self.find(cell)
        if len(found) > 1:
            names = " and ".join(finding.display(path.relative_to(self.folder)) for path in found[:2])
            raise UsageError(f"{where}: {cell!r} may be {names}: write the path")
        return found[0] if found else None

    def _parts(self, path: Path) -> tuple[str, ...]:
        return tuple(part.lower() for part in path.relative_to(self.folder).parts)

    @cached_property
    def _listed(self) -> dict[str, list[Path]]:
        listed = defaultdict(list)
        for path in finding.Walk(self.folder):
            if not is_hidden(path.relative_to(self.folder)):
                for name in {path.name.lower(), path.stem.lower()}:
                    listed[name].append(path)
        return dict(listed)
