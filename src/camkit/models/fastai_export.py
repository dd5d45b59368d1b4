"""A `Learner` of fastai: its network and classes, what its scores are, and what it shows the network."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind, probabilities
from camkit.errors import ModelError, typed_reason, warn
from camkit.images import inputs
from camkit.images.preprocess import FILTERS, Preprocess
from camkit.models.checkpoint import Shell
from camkit.models.facts import assumed
from camkit.models.fastai_architecture import default_layer

# What losses mean, where fastai's `activation` does not tell: by the name of what is computed.
MEANINGS: dict[str, ScoreKind] = {
    "BCELoss": "probabilities",
    "binary_cross_entropy": "probabilities",
    "MSELoss": "none",
    "mse_loss": "none",
    "L1Loss": "none",
    "l1_loss": "none",
    "SmoothL1Loss": "none",
    "smooth_l1_loss": "none",
    "HuberLoss": "none",
    "huber_loss": "none",
    "CrossEntropyLoss": "softmax",
    "cross_entropy": "softmax",
    "NLLLoss": "softmax",  # of log-probabilities, which it leaves as they are
    "nll_loss": "softmax",
    "BCEWithLogitsLoss": "sigmoid",
    "binary_cross_entropy_with_logits": "sigmoid",
    "MultiLabelSoftMarginLoss": "sigmoid",
}
WAY_OUT = "camkit.load_model(learn, preprocess=...) takes any function from a picture to a tensor"


def from_learner(learner: Any, name: str, preprocess: Preprocess | None = None) -> LoadedModel:
    """The model of a `Learner`, with its class names, what its scores are, and what it is shown.

    preprocess: what it is shown, if that is known; else its transforms are read, and compared with what
    fastai shows. Raises `ModelError` where that cannot be told, and for what is no classifier of
    photographs. The classes are empty where neither they nor their number are known.
    """
    if not isinstance(learner.model, nn.Module):
        raise ModelError(f"the learner holds no network, but {type(learner.model).__name__}")
    given, labels = _counts(learner.dls)
    if given != 1:
        raise ModelError(f"the learner takes {given} inputs at once: camkit explains one photograph")
    if labels > 1:
        raise ModelError(
            f"the learner predicts {labels} things at once: camkit.load_model(learn.model, classes=..., "
            "preprocess=..., output=...) takes the scores of one"
        )
    if any(cls.__name__ == "PILBase" for cls in _label_type(learner.dls).__mro__):
        raise ModelError("the learner predicts pictures, such as masks: camkit explains scores of classes")
    notes: dict[str, str] = {}
    if preprocess is None:
        preprocess, notes["shown"] = _what_it_shows(learner, name)
    scores, notes["scores"] = _meaning(learner)
    return LoadedModel(
        learner.model,
        _classes(learner.dls),
        preprocess,
        name=name,
        default_layer=default_layer(learner.model),
        scores=scores,
        notes={key: text for key, text in notes.items() if text},
    )


def _counts(data: Any) -> tuple[int, int]:
    """How many inputs a model has, and how many kinds of labels."""
    pipelines = getattr(getattr(data.valid, "dataset", None), "tls", None)
    given = int(getattr(data, "n_inp", 1))
    return given, 1 if pipelines is None else len(pipelines) - given


def _label_type(data: Any) -> type:
    """The class of its labels, as fastai shows them."""
    pipelines = getattr(getattr(data.valid, "dataset", None), "tls", None) or [None]
    return cast("type", (getattr(pipelines[-1], "types", None) or [object])[-1])


def _classes(data: Any) -> tuple[str, ...]:
    """Names as `learn.predict` gives them, or numbers of a regression."""
    vocab = getattr(data, "vocab", None)
    if vocab is None:
        count = getattr(data, "c", 0)
        return tuple(f"output_{i}" for i in range(count)) if isinstance(count, int) else ()
    if gone := next((label for label in vocab if isinstance(label, Shell)), None):
        raise ModelError(f"its labels are of the class {type(gone).__qualname__}, which cannot be imported")
    return tuple(map(str, vocab))


def _meaning(learner: Any) -> tuple[ScoreKind, str]:
    """What the scores are, from the loss as fastai's predictions take it, and what is to be said of that.

    A loss that is not known leaves the labels: fastai has a usual loss for each kind of them.
    """
    loss, usual = learner.loss_func, getattr(learner.dls.valid, "dataset", None)
    share = getattr(loss, "thresh", 0.5)
    if kind := _of_loss(loss):
        told = f"learn.predict names classes above {share:.0%}, camkit those above 50%"
        return kind, told if kind == "sigmoid" and share != 0.5 else ""
    kind = _of_loss(getattr(usual, "loss_func", None)) or "auto"
    called = getattr(loss, "__name__", type(loss).__name__)
    read = "from the scores" if kind == "auto" else f"as {kind}, as is usual for such labels"
    return kind, f"its loss {called} does not tell what the scores are, read {read} (--scores)"


def _of_loss(loss: Any) -> ScoreKind | None:
    """What the scores of a model are that was trained with `loss`; `None` if that cannot be told."""
    computed = getattr(loss, "func", loss)
    named = MEANINGS.get(getattr(computed, "__name__", type(computed).__name__))
    activation = getattr(loss, "activation", None)
    if not callable(activation):
        return named
    probe = torch.tensor([[-1.0, 0.0, 2.0]])
    try:
        made = activation(probe)
    except Exception:  # of the user's own
        return None
    kinds: tuple[ScoreKind, ...] = ("softmax", "sigmoid")
    for kind in kinds:
        if isinstance(made, Tensor) and torch.allclose(made, cast("Tensor", probabilities(probe, kind))):
            return kind
    return named if made is probe else None


def _what_it_shows(learner: Any, name: str) -> tuple[Preprocess, str]:
    """What fastai's validation shows the model, and what of that is assumed."""
    batches = learner.dls.valid
    if not hasattr(batches, "after_item"):  # a DataLoader of torch
        return Preprocess(), f"{name}: {assumed(Preprocess())}"
    facts = read([*batches.after_item, *batches.before_batch, *batches.after_batch], _mode(batches))
    if reason := _compare_with_fastai(learner, facts):
        reason = f"its transforms were read, but could not be compared with what fastai shows ({reason})"
    if "size" not in facts:
        warn("the learner shows photographs at the size that they have; camkit brings them to 224 x 224")
    return Preprocess(**facts), reason


def _opened(batches: Any) -> Any:
    """The class in which fastai opens photographs, such as `PILImageBW`, and all that it does before."""
    data = getattr(batches, "dataset", None)
    return next(iter(getattr(data, "tls", [])), data)


def _mode(batches: Any) -> str:
    """Pillow's mode of the photographs, as far as fastai tells it."""
    types = getattr(_opened(batches), "types", None) or [None]
    mode = getattr(types[-1], "_open_args", {}).get("mode", "RGB")
    if mode not in ("RGB", "L"):
        raise ModelError(f"the learner opens photographs as {mode}, camkit as RGB or grey: {WAY_OUT}")
    return str(mode)


def read(steps: Sequence[Any], mode: str = "RGB") -> dict[str, Any]:
    """The fields of `Preprocess` for what fastai's validation shows of photographs in Pillow's `mode`.

    steps: the transforms of items and batches. `ModelError` names one that changes photographs in a way
    that camkit does not know. Without a resize there is no `size`, without `Normalize` pixels stay in
    [0, 1].
    """
    channels = 1 if mode == "L" else 3
    facts: dict[str, Any] = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    for step in steps:
        names = [cls.__name__ for cls in type(step).__mro__]
        known = next((name for name in names if name in STEPS), None)
        if known:
            facts |= STEPS[known](step, facts)
        elif getattr(step, "split_idx", None) != 0:  # 0: it rests in validation
            raise _unknown_transform(step)
    # Statistics of three channels make three of one.
    return {**facts, "grey": True} if channels == 1 < len(facts["mean"]) else facts


def _compare_with_fastai(learner: Any, facts: Mapping[str, Any]) -> str:
    """Compare with what fastai itself shows of two photographs; `ModelError` if that is something else.

    Returns why it could not be compared, if it could not.
    """
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for width, height in ((301, 203), (97, 131)):
            photo = inputs.picture(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
            photo.save(file := Path(folder, f"{width}.png"))
            try:
                theirs = _shown_by_fastai(learner.dls, file)
            # Whatever the user's own code raises, and transforms of older versions of fastai.
            except Exception as error:
                return typed_reason(error)
            size = {} if "size" in facts else {"size": tuple(theirs.shape[-2:]), "fit": "none"}
            ours = Preprocess(**{**facts, **size})(photo)
            if ours.shape != theirs.shape:
                raise ModelError(
                    f"fastai shows {list(theirs.shape)}, read as {list(ours.shape)}: {WAY_OUT}"
                )
            if not torch.allclose(ours, theirs, atol=1e-3):
                raise ModelError(
                    f"its transforms show photographs in another way than camkit reads them: {WAY_OUT}"
                )
    return ""


def _shown_by_fastai(data: Any, file: Path) -> Tensor:
    """What the model gets of a photograph, `[C, H, W]`.

    What comes before the transforms may want more than a file, such as a row of a table; then they are
    given the photograph as fastai opens it.
    """
    try:
        made = data.test_dl([file], num_workers=0, bs=1).one_batch()[0]
    except Exception:
        opening = _opened(data.valid)
        item = opening.types[-1].create(file)
        rest = len(opening.tfms.fs)
        made = data.test_dl([item], num_workers=0, bs=1, rm_type_tfms=rest).one_batch()[0]
    shown: Tensor = made.as_subclass(Tensor).cpu().float()[0]
    return shown


def _unknown_transform(step: Any, detail: str = "") -> ModelError:
    name = str(getattr(step, "name", type(step).__name__)).partition(" -- ")[0].strip()
    return ModelError(f"camkit does not know what fastai's {name}{detail} shows the model: {WAY_OUT}")


def _resize(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    if "size" in facts:
        raise _unknown_transform(step, " behind another one")
    fits = {"squish": "squash", "pad": "pad", "crop": "crop-first"}
    fit = fits[step.method]
    padding = {"padding": step.pad_mode} if fit == "pad" else {}
    return {"size": tuple(step.size[::-1]), "fit": fit, "interpolation": _filter(step), **padding}


def _random_crop(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Validation squashes the photograph to somewhat more than `size`, and takes the middle."""
    if "size" in facts:
        raise _unknown_transform(step, " behind another one")
    width, height = step.size
    more = math.ceil(max(width, height) * step.val_xtra / 8) * 8
    resize = {"resize": (height + more, width + more)}
    return {"size": (height, width), "fit": "squash", "interpolation": _filter(step), **resize}


def _crop_or_pad(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    width, height = step.size
    if "size" not in facts:
        return {"size": (height, width), "fit": "none", "padding": getattr(step, "pad_mode", "zeros")}
    if "resize" in facts or facts["size"][0] < height or facts["size"][1] < width:
        raise _unknown_transform(step, " behind another one")
    return {"size": (height, width), "resize": facts["size"]}


def _resampled(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rotations and the like, which rest in validation, but may bring batches to another size."""
    if step.size is None:
        return {}
    if "size" not in facts or "presize" in facts:
        raise _unknown_transform(
            step, " of photographs of any size" if "size" not in facts else " behind another one"
        )
    if step.mode != "bilinear" or not step.align_corners:
        raise _unknown_transform(step, f" with mode={step.mode}, align_corners={step.align_corners}")
    size = (step.size, step.size) if isinstance(step.size, int) else tuple(step.size)
    return {"size": size, "presize": facts["size"]}


def _crop_of_batches(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Validation takes the middle, of proportions within `ratio`, and resamples it."""
    if "size" not in facts or "presize" in facts:
        raise _unknown_transform(
            step, " of photographs of any size" if "size" not in facts else " behind another one"
        )
    if step.mode != "bilinear":
        raise _unknown_transform(step, f" with mode={step.mode}")
    height, width = facts["size"]
    low, high = step.ratio
    if width / height < low:
        height = int(width / low)
    elif width / height > high:
        width = int(height * high)
    cut = (int(height * step.valid_scale), int(width * step.valid_scale))
    resize = {} if cut == facts["size"] or "resize" in facts else {"resize": facts["size"]}
    return {"size": tuple(step.size), "presize": cut, **resize}


def _normalised(step: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(getattr(step, name).flatten().tolist()) for name in ("mean", "std")}


def _scaled(step: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    if step.div != 255:
        raise _unknown_transform(step, f" with div={step.div}")
    return {}


def _filter(step: Any) -> str:
    number = int(step.mode)
    if number not in FILTERS.values():
        raise _unknown_transform(step, f" with Pillow's filter {number}")
    return next(name for name, value in FILTERS.items() if value == number)


# By the name of the class, or of one that it comes from: what it makes of the facts so far.
STEPS: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "Resize": _resize,
    "RandomResizedCrop": _random_crop,
    "CropPad": _crop_or_pad,
    "RandomCrop": _crop_or_pad,
    "AffineCoordTfm": _resampled,
    "RandomResizedCropGPU": _crop_of_batches,
    "Normalize": _normalised,
    "IntToFloatTensor": _scaled,
    "ToTensor": lambda _, __: {},
    "PointScaler": lambda _, __: {},  # of the labels
}
