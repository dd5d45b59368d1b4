"""What a file of weights, or `preprocessor_config.json` beside it, says of how photographs are shown."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from camkit.files import is_file, read_regular
from camkit.models.checkpoint import Checkpoint

BESIDE = "preprocessor_config.json"
MAX_FILE = 2**20  # bytes

# By the field of `Preprocess`, what people call it in a checkpoint, and transformers in its file.
KEYS = {
    "size": ("image_size", "img_size", "imgsz", "input_size", "crop_size"),
    "mean": ("image_mean", "img_mean", "norm_mean", "mean"),
    "std": ("image_std", "img_std", "norm_std", "std"),
}


def stored(checkpoint: Checkpoint, channels: int) -> dict[str, tuple[Any, str]]:
    """The fields of `Preprocess` that are said, each with a text of where; not what cannot be meant.

    channels: of the photographs.
    """
    found: dict[str, tuple[Any, str]] = {}
    for where, table in _tables(checkpoint):
        for field, keys in KEYS.items():
            for key in keys if field not in found else ():
                value = _value(table.get(key))
                read = _size(value) if field == "size" else _numbers(value, channels, low=field == "mean")
                if read is not None:
                    found[field] = read, f"{where}{key} is {_text(field, read)}"
                    break
    return found


def _tables(checkpoint: Checkpoint) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for table in checkpoint.tables():
        yield "its ", table
    file = checkpoint.path.parent / BESIDE
    if is_file(file):
        try:
            table = json.loads(read_regular(Path(file), MAX_FILE))
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(table, dict):
            if table.get("do_center_crop") is False or "crop_size" not in table:
                table = {**table, "crop_size": table.get("size")}
            yield f"{BESIDE}: ", table


def _value(value: Any) -> Any:
    """Of a tensor its numbers, and of a text, as the head of a safetensors file has, what it means."""
    if isinstance(value, Tensor):
        return value.flatten().tolist() if value.numel() < 100 else None
    if isinstance(value, str) and len(value) < 1000:
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value


def _size(value: Any) -> tuple[int, int] | None:
    """Height and width: of a number, two of them, three with the channels first, or a table."""
    if isinstance(value, Mapping):
        value = [value.get("height"), value.get("width")]
    sides = list(value) if isinstance(value, list | tuple) else [value, value]
    sides = sides[1:] if len(sides) == 3 and sides[0] in (1, 3) else sides
    fit = len(sides) == 2 and all(type(side) is int and 16 <= side <= 2048 for side in sides)
    return (sides[0], sides[1]) if fit else None


def _numbers(value: Any, channels: int, *, low: bool) -> tuple[float, ...] | None:
    """One for each channel, of values in [0, 1]; low: it may be 0."""
    numbers = list(value) if isinstance(value, list | tuple) else []
    if len(numbers) != channels or not all(type(number) in (int, float) for number in numbers):
        return None
    fit = all(0 <= number <= 1 and (low or number > 0) for number in numbers)  # not NaN either
    return tuple(map(float, numbers)) if fit else None


def _text(field: str, value: tuple[float, ...]) -> str:
    return (" x " if field == "size" else ",").join(f"{number:.3g}" for number in value)
