"""Photographs that are no files: addresses, bytes, open files, arrays and tensors."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from camkit.errors import ImageError, UsageError, reason
from camkit.images import finding

SECONDS = 10.0  # for an address to answer
COLUMNS = ("image", "img", "pixel_values", "file_name", "path")  # of a data set, where a photograph is
MAX_BYTES = 64 * 2**20  # of what it sends


def several(images: Any) -> Iterator[Any]:
    """The photographs of a folder, a glob or a file; of an array or tensor with a batch dimension; of rows.

    Rows of a data set are tables with an `image`, or pairs of an image and something else, as torchvision
    has them. Raises `UsageError` for what is no photographs.
    """
    if isinstance(images, str | os.PathLike):
        address = str(images).startswith(("http://", "https://"))
        yield from [images] if address else finding.expand([os.path.expanduser(images)])  # noqa: PTH111
        return
    if type(images).__name__ == "DataFrame":
        raise UsageError(f"pass a column of the DataFrame: one of {', '.join(map(str, images.columns))}")
    if isinstance(images, Image.Image | bytes) or getattr(images, "ndim", 4) in (2, 3):
        images = [images]
    try:
        rows = iter(images)
    except TypeError:
        raise UsageError(
            f"images are files, pictures or a list of them, not {type(images).__name__}"
        ) from None
    for row in rows:
        yield from _of_row(row)


def _of_row(row: Any) -> Iterator[Any]:
    if isinstance(row, Mapping):
        name = next(
            (name for name in ("image", "img", "pixel_values", "file_name", "path") if name in row), None
        )
        if name is None:
            raise UsageError(f"a row has no 'image', but {', '.join(map(str, row))}")
        row = row[name]
    elif isinstance(row, tuple | list):
        if not row or (len(row) > 1 and _is_photograph(row[1]) and not _is_label(row)):
            raise UsageError(f"a row is an image and what belongs to it, not {len(row)} images: one by one")
        row = row[0]
    if hasattr(row, "detach") and getattr(row, "ndim", 0) == 4:  # a batch of a DataLoader
        yield from row
    else:
        yield row


def _is_photograph(value: Any) -> bool:
    """Whether a value beside an image may be another one."""
    return isinstance(value, str | os.PathLike | bytes | Image.Image) or getattr(value, "ndim", 0) >= 2


def _is_label(row: Sequence[Any]) -> bool:
    """Whether the text beside a picture is its label; beside a path it may be a path."""
    return isinstance(row[1], str) and not isinstance(row[0], str | os.PathLike)


def fetch(address: str) -> bytes:
    """What stands at an `http://` or `https://` address. `ImageError` if it is slow, large or not there."""
    try:
        with urllib.request.urlopen(address, timeout=SECONDS) as answer:
            data: bytes = answer.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
        text = f"HTTP {error.code}" if isinstance(error, urllib.error.HTTPError) else reason(error)
        raise ImageError(f"{address} could not be fetched: {text}") from None
    if len(data) > MAX_BYTES:
        raise ImageError(f"{address} is larger than {MAX_BYTES >> 20} MiB")
    return data


def picture(array: Any) -> Image.Image:
    """An array `[H, W]` or `[H, W, 3]` or a tensor `[C, H, W]`, of bytes or of values in [0, 1].

    Raises `ImageError` for anything else, such as a tensor that is normalised already.
    """
    pixels = _channels_last(array, (1, 3, 4))
    shape = list(pixels.shape)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or 0 in shape:
        raise ImageError(f"an image is [H, W] or [H, W, 3], a tensor [C, H, W], not {shape}")
    pixels = _in_range(pixels)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def values(array: Any, count: int) -> np.ndarray[Any, Any]:
    """An array `[H, W, count]` or a tensor `[count, H, W]` as `[H, W, count]`: bytes, or float32 in [0, 1].

    Raises `ImageError` for other values; other shapes stay as they are.
    """
    pixels = _channels_last(array, (count,))
    return pixels if 0 in pixels.shape else np.ascontiguousarray(_in_range(pixels))


def _channels_last(array: Any, counts: Sequence[int]) -> np.ndarray[Any, Any]:
    """The values of an array; of a tensor `[C, H, W]` of so many channels `[H, W, C]`."""
    if not hasattr(array, "detach"):
        return np.asarray(array)
    tensor = array.detach().cpu()
    found: np.ndarray[Any, Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.moveaxis(found, 0, 2) if found.ndim == 3 and found.shape[0] in counts else found


def _in_range(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Bytes, or fractions in [0, 1] as float32; `ImageError` for other values."""
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    if np.issubdtype(pixels.dtype, np.floating):
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
            raise ImageError(
                f"images of fractions have values in [0, 1], not {pixels.min():.3g} to {pixels.max():.3g}: "
                "of tensors that are normalised already, `camkit.maps(model.module, batch)` makes maps"
            )
        return pixels.astype(np.float32)
    if not np.issubdtype(pixels.dtype, np.integer) or pixels.min() < 0 or pixels.max() > 255:
        raise ImageError(f"images of whole numbers have values from 0 to 255, not {pixels.dtype}")
    return pixels.astype(np.uint8)
