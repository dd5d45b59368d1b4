"""Masks as COCO has them: how many pixels lie outside, inside, outside, ... down the columns.

Written as pycocotools writes them, as a text; read are texts and lists of numbers, which may be strangers'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Mask = np.ndarray[Any, np.dtype[np.bool_]]

MAX_SIDE = 20_000  # pixels
MAX_PIXELS = 2**27
# A number is written in groups of five bits, the lowest first, as characters from FIRST on.
FIRST, BITS = 48, 5
MORE, SIGN = 1 << BITS, 1 << BITS - 1
LONGEST = 8  # groups of a number: more than the pixels of any photograph


def encoded(mask: Mask) -> dict[str, Any]:
    """A mask, bool `[h, w]`, as `size` (h, w) and `counts`, a text."""
    column = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(column)) + 1
    # The first run lies outside, and is empty where the first pixel is inside.
    starts = np.concatenate([[0] if len(column) and column[0] else [], [0], edges, [len(column)]])
    return {"size": list(mask.shape), "counts": _written(np.diff(starts).astype(int).tolist())}


def decoded(value: Mapping[str, Any]) -> Mask:
    """The mask, bool `[h, w]`; `ValueError` for what is none."""
    height, width = _size(value.get("size"))
    counts = value.get("counts")
    runs = _read(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or any(type(run) is not int or run < 0 for run in runs):
        raise ValueError("run lengths are a text of COCO's, or a list of numbers")
    if sum(runs) != height * width:
        raise ValueError(f"run lengths of {sum(runs)} pixels for {height} x {width}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(width, height).T


def _size(value: object) -> tuple[int, int]:
    if (
        not isinstance(value, list)
        or len(value) != 2
        or any(type(side) is not int or not 0 < side <= MAX_SIDE for side in value)
        or value[0] * value[1] > MAX_PIXELS
    ):
        raise ValueError(f"{str(value)[:50]} is no size of a mask: height and width")
    return value[0], value[1]


def _written(runs: list[int]) -> str:
    """From the fourth on, what is written is the difference to the run before the last."""
    told = [run - runs[n - 2] if n > 2 else run for n, run in enumerate(runs)]
    return "".join(map(_text, told))


def _text(number: int) -> str:
    text = ""
    while True:
        group, number = number & MORE - 1, number >> BITS
        if number == (-1 if group & SIGN else 0):
            return text + chr(FIRST + group)
        text += chr(FIRST + group + MORE)


def _read(text: str) -> list[int]:
    runs: list[int] = []
    for number in _numbers(text):
        runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _numbers(text: str) -> Iterator[int]:
    number = shift = 0
    for character in text:
        group = ord(character) - FIRST
        if not 0 <= group < 2 * MORE or shift == LONGEST * BITS:
            raise ValueError("run lengths that are no text of COCO's")
        number |= (group & MORE - 1) << shift
        shift += BITS
        if not group & MORE:
            yield number - (1 << shift if group & SIGN else 0)
            number = shift = 0
    if shift:
        raise ValueError("run lengths that end within a number")
