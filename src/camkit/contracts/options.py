"""Options of plugins: fields of a dataclass, with what it takes to parse and explain them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

API_VERSION = 1


def option(
    default: Any,
    *,
    help: str,
    min: float | None = None,
    max: float | None = None,
    choices: tuple[Any, ...] | None = None,
    methods: tuple[str, ...] = (),
) -> Any:
    """A field of a plugin's `Options` dataclass, with what the host needs to parse and explain it.

    methods: those of an explainer that it concerns; none means all.
    """
    metadata = {"help": help, "min": min, "max": max, "choices": choices, "methods": methods}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NoOptions:
    """The options of a plugin that has none."""
