"""The folder of a training: a checkpoint while it lasts, then result and bundle, each whole or missing."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torchvision

import camkit
from camkit.contracts.model import LoadedModel
from camkit.contracts.trainer import TrainRequest, TrainResult
from camkit.errors import CamkitError, UsageError, reason
from camkit.files import cause, check_writable, digest, digest_of, is_file, sweep, writing
from camkit.models import torch_file_check
from camkit.models.bundle import config_text, save_bundle
from camkit.training import result
from camkit.training.dataset import Dataset, facts
from camkit.training.result import BUNDLE, CHECKPOINT

# The figures of an epoch that a user reads.
SHOWN = {"error_rate": "error", "mean_average_precision": "mean average precision", "f1": "F1"}
ROOM = 2**20  # bytes of a bundle's facts that are left for the history of the training


def is_main() -> bool:
    """Whether this process writes: it is the only one, or the first of several under a launcher."""
    return os.environ.get("RANK", "0") == "0"


def report_line(epoch: int, total: int, figures: Mapping[str, float]) -> str:
    """What a user reads after an epoch, counted from 1."""
    shown = [f"{name} {figures[key]:.1%}" for key, name in SHOWN.items() if key in figures]
    losses = f"train loss {figures['train_loss']:.3f}, valid loss {figures['valid_loss']:.3f}"
    return f"epoch {epoch}/{total}, {', '.join([losses, *shown])}"


def clear(out: Path) -> None:
    """Remove what a finished training needs no more, also one that was killed behind its bundle."""
    with suppress(OSError):
        (out / CHECKPOINT).unlink()
    sweep(out, below=False)


class Run:
    """One training in `request.out`; of several processes that train together the first one writes.

    Raises `UsageError` if the folder holds another training than the one that is asked for, and
    `CamkitError` if nothing can be written there.
    """

    def __init__(self, trainer: str, request: TrainRequest) -> None:
        self.out = request.out
        self._request, self._trainer = request, trainer
        result.check_free(self.out, resume=request.resume)
        check_writable(self.out)
        if is_main():
            sweep(self.out, below=False)

    @property
    def _checkpoint(self) -> Path:
        return self.out / CHECKPOINT

    def load(self, data: Dataset) -> dict[str, Any]:
        """The state after the last finished epoch on `data`.

        `epoch`, `history`, `steps` and what else was saved; before the first epoch these three alone.
        """
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CamkitError(f"cannot write into {self.out}: {error.strerror}") from None
        self._data, self._identity = data, _identity(self._trainer, self._request, data)
        if not os.path.lexists(self._checkpoint):
            return {"epoch": 0, "history": [], "steps": []}
        state = _read(self._checkpoint)
        known = state["identity"]  # of an older camkit it knows less
        other = [name for name, value in self._identity.items() if known.get(name, value) != value]
        if other:
            raise UsageError(another(self.out, other))
        return state

    def begin(
        self,
        model: LoadedModel,
        valid: Sequence[int],
        *,
        recipe: Mapping[str, Any],
        half: bool = False,
        packages: Sequence[str] = (),
    ) -> list[str]:
        """What is about to be trained, and on what, in lines that a user reads.

        `ModelError` if no bundle could hold it, before any training.

        recipe: every value that is used, also those that the user left to the trainer.
        half: weights as float16. packages: those whose versions matter besides camkit and torch.
        """
        request, data = self._request, self._data
        chosen = set(valid)
        names = [data.name(i) for i in range(len(data.paths))]
        self._model, self._valid, self._half = model, valid, half
        known = facts(data, valid, recipe)
        told: list[str] = known.pop("told")
        self._told = told
        self._facts: dict[str, Any] = {
            "trainer": self._trainer,
            "recipe": dict(recipe),
            "arch": request.arch,
            "weights": request.weights if request.weights in ("default", "none") else "file",
            "seed": request.seed,
            "precision": request.precision,
            "split": {
                "train": [name for i, name in enumerate(names) if i not in chosen],
                "valid": [name for i, name in enumerate(names) if i in chosen],
            },
            "data": known,
            "versions": {
                "camkit": camkit.__version__,
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in packages},
            },
        }
        config_text(model, self._facts, room=ROOM)
        return told

    @contextmanager
    def restoring(self) -> Iterator[None]:
        """What does not fit becomes one line that names the checkpoint."""
        try:
            yield
        # The values are of a file, and torch raises nearly anything on what it did not write.
        except Exception as error:
            raise _damaged(self._checkpoint, f"does not fit this training ({reason(error)})") from error

    def save(
        self,
        *,
        epoch: int,
        history: Sequence[Mapping[str, float]],
        steps: Sequence[Mapping[str, float]],
        **parts: Any,
    ) -> None:
        """Keep the state after `epoch` epochs in place of the last one; `CamkitError` if they diverged.

        parts: tensors, numbers, texts, lists and dicts of them.
        """
        for name, figure in history[-1].items():
            if not math.isfinite(figure):
                raise CamkitError(
                    f"{name} of epoch {epoch} is {figure}: the training diverged; lower the rates of the "
                    "recipe, and choose another --out"
                )
        if not is_main():
            return
        state = {"identity": self._identity, "epoch": epoch, "history": history, "steps": steps, **parts}
        try:
            with writing(self._checkpoint) as file:
                torch.save(state, file)
        except (OSError, RuntimeError) as error:  # of torch, for a full disk
            raise CamkitError(f"cannot write {self._checkpoint}: {reason(cause(error))}") from None

    def finish(
        self,
        metrics: Mapping[str, float],
        history: Sequence[Mapping[str, float]],
        steps: Sequence[Mapping[str, float]],
    ) -> TrainResult:
        """Write the result and the bundle, with what an auditor would ask, and drop the checkpoint.

        It goes last, so that whatever happens before, `resume` comes here again.
        """
        data = self._data
        made = TrainResult(
            self.out / BUNDLE,
            metrics,
            tuple(history),
            tuple(steps),
            tuple((data.paths[i], data.label(i)) for i in self._valid),
            {name: count for name, (count, _) in self._facts["data"]["classes"].items()},
            tuple(self._told),
            len(data.skipped),
        )
        if is_main():
            result.write(made, data.root, asked(self._trainer, self._request))
            facts = {"metrics": dict(metrics), **self._facts, "history": [dict(epoch) for epoch in history]}
            save_bundle(self._model, made.bundle, half=self._half, **facts)
            clear(self.out)
        return made


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint: tensors, numbers and texts only, so that one from a stranger runs no code."""
    if not is_file(path):
        raise _damaged(path, "is no regular file")
    try:
        file = path.open("rb")
    except OSError as error:
        raise CamkitError(f"{path} cannot be read: {reason(error)}") from None
    try:
        torch_file_check.check(path)
        with file:
            state = dict(torch.load(file, map_location="cpu", weights_only=True))
        state["identity"] = dict(state["identity"])
        for name in ("history", "steps"):
            state[name] = list(map(result.figures, state[name]))
        if type(state["epoch"]) is not int or state["epoch"] != len(state["history"]):
            raise ValueError
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        thing = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise _damaged(path, f"holds {thing[1]}, which could run code" if thing else "is damaged") from None
    # Torch raises almost anything on a damaged file.
    except Exception:
        raise _damaged(path, "is damaged, or no checkpoint of camkit") from None
    return state


def _damaged(path: Path, what: str) -> CamkitError:
    return CamkitError(f"{path} {what}: remove it to begin anew, or choose another --out")


def another(out: Path, parts: Sequence[str]) -> str:
    """What is said of a folder whose training differs in these parts from the one that is asked for."""
    return f"{out} holds a training with another {' and '.join(parts)}: choose another --out"


def asked(trainer: str, request: TrainRequest) -> dict[str, str]:
    """Hashes of what a training is asked for, but for its photographs; of weights by their contents.

    Without these where their file is gone, as it may be once the training is finished.
    """
    facts: dict[str, Any] = {
        "trainer": trainer,
        "recipe": request.recipe,
        "architecture": request.arch,
        "weights": request.weights,
        "seed": request.seed,
        "precision": request.precision,
    }
    if request.weights not in ("default", "none"):
        file = Path(facts.pop("weights"))
        facts |= {"content of its weights": digest_of(file)} if file.exists() else {}
    return _hashes(facts)


def _identity(trainer: str, request: TrainRequest, data: Dataset) -> dict[str, str]:
    """Two trainings with the same identity go the same way."""
    names: list[Any] = [[data.name(i), label] for i, label in enumerate(data.labels)]
    if data.held_out is not None:
        names.append(sorted(data.held_out))
    return {
        **asked(trainer, request),
        **_hashes({"data": names, "content of its photographs": digest(data.paths)}),
    }


def _hashes(facts: Mapping[str, Any]) -> dict[str, str]:
    texts = {name: json.dumps(fact, sort_keys=True) for name, fact in facts.items()}
    return {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
