"""The command that makes a picture again, from the lines that it carries."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from camkit.drawing.style import Style
from camkit.errors import CamkitError, PluginError
from camkit.explaining import score_targets
from camkit.explaining.manifest import Line
from camkit.explaining.map_keys import defaults
from camkit.explaining.naming import slug
from camkit.models import loading, specs

# Fields of a style with the option of each; those of a flag have none for their value.
LOOK = {
    "look": "--look",
    "view": "--view",
    "alpha": "--alpha",
    "cmap": "--cmap",
    "size": "--image-size",
}
FLAGS = {"relu": "--relu", "counterfactual": "--counterfactual", "cells": "--cells"}
# Of a model, as options.
FACTS = ("arch", "size", "resize", "fit", "mean", "std", "channels", "scores", "output")


def command(lines: Sequence[Line]) -> str:
    """`camkit explain ...`, for a shell, of a picture or a sheet; photographs as they were named then."""
    first = lines[0]
    words = ["camkit", "explain", *photographs(lines), *_model(first)]
    for option, field in (("--backend", "backend"), ("--method", "method")):
        words += _each(option, (line[field] for line in lines))
    if first["box"]:
        words += _each("--class", first["box"]["classes"])
        if first["box"].get("at"):
            words += _each("--at", (",".join(f"{n:g}" for n in line["box"]["at"]) for line in lines))
        else:
            words += _each("--box", (line["box"]["number"] for line in lines))
        if "area" not in first["box"]:
            words += ["--min-score", f"{first['box']['min_score']:g}"]
    else:
        words += [word for target in dict.fromkeys(map(_target, lines)) for word in target]
    words += _each("--layer", (line["layer"] for line in lines if line["layer"]))
    if first["layout"]:
        words += ["--layout", first["layout"]]
    options = {key: value for line in lines for key, value in _options(line).items()}
    for key, value in options.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["-o", f"{key}={text}"]
    words += _look(first)
    if first["dtype"] != "float32":
        words += ["--dtype", first["dtype"]]
    if first["precision"] == "tf32":
        words += ["--precision", "tf32"]
    return shlex.join(map(str, words))


def photographs(lines: Iterable[Line]) -> list[str]:
    """What the photographs of lines were called."""
    return list(dict.fromkeys(line["image_path"] or line["image"] for line in lines))


def _each(option: str, values: Iterable[Any]) -> list[str]:
    """An option for each value that there is."""
    return [word for value in dict.fromkeys(values) for word in (option, str(value))]


def _options(line: Line) -> dict[str, Any]:
    """The options that are not as by default; all of a backend that is not installed here."""
    try:
        usual = defaults(line["backend"])
    except PluginError:
        usual = {}
    said = line["options"] if isinstance(line["options"], dict) else {}
    return {key: value for key, value in said.items() if key not in usual or value != usual[key]}


def _target(line: Line) -> tuple[str, str]:
    """What is explained, with its option."""
    if line["class_index"] is None:
        return score_targets.option(str(line["class_name"]))
    return "--class", _class(line)


def _class(line: Line) -> str:
    """The name of the class, if it is taken for one and no other class has it; else its index."""
    name = str(line["class_name"])
    # A number is looked for among the names first.
    reserved = re.fullmatch(r"pred|all|top:.*|\s+\d+\s*|\d+\s+|\s*[-+]\d+\s*", name)
    alone = f".{slug(name)}." in f".{line['map_key']}."
    return name if name and alone and not reserved else str(line["class_index"])


def _model(line: Line) -> list[str]:
    spec = line["model_spec"] or (str(line["model"]) if _is_spec(line) else "MODEL")
    words = [] if spec == loading.DEFAULT else ["--model", spec]
    return words + said_words(line["model_facts"] if isinstance(line["model_facts"], dict) else {})


def said_words(said: Mapping[str, Any]) -> list[str]:
    """What is said of a model, as `ModelFacts.told` has it, as options; many classes are left out."""
    words = []
    for name in FACTS:
        if name in said:
            value = said[name]
            sign = "x" if name == "size" else ","
            words += [f"--{name}", sign.join(map(str, value)) if isinstance(value, list) else str(value)]
    classes = said.get("classes")
    if isinstance(classes, list) and len(classes) > 1 and "," not in "".join(map(str, classes)):
        words += ["--classes", ",".join(map(str, classes))]
    return words


def _is_spec(line: Line) -> bool:
    """Whether the command line can have the model, which in Python may be any object."""
    if line["model_spec"]:
        return True
    try:
        specs.split(str(line["model"]))
    except CamkitError:
        return False
    return True


def lacks(lines: Sequence[Line]) -> str | None:
    """What has to be said of the command, because it does not say it itself."""
    if len(photographs(lines)) > 1:
        return "that makes a picture for each photograph; one of several is made by camkit.sheet in Python"
    line = lines[0]
    said: Mapping[str, Any] = line["model_facts"] if isinstance(line["model_facts"], dict) else {}
    if not line["model_spec"]:
        whose = "" if _is_spec(line) else f"MODEL is the {line['model']} of Python; "
        return (
            f"made in Python: {whose}whatever was said of the model (--classes, --size, --mean, --std, "
            "--scores) belongs to the command, or it makes another picture"
        )
    if line["class_index"] is None and _target(line)[0] == score_targets.PYTHON:
        return "with a function of Python as target, which the command line does not have"
    if "classes" in said and "--classes" not in _model(line):
        return "with --classes and the names of the classes, as then"
    return None


def _look(line: Line) -> list[str]:
    """How the picture was drawn, as far as it is not as usual; a scale of a run as its value."""
    picture = line["picture"]
    if not isinstance(picture, dict) or picture.get("look") not in (
        "default",
        "lesson",
        "contour",
        "spotlight",
    ):
        return []
    usual = vars(Style(look=picture["look"]))
    words = [] if picture["look"] == "default" else ["--look", str(picture["look"])]
    changed = {key: value for key, value in picture.items() if key in usual and value != usual[key]}
    words += [flag for name, flag in FLAGS.items() if changed.get(name)]
    for name, option in LOOK.items():
        if name in changed and name != "look":
            words += [option, str(changed[name])]
    if "scale" in changed:
        words += ["--scale", str(line["full_scale"] if changed["scale"] == "run" else changed["scale"])]
    return [*words, *(["--no-caption"] if changed.get("caption") is False else [])]
