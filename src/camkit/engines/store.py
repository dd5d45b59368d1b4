"""Where the tables of a run are: a folder, or an address. A file is there whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from camkit.files import check_writable, sweep, write_whole
from camkit.images import addresses
from camkit.images.addresses import is_address


def check(place: str) -> None:
    """Raise `CamkitError` if nothing can be written there, as far as that is known before."""
    if is_address(place):
        addresses.check(place)
        next(addresses.below(place), None)
    else:
        check_writable(Path(place))


def names(place: str) -> Iterator[str]:
    """The names of the files that lie there, but not of those below."""
    if is_address(place):
        start = len(place.rstrip("/")) + 1
        yield from (name for entry in addresses.below(place) if "/" not in (name := entry.address[start:]))
    elif Path(place).is_dir():
        yield from sorted(path.name for path in Path(place).iterdir())


def read(place: str, name: str, limit: int) -> bytes:
    """The contents of a file; `CamkitError` if it is not there or larger than `limit` bytes."""
    return addresses.contents(joined(place, name), limit)


def write(place: str, name: str, data: bytes) -> None:
    """Write a file under its final name, in one piece; `CamkitError` if that cannot be done."""
    if is_address(place):
        addresses.write(joined(place, name), data)
    else:
        write_whole(Path(place, name), data)


def remove(place: str, name: str) -> None:
    """Take a file away, if it is there."""
    if is_address(place):
        addresses.remove(joined(place, name))
    else:
        with suppress(FileNotFoundError):
            Path(place, name).unlink()


def tidy(place: str) -> None:
    """Remove what a killed process left half-written; object stores have no such files."""
    if not is_address(place) and Path(place).is_dir():
        sweep(Path(place), below=False)


def joined(place: str, name: str) -> str:
    """The address or path of a file."""
    return f"{place.rstrip('/')}/{name}" if is_address(place) else str(Path(place, name))
