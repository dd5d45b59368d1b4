"""Results at an address, or in tables alone, as a folder that `verify`, `merge` and `render` read."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from camkit.engines import store, tables
from camkit.errors import CamkitError, typed_reason
from camkit.explaining import manifest, parquet
from camkit.explaining.checked_reading import MAP_MEMORY, Reader
from camkit.explaining.manifest import Finding
from camkit.files import inside, make_folder, write_whole
from camkit.images import addresses
from camkit.images.addresses import is_address
from camkit.images.workers import Processes

MAX_FILE = 2**32  # bytes of a file that is fetched


@dataclass(frozen=True)
class Gathered:
    """A folder with a manifest of what lies in a place.

    damaged: tables that cannot be read, and why, which the manifest does not tell of. part: how many of the
    tables were looked at, in words, if not all.
    """

    folder: Path
    damaged: Sequence[Finding] = ()
    part: str = ""


@contextmanager
def gathered(
    place: Path | str, processes: Processes | None, *, sample: int | None = None, seed: int = 0
) -> Iterator[Gathered]:
    """All that lies in a place, as a folder.

    A folder that has a manifest, and no tables beside it, is that folder itself; else it is a copy, which
    is removed afterwards. sample: of the tables, where there are more.
    """
    if not is_address(place) and not tables.there(str(place)).parts:
        yield Gathered(Path(place))
        return
    with tempfile.TemporaryDirectory(prefix="camkit-") as made:
        folder = Path(made)
        found = sorted(tables.there(str(place)).parts)
        chosen = found
        if manifest.NAME in set(store.names(str(place))):
            _fetch(place, folder)
        elif sample is not None and len(found) > sample:
            chosen = sorted(random.Random(seed).sample(found, max(1, sample)))
        damaged = tell(place, folder, chosen, processes)
        part = f"{len(chosen)} of {len(found)} tables" if len(chosen) < len(found) else ""
        yield Gathered(folder, damaged, part)


def tell(
    place: Path | str, folder: Path, parts: Sequence[str], processes: Processes | None
) -> list[Finding]:
    """Bring tables into a folder, and their rows into its manifest, unless it tells of them.

    What is found of those that cannot be read; `CamkitError` if none can, and the folder has no manifest.
    """
    reader, damaged = Reader(processes), list[Finding]()
    known = {line["map_file"] for line in manifest.held(folder)}
    for part in parts:
        name = tables.name_of(part)
        path = folder / name
        if str(folder) != str(place) and not path.exists():
            write_whole(path, store.read(str(place), name, tables.MAX_FILE), durable=False)
        if name in known:
            continue
        try:
            rows = reader.read(path, parquet.read_lines, path, memory=MAP_MEMORY)  # which needs no torch
        # pyarrow's own are ValueErrors; a table that is not camkit's lacks columns, or has others.
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            damaged.append(Finding(name, f"it is damaged, or no table of camkit: {typed_reason(error)}"))
            continue
        manifest.append(folder, [json.loads(row) for row in rows])
    if damaged and not (folder / manifest.NAME).exists():
        raise CamkitError(f"{store.joined(str(place), str(damaged[0]))}")
    return damaged


def send(folder: Path, address: str) -> None:
    """Bring all files of a folder to an address, the manifest last."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    for path in sorted(files, key=lambda path: path.name == manifest.NAME):
        name = path.relative_to(folder).as_posix()
        addresses.write(f"{address.rstrip('/')}/{name}", path.read_bytes())


def _fetch(place: Path | str, folder: Path) -> None:
    """Bring what is no table from a place into a folder."""
    start = len(str(place).rstrip("/")) + 1
    found = (
        [entry.address[start:] for entry in addresses.below(str(place))]
        if is_address(place)
        else [path.relative_to(place).as_posix() for path in Path(place).rglob("*") if path.is_file()]
    )
    for name in found:
        if tables.PART.fullmatch(name) or name.startswith("."):
            continue
        target = inside(folder, name)
        make_folder(target.parent)
        write_whole(target, store.read(str(place), name, MAX_FILE), durable=False)
