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
    if hasattr(array, "detach"):
        tensor = array.detach().cpu()
        values = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        if values.ndim == 3 and values.shape[0] in (1, 3, 4):
            values = np.moveaxis(values, 0, 2)
    else:
        values = np.asarray(array)
    shape = list(values.shape)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] not in (3, 4)) or 0 in shape:
        raise ImageError(f"an image is [H, W] or [H, W, 3], a tensor [C, H, W], not {shape}")
    if values.dtype == np.bool_:
        values = values.astype(np.float32)
    if np.issubdtype(values.dtype, np.floating):
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ImageError(
                f"images of fractions have values in [0, 1], not {values.min():.3g} to {values.max():.3g}: "
                "of tensors that are normalised already, `camkit.maps(model.module, batch)` makes maps"
            )
        values = np.rint(values * 255).astype(np.uint8)
    elif values.dtype != np.uint8:
        if values.min() < 0 or values.max() > 255:
            raise ImageError(f"images of whole numbers have values from 0 to 255, not {values.dtype}")
        values = values.astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(values))
