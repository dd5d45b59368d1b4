"""What a training came to: curves, the confusion matrix, and the photographs that were judged worst."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from camkit import images, render
from camkit.api import LoadedModel, TrainResult
from camkit.errors import ModelError
from camkit.explanation import explain
from camkit.files import write_whole
from camkit.models import load_model
from camkit.scores import meaning, probabilities

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 32
WORST = 9


@dataclass(frozen=True)
class Verdicts:
    """What a model says to labelled photographs.

    probabilities: `[N, n_classes]`, on the CPU; labels: int64 `[N]`.
    """

    model: LoadedModel
    paths: tuple[Path, ...]
    labels: Tensor
    probabilities: Tensor

    @property
    def predicted(self) -> Tensor:
        """The most probable class of each photograph."""
        return self.probabilities.argmax(1)

    @property
    def losses(self) -> Tensor:
        """The cross-entropy of each photograph."""
        return -self.probabilities.gather(1, self.labels[:, None])[:, 0].log()

    @property
    def error_rate(self) -> float:
        """The share that is judged wrong."""
        return float((self.predicted != self.labels).float().mean())

    @property
    def confusion(self) -> Tensor:
        """Counts `[n_classes, n_classes]`: actual in rows, predicted in columns."""
        count = self.probabilities.shape[1]
        return torch.bincount(self.labels * count + self.predicted, minlength=count**2).reshape(
            count, count
        )

    def confused(self) -> list[tuple[str, str, int]]:
        """Pairs of actual and predicted class that were mistaken, most frequent first."""
        names = self.model.classes
        pairs = zip(self.labels.tolist(), self.predicted.tolist(), strict=True)
        count = Counter((names[a], names[p]) for a, p in pairs if a != p)
        return [(*pair, number) for pair, number in count.most_common()]


@torch.inference_mode()
def judge(model: LoadedModel, photos: Sequence[tuple[Path, str]]) -> Verdicts:
    """What `model` says to photographs with the class that is on them."""
    index = {name: number for number, name in enumerate(model.classes)}
    parts: list[Tensor] = []
    for start in range(0, len(photos), BATCH):
        batch = [model.preprocess(images.load(path).image) for path, _ in photos[start : start + BATCH]]
        scores = model.module(torch.stack(batch).to(model.device, model.dtype))
        parts.append(scores.float().cpu())
    labels = torch.tensor([index[name] for _, name in photos])
    found = torch.cat(parts)
    kind = meaning(model.scores, found, lambda: None)  # a trained classifier says what its scores are
    likely = probabilities(found, kind)
    if likely is None:
        raise ModelError(f"model {model.name!r} has no probabilities, so there is no report on its classes")
    return Verdicts(model, tuple(path for path, _ in photos), labels, likely)


def write(result: TrainResult, out: Path, *, device: str = "auto") -> tuple[Verdicts | None, list[Path]]:
    """Write the report of a training into `out`; what the bundle says to the held-out photographs.

    `history.csv` and `steps.csv` (loss and learning rate of every step), `curves.png`, `confusion.png`,
    `confused.csv` and `worst.png`: the photographs of highest loss, each with the Grad-CAM of the class
    that was predicted.
    """
    written = [
        _table(out / "history.csv", result.history),
        _table(out / "steps.csv", result.steps),
        picture(out / "curves.png", render.curves(result.history, result.steps))
        if result.history
        else None,
    ]
    verdicts = None
    if result.validation:
        verdicts = judge(load_model(result.bundle, device=device), result.validation)
        names = verdicts.model.classes
        pairs = [
            dict(zip(("actual", "predicted", "count"), row, strict=True)) for row in verdicts.confused()
        ]
        written += [
            picture(out / "confusion.png", render.confusion(verdicts.confusion.numpy(), names)),
            _table(out / "confused.csv", pairs),
            picture(out / "worst.png", worst(verdicts)),
        ]
    return verdicts, [path for path in written if path]


def worst(verdicts: Verdicts) -> Image:
    """The photographs of highest loss with the Grad-CAM of the predicted class, as one picture."""
    panels = []
    names = verdicts.model.classes
    order = verdicts.losses.argsort(descending=True)[:WORST].tolist()
    for i in order:
        actual, predicted = int(verdicts.labels[i]), int(verdicts.predicted[i])
        shown = explain(verdicts.model, verdicts.paths[i], target=predicted).overlay()
        said = verdicts.probabilities[i]
        title = f"{verdicts.paths[i].name}\nsaid {names[predicted]} {said[predicted]:.0%}\n"
        title += f"is {names[actual]}, given {said[actual]:.0%}, loss {abs(float(verdicts.losses[i])):.2f}"
        panels.append(render.Panel(title, shown))
    rows = [panels[start : start + 3] for start in range(0, len(panels), 3)]
    return render.sheet(rows, "highest losses: predicted and actual class, Grad-CAM of the predicted")


def _table(path: Path, rows: Sequence[Mapping[str, object]]) -> Path | None:
    if not rows:
        return None
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return write_whole(path, buffer.getvalue().encode())


def picture(path: Path, image: Image) -> Path:
    """Write a picture as PNG; the folder is made if there is none."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return write_whole(path, buffer.getvalue())


def lines(verdicts: Verdicts, count: int = 5) -> Iterable[str]:
    """The report in words."""
    wrong, total = int((verdicts.predicted != verdicts.labels).sum()), len(verdicts.paths)
    yield f"error {verdicts.error_rate:.1%}: {wrong} of {total} held-out photographs"
    for actual, predicted, number in verdicts.confused()[:count]:
        yield f"  {actual} taken for {predicted}: {number}"
