"""Photographs with other channels than red, green and blue: of satellites, of cameras that see depth.

Pillow has no such pictures. One of the first three channels stands for the photograph where it is drawn,
and carries all channels with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from camkit.errors import ImageError, counted

KEY = "channels"  # in `Image.info`
# By the mode of a picture: how many channels it has, where each is what it is.
OF_MODE = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}
# How the pixels of a file lie there, where Pillow only copies them: in planes, too.
COPIED = ("LA", "RGBA", "BGRA", "CMYK", "R")


def remark(count: int) -> str:
    """What a picture of such a photograph cannot show."""
    return f"pictures show the first {'3 ' if count > 3 else ''}of {count} channels"


def picture(values: NDArray[Any]) -> Image.Image:
    """The first three channels of `[H, W, C]`, or the first of two, as RGB; all of them go with it.

    values: bytes, or float32 in [0, 1].
    """
    drawn = values[:, :, :3] if values.shape[2] > 3 else values[:, :, [0, 0, 0]]
    if drawn.dtype != np.uint8:
        drawn = np.rint(drawn * 255).astype(np.uint8)
    made = Image.fromarray(np.ascontiguousarray(drawn))
    made.info[KEY] = values
    return made


def carried(image: Image.Image) -> NDArray[Any]:
    """All channels of what `picture` made, `[H, W, C]`."""
    values: NDArray[Any] = image.info[KEY]
    return values


def levels(image: Image.Image) -> NDArray[Any]:
    """All channels, `[H, W, C]` from 0 to 255: bytes, or float32 where the photograph has fractions."""
    values = carried(image)
    return values if values.dtype == np.uint8 else values * np.float32(255)


def each(image: Image.Image, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """`image` with `change` made to each of its channels, a picture of mode `L` or `F`."""
    values = carried(image)
    changed = [change(Image.fromarray(values[:, :, i])) for i in range(values.shape[2])]
    made = np.stack([np.asarray(channel) for channel in changed], axis=2)
    # A cubic filter overshoots; bytes end there, and fractions are cut off.
    return picture(made if made.dtype == np.uint8 else made.clip(0, 1))


def of_picture(image: Image.Image, count: int, name: str) -> Image.Image:
    """A decoded picture that has `count` channels itself, as one of `picture`. `ImageError` if it has not.

    Transparency is a channel like any other then.
    """
    has = OF_MODE.get(image.mode)
    if has != count:
        what = counted(has, "channel") if has else f"pixels of the kind {image.mode}"
        raise ImageError(f"{name} has {what}, but the model takes {count}: {_way_out(count)}")
    return picture(np.asarray(image))


def check_copied(image: ImageFile.ImageFile, count: int, name: str) -> None:
    """`ImageError` if Pillow would change the channels of an open file: drop, scale or multiply them.

    It leaves out a fourth channel that is no transparency, divides by one that is multiplied in, and keeps
    8 bits of 16.
    """
    raw = image.tile[0].args if image.tile else image.mode
    raw = raw[0] if isinstance(raw, tuple) else raw
    if (image.mode in ("LA", "RGBA", "CMYK") and raw not in COPIED) or str(raw).endswith("X"):
        raise ImageError(
            f"{name} has channels that Pillow does not read as they are ({raw}), and the model takes "
            f"{count}: {_way_out(count)}"
        )


def of_array(values: NDArray[Any], count: int, name: str) -> Image.Image:
    """An array `[H, W, count]` of bytes or fractions as one of `picture`. `ImageError` if it is another."""
    if values.ndim != 3 or values.shape[2] != count or 0 in values.shape:
        raise ImageError(
            f"{name} is {list(values.shape)}, but the model takes {count} channels: {_way_out(count)}"
        )
    return picture(values)


def _way_out(count: int) -> str:
    return (
        f"give an array [H, W, {count}] in a .npy file or in Python, or a tensor [{count}, H, W], of bytes "
        "or of fractions from 0 to 1"
    )
