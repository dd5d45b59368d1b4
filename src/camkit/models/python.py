"""`--model FILE.py:FUNCTION`, `--model PACKAGE.MODULE:CLASS@WEIGHTS`: models that code of the user builds.

Code runs here because the user names it; nothing else, such as the manifest of a folder, leads here.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import CamkitError, CamkitWarning, ModelError, ModelNotFound, closest, typed_reason
from camkit.files import is_file, read_regular
from camkit.models import labels, weights_file
from camkit.models.checkpoint import read_checkpoint
from camkit.models.facts import ModelFacts
from camkit.models.objects import from_object
from camkit.models.specs import FUNCTION
from camkit.models.weights import put_weights, without_prefix

MAX_FILE = 2**22  # bytes of a file that is looked into


class PythonSource(ModelSource):
    """`FILE.py:FUNCTION[@WEIGHTS]`."""

    summary = "your own function or class: FILE.py:NAME or PACKAGE.MODULE:NAME, and weights: NAME@FILE"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """What the function returns: a module, or a `LoadedModel`. Its errors are told with the line.

        WEIGHTS is a state dict in any container, which is read without running code of it.
        """
        found = FUNCTION.fullmatch(reference)
        if found is None:
            what = _functions(reference) if is_file(reference) else "PACKAGE.MODULE:FUNCTION"
            raise ModelNotFound(f"{reference} does not say which function builds the model: {what}")
        where, name = found["where"], found["name"]
        module = _imported(where)
        build = getattr(module, name, None)
        if build is None:
            raise ModelNotFound(f"{where} has no {name!r}{closest(name, list(vars(module)))}")
        try:
            with warnings.catch_warnings():  # what it assumes itself stands in the notes of its model
                warnings.filterwarnings("ignore", "assumed", CamkitWarning)
                made = build() if callable(build) and not isinstance(build, nn.Module) else build
        except CamkitError:
            raise
        # Whatever the user's code raises.
        except Exception as error:
            way = _without_arguments(error, where, found["weights"])
            raise ModelError(
                f"{reference} failed{_line(error, module)}: {typed_reason(error)}{way}"
            ) from error
        model = from_object(made, name=reference)
        if found["weights"]:
            model = _with_weights(model, Path(found["weights"]))
        model.module.to(device).eval()
        if isinstance(build, type) and not found["weights"]:
            note = f"{name} is a class: its weights are random, unless it loads some itself"
            model = replace(model, notes={**model.notes, "weights": note})
        return model


def _without_arguments(error: Exception, where: str, weights: str | None) -> str:
    """What helps where the call wants arguments."""
    if not (isinstance(error, TypeError) and "required" in str(error) and "argument" in str(error)):
        return ""
    file = f"@{weights}" if weights else ""
    return f"; write a function without arguments that makes it: {where}:FUNCTION{file}"


def _with_weights(model: LoadedModel, path: Path) -> LoadedModel:
    """`model` with the weights of a file, and what that says of classes and photographs."""
    checkpoint = read_checkpoint(path)
    put_weights(model.module, without_prefix(checkpoint.state, model.module, str(path)), str(path))
    model = weights_file.as_it_says(model, checkpoint)
    if labels.named(model.classes):
        return model
    try:
        count = len(from_object(model, facts=ModelFacts()).classes)
    except CamkitError:  # it takes photographs of a size that is said later
        return model
    classes, of_classes = weights_file.class_names(checkpoint, count)
    return replace(model, classes=classes, notes={**model.notes, "classes": of_classes})


def _functions(file: str) -> str:
    """`mine.py:build or mine.py:make`, the functions of a file that may be called; it does not run."""
    try:
        tree = ast.parse(read_regular(file, MAX_FILE))
    except (OSError, ValueError, SyntaxError, RecursionError):
        tree = ast.parse("")
    functions = [part for part in tree.body if isinstance(part, ast.FunctionDef | ast.ClassDef)]
    names = [part.name for part in functions if not part.name.startswith("_")]
    return " or ".join(f"{file}:{name}" for name in names[:3]) or f"{file}:FUNCTION"


def _imported(where: str) -> Any:
    """The module of a file or of a dotted name, looked for in the working folder, too."""
    here = str(Path.cwd())
    try:
        if not where.endswith(".py"):
            sys.path.insert(0, here)
            try:
                return importlib.import_module(where)
            finally:
                sys.path.remove(here)
        if not is_file(where):
            raise ModelNotFound(f"there is no file {where!r}")
        path = Path(where).resolve()
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(path.stem, module)  # where dataclasses and pickles look for it
        sys.path.insert(0, str(path.parent))  # as `python FILE.py` does, for what it imports
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(path.parent))
        return module
    except CamkitError:
        raise
    # Whatever the user's code raises while it is imported.
    except Exception as error:
        raise ModelError(f"{where} cannot be imported: {typed_reason(error)}") from error


def _line(error: Exception, module: Any) -> str:
    """Where in the user's file an error came up."""
    file, line, step = getattr(module, "__file__", None), None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == file:
            line = step.tb_lineno
        step = step.tb_next
    return f" in line {line}" if line else ""
