"""Files that are there whole or not at all, and files of strangers, read with care.

A draft has a name that nobody can guess, is made by this process and nobody else, and takes its final name
once it is on the disk: neither a power cut nor a link that somebody has planted changes what is written.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from camkit.errors import CamkitError

DRAFT = re.compile(r"\.(?P<host>.+)-(?P<process>\d+)-[0-9a-f]+\.partial")
_NEW = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_QUIET = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)  # a FIFO does not wait


# --- writing ----------------------------------------------------------------------------------------


@contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that becomes `path` when the block ends well; folders are made.

    `CamkitError` if that cannot be done; then nothing is left of it. What else the block raises passes.
    """
    draft = _draft(path)
    try:
        with _telling(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(draft, _NEW, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            with _telling(path):
                file.flush()
                os.fsync(file.fileno())
        with _telling(path):
            draft.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):  # it was renamed, or there is something worse to tell
            draft.unlink()


@contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path`, which is missing or empty, when the block ends well; as `writing`.

    The block may make files in it, no folders.
    """
    draft = _draft(path)
    try:
        with _telling(path):
            draft.mkdir(parents=True)
        yield draft
        with _telling(path):
            for file in draft.iterdir():
                with file.open("rb+") as made:
                    os.fsync(made.fileno())
            sync_folder(draft)
            draft.replace(path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def write_whole(path: Path, data: bytes | str) -> Path:
    """Write a file as `writing` does."""
    with writing(path) as file, _telling(path):
        file.write(data.encode("utf-8") if isinstance(data, str) else data)
    return path


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system does that for folders."""
    with suppress(OSError):  # Windows opens none, and some network drives bring none to the disk
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _draft(path: Path) -> Path:
    return path.with_name(f".{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(8)}.partial")


@contextmanager
def _telling(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CamkitError(f"cannot write {path}: {reason(error)}") from None


def check_writable(folder: Path) -> None:
    """Raise `CamkitError` if `folder` cannot be made or written into. That is tried, and leaves nothing."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    try:
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        draft = _draft(there / folder.name)
        os.close(os.open(draft, _NEW, 0o600))
        draft.unlink()
    except OSError as error:
        raise CamkitError(f"cannot write into {folder}: {reason(error)}") from None


def sweep(folder: Path) -> None:
    """Remove the drafts in and below `folder` that a killed process of this machine left behind."""
    for root, folders, names in walk(folder):
        for name in (*folders, *names):
            found = DRAFT.fullmatch(name)
            if found and found["host"] == socket.gethostname() and not _is_alive(int(found["process"])):
                path = os.path.join(root, name)  # noqa: PTH118
                with suppress(OSError):  # somebody else's
                    shutil.rmtree(path) if name in folders else os.unlink(path)  # noqa: PTH108


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


# --- reading ----------------------------------------------------------------------------------------


def read_regular(path: str | os.PathLike[str], limit: int) -> bytes:
    """The contents of a regular file of at most `limit` bytes; `OSError`, or `ValueError` for any other.

    Not a byte more is read than the file says that it has: some files of a system never end, or wait.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  before it is opened, which may do things
        raise ValueError("it is not a regular file")
    with os.fdopen(os.open(path, _QUIET), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > limit:
            raise ValueError(f"it is larger than {limit >> 20} MiB")
        return file.read(status.st_size)


def holds(path: Path, data: bytes) -> bool:
    """Whether there is a regular file with just these contents."""
    try:
        return path.stat().st_size == len(data) and read_regular(path, len(data)) == data
    except (OSError, ValueError):
        return False


def inside(folder: Path, name: object) -> Path:
    """A file that a text of a stranger names, which lies in the folder; `CamkitError` if it would not."""
    parts = PurePosixPath(name).parts if isinstance(name, str) else ()
    path = folder.joinpath(*parts)
    if not parts or ".." in parts or parts[0] == "/" or "\0" in str(name):
        raise CamkitError(f"{name!r} is no file of {folder}: refused")
    try:
        leads_out = not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, or what cannot be a name
        raise CamkitError(f"{name!r} cannot be followed in {folder}: refused") from None
    if leads_out:
        raise CamkitError(f"{path} is a link that leads out of {folder}: refused")
    return path


def is_file(path: str | os.PathLike[str]) -> bool:
    """Whether it is a regular file; a name that no file can have is none."""
    return os.path.isfile(path)  # noqa: PTH113  Path.is_file raises if the name is too long


def regular(folder: Path, name: object) -> Path:
    """A regular file in the folder that a text names; `CamkitError` if it is not there."""
    path = inside(folder, name)
    if not is_file(path):
        raise CamkitError(f"{path} cannot be read: there is no such file")
    return path


def walk(
    folder: str | os.PathLike[str], closed: list[OSError] | None = None
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Each folder with the names of its folders and files, sorted; links are not followed.

    As `os.walk`, which before Python 3.12 goes no deeper than its recursion does. closed: gets what cannot
    be listed.
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


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    text = error.strerror if isinstance(error, OSError) else None
    text = text or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0][:200]
