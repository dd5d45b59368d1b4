"""Pictures of maps, in the lesson's look: min-max over the signed map, bilinear, `magma`, alpha 0.6."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from camkit.drawing.style import Style
from camkit.errors import MapError, UsageError
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess

Box = tuple[float, float, float, float]

View = Literal["model", "original"]
BAND = 2**20  # pixels that are coloured at once, so that memory does not grow with a picture


def signed(map: Tensor, style: Style) -> Tensor:
    """The map that is drawn: as it is, rectified, or negated and rectified."""
    if style.counterfactual:
        return (-map).clamp(min=0)
    return map.clamp(min=0) if style.relu else map


Remark = Literal["constant", "nothing for", "nothing against", "least against"]


def remark(map: Tensor, style: Style) -> Remark | None:
    """What the picture of a map cannot show by itself, because it is stretched to what there is.

    `least against`: no value is positive, so the brightest place of the signed picture is no evidence.
    """
    if is_flat(map):
        return "constant"
    if is_flat(signed(map, style)):
        return "nothing against" if style.counterfactual else "nothing for"
    return "least against" if float(signed(map, style).max()) <= 0 else None


def is_flat(map: Tensor) -> bool:
    """Whether all values are equal, so that a picture shows nothing."""
    return bool(map.max() == map.min())


def overlay(
    image: Image.Image,
    map: Tensor,
    style: Style,
    box: Box | None = None,
    scale: tuple[float, float] | None = None,
) -> Image.Image:
    """`image` with the map `[h, w]` over it.

    box: the part of `image` that the map covers (left, top, right, bottom in pixels); the rest, which
    the model did not see, is shown in grey. `None`: all of it.
    scale: the values that get the lowest and the highest colour; `None`: minimum and maximum of the map.
    Raises `MapError` if the map is not finite.
    """
    check_finite(map)
    drawn = signed(map.detach().double(), style)  # in which no range of float32 values overflows
    photo = np.asarray(image.convert("RGB"))
    left, top, right, bottom = box or (0, 0, *image.size)
    x0, x1 = max(0, round(left)), min(image.width, round(right))
    y0, y1 = max(0, round(top)), min(image.height, round(bottom))
    result = photo.copy() if box is None else _unseen(image)
    values = _sample(drawn, (left, top, right, bottom), (x0, y0, x1, y1))
    scale = scale or extent([drawn])
    height = max(1, BAND // image.width)
    for y in range(y0, y1, height):
        rows = slice(y, min(y + height, y1))
        heat = _colours(_normalised(values[y - y0 : rows.stop - y0], *scale), style.cmap)
        mixed = (1 - style.alpha) * photo[rows, x0:x1].astype(np.float32) + style.alpha * heat
        result[rows, x0:x1] = mixed.round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(result)


def draw(
    photo: Photo,
    map: Tensor,
    preprocess: Preprocess,
    view: View,
    style: Style,
    scale: tuple[float, float] | None = None,
) -> Image.Image:
    """A map `[h, w]` over what the model saw of a photograph, or over all of it; as `overlay`."""
    if view == "model":
        return overlay(seen(photo, preprocess), map, style, scale=scale)
    if photo.cut:
        raise UsageError(f"only what the model saw of {photo.source} was kept: use view='model'")
    width, height = photo.whole or photo.image.size
    x, y = photo.image.width / width, photo.image.height / height
    left, top, right, bottom = preprocess.box(width, height)
    return overlay(photo.image, map, style, (left * x, top * y, right * x, bottom * y), scale)


def seen(photo: Photo, preprocess: Preprocess) -> Image.Image:
    """What the model sees of a photograph."""
    if photo.view is not None:
        return photo.view
    return photo.image if photo.cut else preprocess.view(photo.image)


def picture(pixels: Tensor) -> Image.Image:
    """Values `[C, H, W]` in [0, 1] as a picture of the first three channels, or the first of fewer.

    What lies outside is cut off.
    """
    drawn = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    values = drawn.clamp(0, 1).permute(1, 2, 0).mul(255).round()
    return Image.fromarray(values.to(torch.uint8).numpy())


def extent(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Minimum and maximum over raw maps, so that a scale does not depend on the size of a picture."""
    return min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)


def check_finite(map: Tensor) -> None:
    """Raise `MapError` if a value of `map` is NaN or infinite."""
    bad = int((~torch.isfinite(map)).sum())
    if bad:
        raise MapError(
            f"{bad} of the map's {map.numel()} values are NaN or infinite; the model's activations or "
            "gradients overflow (try --dtype float32)"
        )


def _sample(map: Tensor, box: Box, pixels: tuple[int, int, int, int]) -> np.ndarray[Any, Any]:
    """The map, stretched over `box`, at the centres of `pixels`; bilinear, float64 `[y1 - y0, x1 - x0]`.

    On whole boxes this is `interpolate(mode="bilinear", align_corners=False)`. In numpy, because several
    pictures are drawn at a time, beside a model that has torch's threads for itself.
    """
    left, top, right, bottom = box
    x0, y0, x1, y1 = pixels
    values = map.detach().cpu().double().numpy()
    rows = _hats((np.arange(y0, y1) + 0.5 - top) / (bottom - top), values.shape[0])
    columns = _hats((np.arange(x0, x1) + 0.5 - left) / (right - left), values.shape[1])
    return np.asarray(rows @ values @ columns.T)


def _hats(places: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """The weight of each of `count` cells of [0, 1] at `places`: `[len(places), count]`; rows sum to 1."""
    centres = np.clip(places * count - 0.5, 0, count - 1)
    return np.asarray(np.clip(1 - np.abs(centres[:, None] - np.arange(count)), 0, None))


def _normalised(values: np.ndarray[Any, Any], low: float, high: float) -> np.ndarray[Any, Any]:
    if low == high:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0, 1)


def _colours(values: np.ndarray[Any, Any], cmap: str) -> np.ndarray[Any, Any]:
    table = _table(cmap)
    return np.asarray(table[np.minimum((values * len(table)).astype(np.int64), len(table) - 1)])


@lru_cache(maxsize=8)
def _table(cmap: str) -> np.ndarray[Any, Any]:
    """The colours of a map, float32 `[N, 3]` from 0 to 255."""
    from matplotlib import colormaps

    colours = colormaps[cmap]
    return np.asarray(colours(np.arange(colours.N))[:, :3] * 255, dtype=np.float32)


def _unseen(image: Image.Image) -> np.ndarray[Any, Any]:
    """A picture in dark grey, uint8 `[H, W, 3]`."""
    darker = (np.arange(256, dtype=np.float32) * 0.6).round().astype(np.uint8)
    return np.asarray(darker[np.asarray(ImageOps.grayscale(image).convert("RGB"))])
