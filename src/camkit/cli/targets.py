"""What is explained: classes, texts, the likeness to a photograph, or numbers made of all scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from camkit.cli import early_checks
from camkit.cli.parameters import repeatable
from camkit.errors import UsageError
from camkit.explaining import boxes

OPTIONS = (
    repeatable(
        *("--class", "classes"),
        metavar="CLASS",
        default="pred",
        help="pred, top:K, all, a class NAME or INDEX; repeatable.",
    ),
    repeatable(
        *("--box", "boxes"),
        metavar="N|all",
        help="Of a detector or a segmentation: all boxes, or the N-th by its score or area (1); of --class "
        "alone; repeatable.",
    ),
    repeatable(
        *("--at", "at"),
        metavar="X,Y",
        help="Of a segmentation: what is at this place, in pixels of the photograph; repeatable.",
    ),
    click.option(
        "--min-score",
        type=click.FloatRange(0, 1),
        help="Of a detector: the lowest score of a box.  [default: 0.5]",
    ),
    repeatable(
        *("--text", "texts"),
        metavar="PROMPT",
        help="Of CLIP and SigLIP: what to look for, in words; repeatable. One map for each.",
    ),
    repeatable(
        *("--like", "like"),
        metavar="IMAGE",
        help="In place of a class: what makes a photograph like this one; repeatable.",
    ),
    repeatable(
        *("--target", "targets"),
        metavar="NAME",
        help="In place of a class: sum, mean or norm of all that the model returns; repeatable.",
    ),
)
# In place of classes, by their names among the values of a command.
INSTEAD = {"like": "--like", "targets": "--target"}


def target_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def check(values: dict[str, Any]) -> None:
    """Raise `UsageError` for two ways to say what is explained; of texts that is all of them by default."""
    source = click.get_current_context().get_parameter_source("classes")
    says_class = source is not click.core.ParameterSource.DEFAULT
    facts = values.get("facts")  # some commands take none
    names = facts and facts.classes
    if values["texts"] and names:
        raise UsageError("--text and --classes both say what the model tells apart: leave one out")
    if values["texts"] and not says_class:
        values["classes"] = ("all",)
    for name, option in INSTEAD.items():
        if values[name] and (says_class or values["texts"]):
            other = "--class" if says_class else "--text"
            raise UsageError(f"{option} is in place of {other}: leave one out")
    early_checks.there(*values["like"])
    values["at"] = boxes.places(values["at"])
    if values["boxes"]:
        boxes.numbers(values["boxes"])
    for model in values.get("models") or (values["model"],):
        early_checks.classes(model, values["classes"], names or values["texts"] or None)
