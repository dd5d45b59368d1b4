"""`camkit explain --model weights.pth`: files, told by what they hold."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError, typed_reason
from camkit.models import fastai_pickle, labels, ultralytics
from camkit.models.checkpoint import WEIGHTS, WholeModel
from camkit.models.facts import ModelFacts
from camkit.models.objects import from_object, load_export
from camkit.models.weights_file import load_weights


class FileSource(ModelSource):
    """A file of weights, whose architecture is found by its tensors."""

    summary = "a file of weights (.pth, .ckpt, .safetensors); its architecture is found by its tensors"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The model in the file `reference`; whole models and exports of fastai need `trust`."""
        path = Path(reference)
        if fastai_pickle.is_export(path):
            return load_export(path, device, trust=trust)
        try:
            return load_weights(path, device=device)
        except WholeModel:
            if not trust:
                raise
        return _whole(path, device)

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"yolo": TABLE, "num_classes": N}`: a classifier of ultralytics by its table of layers."""
        count = architecture.get("num_classes")
        if not isinstance(count, int) or not 1 <= count <= 100_000:
            raise ModelError(f"architecture needs 1 to 100000 num_classes, not {count!r}")
        return cast("nn.Module", ultralytics.build(architecture.get("yolo"), count, "the bundle"))


def _whole(path: Path, device: torch.device) -> LoadedModel:
    """A module that `torch.save(model)` wrote; its pickle runs code, and the user allowed it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the source of a class has changed
            content: Any = torch.load(path, map_location="cpu", weights_only=False)
    except (AttributeError, ImportError, pickle.UnpicklingError) as error:
        raise ModelError(
            f"{path} needs the code that made it ({typed_reason(error)}): "
            "run camkit where that can be imported, such as with PYTHONPATH=."
        ) from None
    # Unpickling runs whatever the file says.
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded: {typed_reason(error)}") from None
    modules = [content.get(key) for key in WEIGHTS] if isinstance(content, Mapping) else [content]
    module = next((part for part in modules if isinstance(part, nn.Module)), None)
    if module is None:
        raise ModelError(f"{path} holds no module, but {type(content).__name__}")
    model = from_object(module.float().to(device).eval(), name=str(path))
    beside = [names for _, names in labels.beside(path)]
    if labels.named(model.classes) or not beside:
        return model
    counted = from_object(model, facts=ModelFacts())
    named = (names for names in beside if len(names) == len(counted.classes))
    return replace(model, classes=next(named, counted.classes))
