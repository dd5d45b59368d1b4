"""Folders of labelled photographs: which there are, what is on them, and whether they can be read.

Three layouts: one sub-folder for each class; file names with a label (`great_pyrenees_12.jpg`), as
fast.ai reads them; and that of the Oxford-IIIT Pet data, `images/` with such names, and `annotations/`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from camkit.errors import UNPRINTABLE, CamkitError, ImageError, UsageError
from camkit.images import decoding, finding

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

PARTS = {"train", "training", "valid", "validation", "val", "test"}
NAME = re.compile(r"(?P<label>.+)_\d+\.\w+")


@dataclass(frozen=True)
class Dataset:
    """Labelled photographs, sorted by path, so that a split means the same on every machine.

    root: what the names in a stored split are relative to.
    classes: sorted; labels: for each path its index in `classes`.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def name(self, index: int) -> str:
        """A photograph as a stored split names it, with slashes on every system."""
        return self.paths[index].relative_to(self.root).as_posix()

    def split(self, valid: float = 0.2, seed: int = 2, fold: int = 0) -> tuple[list[int], list[int]]:
        """Indices for training and for validation; fold 0 is the split of fast.ai's lesson 6.

        The lesson's is `np.random.RandomState(2).permutation(n)[: int(0.2 * n)]`; a further fold takes
        the next slice of the same permutation.
        """
        order = np.random.RandomState(seed).permutation(len(self.paths)).tolist()
        size = int(valid * len(order))
        start = fold * size
        if not 0 < size < len(order) or start + size > len(order):
            raise UsageError(
                f"no fold {fold} of {valid:.0%} in {len(order)} photographs: add some, or change "
                "`valid` or `fold` in the recipe"
            )
        return order[:start] + order[start + size :], order[start : start + size]


def read(folder: str | os.PathLike[str]) -> Dataset:
    """The labelled photographs of a folder, with every file decoded once.

    Raises `UsageError` if there are none, a label cannot be told or be the name of a class, or there is
    only one class, and `ImageError` if files cannot be decoded; both name files.
    """
    root = photographs(folder)
    paths = sorted(finding.expand([root]))
    names = _labels(root, paths)
    classes = tuple(sorted(set(names)))
    if unprintable := [name for name in classes if UNPRINTABLE.search(name)]:
        raise UsageError(
            f"{finding.display(root)} has classes whose names cannot be printed ({_list(unprintable)}): "
            "rename their folders or files"
        )
    if len(classes) > 1 and set(classes) <= PARTS:
        raise UsageError(
            f"{finding.display(root)} holds the parts {_list(classes)}, not a sub-folder for each class: "
            "give one of them, camkit splits it by itself"
        )
    if len(classes) < 2:
        raise UsageError(
            f"all {len(paths)} photographs in {finding.display(root)} are of one class, {classes[0]!r}"
        )
    _check_readable(paths)
    index = {name: number for number, name in enumerate(classes)}
    return Dataset(root, tuple(paths), tuple(index[name] for name in names), classes)


def photographs(folder: str | os.PathLike[str]) -> Path:
    """Where the photographs of a data set lie; `UsageError` if there is no such folder."""
    check(folder)
    root = Path(folder)
    is_pets = (root / "images").is_dir() and (root / "annotations").is_dir()
    return root / "images" if is_pets else root


def check(folder: str | os.PathLike[str]) -> None:
    """Raise `UsageError` if there is no such folder."""
    if not os.path.isdir(folder):  # noqa: PTH112  Path.is_dir raises if the name is too long
        known = "; the trainer fastai can fetch it" if os.fspath(folder) == "pets" else ""
        raise UsageError(f"there is no folder of photographs {os.fspath(folder)!r}{known}")


class Photos(Generic[T]):
    """Photographs `part` of `data` as `prepare` makes them, with labels: for a data loader."""

    n_inp = 1  # how many of the two are inputs: fastai asks, or finds out by taking one

    def __init__(self, data: Dataset, part: Sequence[int], prepare: Callable[[Image], T]) -> None:
        self.data, self.part, self.prepare = data, part, prepare

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[T, int]:
        number = self.part[index]
        return self.prepare(decoding.load(self.data.paths[number]).image), self.data.labels[number]


def summary(data: Dataset, train: Sequence[int], valid: Sequence[int]) -> str:
    """One line for the user: how many photographs of which classes."""
    many = f"{len(data.classes)} classes: {_list(data.classes, count=6)}"
    return f"{len(train)} photographs to train on, {len(valid)} held out, {many}"


def _labels(root: Path, paths: Sequence[Path]) -> list[str]:
    if all(path.parent != root for path in paths):
        return [path.relative_to(root).parts[0] for path in paths]
    matches = [NAME.fullmatch(path.name) if path.parent == root else None for path in paths]
    if unlabelled := [path.name for path, match in zip(paths, matches, strict=True) if not match]:
        raise UsageError(
            f"{len(unlabelled)} of {len(paths)} photographs in {finding.display(root)} have no label "
            f"({_list(unlabelled)}): one sub-folder for each class, or names such as great_pyrenees_12.jpg"
        )
    return [match["label"] for match in matches if match]


def _check_readable(paths: Sequence[Path]) -> None:
    def trouble(path: Path) -> str | None:
        try:
            decoding.load(path)
        except ImageError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # decoders do not hold the lock
        found = list(filter(None, pool.map(trouble, paths)))
    if found:
        count = f"{len(found)} of {len(paths)} photographs"
        raise ImageError(f"{count} are unusable, move them away: {_list(found, '; ')}")


def _list(names: Sequence[str], separator: str = ", ", count: int = 3) -> str:
    shown = [*names[:count], "..."] if len(names) > count else names
    return separator.join(map(finding.display, shown))


def check_classes(dataset: Dataset, indices: Iterable[int]) -> None:
    """Raise `CamkitError` if a class has no photograph among `indices`: it could not be learnt."""
    count = Counter(dataset.labels[i] for i in indices)
    if missing := [name for number, name in enumerate(dataset.classes) if not count[number]]:
        raise CamkitError(
            f"{len(missing)} classes have no photograph to train on ({_list(missing)}): add some, or "
            "change `valid` or `split_seed` in the recipe"
        )
