"""Which photographs are meant: files, folders and globs, without following links."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from camkit.errors import ESCAPES, UsageError, counted, warn
from camkit.files import walk
from camkit.images import addresses
from camkit.images.addresses import Entry

SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm".split()
)
# Of photographs, too, but camkit does not read them: where a folder holds some, that is said.
UNREAD = frozenset(
    ".heic .heif .avif .jxl .jp2 .j2k .dng .nef .cr2 .cr3 .arw .orf .raf .rw2 .pef .srw".split()
)
ARRAY = ".npy"  # a photograph where a glob says so; in folders lie the maps of camkit, too
ANY_DEPTH = "**"  # in a glob: any number of folders
# In a name, but for the halves of signs that stand for bytes which are no UTF-8.
IN_NAMES = {code: text for code, text in ESCAPES.items() if not 0xDC80 <= code < 0xDD00} | {0x0A: "\\n"}


@dataclass(frozen=True)
class Source:
    """A file to read, or its address, and the name of its results: a relative path with slashes."""

    path: Path | str
    name: str


def expand(patterns: Sequence[str | os.PathLike[str]]) -> Iterator[Path]:
    """The files that `find` finds, without their names."""
    return (Path(source.path) for source in find(patterns))


def find(
    patterns: Sequence[str | os.PathLike[str]], *, without: str | os.PathLike[str] | None = None
) -> Iterator[Source]:
    """The files that names, folders and globs mean, each once, in a stable order.

    Folders (searched recursively) and globs give the files with an image's suffix, one by one: nothing is
    listed beforehand. A name that does not exist, and a glob or a folder without images, raise `UsageError`
    when the first file is asked for.

    Results are named after the file, in a single folder after the path from there; with several patterns
    the folder's name comes first. A name that is taken gets a number.

    without: a folder whose images are left out, such as that of the results, unless it is asked for itself.
    """
    left_out = "" if without is None else _real(without)
    texts = [os.fspath(pattern) for pattern in patterns]
    expanded = [_expand_one(text) for text in texts]
    for text, (_, files) in zip(texts, expanded, strict=True):  # before anything is done with the others
        if next(iter(files), None) is None:
            raise UsageError(f"no image found in {display(text)!r}{_unread(text, files)}")
    walked: list[str] = []  # so little is remembered that memory does not grow with a folder
    named: set[str] = set()
    taken: dict[str, int] = {}
    real_folder = lru_cache(maxsize=64)(os.path.realpath)
    for text, (root, files) in zip(texts, expanded, strict=True):
        prefix = ""
        if root and len(texts) > 1:
            prefix = _unique(root.resolve().name or "root", taken) + "/"
        skipped = left_out if root and not _real(root).startswith(left_out) else ""
        for path in files:
            real = _real_file(path, real_folder)
            if skipped and real.startswith(skipped):
                continue
            known = real in named or any(real.startswith(folder) for folder in walked)
            if known and (real in named or is_image(path)):
                continue
            if not isinstance(files, Walk):
                named.add(real)
            name = path.relative_to(root).as_posix() if root else _unique(path.name, taken)
            yield Source(path, prefix + name)
        if isinstance(files, Walk):
            walked.append(_real(text))
            if left_out_there := _unread(text, files):
                warn(f"{display(text)}{left_out_there}")


def _unread(text: str, files: Iterable[Path]) -> str:
    """What a folder, or a glob, means beside images that are read: `: 3 files are .heic, which ...`."""
    unread = files.unread if isinstance(files, Walk) else Counter({Path(text).suffix.lower(): 0})
    found = {suffix: count for suffix, count in sorted(unread.items()) if suffix in UNREAD}
    if not found:
        return ""
    what = f"{counted(sum(found.values()), 'file')} left out: " if isinstance(files, Walk) else ""
    return f": {what}camkit does not read {', '.join(found)} (JPEG and PNG it does)"


def below(address: str) -> Iterator[tuple[Entry, str]]:
    """The images at an address and below it, or the one that it is of, each with its name from there."""
    base = address.rstrip("/")
    if is_image(base) and addresses.is_file(base):
        yield Entry(base, 0, ""), base.rpartition("/")[2]
        return
    start, found = len(base) + 1, addresses.below(base) if "*" not in base else addresses.matching(base)
    if "*" in base:
        start = len(base[: base.index("*")].rpartition("/")[0]) + 1
    for entry in found:
        if is_image(entry.address):
            yield entry, entry.address[start:]


def is_image(name: str | os.PathLike[str]) -> bool:
    """Whether a name, or an address, ends as that of an image."""
    return Path(name).suffix.lower() in SUFFIXES


def display(path: str | os.PathLike[str]) -> str:
    """A path as one line of valid UTF-8, whatever the bytes of the name are."""
    return os.fsencode(os.fspath(path).translate(IN_NAMES)).decode("utf-8", "backslashreplace")


def _real(folder: str | os.PathLike[str]) -> str:
    """Where a folder really lies, with a slash at the end."""
    return os.path.join(os.path.realpath(folder), "")  # noqa: PTH118


def _real_file(path: Path, real_folder: Callable[[Path], str]) -> str:
    """Where a file really lies; of its folder that is asked once for many files."""
    if os.path.islink(path) or path.name in ("", ".."):  # noqa: PTH114  is_symlink raises if the name is too long
        return os.path.realpath(path)
    return os.path.join(real_folder(path.parent), path.name)  # noqa: PTH118


def _expand_one(pattern: str) -> tuple[Path | None, Iterable[Path]]:
    """The folder that the files lie below, if they are not named one by one, and the files."""
    if not pattern:
        raise UsageError("an image has an empty name: give a file, a folder or a glob")
    path = Path(pattern)
    if os.path.isdir(pattern):  # noqa: PTH112  is_dir raises if the name is too long
        return path, Walk(path)
    if os.path.lexists(pattern) or not glob.has_magic(pattern):
        if not _may_be_there(path):
            raise UsageError(f"there is no image {display(pattern)!r}")
        return None, [path]
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    if ANY_DEPTH in path.parts:
        return fixed, Glob(path)
    found = (Path(hit) for hit in sorted(glob.glob(pattern)))  # noqa: PTH207  Path.glob takes no absolute pattern
    return fixed, [hit for hit in found if _is_meant(hit, pattern) and not hit.is_dir()]


def _may_be_there(path: Path) -> bool:
    try:
        path.stat()
    except PermissionError:  # reading it will say so
        return True
    except (OSError, ValueError):  # the latter of what no file can be called
        return False
    return True


@dataclass(frozen=True)
class Walk:
    """The images in a folder and below, sorted folder by folder, and at last what cannot be listed.

    unread: how many files there are of each format of photographs that camkit does not read, as of the last
    time that all was listed.
    """

    folder: Path
    unread: Counter[str] = field(default_factory=Counter, compare=False)

    def __iter__(self) -> Iterator[Path]:
        closed: list[OSError] = []
        self.unread.clear()
        for root, _, files in walk(self.folder, closed):
            for name in files:
                suffix = Path(name).suffix.lower()
                if suffix in SUFFIXES:
                    yield Path(root, name)
                elif suffix in UNREAD:
                    self.unread[suffix] += 1
        yield from (Path(error.filename) for error in closed)


@dataclass(frozen=True)
class Glob:
    """The images that a pattern with `**` means, in the order of a `Walk`; below `**` no link is followed.

    `glob.glob` follows links to folders, also those to the folder that they lie in, and calls itself for
    each folder.
    """

    pattern: Path

    def __iter__(self) -> Iterator[Path]:
        parts = self.pattern.parts
        begin = parts.index(ANY_DEPTH)
        base = str(Path(*parts[:begin]))
        closed: list[OSError] = []
        for folder in sorted(glob.glob(base)) if glob.has_magic(base) else [base]:  # noqa: PTH207
            if os.path.isdir(folder):  # noqa: PTH112  is_dir raises if the name is too long
                yield from _below(folder, parts[begin:], closed)
        yield from (Path(error.filename) for error in closed)


def _below(folder: str, pattern: Sequence[str], closed: list[OSError]) -> Iterator[Path]:
    """The images in a folder and below whose path from there a pattern means."""
    reached = {folder: _with_skips({0}, pattern)}  # how much of the pattern each waiting folder has used up
    for root, folders, files in walk(folder, closed):
        here = reached.pop(root)
        for name in files:
            path = Path(root, name)
            if (
                _is_meant(path, pattern[-1])
                and len(pattern) in _after(name, here, pattern)
                and not path.is_dir()
            ):
                yield path
        after = {name: _after(name, here, pattern) for name in folders}
        folders[:] = [name for name in folders if after[name]]  # no other is entered
        reached |= {os.path.join(root, name): after[name] for name in folders}  # noqa: PTH118


def _after(name: str, reached: AbstractSet[int], pattern: Sequence[str]) -> frozenset[int]:
    """The places in a pattern that may be reached with one more name; hidden ones have to be asked for."""
    found = set()
    for place in reached - {len(pattern)}:
        hidden = name.startswith(".") and not pattern[place].startswith(".")
        if not hidden and pattern[place] == ANY_DEPTH:
            found.add(place)
        elif not hidden and fnmatch.fnmatch(name, pattern[place]):
            found.add(place + 1)
    return _with_skips(found, pattern)


def _with_skips(reached: AbstractSet[int], pattern: Sequence[str]) -> frozenset[int]:
    """These places and those behind a `**`, which may be no folder at all."""
    found = set(reached)
    for place, part in enumerate(pattern):
        if place in found and part == ANY_DEPTH:
            found.add(place + 1)
    return frozenset(found)


def _is_meant(path: Path, pattern: str) -> bool:
    """Whether a file that a glob matches is a photograph."""
    return is_image(path) or (path.suffix.lower() == ARRAY and pattern.lower().endswith(ARRAY))


def _unique(name: str, taken: dict[str, int]) -> str:
    """`name`, with a number from the second time on."""
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else _unique(f"{name}~{taken[name]}", taken)
