"""A Learner as `learn.export()` writes it, and what it shows its model."""

from __future__ import annotations

import math
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind, probabilities
from camkit.errors import CamkitWarning, ModelError, typed_reason
from camkit.images.preprocess import FILTERS, Preprocess
from camkit.models.fastai_architecture import default_layer

# What losses mean, where fastai's `activation` does not tell: by the name of what is computed.
MEANINGS: dict[str, ScoreKind] = {
    "BCELoss": "probabilities",
    "MSELoss": "none",
    "L1Loss": "none",
    "SmoothL1Loss": "none",
    "HuberLoss": "none",
    "CrossEntropyLoss": "softmax",
    "NLLLoss": "softmax",  # of log-probabilities, which it leaves as they are
    "BCEWithLogitsLoss": "sigmoid",
}


def read_export(path: Path, device: torch.device, trust: bool) -> LoadedModel:
    """A whole Learner: module, class names, what its scores are, and what it shows the module."""
    if not trust:
        raise ModelError(
            f"{path} is a pickle, which runs code when it is loaded: refused; --trust-pickle allows it, if "
            "you know where it comes from. Safer: learn.save(..., with_opt=False) and fastai:ARCH@FILE"
        )
    try:
        from fastai.learner import load_learner
    except ImportError:
        raise ModelError(f"{path} is a file of learn.export(): pip install fastai") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a pickle has been said
            learner = load_learner(path)
        model = from_learner(learner, f"fastai:{path}")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    # Unpickling raises anything, such as a label function that is defined nowhere.
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded by fastai: {typed_reason(error)}") from None
    model.module.to(device).eval()
    return model


def from_learner(learner: Any, name: str) -> LoadedModel:
    """The model of a `Learner`, with its class names, what its scores are, and what it is shown."""
    batches = learner.dls.valid
    vocab = getattr(learner.dls, "vocab", None)
    count = getattr(learner.dls, "c", 1) if vocab is None else len(vocab)
    preprocess = shown([*batches.after_item, *batches.after_batch])
    _compare_with_fastai(learner, preprocess)
    return LoadedModel(
        learner.model,
        tuple(map(str, vocab)) if vocab is not None else tuple(f"output_{i}" for i in range(count)),
        preprocess,
        name=name,
        default_layer=default_layer(learner.model),
        scores=_meaning(learner.loss_func),
    )


def _meaning(loss: Any) -> ScoreKind:
    """What the scores of a model are that was trained with `loss`: as fastai's predictions take them."""
    probe = torch.tensor([[-1.0, 0.0, 2.0]])
    activation = getattr(loss, "activation", None)
    made = activation(probe) if callable(activation) else probe
    kinds: tuple[ScoreKind, ...] = ("softmax", "sigmoid")
    for kind in kinds:
        if isinstance(made, Tensor) and torch.allclose(made, cast("Tensor", probabilities(probe, kind))):
            return kind
    return MEANINGS.get(type(getattr(loss, "func", loss)).__name__, "auto")


def shown(steps: Sequence[Any]) -> Preprocess:
    """What fastai's validation shows the model, from the transforms of items and batches.

    `ModelError` names a transform that changes photographs in a way that camkit does not know. Without
    `Normalize` pixels stay in [0, 1].
    """
    facts: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    for step in steps:
        names = [cls.__name__ for cls in type(step).__mro__]
        known = next((name for name in names if name in STEPS), None)
        if known:
            facts |= STEPS[known](step, facts)
        elif getattr(step, "split_idx", None) != 0:  # 0: it rests in validation
            raise _unknown_transform(step)
    if "size" not in facts:
        warnings.warn(
            "the learner shows photographs at the size that they have; camkit brings them to 224 x 224",
            CamkitWarning,
            stacklevel=2,
        )
    return Preprocess(**facts)


def _compare_with_fastai(learner: Any, preprocess: Preprocess) -> None:
    """Compare with what fastai itself shows of two photographs; `ModelError` if that is something else."""
    from fastai.vision.core import PILImage

    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for width, height in ((301, 203), (97, 131)):
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            photo = PILImage.create(pixels)
            photo.save(file := Path(folder, f"{width}.png"))
            try:
                theirs = learner.dls.test_dl([file], num_workers=0, bs=1).one_batch()[0]
                theirs = theirs.as_subclass(Tensor).cpu().float()[0]
            # What comes before the transforms may want more than a file, such as a row of a table.
            except Exception:
                return
            if theirs.shape[-2:] == (height, width):
                return  # nothing is resized, as `shown` has said
            ours = preprocess(photo)
            if ours.shape != theirs.shape:
                raise ModelError(f"fastai shows {list(theirs.shape)}, read as {list(ours.shape)}")
            if not torch.allclose(ours, theirs, atol=1e-3):
                raise ModelError("its transforms show photographs in another way than camkit reads them")


def _unknown_transform(step: Any, detail: str = "") -> ModelError:
    name = str(getattr(step, "name", type(step).__name__)).partition(" -- ")[0].strip()
    return ModelError(f"camkit does not know what fastai's {name}{detail} shows the model")


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
}
