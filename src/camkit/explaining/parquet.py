"""Maps and what the manifest says of them as Parquet, for pandas, Polars and DuckDB."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Map = np.ndarray[Any, np.dtype[np.float32]]

PHOTOS = 256  # in a file
# What is no text: the rest is; tables and lists are JSON.
KINDS = {
    "schema": "int32",
    "results": "int32",
    "class_index": "int32",
    "probability": "float64",
    "logit": "float64",
    "predicted_index": "int32",
    "predicted_probability": "float64",
    "border_share": "float64",
    "truth_share": "float64",
    "truth_area": "float64",
}
JSON = ("options", "predicted", "box", "map_shape", "picture", "model_facts", "preprocessing", "warnings")
# Of a file that this table is, of pictures that it has not, and what its maps say themselves.
LEFT_OUT = ("map_file overlay_file overlay_sha256 overlay_box sheet_file full_scale map_range").split()
FACTS = b"camkit"  # the key in a footer
_SURROGATE = re.compile(r"\\u(dc[89a-f][0-9a-f])")  # a byte of a name that is no UTF-8, in a column of text


def to_bytes(
    lines: Sequence[Mapping[str, Any]], maps: Sequence[Map | None], facts: Mapping[str, Any] | None = None
) -> bytes:
    """A Parquet file: a row for each manifest line, with `map` (float32, row by row), `height`, `width`.

    facts: JSON values that its footer holds, beside the rows.
    """
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
    table = pa.table(columns)
    if facts:
        table = table.replace_schema_metadata({FACTS: json.dumps(facts)})
    parquet.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _utf8(text: str | None) -> bytes | None:
    """Bytes of a text, with escapes for what is no character, as names of files may hold."""
    return None if text is None else text.encode("utf-8", "backslashreplace")


def read_map(data: bytes, name: str, key: str) -> Any:
    """The map of the row of the photograph `name` whose `map_key` is `key`, float32 `[h, w]`.

    data: the file, which may take far more memory than its size, and the process down if it is damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyarrow import parquet

    # No `read_table` with filters: its scanner waits for ever for some damaged files (pyarrow 26).
    # No threads: each would take address space, which is limited.
    file = parquet.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    found = []
    for group in range(file.num_row_groups):
        names = file.read_row_group(group, columns=["name", "map_key"], use_threads=False)
        wanted = pc.and_(pc.equal(names["name"], name), pc.equal(names["map_key"], key))
        if pc.any(wanted).as_py():
            columns = ["height", "width", "map"]
            found.append(file.read_row_group(group, columns=columns, use_threads=False).filter(wanted))
    if sum(rows.num_rows for rows in found) != 1:
        raise ValueError(f"it has {sum(rows.num_rows for rows in found)} rows of this map")
    height, width, values = (column.combine_chunks() for column in found[0].itercolumns())
    flat = np.asarray(values.flatten(), np.float32)
    return flat.reshape(height.to_pylist() + width.to_pylist())


def read_facts(data: Any) -> dict[str, Any]:
    """The facts in the footer of a Parquet file, or of one that is open; none where there are none."""
    from pyarrow import parquet

    metadata = parquet.read_schema(io.BytesIO(data) if isinstance(data, bytes) else data).metadata or {}
    found = json.loads(metadata.get(FACTS, b"{}"))
    return found if isinstance(found, dict) else {}


def read_lines(path: Path) -> list[bytes]:
    """The rows of a table as lines of a manifest, as JSON, in which `map_file` is its name.

    `read_map` reads their maps.
    """
    lines = []
    for row in read_rows(path.read_bytes()):
        values = row.pop("map")
        del row["height"], row["width"]
        for name in JSON:
            if row.get(name) is not None:
                row[name] = json.loads(row[name])
        for name in ("image_path", "image_name"):
            row[name] = row[name] and _SURROGATE.sub(lambda code: chr(int(code[1], 16)), row[name])
        row["map_file"] = path.name if row["status"] == "ok" else None
        row["map_range"] = [min(values), max(values)] if values else None
        lines.append(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    return lines


def read_rows(data: bytes) -> Iterator[dict[str, Any]]:
    """The rows of a table as they are, with `map` as a list; data: as of `read_map`."""
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    for group in range(table.num_row_groups):
        yield from table.read_row_group(group, use_threads=False).to_pylist()
