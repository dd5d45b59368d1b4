"""`index.html` of a folder of results: what its manifest tells, to look through in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

from camkit.errors import UNPRINTABLE, counted, printable
from camkit.explaining import manifest, thumbnails
from camkit.explaining.captions import speaks
from camkit.explaining.manifest import FIELDS, Line
from camkit.explaining.repeating import command, lacks
from camkit.files import inside, is_file, write_whole
from camkit.pages import page

MAX_ROWS = 10_000  # of a page: a browser opens so many at once; of more there are several pages
AGAIN = 3  # times at most, if other processes go on adding to the manifest
# What most results of a folder share.
SETUP = (
    "schema request backend backend_dist backend_version method options layer layout scores picture model "
    "model_spec model_facts model_sha256 preprocessing camkit_version torch_version device dtype precision"
).split()
OWN = [field for field in FIELDS if field not in SETUP]
# What the script reckons with, of a line that may be a stranger's: what is of another kind is left out.
TEXTS = set("image status error class_name predicted_name label scores method layer backend model".split())
NUMBERS = set("probability logit predicted_probability full_scale".split())
NUMBERS |= {"border_share", "truth_share", "truth_area"}
LISTS = {"predicted": str, "warnings": str, "map_shape": int, "map_range": float}


def write(folder: Path, *, complete: bool = True) -> list[str]:
    """Write the page of a folder, with the small pictures that are missing; what could not be as it should.

    complete: without, those that are missing stay so, for somebody in a hurry. More results than `MAX_ROWS`
    get `index-2.html`, `index-3.html`, ... beside it. Memory grows with a page, and by a kilobyte for each
    result. Raises `CamkitError` if it cannot be written; an earlier one stays.
    """
    remarks: list[str] = []
    for _ in range(AGAIN):  # whoever ends last has to have seen all
        size = _size(folder)
        remarks = _write(folder, complete=complete)
        if _size(folder) == size:
            break
    return remarks


def is_current(folder: Path) -> bool:
    """Whether the page is younger than what it shows."""
    shown, told = folder / page.NAME, folder / manifest.NAME
    return is_file(shown) and shown.stat().st_mtime_ns >= told.stat().st_mtime_ns


def _size(folder: Path) -> int:
    return inside(folder, manifest.NAME).stat().st_size


def _write(folder: Path, *, complete: bool) -> list[str]:
    held = manifest.numbers(folder)
    parts = [held[start : start + MAX_ROWS] for start in range(0, len(held), MAX_ROWS)]
    names = [page.NAME if n == 1 else f"index-{n}.html" for n in range(1, len(parts) + 1)]
    for name in names:
        page.check_ours(folder / name)
    lines = _those(manifest.read(folder), held)
    whys: list[str] = []
    for number, (name, part) in enumerate(zip(names, parts, strict=True), 1):
        some, setups = _rows(folder, islice(lines, len(part)))
        whys += thumbnails.complete(folder, some) if complete else []
        first = part and number * MAX_ROWS - MAX_ROWS + 1
        facts = {"page": number, "pages": len(parts), "names": names, "total": len(held)}
        facts |= {"first": first, "last": number * MAX_ROWS - MAX_ROWS + len(part)}
        title = printable(folder.absolute().name) or "results"
        text = page.render("run.html", title=title, data=_json(folder, some, setups), **facts)
        write_whole(folder / name, text)
    return _remarks(whys)


def _remarks(whys: Sequence[str]) -> list[str]:
    if not whys:
        return []
    return [f"{counted(len(whys), 'small picture')} of the page could not be made: {whys[0]}"]


def _those(lines: Iterator[Line], numbers: Sequence[int]) -> Iterator[Line]:
    wanted = iter(numbers)
    next_one = next(wanted, None)
    for number, line in enumerate(lines):
        if number == next_one:
            yield line
            next_one = next(wanted, None)
        if next_one is None:
            return


def _rows(folder: Path, lines: Iterator[Line]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """What is own to each result, and the setups, as JSON, with their numbers."""
    rows, setups = [], dict[str, int]()
    for line in lines:
        setup = page.as_data({field: line[field] for field in SETUP if _is_right(field, line[field])})
        row = {field: line[field] for field in OWN if _is_right(field, line[field])}
        row |= {field: line[field] for field in ("overlay_file", "overlay_sha256", "overlay_box")}
        row |= {"against": True} if _is_against(line) else {}
        rows.append(row | _again(line) | {"setup": setups.setdefault(setup, len(setups))})
    return rows, setups


def _is_against(line: Line) -> bool:
    """Whether the picture of a line shows what speaks against its class."""
    picture, told = line["picture"], (line["class_name"], line["backend"], line["method"])
    if not isinstance(picture, dict) or picture.get("counterfactual") is not True:
        return False
    return all(isinstance(text, str) for text in told) and speaks(line["backend"], line["method"])


def _is_right(field: str, value: Any) -> bool:
    """Whether a field says something, and of the kind that it should be."""
    if field in TEXTS:
        return isinstance(value, str)
    if field in NUMBERS:
        return _is(float, value)
    if field in LISTS:
        return isinstance(value, list) and all(_is(LISTS[field], item) for item in value)
    return value is not None


def _is(kind: type, value: object) -> bool:
    return isinstance(value, int | float if kind is float else kind) and not isinstance(value, bool)


def _again(line: Line) -> dict[str, Any]:
    """The command that makes the picture of a line again, of a photograph that a command can name."""
    photograph = line["image_path"] or line["image"]
    if line["status"] != "ok" or UNPRINTABLE.search(photograph):
        return {}
    try:
        said = {"command": command([line]), "lacks": lacks([line])}
    except Exception:  # the line may be a stranger's
        return {}
    return {name: text for name, text in said.items() if text}


def _json(folder: Path, rows: Sequence[dict[str, Any]], setups: Mapping[str, int]) -> Iterator[str]:
    """The data of a page, piece by piece."""
    yield '{"rows":['
    for number, row in enumerate(rows):
        if number:
            yield ","
        thumb = thumbnails.file_of(row)
        addresses = {
            "thumb": thumb if thumb and thumbnails.is_there(folder / thumb) else None,
            "large": _address(folder, row["overlay_file"]),
            "sheet": _address(folder, row.get("sheet_file")),
        }
        known = {name: value for name, value in (row | addresses).items() if value is not None}
        yield page.as_data(visible(known))
    yield f'],"setups":[{",".join(page.as_data(visible(json.loads(setup))) for setup in setups)}]}}'


def _address(folder: Path, file: str | None) -> str | None:
    """A file of the folder as a page names it; `None` if there is none."""
    if not file or not manifest.is_there(folder, file):
        return None
    return f"./{quote(file)}"


def visible(value: Any) -> Any:
    """A JSON value whose texts show all that is in them: no controls, no marks of direction."""
    if isinstance(value, str):
        return value if value.isascii() and value.isprintable() else printable(value)
    if isinstance(value, Mapping):
        return {printable(str(key)): visible(item) for key, item in value.items()}
    return [visible(item) for item in value] if isinstance(value, list) else value
