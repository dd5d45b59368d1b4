"""Checks of what a user names, before torch is imported, as far as camkit itself can know.

What that takes is imported where it is needed: `--help` needs none of it.

What is not there raises a `CamkitError` of exit code 2; where nothing can be written, one of exit code 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from camkit.errors import ModelNotFound, OptionError, UsageError, closest

# Beside the names of metrics: what `camkit bench --metrics` takes.
CATEGORIES = ("latency", "agreement", "complexity", "faithfulness", "localisation", "sanity")


def model(spec: str) -> None:
    """A model, as far as its name and camkit's own files tell."""
    from camkit.models import specs

    specs.check(spec)


def classes(spec: str, given: Sequence[str], names: Sequence[str] | None = None) -> None:
    """Classes, as far as the user names them, or the model is a bundle, which names its own."""
    from camkit.core.class_names import class_index, top_count
    from camkit.models import specs

    names = specs.classes(spec) if names is None else names
    for text in given:
        if text.startswith("top:"):
            top_count(text)
        elif names is not None and text not in ("pred", "all"):
            class_index(text, names)


def writable(folder: Path) -> None:
    """A folder that can be made and written into."""
    from camkit.files import check_writable

    check_writable(folder)


def results_folder(folder: Path) -> None:
    """A folder that results can be written into."""
    from camkit.explaining import manifest

    writable(folder)
    manifest.check_writable(folder)


def explainers(names: Sequence[str], methods: Sequence[str], options: Mapping[str, str]) -> None:
    """Explainers by their names, none for all; methods and options where camkit's own is the only one."""
    from camkit.contracts.explainer import unknown_method
    from camkit.native.method_table import METHODS, NativeOptions
    from camkit.registry import discovery
    from camkit.registry import options as registry_options

    found = [discovery.get("explainer", name) for name in names] or discovery.find("explainer")
    if any(one.dist != discovery.HOST for one in found):  # which have to be imported
        return
    owner = " and ".join(dict.fromkeys(names)) or "native"
    for method in methods:
        if method not in METHODS:
            raise unknown_method(method, owner, METHODS)
    registry_options.read_options(NativeOptions, options, owner=owner)


def metrics(names: Sequence[str]) -> None:
    """Metrics and their categories; those of other packages may be of any."""
    from camkit.registry import discovery

    found = discovery.find("metric")
    if any(one.dist != discovery.HOST for one in found):
        return
    known = [*CATEGORIES, *(one.name for one in found)]
    for name in names:
        if name not in known:
            shown = f" (categories: {', '.join(CATEGORIES)}; or one of `camkit plugin list`)"
            raise OptionError(f"there is no metric {name!r}{closest(name, known) or shown}")


def photographs(patterns: Sequence[str], listed: str | None = None) -> None:
    """Photographs by file, folder, glob or address, or a list of them."""
    from camkit.images import addresses
    from camkit.images.finding import find

    if patterns and listed:
        raise UsageError("IMAGES and --from exclude each other: give the one or the other")
    if listed and listed != "-" and not addresses.is_address(listed):
        there(listed)
    if web := next((p for p in patterns if p.startswith(("http://", "https://"))), None):
        raise UsageError(
            f"{web.partition('?')[0]} is no file: download it; in Python camkit.explain takes web addresses"
        )
    stored = [pattern for pattern in patterns if addresses.is_address(pattern)]
    for pattern in stored:
        addresses.check(pattern)
    next(find([pattern for pattern in patterns if pattern not in stored]), None)


def there(*paths: str | os.PathLike[str] | None) -> None:
    """Files or folders; `None` is none."""
    for path in paths:
        if path is not None and not os.path.exists(path):  # noqa: PTH110  Path.exists raises on some names
            raise UsageError(f"there is no file or folder {os.fspath(path)!r}")


def results(*folders: Path | str) -> None:
    """Folders or addresses that `camkit explain` wrote."""
    from camkit.engines import tables
    from camkit.explaining import manifest
    from camkit.images.addresses import is_address

    there(*(folder for folder in folders if not is_address(folder)))
    for place in folders:
        folder = Path(place)
        if is_address(place) or not os.path.lexists(folder / manifest.NAME):
            tables.check_results(str(place))
        elif next(manifest.read(folder), None) is None:
            findings: list[manifest.Finding] = []
            list(manifest.read(folder, findings))
            raise UsageError(f"{folder} holds no results{''.join(f'; {found}' for found in findings[:1])}")


def training(trainer: str, data: str, values: Mapping[str, Any]) -> None:
    """What a training is made of: trainer, recipe, photographs, weights, and where it goes."""
    from camkit.files import is_file
    from camkit.registry import discovery, loading
    from camkit.training import dataset, recipe, result

    found, recipe_name = discovery.get("trainer", trainer), values["recipe"]
    ours, fastai = found.dist == discovery.HOST, found.dist == "camkit-fastai"
    if recipe_name and not is_file(recipe_name):
        known = recipe.TORCH if ours else loading.load(found).recipes
        if recipe_name not in known:
            raise recipe.unknown(recipe_name, known)
    if values["show_recipe"]:
        return
    if recipe_name and is_file(recipe_name):
        recipe.parsed(Path(recipe_name))
    # Others may know data by other names.
    if ours or (fastai and data != "pets") or os.sep in data:
        dataset.check(data)
    if values["weights"] not in ("default", "none") and not is_file(values["weights"]):
        raise ModelNotFound(f"there is no weights file {values['weights']!r}")
    writable(values["out"])
    if ours or fastai:
        result.check_free(values["out"], resume=values["resume"])
