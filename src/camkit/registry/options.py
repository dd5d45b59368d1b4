"""Options of plugins, from texts of the command line or values of Python."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Literal

from camkit.errors import OptionError, closest

MANY = 3  # names in a message; more are not told one by one


def read_options(cls: type, values: Mapping[str, Any], *, owner: str) -> Any:
    """An instance of the `Options` dataclass `cls` from texts (command line) or values (Python).

    Raises `OptionError` for an unknown key (with the closest known), a wrong type, a value out of
    range or not among the choices, and for values that the class itself refuses with a `ValueError`.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = _hints(cls)
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            known = ", ".join(fields) or "it has none"
            hint = closest(name, fields) or f" (options: {known})"
            raise OptionError(f"{owner} has no option {key!r}{hint}")
        parsed[name] = _value(value, hints[name], fields[name].metadata, f"option {key} of {owner}")
    try:
        return cls(**parsed)
    except ValueError as error:  # from the plugin's own `__post_init__`
        raise OptionError(f"options of {owner}: {error}") from error


def check_methods(owners: Mapping[str, type], values: Mapping[str, Any], methods: Sequence[str]) -> None:
    """`OptionError` for an option that concerns none of the methods of all owners: it changes nothing."""
    for key in values:
        name = key.replace("-", "_")
        fields = [f for cls in owners.values() for f in dataclasses.fields(cls) if f.name == name]
        concerned = {one for field in fields for one in field.metadata.get("methods") or methods}
        if methods and not concerned & {*methods}:
            asked = " and ".join(methods) if len(methods) <= MANY else "these methods"
            raise OptionError(
                f"{key} changes nothing for {asked}, it is for {', '.join(sorted(concerned))}: leave it out"
            )


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Kept, because it takes as long as everything else around a small model."""
    return typing.get_type_hints(cls)


def share_options(owners: Mapping[str, type], values: Mapping[str, Any]) -> dict[str, Any]:
    """For each owner its `Options`, with those of `values` that it has; one of the owners must."""
    names = {owner: {field.name for field in dataclasses.fields(cls)} for owner, cls in owners.items()}
    shared = {}
    for owner, cls in owners.items():
        others = set().union(*(known for other, known in names.items() if other != owner)) - names[owner]
        own = {key: value for key, value in values.items() if key.replace("-", "_") not in others}
        shared[owner] = read_options(cls, own, owner=owner)
    return shared


def parse_assignments(texts: tuple[str, ...]) -> dict[str, str]:
    """`KEY=VALUE` texts of the command line as a table."""
    table: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key.strip() and equals):
            raise OptionError(f"option {text!r} is not of the form KEY=VALUE, such as fast=true")
        table[key.strip()] = value.strip()
    return table


def type_name(hint: Any) -> str:
    """A type as `camkit plugin show` and error messages name it."""
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(hint))
    if hint is bool:
        return "true|false"
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _value(value: Any, hint: Any, metadata: Mapping[str, Any], where: str) -> Any:
    try:
        parsed = _convert(value, hint)
    except (TypeError, ValueError, LookupError):
        raise OptionError(f"{where} must be {type_name(hint)}, not {value!r}") from None
    choices, low, high = (metadata.get(key) for key in ("choices", "min", "max"))
    if choices and parsed not in choices:
        raise OptionError(f"{where} must be one of {', '.join(map(str, choices))}, not {value!r}")
    if isinstance(parsed, int | float) and (
        (low is not None and not parsed >= low) or (high is not None and not parsed <= high)
    ):
        span = f"at least {low}" if high is None else f"at most {high}"
        span = f"between {low} and {high}" if None not in (low, high) else span
        raise OptionError(f"{where} must be {span}, not {value!r}")
    return parsed


_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True)
_BOOLEANS |= dict.fromkeys(("false", "no", "off", "0"), False)


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; texts are parsed, other values must already fit."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, typing.get_args(hint))
    if origin is Literal:
        return {str(choice): choice for choice in typing.get_args(hint)}[str(value)]
    if hint is type(None):
        return {None: None, "none": None}[value]
    if isinstance(value, str) and hint is bool:
        return _BOOLEANS[value.lower()]
    if isinstance(value, str) and hint in (int, float, str):
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise TypeError


def _one_of(value: Any, hints: tuple[Any, ...]) -> Any:
    """`value` as the first of the types that it fits, `None` before all others."""
    for hint in sorted(hints, key=lambda hint: hint is not type(None)):
        with suppress(TypeError, ValueError, LookupError):
            return _convert(value, hint)
    raise ValueError
