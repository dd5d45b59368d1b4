"""Files of `learn.export()`: pickles, read so that what is not needed to predict may be missing.

Such a file holds the whole `Learner`, and with it functions that labelled the photographs, paths of the
machine that wrote it, and objects of older versions of fastai. None of that is run to explain a photograph.
"""

from __future__ import annotations

import builtins
import pathlib
import pickle
import types
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from camkit.errors import ModelError, ModelNotFound, typed_reason
from camkit.files import is_file
from camkit.models.checkpoint import Shell, check_downloaded

_LEARNER = b"fastai.learner"  # the module that the pickle of a Learner names
_MAX_PICKLE = 2**28  # bytes; the tensors lie elsewhere in the file


def is_export(path: Path) -> bool:
    """Whether a file holds a `Learner`, told by its pickle, which is not loaded.

    Before torch 1.6 a file of `torch.save` was no archive: of these, every `.pkl` counts.
    """
    if not is_file(path):
        return False
    if not zipfile.is_zipfile(path):
        return path.suffix == ".pkl"
    try:
        with zipfile.ZipFile(path) as archive:
            inner = next((m for m in archive.infolist() if m.filename.endswith("/data.pkl")), None)
            if inner is None or inner.file_size > min(_MAX_PICKLE, path.stat().st_size):
                return False
            return _LEARNER in archive.read(inner)
    # What is wrong with an archive is said when its weights are read.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error):
        return False


def read_learner(path: Path, *, trust: bool) -> Any:
    """The `Learner` of a file, on the CPU; classes and functions that are not here are `Shell`s.

    Raises `ModelError` without `trust`, without fastai, and for a file that holds something else.
    """
    if not is_file(path):
        raise ModelNotFound(f"there is no file {str(path)!r}")
    check_downloaded(path)
    if not trust:
        raise ModelError(
            f"{path} is a pickle, which runs code when it is loaded: refused; --trust-pickle allows it, if "
            "you know where it comes from. Safer: learn.save(..., with_opt=False) and fastai:ARCH@FILE"
        )
    try:
        from fastai.learner import Learner
    except ImportError:
        raise ModelError(f"{path} is a file of learn.export(): pip install fastai") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a pickle has been said
            made = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Pickle)
    # Unpickling raises anything.
    except Exception as error:
        raise ModelError(
            f"{path} is no file that learn.export() wrote, or is damaged: {typed_reason(error)}"
        ) from None
    if isinstance(made, dict) and {"model", "loss_func", "cls"} <= made.keys():
        raise ModelError(f"{path} was written by fastai 1: learn.save() there, and fastai:ARCH@FILE")
    if not isinstance(made, Learner):
        raise ModelError(f"{path} holds no Learner of fastai, but {_named(made)}")
    made.dls.cpu()
    if gone := _missing(made.model):
        raise ModelError(f"{path} needs {_named(gone)} for its network, which cannot be imported here")
    return made


class _StandIn(Shell):
    """A class or function that cannot be imported, and what was made of it; items are dropped."""

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """What the file names; a stand-in where it cannot be imported."""
        if (module.partition(".")[0], name) in ELSEWHERE:
            return ELSEWHERE[module.partition(".")[0], name]
        try:
            return super().find_class(MOVED.get(module, module), name)
        # A module that is not here, or does not work here, whatever it raises when it is imported.
        except Exception:
            return type(name.rpartition(".")[2], (_StandIn,), {"__module__": module})


class _Pickle:
    """The module `pickle`, as far as torch uses it."""

    Unpickler = _Unpickler
    load = staticmethod(pickle.load)


def _builtin_type(name: str) -> Any:
    """As cloudpickle's; of code that another version of Python wrote it makes `None`."""
    made: Any = getattr(types, name)
    return _code if made is types.CodeType else made


def _code(*facts: Any) -> types.CodeType | None:
    try:
        return types.CodeType(*facts)
    except (TypeError, ValueError):
        return None


def _make_function(code: types.CodeType | None, names: Any, name: str, defaults: Any, closure: Any) -> Any:
    """As cloudpickle's; without code it is a function that says so when it is called."""
    names["__builtins__"] = builtins
    if code is None:
        free = tuple(f"cell_{i}" for i in range(len(closure or ())))
        code = _written_elsewhere.__code__.replace(co_freevars=free)
    return types.FunctionType(code, names, name, defaults, closure)


def _written_elsewhere(*_: Any, **__: Any) -> None:
    raise RuntimeError("a function of the export was written by another version of Python")


# Modules that have another name now: fastai 2.8 took its transforms from there.
MOVED = {"fastcore.transform": "fasttransform.transform"}
# By the package and the name: paths of another system or version of Python are only names here.
ELSEWHERE: dict[tuple[str, str], Any] = {
    ("pathlib", "WindowsPath"): pathlib.PureWindowsPath,
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("cloudpickle", "_builtin_type"): _builtin_type,
    ("cloudpickle", "_make_function"): _make_function,
}


def _missing(module: Any) -> Any:
    """A part of a network that is only a stand-in; `None` if there is none."""
    if isinstance(module, Shell):
        return module
    parts = vars(module).get("_modules", {}).values()
    return next((gone for part in parts if part is not None and (gone := _missing(part))), None)


def _named(thing: Any) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}".removeprefix("builtins.")
