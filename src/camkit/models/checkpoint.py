"""Files of weights as people have them: a state dict within its container, and what else that says.

Safetensors, or what `torch.save` wrote, read through `torch.load(weights_only=True)`. Objects of other
classes than tensors are never made: an empty shell with the name of the class takes their place, so that
the weights beside an optimizer, a `Namespace` or a numpy number can be read, and no code runs.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from camkit.errors import ModelError, ModelNotFound, typed_reason
from camkit.files import is_file, stand_in
from camkit.models import torch_file_check

# Where a container keeps its weights, the better ones first: an average of the last steps is what is used.
WEIGHTS = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema",
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "module",
)
# Where it keeps what the training was told.
SETTINGS = ("hyper_parameters", "hparams", "args", "train_args", "config", "cfg", "meta", "opt")
SHELLS = 256  # classes of which a file may hold objects


class Shell:
    """What stands for an object of a class that is not loaded: its attributes, and no code."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __new__(cls, *_: Any, **__: Any) -> Shell:
        """An empty one, whatever the object was made of."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({str(name): value for name, value in state.items()})


class WholeModel(ModelError):
    """A file holds a module, not its tensors alone."""


@dataclass(frozen=True)
class Checkpoint:
    """The weights of a file.

    state: names and tensors, as the file has them. where: the key under which its container had them, if
    there was one. content: the whole container, for what it says beside: the names of classes, a name.
    """

    path: Path
    state: Mapping[str, Tensor]
    where: str = ""
    content: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def tables(self) -> Iterator[Mapping[str, Any]]:
        """Where the file may say more: the container, and the settings of the training in it."""
        yield self.content
        for name in SETTINGS:
            inner = self.content.get(name)
            if isinstance(inner, Mapping | Shell):
                yield vars(inner) if isinstance(inner, Shell) else inner


def read_checkpoint(path: Path) -> Checkpoint:
    """The weights in `.safetensors`, or in a file that `torch.save` wrote, without running any code of it.

    Raises `ModelNotFound` if there is no such file, and `ModelError` if it holds something else, or less
    than it claims to.
    """
    if not is_file(path):
        raise ModelNotFound(f"there is no weights file {str(path)!r}")
    if path.suffix.lower() in OTHERS:
        raise ModelError(f"{path} is {OTHERS[path.suffix.lower()]}")
    check_downloaded(path)
    content, metadata = _content(path)
    where, state = _unwrapped(content)
    if isinstance(state, Shell) and "_modules" in vars(state):
        kind = f"{type(state).__module__}.{type(state).__qualname__}"
        if kind.startswith("ultralytics."):
            state = module_state(state)
        else:
            raise WholeModel(
                f"{path} holds a whole model ({kind}) as a pickle, which could run code: refused. "
                "Save model.state_dict() instead, or allow it with --trust-pickle if you trust its maker"
            )
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items())
    ):
        raise ModelError(f"{path} does not hold a state dict (names and tensors){_shown(content)}")
    check_claims(path, state)
    around = content if isinstance(content, Mapping) and where else metadata
    return Checkpoint(path, state, where, around)


def check_downloaded(path: Path) -> None:
    """`ModelError` for what only stands for a file of weights."""
    with path.open("rb") as file:
        start = file.read(100)
    if not start:
        raise ModelError(f"{path} is empty (0 bytes)")
    if what := stand_in(start):
        raise ModelError(f"{path} is {what}")


def _content(path: Path) -> tuple[Any, dict[str, Any]]:
    """What the file holds, and the texts in the head of a safetensors file."""
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open
            from safetensors.torch import load_file

            with safe_open(path, "pt") as file:
                metadata = dict(file.metadata() or {})
            return load_file(path), metadata
        if kind := archive_kind(path):
            raise ModelError(f"{path} is {kind}")
        return _unpickled(path, mmap=torch_file_check.check(path)), {}
    except ModelError:
        raise
    except pickle.UnpicklingError as error:
        thing = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = (
            f"holds {thing[1]}, which could run code" if thing else "is damaged, or holds no plain tensors"
        )
        raise ModelError(f"{path} {what}: refused; save `model.state_dict()` instead") from None
    # Torch and safetensors raise almost anything on a damaged file.
    except Exception as error:
        raise ModelError(f"{path} cannot be read as weights: {typed_reason(error)}") from None


def _unpickled(path: Path, *, mmap: bool) -> Any:
    """What `torch.save` wrote, with shells for the objects of classes that torch does not allow.

    Torch tells of one such class at a time. One that holds items becomes a plain dict.
    """
    shells: dict[str, type] = {}
    for _ in range(SHELLS):
        try:
            with torch.serialization.safe_globals([(shell, name) for name, shell in shells.items()]):
                # Mapped, a tensor is a part of the file, whatever it claims to be.
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            unknown = re.search(r"Unsupported global: GLOBAL (\S+) was", str(error))
            items = re.search(r"Can only SETITEM.*got <class '(\S+)'>", str(error))
            if unknown and unknown[1] not in shells:
                module, _, name = unknown[1].rpartition(".")
                shells[unknown[1]] = type(name, (Shell,), {"__module__": module})
            elif items and items[1] in shells:
                shells[items[1]] = OrderedDict
            else:
                raise
    raise ModelError(f"{path} holds objects of more than {SHELLS} classes: refused")


def _unwrapped(content: Any) -> tuple[str, Any]:
    """The weights in their container, and the keys that lead there."""
    where, inner = [], content
    while isinstance(inner, Mapping):
        key = next((key for key in WEIGHTS if _holds_weights(inner.get(key))), None)
        if key is None:
            break
        where.append(key)
        inner = inner[key]
    return ".".join(where), inner


def _holds_weights(part: Any) -> bool:
    if isinstance(part, Shell):
        return "_modules" in vars(part)
    return isinstance(part, Mapping) and (
        any(isinstance(value, Tensor) for value in part.values()) or any(part.get(key) for key in WEIGHTS)
    )


def module_state(shell: Shell) -> dict[str, Tensor]:
    """The state dict of a module that was pickled whole, from the attributes of its shell."""
    state: dict[str, Tensor] = {}

    def collect(part: Any, prefix: str, depth: int) -> None:
        if not isinstance(part, Shell) or depth > 64:
            return
        for group in ("_parameters", "_buffers"):
            for name, tensor in (vars(part).get(group) or {}).items():
                if isinstance(tensor, Tensor):
                    state[f"{prefix}{name}"] = tensor.detach()
        for name, child in (vars(part).get("_modules") or {}).items():
            collect(child, f"{prefix}{name}.", depth + 1)

    collect(shell, "", 0)
    return state


def check_claims(path: Path, state: Mapping[str, Tensor]) -> None:
    """`ModelError` if a tensor has more values than are there, or all have more bytes than the file."""
    storages: dict[int, int] = {}
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ModelError(f"{path}: {name} is no plain tensor: refused")
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ModelError(f"{path}: {name} claims {list(tensor.shape)} values and holds fewer: refused")
    if sum(storages.values()) > path.stat().st_size:
        raise ModelError(f"{path}: its tensors claim to be larger than the file: refused")


def _shown(content: Any) -> str:
    if isinstance(content, Mapping) and content:
        return f": its keys are {', '.join(map(str, list(content)[:6]))}"
    return f" but {type(content).__name__}"


_INSIDE = (
    "a gradient method needs the original model, whose layers it can reach: save its state_dict() and give "
    "that file"
)
OTHERS = {
    ".onnx": f"an ONNX graph, which torch cannot differentiate; {_INSIDE}",
    ".pt2": f"an exported program (torch.export), which hooks do not reach; {_INSIDE}",
    ".ptl": f"TorchScript for mobile devices, which hooks do not reach; {_INSIDE}",
    ".h5": "a file of Keras, not of PyTorch",
    ".keras": "a file of Keras, not of PyTorch",
    ".tflite": "a file of TensorFlow Lite, not of PyTorch",
    ".pb": "a graph of TensorFlow, not of PyTorch",
    ".msgpack": "a file of Flax, not of PyTorch",
    ".engine": f"an engine of TensorRT, which is compiled; {_INSIDE}",
    ".mlmodel": f"a Core ML model, which is compiled; {_INSIDE}",
    ".mlpackage": f"a Core ML model, which is compiled; {_INSIDE}",
    ".gguf": "a language model (GGUF), not an image classifier",
}


def archive_kind(path: Path) -> str:
    """What a zip archive is, if it is not of `torch.save`; told by the names of its members."""
    import zipfile

    if not zipfile.is_zipfile(path):
        return ""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inner = {name.partition("/")[2] for name in names} | set(names)
    if "constants.pkl" in inner:
        return f"TorchScript (torch.jit), which hooks do not reach; {_INSIDE}"
    if any(name.endswith(("exported_program.json", "models/model.json")) for name in inner):
        return OTHERS[".pt2"]
    if "config.json" in inner and any(name.endswith(".weights.h5") for name in inner):
        return OTHERS[".keras"]
    return ""
