"""Dataclasses from the JSON of strangers, and back: annotations say what a value may be.

Texts, lists and tables carry `Annotated[..., Most(n)]`, and what has no type of its own `Parts`, so that
nothing is larger than its reader expects. A field with a default may be missing, as it is in older files;
a key without a field is ignored, unless a field is called `rest`, which holds the whole table.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from functools import partial
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from camkit.errors import printable

T = TypeVar("T")
Reader = Callable[[Any], Any]
MAX_NAME = 200  # characters of a key


@dataclass(frozen=True)
class Most:
    """At most so many characters, items or entries."""

    count: int


@dataclass(frozen=True)
class Range:
    """A finite number between two others, both included."""

    low: float = -sys.float_info.max
    high: float = sys.float_info.max


ANY_NUMBER = Range()


@dataclass(frozen=True)
class Parts:
    """A value of any kind: at most so many values within, and so many characters in all."""

    count: int
    characters: int


class Fault(ValueError):
    """What is wrong with a value, after the place of the value."""

    def below(self, place: str) -> Fault:
        """The same fault, seen from one level higher up."""
        return Fault(f"{place}{self}")


def from_json(kind: type[T], value: Any) -> T:
    """A dataclass from a table; `Fault` for the first thing that is wrong with it."""
    read: Callable[[Any], T] = _record(kind)
    return read(value)


def to_json(value: Any) -> dict[str, Any]:
    """The table of one dataclass, whose values may be dataclasses: what `json.dumps` takes as `default`."""
    table = dict(vars(value))
    return {**table.pop("rest", {}), **table}


def mapped(value: T, leaf: Callable[[Any], Any]) -> T:
    """The same value, with `leaf` applied to every key and to every value without parts."""
    changed: Any
    if is_dataclass(value) and not isinstance(value, type):
        changed = replace(value, **{name: mapped(item, leaf) for name, item in vars(value).items()})
    elif isinstance(value, Mapping):
        changed = {leaf(key): mapped(item, leaf) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        changed = [mapped(item, leaf) for item in value]
    else:
        changed = leaf(value)
    return changed  # type: ignore[no-any-return]


def finite(value: Any) -> Any:
    """As JSON holds a leaf: a number to seven digits, and `None` for one that is not finite."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None


def parts(value: Any) -> Iterator[tuple[int, Any]]:
    """Each part of a value, and how deep it lies."""
    waiting = [(0, value)]
    while waiting:
        depth, item = waiting.pop()
        yield depth, item
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += [(depth + 1, one) for one in inner]


# --- readers: each gives its value or raises a `Fault`; a missing value is `MISSING` -----------------


def _reader(kind: Any) -> Reader:
    kind, *limits = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    inner = [one for one in get_args(kind) if one is not NoneType]
    if NoneType in get_args(kind):
        read = _reader(inner[0])
        return lambda value: None if value is None else read(value)
    if is_dataclass(kind):
        return _record(kind)
    return READERS[get_origin(kind) or kind](*map(_reader, inner[-1:]), *limits)


def _record(kind: Any) -> Reader:
    hints = get_type_hints(kind, include_extras=True)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind)}
    required = {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING}

    def read(value: Any) -> Any:
        _check_kind(value, dict, "dict")
        found = {}
        for name, read_field in readers.items():
            if name == "rest":
                found[name] = read_field(value)
            elif name in value or name in required:
                try:
                    found[name] = read_field(value.get(name, MISSING))
                except Fault as fault:
                    raise fault.below(f".{name}") from None
        return kind(**found)

    return read


def _list(read_item: Reader, most: Most) -> Reader:
    def read(value: Any) -> Any:
        _check_kind(value, list, "list")
        if len(value) > most.count:
            raise Fault(f" is a list of {len(value):,}, more than {most.count:,}")
        found: list[Any] = []
        try:
            for item in value:
                found.append(read_item(item))
        except Fault as fault:
            raise fault.below(f"[{len(found)}]") from None
        return found

    return read


def _table(read_item: Reader, most: Most) -> Reader:
    read_name = _text(Most(MAX_NAME))

    def read(value: Any) -> Any:
        _check_kind(value, dict, "dict")
        if len(value) > most.count:
            raise Fault(f" has {len(value):,} entries, more than {most.count:,}")
        found = {}
        for name, item in value.items():
            try:
                found[read_name(name)] = read_item(item)
            except Fault as fault:
                raise fault.below(f".{printable(name[:40])}") from None
        return found

    return read


def _text(most: Most) -> Reader:
    def read(value: Any) -> Any:
        _check_kind(value, str, "str")
        if len(value) > most.count:
            raise Fault(f" is a text of {len(value):,} characters, more than {most.count:,}")
        return value

    return read


def _number(kinds: type | tuple[type, ...], limits: Range = ANY_NUMBER) -> Reader:
    def read(value: Any) -> Any:
        if isinstance(value, bool):
            raise Fault(" is missing or no number")
        _check_kind(value, kinds, "number")
        if not limits.low <= value <= limits.high:
            raise Fault(f" is {str(value)[:20]}, not between {limits.low:g} and {limits.high:g}")
        return value

    return read


def _flag() -> Reader:
    return lambda value: _check_kind(value, bool, "bool")


def _anything(limits: Parts) -> Reader:
    def read(value: Any) -> Any:
        _check_kind(value, object, "value")
        characters = 0
        for count, (_, part) in enumerate(parts(value), 1):
            characters += len(part) if isinstance(part, str) else 0
            if count > limits.count or characters > limits.characters:
                raise Fault(f" has more than {limits.count:,} parts or {limits.characters:,} characters")
        return value

    return read


def _check_kind(value: Any, kinds: type | tuple[type, ...], name: str) -> Any:
    if value is MISSING or not isinstance(value, kinds):
        raise Fault(f" is missing or no {name}")
    return value


READERS: dict[Any, Callable[..., Reader]] = {
    str: _text,
    float: partial(_number, (int, float)),
    int: partial(_number, int),
    bool: _flag,
    list: _list,
    dict: _table,
    Any: _anything,
}
