"""The folder of a training: a checkpoint while it lasts, a bundle at the end, each whole or not there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torchvision

import camkit
from camkit.api import LoadedModel, TrainRequest, TrainResult
from camkit.bundle import save_bundle
from camkit.dataset import Dataset
from camkit.errors import CamkitError, UsageError
from camkit.files import writing
from camkit.weights import first_line

CHECKPOINT, BUNDLE = "checkpoint.pt", "bundle"


def is_main() -> bool:
    """Whether this process writes: it is the only one, or the first of several under a launcher."""
    return os.environ.get("RANK", "0") == "0"


def report_line(epoch: int, total: int, figures: Mapping[str, float]) -> str:
    """What a user reads after an epoch, counted from 1."""
    return (
        f"epoch {epoch}/{total}, train loss {figures['train_loss']:.3f}, valid loss "
        f"{figures['valid_loss']:.3f}, error {figures['error_rate']:.1%}"
    )


class Run:
    """One training in `request.out`; of several processes that train together the first one writes.

    Raises `UsageError` if the folder holds another training than the one that is asked for.
    """

    def __init__(self, trainer: str, request: TrainRequest) -> None:
        self.out = request.out
        self._request, self._trainer = request, trainer
        if (self.out / BUNDLE).exists():
            raise UsageError(f"{self.out} holds a trained model already: choose another --out")
        if self._checkpoint.exists() and not request.resume:
            raise UsageError(
                f"{self.out} holds an unfinished training: go on with --resume, or choose another --out"
            )

    @property
    def _checkpoint(self) -> Path:
        return self.out / CHECKPOINT

    def load(self, data: Dataset) -> dict[str, Any] | None:
        """The state after the last finished epoch on `data`, if there is one to go on from."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamkitError(f"cannot write into {self.out}: {error.strerror}") from None
        self._data, self._identity = data, _identity(self._trainer, self._request, data)
        if not self._checkpoint.exists():
            return None
        try:
            # Tensors, numbers and texts only: a checkpoint from a stranger runs no code.
            state: dict[str, Any] = torch.load(self._checkpoint, map_location="cpu", weights_only=True)
            identity = dict(state.pop("identity"))
        except Exception as error:
            raise CamkitError(f"{self._checkpoint} cannot be read: {first_line(error)}") from None
        other = [name for name, value in self._identity.items() if identity.get(name) != value]
        if other:
            raise UsageError(
                f"{self.out} holds a training with another {' and '.join(other)}: choose another --out"
            )
        return state

    def save(self, **state: Any) -> None:
        """Keep `state` (tensors, numbers, texts, lists and dicts of them) in place of the last one."""
        if not is_main():
            return
        try:
            with writing(self._checkpoint) as file:
                torch.save({"identity": self._identity, **state}, file)
        except (OSError, RuntimeError) as error:  # of torch, for a full disk
            raise CamkitError(f"cannot write {self._checkpoint}: {first_line(error)}") from None

    def finish(
        self,
        model: LoadedModel,
        valid: Sequence[int],
        metrics: Mapping[str, float],
        history: Sequence[Mapping[str, float]],
        steps: Sequence[Mapping[str, float]],
        *,
        recipe: Mapping[str, Any],
        half: bool = False,
        packages: Sequence[str] = (),
    ) -> TrainResult:
        """Write the bundle, with what an auditor would ask, and drop the checkpoint.

        recipe: every value that was used, also those that the user left to the trainer.
        half: weights as float16. packages: those whose versions matter besides camkit and torch.
        """
        request, data = self._request, self._data
        chosen = set(valid)
        names = [data.name(i) for i in range(len(data.paths))]
        photos = tuple((data.paths[i], data.classes[data.labels[i]]) for i in valid)
        bundle = self.out / BUNDLE
        result = TrainResult(bundle, metrics, tuple(history), tuple(steps), photos)
        if not is_main():
            return result
        save_bundle(
            model,
            bundle,
            half=half,
            metrics=dict(metrics),
            trainer=self._trainer,
            recipe=dict(recipe),
            arch=request.arch,
            weights=request.weights if request.weights in ("default", "none") else "file",
            seed=request.seed,
            precision=request.precision,
            history=[dict(epoch) for epoch in history],
            split={
                "train": [name for i, name in enumerate(names) if i not in chosen],
                "valid": [name for i, name in enumerate(names) if i in chosen],
            },
            versions={
                "camkit": camkit.__version__,
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in packages},
            },
        )
        self._checkpoint.unlink(missing_ok=True)
        return result


def _identity(trainer: str, request: TrainRequest, data: Dataset) -> dict[str, str]:
    """Two trainings with the same identity go the same way."""
    names = [[data.name(i), label] for i, label in enumerate(data.labels)]
    facts = {
        "trainer": trainer,
        "recipe": request.recipe,
        "architecture": request.arch,
        "weights": request.weights,
        "seed": request.seed,
        "precision": request.precision,
        "data": names,
    }
    texts = {name: json.dumps(fact, sort_keys=True) for name, fact in facts.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
