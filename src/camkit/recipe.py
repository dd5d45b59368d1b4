"""Recipes: how a trainer goes about it, as a table that a user can print, copy and change."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from camkit.api import Trainer, option
from camkit.errors import UsageError, closest
from camkit.files import read_regular
from camkit.plugins import read_options

MAX_RECIPE = 2**20


@dataclass(frozen=True)
class Recipe:
    """What every recipe holds besides its `[[stages]]`."""

    batch_size: int = option(32, min=2, help="photographs in a step")
    valid: float = option(0.2, min=0.0, max=1.0, help="share kept for validation")
    split_seed: int = option(2, min=0, help="of the split")
    fold: int = option(0, min=0, help="which slice of the split validates")


R = TypeVar("R", bound=Recipe)
S = TypeVar("S")


def read(table: Mapping[str, Any], recipe: type[R], stage: type[S]) -> tuple[R, list[S]]:
    """A recipe from its table; `UsageError` for what it does not know or cannot be."""
    values = dict(table)
    parts = values.pop("stages", [{}])
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise UsageError("the recipe has no stages: write a table [[stages]] for each")
    stages = [read_options(stage, part, owner="a stage of the recipe") for part in parts]
    return read_options(recipe, values, owner="the recipe"), stages


def complete(recipe: Recipe, stages: Sequence[Any]) -> dict[str, Any]:
    """The table of a recipe with every value, also those that were left to the defaults."""
    return {**asdict(recipe), "stages": [asdict(stage) for stage in stages]}


def text(trainer: Trainer | type[Trainer], name: str | os.PathLike[str]) -> str:
    """A recipe as TOML: one of the trainer's by its name, or a file."""
    path = trainer.recipes.get(os.fspath(name), Path(name))
    try:
        return read_regular(path, MAX_RECIPE).decode("utf-8")
    except (OSError, ValueError):
        known = ", ".join(trainer.recipes) or "none"
        hint = closest(os.fspath(name), trainer.recipes)
        raise UsageError(
            f"there is no recipe {os.fspath(name)!r}{hint} (a TOML file, or: {known})"
        ) from None


def table(trainer: Trainer, recipe: str | os.PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    """A recipe as a table; `None` is the trainer's default, which is empty if it brings none."""
    if isinstance(recipe, Mapping):
        return dict(recipe)
    name = next(iter(trainer.recipes), None) if recipe is None else recipe
    if name is None:
        return {}
    try:
        return tomllib.loads(text(trainer, name))
    # What is no TOML; numbers of thousands of digits, and tables in tables in tables.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"recipe {os.fspath(name)!r} is no TOML: {error}") from None
