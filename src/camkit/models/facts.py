"""What belongs to a model and its file may not say: as a user gives it on the command line or in Python."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind, checked
from camkit.errors import ModelError, UsageError, counted
from camkit.images import channels
from camkit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, MAX_CHANNELS, Fit, Preprocess
from camkit.models import labels

CHANGES = ("size", "resize", "fit", "mean", "std")  # of what the model is shown

# By the channels of a photograph, the mean and std that may be assumed: for one, those in the middle of
# what is usual for three. What other channels hold nobody knows.
USUAL: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)),
    3: (IMAGENET_MEAN, IMAGENET_STD),
}


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
    the centre crop. mean, std: for each channel, of values in [0, 1]. channels: of the photographs. scores:
    what the outputs are. Raises `ModelError` for values that are none of these.
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
        if self.channels is not None and not 1 <= self.channels <= MAX_CHANNELS:
            raise ModelError(f"photographs have 1 to {MAX_CHANNELS} channels, not {self.channels}")
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
        preprocess, said = self._preprocess(model), self.said()
        notes = {name: text for name, text in model.notes.items() if name not in said}
        if "shown" in notes or preprocess.channels != model.preprocess.channels:
            notes["shown"] = assumed(preprocess, said)
        if preprocess.photo_channels != 3:
            notes["drawn"] = channels.remark(preprocess.photo_channels)
        return replace(
            model,
            classes=tuple(self.classes or model.classes),
            preprocess=preprocess,
            scores=self.scores or model.scores,
            notes={name: text for name, text in notes.items() if text},
            unsaid=(),
        )

    def _preprocess(self, model: LoadedModel) -> Preprocess:
        """A new size keeps the margin of the crop; without it, nothing else changes."""
        known = model.preprocess
        count = self.channels or len(self.mean or known.mean)
        changes = {name: value for name, value in self.said().items() if name in CHANGES}
        if self.size is not None and self.resize is None and isinstance(known.resize, int):
            height, width = (max(n, round(known.resize * n / min(known.size))) for n in self.size)
            changes["resize"] = height if height == width else (height, width)
        if self.fit in ("pad", "crop-first"):  # which know no margin
            changes["resize"] = None
        if self.channels in USUAL and count != known.channels:
            changes = {**dict(zip(("mean", "std"), USUAL[count], strict=True)), **changes}
        if changes.keys() & {"size", "resize", "fit"}:
            changes["presize"] = None  # which was for the size of before
        self._check_channels(model, count, changes)
        return replace(known, **changes)

    def _check_channels(self, model: LoadedModel, count: int, changes: Mapping[str, Any]) -> None:
        """`ModelError` unless mean and std are known for each channel, and the network takes so many."""
        own, numbers = model.preprocess.channels, counted(count, "number")
        takes = f"{model.name} takes photographs of {counted(own, 'channel')}"
        if model.architecture is not None and count != own:
            raise ModelError(f"{takes}, not of {count}")
        takes = f"{model.name} takes photographs of {counted(count, 'channel')}"
        if (set(model.unsaid) if count == own else {"mean", "std"}) - changes.keys():
            raise ModelError(
                f"{takes}, of which nobody knows mean and std: say --mean and --std, {numbers} each, of "
                "values in [0, 1]"
            )
        for name in ("mean", "std"):
            given = changes.get(name, getattr(model.preprocess, name))
            if len(given) != count:
                raise ModelError(f"{takes}, but {name} has {counted(len(given), 'number')}")


def prepared(usual: Preprocess, architecture: Mapping[str, Any]) -> Preprocess:
    """What is usual for an architecture, for the size and the channels that this one has.

    Where no mean and std are usual they are 0 and 1, until they are said: see `unsaid`.
    """
    size, channels = architecture.get("image_size"), architecture.get("channels", 3)
    if size and size != usual.size[0] and isinstance(usual.resize, int):
        usual = replace(usual, size=(size, size), resize=round(usual.resize * size / min(usual.size)))
    if channels != usual.channels:
        mean, std = USUAL.get(channels, ((0.0,) * channels, (1.0,) * channels))
        usual = replace(usual, mean=mean, std=std)
    return usual


def unsaid(channels: int) -> tuple[str, ...]:
    """What has to be said of photographs of so many channels, because nothing can be assumed."""
    return () if channels in USUAL else ("mean", "std")


def assumed(preprocess: Preprocess, said: Collection[str] = ()) -> str:
    """What is assumed of what a model is shown, but for what is `said`, with the options that change it."""
    margin = preprocess.resize
    shown = " x ".join(map(str, margin)) if isinstance(margin, tuple) else margin
    resize = f" out of {shown}" if shown else ""
    texts = {
        "size": f"{preprocess.size[0]} x {preprocess.size[1]}{resize}",
        "mean": f"mean {','.join(f'{value:.3g}' for value in preprocess.mean)}",
        "std": f"std {','.join(f'{value:.3g}' for value in preprocess.std)}",
    }
    open_ones = {name: text for name, text in texts.items() if name not in said}
    options = ", ".join(f"--{name}" for name in open_ones)
    return f"assumed: {', '.join(open_ones.values())} ({options}, or preprocess=)" if open_ones else ""


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
