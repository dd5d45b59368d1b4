"""Recipes: how a trainer goes about it, as a table that a user can print, copy and change."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from camkit.contracts.options import option
from camkit.contracts.trainer import Trainer
from camkit.errors import UsageError, closest, reason
from camkit.files import read_regular
from camkit.registry.options import read_options

MAX_BYTES = 2**20


@dataclass(frozen=True)
class Recipe:
    """What every recipe holds besides its `[[stages]]`."""

    batch_size: int = option(32, min=2, help="photographs in a step")
    valid: float = option(0.2, min=0.0, max=1.0, help="share kept for validation")
    split_seed: int = option(2, min=0, help="of the split")
    fold: int = option(0, min=0, help="which slice of the split validates")
    split: Literal["stratified", "random"] = option(
        "stratified", help="the same share of each class, or of all, as in fast.ai's lesson 6"
    )
    class_weights: Literal["none", "balanced"] = option(
        "none", help="balanced: a class with few photographs counts as much as one with many"
    )


_FOLDER = Path(__file__).parent / "recipes"
TORCH = {"default": _FOLDER / "torch.toml", "pets-small": _FOLDER / "pets-small.toml"}  # of that trainer

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
    if not os.path.lexists(path):
        raise unknown(os.fspath(name), trainer.recipes)
    return _read(path, name)


def _read(path: Path, name: str | os.PathLike[str]) -> str:
    try:
        return read_regular(path, MAX_BYTES).decode("utf-8").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise UsageError(f"the recipe {os.fspath(name)!r} cannot be read: {reason(error)}") from None


def unknown(name: str, known: Mapping[str, Path]) -> UsageError:
    """The error for a recipe that a trainer does not bring, and that is no file."""
    names = ", ".join(known) or "none"
    return UsageError(f"there is no recipe {name!r}{closest(name, known)} (a TOML file, or: {names})")


def table(trainer: Trainer, recipe: str | os.PathLike[str] | Mapping[str, Any] | None) -> dict[str, Any]:
    """A recipe as a table; `None` is the trainer's default, which is empty if it brings none."""
    if isinstance(recipe, Mapping):
        return dict(recipe)
    name = next(iter(trainer.recipes), None) if recipe is None else recipe
    if name is None:
        return {}
    return _parsed(text(trainer, name), name)


def parsed(path: Path) -> dict[str, Any]:
    """The table of a recipe's file."""
    return _parsed(_read(path, path), path)


def _parsed(text: str, name: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    # What is no TOML; numbers of thousands of digits, and tables in tables in tables.
    except (ValueError, RecursionError) as error:
        raise UsageError(f"recipe {os.fspath(name)!r} is not valid TOML: {reason(error)}") from None
