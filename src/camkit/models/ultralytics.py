"""Networks that ultralytics' `yolo` has trained: `best.pt` of a run, without unpickling its network.

The file names the layers of its network in a table; ultralytics builds them anew, and only those that its
classifiers, or its detectors, have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from camkit.contracts.model import LoadedModel
from camkit.errors import ModelError
from camkit.models import labels
from camkit.models.checkpoint import Checkpoint, Shell, read_checkpoint
from camkit.models.objects import from_object
from camkit.models.weights import built_for, put_weights

# The layers of its classifiers, from YOLOv5 to YOLO26; another one could be any name of its modules.
LAYERS = set(
    "A2C2f AConv ADown BottleneckCSP C1 C2 C2f C2fCIB C2PSA C3 C3Ghost C3k2 C3TR Classify Conv DWConv "
    "Focus GhostConv HGBlock HGStem PSA RepC3 ResNetLayer SCDown SPP SPPELAN SPPF".split()
)
# Of its detectors besides, without Classify.
OF_DETECTORS = set(
    "AConv C2fAttn CBFuse CBLinear Concat Detect ELAN1 RepNCSPELAN4 nn.Upsample v10Detect".split()
)


class Task(NamedTuple):
    """What a kind of network is called, and which layers it may have."""

    what: str
    layers: set[str]


TASKS = {
    "ClassificationModel": Task("a classifier", LAYERS),
    "DetectionModel": Task("a detector", (LAYERS - {"Classify"}) | OF_DETECTORS),
}
# Of a table; ultralytics evaluates this text as code.
ACTIVATION = re.compile(r"(torch\.)?nn\.[A-Z][A-Za-z0-9]*\(((inplace=)?(True|False|\d+(\.\d+)?))?\)")


def network(checkpoint: Checkpoint) -> Shell | None:
    """What stands for the network in such a file, if it is one."""
    found = checkpoint.content.get(checkpoint.where)
    is_theirs = isinstance(found, Shell) and type(found).__module__.startswith("ultralytics.")
    return found if is_theirs else None


def load(checkpoint: Checkpoint, shell: Shell, device: torch.device) -> LoadedModel:
    """The classifier in the file. `ModelError` for another task, or without ultralytics."""
    path = str(checkpoint.path)
    module, table = _network(checkpoint, shell, "ClassificationModel", device)
    model = from_object(module, name=path)
    return replace(model, architecture={"source": "file", "yolo": table, "num_classes": len(module.names)})


def read_network(
    path: Path, kind: str, device: torch.device
) -> tuple[Any, tuple[str, ...], Mapping[str, Any]]:
    """The network in a file of ultralytics, in eval mode, the names of its classes, and its settings.

    kind: its class, one of `TASKS`. Raises `ModelError` for what holds another, or without ultralytics.
    """
    checkpoint = read_checkpoint(path)
    if (shell := network(checkpoint)) is None:
        raise ModelError(f"{path} is no file of ultralytics")
    module, _ = _network(checkpoint, shell, kind, device)
    names = labels.of_value(module.names)
    if names is None:
        raise ModelError(f"{path} does not name its classes one by one")
    settings = module.args if isinstance(module.args, Mapping) else vars(module.args)
    return module, names, settings


def _network(
    checkpoint: Checkpoint, shell: Shell, kind: str, device: torch.device
) -> tuple[Any, dict[str, Any]]:
    """The network and its table of layers."""
    path, facts, own = checkpoint.path, vars(shell), type(shell).__name__
    if own != kind:
        hint = (
            " (yolo:FILE, of the package camkit-yolo, takes detectors)" if own == "DetectionModel" else ""
        )
        raise ModelError(f"{path} is a {own} of ultralytics, not {TASKS[kind].what}{hint}")
    table, names = facts.get("yaml"), facts.get("names")
    if not isinstance(table, Mapping) or not isinstance(names, Mapping | list):
        raise ModelError(f"{path} does not say how its network is built: was it trained by ultralytics?")
    with built_for(sum(tensor.nbytes for tensor in checkpoint.state.values())):
        module = build(table, len(names), str(path), kind)
    put_weights(module, checkpoint.state, str(path))
    module.names = names
    module.args = facts.get("args") or checkpoint.content.get("train_args") or {}
    return module.to(device).eval(), dict(table)


def build(table: Any, count: int, where: str, kind: str = "ClassificationModel") -> Any:
    """The network of a table of layers, perhaps a stranger's; `ModelError` if it is of no such network."""
    task = TASKS[kind]
    try:
        from ultralytics.nn import tasks
    except ImportError:
        raise ModelError(f"{where} is {task.what} of ultralytics: pip install ultralytics") from None
    if not isinstance(table, Mapping):
        raise ModelError(f"{where} has no table of layers, but {table!r:.80}")
    rows = [*table.get("backbone", ()), *table.get("head", ())]
    kinds = {row[2] if isinstance(row, list | tuple) and len(row) == 4 else None for row in rows}
    if strange := [name for name in kinds if name not in task.layers]:
        no = task.what.replace("a ", "no ", 1)
        raise ModelError(f"{where} has the layer {strange[0]!r}, which {no} of ultralytics has")
    if (activation := table.get("activation")) and not ACTIVATION.fullmatch(str(activation)):
        raise ModelError(f"{where} has the activation {str(activation)!r:.80}, which is none of torch")
    make: Any = getattr(tasks, kind)
    return make(dict(table), nc=count, verbose=False)
