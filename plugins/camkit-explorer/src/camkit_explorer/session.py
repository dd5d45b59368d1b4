"""What one start of the explorer holds: models and photographs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from camkit.errors import ImageError, UsageError
from camkit.plugin import Photo, Preprocess
from camkit_explorer.models import Models

SHOWN, THUMBNAIL = 1024, 160  # pixels of the longest side of a photograph in the page
MAX_LISTED = 2_000  # photographs of a folder
MAX_DROPPED, MAX_DROPPED_BYTES = 24, 2**28  # photographs of the page that are remembered
MAX_KEPT = 12  # photographs that are kept as they were read

Read = Callable[..., Photo]


class Given(NamedTuple):
    """A photograph of the command line: name, path, and the hash that a run knows of it."""

    name: str
    path: Path
    sha256: str | None = None


@dataclass(frozen=True)
class Photograph:
    """A photograph that can be asked for by its number: of a file, or the bytes that were dropped.

    sha256: what the hash of the file must be, where a run named it.
    """

    number: int
    name: str
    source: Path | bytes = field(repr=False)
    sha256: str | None = None


class Photographs:
    """Those given on the command line, and the latest of those dropped into the page.

    No name or path of the page's ever reads a file.
    """

    def __init__(self, given: Sequence[Given], read: Read) -> None:
        self._given = [Photograph(n, *one) for n, one in enumerate(given[:MAX_LISTED])]
        self._dropped: OrderedDict[int, Photograph] = OrderedDict()
        self._next = len(self._given)
        self._kept: OrderedDict[tuple[int, Preprocess], Photo] = OrderedDict()
        self._read, self._lock, self._alone = read, Lock(), Lock()
        self.is_cut = len(given) > MAX_LISTED

    def __iter__(self) -> Iterator[Photograph]:
        with self._lock:
            return iter([*self._given, *self._dropped.values()])

    def add(self, name: str, data: bytes, preprocess: Preprocess) -> Photograph:
        """A photograph that was dropped; `ImageError` if it cannot be read. The oldest may be forgotten."""
        with self._lock:
            made = Photograph(self._next, name, data)
            self._next += 1
        try:
            self.read(made, preprocess)
        except ImageError as error:
            raise ImageError(f"{name}: {error}") from None
        with self._lock:
            self._dropped[made.number] = made
            while len(self._dropped) > MAX_DROPPED or self._bytes() > MAX_DROPPED_BYTES:
                self._dropped.popitem(last=False)
        return made

    def read(self, photograph: Photograph, preprocess: Preprocess) -> Photo:
        """As the page shows it, at most `SHOWN` pixels long; `view` is what the model sees of it.

        Of a model whose photographs a function prepares it is only what that makes of it.
        """
        key = photograph.number, preprocess
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        if preprocess.knows_place:
            found = self._decoded(photograph, preprocess, SHOWN)
            if found.view is None:  # made once, not for each question
                found = replace(found, view=preprocess.view(found.image))
        else:
            found = self._as_seen(photograph, preprocess)
        with self._lock:
            self._kept[key] = found
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found

    def _as_seen(self, photograph: Photograph, preprocess: Preprocess) -> Photo:
        """What a function of the user's makes of all of a photograph, as nobody knows where it looks.

        The function stays in this process, and is called by one thread at a time.
        """
        whole = self._decoded(photograph, Preprocess(), None)
        with self._alone:
            view = preprocess.view(whole.image)
        return replace(whole, image=view, view=view, cut=True)

    def thumbnail(self, photograph: Photograph) -> Photo:
        """A small picture of it."""
        return self._decoded(photograph, Preprocess(), THUMBNAIL)

    def _decoded(self, photograph: Photograph, preprocess: Preprocess, side: int | None) -> Photo:
        found = self._read(photograph.source, preprocess, side=side)
        if photograph.sha256 not in (None, found.sha256):
            raise ImageError(f"{photograph.name} is not the file that was explained in this run")
        return found

    def __getitem__(self, number: int) -> Photograph:
        """`UsageError` for a number that is not, or no longer, one."""
        with self._lock:
            if number < len(self._given):
                return self._given[number]
            if number not in self._dropped:
                raise UsageError("this photograph is forgotten: drop it again")
            return self._dropped[number]

    def _bytes(self) -> int:
        return sum(len(one.source) for one in self._dropped.values() if isinstance(one.source, bytes))


@dataclass(frozen=True)
class Session:
    """Everything that one start holds."""

    models: Models
    photographs: Photographs
