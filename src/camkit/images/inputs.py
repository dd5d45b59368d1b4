"""Photographs that are no files: addresses, bytes, open files, arrays and tensors."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from camkit.errors import ImageError, UsageError, reason
from camkit.images import finding
from camkit.images.addresses import is_address

SECONDS = 10.0  # for an address to answer
MAX_BYTES = 64 * 2**20  # of what it sends
# Columns of a data set, the surer ones first: where a photograph is, where its file is, and its label.
IMAGES = ("image", "img", "pixel_values")
FILES = ("file", "path", "file_name", "filename", "file_path", "filepath", "image_path")
LABELS = ("label", "labels", "target", "targets", "class", "fine_label")


@dataclass(frozen=True)
class Row:
    """A photograph among others.

    name: of its results; "" is that of its file. label: what the data set says of it, or `None`.
    """

    image: Any
    name: str = ""
    label: Any = None


def several(images: Any, *, prepared: bool = False) -> Iterator[Row]:
    """The photographs of a folder, a glob or a file; of an array or tensor with a batch dimension; of rows.

    Rows of a data set are tables with an `image`, or tuples of an image and its label, as torchvision has
    them; batches of a loader hold several images and labels. What has no file is called after its place,
    such as `DataLoader[3]`. prepared: whether tensors may hold any values.
    Raises `UsageError` for what is no photographs.
    """
    if isinstance(images, str | os.PathLike):
        yield from map(Row, _files(images))
        return
    kind = type(images).__name__
    if kind == "DataFrame":
        raise UsageError(f"pass a column of the DataFrame: one of {', '.join(map(str, images.columns))}")
    if kind == "DataLoaders":
        raise UsageError("pass one loader of these DataLoaders, such as dls.valid")
    if isinstance(images, Mapping) and _column(images, (*IMAGES, *FILES)) is None:
        raise UsageError(f"pass one of these images or data sets: {', '.join(map(str, images))}")
    place = kind + "[{}]"
    if isinstance(images, Image.Image | bytes | Mapping) or getattr(images, "ndim", 4) in (2, 3):
        images, place = [images], ""
    try:
        rows = _by_index(images) if _is_indexed(images) else iter(images)
    except TypeError:
        raise UsageError(f"images are files, pictures or a list of them, not {kind}") from None
    parts = ((row, part) for row in rows for part in of_row(row, prepared=prepared))
    for position, (row, part) in enumerate(parts):
        named = part.name or part is row or _is_file(part.image)
        yield part if named else replace(part, name=place.format(position))


def _files(images: str | os.PathLike[str]) -> Iterator[str | os.PathLike[str]]:
    """What an address, a folder, a glob or a file means."""
    if str(images).startswith(("http://", "https://")):
        yield images
    elif is_address(images):
        found = (entry.address for entry, _ in finding.below(str(images)))
        first = next(found, None)
        if first is None:
            raise UsageError(f"no image found in {finding.display(str(images))!r}")
        yield first
        yield from found
    else:
        yield from finding.expand([os.path.expanduser(images)])  # noqa: PTH111


def _is_indexed(images: Any) -> bool:
    """Whether these are a data set that has only rows and a length, beyond which it need not end."""
    kind = type(images)
    return not hasattr(kind, "__iter__") and hasattr(kind, "__len__") and hasattr(kind, "__getitem__")


def _by_index(images: Any) -> Iterator[Any]:
    return (images[index] for index in range(len(images)))


def of_row(row: Any, *, prepared: bool = False) -> Iterator[Row]:
    """The images of one row, of a data set or a batch of a loader, each with its label."""
    if isinstance(row, Row):
        yield row
        return
    image, label, file = _parts(row)
    if not _is_batch(image):
        yield _row(image, file, label)
        return
    if hasattr(image, "ndim") and not prepared:
        check_fractions(image)  # before any of it is explained
    count = len(image)
    labels, files = (column if _is_column(column) else [None] * count for column in (label, file))
    if not count == len(labels) == len(files):
        raise UsageError(f"a batch has {count} images and {len(labels)} labels")
    yield from map(_row, image, files, labels)


def _row(image: Any, file: Any, label: Any) -> Row:
    if isinstance(image, Mapping):  # as Hugging Face's data sets have files that are not decoded
        image, file = image.get("bytes") or image.get("path"), image.get("path") or file
    return Row(image, str(file) if _is_file(file) and not _is_file(image) else "", label)


def _is_batch(image: Any) -> bool:
    """Whether these are several photographs; an image may be nested lists of numbers, too."""
    if isinstance(image, list | tuple) and image:
        return _is_photograph(image[0]) or isinstance(image[0], Mapping)
    return getattr(image, "ndim", 0) == 4


def _is_column(value: Any) -> bool:
    """Whether a value beside a batch has one for each image."""
    return isinstance(value, list | tuple) or getattr(value, "ndim", 0) > 0


def _parts(row: Any) -> tuple[Any, Any, Any]:
    """Image, label and file of a row: whatever of it there is."""
    if isinstance(row, tuple) and len(row) == 2 and type(row[1]).__name__ == "Series":
        row = row[1]  # as `DataFrame.iterrows` gives them
    if hasattr(row, "_asdict"):  # as `DataFrame.itertuples` does
        row = row._asdict()
    elif type(row).__name__ == "Series":
        row = row.to_dict()
    if isinstance(row, Mapping):
        name = _column(row, (*IMAGES, *FILES))
        if name is None:
            raise UsageError(f"a row has no 'image', but {', '.join(map(str, row))}")
        return row[name], row.get(_column(row, LABELS)), row.get(_column(row, FILES))
    if not isinstance(row, tuple | list):
        return row, None, None
    if not row or (len(row) > 1 and _is_photograph(row[1]) and not _is_label(*row[:2])):
        raise UsageError(
            f"a row is an image and what belongs to it, not {len(row)} images: `explain_many` takes them "
            "one by one"
        )
    image, label, file = [*row, None, None][:3]
    return image, label, file


def _column(row: Mapping[Any, Any], names: Sequence[str]) -> str | None:
    return next((name for name in names if name in row), None)


def _is_file(value: Any) -> bool:
    return isinstance(value, str | os.PathLike)


def _is_photograph(value: Any) -> bool:
    """Whether a value beside an image may be another one."""
    return isinstance(value, bytes | Image.Image) or _is_file(value) or getattr(value, "ndim", 0) >= 2


def _is_label(image: Any, value: Any) -> bool:
    """Whether what is beside an image is its label: text, but beside a path; numbers beside a batch."""
    if isinstance(value, str):
        return not _is_file(image)
    return getattr(image, "ndim", 0) == 4 and getattr(value, "ndim", 0) == 2


def class_names(images: Any) -> tuple[str, ...] | None:
    """The names that a data set, or that of a loader, gives its labels; `None` if it gives none."""
    while images is not None:
        features = getattr(images, "features", None)
        column = _column(features, LABELS) if isinstance(features, Mapping) else None
        holders = [features[column]] if column is not None and isinstance(features, Mapping) else []
        for holder, attribute in [(h, "names") for h in holders] + [(images, "vocab"), (images, "classes")]:
            names = getattr(holder, attribute, None)
            if isinstance(names, Iterable) and not isinstance(names, str):
                found = tuple(names)
                if found and all(isinstance(name, str) for name in found):
                    return found
        images = getattr(images, "dataset", None)
    return None


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


def picture(array: Any, name: str = "the image") -> Image.Image:
    """An array `[H, W]` or `[H, W, 3]` or a tensor `[C, H, W]`, of bytes or of values in [0, 1].

    Raises `ImageError`, with its `name`, for anything else, such as a tensor that is normalised already.
    """
    pixels = _channels_last(array, (1, 3, 4))
    shape = list(pixels.shape)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)) or 0 in shape:
        raise ImageError(f"{name} is {shape}: an image is [H, W] or [H, W, 3], a tensor [C, H, W]")
    pixels = _in_range(pixels, name)
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels))


def values(array: Any, count: int, name: str) -> np.ndarray[Any, Any]:
    """An array `[H, W, count]` or a tensor `[count, H, W]` as `[H, W, count]`: bytes, or float32 in [0, 1].

    Raises `ImageError` for other values; other shapes stay as they are.
    """
    pixels = _channels_last(array, (count,))
    return pixels if 0 in pixels.shape else np.ascontiguousarray(_in_range(pixels, name))


def _channels_last(array: Any, counts: Sequence[int]) -> np.ndarray[Any, Any]:
    """The values of an array; of a tensor `[C, H, W]` of so many channels `[H, W, C]`."""
    if not hasattr(array, "detach"):
        return np.asarray(array)
    tensor = array.detach().cpu()
    found: np.ndarray[Any, Any] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    return np.moveaxis(found, 0, 2) if found.ndim == 3 and found.shape[0] in counts else found


def _in_range(pixels: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
    """Bytes, or fractions in [0, 1] as float32; `ImageError` for other values.

    Of 16 bits nobody knows what stands for white: a dark one would look like bytes.
    """
    if pixels.dtype == np.bool_:
        return pixels.astype(np.float32)
    if np.issubdtype(pixels.dtype, np.floating):
        check_fractions(pixels, name)
        return pixels.astype(np.float32)
    whole = np.issubdtype(pixels.dtype, np.integer) and pixels.dtype != np.uint16
    if not whole or pixels.min() < 0 or pixels.max() > 255:
        told = f" from {pixels.min()} to {pixels.max()}" if whole else ""
        raise ImageError(
            f"{name} has values of {pixels.dtype}{told}: give bytes from 0 to 255, or fractions from 0 to 1"
        )
    return pixels.astype(np.uint8)


def check_fractions(values: Any, name: str = "the image") -> None:
    """Refuse an array or tensor of fractions that are not all in [0, 1]."""
    kind = str(values.dtype)
    if "float" not in kind:
        return
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # nor NaN
        raise ImageError(
            f"{name} has fractions from {low:.3g} to {high:.3g}, not in [0, 1]: in Python tensors that are "
            "normalised already are given to the model as they are with prepared=True"
        )
