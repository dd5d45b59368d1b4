"""Training through a plugin."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from camkit import plugins
from camkit.api import Trainer, TrainRequest, TrainResult


def train(
    data: str | os.PathLike[str],
    *,
    trainer: str,
    out: str | os.PathLike[str],
    recipe: str | Mapping[str, Any] = "default",
    arch: str = "resnet34",
    weights: str = "default",
    seed: int = 0,
    device: str = "auto",
    progress: Callable[[float, str], None] | None = None,
    **options: Any,
) -> TrainResult:
    """Train a classifier on a folder of images and write a bundle into `out`.

    trainer: the name of a trainer plugin; options: its own (`camkit plugin show TRAINER`). The other
    arguments are those of `TrainRequest`. Raises a `CamkitError` on bad data, before any training.
    """
    plugin: Trainer = plugins.make("trainer", trainer, options)
    request = TrainRequest(
        data=os.fspath(data),
        out=Path(out),
        recipe=recipe,
        arch=arch,
        weights=weights,
        seed=seed,
        device=device,
        progress=progress,
    )
    return plugin.train(request)
