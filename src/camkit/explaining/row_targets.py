"""The class that each photograph is explained for: given one by one, or the label of its row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import zip_longest
from typing import Any

from camkit.core.class_names import called, class_of
from camkit.errors import TargetError, UsageError, counted, warn
from camkit.images.inputs import LABELS, Row
from camkit.models.labels import named

ENDS = object()


def chosen(
    rows: Iterable[Row],
    targets: Iterable[str | int] | str,
    classes: Sequence[str],
    names: Sequence[str] | None,
    *,
    into: dict[int, int],
) -> Iterator[Row]:
    """The rows; the class of each is put `into` the table, by its position, before it is explained.

    targets: one for each, or `labels`. classes: of the model. names: that the data set gives its labels.
    Raises `UsageError` for other numbers, for rows without a label, and for classes that do not exist.
    """
    if isinstance(targets, str):
        if targets != "labels":
            raise UsageError(
                f"targets are one for each photograph, or 'labels' of the rows, not {targets!r}"
            )
        found = _labelled(rows, _reader(names, classes))
    else:
        found = _paired(rows, targets, classes)
    for position, (row, index) in enumerate(found):
        into[position] = index
        yield row


def _paired(
    rows: Iterable[Row], targets: Iterable[Any], classes: Sequence[str]
) -> Iterator[tuple[Row, int]]:
    pairs: Iterator[tuple[Any, Any]] = zip_longest(rows, targets, fillvalue=ENDS)
    for row, target in pairs:
        if row is ENDS or target is ENDS:
            raise UsageError(f"there are {'fewer' if target is ENDS else 'more'} targets than photographs")
        if callable(target):
            raise UsageError("targets are classes, one for each photograph; a function for all is target=")
        yield row, class_of(target, classes)


def _labelled(rows: Iterable[Row], read: Callable[[Any], int]) -> Iterator[tuple[Row, int]]:
    for row in rows:
        if row.label is None:
            known = ", ".join(LABELS)
            raise UsageError(
                f"{row.name or row.image} has no label: it would be beside the image, or in {known}"
            )
        yield row, read(row.label)


def _reader(names: Sequence[str] | None, classes: Sequence[str]) -> Callable[[Any], int]:
    """From a label to the class of the model: by its name, if the data set has names, else by number.

    A data set may count its classes in another order than the model.
    """
    if names is None:
        return lambda label: class_of(label, classes)
    hits = [called(name, classes) for name in names]
    alike = len(names) == len(classes) and all(hit in ([], [i]) for i, hit in enumerate(hits))
    if all(len(hit) == 1 for hit in hits):
        indices = [hit[0] for hit in hits]
    elif alike:
        indices = list(range(len(classes)))
        if named(classes):
            warn(
                f"the data set calls its classes {_first(names)}, the model {_first(classes)}: "
                "the labels are taken for the model's classes in their order"
            )
    else:
        raise TargetError(
            f"the labels are of {counted(len(names), 'class', 'classes')} ({_first(names)}), the model has "
            f"{len(classes)} ({_first(classes)}): say classes= of the model, or give targets one by one"
        )
    return lambda label: (
        class_of(label, classes) if isinstance(label, str) else indices[class_of(label, names)]
    )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
