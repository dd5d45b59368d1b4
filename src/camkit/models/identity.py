"""What a model is beyond its weights: two that differ in it may say different things of one photograph."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.models.specs import FUNCTION

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object in memory, which changes with each process
SET = re.compile(r"\{([^{}:]*)\}")  # whose order does, too
# Of a module, what torch keeps for itself, and what says nothing of a forward in eval mode.
OWN = {*vars(torch.nn.Module()), "training"}
DEEPEST = 8  # levels of lists and tables
MOST = 1000  # values of a list, of which a longer one is known by its length alone


def identity(model: LoadedModel, spec: str) -> str:
    """A hash of all that decides what a model says of a photograph, and what of that is explained.

    Its weights, layers, their attributes, architecture and output, how photographs are prepared, classes,
    scores and usual layer, and the files that its code is in, wherever they are: of libraries another
    version, too. Not seen are files that the code itself reads.
    spec: what the model was loaded by.
    """
    parts = list(model.module.modules())
    state = model.module.state_dict()
    facts = {
        "weights": model.sha256,
        "packed": [_plain(value) for value in state.values() if not isinstance(value, Tensor)],
        "layers": str(model.module),
        "attributes": [_attributes(part) for part in parts],
        "function": found["name"] if (found := FUNCTION.fullmatch(spec)) else None,
        "code": sorted(set(_code(model, spec))),
        "architecture": model.architecture and dict(model.architecture),
        "output": model.output if isinstance(model.output, str | int | None) else _name(model.output),
        "preprocessing": model.preprocess.to_dict(),
        "classes": list(model.classes),
        "scores": model.scores,
        "layer": model.default_layer,
    }
    text = ADDRESS.sub("", json.dumps(facts, sort_keys=True, default=str))
    text = SET.sub(lambda found: ", ".join(sorted(found[1].split(", "))), text)
    return hashlib.sha256(text.encode()).hexdigest()


def _attributes(part: torch.nn.Module) -> dict[str, Any]:
    """The attributes of a module that are values, such as a temperature, which its text may not show."""
    return {name: _plain(value) for name, value in vars(part).items() if name not in OWN}


def _plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON: numbers, texts but for paths, tensors and arrays by their bytes, what holds these.

    depth: how deep it lies in another one, which may hold itself.
    """
    if depth > DEEPEST:
        return None
    if isinstance(value, bool | int | float | None):
        return value
    if isinstance(value, str):
        return None if os.sep in value else value
    if isinstance(value, Tensor):
        return _digest(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, list | tuple | set | frozenset):
        inner = [_plain(one, depth + 1) for one in value] if len(value) <= MOST else len(value)
        return inner if isinstance(value, list | tuple) else sorted(map(str, value))
    if isinstance(value, Mapping) and len(value) <= MOST:
        return {str(key): _plain(one, depth + 1) for key, one in value.items()}
    return None


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().dequantize() if tensor.is_quantized else tensor.detach()
    try:
        data = plain.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    except RuntimeError:  # of meta and sparse ones
        return str(tuple(tensor.shape))
    return hashlib.sha256(f"{plain.dtype}{tuple(plain.shape)}".encode() + data).hexdigest()


def _code(model: LoadedModel, spec: str) -> Iterator[str]:
    """Hashes of the files that the code is in, and of what was compiled or traced."""
    classes = {kind for part in model.module.modules() for kind in type(part).__mro__}
    functions = [model.output, model.detections, model.segments]
    files = {_file(one) for one in {*classes, *(one for one in functions if callable(one))}}
    for file in {*files, *_of_spec(spec)} - {None}:
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


def _of_spec(spec: str) -> set[str]:
    """The file of `FILE.py:FUNCTION` or `PACKAGE.MODULE:FUNCTION`, and what it imported from its folder."""
    where = found["where"] if (found := FUNCTION.fullmatch(spec)) else ""
    try:
        made = importlib.util.find_spec(where) if where and not where.endswith(".py") else None
    except (ImportError, ValueError):  # of other specifications: there is no such module
        made = None
    file = Path(where if where.endswith(".py") else str(made and made.origin)).resolve()
    if not file.is_file():
        return set()
    if "site-packages" in file.parts:
        return {str(file)}
    loaded = (getattr(module, "__file__", None) for module in list(sys.modules.values()))
    below = {str(path) for name in loaded if name and (path := Path(name).resolve()).is_file()}
    return {str(file)} | {
        path for path in below if file.parent in Path(path).parents and "site-packages" not in path
    }


def _name(made: Any) -> str:
    return str(getattr(made, "__qualname__", type(made).__qualname__))
