"""Classifiers that ultralytics' `yolo` has trained: `best.pt` of a run, without unpickling its network.

The file names the layers of its network in a table; ultralytics builds them anew, and only those that its
classifiers have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from camkit.contracts.model import LoadedModel
from camkit.errors import ModelError
from camkit.models.checkpoint import Checkpoint, Shell
from camkit.models.objects import from_object
from camkit.models.weights import built_for, put_weights

# The layers of its classifiers, from YOLOv5 to YOLO26; another one could be any name of its modules.
LAYERS = set(
    "A2C2f AConv ADown BottleneckCSP C1 C2 C2f C2fCIB C2PSA C3 C3Ghost C3k2 C3TR Classify Conv DWConv "
    "Focus GhostConv HGBlock HGStem PSA RepC3 ResNetLayer SCDown SPP SPPELAN SPPF".split()
)
# Of a table; ultralytics evaluates this text as code.
ACTIVATION = re.compile(r"(torch\.)?nn\.[A-Z][A-Za-z0-9]*\(((inplace=)?(True|False|\d+(\.\d+)?))?\)")


def network(checkpoint: Checkpoint) -> Shell | None:
    """What stands for the network in such a file, if it is one."""
    found = checkpoint.content.get(checkpoint.where)
    is_theirs = isinstance(found, Shell) and type(found).__module__.startswith("ultralytics.")
    return found if is_theirs else None


def load(checkpoint: Checkpoint, shell: Shell, device: torch.device) -> LoadedModel:
    """The classifier in the file. `ModelError` for another task, or without ultralytics."""
    path, facts = checkpoint.path, vars(shell)
    if type(shell).__name__ != "ClassificationModel":
        raise ModelError(f"{path} is a {type(shell).__name__} of ultralytics, not a classifier (-cls)")
    table, names = facts.get("yaml"), facts.get("names")
    if not isinstance(table, Mapping) or not isinstance(names, Mapping | list):
        raise ModelError(f"{path} does not say how its network is built: was it trained by ultralytics?")
    with built_for(sum(tensor.nbytes for tensor in checkpoint.state.values())):
        module = build(table, len(names), str(path))
    put_weights(module, checkpoint.state, str(path))
    module.names = names
    module.args = facts.get("args") or checkpoint.content.get("train_args") or {}
    model = from_object(module.to(device).eval(), name=str(path))
    return replace(model, architecture={"source": "file", "yolo": dict(table), "num_classes": len(names)})


def build(table: Any, count: int, where: str) -> Any:
    """The network of a table of layers, perhaps a stranger's; `ModelError` if it is of no classifier."""
    try:
        from ultralytics.nn.tasks import ClassificationModel
    except ImportError:
        raise ModelError(f"{where} is a classifier of ultralytics: pip install ultralytics") from None
    if not isinstance(table, Mapping):
        raise ModelError(f"{where} has no table of layers, but {table!r:.80}")
    rows = [*table.get("backbone", ()), *table.get("head", ())]
    kinds = {row[2] if isinstance(row, list | tuple) and len(row) == 4 else None for row in rows}
    if strange := [kind for kind in kinds if kind not in LAYERS]:
        raise ModelError(f"{where} has the layer {strange[0]!r}, which no classifier of ultralytics has")
    if (activation := table.get("activation")) and not ACTIVATION.fullmatch(str(activation)):
        raise ModelError(f"{where} has the activation {str(activation)!r:.80}, which is none of torch")
    make: Any = ClassificationModel
    return make(dict(table), nc=count, verbose=False)
