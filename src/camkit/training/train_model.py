"""Training through a plugin, and a look at its augmentation."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from camkit.contracts.trainer import Precision, Trainer, TrainRequest, TrainResult
from camkit.drawing.sheet import Panel, sheet
from camkit.errors import CamkitError, UsageError
from camkit.images import decoding
from camkit.registry import loading
from camkit.training import dataset, run_folder, training_report
from camkit.training import recipe as recipes
from camkit.training.result import Kept

NO_CHANGES: Mapping[str, Any] = MappingProxyType({})  # of a recipe
# What torch puts around an error of a process that reads photographs, and fastai around one of a callback.
WRAPPED = re.compile(
    r"(?:Caught \w+ in|Exception occured in) .*\n\s*(?:camkit\.errors\.\w+: )?(?P<text>.+)", re.DOTALL
)


def train(
    data: str | os.PathLike[str],
    *,
    trainer: str,
    out: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    arch: str = "resnet34",
    weights: str = "default",
    seed: int = 0,
    device: str = "auto",
    precision: Precision = "float32",
    resume: bool = False,
    progress: Callable[[float, str], None] | None = None,
    changes: Mapping[str, Any] = NO_CHANGES,
    on_error: Literal["skip", "fail"] = "fail",
    labels: Literal["auto", "one", "several"] = "auto",
    label_column: str | None = None,
    **options: Any,
) -> TrainResult:
    """Train a classifier on photographs, a folder or a table of labels, and write a bundle into `out`.

    trainer: the name of a trainer plugin; options: its own (`camkit plugin show TRAINER`).
    recipe: the name of one that the trainer brings, a TOML file, or a table; `None`: its default.
    changes: values that replace those of the recipe, such as `valid`, `split` or `class_weights`.
    The other arguments are those of `TrainRequest`. Raises a `CamkitError` on bad data, before any
    training.
    """
    plugin, request = _prepared(
        data,
        trainer,
        options,
        out=Path(out),
        recipe=recipe,
        arch=arch,
        weights=weights,
        seed=seed,
        device=device,
        precision=precision,
        resume=resume,
        progress=progress,
        changes=changes,
        on_error=on_error,
        labels=labels,
        label_column=label_column,
    )
    try:
        return plugin.train(request)
    except CamkitError as error:
        if wrapped := WRAPPED.fullmatch("".join(map(str, error.args)).strip()):
            raise type(error)(wrapped["text"]) from error
        raise


def check_finished(
    data: str | os.PathLike[str],
    kept: Kept,
    *,
    trainer: str,
    out: Path,
    options: Mapping[str, Any],
    **asked: Any,
) -> None:
    """`UsageError` if a finished training is another than the one that is asked for.

    Its photographs may be gone by now; they are others if DATA is there and holds not one of those that
    were held out. asked: the arguments of `train`.
    """
    try:
        _, request = _prepared(data, trainer, options, out=out, **asked)
    except UsageError:  # its recipe may be gone, too
        return
    wanted = run_folder.asked(trainer, request)
    other = [name for name, value in wanted.items() if kept.identity.get(name, value) != value]
    if Path(data).exists() and not kept.any_in(dataset.photographs(data)):
        other.append("data")
    if other:
        raise UsageError(run_folder.another(out, other))


def preview(
    data: str | os.PathLike[str],
    *,
    trainer: str,
    out: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    arch: str = "resnet34",
    weights: str = "default",
    seed: int = 0,
    changes: Mapping[str, Any] = NO_CHANGES,
    on_error: Literal["skip", "fail"] = "fail",
    labels: Literal["auto", "one", "several"] = "auto",
    label_column: str | None = None,
    **options: Any,
) -> Path:
    """Draw what the trainer's augmentation makes of the first photograph of `data`: `out/preview.png`.

    Arguments are as for `train`.
    """
    plugin, request = _prepared(
        data,
        trainer,
        options,
        out=Path(out),
        recipe=recipe,
        arch=arch,
        weights=weights,
        seed=seed,
        changes=changes,
        on_error=on_error,
        labels=labels,
        label_column=label_column,
    )
    photo = decoding.load(dataset.asked(request).paths[0])
    ways = plugin.preview(request, photo.image)
    rows = [[Panel(name, picture) for picture in pictures] for name, pictures in ways.items()]
    lines = [row[start : start + 3] for row in rows for start in range(0, len(row), 3)]
    return training_report.picture(request.out / "preview.png", sheet(lines, photo.source))


def _prepared(
    data: str | os.PathLike[str],
    trainer: str,
    options: Mapping[str, Any],
    *,
    recipe: Any,
    changes: Mapping[str, Any],
    **fields: Any,
) -> tuple[Trainer, TrainRequest]:
    plugin: Trainer = loading.make("trainer", trainer, options)
    table = {**recipes.table(plugin, recipe), **changes}
    return plugin, TrainRequest(data=os.fspath(data), recipe=table, **fields)
