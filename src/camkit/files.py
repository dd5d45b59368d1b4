"""Files that are there whole or not at all, and files of strangers, read with care.

A draft has a name that nobody can guess, is created by this process alone, and gets its final name once it
is on the disk: neither a power cut nor a planted link changes what is written.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import re
import secrets
import shutil
import socket
import stat
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from camkit.errors import CamkitError, printable, reason

DRAFT = re.compile(r"\.(?P<host>.+)-(?P<process>\d+)-[0-9a-f]+\.partial")
_CREATE = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
CHUNK = 2**20  # bytes that are read at once
MAX_DIGESTED = 2**40  # bytes of a file of annotations, of which COCO's own have half a gigabyte
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO does not block


# --- writing ----------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path, *, durable: bool = True, named: bool = True) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block succeeds; missing folders are created.

    durable: also if the machine goes down right after, which takes some milliseconds; without, the file may
    be empty then. named: its name, too; without, `sync_folder` has to do that, once for many files.
    Raises `CamkitError` if that cannot be done, and leaves nothing behind. Other errors of the block pass.
    """
    draft = _draft(path)
    try:
        with _write_errors(path):
            make_folder(path.parent)
            descriptor = os.open(draft, _CREATE, 0o666)
        file = os.fdopen(descriptor, "wb")
        try:
            yield file
            with _write_errors(path):
                sync(file) if durable else file.flush()
        finally:
            with suppress(OSError):  # what did not reach the disk has been reported
                file.close()
        with _write_errors(path):
            draft.replace(path)
            if durable and named:
                sync_folder(path.parent)
    finally:
        with suppress(OSError):  # it was renamed, or a worse error is on its way
            draft.unlink()


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path`, which is missing or empty, when the block succeeds; as `writing`.

    The block may create files in it, but no folders.
    """
    draft = _draft(path)
    try:
        with _write_errors(path):
            make_folder(path.parent)
            draft.mkdir()
        yield draft
        with _write_errors(path):
            for file in draft.iterdir():
                with file.open("rb+") as made:
                    sync(made)
            sync_folder(draft)
            draft.replace(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_whole(
    path: Path, data: bytes | str | Iterable[str], *, durable: bool = True, named: bool = True
) -> Path:
    """Write a file as `writing` does; several texts come one after the other."""
    with writing(path, durable=durable, named=named) as file, _write_errors(path):
        for part in [data] if isinstance(data, bytes | str) else data:
            file.write(part.encode("utf-8") if isinstance(part, str) else part)
    return path


def sync(file: BinaryIO) -> None:
    """Flush a file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def copy(source: Path, target: Path, limit: int) -> None:
    """Copy a regular file of at most `limit` bytes, as `writing`; `CamkitError` if that fails."""
    with writing(target) as file:
        try:
            for piece in pieces(source, limit):
                with _write_errors(target):
                    file.write(piece)
        except (OSError, ValueError) as error:
            raise CamkitError(f"{printable(str(source))} cannot be copied: {reason(error)}") from None


def make_folder(path: Path) -> None:
    """Create a folder and its parents, however deep: `Path.mkdir` recurses for each of them."""
    missing = []
    while not os.path.lexists(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing) if missing else [path]:
        folder.mkdir(exist_ok=True)


class Place:
    """A folder or file that is written into for a while, and whether its path still leads to it.

    It is kept open, so that no other gets its inode; where systems open no folders, existence counts.
    """

    def __init__(self, path: Path) -> None:
        """Take hold of what is there."""
        self._path = path
        self._descriptor: int | None = None
        with suppress(OSError):
            self._descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def make(cls, folder: Path) -> Place:
        """Take hold of a folder, which is made if there is none; `CamkitError` if that cannot be."""
        with _write_errors(folder):
            make_folder(folder)
        return cls(folder)

    def check(self, lost: str = "") -> None:
        """Raise `CamkitError` unless the path still leads to it; lost: what went with it."""
        if not self._is_there():
            raise CamkitError(f"{self._path} was removed, moved or replaced meanwhile{lost}")

    def _is_there(self) -> bool:
        if self._descriptor is None:
            return self._path.exists()
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._descriptor))  # noqa: PTH116
        except OSError:
            return False


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the system can."""
    with suppress(OSError):  # Windows opens no folders, and some network drives flush none
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _draft(path: Path) -> Path:
    return path.with_name(f".{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}.partial")


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CamkitError(f"cannot write {path}: {reason(error)}") from None


def check_writable(folder: Path) -> None:
    """Raise `CamkitError` if `folder` cannot be created or written into: it is tried, and undone."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        draft = _draft(there / "camkit")
        os.close(os.open(draft, _CREATE, 0o600))
        draft.unlink()
    except OSError as error:
        raise CamkitError(f"cannot write into {folder}: {reason(error)}") from None


def sweep(folder: Path, *, below: bool = True) -> None:
    """Remove the drafts in `folder`, and `below` it, that a killed process of this machine left behind."""
    for root, folders, names in itertools.islice(walk(folder), None if below else 1):
        for name in (*folders, *names):
            found = DRAFT.fullmatch(name)
            if found and found["host"] == socket.gethostname() and not _is_alive(int(found["process"])):
                path = os.path.join(root, name)  # noqa: PTH118
                with suppress(OSError, RecursionError):  # another user's, or too deep to be a draft
                    shutil.rmtree(path) if name in folders else os.unlink(path)  # noqa: PTH108


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True


# --- reading ----------------------------------------------------------------------------------------


@contextmanager
def opened(path: str | os.PathLike[str], limit: int) -> Iterator[tuple[BinaryIO, int]]:
    """A regular file of at most `limit` bytes, with its size; `OSError`, or `ValueError` for any other.

    Read no more than the size: some system files never end, or block.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  first, because opening may have effects
        raise ValueError("it is not a regular file")
    with os.fdopen(os.open(path, _READ), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > limit:
            raise ValueError(f"it is larger than {limit >> 20} MiB")
        yield file, status.st_size


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The contents of a regular file, as `opened`."""
    with opened(path, limit) as (file, size):
        return file.read(size)


# What may lie in the place of a file that was not really downloaded, by how it begins.
_STAND_INS = {
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: `git lfs pull` fetches that",
    b"<!doctype html": "a web page, not the file itself: download it again",
    b"<html": "a web page, not the file itself: download it again",
}


def stand_in(data: bytes) -> str:
    """What bytes are that only stand for a file, told by their start; "" for any other."""
    start = data[:100].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    return next((what for begin, what in _STAND_INS.items() if start.startswith(begin)), "")


def pieces(path: str | os.PathLike[str], limit: int) -> Iterator[bytes]:
    """The contents of a regular file in pieces, as `opened`."""
    with opened(path, limit) as (file, left):
        while left and (piece := file.read(min(CHUNK, left))):
            left -= len(piece)
            yield piece


def sha256(path: str | os.PathLike[str], limit: int) -> str:
    """The hash of a regular file, as `opened`."""
    digest = hashlib.sha256()
    for piece in pieces(path, limit):
        digest.update(piece)
    return digest.hexdigest()


def digest(paths: Sequence[Path]) -> str:
    """SHA-256 of the contents of files, in this order; what is no regular file has none."""
    every = hashlib.sha256()
    for path in paths:
        try:
            every.update(bytes.fromhex(sha256(path, MAX_DIGESTED)))
        except ValueError:
            every.update(b"\0")
    return every.hexdigest()


def digest_of(place: Path) -> str:
    """SHA-256 of a file, or of all names and files in a folder."""
    if not place.is_dir():
        return digest([place])
    every = hashlib.sha256()
    for root, _, names in walk(place):
        files = [Path(root) / name for name in names]
        text = "\0".join(path.relative_to(place).as_posix() for path in files)
        every.update(text.encode("utf-8", "surrogateescape") + digest(files).encode())
    return every.hexdigest()


def holds(path: Path, data: bytes) -> bool:
    """Whether there is a regular file with just these contents."""
    try:
        return path.stat().st_size == len(data) and read_regular(path, len(data)) == data
    except (OSError, ValueError):
        return False


def inside(folder: Path, name: object) -> Path:
    """The path that a stranger's text names; `CamkitError` if it lies outside the folder."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    path = folder.joinpath(*parts)
    if not parts or ".." in parts or parts[0] == "/" or "\0" in str(name):
        raise CamkitError(f"{name!r} is no file of {folder}: refused")
    try:
        leads_out = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, or what cannot be a name
        raise CamkitError(f"{name!r} cannot be followed in {folder}: refused") from None
    if leads_out:
        raise CamkitError(f"{printable(str(path))} is a link that leads out of {folder}: refused")
    return path


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether it is a regular file; a name that no file can have is not."""
    return os.path.isfile(path)  # noqa: PTH113  Path.is_file raises if the name is too long


def regular(folder: Path, name: object) -> Path:
    """The regular file in the folder that a stranger's text names; `CamkitError` if there is none."""
    path = inside(folder, name)
    if not is_file(path):
        why = "it is not a regular file" if os.path.lexists(path) else "there is no such file"
        raise CamkitError(f"{printable(str(path))} cannot be read: {why}")
    return path


def walk(
    folder: str | os.PathLike[str], closed: list[OSError] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each folder with the names of its folders and files, sorted; links are not followed.

    As `os.walk`, which before Python 3.12 is limited by the recursion depth. closed: collects the errors of
    folders that cannot be listed.
    """
    waiting = [os.fspath(folder)]
    while waiting:
        root = waiting.pop()
        folders, files = list[str](), list[str]()
        try:
            with os.scandir(root) as entries:
                for entry in entries:
                    (folders if _is_folder(entry) else files).append(entry.name)
        except OSError as error:
            if closed is not None:
                closed.append(error)
            continue
        folders.sort()
        yield root, folders, sorted(files)
        waiting += [os.path.join(root, name) for name in reversed(folders)]  # noqa: PTH118


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:
        return False


def cause(error: BaseException) -> BaseException:
    """The `OSError` that made a library raise `error`, if there is one: a full disk, say."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__cause__ or found.__context__
    return found or error
