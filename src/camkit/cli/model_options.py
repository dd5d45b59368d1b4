"""What belongs to a model and its file may not say: the same options for every command that loads one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from camkit.cli.parameters import TRUST
from camkit.contracts.scores import KINDS

if TYPE_CHECKING:
    from camkit.models.facts import ModelFacts

MODEL = (
    "A file of weights, a folder (a bundle, of timm, of transformers), pets, imagenet, "
    "torchvision:NAME[@WEIGHTS], timm:NAME[@FILE], FILE.py:FUNCTION, FILE.py:CLASS@FILE."
)
OPTIONS = {
    "arch": click.option("--arch", metavar="NAME", help="The architecture of a file: timm:resnet18."),
    "classes": click.option(
        "--classes", "class_names", metavar="FILE|A,B,C", help="Class names: a file, a folder, or A,B,C."
    ),
    "size": click.option("--size", metavar="N|HxW", help="Pixels that the model sees: 160 or 160x224."),
    "resize": click.option(
        "--resize", type=click.IntRange(1, 16384), help="Shorter side before the centre crop."
    ),
    "fit": click.option(
        "--fit",
        type=click.Choice(["crop", "crop-first", "squash", "pad"]),
        help="How a photograph gets the proportions of --size; fastai's Resize is crop-first.",
    ),
    "mean": click.option("--mean", metavar="R,G,B", help="Subtracted from values in [0, 1]."),
    "std": click.option("--std", metavar="R,G,B", help="What these are divided by."),
    "channels": click.option(
        "--channels",
        type=click.IntRange(1, 1024),
        help="Of the photographs: 1 for grey ones; others than 1 and 3 need --mean and --std.",
    ),
    "scores": click.option(
        "--scores",
        type=click.Choice(KINDS),
        help="What the model returns; by default, what the model declares or its scores suggest.",
    ),
    "output": click.option(
        "--output", metavar="NAME|INDEX", help="Which of several outputs is explained: a key, or a number."
    ),
}


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; their values come by the names of `OPTIONS`, for `facts`."""
    for option in reversed([*OPTIONS.values(), TRUST]):
        command = option(command)
    return command


def facts(given: dict[str, Any]) -> ModelFacts:
    """Takes what is said of the model out of `given`. Raises `UsageError` and `ModelError`."""
    from camkit.models.facts import ModelFacts

    given["classes of the model"] = given.pop("class_names")
    names = {name: "classes of the model" if name == "classes" else name for name in OPTIONS}
    return ModelFacts.parse({name: given.pop(key) for name, key in names.items()})
