"""The command, and the Python, that make exactly what the page shows."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from camkit.errors import TargetError
from camkit.plugin import class_index, sample_image
from camkit_explorer.asking import layer_of
from camkit_explorer.models import Ready
from camkit_explorer.questions import Question
from camkit_explorer.session import Photograph

# Of the command and of `camkit.explain`, which are left out where they are the default.
DEFAULTS = {"backend": "native", "method": "gradcam"}
USUAL = {"alpha": 0.8, "cmap": "", "scale": None}  # of the look


def lines(ready: Ready, photograph: Photograph, question: Question) -> dict[str, str]:
    """`command` and `python`. A photograph that was dropped is looked for by its name, in this folder."""
    chosen = {"backend": question.backend, "method": question.method, "layer": layer_of(ready, question)}
    chosen = {name: value for name, value in chosen.items() if value != DEFAULTS.get(name)}
    target = _class(question.target, ready.model.classes)
    flags = {"relu": question.rectified, "counterfactual": question.against, "cells": question.cells}
    look = {"alpha": question.opacity, "cmap": question.colours, "scale": question.scale}
    look = {name: value for name, value in look.items() if value != USUAL[name]}
    path = _path(photograph)

    words = ["camkit", "explain", *([] if path is None else [path])]
    words += [] if ready.spec == "pets" else ["--model", ready.spec]
    words += ["--class", target] if not target.startswith("-") else [f"--class={target}"]
    words += [word for name, value in chosen.items() for word in (f"--{name}", value)]
    words += [f"--{name}" for name, wanted in flags.items() if wanted]
    words += [word for name, value in look.items() for word in (f"--{name}", str(value))]

    shown = "camkit.plugin.sample_image()" if path is None else repr(path)
    given = "".join(f", {name}={value!r}" for name, value in chosen.items())
    drawn = ["'explained.png'"]
    drawn += [f"{name}=True" for name, wanted in flags.items() if wanted]
    drawn += [f"{name}={value!r}" for name, value in look.items()]
    code = [
        "import camkit",
        *(["import camkit.plugin"] if path is None else []),
        "",
        f"model = camkit.load_model({ready.spec!r})",
        f"result = camkit.explain(model, {shown}, target={question.target}{given})",
        "result.map  # the raw map",
        f"result.save({', '.join(drawn)})",
    ]
    return {"command": shlex.join(words), "python": "\n".join(code) + "\n"}


def _class(index: int, names: tuple[str, ...]) -> str:
    """The name of a class, or its index where the name means something else on the command line."""
    name = names[index]
    special = name in ("pred", "all") or name.startswith("top:")
    try:
        return name if not special and class_index(name, names) == index else str(index)
    except TargetError:
        return str(index)


def _path(photograph: Photograph) -> str | None:
    """Where it lies, as a word that is no option; `None` for the bundled one."""
    if isinstance(photograph.source, Path):
        path = os.fspath(photograph.source)
        if path == os.fspath(sample_image()):
            return None
    else:
        path = photograph.name
    return f"./{path}" if path.startswith("-") else path
