"""Classes as users write them: names in any spelling, indices, `top:K`."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import PurePath

from camkit.errors import TargetError, closest, counted

LISTED = 10  # a message lists all classes if there are no more than these
_NUMBERED = re.compile(r"(?P<label>.+)_\d+\.\w+")  # as `camkit train` reads file names


def top_count(text: str) -> int:
    """K of `top:K`; `TargetError` if it is no positive number."""
    if not re.fullmatch(r"[1-9]\d{0,8}", text.removeprefix("top:")):
        raise TargetError(f"class {text!r}: K in top:K is a positive number")
    return int(text.removeprefix("top:"))


def class_index(name: str, classes: Sequence[str]) -> int:
    """The index of a class by its name, whatever its case, spaces and underscores, or by number.

    Raises `TargetError` for an unknown name, with the closest, and for a name that several classes share.
    """
    hits = called(name, classes)
    if len(hits) > 1:
        raise TargetError(
            f"several classes are called {name!r}: use the index {' or '.join(map(str, hits))}"
        )
    if hits:
        return hits[0]
    if re.fullmatch(r"\d+", name):
        if len(name) < 10 and int(name) < len(classes):  # Python cannot read thousands of digits
            return int(name)
        raise no_class(name, len(classes))
    if len(classes) <= LISTED:
        raise TargetError(f"the model has no class {name!r}: it has {', '.join(classes)}")
    hint = closest(name.replace("_", " "), [c.replace("_", " ") for c in classes])
    raise TargetError(
        f"the model has no class {name!r}{hint} ({counted(len(classes), 'class', 'classes')}: "
        "`camkit model classes`)"
    )


def called(name: str, classes: Sequence[str]) -> list[int]:
    """The indices of the classes with this name; if there are none, with another spelling of it."""
    for spelled in (str, _folded):
        hits = [i for i, candidate in enumerate(classes) if spelled(candidate) == spelled(name)]
        if hits:
            return hits
    return []


def class_of(target: str | int, classes: Sequence[str]) -> int:
    """The index of a class by its name, or by number if it is one: a class may be called `7`.

    Raises `TargetError` for what the model does not have, and for what is no single class.
    """
    if isinstance(target, str):
        return class_index(target, classes)
    try:
        index = None if isinstance(target, bool) else operator.index(target)
    except TypeError:
        index = None
    if index is None:
        shape = getattr(target, "shape", ())
        text = f"{type(target).__name__} {list(shape)}" if shape else repr(target)
        raise TargetError(f"a class is a name or an index, not {text}")
    if not 0 <= index < len(classes):
        raise no_class(index, len(classes))
    return index


def class_from_path(path: str | None, classes: tuple[str, ...]) -> str | None:
    """The class that a photograph is named after: its folder, or its own name up to the number.

    `Bengal/1.jpg` and `bengal_12.jpg` are a Bengal, in any spelling. `None` for no class, or several.
    """
    if path is None:
        return None
    known, pure = _by_spelling(classes), PurePath(path)
    numbered = _NUMBERED.fullmatch(pure.name)
    for text in (pure.parent.name, numbered["label"] if numbered else ""):
        if found := known.get(_folded(text)):
            return found
    return None


@lru_cache(maxsize=8)
def _by_spelling(classes: tuple[str, ...]) -> dict[str, str | None]:
    """Each class by its folded spelling; `None` for a spelling that several classes share."""
    spelled = [_folded(name) for name in classes]
    count = Counter(spelled)
    return {
        text: name if text and count[text] == 1 else None
        for text, name in zip(spelled, classes, strict=True)
    }


def no_class(index: int | str, count: int) -> TargetError:
    """The error for an index that a model with `count` classes does not have."""
    known = f"{count} classes, 0 to {count - 1}" if count > 1 else "1 class, 0"
    return TargetError(f"there is no class {index}: the model has {known}")


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()
