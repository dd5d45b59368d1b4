"""Names of classes as people write them down: in a checkpoint, in a file beside it, or by hand."""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from camkit.errors import UNPRINTABLE, ModelError, reason
from camkit.files import is_file, read_regular

# Under which names a table has its classes, the surer ones first.
KEYS = (
    "class_names",
    "classes",
    "class_to_idx",
    "idx_to_class",
    "id2label",
    "label_names",
    "label2id",
    "labels",
    "names",
    "vocab",
    "categories",
)
# Files beside the weights that hold nothing but classes, and tables that hold them among others.
LISTS = ("classes", "class_names", "labels", "class_to_idx", "idx_to_class", "id2label", "label_map")
TABLES = ("config.json", "camkit.json")
MAX_FILE = 4 * 2**20  # bytes
MAX_CLASSES = 100_000


def parse(text: str) -> tuple[str, ...]:
    """What `--classes` means: a file, a folder with a folder for each class, or names between commas.

    Raises `ModelError` if it is none of these, or names a class twice.
    """
    if os.path.isdir(text):  # noqa: PTH112  Path.is_dir raises if the name is too long
        return checked(of_folder(Path(text)), text)
    if is_file(text):
        return checked(of_file(Path(text)), text)
    names = tuple(name.strip() for name in text.split(","))
    if len(names) == 1 and (os.sep in text or Path(text).suffix):
        raise ModelError(f"there is no file or folder {text!r} with names of classes")
    return checked(names, "--classes")


def checked(names: Iterable[Any] | None, where: str) -> tuple[str, ...]:
    """`names` if each is one that can be printed, and stands there once; `ModelError` if not."""
    found = tuple(names or ())
    if not found or len(found) > MAX_CLASSES:
        raise ModelError(f"{where} holds no names of classes: one in each line, a JSON list, or a,b,c")
    for name in found:
        if not isinstance(name, str) or not name or UNPRINTABLE.search(name):
            raise ModelError(f"{where}: the class {name!a} is no name that can be printed")
    twice = (
        next((name for name in found if found.count(name) > 1), None)
        if len(set(found)) < len(found)
        else None
    )
    if twice is not None:
        raise ModelError(f"{where} names the class {twice!r} twice")
    return found


def numbered(count: int) -> tuple[str, ...]:
    """Names for classes of which none is known."""
    return tuple(f"class_{index}" for index in range(count))


def named(classes: Sequence[str]) -> bool:
    """Whether these are names, and not only numbers."""
    return tuple(classes) != numbered(len(classes))


def of_folder(folder: Path) -> list[str]:
    """The names of the folders in a folder, in the order of torchvision's `ImageFolder`."""
    with os.scandir(folder) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def of_file(path: Path) -> Iterable[Any] | None:
    """The classes of a file: JSON, YAML, CSV, or one in each line. `ModelError` if it cannot be read."""
    try:
        text = read_regular(path, MAX_FILE).decode("utf-8-sig")
        if path.suffix.lower() == ".json":
            return of_value(json.loads(text))
        if path.suffix.lower() in (".yaml", ".yml"):  # such as `data.yaml` of ultralytics
            import yaml

            try:
                return of_value(yaml.safe_load(text))
            except yaml.YAMLError as error:
                raise ValueError(str(error).splitlines()[0]) from None
        if text.lstrip()[:1] in ("{", "["):  # a table or list as Python prints it
            return of_value(ast.literal_eval(text.strip()))
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path} cannot be read: {reason(error)}") from None
    if path.suffix.lower() in (".csv", ".tsv"):
        return _of_table(text, "\t" if path.suffix.lower() == ".tsv" else ",")
    return _of_lines([line.strip() for line in text.splitlines() if line.strip()], path)


# `pug: 0`, `0 pug`, `0: pug`, `0<tab>pug`, `pug,0`.
_NUMBERED = re.compile(r"(?P<index>\d{1,6})(?:\s*[:,;=]\s*|\s+)(?P<name>.+)")
_WITH_NUMBER = re.compile(r"(?P<name>.+?)(?:\s*[:,;=]\s*|\s+)(?P<index>\d{1,6})")


def _of_lines(lines: list[str], path: Path) -> list[str]:
    """A name in each line, perhaps with the numbers from 0 or 1 on that order them; or all in one line."""
    for pattern in (_NUMBERED, _WITH_NUMBER):
        found = [pattern.fullmatch(line) for line in lines]
        named = {int(one["index"]): one["name"].strip() for one in found if one}
        numbers = sorted(named)
        counted = len(numbers) == len(lines) and numbers in (
            list(range(len(lines))),
            list(range(1, len(lines) + 1)),
        )
        # `grade 1` and `grade 2` are names, and so is `grade 1` alone.
        if counted and len(lines) > 1 and len(set(named.values())) == len(lines):
            return [named[number] for number in numbers]
    if len(lines) > 1 and all(re.fullmatch(r"\d{1,6}\s*[:=\t].*", line) for line in lines):
        raise ModelError(
            f"{path}: the numbers of its lines are not 0, 1, 2, ..., or a name stands there twice"
        )
    if len(lines) == 1 and "," in lines[0]:
        return [name.strip() for name in lines[0].split(",")]
    return lines


def of_value(value: Any) -> tuple[str, ...] | None:
    """The classes that a value of JSON or of a checkpoint names, in order; `None` if it names none.

    A list of names, `{name: index}`, `{index: name}`, or a table with one of these.
    """
    if isinstance(value, str):  # as the head of a safetensors file holds everything
        try:
            inner = json.loads(value)
        except (ValueError, RecursionError):
            return tuple(name.strip() for name in value.split(",")) if "," in value else None
        return of_value(inner) if isinstance(inner, list | dict) else None
    if isinstance(value, list | tuple):
        return tuple(value) if value and all(isinstance(name, str) for name in value) else None
    if not isinstance(value, Mapping):
        return None
    numbered = {_index(key): name for key, name in value.items() if isinstance(name, str)}
    if len(numbered) != len(value):
        numbered = {_index(index): name for name, index in value.items() if isinstance(name, str)}
    if value and len(numbered) == len(value) and sorted(numbered, key=_order) == list(range(len(value))):
        return tuple(numbered[index] for index in range(len(value)))
    return next((found for key in KEYS if (found := of_value(value.get(key)))), None)


def beside(path: Path) -> Iterable[tuple[str, tuple[str, ...]]]:
    """The classes of files beside `path`, with the names of the files."""
    named = [f"{name}{suffix}" for name in LISTS for suffix in (".txt", ".json", ".csv")]
    for name in (*named, *TABLES):
        file = path.parent / name
        if is_file(file):
            try:
                yield name, checked(of_file(file), str(file))
            except ModelError:
                continue


def _index(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    return int(value) if isinstance(value, str) and value.isdecimal() and len(value) < 7 else None


def _order(value: int | None) -> int:
    return -1 if value is None else value


NAMES = ("class", "class_name", "name", "label", "classes", "label_name", "category")  # titles of columns
INDICES = ("index", "idx", "id", "label_id", "class_id")


def _of_table(text: str, delimiter: str) -> list[str]:
    """A column of names: the one that is called so, else the first that is not numbers.

    In the order of a column of numbers, if there is one.
    """
    rows = [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if any(row)]
    width = max(map(len, rows), default=0)
    title = [cell.strip().lower() for cell in rows[0]] if rows else []
    if {*NAMES, *INDICES} & set(title) and not any(cell.isdecimal() for cell in title):
        rows = rows[1:]
    else:
        title = []
    columns = [[row[at].strip() if len(row) > at else "" for row in rows] for at in range(width)]
    texts = [at for at in range(width) if not all(cell.isdecimal() for cell in columns[at] if cell)]
    called = [title.index(name) for name in NAMES if name in title]
    column = next((at for at in (*called, *texts) if at in texts), next(iter(called), 0))
    index = _index_column(columns, column, title)
    names = list(enumerate(columns[column])) if columns else []
    if index is not None:
        names.sort(key=lambda item: int(columns[index][item[0]]))
    return [name for _, name in names]


def _index_column(columns: Sequence[Sequence[str]], names: int, title: Sequence[str]) -> int | None:
    """The column of numbers that order the names: called so, or without titles numbering the rows.

    From 0 on in any column, from 1 on in the first: behind the names, numbers may count something.
    """
    whole = [at for at in range(len(columns)) if at != names and all(c.isdecimal() for c in columns[at])]
    for called in (*INDICES, *NAMES):
        if called in title and title.index(called) in whole:
            return title.index(called)
    count = len(columns[names]) if columns else 0
    numbers = {at: {int(cell) for cell in columns[at]} for at in whole if not title}
    if numbers.get(0) == set(range(1, count + 1)):
        return 0
    return next((at for at, found in numbers.items() if found == set(range(count))), None)
