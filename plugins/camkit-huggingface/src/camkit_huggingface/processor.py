"""An image processor of transformers as camkit's `Preprocess`, and the proof that both show the same."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from camkit.errors import ModelError
from camkit.plugin import Preprocess

# Processors that compute with Pillow, and torch without its kernels for bytes, round in another way than
# `Preprocess`. The highest difference that is only that, and the highest mean, in levels of 255: noise that
# is shifted by a pixel, or resized with another filter, differs by far more.
MOST, MEAN = 8.0, 0.5

Filter = Literal["nearest", "lanczos", "bilinear", "bicubic"]
FILTERS: dict[int, Filter] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers

Size = int | tuple[int, int]  # of the shorter side, or height and width


def shown(processor: Any, beside: Collection[str] = ()) -> tuple[Preprocess, bool]:
    """What `processor` shows the model, and whether with its channels turned round.

    beside: what else it may give the model. Raises `ModelError` for what camkit cannot show so.
    """
    if _kind(processor) == "TimmWrapperImageProcessor":
        preprocess = _of_timm(processor.data_config)
    else:
        whole, crop = _geometry(processor)
        mean, std = colours(processor)
        preprocess = Preprocess(
            size=crop,
            resize=None if whole == crop else whole,
            fit="none" if whole is None else "squash" if isinstance(whole, tuple) else "crop",
            interpolation=filter_of(processor),
            mean=mean,
            std=std,
            rounding="transformers",
        )
    flip = bool(getattr(processor, "do_flip_channel_order", False))
    _compare(processor, preprocess, flip, beside)
    return preprocess, flip


def _kind(processor: Any) -> str:
    """The name of its class, whatever it computes with."""
    return type(processor).__name__.removesuffix("Fast").removesuffix("Pil")


# --- sizes ----------------------------------------------------------------------------------------


def _geometry(processor: Any) -> tuple[Size | None, tuple[int, int]]:
    """What a photograph is resized to, `None` if it is not, and height and width of the crop."""
    crop = _pair(processor.crop_size) if getattr(processor, "do_center_crop", False) else None
    if not getattr(processor, "do_resize", False):
        if crop is None:
            raise _unknown(processor, "shows photographs at the size that they have")
        return None, crop
    sides = {name: int(value) for name, value in dict(processor.size).items() if value}
    special = SPECIAL.get(_kind(processor))
    if special is not None and "shortest_edge" in sides:
        whole, own = special(sides["shortest_edge"], getattr(processor, "crop_pct", None))
        crop = crop or own
    elif set(sides) == {"shortest_edge"}:
        whole = sides["shortest_edge"]
    elif set(sides) == {"height", "width"}:
        whole = sides["height"], sides["width"]
    else:
        raise _unknown(processor, f"resizes by {', '.join(sides)}, which camkit does not")
    if (isinstance(whole, int) and crop is None) or getattr(processor, "keep_aspect_ratio", False):
        raise _unknown(processor, "shows photographs of any proportions")
    return whole, crop or cast("tuple[int, int]", whole)


def _pair(size: Any) -> tuple[int, int]:
    sides = dict(size or {})
    if not sides.get("height") or not sides.get("width"):
        raise ModelError(f"its image processor has no height and width to crop to, but {sides}")
    return int(sides["height"]), int(sides["width"])


def _convnext(edge: int, crop_pct: float | None) -> tuple[Size, tuple[int, int]]:
    return (int(edge / (crop_pct or 224 / 256)) if edge < 384 else (edge, edge)), (edge, edge)


def _poolformer(edge: int, crop_pct: float | None) -> tuple[Size, None]:
    return (int(edge / crop_pct) if crop_pct else edge), None


# By the class of the processor: from its shortest edge and `crop_pct` what it resizes to, and crops to.
SPECIAL: Mapping[str, Callable[[int, float | None], tuple[Size, tuple[int, int] | None]]] = {
    "ConvNextImageProcessor": _convnext,
    "LevitImageProcessor": lambda edge, _: (int(256 / 224 * edge), None),
    "PoolFormerImageProcessor": _poolformer,
}


def filter_of(processor: Any) -> Filter:
    """The filter that it resizes with; `ModelError` for one that camkit does not have."""
    number = getattr(processor, "resample", None)
    if number is not None and int(number) not in FILTERS:
        raise _unknown(processor, f"resizes with Pillow's filter {int(number)}")
    return "bilinear" if number is None else FILTERS[int(number)]


# --- colours --------------------------------------------------------------------------------------


def colours(processor: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of values in [0, 1] that stand for all that is done to pixels."""
    scale = float(processor.rescale_factor) if processor.do_rescale else 1.0
    scale = 1.0 if abs(255 * scale - 1) < 1e-6 else 255 * scale  # of values in [0, 1]
    offset = 1.0 if processor.do_rescale and getattr(processor, "rescale_offset", False) else 0.0
    mean, std = [0.0] * 3, [1.0] * 3
    if processor.do_normalize:
        mean, std = _three(processor.image_mean), _three(processor.image_std)
    # `(scale * x - offset - mean) / std`, and EfficientNet's `include_top` divides once more.
    again = _three(processor.image_std) if getattr(processor, "include_top", False) else [1.0] * 3
    return (
        tuple((m + offset) / scale for m in mean),
        tuple(s * more / scale for s, more in zip(std, again, strict=True)),
    )


def _three(values: Any) -> list[float]:
    return [float(values)] * 3 if isinstance(values, int | float) else [float(v) for v in values]


def _of_timm(config: Mapping[str, Any]) -> Preprocess:
    size = cast("tuple[int, int]", tuple(config["input_size"][1:]))
    squash = config.get("crop_mode") == "squash"
    return Preprocess(
        size=size,
        resize=int(min(size) / config["crop_pct"]),
        fit="squash" if squash else "crop",
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


# --- the proof ------------------------------------------------------------------------------------


def _compare(processor: Any, preprocess: Preprocess, flip: bool, beside: Collection[str]) -> None:
    """Show noise of three sizes both ways; `ModelError` unless only the rounding differs."""
    generator = np.random.default_rng(0)
    for width, height in ((301, 203), (97, 131), (250, 256)):
        photo = Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))
        try:
            made = processor(images=photo, return_tensors="pt")
        # Whatever it says to a photograph.
        except Exception as error:
            raise _unknown(processor, f"fails on a photograph ({type(error).__name__})") from None
        if set(made) - set(beside) != {"pixel_values"}:
            raise _unknown(processor, f"gives the model {', '.join(made)}, and camkit pixels only")
        theirs = cast("Tensor", made["pixel_values"]).float()[0]
        ours = preprocess(photo)
        ours = ours.flip(0) if flip else ours
        if ours.shape != theirs.shape:
            raise _unknown(processor, f"shows {list(theirs.shape)}, which was read as {list(ours.shape)}")
        scale = torch.tensor(preprocess.std[::-1] if flip else preprocess.std)[:, None, None]
        levels = (ours - theirs).abs() * scale * 255
        if not (float(levels.max()) <= MOST and float(levels.mean()) <= MEAN):
            raise _unknown(processor, "shows photographs in another way than camkit reads it")


def _unknown(processor: Any, what: str) -> ModelError:
    return ModelError(f"its image processor {type(processor).__name__} {what}")
