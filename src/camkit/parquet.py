"""Maps and what the manifest says of them as Parquet, for pandas, Polars and DuckDB."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from camkit.errors import UsageError

Map = np.ndarray[Any, np.dtype[np.float32]]

PHOTOS = 256  # in a file
MAX_VALUES = 2**28  # in a file that is read
# What is no text: the rest is; tables and lists are JSON.
KINDS = {
    "schema": "int32",
    "results": "int32",
    "class_index": "int32",
    "probability": "float64",
    "logit": "float64",
    "predicted_index": "int32",
}
JSON = ("options", "predicted", "map_shape", "picture", "preprocessing", "warnings")
# Of a file that this table is, of pictures that it has not, and what its maps say themselves.
LEFT_OUT = ("map_file", "overlay_file", "overlay_sha256", "sheet_file", "map_range", "layout")


def check() -> None:
    """Raise `UsageError` if pyarrow is not installed."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise UsageError("--format parquet needs pyarrow: pip install 'camkit[parquet]'") from None


def to_bytes(lines: Sequence[Mapping[str, Any]], maps: Sequence[Map | None]) -> bytes:
    """A Parquet file: a row for each manifest line, with `map` (float32, row by row), `height`, `width`."""
    import pyarrow as pa
    from pyarrow import parquet

    columns: dict[str, Any] = {}
    for field in lines[0]:
        if field not in LEFT_OUT:
            values = [line[field] for line in lines]
            if field in JSON:
                values = [None if value is None else json.dumps(value) for value in values]
            kind = KINDS.get(field, "string")
            columns[field] = pa.array(map(_utf8, values) if kind == "string" else values, kind)
    for name, side in (("height", 0), ("width", 1)):
        columns[name] = pa.array([None if m is None else m.shape[side] for m in maps], "int32")
    flat = [None if m is None else m.ravel() for m in maps]
    columns["map"] = pa.array(flat, pa.list_(pa.float32()))
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, compression="zstd")
    return buffer.getvalue()


def _utf8(text: str | None) -> bytes | None:
    """Bytes of a text, with escapes for what is no character, as names of files may hold."""
    return None if text is None else text.encode("utf-8", "backslashreplace")


def read_map(path: Path, name: str, key: str) -> Any:
    """The map of the row of the photograph `name` whose `map_key` is `key`, float32 `[h, w]`."""
    import pyarrow.compute as pc
    from pyarrow import parquet

    if _values(path) > MAX_VALUES:  # which may take no room in the file
        raise ValueError("it is too large for a table of maps")
    wanted = (pc.field("name") == name) & (pc.field("map_key") == key)
    table = parquet.read_table(path, columns=["height", "width", "map"], filters=wanted)
    if table.num_rows != 1:
        raise ValueError(f"it has {table.num_rows} rows of this map")
    height, width, values = (column.combine_chunks() for column in table.itercolumns())
    flat = np.asarray(values.flatten(), np.float32)
    return flat.reshape(height.to_pylist() + width.to_pylist())


# --- the footer -------------------------------------------------------------------------------------


def _values(path: Path) -> int:
    """How many values all columns of a file hold, as its footer says.

    Read here, because pyarrow's metadata of a column end the process where a footer is damaged.
    """
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read()
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != b"PAR1" or length > size - 8:
            raise ValueError("it has no footer")
        file.seek(size - 8 - length)
        footer = _Compact(file.read(length)).struct()
    groups = footer.get(4, [])  # FileMetaData.row_groups, of which 1 are the columns
    return sum(column[3][5] for group in groups for column in group[1])  # meta_data.num_values


class _Compact:
    """Thrift's compact protocol: structs as dicts by the number of a field, lists, numbers, bytes."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def struct(self) -> dict[int, Any]:
        """The fields up to the end of a struct."""
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            number = number + (head >> 4) if head >> 4 else self._signed()
            kind = head & 15
            fields[number] = kind == 1 if kind < 3 else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self._byte()
        if kind in (4, 5, 6):
            return self._signed()
        if kind in (7, 8):  # a double, or bytes
            return self._bytes(8 if kind == 7 else self._varint())
        if kind in (9, 10):  # a list or a set
            head = self._byte()
            count = self._varint() if head >> 4 == 15 else head >> 4
            return [self._value(head & 15) for _ in range(count)]
        if kind == 12:
            return self.struct()
        raise ValueError("its footer is damaged")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _bytes(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def _varint(self) -> int:
        value = shift = 0
        while (part := self._byte()) > 127:
            value, shift = value | (part & 127) << shift, shift + 7
        return value | part << shift

    def _signed(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
