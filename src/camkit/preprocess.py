"""From an upright RGB photograph to the tensor a model expects, and back to the photograph.

A `Preprocess` is plain data, so it can be stored in a bundle and in every manifest line. It resizes and
crops Pillow images as torchvision does, hence equals `weights.transforms()` and timm's evaluation
transform. What the model sees is made without torch, so that processes which only read photographs
need none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from camkit.errors import ImageError, ModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, device

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit = Literal["crop", "squash"]
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers for them

MAX_PIXELS = 2**28  # of a resized photograph; a strip for a large model would have many more

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop, scale to [0, 1] and normalise.

    size: height and width in pixels of what the model sees.
    resize: length in pixels of the shorter side before the centre crop; `None` means no margin, the
        shorter side is resized just to cover `size`.
    fit: `crop` keeps the proportions and cuts the margins; `squash` gives the whole photograph the
        proportions of `size`.
    mean, std: per channel, of values in [0, 1].
    """

    size: tuple[int, int] = (224, 224)
    resize: int | None = None
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        if min(self.size) < 1 or max(self.size) > 8192:
            raise ModelError(f"input size {self.size} must lie between 1 and 8192 pixels")
        if self.resize is not None and not min(self.size) <= self.resize <= 16384:
            raise ModelError(f"resize={self.resize} is smaller than the crop {self.size}, or absurd")
        if self.fit not in get_args(Fit) or self.interpolation not in get_args(Interpolation):
            raise ModelError(f"unknown fit {self.fit!r} or interpolation {self.interpolation!r}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(s > 0 for s in self.std):
            raise ModelError(f"mean {self.mean} and std {self.std} need three values, std positive")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ModelError(f"mean {self.mean} and std {self.std} must be finite")

    def __call__(self, image: Image) -> Tensor:
        """`image` (RGB, upright) as a normalised float32 tensor `[3, height, width]`."""
        return self.tensor(self.view(image))

    def view(self, image: Image) -> Image:
        """What the model sees of `image`, of `size`; `ImageError` if that takes too much memory."""
        width, height = self._resized(*image.size)
        if width * height > MAX_PIXELS:
            raise ImageError(
                f"{image.width} x {image.height} pixels would be resized to {width} x {height}: too many"
            )
        resized = image.resize((width, height), FILTERS[self.interpolation])
        crop_h, crop_w = self.size
        left, top = _offset(width, crop_w), _offset(height, crop_h)
        return resized.crop((left, top, left + crop_w, top + crop_h))  # beyond the edges it is black

    def tensor(self, view: Image) -> Tensor:
        """A view as a normalised float32 tensor `[3, height, width]`."""
        return self.batch([view])[0]

    def batch(self, views: Sequence[Image], device: str | device = "cpu") -> Tensor:
        """Views as normalised float32 `[B, 3, height, width]` on `device`; bytes go there, not floats."""
        import numpy as np
        import torch

        pixels = torch.from_numpy(np.stack([np.asarray(view) for view in views])).to(device)
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (self.mean, self.std))
        scaled = pixels.permute(0, 3, 1, 2).contiguous().float().div_(255)
        return scaled.sub_(mean).div_(std)

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a `width` x `height` photograph that the model sees: left, top, right, bottom.

        In pixels of the photograph, with fractions; it reaches beyond the photograph only where the
        crop had to be padded.
        """
        resized_w, resized_h = self._resized(width, height)
        crop_h, crop_w = self.size
        left, top = _offset(resized_w, crop_w), _offset(resized_h, crop_h)
        x, y = width / resized_w, height / resized_h
        return left * x, top * y, (left + crop_w) * x, (top + crop_h) * y

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize, before the crop."""
        crop_h, crop_w = self.size
        if self.fit == "squash":
            scale = (self.resize or min(self.size)) / min(self.size)
            return round(crop_w * scale), round(crop_h * scale)
        if self.resize is not None:
            short, long = min(width, height), max(width, height)
            other = int(self.resize * long / short)  # truncated, as torchvision does
            return (self.resize, other) if width <= height else (other, self.resize)
        scale = max(crop_w / width, crop_h / height)
        return max(crop_w, round(width * scale)), max(crop_h, round(height * scale))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`; a missing key takes its default, anything odd is a `ModelError`."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ModelError(f"preprocessing has unknown keys {unknown}; known are {sorted(known)}")
        try:
            values: dict[str, Any] = dict(data)
            for key, kind in (("size", operator.index), ("mean", float), ("std", float)):
                if key in values:
                    values[key] = tuple(kind(v) for v in values[key])
            if len(values.get("size", (1, 1))) != 2:
                raise ModelError(f"preprocessing size {data['size']!r} must be [height, width]")
            if values.get("resize") is not None:
                values["resize"] = operator.index(values["resize"])
            return cls(**values)
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"preprocessing cannot be read: {error}") from None


def _offset(length: int, crop: int) -> int:
    """Where a centre crop begins, in whole pixels, as torchvision's `center_crop` and its padding round."""
    return round((length - crop) / 2) if length >= crop else -((crop - length) // 2)
