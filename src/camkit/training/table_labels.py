"""Labelled photographs from a table, such as labels.csv."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from camkit.errors import UsageError, counted
from camkit.images import finding
from camkit.training import label_table
from camkit.training.label_table import FLAGS, Columns, Row
from camkit.training.labelled import Found, Labelled, some
from camkit.training.table_photographs import Photographs

SEPARATORS = ";|,"
PLURALS = {"labels", "classes", "categories", "tags", "targets", "attributes"}


def read(tables: Sequence[tuple[Path, str]], labels: str, label_column: str | None) -> Found:
    """The photographs of one table, or of one to train on and one to validate with.

    labels: `one` for each photograph, `several`, or `auto`: what the table looks like.
    """
    photos = [Photographs(path) for path, _ in tables]
    rows = [label_table.read_rows(path, part, of) for (path, part), of in zip(tables, photos, strict=True)]
    shape = label_table.columns(rows[0], photos[0], label_column)
    for others in rows[1:]:
        if shape.header and others[0].cells != shape.header:
            raise UsageError(f"{others[0].where}: the header is not that of {rows[0][0].table.name}")
    body = [row for some_rows in rows for row in some_rows[bool(shape.header) :]]
    named, several, how = _named(body, shape, labels)
    of = {path: finder for (path, _), finder in zip(tables, photos, strict=True)}
    found: dict[Path, tuple[Row, Labelled]] = {}
    missing, left_out = [], Counter[str]()
    for row, names in zip(body, named, strict=True):
        path = of[row.table].get(row.cells[shape.file], row.where)
        part = label_table.part(row, shape.part, shape.header)
        if part == "test":
            left_out["test"] += 1
        elif path is None:
            missing.append((row.where, f"there is no photograph {row.cells[shape.file]!r}"))
        else:
            first, known = found.get(path, (row, Labelled(path, names, part)))
            found[path] = first, _joined(first, known, row, Labelled(path, names, part), several)
    if not found:
        where, why = missing[0] if missing else (body[0].where, "no photograph is one to train on")
        raise UsageError(
            f"{where}: {why} beside {finding.display(body[0].table)} or in a folder there, nor is any other"
        )
    together = [photo for _, photo in found.values()]
    root = _root(tables[0][0], together)
    if root.is_absolute():  # and the names are to be relative to it
        together = [replace(photo, path=photo.path.absolute()) for photo in together]
    return Found(root, together, how, several, dict(left_out), missing)


def _named(body: Sequence[Row], shape: Columns, labels: str) -> tuple[list[tuple[str, ...]], bool, str]:
    """The labels of each line, whether there may be several, and how they came about."""
    table = " and ".join(dict.fromkeys(finding.display(row.table.name) for row in body))
    if shape.one_hot:
        ways = [tuple(shape.header[i] for i in shape.labels if FLAGS[row.cells[i].lower()]) for row in body]
        several = labels == "several" or any(len(names) != 1 for names in ways)
        for row, names in zip(body, ways, strict=True):
            if labels == "one" and len(names) != 1:
                raise UsageError(f"{row.where} has {counted(len(names), 'label')}, not one")
        return ways, several, f"{table}, a column for each class"
    column = shape.labels[0]
    title = shape.header[column] if shape.header else ""
    how = f"{table}, column {finding.display(title)}" if title else table
    cells = [row.cells[column] for row in body]
    sign = None if labels == "one" else _separator(cells, title, labels)
    if sign is not None:
        ways = [tuple(dict.fromkeys(filter(None, map(str.strip, cell.split(sign))))) for cell in cells]
        shown = "a space" if sign == " " else repr(sign)
        return ways, True, f"{how}, split at {shown} (--labels one: as they are)"
    for row, cell in zip(body, cells, strict=True):
        if not cell and labels != "several":
            raise UsageError(f"{row.where} has no label")
    return [(cell,) if cell else () for cell in cells], labels == "several", how


def _separator(cells: Sequence[str], title: str, labels: str) -> str | None:
    """What stands between several labels of a photograph; `None` if each has one.

    A space does only where the column is called so (`tags`) or all labels are numbers: a breed may be two
    words.
    """
    for sign in SEPARATORS:
        if any(sign in cell for cell in cells):
            return sign
    spaced = [cell for cell in cells if " " in cell]
    plural = title.lower() in PLURALS or labels == "several"
    numbers = all(word.isdecimal() for cell in cells for word in cell.split())
    return " " if spaced and (plural or numbers) else None


def _joined(first: Row, known: Labelled, row: Row, again: Labelled, several: bool) -> Labelled:
    """A photograph that may be in several lines: with all labels that they give it."""
    if known.part != again.part:
        raise UsageError(f"{row.where}: {_shown(known)} is held out here or in {first.where}, not in both")
    if known.labels == again.labels:
        return known
    if not several:
        raise UsageError(
            f"{row.where}: {_shown(known)} is {some(again.labels)!r}, but {some(known.labels)!r} in "
            f"{first.where}; with --labels several it is both"
        )
    return Labelled(known.path, tuple(dict.fromkeys(known.labels + again.labels)), known.part)


def _shown(photo: Labelled) -> str:
    return finding.display(photo.path.name)


def _root(table: Path, photos: Sequence[Labelled]) -> Path:
    """The folder of the table, unless photographs lie elsewhere: then the one that all lie in."""
    folder = Path(os.path.normpath(table.parent))
    if all(photo.path.is_relative_to(folder) for photo in photos):
        return folder
    return Path(os.path.commonpath([os.path.abspath(photo.path.parent) for photo in photos]))  # noqa: PTH100
