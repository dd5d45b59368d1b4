"""What a training came to: curves, the confusion matrix, and the photographs that were judged worst."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import meaning, probabilities
from camkit.contracts.trainer import TrainResult
from camkit.drawing import charts, sheet
from camkit.errors import UNPRINTABLE, ModelError, printable
from camkit.explaining.explain import explain
from camkit.files import write_whole
from camkit.images import decoding, finding
from camkit.models.loading import load_quietly
from camkit.pages import page
from camkit.training import training_page
from camkit.training.label_verdicts import LabelVerdicts

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 32
WORST = 9
MOST = 300  # classes in a confusion matrix
# The files, in the order in which they are written, by the part of a result that they show.
FILES = {
    "history.csv": "history",
    "steps.csv": "steps",
    "curves.png": "history",
    "confusion.png": "validation",
    "confused.csv": "validation",
    "classes.csv": "validation",
    "worst.png": "validation",
    page.NAME: "bundle",
}
EXCLUSIVE = {"confusion.png", "confused.csv"}  # several labels are not taken for each other
# What a spreadsheet would compute, unless it is a number.
FORMULA = re.compile(r"(?![+-]?[0-9]+([.,][0-9]+)?\Z)[=+\-@＝＋－＠]")


@dataclass(frozen=True)
class Verdicts:
    """What a model says to labelled photographs.

    probabilities: `[N, n_classes]`, on the CPU; labels: int64 `[N]`.
    """

    CAPTION: ClassVar = "highest losses: predicted and actual class, Grad-CAM of the predicted"

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

    def confusion(self, most: int = MOST) -> tuple[Tensor, list[str]]:
        """Counts `[n, n]`, actual in rows, predicted in columns, with the names of the `n` classes.

        most: of more classes than these the ones that are mistaken most often.
        """
        count = self.probabilities.shape[1]
        wrong = self.predicted != self.labels
        mistaken = torch.cat([self.labels[wrong], self.predicted[wrong]]).bincount(minlength=count)
        shown = mistaken.argsort(descending=True, stable=True)[:most].sort().values
        place = torch.full((count,), -1)
        place[shown] = torch.arange(len(shown))
        rows, columns = place[self.labels], place[self.predicted]
        cells = (rows * len(shown) + columns)[(rows >= 0) & (columns >= 0)]
        matrix = cells.bincount(minlength=len(shown) ** 2).reshape(len(shown), len(shown))
        return matrix, [self.model.classes[i] for i in shown.tolist()]

    def confused(self) -> list[tuple[str, str, int]]:
        """Pairs of actual and predicted class that were mistaken, most frequent first."""
        names = self.model.classes
        pairs = zip(self.labels.tolist(), self.predicted.tolist(), strict=True)
        count = Counter((names[a], names[p]) for a, p in pairs if a != p)
        return [(*pair, number) for pair, number in count.most_common()]

    def classes(self) -> list[dict[str, object]]:
        """For each class the held-out photographs, and which share of them and of what is said is right."""
        count = self.probabilities.shape[1]
        actual, said = (part.bincount(minlength=count) for part in (self.labels, self.predicted))
        right = self.labels[self.predicted == self.labels].bincount(minlength=count)
        return [
            {"held_out": held_out, "recall": _share(hits, held_out), "precision": _share(hits, called)}
            | {"f1": _share(2 * hits, held_out + called)}
            for held_out, called, hits in zip(actual.tolist(), said.tolist(), right.tolist(), strict=True)
        ]

    def worst(self, index: int) -> tuple[int, str]:
        """The class to look at in a photograph, and what is wrong with it."""
        actual, predicted = int(self.labels[index]), int(self.predicted[index])
        names, likely = self.model.classes, self.probabilities[index]
        return predicted, (
            f"said {printable(names[predicted])} {likely[predicted]:.0%}\n"
            f"is {printable(names[actual])}, given {likely[actual]:.0%}, "
        )

    def lines(self, count: int = 5) -> Iterable[str]:
        """The report in words."""
        wrong, total = int((self.predicted != self.labels).sum()), len(self.paths)
        yield f"error {self.error_rate:.1%}: {wrong} of {total} held-out photographs"
        for actual, predicted, number in self.confused()[:count]:
            yield f"  {actual} taken for {predicted}: {number}"


def _share(part: int, whole: int) -> float | str:
    """A share, or nothing where there is nothing to share."""
    return part / whole if whole else ""


@torch.inference_mode()
def judge(
    model: LoadedModel, photos: Sequence[tuple[Path, str | tuple[str, ...]]]
) -> Verdicts | LabelVerdicts:
    """What `model` says to photographs with the class that is on them, or with their several labels."""
    index = {name: number for number, name in enumerate(model.classes)}
    several = any(isinstance(label, tuple) for _, label in photos)
    named = [(label,) if isinstance(label, str) else label for _, label in photos]
    if unknown := {name for names in named for name in names} - index.keys():
        raise ModelError(f"model {model.name!r} has no class {min(unknown)!r}, which photographs are of")
    parts: list[Tensor] = []
    for start in range(0, len(photos), BATCH):
        batch = [model.preprocess(decoding.load(path).image) for path, _ in photos[start : start + BATCH]]
        scores = model.module(torch.stack(batch).to(model.device, model.dtype))
        parts.append(scores.float().cpu())
    found = torch.cat(parts)
    kind = meaning(model.scores, found, lambda: None)  # a trained classifier says what its scores are
    likely = probabilities(found, kind)
    if likely is None:
        raise ModelError(f"model {model.name!r} has no probabilities, so there is no report on its classes")
    paths = tuple(path for path, _ in photos)
    if not several:
        return Verdicts(model, paths, torch.tensor([index[name] for (name,) in named]), likely)
    truth = torch.zeros(likely.shape)
    for row, names in enumerate(named):
        truth[row, [index[name] for name in names]] = 1
    return LabelVerdicts(model, paths, truth, likely)


def write(
    result: TrainResult, out: Path, *, device: str = "auto"
) -> tuple[Verdicts | LabelVerdicts | None, list[Path]]:
    """Write the report of a training into `out`; what the bundle says to the held-out photographs.

    `history.csv` and `steps.csv` (loss and learning rate of every step), `curves.png`, `confusion.png`,
    `confused.csv`, `classes.csv` (photographs and figures of each class), `worst.png` (the photographs of
    highest loss, each with the Grad-CAM of the class that was predicted, or of several labels the worst)
    and `index.html`, which shows all of it. Raises `CamkitError` if another page has that name.
    """
    page.check_ours(out / page.NAME)
    if result.history:
        write_whole(out / "history.csv", table(result.history))
    if result.steps:
        write_whole(out / "steps.csv", table(result.steps))
    if result.history:
        picture(out / "curves.png", charts.curves(result.history, result.steps))
    verdicts, shown = None, training_page.text(result, ())
    if result.validation:
        verdicts = judge(load_quietly(result.bundle, device=device), result.validation)
        if isinstance(verdicts, Verdicts):
            _write_confusion(verdicts, out)
        classes, panels = _classes(verdicts, result), worst(verdicts)
        write_whole(out / "classes.csv", table(classes))
        rows = [panels[start : start + 3] for start in range(0, len(panels), 3)]
        picture(out / "worst.png", sheet.sheet(rows, verdicts.CAPTION))
        said = {} if isinstance(verdicts, LabelVerdicts) else _mistaken(verdicts)
        words = list(verdicts.lines())
        shown = training_page.text(result, words, panels, verdicts.CAPTION, classes, **said)
    write_whole(out / page.NAME, shown)
    return verdicts, due(result, out)


def due(result: TrainResult, out: Path) -> list[Path]:
    """The files that the report of a result consists of."""
    several = any(isinstance(label, tuple) for _, label in result.validation)
    left_out = EXCLUSIVE if several else set()
    return [out / name for name, part in FILES.items() if getattr(result, part) and name not in left_out]


def _write_confusion(verdicts: Verdicts, out: Path) -> None:
    columns = ("actual", "predicted", "count")
    pairs = [dict(zip(columns, row, strict=True)) for row in verdicts.confused()]
    counts, names = verdicts.confusion()
    many = len(verdicts.model.classes)
    title = f"the {len(names)} of {many} classes that are mistaken most often" * (len(names) < many)
    picture(out / "confusion.png", charts.confusion(counts.numpy(), names, title))
    write_whole(out / "confused.csv", table(pairs, columns))


def _classes(verdicts: Verdicts | LabelVerdicts, result: TrainResult) -> list[dict[str, object]]:
    """A row for each class: how many photographs there were, and how well it is told."""
    return [
        {"class": name, "trained_on": int(result.trained_on.get(name, 0)), **figures}
        for name, figures in zip(verdicts.model.classes, verdicts.classes(), strict=True)
    ]


def _mistaken(verdicts: Verdicts) -> dict[str, Any]:
    """What the page tells of classes that are taken for each other."""
    return {"pairs": verdicts.confused(), "confusion": verdicts.confusion(training_page.MOST)}


def worst(verdicts: Verdicts | LabelVerdicts) -> list[sheet.Panel]:
    """The photographs of highest loss with the Grad-CAM of the class that is wrong, the worst first."""
    panels = []
    order = verdicts.losses.argsort(descending=True)[:WORST].tolist()
    for i in order:
        target, said = verdicts.worst(i)
        shown = explain(verdicts.model, verdicts.paths[i], target=target).overlay(caption=False)
        loss = f"loss {abs(float(verdicts.losses[i])):.2f}"
        panels.append(sheet.Panel(f"{finding.display(verdicts.paths[i].name)}\n{said}{loss}", shown))
    return panels


def table(rows: Sequence[Mapping[str, object]], columns: Sequence[str] = ()) -> str:
    """Rows as CSV, of which a spreadsheet computes nothing; columns: by default every one that there is."""
    columns = columns or list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(map(cell, columns))
    writer.writerows([cell(row.get(column, "")) for column in columns] for row in rows)
    return buffer.getvalue()


def cell(value: object) -> object:
    """A value of a table; before a text that a spreadsheet takes for a formula there is an apostrophe."""
    if not isinstance(value, str):
        return value
    text = UNPRINTABLE.sub(lambda sign: ascii(sign[0])[1:-1], value)
    return f"'{text}" if FORMULA.match(text) else text


def picture(path: Path, image: Image) -> Path:
    """Write a picture as PNG; the folder is made if there is none."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return write_whole(path, buffer.getvalue())
