"""From an upright RGB photograph to the tensor a model expects, and back to the photograph.

A `Preprocess` is plain data, so it can be stored in a bundle and in every manifest line. It resizes and
crops Pillow images as torchvision does, hence equals `weights.transforms()` and timm's evaluation
transform; or as fastai does, which crops or pads first and resizes then; or as transformers does, which
resizes and rounds in its own way. What the model sees is made without torch, so that processes which only
read photographs need none.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args

from camkit.errors import ImageError, ModelError

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor, device

Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]
Fit = Literal["crop", "squash", "crop-first", "pad", "none"]
Padding = Literal["zeros", "border", "reflection"]
Rounding = Literal["pillow", "transformers"]
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}  # Pillow's numbers for them

PADDINGS = {"border": "edge", "reflection": "reflect"}  # numpy's names for them; zeros need none

MAX_PIXELS = 2**28  # of a resized photograph; a strip for a large model would have many more
MAX_VIEW = 2048 * 2048  # of what a stranger's model sees, in three channels: a batch must fit into memory
MAX_CHANNELS = 1024
OWN = "function"  # what a manifest tells of a preprocess that is a function of the user's: its name
FIRST = ("crop-first", "pad", "none")  # what is cut or added before anything is resized

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Resize, crop, scale to [0, 1] and normalise.

    size: height and width in pixels of what the model sees.
    resize: length in pixels of the shorter side before the centre crop; `None` means no margin, the
        shorter side is resized just to cover `size`. Also height and width, which `crop` just covers.
    fit: `crop` keeps the proportions and cuts the margins; `squash` gives the whole photograph the
        proportions of `size`. `crop-first` cuts the photograph to these proportions in whole pixels and
        resizes then, `pad` adds to it instead; `none` takes the middle and resizes nothing.
    padding: what `pad`, and `none` of a small photograph, add.
    mean, std: per channel, of values in [0, 1]; one value each means grey photographs, and other numbers
        than three that photographs have these channels themselves, as those of satellites do.
    presize: height and width of the view, if the model gets it resampled to `size`, as fastai does with
        batches.
    rounding: `pillow`, as it resizes and torchvision crops; `transformers`, as its image processors do:
        with torch's resize of bytes, and crops that begin between two pixels rounded down.
    grey: photographs are made grey before anything else; with three values of `mean` the model gets the
        grey one in each of its channels.
    """

    size: tuple[int, int] = (224, 224)
    resize: int | tuple[int, int] | None = None
    fit: Fit = "crop"
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    padding: Padding = "zeros"
    presize: tuple[int, int] | None = None
    rounding: Rounding = "pillow"
    grey: bool = False

    def __post_init__(self) -> None:
        for size in (self.size, self.seen):
            if min(size) < 1 or max(size) > 8192:
                raise ModelError(f"input size {size} must lie between 1 and 8192 pixels")
        if self.fit not in get_args(Fit) or self.interpolation not in get_args(Interpolation):
            raise ModelError(f"unknown fit {self.fit!r} or interpolation {self.interpolation!r}")
        if self.padding not in get_args(Padding):
            raise ModelError(f"unknown padding {self.padding!r}")
        if self.rounding not in get_args(Rounding):
            raise ModelError(f"unknown rounding {self.rounding!r}")
        if not isinstance(self.grey, bool) or (self.grey and self.photo_channels != 3):
            raise ModelError(
                f"grey is true or false, and false for {self.channels} channels if these are not 1 or 3, "
                f"not {self.grey!r}"
            )
        if self.resize is not None:
            self._check_resize()
        known = 1 <= self.channels <= MAX_CHANNELS and len(self.mean) == len(self.std)
        if not known or not all(s > 0 for s in self.std):
            raise ModelError(
                f"mean {self.mean} and std {self.std} need a value for each channel, std positive"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ModelError(f"mean {self.mean} and std {self.std} must be finite")

    def _check_resize(self) -> None:
        pair = isinstance(self.resize, tuple)
        if self.fit == "none" or (self.fit in FIRST and not pair):
            raise ModelError(f"resize={self.resize} does not go with fit={self.fit}")
        if isinstance(self.resize, tuple):
            fits = self.resize[0] >= self.seen[0] and self.resize[1] >= self.seen[1]
            fits = fits and max(self.resize) <= 16384
        else:
            fits = min(self.seen) <= (self.resize or 0) <= 16384
        if not fits:
            raise ModelError(f"resize={self.resize} is smaller than the crop {self.seen}, or absurd")

    @property
    def channels(self) -> int:
        """Of what the model sees: 3, 1 of grey photographs, or any other number."""
        return len(self.mean)

    @property
    def photo_channels(self) -> int:
        """Of the photographs that it takes: 3 also where the model sees them grey."""
        return 3 if self.channels == 1 else self.channels

    @property
    def seen(self) -> tuple[int, int]:
        """Height and width of the view."""
        return self.presize or self.size

    def __call__(self, image: Image) -> Tensor:
        """`image` (RGB, upright) as a normalised float32 tensor `[channels, height, width]`."""
        return self.tensor(self.view(image))

    @property
    def knows_place(self) -> bool:
        """Whether it is known which part of a photograph the model sees; not where a function cuts it."""
        return True

    def view(self, image: Image) -> Image:
        """What the model sees of `image`, of `seen`; `ImageError` if that takes too much memory.

        image: RGB, or one that carries `photo_channels` other channels, see `camkit.images.channels`.
        """
        if self.photo_channels != 3:
            from camkit.images import channels

            return channels.each(image, self.cut)
        return self.cut(image.convert("L") if self.grey or self.channels == 1 else image)

    def cut(self, image: Image) -> Image:
        """Size and crop alone: of a picture of any mode, such as a mask, what the model sees."""
        source, (width, height) = self._source(*image.size), self._resized(*image.size)
        for what, (w, h) in (("padded", source[2:]), ("resized", (width, height))):
            if w * h > MAX_PIXELS:
                raise ImageError(
                    f"{image.width} x {image.height} pixels would be {what} to {w} x {h}: too many"
                )
        resized = self._resize(self._part(image, *source), width, height)
        crop_h, crop_w = self.seen
        left, top = self._offset(width, crop_w), self._offset(height, crop_h)
        return resized.crop((left, top, left + crop_w, top + crop_h))  # beyond the edges it is black

    def tensor(self, view: Image) -> Tensor:
        """A view as a normalised float32 tensor `[channels, height, width]`."""
        return self.batch([view])[0]

    def batch(self, views: Sequence[Image], device: str | device = "cpu") -> Tensor:
        """Views as normalised float32 `[B, channels, *size]` on `device`; bytes go there, not floats."""
        import numpy as np
        import torch

        if self.photo_channels != 3:
            from camkit.images import channels

            arrays = [channels.levels(view) for view in views]
        else:
            arrays = [np.asarray(view.convert("L" if self.channels == 1 else "RGB")) for view in views]
        pixels = torch.from_numpy(np.stack(arrays)).to(device)
        mean, std = (torch.tensor(v, device=device)[:, None, None] for v in (self.mean, self.std))
        pixels = pixels[:, None] if self.channels == 1 else pixels.permute(0, 3, 1, 2)
        scaled = pixels.contiguous().float().div_(255)
        if self.presize is not None:
            scaled = _resampled(scaled, self.size)
        return scaled.sub_(mean).div_(std)

    def pixels(self, tensor: Tensor) -> Tensor:
        """Normalised `[channels, height, width]` back in float32 of [0, 1]: mean and std undone."""
        import torch

        mean, std = (torch.tensor(values)[:, None, None] for values in (self.mean, self.std))
        return tensor.detach().float().cpu() * std + mean

    def box(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a `width` x `height` photograph that the model sees: left, top, right, bottom.

        In pixels of the photograph, with fractions; it reaches beyond the photograph only where the
        crop had to be padded.
        """
        first_x, first_y, source_w, source_h = self._source(width, height)
        resized_w, resized_h = self._resized(width, height)
        crop_h, crop_w = self.seen
        left, top = self._offset(resized_w, crop_w), self._offset(resized_h, crop_h)
        x, y = source_w / resized_w, source_h / resized_h
        right, bottom = left + crop_w, top + crop_h
        return first_x + left * x, first_y + top * y, first_x + right * x, first_y + bottom * y

    def _source(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The part of a photograph that is resized: left, top, width and height, in whole pixels."""
        if self.fit not in FIRST:
            return 0, 0, width, height
        wide, high = self._resized(width, height)
        if self.fit == "none":
            return self._offset(width, wide), self._offset(height, high), wide, high
        x, y = width / wide, height / high
        scale = max(x, y) if self.fit == "pad" else min(x, y)
        part_w, part_h = max(1, int(scale * wide)), max(1, int(scale * high))  # truncated, as fastai does
        return int(0.5 * (width - part_w)), int(0.5 * (height - part_h)), part_w, part_h

    def _resize(self, part: Image, width: int, height: int) -> Image:
        same = self.rounding == "pillow" or self.interpolation == "nearest"
        if same or part.mode != "RGB":  # a mask is no photograph
            return part.resize((width, height), FILTERS[self.interpolation])
        from camkit.images.byte_resize import resized

        return resized(part, width, height, self.interpolation)

    def _part(self, image: Image, left: int, top: int, width: int, height: int) -> Image:
        """A part of `image`, or more than that."""
        if (left, top, width, height) == (0, 0, *image.size):
            return image
        part = image.crop((left, top, left + width, top + height))  # beyond the edges it is black
        before = max(0, -left), max(0, -top)
        behind = max(0, left + width - image.width), max(0, top + height - image.height)
        if self.padding != "zeros" and max(*before, *behind) > 0:
            import numpy as np

            known = np.asarray(part.crop((*before, width - behind[0], height - behind[1])))
            around = [(before[1], behind[1]), (before[0], behind[0]), (0, 0)][: known.ndim]
            kind: Any = PADDINGS[self.padding]
            part.frombytes(np.pad(known, around, kind).tobytes())
        return part

    def _offset(self, length: int, crop: int) -> int:
        """Where a centre crop begins, in whole pixels, as torchvision, fastai or transformers rounds."""
        down = self.rounding == "transformers"
        if length < crop and (down or self.fit not in FIRST):
            return -((crop - length) // 2)
        return (length - crop) // 2 if down or self.fit in FIRST else round((length - crop) / 2)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize, before the crop."""
        crop_h, crop_w = self.seen
        if isinstance(self.resize, tuple) and self.fit == "crop":
            scale = min(height / self.resize[0], width / self.resize[1])
            return round(width / scale), round(
                height / scale
            )  # as timm does, for sizes that are no squares
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        if self.fit in FIRST:
            return crop_w, crop_h
        if self.fit == "squash":
            scale = (self.resize or min(self.seen)) / min(self.seen)
            return round(crop_w * scale), round(crop_h * scale)
        if self.resize is not None or crop_h == crop_w:
            side = self.resize or crop_h
            short, long = min(width, height), max(width, height)
            other = int(side * long / short)  # truncated, as torchvision does
            return (side, other) if width <= height else (other, side)
        scale = max(crop_w / width, crop_h / height)
        return max(crop_w, round(width * scale)), max(crop_h, round(height * scale))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it; without what older versions do not know, where nothing is said by it."""
        unsaid = {"padding": "zeros", "presize": None, "rounding": "pillow", "grey": False}
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if unsaid.get(name, ...) != value}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Preprocess:
        """The inverse of `to_dict`; a missing key takes its default, anything odd is a `ModelError`.

        So is a view of more than 4 megapixels, or as many values: the table may be a stranger's.
        """
        if OWN in data:
            raise ModelError(
                f"photographs were shown by a function of its owner, {data[OWN]!s:.80}, which no file holds"
            )
        known = {field.name for field in fields(cls)}
        if unknown := sorted(set(data) - known):
            raise ModelError(f"preprocessing has unknown keys {unknown}; known are {sorted(known)}")
        try:
            values: dict[str, Any] = dict(data)
            index = operator.index
            kinds: dict[str, Any] = {"size": index, "presize": index, "mean": float, "std": float}
            if isinstance(values.get("resize"), list | tuple):
                kinds["resize"] = index
            elif values.get("resize") is not None:
                values["resize"] = index(values["resize"])
            for key, kind in kinds.items():
                if key in values and (key, values[key]) != ("presize", None):
                    values[key] = tuple(kind(v) for v in values[key])
            for key in ("size", "presize", "resize"):
                if isinstance(pair := values.get(key), tuple) and len(pair) != 2:
                    raise ModelError(f"preprocessing {key} {data[key]!r} must be [height, width]")
            made = cls(**values)
        except (TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"preprocessing cannot be read: {error}") from None
        for shown in (made.size, made.seen):
            if math.prod(shown) * max(made.channels, 3) > 3 * MAX_VIEW:
                raise ModelError(f"preprocessing size {shown} is more than {MAX_VIEW:,} pixels")
        return made


def _resampled(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `[B, C, h, w]` at another size, corner on corner, as fastai resizes batches.

    Its `affine_coord` with nothing to turn: where more than half of the pixels of a side go, an area mean
    comes first.
    """
    import torch
    from torch.nn import functional as F

    coarse = min(images.shape[-2] / size[0], images.shape[-1] / size[1]) / 2
    same = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(same, [*images.shape[:2], *size], align_corners=True)
    if coarse > 1:
        images = F.interpolate(images, scale_factor=1 / coarse, mode="area", recompute_scale_factor=True)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
