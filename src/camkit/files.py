"""Files that are there whole or not at all, whatever happens meanwhile and whoever else writes."""

from __future__ import annotations

import errno
import os
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

from camkit.errors import CamkitError

DRAFT = re.compile(r"\.(?P<host>.+)-(?P<process>\d+)-\d+\.partial")


def write_whole(path: Path, data: bytes | str) -> Path:
    """Write under a temporary name, bring it to the disk, rename; folders are made.

    `CamkitError` if that cannot be done; then nothing is left of it.
    """
    draft = path.with_name(f".{socket.gethostname()}-{os.getpid()}-{threading.get_ident()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        raise CamkitError(f"cannot write {path}: {error.strerror}") from None
    finally:
        with suppress(OSError):  # it was renamed, or there is something worse to tell
            draft.unlink()
    return path


def holds(path: Path, data: bytes) -> bool:
    """Whether there is a regular file with just these contents."""
    try:
        return path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def check_writable(folder: Path) -> None:
    """Raise `CamkitError` if `folder` cannot be made or written into; nothing is made yet."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    reason = errno.EACCES if there.is_dir() else errno.ENOTDIR
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise CamkitError(f"cannot write into {folder}: {os.strerror(reason)}")


def sweep(folder: Path) -> None:
    """Remove the drafts in and below `folder` that a killed process of this machine left behind."""
    for root, _, names in os.walk(folder):
        for name in names:
            found = DRAFT.fullmatch(name)
            if found and found["host"] == socket.gethostname() and not _is_alive(int(found["process"])):
                Path(root, name).unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True
