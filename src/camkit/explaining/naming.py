"""What the files of a result are called: readable, fit for every file system, different where they differ.

A map is called `IMAGE.BACKEND.METHOD.CLASS` and then what else makes it another map than by default; its
picture adds what makes it another picture. Two tables say what that is, in the order of the names.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any

from camkit.drawing.style import Style
from camkit.explaining.answers import Owners
from camkit.explaining.manifest import FILES, Line, held
from camkit.files import holds, sync_folder, write_whole
from camkit.models import loading

MAX_NAME_BYTES = 120  # of one part of a file name
MAX_STEM_BYTES = 240  # of all parts; file systems take 255 with the suffix


@dataclass(frozen=True)
class Part:
    """A part of a name: what goes without saying, and how all else is said."""

    default: Any
    text: Callable[[Any], str]


def _options(options: Mapping[str, Any]) -> str:
    """`reduction-mean.fast-true`, of the options that are not as by default."""
    values = {key: str(v).lower() if isinstance(v, bool) else str(v) for key, v in options.items()}
    return ".".join(f"{key}-{value}" for key, value in values.items())


def _model(spec: str) -> str:
    """A model as it is asked for; of a path the last two names."""
    return re.sub(r"[^:@]*/(?=[^/:@]+/[^/:@]+)", "", spec.removeprefix("./").rstrip("/"))


MAP = {
    "layer": Part("", str),
    "layout": Part(None, str),
    "model": Part(loading.DEFAULT, _model),
    "options": Part({}, _options),
    "dtype": Part("float32", str),
    "precision": Part("ieee", str),
}


PICTURE = {
    "look": Part("default", str),
    "view": Part(None, str),
    "relu": Part(None, lambda _: "relu"),
    "counterfactual": Part(None, lambda _: "against"),
    "alpha": Part(None, lambda value: f"alpha-{value}"),
    "cmap": Part(None, str),
    "scale": Part(None, lambda value: f"scale-{value}"),
    "size": Part(None, lambda value: f"{value}px"),
    "cells": Part(None, lambda _: "cells"),
    "caption": Part(None, lambda _: "bare"),
}


@lru_cache(maxsize=16)
def picture_parts(style: Style) -> tuple[str, ...]:
    """What the name of a picture says of how it was drawn: what is not as usual for its look."""
    usual = asdict(Style(look=style.look))
    drawn = {name: value for name, value in asdict(style).items() if value != usual[name]}
    return tuple(parts(PICTURE, {**drawn, "look": style.look}))


def parts(table: Mapping[str, Part], facts: Mapping[str, Any]) -> list[str]:
    """What `facts` add to a name, in the order of the table; what is as by default adds nothing."""
    known = {key: facts.get(key, part.default) for key, part in table.items()}
    texts = [part.text(known[key]) for key, part in table.items() if known[key] != part.default]
    return [text for text in map(slug, texts) if text]


def output_name(name: str) -> str:
    """How the results of a photograph are called: its name, as far as every file system takes it.

    A part of a path that has to be changed gets a digest of what it was, so that no two are the same.
    """
    clear = []
    for part in name.split("/"):
        clean = re.sub(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"|?*\\]', "_", part).strip(" ").lstrip(".")
        if clean != part or not clean:
            clean = f"{clean}-{_digest(part)}" if clean else _digest(part)
        clear.append(shortened(clean, MAX_NAME_BYTES))
    return "/".join(clear)


def file_name(stem: str, suffix: str, number: int = 1) -> str:
    """A file name whose last part is not too long; `~2`, `~3`, ... if it is not the first of its name."""
    folder, slash, name = stem.rpartition("/")
    again = f"~{number}" if number > 1 else ""
    return f"{folder}{slash}{shortened(name, MAX_STEM_BYTES)}{again}{suffix}"


@lru_cache(maxsize=8)
def class_slugs(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Each class as part of a file name; with its index where the name alone would be shared or empty."""
    slugs = [slug(name) for name in classes]
    count = Counter(slugs)
    return tuple(
        name if name and count[name] == 1 else f"{name or 'class'}-{index}"
        for index, name in enumerate(slugs)
    )


def slug(text: str) -> str:
    """A text as part of a file name: no separators or blanks, and not too long."""
    return shortened(re.sub(r"[^\w.+~-]+", "_", text).strip("_").lstrip("."), MAX_NAME_BYTES)


def shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8; what is cut off is replaced by a digest, so names stay apart."""
    raw = text.encode()
    if len(raw) <= limit:
        return text
    return f"{raw[: limit - 9].decode(errors='ignore')}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]


class Names:
    """The files of a folder: which names are taken, and by what.

    What the manifest tells of is known once `noting` has read it.
    resume: what no line names is of the run that was interrupted; else it is somebody's own.
    """

    def __init__(self, folder: Path, *, resume: bool = False) -> None:
        self._folder = folder
        self._resume = resume
        self._owners = Owners()
        self.numbered = 0  # files that got a number, so that what was there is kept
        self.example = ""
        self._unlisted = set[str]()
        self._unsettled = set[Path]()
        self._counting = threading.Lock()

    def noting(self) -> Iterator[Line]:
        """The lines of the folder's manifest; when all have passed, its names are known."""
        return self._owners.noting(held(self._folder))

    def choose(self, stem: str, suffix: str, answer: int, data: bytes, *, again: str | None = None) -> str:
        """The first name that is free, or is of the same answer already, or holds just these bytes.

        again: the stem that numbers are added to, if not `stem`.
        """
        name = file_name(stem, suffix)
        for number in count(2):
            if self._is_ours(name, answer, data):
                break
            name = file_name(again or stem, suffix, number)
        if number > 2:
            with self._counting:
                self.numbered += 1
                self.example = self.example or name
        return name

    def put(self, name: str, data: bytes) -> None:
        """Write a file, unless it is there already; `settle` comes before anything tells of it."""
        path = self._folder / name
        if holds(path, data):
            return
        if not os.path.lexists(path):
            with self._counting:
                self._unlisted.add(name)
        write_whole(path, data, named=False)
        with self._counting:
            self._unsettled.add(path.parent)

    def settle(self) -> None:
        """Flush the names of all files that were written to the disk, where their contents are already."""
        with self._counting:
            folders, self._unsettled = self._unsettled, set()
        for folder in folders:
            sync_folder(folder)

    def note(self, lines: Iterable[Line]) -> None:
        """That the manifest tells of these files now."""
        with self._counting:
            self._unlisted -= {line[key] for line in lines for key in FILES}

    def drop(self) -> None:
        """Remove the files that were new and that no line tells of, because it could not be written."""
        for name in self._unlisted:
            with suppress(OSError):  # it could not be written either, or the folder has gone
                (self._folder / name).unlink()
        self._unlisted.clear()

    def conflicts(self) -> str:
        """What was in the way, and where the new files are; nothing if all names were free."""
        if not self.numbered:
            return ""
        more = f" and {self.numbered - 1} more" if self.numbered > 1 else ""
        new = f"{self._folder / self.example}{more}"
        return f"Files of the same names with other contents are kept; the new ones are {new}"

    def _is_ours(self, name: str, answer: int, data: bytes) -> bool:
        known, path = self._owners.get(name), self._folder / name
        if known is None:
            # What is no file cannot be replaced by one, which writing tells.
            return self._resume or not path.is_file() or holds(path, data)
        return known == answer or holds(path, data)
