"""What a checkpoint says of how photographs are shown: size, margin, filter, mean and std."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from camkit.images.preprocess import FILTERS, Preprocess
from camkit.models.checkpoint import Checkpoint, Shell

# By what is said, what people call it.
SIZES = ("image_size", "img_size", "imgsz", "input_size", "crop_size")
MARGINS = ("resize", "resize_size")
MEANS = ("image_mean", "img_mean", "norm_mean", "mean")
STDS = ("image_std", "img_std", "norm_std", "std")
DEPTH = 2  # of tables in tables that are looked into

Said = dict[str, tuple[Any, str]]  # by a field of `Preprocess`, with a text of where it is said


def stored(checkpoint: Checkpoint, usual: Preprocess, *, fixed: bool) -> tuple[Said, list[str]]:
    """The fields of `Preprocess` that are said, and texts on what is there and cannot be meant.

    usual: how photographs are shown where nothing is said. fixed: the model takes no other size.
    """
    found: Said = {}
    doubts: dict[str, str] = {}  # by the field
    for table in _tables(checkpoint):
        size = {} if fixed else _size(table)
        for said in (size, _filter(table), _colours(table, usual.channels, doubts)):
            found = {**said, **found}  # what was said before is what counts
    size_now = found["size"][0] if "size" in found else usual.size
    for table in _tables(checkpoint):
        found = {**_margin(table, min(size_now)), **found}
    return found, [text for field, text in doubts.items() if field not in found]


def _tables(checkpoint: Checkpoint) -> Iterator[Mapping[str, Any]]:
    for table in checkpoint.tables():
        yield from _inside(table, DEPTH)


def _inside(table: Mapping[str, Any], depth: int) -> Iterator[Mapping[str, Any]]:
    yield table
    for value in table.values() if depth else ():
        inner = vars(value) if isinstance(value, Shell) else value
        if isinstance(inner, Mapping) and not any(isinstance(part, Tensor) for part in inner.values()):
            yield from _inside({str(key): part for key, part in inner.items()}, depth - 1)


def _value(table: Mapping[str, Any], keys: tuple[str, ...]) -> tuple[str, Any]:
    """The first of the keys that is there, and its value: numbers of a tensor, or what a text means."""
    key = next((key for key in keys if table.get(key) is not None), "")
    value = table.get(key)
    if isinstance(value, Tensor):
        value = value.flatten().tolist() if value.numel() < 100 else None
    if isinstance(value, str) and len(value) < 1000:  # as the head of a safetensors file has everything
        for text in (value, f"[{value}]"):
            try:
                return key, json.loads(text)
            except (ValueError, RecursionError):
                continue
    return key, value


def _size(table: Mapping[str, Any]) -> Said:
    """Height and width: of a number, two of them, three with the channels first, or a table."""
    key, value = _value(table, SIZES)
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    sides = sides[1:] if len(sides) == 3 and sides[0] in (1, 3) else sides
    if len(sides) != 2 or not all(type(side) is int and 16 <= side <= 2048 for side in sides):
        return {}
    return {"size": ((sides[0], sides[1]), f"its {key} is {sides[0]} x {sides[1]}")}


def _margin(table: Mapping[str, Any], side: int) -> Said:
    """The shorter side before the cut: itself, or as timm has it, the share that is cut out."""
    key, value = _value(table, MARGINS)
    if type(value) is int and side <= value <= 4 * side:
        return {"resize": (value, f"its {key} is {value}")}
    share = _value(table, ("crop_pct",))[1]
    if type(share) in (int, float) and 0.25 < share <= 1:
        return {"resize": (math.floor(side / share), f"its crop_pct is {share:g}")}
    return {}


def _filter(table: Mapping[str, Any]) -> Said:
    value = table.get("interpolation")
    known = isinstance(value, str) and value in FILTERS
    return {"interpolation": (value, f"its interpolation is {value}")} if known else {}


def _colours(table: Mapping[str, Any], channels: int, doubts: dict[str, str]) -> Said:
    """Mean and std of values in [0, 1]: those of bytes are divided by 255, one number is for all."""
    (mean_key, mean), (std_key, std) = _value(table, MEANS), _value(table, STDS)
    both = mean is not None and std is not None
    # A single mean and std may be of an accuracy, unless they stand beside a size of photographs.
    single = both and ((mean_key, std_key) != ("mean", "std") or bool(_size(table)))
    read = {
        "mean": _numbers(mean, channels, single=single),
        "std": _numbers(std, channels, single=single),
    }
    scale = 255 if read["mean"] is not None and max(read["mean"]) > 1 else 1
    found: Said = {}
    for field, key, value, least in (("mean", mean_key, mean, 0.0), ("std", std_key, std, 1e-6)):
        numbers = read[field]
        if numbers is not None and all(least <= number / scale <= 1 for number in numbers):
            of_bytes = ", of bytes" if scale > 1 else ""
            shown = ",".join(f"{number:.4g}" for number in numbers)
            found[field] = tuple(n / scale for n in numbers), f"its {key} is {shown}{of_bytes}"
        elif both:
            doubts[field] = f"its {key} ({value!a:.40}) is not taken: --{field}"
    return found


def _numbers(value: Any, channels: int, *, single: bool) -> list[float] | None:
    """One for each channel. single: whether one alone may be meant for all."""
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    if not all(type(number) in (int, float) and -1e6 < number < 1e6 for number in numbers):
        return None
    if len(numbers) == 1 and single:
        numbers *= channels
    return [float(number) for number in numbers] if len(numbers) == channels else None
