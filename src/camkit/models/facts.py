"""What belongs to a model and its file may not say: as a user gives it on the command line or in Python."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind, checked
from camkit.errors import ModelError, UsageError, counted
from camkit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Fit, Preprocess
from camkit.models import labels

CHANGES = ("size", "resize", "fit", "mean", "std")  # of what the model is shown


# Of one channel nothing is usual; the mean of what is usual for three is in the middle of it.
GREY_MEAN, GREY_STD = (sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)


class Facts(TypedDict, total=False):
    """The fields of `ModelFacts`, as keywords."""

    arch: str | None
    classes: Sequence[str] | None
    size: tuple[int, int] | None
    resize: int | None
    fit: Fit | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    channels: int | None
    scores: ScoreKind | None


@dataclass(frozen=True)
class ModelFacts:
    """What a user says of a model; `None` of what is not said.

    arch: the architecture of a file of weights, `timm:resnet18`. classes: names in the order of the
    outputs. size: height and width in pixels of what the model sees. resize: shorter side in pixels before
    the centre crop. mean, std: for each channel, of values in [0, 1]. channels: 1 or 3. scores: what the
    outputs are. Raises `ModelError` for values that are none of these.
    """

    arch: str | None = None
    classes: Sequence[str] | None = None
    size: tuple[int, int] | None = None
    resize: int | None = None
    fit: Fit | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    channels: int | None = None
    scores: ScoreKind | None = None

    def __post_init__(self) -> None:
        if self.scores is not None:
            checked(self.scores)
        if self.channels not in (None, 1, 3):
            raise ModelError(f"photographs have 1 channel or 3, not {self.channels}")
        if self.classes is not None:
            labels.checked(self.classes, "classes")

    @classmethod
    def parse(cls, texts: Mapping[str, str | int | None]) -> ModelFacts:
        """From the texts of the command line. `UsageError` for one that cannot be read."""
        readers: dict[str, Any] = {
            "classes": labels.parse,
            "size": _size,
            "mean": _numbers,
            "std": _numbers,
        }
        said = {name: text for name, text in texts.items() if text is not None}
        return cls(**{name: readers.get(name, lambda text: text)(text) for name, text in said.items()})

    def said(self) -> dict[str, Any]:
        """What is said, by its name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def apply(self, model: LoadedModel) -> LoadedModel:
        """`model` with what is said of it. `ModelError` where that cannot be of this model."""
        if self.classes is not None and len(self.classes) != len(model.classes):
            raise ModelError(
                f"{counted(len(self.classes), 'class', 'classes')} are named, but {model.name} has "
                f"{counted(len(model.classes), 'output')}"
            )
        preprocess, said = self._preprocess(model.preprocess), self.said()
        notes = {name: text for name, text in model.notes.items() if name not in said}
        if "shown" in notes:
            notes["shown"] = assumed(preprocess, said)
        return replace(
            model,
            classes=tuple(self.classes or model.classes),
            preprocess=preprocess,
            scores=self.scores or model.scores,
            notes={name: text for name, text in notes.items() if text},
        )

    def _preprocess(self, known: Preprocess) -> Preprocess:
        """A new size keeps the margin of the crop; without it, nothing else changes."""
        changes = {name: value for name, value in self.said().items() if name in CHANGES}
        if self.size is not None and self.resize is None and isinstance(known.resize, int):
            changes["resize"] = max(min(self.size), round(known.resize * min(self.size) / min(known.size)))
        if self.fit in ("pad", "crop-first"):  # which know no margin
            changes["resize"] = None
        if self.channels == 1 and len(known.mean) != 1:
            changes = {"mean": GREY_MEAN, "std": GREY_STD, **changes}
        if changes.keys() & {"size", "resize", "fit"}:
            changes["presize"] = None  # which was for the size of before
        return replace(known, **changes)


def prepared(usual: Preprocess, architecture: Mapping[str, Any]) -> Preprocess:
    """What is usual for an architecture, for the size and the channels that this one has."""
    size, channels = architecture.get("image_size"), architecture.get("channels", 3)
    if size and size != usual.size[0] and isinstance(usual.resize, int):
        usual = replace(usual, size=(size, size), resize=round(usual.resize * size / min(usual.size)))
    if channels == 1:
        usual = replace(usual, mean=GREY_MEAN, std=GREY_STD)
    return usual


def assumed(preprocess: Preprocess, said: Collection[str] = ()) -> str:
    """What is assumed of what a model is shown, but for what is `said`, with the options that change it."""
    resize = f" out of {preprocess.resize}" if preprocess.resize else ""
    texts = {
        "size": f"{preprocess.size[0]} x {preprocess.size[1]}{resize}",
        "mean": f"mean {','.join(f'{value:.3g}' for value in preprocess.mean)}",
        "std": f"std {','.join(f'{value:.3g}' for value in preprocess.std)}",
    }
    unsaid = {name: text for name, text in texts.items() if name not in said}
    options = ", ".join(f"--{name}" for name in unsaid)
    return f"assumed: {', '.join(unsaid.values())} ({options}, or preprocess=)" if unsaid else ""


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:[x,×](\d{1,4}))?", text.strip())
    if not found:
        raise UsageError(f"--size is 224, or HEIGHTxWIDTH such as 160x224, not {text!r}")
    height = int(found[1])
    return height, int(found[2] or height)


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"a mean or std is 0.5,0.5,0.5 (one number for each channel), not {text!r}"
        ) from None
