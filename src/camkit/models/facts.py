"""What belongs to a model and its file may not say: as a user gives it on the command line or in Python."""

from __future__ import annotations

import math
import operator
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind, checked
from camkit.errors import CamkitError, ModelError, UsageError, closest, counted
from camkit.images import channels
from camkit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, MAX_CHANNELS, Fit, Preprocess
from camkit.models import labels

MAX_TOLD = 40  # classes that every line of a manifest names
MAX_STD = 10  # above it is that of bytes; some are larger than 1
CHANGES = ("size", "resize", "fit", "mean", "std")  # of what the model is shown

# By the channels of a photograph, the mean and std that may be assumed: for one, those in the middle of
# what is usual for three. What other channels hold nobody knows.
USUAL: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((sum(IMAGENET_MEAN) / 3,), (sum(IMAGENET_STD) / 3,)),
    3: (IMAGENET_MEAN, IMAGENET_STD),
}


# What other libraries call the arguments of `load_model` and `explain`.
CALLED_HERE = {
    **dict.fromkeys(("transform", "transforms", "processor", "image_processor"), "preprocess"),
    **dict.fromkeys(("class_names", "labels", "categories", "id2label"), "classes"),
    **dict.fromkeys(("image_size", "img_size", "input_size"), "size"),
    **dict.fromkeys(("target_layer", "target_layers"), "layer"),
    **dict.fromkeys(("target_class", "class_idx", "category"), "target"),
}


def called_here(name: str) -> str:
    """A half-sentence with what an argument of another library is called here; "" for any other."""
    return f": it is called {CALLED_HERE[name]}= here" if name in CALLED_HERE else ""


class Facts(TypedDict, total=False):
    """The fields of `ModelFacts`, as keywords: also as other libraries have their values."""

    arch: str | None
    classes: str | os.PathLike[str] | Iterable[str] | Mapping[str, int] | Mapping[int, str] | None
    size: int | Sequence[int] | None
    resize: int | None
    fit: Fit | None
    mean: Sequence[float] | None
    std: Sequence[float] | None
    channels: int | None
    scores: ScoreKind | None


@dataclass(frozen=True)
class ModelFacts:
    """What a user says of a model; `None` of what is not said.

    arch: the architecture of a file of weights, `timm:resnet18`. classes: names in the order of the
    outputs. size: height and width in pixels of what the model sees. resize: shorter side in pixels before
    the centre crop. mean, std: for each channel, of values in [0, 1]. channels: of the photographs. scores:
    what the outputs are. output: the index or key of the scores in what the model returns. Raises
    `ModelError` for values that are none of these.
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
    output: str | int | None = None

    def __post_init__(self) -> None:
        if self.scores is not None:
            checked(self.scores)
        if self.channels is not None and not 1 <= self.channels <= MAX_CHANNELS:
            raise ModelError(f"photographs have 1 to {MAX_CHANNELS} channels, not {self.channels}")
        if self.classes is not None:
            labels.checked(self.classes, "classes")
        if self.mean is not None and len(self.mean) in USUAL and not all(0 <= m <= 1 for m in self.mean):
            told = ",".join(f"{value:g}" for value in self.mean)
            raise ModelError(
                f"mean is of values in [0, 1], not {told}: divide those of bytes, and std, by 255"
            )
        if self.std is not None and len(self.std) in USUAL and max(self.std) > MAX_STD:
            told = ",".join(f"{value:g}" for value in self.std)
            raise ModelError(f"std is of values in [0, 1], not {told}: divide that of bytes by 255")

    @classmethod
    def parse(cls, texts: Mapping[str, str | int | None]) -> ModelFacts:
        """From the texts of the command line. `UsageError` for one that cannot be read."""
        readers: dict[str, Any] = {
            "classes": labels.parse,
            "size": _size,
            "mean": _numbers,
            "std": _numbers,
            "output": lambda text: int(text) if re.fullmatch(r"-?\d{1,4}", text) else text,
        }
        said = {name: text for name, text in texts.items() if text is not None}
        return cls(**{name: readers.get(name, lambda text: text)(text) for name, text in said.items()})

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> ModelFacts:
        """From the arguments of a call in Python. `UsageError` for one that is none, or cannot be that."""
        for name in values.keys() - Facts.__annotations__.keys():
            raise UsageError(
                f"load_model takes no {name}={called_here(name) or closest(name, cls.__dataclass_fields__)}"
            )
        said = {name: value for name, value in values.items() if value is not None}
        for name in said.keys() & VALUES.keys():
            reader, meant = VALUES[name]
            try:
                said[name] = reader(said[name])
            except (TypeError, ValueError):
                raise UsageError(f"{name}= is {meant}, not {said[name]!r}") from None
        return cls(**said)

    def said(self) -> dict[str, Any]:
        """What is said, by its name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def told(self) -> dict[str, Any]:
        """What is said, as a line of a manifest tells it: of many classes only how many there are."""
        said = self.said()
        if self.classes is not None:
            count = len(self.classes)
            said["classes"] = list(self.classes) if count <= MAX_TOLD else count
        return {name: list(value) if isinstance(value, tuple) else value for name, value in said.items()}

    def apply(self, model: LoadedModel) -> LoadedModel:
        """`model` with what is said of it. `ModelError` where that cannot be of this model."""
        if self.classes is not None and len(self.classes) != len(model.classes):
            are = "class is" if len(self.classes) == 1 else "classes are"
            alone = (len(self.classes), len(model.classes)) == (2, 1)
            raise ModelError(
                f"{len(self.classes)} {are} named, but {model.name} has "
                f"{counted(len(model.classes), 'output')}"
                + ", whose probability is that of one class: name this one alone"
                * alone
            )
        preprocess, said = self.shown(model), self.said()
        notes = {name: text for name, text in model.notes.items() if name not in {*said, "drawn"}}
        if "shown" in notes and "size" in {*said, *notes} and not {"resize", "fit"} & said.keys():
            # Who says the size, mean and std need not be warned of it, but it is one way among others.
            notes["cut"] = "" if preprocess.resize else "cut without a margin (--resize, --fit)"
        if "shown" in notes or preprocess.channels != model.preprocess.channels:
            notes["shown"] = assumed(preprocess, {*said, *notes})  # of what its file says there are notes
        if preprocess.photo_channels != 3:
            notes["drawn"] = channels.remark(preprocess.photo_channels)
        made = replace(
            model,
            classes=tuple(self.classes or model.classes),
            preprocess=preprocess,
            scores=self.scores or model.scores,
            unsaid=(),
        )
        if preprocess.size != model.preprocess.size and model.default_layer == "auto":
            notes["layer"] = _moved(_automatic(model), _automatic(made), preprocess.size)
        return replace(made, notes={name: text for name, text in notes.items() if text})

    def shown(self, model: LoadedModel) -> Preprocess:
        """What the model is shown: a new size keeps the margin of a crop, and nothing else changes."""
        known = model.preprocess
        count = self.channels or len(self.mean or known.mean)
        changes = {name: value for name, value in self.said().items() if name in CHANGES}
        if self.size is not None and self.resize is None and isinstance(known.resize, int):
            height, width = (_margin(known.resize, min(known.size), n) for n in self.size)
            changes["resize"] = height if height == width else (height, width)
        if self.fit in ("pad", "crop-first") or (self.fit == "squash" and self.resize is None):
            changes["resize"] = None  # there is no margin, as in `Resize((224, 224))`
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
        if (count, own, self.channels) == (1, 3, None):  # one number for all is what was meant
            raise ModelError(
                f"{takes}: mean and std are three numbers each, such as 0.5,0.5,0.5 (grey: --channels 1)"
            )
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


def _automatic(model: LoadedModel) -> str:
    """The automatic layer for photographs of the model's size; "" where there is none."""
    from camkit.core import layers  # here: the command line reads options without torch
    from camkit.core.call_types import Call
    from camkit.core.layer_lookup import automatic_layer

    like = next((p for p in model.module.parameters() if p.is_floating_point()), None)
    if like is None:
        return ""
    inputs = layers.example_inputs(model.preprocess.size, like, model.preprocess.channels)
    try:
        return automatic_layer(model.module, inputs, call=Call(output=model.output)).name
    except CamkitError:
        return ""


def _margin(resize: int, size: int, side: int) -> int:
    """The shorter side before the cut, for another size: the same share of it, rounded as in timm."""
    shares = (share / 1000 for share in range(1000, 250, -5))
    share = next((one for one in shares if math.floor(size / one) == resize), size / resize)
    return max(side, math.floor(side / share))


def _moved(before: str, now: str, size: tuple[int, int]) -> str:
    """What is said where another size makes another layer the automatic one."""
    if not now or not before or now == before:
        return ""
    return f"at {size[0]} x {size[1]} pixels the automatic layer is {now}, not {before} (--layer)"


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
    resize = f" out of {shown}" if shown else " without a margin" if preprocess.fit == "crop" else ""
    texts = {
        "size": f"{preprocess.size[0]} x {preprocess.size[1]}{resize}",
        **({"resize": f"cut{resize}"} if margin and "size" in said else {}),
        **({"fit": "cut before it is resized"} if preprocess.fit == "crop-first" else {}),
        "mean": f"mean {','.join(f'{value:.3g}' for value in preprocess.mean)}",
        "std": f"std {','.join(f'{value:.3g}' for value in preprocess.std)}",
    }
    open_ones = {name: text for name, text in texts.items() if name not in said}
    options = ", ".join(f"--{name}" for name in open_ones)
    return f"assumed: {', '.join(open_ones.values())} ({options}, or preprocess=)" if open_ones else ""


def assumed_scores(count: int, what: str = "photograph") -> str:
    """What is assumed of the scores of each photograph, or place, which no file or module says."""
    if count > 1:
        return f"one class for each {what} is assumed (--scores sigmoid: several)"
    return "its one score is taken for the logit of a probability (--scores none: a regression)"


def _size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,4})(?:[x,×](\d{1,4}))?", text.strip())
    if not found:
        raise UsageError(f"--size is 224, or HEIGHTxWIDTH such as 160x224, not {text!r}")
    height = int(found[1])
    return height, int(found[2] or height)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = size if isinstance(size, Iterable) else (size, size)
    return operator.index(height), operator.index(width)


def _floats(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _names(classes: Any) -> tuple[Any, ...]:
    if isinstance(classes, str | os.PathLike):
        return labels.parse(os.fspath(classes))
    found = labels.of_value(classes) if isinstance(classes, Mapping) else tuple(classes)
    if found is None:
        raise ValueError("a table of something else")
    return tuple(str(name) if isinstance(name, str) else name for name in found)  # numpy's are others


# By the name of an argument in Python, what reads it, and what it has to be.
VALUES: Mapping[str, tuple[Callable[[Any], Any], str]] = {
    "classes": (_names, "names in the order of the outputs, {name: index}, or what --classes takes"),
    "size": (_pair, "a number of pixels, or (height, width)"),
    "resize": (operator.index, "a number of pixels"),
    "channels": (operator.index, "a number"),
    "mean": (_floats, "a number for each channel, of values in [0, 1]"),
    "std": (_floats, "a number for each channel, of values in [0, 1]"),
}


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"a mean or std is 0.5,0.5,0.5 (one number for each channel), not {text!r}"
        ) from None
