"""What a model is shown, from the transforms of other libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from camkit.errors import ImageError, ModelError, UsageError, typed_reason
from camkit.images import inputs
from camkit.images.prepared import TensorPreprocess
from camkit.images.preprocess import FILTERS, OWN, Preprocess

if TYPE_CHECKING:
    from PIL import Image

TRIES = 6  # of a function with one photograph: flips at random are found but once in 32 times
TOLERANCE = 2e-3  # of a normalised value: half a step of a byte at the smallest usual deviation


def as_preprocess(shown: Any) -> Preprocess:
    """A `Preprocess` from one, from torchvision's or timm's transforms, or from any function.

    shown: `weights.transforms()`, a `Compose`, a timm data configuration, a Hugging Face image processor,
    or a function from a Pillow image to a tensor `[C, H, W]`. What can be read is compared with what it
    makes of two photographs; what cannot be read is called for every photograph, and then nothing is known
    of where in the photograph the model looked, but what it saw. Raises `UsageError` for anything else.
    """
    if isinstance(shown, Preprocess):
        return shown
    if isinstance(shown, Mapping) and "input_size" in shown:
        return of_timm(shown)
    if hasattr(shown, "transforms") and callable(shown.transforms):  # torchvision's weights
        shown = shown.transforms()
    if any(cls.__module__.startswith("transformers.") for cls in type(shown).__mro__):
        return _of_processor(shown)
    if not callable(shown):
        raise UsageError(
            "preprocess is weights.transforms(), a torchvision transform, a timm data configuration, an "
            "image processor, or a function from a picture to a tensor [C, H, W], "
            f"not {type(shown).__name__}"
        )
    read = _read(shown)
    return read if read is not None and _alike(read, shown) else _own(shown)


def of_timm(config: Mapping[str, Any]) -> Preprocess:
    """From a configuration of timm; `ModelError` for a crop mode that camkit does not have."""
    mode = config.get("crop_mode") or "center"
    if mode not in ("center", "squash"):
        raise ModelError(f"timm's crop mode {mode!r} is one that camkit does not have")
    height, width = (int(side) for side in config["input_size"][1:])
    share = config.get("crop_pct") or 0.875
    margin = int(height / share), int(width / share)
    return Preprocess(
        size=(height, width),
        resize=margin[0] if margin[0] == margin[1] else margin,
        fit="squash" if mode == "squash" else "crop",
        interpolation=config.get("interpolation") or "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


@dataclass(frozen=True)
class OwnPreprocess(TensorPreprocess):
    """What a function of the user's makes of a photograph: that is all that is known of it."""

    function: Callable[[Image.Image], Tensor] | None = None

    @property
    def photo_channels(self) -> int:
        """A function of the user's is given RGB, whatever it makes of that."""
        return 3

    def view(self, image: Image.Image) -> Image.Image:
        """What the function makes of a photograph, as a picture."""
        return self.drawn(_called(self.function, image))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: the name of the function, and not what it does."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return {**super().to_dict(), OWN: name}

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Not known: `ImageError`."""
        raise ImageError("where a preprocess function of your own looks is not known: use view='model'")


def _own(function: Callable[..., Any]) -> Preprocess:
    photo = _photo(301, 203)
    with torch.random.fork_rng([]):
        tensor, *others = [_called(function, photo) for _ in range(TRIES)]
    same = (
        other.shape == tensor.shape and torch.allclose(other, tensor, 0, 0, equal_nan=True)
        for other in others
    )
    if not all(same):
        raise UsageError(
            "preprocess makes something else of the same photograph each time, as transforms for training "
            "do: give those of validation"
        )
    channels = int(tensor.shape[0])
    size = (int(tensor.shape[1]), int(tensor.shape[2]))
    return OwnPreprocess(size=size, mean=(0.0,) * channels, std=(1.0,) * channels, function=function)


def _called(function: Any, image: Image.Image) -> Tensor:
    """What a function makes of a photograph: `[C, H, W]`."""
    try:
        made = function(image)
    # Whatever the user's function raises.
    except Exception as error:
        raise ModelError(f"preprocess failed: {typed_reason(error)}") from error
    if isinstance(made, Tensor) and made.ndim == 4 and len(made) == 1:
        made = made[0]
    if not isinstance(made, Tensor) or made.ndim != 3 or not made.is_floating_point():
        kind = f"{made.dtype} {list(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise UsageError(f"preprocess must make a floating-point tensor [C, H, W], not {kind}")
    return made.detach().as_subclass(Tensor).cpu().float()


def _alike(read: Preprocess, function: Any) -> bool:
    """Whether `read` shows two photographs as the function does."""
    for width, height in ((301, 203), (97, 131)):
        theirs, ours = _called(function, _photo(width, height)), read(_photo(width, height))
        if theirs.shape != ours.shape or float((theirs - ours).abs().max()) > TOLERANCE:
            return False
    return True


def _photo(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(0)
    return inputs.picture(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _of_processor(processor: Any) -> Preprocess:
    try:
        package = importlib.import_module("camkit_huggingface")
    except ImportError:
        raise UsageError("a Hugging Face image processor: pip install camkit-huggingface") from None
    return cast("Preprocess", package.preprocess_of(processor))


def _read(function: Any) -> Preprocess | None:
    """The facts of torchvision's and timm's transforms; `None` if a step is not known."""
    steps = list(getattr(function, "transforms", [])) or [function]
    facts: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    for step in steps:
        reader = STEPS.get(type(step).__name__)
        changes = reader(step, facts) if reader else None
        if changes is None:
            return None
        facts |= changes
    if "size" not in facts:
        return None
    try:
        return Preprocess(**facts)
    except ModelError:
        return None


def _resize(step: Any, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    size = step.size
    if "size" in facts or getattr(step, "max_size", None) is not None:
        return None
    sides = [int(side) for side in (size if isinstance(size, list | tuple) else [size])]
    how = {"interpolation": getattr(step.interpolation, "value", "bilinear")}
    if how["interpolation"] not in FILTERS:
        return None
    if len(sides) == 2:
        return {"size": (sides[0], sides[1]), "fit": "squash", **how}
    return {"resize": sides[0], "size": (sides[0], sides[0]), **how}


def _crop(step: Any, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    size = step.size if isinstance(step.size, list | tuple) else (step.size, step.size)
    height, width = (int(side) for side in (size if len(size) == 2 else (size[0], size[0])))
    if "size" not in facts:
        return None
    if facts.get("fit") == "squash":
        return {"size": (height, width), "resize": facts["size"]}
    return {"size": (height, width)}


def _normalize(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: torch.as_tensor(getattr(step, name)).flatten().tolist() for name in ("mean", "std")}
    return {name: tuple(map(float, value)) for name, value in values.items()}


def _preset(step: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "size": (step.crop_size[0], step.crop_size[-1]),
        "resize": step.resize_size[0],
        "interpolation": step.interpolation.value,
        "mean": tuple(step.mean),
        "std": tuple(step.std),
    }


def _grey(step: Any, facts: Mapping[str, Any]) -> dict[str, Any] | None:
    return {"mean": (0.0,), "std": (1.0,)} if step.num_output_channels == 1 else None


def _nothing(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {}


# By the name of the class: what it makes of the facts so far.
STEPS: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any] | None]] = {
    "Resize": _resize,
    "CenterCrop": _crop,
    "Normalize": _normalize,
    "ImageClassification": _preset,
    "Grayscale": _grey,
    **dict.fromkeys(
        ("ToTensor", "MaybeToTensor", "ToImage", "PILToTensor", "ToDtype", "ConvertImageDtype", "RGB"),
        _nothing,
    ),
}
