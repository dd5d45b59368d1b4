"""Tables of labels: which there is, its lines, and which column is what.

The columns are told by what is in them: file names are those that lead to photographs; labels have a column
of a usual name or the only one left, or a column of zeros and ones for each class.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from camkit.errors import UsageError, closest, counted, reason
from camkit.files import read_regular
from camkit.images import finding
from camkit.training import folders
from camkit.training.labelled import part_of, some
from camkit.training.table_photographs import Photographs

SUFFIXES = (".csv", ".tsv")
NAMES = ("labels", "train")  # of the tables that are looked for in a folder
MAX_BYTES = 64 * 2**20
LOOKED_AT = 50  # rows that tell which column names the files
FILE_NAMES = set(
    "file filename file_name fname image image_id image_name image_path img path photo".split()
)
LABEL_NAMES = (
    "label labels class classes class_name category categories tag tags target targets breed species"
).split()
FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True, "": False}


@dataclass(frozen=True)
class Row:
    """A line of a table; part: what the table is for, `train` or `valid`, or empty."""

    table: Path
    line: int
    cells: tuple[str, ...]
    part: str = ""

    @property
    def where(self) -> str:
        """The line as a message names it."""
        return f"{finding.display(self.table.name)} line {self.line}"


@dataclass(frozen=True)
class Columns:
    """Which column holds what; labels: one with all labels, or several with a class each (`one_hot`)."""

    file: int
    labels: tuple[int, ...]
    one_hot: bool
    part: int | None
    header: tuple[str, ...]  # empty for none


def tables(data: str | os.PathLike[str]) -> list[tuple[Path, str]]:
    """The tables that DATA means, with the part that each is for; none if the folders tell the labels."""
    path = Path(data)
    if not path.is_dir():
        return [(path, "")]
    if folders.is_split(path):
        return []
    files = {file.name.lower(): file for file in sorted(path.iterdir()) if file.is_file()}
    for stem in NAMES:
        if table := next((files[stem + end] for end in SUFFIXES if stem + end in files), None):
            break
    else:
        return []
    others = [file for file in files.values() if part_of(file.stem) == "valid" and file.suffix in SUFFIXES]
    if stem == "train" and others:
        return [(table, "train"), (others[0], "valid")]
    return [(table, "")]


def read_rows(path: Path, part: str, photos: Photographs) -> list[Row]:
    """The lines of a table that are not empty, all with the same number of cells, which is two or more."""
    text = _text(path)
    signs = "\t,;" if path.suffix.lower() == ".tsv" else ",;\t"
    ways, errors = list[list[tuple[int, tuple[str, ...]]]](), list[UsageError]()
    for sign in signs:
        try:
            ways.append(_cells(path, text, sign))
        except UsageError as error:
            errors.append(error)
    if errors and (not ways or signs[0] in text):  # of the usual sign, or of all
        raise errors[0]
    even = [way for way in ways if len({len(cells) for _, cells in way}) == 1 and len(way[0][1]) > 1]
    # A sign may stand in every name or label, so the photographs decide.
    found = next(
        (way for way in even if any(photos.find(cell) for _, row in way[:3] for cell in row)), None
    )
    if not any(ways):
        raise UsageError(f"{finding.display(path)} is empty")
    if found is None and not even:
        widest = max(ways, key=lambda way: sum(len(cells) > 1 for _, cells in way))
        width = max(2, len(widest[0][1]))
        line, cells = next((line, cells) for line, cells in widest if len(cells) != width)
        raise UsageError(
            f"{finding.display(path.name)} line {line} has {counted(len(cells), 'column')}, not {width}: a "
            "file name and a label, several labels with commas in quotes"
        )
    return [Row(path, line, cells, part) for line, cells in found or even[0]]


def columns(rows: Sequence[Row], photos: Photographs, label_column: str | None) -> Columns:
    """Which column is what; `UsageError` if that cannot be told."""
    first, sample = rows[0].cells, rows[1 : 1 + LOOKED_AT] or rows[:1]
    titles = [title.lower() for title in first]

    def likely(column: int) -> tuple[int, bool, bool]:
        hits = sum(bool(photos.find(row.cells[column])) for row in sample)
        return hits, titles[column] in FILE_NAMES, photos.is_name(sample[0].cells[column])

    file = max(range(len(first)), key=likely)
    is_photo = photos.is_name(first[file]) or photos.find(first[file])
    has_header = titles[file] in FILE_NAMES or not is_photo
    header, body = (first, rows[1:]) if has_header else ((), rows)
    if not body:
        raise UsageError(f"{rows[0].where}: the table has no line below its header")
    titles = titles if has_header else [""] * len(first)
    part = next((i for i in range(len(first)) if i != file and _tells_parts(titles[i], body, i)), None)
    rest = [i for i in range(len(first)) if i not in (file, part) and not titles[i].startswith("unnamed:")]
    labels, one_hot = _label_columns(rest, body, titles, header, label_column)
    return Columns(file, labels, one_hot, part, tuple(header))


def part(row: Row, column: int | None, header: Sequence[str]) -> str:
    """The part that a line is in, as its table or a column of it says."""
    if column is None:
        return row.part
    value = row.cells[column].lower()
    if header[column].lower() in ("is_valid", "valid"):
        return "valid" if FLAGS[value] else "train"
    return part_of(value)


def _label_columns(
    rest: Sequence[int],
    body: Sequence[Row],
    titles: Sequence[str],
    header: Sequence[str],
    asked: str | None,
) -> tuple[tuple[int, ...], bool]:
    table = finding.display(body[0].table.name)
    if asked is not None:
        if asked not in header:
            raise UsageError(
                f"{table} has no column {asked!r}{closest(asked, header)} ({some(header, count=9)})"
            )
        return (header.index(asked),), False
    if known := [
        titles.index(name) for name in LABEL_NAMES if name in titles and titles.index(name) in rest
    ]:
        return (known[0],), False
    named = [i for i in rest if titles[i] or not header]
    if len(named) == 1:
        return (named[0],), False
    if header and named and all(row.cells[i].lower() in FLAGS for row in body for i in named):
        return tuple(named), True
    if not named:
        raise UsageError(f"{table} has no column of labels beside that of the file names")
    if not header:
        many = len(titles)
        raise UsageError(f"{body[0].where}: {table} has {many} columns and no header that tells the labels")
    shown = some([header[i] for i in named], count=9)
    raise UsageError(
        f"{table} does not tell which column holds the labels ({shown}): say it with --label-column"
    )


def _tells_parts(title: str, body: Sequence[Row], column: int) -> bool:
    values = {row.cells[column].lower() for row in body}
    if title in ("is_valid", "valid"):
        return values <= FLAGS.keys()
    return title in ("split", "set", "part", "subset", "partition") and all(map(part_of, values))


def _text(path: Path) -> str:
    try:
        data = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise UsageError(f"{finding.display(path)} cannot be read: {reason(error)}") from None
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(
            f"{finding.display(path.name)} line {line} is no {encoding[:6].upper().rstrip('-')}: save the "
            "table as UTF-8"
        ) from None


def _cells(path: Path, text: str, sign: str) -> list[tuple[int, tuple[str, ...]]]:
    """The cells of each line that has some, with its number."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, skipinitialspace=True, strict=True)
    try:
        return [
            (reader.line_num, tuple(cell.strip() for cell in cells))
            for cells in reader
            if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise UsageError(f"{finding.display(path.name)} line {reader.line_num}: {reason(error)}") from None
