"""Labelled photographs: which there are, what is on them, and whether they can be read.

DATA is a folder with one sub-folder for each class, with file names that hold a label
(`great_pyrenees_12.jpg`), as fast.ai reads them, or that of the Oxford-IIIT Pet data, `images/` with such
names and `annotations/`; all of that may be split into `train/` and `valid/`. Or it is a table of labels,
or a folder that holds one.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import numpy as np

from camkit.contracts.trainer import TrainRequest
from camkit.core.device_names import usable_cores
from camkit.errors import UNPRINTABLE, ImageError, UsageError, counted
from camkit.images import decoding, finding
from camkit.training import folders, label_table, splitting, table_labels
from camkit.training.labelled import Found, some

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")

FEW = 5  # photographs to train on, below which a class is told
Label = int | tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """Labelled photographs, sorted by path, so that a split means the same on every machine.

    root: what the names in a stored split are relative to.
    classes: sorted; labels: for each path its index in `classes`, or the indices of its several labels.
    held_out: those that validate, as the user split them; `None` if camkit is to split.
    several: whether a photograph may have several labels, or none.
    how: where the labels come from. skipped: what could not be used, and why. left_out: how many of a kind.
    """

    root: Path
    paths: tuple[Path, ...]
    labels: tuple[Label, ...]
    classes: tuple[str, ...]
    held_out: frozenset[int] | None = None
    several: bool = False
    how: str = ""
    skipped: tuple[tuple[str, str], ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def name(self, index: int) -> str:
        """A photograph as a stored split names it, with slashes on every system."""
        return self.paths[index].relative_to(self.root).as_posix()

    def label(self, index: int) -> str | tuple[str, ...]:
        """The class of a photograph by its name, or the names of its several labels."""
        label = self.labels[index]
        return self.classes[label] if isinstance(label, int) else tuple(self.classes[i] for i in label)

    def count(self, indices: Iterable[int]) -> Counter[int]:
        """How many of these photographs there are of each class."""
        labels = (self.labels[index] for index in indices)
        return Counter(one for label in labels for one in ((label,) if isinstance(label, int) else label))

    def split(
        self,
        valid: float = 0.2,
        seed: int = 2,
        fold: int = 0,
        how: Literal["stratified", "random"] = "random",
    ) -> tuple[list[int], list[int]]:
        """Indices for training and for validation; random fold 0 is the split of fast.ai's lesson 6.

        how: `stratified` holds out the same share of each class. What the user has split stays so.
        """
        if self.held_out is not None:
            everything = range(len(self.paths))
            return [i for i in everything if i not in self.held_out], sorted(self.held_out)
        groups = splitting.groups(self.labels) if how == "stratified" else None
        return splitting.split(len(self.paths), groups, valid=valid, seed=seed, fold=fold)


def asked(request: TrainRequest) -> Dataset:
    """The photographs that a training is asked for."""
    return read(
        request.data,
        on_error=request.on_error,
        labels=request.labels,
        label_column=request.label_column,
    )


def read(
    data: str | os.PathLike[str],
    *,
    on_error: Literal["skip", "fail"] = "fail",
    labels: Literal["auto", "one", "several"] = "auto",
    label_column: str | None = None,
) -> Dataset:
    """The labelled photographs of a folder or table, with every file decoded once.

    Raises `UsageError` if there are none, a label cannot be told or be the name of a class, or there is
    only one class, and `ImageError` if files cannot be decoded; both name files. on_error: `skip` goes on
    without photographs that cannot be decoded, or that a table names and that are not there.
    labels, label_column: what a table holds, where that is not as it looks.
    """
    root = photographs(data)
    tables = label_table.tables(data)
    found = table_labels.read(tables, labels, label_column) if tables else folders.read(root)
    if not tables and (labels == "several" or label_column):
        raise UsageError(f"{finding.display(root)} holds no table of labels, such as labels.csv")
    _check_names(found)
    skipped = [*found.missing, *_unreadable(found)]
    if skipped and on_error == "fail":
        _refuse(found, skipped)
    unusable = {name for name, _ in skipped}
    photos = sorted(found.photos, key=lambda photo: photo.path)
    photos = [photo for photo in photos if photo.path.relative_to(found.root).as_posix() not in unusable]
    classes = tuple(sorted({name for photo in photos for name in photo.labels}))
    if len(classes) < (1 if found.several else 2):
        raise UsageError(
            f"all {len(photos)} photographs in {finding.display(root)} are of one class, {some(classes)!r}"
        )
    index = {name: number for number, name in enumerate(classes)}
    numbers = [tuple(sorted(index[name] for name in photo.labels)) for photo in photos]
    valid = frozenset(i for i, photo in enumerate(photos) if photo.part == "valid")
    return Dataset(
        found.root,
        tuple(photo.path for photo in photos),
        tuple(several if found.several else several[0] for several in numbers),
        classes,
        valid or None,
        found.several,
        found.how,
        tuple(skipped),
        found.left_out,
    )


def photographs(data: str | os.PathLike[str]) -> Path:
    """Where the photographs of a data set lie; `UsageError` if there is no such folder or table."""
    check(data)
    root = Path(data)
    is_pets = (root / "images").is_dir() and (root / "annotations").is_dir()
    return root / "images" if is_pets else root if root.is_dir() else root.parent


def check(data: str | os.PathLike[str]) -> None:
    """Raise `UsageError` if there is no such folder or table."""
    if os.path.isdir(data):  # noqa: PTH112  Path.is_dir raises if the name is too long
        return
    if os.path.lexists(data):
        if Path(data).suffix.lower() not in label_table.SUFFIXES:
            ends = " or ".join(label_table.SUFFIXES)
            raise UsageError(f"{finding.display(data)} is no folder of photographs and no table ({ends})")
        return
    known = "; the trainer fastai can fetch it" if os.fspath(data) == "pets" else ""
    raise UsageError(f"there is no folder of photographs {os.fspath(data)!r}{known}")


class Photos(Generic[T]):
    """Photographs `part` of `data` as `prepare` makes them, with labels: for a data loader.

    Of several labels it gives float32 `[n_classes]`, 1 for each that there is.
    """

    n_inp = 1  # how many of the two are inputs: fastai asks, or finds out by taking one

    def __init__(self, data: Dataset, part: Sequence[int], prepare: Callable[[Image], T]) -> None:
        self.data, self.part, self.prepare = data, part, prepare

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[T, Any]:
        number = self.part[index]
        label: Any = self.data.labels[number]
        if self.data.several:
            label, there = np.zeros(len(self.data.classes), np.float32), list(label)
            label[there] = 1
        return self.prepare(decoding.load(self.data.paths[number]).image), label


def facts(data: Dataset, valid: Sequence[int], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the data and their split, for a bundle and for people (`told`: lines of text)."""
    chosen = set(valid)
    train = [i for i in range(len(data.paths)) if i not in chosen]
    here, there = data.count(train), data.count(valid)
    how = f"{recipe.get('split', 'random')}, seed {recipe.get('split_seed')}"
    split = "as the user split them" if data.held_out is not None else how
    copies = _copies(data)
    told = [
        f"{summary(data, train, valid)} ({split})",
        *_told_of_classes(data, here, there),
        *_told_of_copies(data, copies, chosen),
        *_told_of_the_rest(data),
    ]
    return {
        "labels": {"from": data.how, "several": data.several},
        "classes": {name: [here[i], there[i]] for i, name in enumerate(data.classes)},
        "split": split,
        "copies": [[data.name(a), data.name(b)] for a, b in copies],
        "skipped": [list(pair) for pair in data.skipped],
        "left_out": dict(data.left_out),
        "told": told,
    }


def summary(data: Dataset, train: Sequence[int], valid: Sequence[int]) -> str:
    """One line for the user: how many photographs of which classes."""
    counts = data.count((*train, *valid))
    many = [f"{name} {counts[i]}" for i, name in enumerate(data.classes)]
    classes = counted(len(many), "class", "classes")
    labels = sum(counts.values()) / max(1, len(data.paths))
    each = f"; {labels:.1f} labels on a photograph" if data.several else ""
    source = f" from {data.how}" if data.how else ""
    return (
        f"{counted(len(train), 'photograph')} to train on, {len(valid)} held out, {classes}{source}: "
        f"{some(many, count=6)}{each}"
    )


def check_classes(dataset: Dataset, indices: Iterable[int]) -> None:
    """Raise `UsageError` if a class has no photograph among `indices`: it could not be learnt."""
    count = dataset.count(indices)
    if missing := [name for number, name in enumerate(dataset.classes) if not count[number]]:
        ways = "change `valid` or `split_seed` in the recipe"
        if dataset.held_out is not None:
            ways = "take it out of what is held out"
        raise UsageError(
            f"{len(missing)} classes have no photograph to train on ({some(missing)}): add some, or {ways}"
        )


def _told_of_classes(data: Dataset, here: Counter[int], there: Counter[int]) -> Iterable[str]:
    if few := [f"{name} {here[i]}" for i, name in enumerate(data.classes) if here[i] < FEW]:
        yield f"few photographs to train on, fewer than {FEW}: {some(few, count=9)}"
    if none := [name for i, name in enumerate(data.classes) if not there[i]]:
        yield f"no photograph is held out, so nothing will be known, of {some(none, count=9)}"


def _told_of_copies(data: Dataset, copies: Sequence[tuple[int, int]], valid: set[int]) -> Iterable[str]:
    if copies:
        first, second = (finding.display(data.name(index)) for index in copies[0])
        alike = {first: {first, *(b for a, b in copies if a == first)} for first, _ in copies}
        leaked = sum(len(group & valid) for group in alike.values() if group - valid)
        other = sum(data.labels[a] != data.labels[b] for a, b in copies)
        yield (
            f"copies of other photographs: {len(copies)} ({second} of {first}), {other} with another "
            f"label; {leaked} held out of which a copy is trained on"
        )


def _told_of_the_rest(data: Dataset) -> Iterable[str]:
    if data.left_out:
        yield "left alone: " + ", ".join(f"{count} {kind}" for kind, count in data.left_out.items())
    if data.skipped:
        reasons = some([why for _, why in data.skipped], "; ", count=9)
        yield f"skipped {len(data.skipped)} that cannot be used: {reasons}"


def _copies(data: Dataset) -> list[tuple[int, int]]:
    """Pairs of photographs whose files are the same: of those of one size, which are few."""
    sizes, seen = defaultdict(list), dict[str, int]()
    for index, path in enumerate(data.paths):
        sizes[path.stat().st_size].append(index)
    pairs = []
    for index in (i for alike in sizes.values() if len(alike) > 1 for i in alike):
        first = seen.setdefault(decoding.digest(data.paths[index]), index)
        pairs += [(first, index)] if first != index else []
    return pairs


def _check_names(found: Found) -> None:
    names = sorted({name for photo in found.photos for name in photo.labels})
    if unprintable := some([name for name in names if UNPRINTABLE.search(name)]):
        raise UsageError(
            f"{finding.display(found.root)} has classes whose names cannot be printed ({unprintable}): "
            "rename their folders or files, or change the table"
        )


def _unreadable(found: Found) -> list[tuple[str, str]]:
    """The photographs that cannot be decoded, with the reason."""

    def trouble(path: Path) -> tuple[str, str] | None:
        try:
            decoding.load(path)
        except ImageError as error:
            return path.relative_to(found.root).as_posix(), str(error)
        return None

    paths = sorted(photo.path for photo in found.photos)
    with ThreadPoolExecutor(min(8, usable_cores())) as pool:  # decoders do not hold the lock
        return list(filter(None, pool.map(trouble, paths)))


def _refuse(found: Found, skipped: Sequence[tuple[str, str]]) -> None:
    count = f"{len(skipped)} of {len(found.photos) + len(found.missing)} photographs"
    if found.missing:
        shown = some([f"{where}: {why}" for where, why in found.missing], "; ")
        raise UsageError(f"{count} cannot be used: {shown} (--on-error skip goes on without them)")
    shown = some([why for _, why in skipped], "; ")
    raise ImageError(f"{count} are unusable, move them away or go on with --on-error skip: {shown}")
