"""Raw maps as they lie in files: `.npy`, `.npz`, a Parquet table."""

from __future__ import annotations

import hashlib
import io
import math
import re
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from camkit.core.device_names import ROUNDED
from camkit.errors import CamkitError, reason
from camkit.explaining import parquet
from camkit.explaining.parquet import Map
from camkit.files import opened, read_regular, regular, sha256

MAX_MAP = 2**24  # values
MAX_NPY = 8 * MAX_MAP + 2**16  # bytes, of doubles
MAX_FILE = 2**30  # bytes of an archive or a table of maps
# How far two computations of one map may lie apart on any devices, relative to its peak.
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "bfloat16": 5e-2, "float16": 1e-2}


def tolerance(line: Mapping[str, Any]) -> float:
    """How far a map may be from that of a manifest line, relative to its peak."""
    return max(TOLERANCES.get(line["dtype"], 0.0), ROUNDED.get(line["precision"], 0.0))


def load_map(folder: Path, line: Mapping[str, Any]) -> Map:
    """The raw map of a line, float32 `[h, w]`; `CamkitError` if it is not there or not what it was."""
    path = regular(folder, line["map_file"])
    try:
        if math.prod(line["map_shape"]) > MAX_MAP:
            raise ValueError("it is too large for a map")
        values = np.asarray(READERS[path.suffix](path, line), np.float32)
    # Libraries that read files raise nearly anything on damaged ones.
    except Exception as error:
        if isinstance(error, MemoryError):
            raise CamkitError(f"{path} cannot be read: it needs too much memory") from None
        damaged = "" if isinstance(error, OSError | CamkitError) else "it is damaged or cut off: "
        raise CamkitError(f"{path} cannot be read: {damaged}{reason(error)}") from None
    if list(values.shape) != line["map_shape"] or map_digest(values) != line["map_sha256"]:
        raise CamkitError(f"{path} is not the map in the manifest")
    return values


def check_map(folder: Path, line: Mapping[str, Any]) -> bool:
    """True, or raises as `load_map`; for another process, which need not send the map."""
    values = load_map(folder, line)
    extremes = [float(values.min()), float(values.max())]
    if line["map_range"] not in (None, extremes):
        told = str(line["map_range"])[:100]
        raise CamkitError(f"map_range: the manifest says {told}, it is {extremes}")
    return True


def stored(path: Path, values: Map, line: Mapping[str, Any]) -> Map | None:
    """The map `[h, w]` that lies in a `.npy` file, if it is `values`, those of a line, but for rounding."""
    try:
        there = np.array(_npy(path, {"map_shape": list(values.shape)}), np.float32)
    except Exception:  # none, or a damaged one, of which numpy raises nearly anything
        return None
    bound = tolerance(line) * float(np.abs(values).max())
    return there if float(np.abs(there - values).max()) <= bound else None


def map_digest(values: Map) -> str:
    """SHA-256 of a map's float32 values, little-endian, row by row: the same in every format of file."""
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


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


_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
READERS = {".npy": _npy, ".npz": _npz, ".parquet": _parquet}
