"""`manifest.jsonl`: a line for every result, written as it is finished and read whatever happened.

A folder may collect the results of several calls, and of several processes at a time. Later lines supersede
earlier ones of the same map and picture (`latest`); which question a file answers is told by
`answers.Owners`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from camkit.errors import UNPRINTABLE, CamkitError, UsageError, reason
from camkit.explaining.boxes import is_box, which
from camkit.explaining.stored_maps import READERS
from camkit.files import inside, is_file, opened, regular, sync_folder

SCHEMA = 2
NAME = "manifest.jsonl"
LOCK = ".manifest.lock"  # stays there: whoever removed it might take it from a process that waits
FIELDS = (
    "schema request name results image image_path image_name image_sha256 status error backend "
    "backend_dist backend_version method options layer layout class_index class_name like_sha256 scores "
    "probability logit predicted predicted_index predicted_name predicted_probability box label "
    "map_file map_key map_sha256 map_shape map_range border_share truth_share truth_area overlay_file "
    "overlay_sha256 overlay_box picture full_scale sheet_file model model_spec model_facts model_sha256 "
    "preprocessing camkit_version torch_version device dtype precision warnings"
).split()
MAX_LINE = 2**20  # bytes; a stranger's manifest may hold anything
TORN = "it is damaged or cut off"  # said of a line that is no JSON
MAX_FINDINGS = 20  # lines that are told one by one
MAX_DEPTH = 100  # of lists and tables in each other

Line = dict[str, Any]
T = TypeVar("T")


def check_writable(folder: Path) -> None:
    """Raise `CamkitError` if what has the manifest's name in a folder is none that can be added to."""
    path = folder / NAME
    if os.path.lexists(path) and not is_file(inside(folder, NAME)):
        raise CamkitError(f"cannot write {path}: it is not a regular file")


def append(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines in one piece, or none of them; then they are on the disk.

    A last line that a machine which went down has left torn is taken away first.
    """
    text = "".join(as_json(line) + "\n" for line in lines).encode("utf-8")
    path = inside(folder, NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder) as alone, path.open("ab+", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            _add(file, _close(file, end, alone=alone) + text)
        if not end:
            sync_folder(folder)
    except OSError as error:
        raise CamkitError(f"cannot write {path}: {error.strerror}") from None


def _close(file: io.FileIO, end: int, *, alone: bool) -> bytes:
    """What has to come before new lines, after a torn last line was removed if nobody else writes."""
    file.seek(max(0, end - 1))
    if file.read(1) in (b"", b"\n"):  # nearly always
        return b""
    file.seek(max(0, end - MAX_LINE))
    tail = file.read(MAX_LINE).rpartition(b"\n")[2]
    if alone and len(tail) < MAX_LINE and parsed(tail) == TORN:
        file.truncate(end - len(tail))
        return b""
    return b"\n"


def _add(file: io.FileIO, data: bytes) -> None:
    """Bring all of `data` to the disk, at the end of a file, or nothing."""
    end, done = os.fstat(file.fileno()).st_size, 0
    try:
        while done < len(data):
            done += file.write(data[done:]) or 0
        os.fsync(file.fileno())
    except OSError:
        if os.fstat(file.fileno()).st_size == end + done:  # nobody else has written meanwhile
            file.truncate(end)
        raise


@dataclass(frozen=True)
class Finding:
    """Something that does not hold: the file, and why."""

    file: str
    reason: str

    def __str__(self) -> str:
        return self.reason if self.file in self.reason else f"{self.file}: {self.reason}"


def read(folder: Path, findings: list[Finding] | None = None) -> Iterator[Line]:
    """The lines of a folder's manifest. What is no line of a manifest is left out, and is a finding.

    Raises `UsageError` if there is no manifest, and `CamkitError` if it is a link that leads elsewhere.
    """
    path = inside(folder, NAME)
    number, damaged, begins = 0, 0, True
    try:
        with opened(path, sys.maxsize) as (file, left):  # what is added meanwhile is of another time
            while left > 0 and (raw := file.readline(min(MAX_LINE, left))):
                left -= len(raw)
                number, began, begins = number + begins, begins, raw.endswith(b"\n")
                if not raw.strip():
                    continue
                line = parsed(raw)
                if not isinstance(line, str):
                    yield line
                elif began:  # else it goes on with a line that is too long
                    damaged += 1
                    if findings is not None and damaged <= MAX_FINDINGS:
                        findings.append(Finding(f"{NAME}, line {number}", line))
        if findings is not None and damaged > MAX_FINDINGS:
            more = damaged - MAX_FINDINGS
            findings.append(Finding(NAME, f"{more} more of its lines are invalid"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read: {reason(error)}; give a folder of `camkit explain`"
        ) from None


def held(folder: Path) -> Iterator[Line]:
    """The lines of a folder's manifest; none if there is no manifest yet."""
    return read(folder) if (folder / NAME).is_file() else iter(())


def latest(folder: Path, findings: list[Finding] | None = None) -> list[Line]:
    """The lines that hold: of several with the same map and picture, or the same error, the last one.

    A map may have several pictures, so long as it stays the same. What a request found in a photograph does
    not hold any more when it was asked again of other contents.
    """
    return _holding((line, line) for line in read(folder, findings))


def numbers(folder: Path) -> list[int]:
    """Which of the lines of `read` hold, as `latest` says, without keeping any: some 500 bytes for each."""
    return sorted(_holding((line, number) for number, line in enumerate(read(folder))))


def _holding(lines: Iterable[tuple[Line, T]]) -> list[T]:
    """What stands beside the lines that hold."""
    found: dict[bytes, tuple[T, bytes | None, Any]] = {}  # with the photograph and its contents
    pictures: dict[
        bytes, dict[bytes, Any]
    ] = {}  # of a map, by name (`b""`: none), with the hash of the map
    contents: dict[bytes, Any] = {}
    for line, value in lines:
        if line["status"] == "error":
            found.pop(key := digest(line), None)
            found[key] = value, None, None
            continue
        map, picture, photo = _key(map_id(line)), line["overlay_file"], _key(_photograph(line))
        contents[photo] = line["image_sha256"]
        before = pictures.get(map, {})
        own = b"" if picture is None else _key(picture)
        kept = {p: sha for p, sha in before.items() if p not in (b"", own) and sha == line["map_sha256"]}
        for gone in before.keys() - kept.keys():
            del found[map + gone]
        if own or not kept:
            found[map + own] = value, photo, line["image_sha256"]
            kept[own] = line["map_sha256"]
        pictures[map] = kept
    return [value for value, photo, sha in found.values() if photo is None or contents[photo] == sha]


def _key(value: Any) -> bytes:
    """What tells a value from all others."""
    return hashlib.blake2b(as_json({"": value}).encode(), digest_size=12).digest()


def map_id(line: Mapping[str, Any]) -> tuple[str, str, str]:
    """Where a map lies: its file, and what it is called in a file of several."""
    return line["map_file"], line["name"], line["map_key"]


class Done:
    """What a folder holds of a request already. A result counts if its files are there, too.

    lines: those of the folder's manifest, if it is being read anyway.
    """

    def __init__(self, folder: Path, request: str, lines: Iterable[Line] | None = None) -> None:
        self._request = request
        self._lines: set[bytes] = set()
        count: Counter[tuple[str, str]] = Counter()
        total: dict[tuple[str, str], int] = {}
        has = lru_cache(maxsize=1024)(partial(is_there, folder))  # a table is named by many lines
        for line in held(folder) if lines is None else lines:
            if line["request"] != request or digest(line) in self._lines:
                continue
            files = [name for name in (line["map_file"], line["overlay_file"]) if name is not None]
            if all(has(name) for name in files):
                self._lines.add(digest(line))
                if line["status"] == "ok":
                    key = line["name"], line["image_sha256"]
                    count[key] += 1
                    total[key] = line["results"]
        self._photos = {key for key in count if count[key] >= total[key]}

    def photo(self, name: str, sha256: str | None) -> bool:
        """Whether every result of a photograph is there."""
        return (name, sha256) in self._photos

    def line(self, line: Mapping[str, Any]) -> bool:
        """Whether this very result is there."""
        return digest(line) in self._lines


def digest(line: Mapping[str, Any]) -> bytes:
    """What tells a result from all others."""
    return _key(_identity(line))


def as_json(line: Mapping[str, Any]) -> str:
    """A manifest line as it is written: one line, valid UTF-8, no NaN."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    # A lone surrogate, from a name that is not UTF-8, becomes the escape that JSON has for it.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_there(folder: Path, name: str) -> bool:
    """Whether a folder holds a regular file of that name."""
    try:
        return bool(regular(folder, name))
    except CamkitError:
        return False


def parsed(raw: bytes) -> Line | str:
    """A line of a manifest, or what is wrong with it."""
    try:
        found = json.loads(raw)
        json.dumps(found, allow_nan=False)  # what could not be written again was not written by camkit
    except (ValueError, RecursionError):
        return TORN
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(found) > MAX_DEPTH:
        return "its lists and tables are nested too deeply"
    if not isinstance(found, dict):
        return "it is not a table"
    if found.get("schema") != SCHEMA:
        return f"its schema is not {SCHEMA}, the one that this camkit reads"
    line: Line = {**dict.fromkeys(FIELDS), **found}
    wrong = _wrong(line)
    return line if wrong is None else f"its {wrong} is missing or invalid"


def _depth(value: object) -> int:
    """How many lists and tables a JSON value has in each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def _wrong(line: Line) -> str | None:
    """The first of the fields that are relied on which is not of the right kind."""
    fields = _FIELDS["" if line["status"] == "error" else "ok"]
    return next((name for name, is_right in fields.items() if not is_right(line[name])), None)


def _is(kind: Any) -> Callable[[object], bool]:
    return lambda value: isinstance(value, kind)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and not UNPRINTABLE.search(value)


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)


def _may_end(*endings: str) -> Callable[[object], bool]:
    return lambda value: value is None or (_is_text(value) and str(value).endswith(endings))


def _photograph(line: Mapping[str, Any]) -> tuple[str, str, str]:
    return line["request"], line["image"], line["name"]


def _identity(line: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = "request name image_sha256 status error backend method layer class_index class_name".split()
    box = [which(line["box"])] if is_box(line.get("box")) else []
    return (*(line[key] if isinstance(line[key], str | int | None) else None for key in keys), *box)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Alone with the manifest of a folder, where the system has such locks; whether it has.

    A link in place of the lock file is not followed.
    """
    from filelock import FileLock

    with ExitStack() as held:
        alone = False
        with suppress(OSError, NotImplementedError):  # then what is appended in one piece seldom mixes
            held.enter_context(FileLock(folder / LOCK, poll_interval=0.005))
            alone = True
        yield alone


# What the files are that a line may name; a manifest is none of them.
PICTURES = (".png", ".jpg", ".webp")
FILES = {"map_file": tuple(READERS), "overlay_file": PICTURES, "sheet_file": PICTURES}
# What the fields that are relied on must be, of any line and of one that tells of a map.
_COMMON: dict[str, Callable[[object], bool]] = {
    "status": lambda value: value in ("ok", "error"),
    **dict.fromkeys(("request", "name", "image"), _is_text),
    **dict.fromkeys(("image_path", "image_name"), _is(str | None)),
    **{field: _may_end(*endings) for field, endings in FILES.items()},
}
_FIELDS: dict[str, dict[str, Callable[[object], bool]]] = {
    "": _COMMON,
    "ok": {
        **_COMMON,
        **dict.fromkeys("image_sha256 backend method layer map_key map_sha256 dtype".split(), _is_text),
        "model": _is(str),  # as the user calls it
        "map_file": lambda value: value is not None and _COMMON["map_file"](value),
        "map_shape": _is_shape,
        "box": lambda value: value is None or is_box(value),
        **dict.fromkeys(("model_spec", "precision"), _is(str | None)),
        **{"results": _is(int), "class_index": _is(int | None)},  # a target may be no class
    },
}
