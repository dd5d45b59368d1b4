"""Training through a plugin, and a look at its augmentation."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from camkit.contracts.trainer import Precision, Trainer, TrainRequest, TrainResult
from camkit.drawing.sheet import Panel, sheet
from camkit.errors import CamkitError
from camkit.images import decoding
from camkit.registry import loading
from camkit.training import dataset, training_report
from camkit.training import recipe as recipes

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
    **options: Any,
) -> TrainResult:
    """Train a classifier on a folder of photographs and write a bundle into `out`.

    trainer: the name of a trainer plugin; options: its own (`camkit plugin show TRAINER`).
    recipe: the name of one that the trainer brings, a TOML file, or a table; `None`: its default.
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
    )
    try:
        return plugin.train(request)
    except CamkitError as error:
        if wrapped := WRAPPED.fullmatch("".join(map(str, error.args)).strip()):
            raise type(error)(wrapped["text"]) from error
        raise


def preview(
    data: str | os.PathLike[str],
    *,
    trainer: str,
    out: str | os.PathLike[str],
    recipe: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    arch: str = "resnet34",
    weights: str = "default",
    seed: int = 0,
    **options: Any,
) -> Path:
    """Draw what the trainer's augmentation makes of the first photograph of `data`: `out/preview.png`.

    Arguments are as for `train`.
    """
    plugin, request = _prepared(
        data, trainer, options, out=Path(out), recipe=recipe, arch=arch, weights=weights, seed=seed
    )
    photo = decoding.load(dataset.read(request.data).paths[0])
    ways = plugin.preview(request, photo.image)
    rows = [[Panel(name, picture) for picture in pictures] for name, pictures in ways.items()]
    lines = [row[start : start + 3] for row in rows for start in range(0, len(row), 3)]
    return training_report.picture(request.out / "preview.png", sheet(lines, photo.source))


def _prepared(
    data: str | os.PathLike[str], trainer: str, options: Mapping[str, Any], *, recipe: Any, **fields: Any
) -> tuple[Trainer, TrainRequest]:
    plugin: Trainer = loading.make("trainer", trainer, options)
    return plugin, TrainRequest(data=os.fspath(data), recipe=recipes.table(plugin, recipe), **fields)
