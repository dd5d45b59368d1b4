"""Addresses of object stores, such as `s3://bucket/photos`, through fsspec.

Credentials are the environment's. What fsspec and its stores raise becomes one `CamkitError` line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from camkit.errors import CamkitError, UsageError, reason
from camkit.files import read_regular

# By scheme the package that fsspec needs for it.
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface-hub",
}
_ADDRESS = re.compile(rf"({'|'.join(PACKAGES)}|memory|file)://", re.IGNORECASE)
PAGE = 1000  # names that S3 lists at once


@dataclass(frozen=True)
class Entry:
    """A file of a store: its address, its size in bytes, and what changes when its contents do."""

    address: str
    size: int
    tag: str


def is_address(text: object) -> bool:
    """Whether it is the address of a file or folder in a store, and no path."""
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def check(address: str) -> None:
    """Raise `UsageError` for an address that no store can be asked for; nothing is asked."""
    _filesystem(address)


def _check_secrets(address: str) -> None:
    """Raise `UsageError` for an address that seems to hold a secret, which is not repeated."""
    scheme, _, rest = address.partition("://")
    place, _, name = rest.partition("/")
    name, _, query = name.partition("?")
    if "@" in place or "=" in query:
        shown = f"{scheme}://{place.rpartition('@')[2]}/{name}"
        raise UsageError(
            f"the address of {shown} holds more than that: credentials come from the environment, never "
            "from an address"
        )
    if not place and scheme.lower() in PACKAGES:
        raise UsageError(f"{address} names no bucket")


def read(address: str, limit: int) -> bytes:
    """The contents of a file; `CamkitError` if it is not there or larger than `limit` bytes."""
    with _errors(address, "read"):
        store, path = _filesystem(address)
        with store.open(path, "rb", cache_type="none", block_size=2**20) as file:
            if (file.size or 0) > limit:
                raise ValueError(f"it is larger than {limit >> 20} MiB")
            data: bytes = file.read(limit)
    return data


def contents(path: str, limit: int) -> bytes:
    """The bytes of a file, by its path or address; `CamkitError` as of `read`, and for what is no file."""
    if is_address(path):
        return read(path, limit)
    try:
        return read_regular(path, limit)
    except (OSError, ValueError) as error:
        raise CamkitError(f"{path} cannot be read: {reason(error)}") from None


def write(address: str, data: bytes) -> None:
    """Write a file, which is there whole or not at all; `CamkitError` if that cannot be."""
    with _errors(address, "written"):
        store, path = _filesystem(address)
        if "file" in _protocols(store):
            store.makedirs(path.rpartition("/")[0], exist_ok=True)
        store.pipe_file(path, data)


def remove(address: str) -> None:
    """Take a file away, if it is there."""
    with _errors(address, "removed"):
        store, path = _filesystem(address)
        store.invalidate_cache()
        if store.exists(path):
            store.rm_file(path)


def is_file(address: str) -> bool:
    """Whether a file is there."""
    with _errors(address, "found"):
        store, path = _filesystem(address)
        store.invalidate_cache()
        return bool(store.isfile(path))


def below(address: str) -> Iterator[Entry]:
    """The files below an address, in an order that stays the same, one by one: nothing is kept in memory.

    S3 lists by names, page by page; other stores folder by folder. None if there is nothing.
    """
    with _errors(address, "listed"):
        store, path = _filesystem(address)
        store.invalidate_cache()
        yield from (
            _pages(store, path, address) if "s3" in _protocols(store) else _walk(store, path, address)
        )


def matching(pattern: str) -> Iterator[Entry]:
    """The files that a glob means, as `below`; `*` stays within a folder, `**` does not."""
    from fsspec.utils import glob_translate

    base = pattern[: pattern.index("*")].rpartition("/")[0]
    wanted = re.compile(glob_translate(pattern))
    return (entry for entry in below(base) if wanted.fullmatch(entry.address))


def _pages(store: Any, path: str, address: str) -> Iterator[Entry]:
    bucket, _, key = path.strip("/").partition("/")
    prefix, last = f"{key.rstrip('/')}/" if key else "", ""
    scheme = address.partition("://")[0]
    while True:
        after = {"StartAfter": last} if last else {}
        answer = store.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=PAGE, **after)
        found = answer.get("Contents", [])
        for item in found:
            if not item["Key"].endswith("/"):
                yield Entry(f"{scheme}://{bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))
        if not answer.get("IsTruncated") or not found:
            return
        last = found[-1]["Key"]


def _walk(store: Any, path: str, address: str) -> Iterator[Entry]:
    scheme = address.partition("://")[0]
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            items = store.ls(folder, detail=True)
        except FileNotFoundError:
            continue
        store.invalidate_cache()  # which would keep all that was listed
        folders = []
        for item in sorted(items, key=lambda item: item["name"]):
            name = str(item["name"])
            if item["type"] == "directory":
                folders.append(name)
            elif name.rstrip("/") != folder.rstrip("/") or len(items) == 1:
                tag = next(
                    (str(item[key]) for key in ("ETag", "etag", "md5Hash", "mtime") if item.get(key)), ""
                )
                yield Entry(
                    f"{scheme}://{name.lstrip('/') if scheme != 'file' else name}", item["size"] or 0, tag
                )
        waiting += [name for name in reversed(folders) if name.rstrip("/") != folder.rstrip("/")]


def _protocols(store: Any) -> tuple[str, ...]:
    return (store.protocol,) if isinstance(store.protocol, str) else tuple(store.protocol)


def _filesystem(address: str) -> tuple[Any, str]:
    _check_secrets(address)
    scheme = address.partition("://")[0].lower()
    package = PACKAGES.get(scheme, "fsspec")
    try:
        import fsspec
        from fsspec.core import url_to_fs

        fsspec.get_filesystem_class(scheme)
    except ImportError:
        raise UsageError(
            f"{scheme}:// needs a package that is not installed: pip install {package}"
        ) from None
    try:
        found: tuple[Any, str] = url_to_fs(address)
    # Whatever a store raises without credentials, or for an address that is none.
    except Exception as error:
        raise UsageError(f"{address} cannot be reached: {reason(error)}") from None
    return found


@contextmanager
def _errors(address: str, what: str) -> Iterator[None]:
    try:
        yield
    except (CamkitError, GeneratorExit):
        raise
    except FileNotFoundError:
        kind = UsageError if what == "listed" else CamkitError
        raise kind(f"{address} cannot be {what}: it is not there") from None
    # Each store has errors of its own.
    except Exception as error:
        raise CamkitError(f"{address} cannot be {what}: {reason(error)}") from None
