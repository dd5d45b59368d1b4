"""What a model is beyond its weights: two that differ in it may say different things of one photograph."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from camkit.contracts.model import LoadedModel
from camkit.models.specs import FUNCTION

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in memory, which changes with each process


def identity(model: LoadedModel, spec: str) -> str:
    """A hash of all that decides what a model says of a photograph, and what of that is explained.

    Its weights, layers, numbers, architecture and output, how photographs are prepared, classes, scores and
    usual layer, and the files that its code is in, wherever they are: of libraries another version, too.
    spec: what the model was loaded by.
    """
    facts = {
        "weights": model.sha256,
        "layers": ADDRESS.sub("", str(model.module)),
        "numbers": [_numbers(part) for part in model.module.modules()],
        "function": found["name"] if (found := FUNCTION.fullmatch(spec)) else None,
        "code": sorted(set(_code(model, spec))),
        "architecture": model.architecture and dict(model.architecture),
        "output": model.output if isinstance(model.output, str | int | None) else _name(model.output),
        "preprocessing": model.preprocess.to_dict(),
        "classes": list(model.classes),
        "scores": model.scores,
        "layer": model.default_layer,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _numbers(part: torch.nn.Module) -> dict[str, float]:
    """The public attributes of a module that are numbers, such as a temperature: not all are shown."""
    return {
        name: value
        for name, value in vars(part).items()
        if isinstance(value, int | float) and not name.startswith("_") and name != "training"
    }


def _code(model: LoadedModel, spec: str) -> Iterator[str]:
    """Hashes of the files that the code is in, and of what was compiled or traced."""
    made = [type(part) for part in model.module.modules()]
    functions = [model.output, model.detections, model.segments]
    files = {_file(one) for one in {*made, *(one for one in functions if callable(one))}}
    for file in {*files, _of_spec(spec)} - {None}:
        yield hashlib.sha256(Path(str(file)).read_bytes()).hexdigest()
    for part in model.module.modules():
        if isinstance(part, torch.jit.ScriptModule | torch.fx.GraphModule):
            yield hashlib.sha256(str(getattr(part, "code", "")).encode()).hexdigest()


def _file(made: Any) -> str | None:
    """The source file of a class or function, if it has one."""
    try:
        found = inspect.getsourcefile(made)
    except (OSError, TypeError):
        return None
    return found if found and Path(found).is_file() else None


def _of_spec(spec: str) -> str | None:
    """The file of `FILE.py:FUNCTION` and `PACKAGE.MODULE:FUNCTION`."""
    where = found["where"] if (found := FUNCTION.fullmatch(spec)) else ""
    if where.endswith(".py"):
        return where if Path(where).is_file() else None
    try:
        origin = importlib.util.find_spec(where) if where else None
    except (ImportError, ValueError):  # of other specifications: there is no such module
        return None
    return origin.origin if origin and origin.origin and Path(origin.origin).is_file() else None


def _name(made: Any) -> str:
    return str(getattr(made, "__qualname__", type(made).__qualname__))
