"""`manifest.jsonl`: a line for every result, written as it is finished and read whatever happened.

A folder may collect the results of several calls, and of several processes at a time. Later lines supersede
earlier ones of the same map and picture (`latest`); which question a file answers is told by `Owners`.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import sys
import zipfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from camkit import parquet
from camkit.errors import UNPRINTABLE, CamkitError, UsageError
from camkit.files import inside, opened, read_regular, reason, regular, sha256, sync_folder
from camkit.parquet import Map

SCHEMA = 2
NAME = "manifest.jsonl"
FIELDS = (
    "schema request name results image image_path image_name image_sha256 status error backend "
    "backend_dist backend_version method options layer layout class_index class_name scores probability "
    "logit predicted predicted_index predicted_name map_file map_key map_sha256 map_shape map_range "
    "overlay_file overlay_sha256 picture sheet_file model model_spec model_sha256 preprocessing "
    "camkit_version torch_version device dtype warnings"
).split()
MAX_LINE = 2**20  # bytes; a stranger's manifest may hold anything
MAX_DEPTH = 100  # of lists and tables in each other
MAX_MAP = 2**24  # values
MAX_NPY = 8 * MAX_MAP + 2**16  # bytes, of doubles
MAX_FILE = 2**30  # bytes of an archive or a table of maps
# How far two computations of one map may lie apart, relative to its peak.
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}

Line = dict[str, Any]
_SORTED = json.JSONEncoder(sort_keys=True).encode


def append(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add lines in one piece, or none of them; then they are on the disk.

    A torn last line, of a machine that went down, is closed first.
    """
    text = "".join(as_json(line) + "\n" for line in lines).encode("utf-8")
    path = inside(folder, NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file, _locked(file):
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = end > 0 and file.read(1) != b"\n"
            _add(file, b"\n" * torn + text)
        if not end:
            sync_folder(folder)
    except OSError as error:
        raise CamkitError(f"cannot write {path}: {error.strerror}") from None


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


def read(folder: Path) -> Iterator[Line]:
    """The lines of a folder's manifest; what is no line of a manifest is left out.

    Raises `UsageError` if there is no manifest.
    """
    path = folder / NAME
    try:
        with opened(path, sys.maxsize) as (file, left):  # what is added meanwhile is of another time
            while left > 0 and (raw := file.readline(min(MAX_LINE, left))):
                left -= len(raw)
                line = _parsed(raw)
                if line is not None:
                    yield line
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read: {reason(error)}; give a folder of `camkit explain`"
        ) from None


def held(folder: Path) -> Iterator[Line]:
    """The lines of a folder's manifest; none if there is no manifest yet."""
    return read(folder) if (folder / NAME).is_file() else iter(())


def latest(folder: Path) -> list[Line]:
    """The lines that hold: of several with the same map and picture, or the same error, the last one.

    A map may have several pictures, so long as it stays the same. What a request found in a photograph does
    not hold any more when it was asked again of other contents.
    """
    lines: dict[tuple[Any, ...], Line] = {}
    pictures: dict[tuple[Any, ...], list[Any]] = {}
    contents: dict[tuple[Any, ...], Any] = {}
    for line in read(folder):
        if line["status"] == "error":
            key: tuple[Any, ...] = _identity(line)
            lines.pop(key, None)
            lines[key] = line
            continue
        map, picture = map_id(line), line["overlay_file"]
        contents[_photograph(line)] = line["image_sha256"]
        same = [p for p in pictures.get(map, ()) if lines[*map, p]["map_sha256"] == line["map_sha256"]]
        kept = [p for p in same if p not in (None, picture)]
        for gone in pictures.get(map, ()):
            if gone not in kept:
                del lines[*map, gone]
        if picture is not None or not kept:
            lines[*map, picture] = line
            kept.append(picture)
        pictures[map] = kept
    return [
        line
        for line in lines.values()
        if line["status"] == "error" or contents[_photograph(line)] == line["image_sha256"]
    ]


def map_id(line: Mapping[str, Any]) -> tuple[str, str, str]:
    """Where a map lies: its file, and what it is called in a file of several."""
    return line["map_file"], line["name"], line["map_key"]


def load_map(folder: Path, line: Mapping[str, Any]) -> Map:
    """The raw map of a line, float32 `[h, w]`; `CamkitError` if it is not there or not what it was."""
    path = regular(folder, line["map_file"])
    try:
        if math.prod(line["map_shape"]) > MAX_MAP:
            raise ValueError("it is too large for a map")
        values = np.asarray(_READERS[path.suffix](path, line), np.float32)
    # Libraries that read files raise nearly anything on damaged ones.
    except Exception as error:
        why = "it needs too much memory" if isinstance(error, MemoryError) else reason(error)
        raise CamkitError(f"{path} cannot be read: {why}") from None
    if list(values.shape) != line["map_shape"] or map_digest(values) != line["map_sha256"]:
        raise CamkitError(f"{path} is not the map that the manifest tells of")
    return values


def check_map(folder: Path, line: Mapping[str, Any]) -> None:
    """As `load_map`, for one who only wants to know that it holds."""
    load_map(folder, line)


def stored(path: Path, values: Map, dtype: str) -> Map | None:
    """The map `[h, w]` that lies in a `.npy` file, if it is `values` but for rounding."""
    try:
        there = np.array(_npy(path, {"map_shape": list(values.shape)}), np.float32)
    except Exception:  # none, or a damaged one, of which numpy raises nearly anything
        return None
    bound = TOLERANCES.get(dtype, 0.0) * float(np.abs(values).max())
    return there if float(np.abs(there - values).max()) <= bound else None


def map_digest(values: Map) -> str:
    """SHA-256 of a map's float32 values, little-endian, row by row: the same in every format of file."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


class Owners:
    """Which question each file of a folder answers, as far as its manifest tells: 16 bytes for a file."""

    def __init__(self) -> None:
        self._noted = array("Q"), array("Q")
        self._files = self._questions = np.zeros(0, np.uint64)

    def noting(self, lines: Iterable[Line]) -> Iterator[Line]:
        """The same lines; when all have passed, their files are known."""
        for line in lines:
            for field, kinds in _KINDS.items():
                file = line[field]
                kind = kinds.get(file[file.rfind(".") :]) if file else None
                if kind is not None:
                    self._noted[0].append(_hash(file))
                    self._noted[1].append(question(line, kind))
            yield line
        files, questions = (np.array(values, np.uint64) for values in self._noted)
        self._noted = array("Q"), array("Q")
        order = np.argsort(files, kind="stable")  # so that of one file the last line is the last
        self._files, self._questions = files[order], questions[order]

    def get(self, file: str) -> int | None:
        """The question that a file answers; `None` if no line names it."""
        place = int(np.searchsorted(self._files, np.uint64(_hash(file)), "right")) - 1
        known = place >= 0 and self._files[place] == _hash(file)
        return int(self._questions[place]) if known else None


def question(line: Mapping[str, Any], kind: str) -> int:
    """What a file of a kind (`map`, `picture`, `run`) tells: the same number for the same answer.

    A map and its picture are told by what made them, a file of several maps by the request.
    """
    return _hash(_SORTED([line[key] for key in _QUESTIONS[kind]]))


class Done:
    """What a folder holds of a request already. A result counts if its files are there, too.

    lines: those of the folder's manifest, if it is being read anyway.
    """

    def __init__(self, folder: Path, request: str, lines: Iterable[Line] | None = None) -> None:
        self._request = request
        self._lines: set[bytes] = set()
        count: Counter[tuple[str, str]] = Counter()
        total: dict[tuple[str, str], int] = {}
        is_there = lru_cache(maxsize=1024)(partial(_is_there, folder))  # a table is named by many lines
        for line in held(folder) if lines is None else lines:
            if line["request"] != request or digest(line) in self._lines:
                continue
            files = [name for name in (line["map_file"], line["overlay_file"]) if name is not None]
            if all(is_there(name) for name in files):
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
    return hashlib.blake2b(as_json({"": _identity(line)}).encode(), digest_size=12).digest()


def as_json(line: Mapping[str, Any]) -> str:
    """A manifest line as it is written: one line, valid UTF-8, no NaN."""
    text = json.dumps(line, ensure_ascii=False, allow_nan=False)
    # A lone surrogate, from a name that is not UTF-8, becomes the escape that JSON has for it.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_there(folder: Path, name: str) -> bool:
    try:
        return bool(regular(folder, name))
    except CamkitError:
        return False


def _parsed(raw: bytes) -> Line | None:
    try:
        found = json.loads(raw)
        json.dumps(found, allow_nan=False)  # what could not be written again was not written by camkit
        if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH and _depth(found) > MAX_DEPTH:
            return None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        return None
    line: Line = {**dict.fromkeys(FIELDS), **found}
    return line if line["status"] in ("ok", "error") and _is_sound(line) else None


def _depth(value: object) -> int:
    """How many lists and tables a JSON value has in each other."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def _is_sound(line: Line) -> bool:
    """Whether the fields that are relied on are of the right kind."""
    texts = ["request", "name", "image"]
    files = [name for name in FILES if line[name] is not None]
    if not all(isinstance(line[key], str | None) for key in ("image_path", "image_name")):
        return False
    if line["status"] == "ok":
        texts += "image_sha256 backend method layer map_file map_key map_sha256 dtype".split()
        shape = line["map_shape"]
        if not (
            isinstance(shape, list) and len(shape) == 2 and all(type(n) is int and n > 0 for n in shape)
        ):
            return False
        if not isinstance(line["results"], int) or not isinstance(line["class_index"], int):
            return False
        if not isinstance(line["model"], str) or not isinstance(line["model_spec"], str | None):
            return False
    said = [line[key] for key in [*texts, *files]]
    if not all(isinstance(text, str) and not UNPRINTABLE.search(text) for text in said):
        return False
    return all(line[name].endswith(FILES[name]) for name in files)


def _hash(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")


def _photograph(line: Mapping[str, Any]) -> tuple[str, str, str]:
    return line["request"], line["image"], line["name"]


def _identity(line: Mapping[str, Any]) -> tuple[Any, ...]:
    keys = "request name image_sha256 status error backend method layer class_index".split()
    return tuple(line[key] if isinstance(line[key], str | int | None) else None for key in keys)


@contextmanager
def _locked(file: io.FileIO) -> Iterator[None]:
    """Alone with the file, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with suppress(OSError):  # a file system without locks; what is appended in one piece seldom mixes
        fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _npy(path: Path, line: Mapping[str, Any]) -> Any:
    return _array(read_regular(path, MAX_NPY), line["map_shape"])


def _npz(path: Path, line: Mapping[str, Any]) -> Any:
    with opened(path, MAX_FILE) as (file, _), zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise ValueError("two of its members have one name")
        member = archive.getinfo(f"{line['map_key']}.npy")
        if member.file_size > MAX_NPY:
            raise ValueError("it is too large for a map")
        with archive.open(member) as content:
            return _array(content.read(member.file_size), line["map_shape"])


def _parquet(path: Path, line: Mapping[str, Any]) -> Any:
    status = path.stat()
    if not _is_what_its_name_says(path, status.st_size, status.st_mtime_ns, status.st_ino):
        raise ValueError("its contents do not match the hash in its name")
    return parquet.read_map(read_regular(path, MAX_FILE), line["name"], line["map_key"])


@lru_cache(maxsize=64)
def _is_what_its_name_says(path: Path, *_: int) -> bool:
    """Whether a table has the hash in its name, if it has one; told again when the file has changed."""
    known = re.fullmatch(r"maps-([0-9a-f]{16})\.parquet", path.name)
    return known is None or sha256(path, MAX_FILE).startswith(known[1])


def _array(data: bytes, shape: Sequence[int]) -> Any:
    """The array in the bytes of a `.npy` file, which is looked at no further if it has another shape."""
    file = io.BytesIO(data)
    found, by_column, kind = _HEADERS[np.lib.format.read_magic(file)](file)
    if list(found) != shape:
        raise ValueError(f"its shape is {list(found)}")
    values = np.frombuffer(data, kind, math.prod(found), file.tell())
    return values.reshape(found, order="F" if by_column else "C")


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_READERS = {".npy": _npy, ".npz": _npz, ".parquet": _parquet}
# What the files are that a line may name; a manifest is none of them.
FILES = {"map_file": tuple(_READERS), "overlay_file": (".png",), "sheet_file": (".png",)}
# What a file answers, by its field and ending; the contents of a table give it its name.
_KINDS = {
    "map_file": {".npy": "map", ".npz": "run"},
    "overlay_file": {".png": "picture"},
    "sheet_file": {".png": "run"},
}
_MAP = (
    "image_sha256 backend backend_dist backend_version method options layer layout class_index class_name "
    "model_sha256 preprocessing camkit_version torch_version device dtype"
).split()
_QUESTIONS = {"map": _MAP, "picture": [*_MAP, "picture"], "run": ["request", "image_sha256"]}
