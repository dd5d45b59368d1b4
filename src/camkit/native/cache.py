"""camkit's own cache folder, which only the user can write to, and compilers that keep to it.

What fast mode compiles is loaded as code by the next process that finds it. Left alone, inductor keeps it
in the temporary folder that all users share, under a name that any of them may take first.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from camkit.errors import CamkitError, reason

VARIABLE = "CAMKIT_CACHE"
# The folders of the compilers, by the variables that set them.
COMPILERS = {"TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
_LOCK = threading.RLock()  # the environment is global to the process


def folder() -> Path:
    """The folder that `CAMKIT_CACHE` names, or `camkit` in the user's cache folder; made with mode 0700.

    Raises `CamkitError` if it cannot be made, or if others could write to it.
    """
    path = Path(os.environ.get(VARIABLE) or platformdirs.user_cache_path("camkit"))
    try:
        path = path.expanduser().absolute()
        for missing in reversed([part for part in (path, *path.parents) if not os.path.lexists(part)]):
            missing.mkdir(mode=0o700, exist_ok=True)
        path = path.parent.resolve() / path.name
        trouble = _trouble(path) if hasattr(os, "geteuid") else None  # Windows has no modes
    except (OSError, RuntimeError, ValueError) as error:  # also: no home, loops of links, invalid names
        trouble = reason(error)
    if trouble:
        raise CamkitError(
            f"the cache folder {path} cannot be used ({trouble}); name one of your own: {VARIABLE}=FOLDER"
        )
    return path


@contextmanager
def compiling() -> Iterator[None]:
    """A block in which torch's compilers read and write below `folder` alone; one thread at a time.

    Raises as `folder` does.
    """
    with _LOCK:
        root = folder()
        before = {name: os.environ.get(name) for name in COMPILERS}
        os.environ.update({name: str(root / part) for name, part in COMPILERS.items()})
        try:
            from torch._inductor import config

            with config.patch(cpp_cache_precompile_headers=_takes_headers(root / "headers")):
                yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


def _takes_headers(place: Path) -> bool:
    """Make `place` the folder of precompiled headers, which no variable sets; whether this torch allows it.

    It stays so: a process that used the shared folder before is better off here. Without such headers each
    kernel takes three times as long.
    """
    import torch._inductor.codecache

    codecache: Any = torch._inductor.codecache
    try:
        if str(place) != codecache._HEADER_DIR:
            codecache._precompile_header.cache_clear()
            codecache._HEADER_DIR, codecache._HEADER_LOCK_DIR = str(place), str(place / "locks")
    except AttributeError:
        return False
    return True


def _trouble(path: Path) -> str | None:
    """Why others could change the contents of a folder; one that they can only read is closed to them."""
    user, own = os.geteuid(), path.lstat()
    if not stat.S_ISDIR(own.st_mode):
        return "it is a link" if stat.S_ISLNK(own.st_mode) else "it is no folder"
    if own.st_uid != user:
        return "it belongs to another user"
    if own.st_mode & 0o022:  # not repaired: somebody may have left something in it
        return "others can write into it"
    if own.st_mode & 0o077:
        path.chmod(0o700)
    for above in path.parents:
        status = above.lstat()
        if status.st_uid not in (0, user):
            return f"{above} belongs to another user"
        if _shared(status) and not status.st_mode & stat.S_ISVTX:  # it keeps others from renaming
            return f"others can write into {above}"
    return None


def _shared(status: os.stat_result) -> bool:
    """Whether others can write. Many systems give each user a group, which holds nobody else."""
    if status.st_mode & 0o002 or not status.st_mode & 0o020:
        return bool(status.st_mode & 0o002)
    import grp
    import pwd

    try:
        name, group = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(status.st_gid)
    except KeyError:  # a number without a name
        return True
    return group.gr_name not in (name, "root") or not {*group.gr_mem} <= {name, "root"}
