"""Whether what a user names is there: told before torch is imported, as far as camkit itself can tell.

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
    from camkit import specs

    specs.check(spec)


def writable(folder: Path) -> None:
    """A folder that can be made and written into."""
    from camkit.files import check_writable

    check_writable(folder)


def explainers(names: Sequence[str], methods: Sequence[str], options: Mapping[str, str]) -> None:
    """Explainers by their names, none for all; methods and options where camkit's own is the only one."""
    from camkit import plugins
    from camkit.methods import METHODS, NativeOptions, unknown_method

    found = [plugins.get("explainer", name) for name in names] or plugins.find("explainer")
    if any(one.dist != plugins.HOST for one in found):  # which have to be imported
        return
    owner = " and ".join(dict.fromkeys(names)) or "native"
    for method in methods:
        if method not in METHODS:
            raise unknown_method(method, owner, METHODS)
    plugins.read_options(NativeOptions, options, owner=owner)


def metrics(names: Sequence[str]) -> None:
    """Metrics and their categories; those of other packages may be of any."""
    from camkit import plugins

    found = plugins.find("metric")
    if any(one.dist != plugins.HOST for one in found):
        return
    known = [*CATEGORIES, *(one.name for one in found)]
    for name in names:
        if name not in known:
            shown = f" (categories: {', '.join(CATEGORIES)}; or one of `camkit plugin list`)"
            raise OptionError(f"there is no metric {name!r}{closest(name, known) or shown}")


def photographs(patterns: Sequence[str]) -> None:
    """Photographs by file, folder or glob."""
    from camkit.images import find

    next(find(patterns), None)


def there(*paths: str | os.PathLike[str] | None) -> None:
    """Files or folders; `None` is none."""
    for path in paths:
        if path is not None and not os.path.exists(path):  # noqa: PTH110  Path.exists raises on some names
            raise UsageError(f"there is no file or folder {os.fspath(path)!r}")


def results(*folders: Path) -> None:
    """Folders that `camkit explain` wrote."""
    for folder in folders:
        if not os.path.exists(folder / "manifest.jsonl"):  # noqa: PTH110
            raise UsageError(f"{folder} holds no manifest.jsonl; give a folder of `camkit explain`")


def training(trainer: str, data: str, given: Mapping[str, Any]) -> None:
    """What a training is made of: trainer, recipe, photographs, weights, and where it goes."""
    from camkit import dataset, plugins, recipe
    from camkit.files import is_file

    found, brought = plugins.get("trainer", trainer), given["recipe"]
    ours, fastai = found.dist == plugins.HOST, found.dist == "camkit-fastai"
    if brought and not is_file(brought):
        known = recipe.TORCH if ours else plugins.load(found).recipes
        if brought not in known:
            raise recipe.unknown(brought, known)
    if given["show_recipe"]:
        return
    # Others may know data by other names.
    if ours or (fastai and data != "pets") or os.sep in data:
        dataset.check(data)
    if given["weights"] not in ("default", "none") and not is_file(given["weights"]):
        raise ModelNotFound(f"there is no weights file {given['weights']!r}")
    writable(given["out"])
