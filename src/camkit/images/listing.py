"""The photographs of a run, one by one: lazy, in an order that stays the same, and it pickles."""

from __future__ import annotations

import csv
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from camkit.errors import UsageError, closest, reason
from camkit.images import addresses, finding
from camkit.images.addresses import is_address
from camkit.images.decoding import sample
from camkit.images.finding import Source, display
from camkit.images.inputs import FILES
from camkit.images.shard import Shard

STDIN = "-"


@dataclass(frozen=True)
class Listed:
    """A photograph as it is listed. mark: changes when its file does, as far as the listing tells."""

    path: str
    name: str
    mark: str = ""

    @property
    def fingerprint(self) -> int:
        """64 bits of its name and mark."""
        return _hash(f"{self.name}\0{self.mark}")

    @property
    def key(self) -> int:
        """64 bits of its name alone."""
        return _hash(self.name)


def _hash(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")


@dataclass(frozen=True)
class Listing:
    """Photographs: files, folders, globs and addresses, or a list of them.

    images: as on the command line; none, and no list, is the bundled photograph. listed: a file with an
    address or path a line, a CSV or Parquet table with a column of them; column: its name, if that is not
    found. lines: what stood on stdin. without: a folder that is left out. shard: the part that is wanted.
    """

    images: tuple[str, ...] = ()
    listed: str | None = None
    column: str | None = None
    lines: tuple[str, ...] = ()
    without: str = ""
    shard: Shard = field(default_factory=Shard)

    @classmethod
    def of(
        cls, images: Sequence[str], listed: str | None, column: str | None = None, **more: Any
    ) -> Listing:
        """Stdin is read to its end, as it cannot be read twice. Raises `UsageError` for both at once."""
        if images and listed:
            raise UsageError("IMAGES and --from exclude each other: give the one or the other")
        lines = tuple(sys.stdin.read().splitlines()) if listed == STDIN else ()
        return cls(tuple(images), listed, column, lines, **more)

    def __iter__(self) -> Iterator[Listed]:
        """Each photograph of the shard once. Raises `UsageError` for what is not there."""
        return (one for one in self._all() if self.shard.holds(one.name))

    def _all(self) -> Iterator[Listed]:
        if self.listed is not None:
            return _of_list(self._lines())
        if not self.images:
            return map(_of_source, [Source(sample(), sample().name)])
        if any(map(is_address, self.images)):
            return _of_addresses(self.images, self.without)
        return map(_of_source, finding.find(self.images, without=self.without or None))

    def _lines(self) -> Iterator[str]:
        if self.listed == STDIN:
            return iter(self.lines)
        assert self.listed is not None
        suffix = os.path.splitext(self.listed)[1].lower()  # noqa: PTH122  it may be an address
        return READERS.get(suffix, _texts)(self.listed, self.column)


def _of_source(source: Source) -> Listed:
    return Listed(os.fspath(source.path), source.name, _mark(os.fspath(source.path)))


def _mark(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116  Path.stat raises on some names
    except (OSError, ValueError):
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def _of_addresses(images: Sequence[str], without: str) -> Iterator[Listed]:
    """Addresses, and paths beside them, each named from where it was given."""
    taken: dict[str, int] = {}
    for image in dict.fromkeys(images):
        start = ""
        if len(set(images)) > 1:
            last = image.rstrip("/").rpartition("/")[2] or "root"
            taken[last] = taken.get(last, 0) + 1
            start = f"{last}/" if taken[last] == 1 else f"{last}~{taken[last]}/"
        found = _below(image, without) if is_address(image) else _beside(image, without)
        is_any = False
        for one in found:
            is_any = True
            yield replace(one, name=f"{start}{one.name}")
        if not is_any:
            raise UsageError(f"no image found in {display(image)!r}")


def _beside(image: str, without: str) -> Iterator[Listed]:
    return map(_of_source, finding.find([image], without=without or None))


def _below(address: str, without: str) -> Iterator[Listed]:
    left_out = f"{without.rstrip('/')}/" if is_address(without) else None
    for entry, name in finding.below(address):
        if not (left_out and entry.address.startswith(left_out)):
            yield Listed(entry.address, name, f"{entry.size} {entry.tag}")


# --- lists ------------------------------------------------------------------------------------------


def _of_list(lines: Iterator[str]) -> Iterator[Listed]:
    """What a list names, each once; results are called as the path, or the address without its scheme.

    A name that is taken, as by an address in another store, gets a number.
    """
    seen, taken = set[int](), set[int]()
    for line in lines:
        path = line.strip()
        if not path:
            continue
        one = Listed(path, path.partition("://")[2] if is_address(path) else path.lstrip("/"))
        if is_address(path):
            addresses.check(path)
        else:
            one = replace(one, mark=_mark(path))
        if _hash(path) in seen:
            continue
        name, number = one.name, 1
        while one.key in taken:
            number += 1
            one = replace(one, name=f"{name}~{number}")
        seen.add(_hash(path))
        taken.add(one.key)
        yield one
    if not seen:
        raise UsageError("the list of --from names no photograph")


def _texts(file: str, _: str | None) -> Iterator[str]:
    if is_address(file):
        yield from addresses.read(file, 2**30).decode("utf-8-sig", "surrogateescape").splitlines()
        return
    try:
        with Path(file).open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            yield from lines
    except OSError as error:
        raise UsageError(f"--from {file} cannot be read: {reason(error)}") from None


def _csv(file: str, column: str | None) -> Iterator[str]:
    rows = csv.reader(_texts(file, None), delimiter="\t" if file.lower().endswith(".tsv") else ",")
    header = next(rows, [])
    place = header.index(_column(header, column, file))
    for row in rows:
        if len(row) > place:
            yield row[place]


def _parquet(file: str, column: str | None) -> Iterator[str]:
    import io

    from pyarrow import parquet

    try:
        content: Any = io.BytesIO(addresses.read(file, 2**32)) if is_address(file) else file
        table = parquet.ParquetFile(content)
        name = _column(table.schema_arrow.names, column, file)
        for batch in table.iter_batches(columns=[name]):
            yield from (str(value) for value in batch.column(0).to_pylist() if value is not None)
    except (OSError, ValueError) as error:  # pyarrow's own are ValueErrors
        raise UsageError(f"--from {file} cannot be read: {reason(error)}") from None


def _column(names: Sequence[str], wanted: str | None, file: str) -> str:
    known = [name for name in (*FILES, "url", "uri", "address", "image") if name in names]
    if wanted is None and (known or len(names) == 1):
        return known[0] if known else names[0]
    if wanted is None or wanted not in names:
        hint = closest(wanted, names) if wanted else ""
        raise UsageError(
            f"--from {file} has the columns {', '.join(names[:8])}{hint}: say which with --column"
        )
    return wanted


READERS: dict[str, Callable[[str, str | None], Iterator[str]]] = {
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}
