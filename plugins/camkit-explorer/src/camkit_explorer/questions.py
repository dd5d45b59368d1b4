"""What the page asks, read strictly: JSON with known fields of known types."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from camkit.errors import UsageError
from camkit_explorer.colours import NAMED

SIDE = 128  # cells of a side of the mask that a brush paints
MAX_CLASSES = 64  # that a question may name one by one
MAX_TEXT = 300

Mask = np.ndarray[Any, np.dtype[np.bool_]]


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**31:
        raise ValueError("a number from 0 up")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT:
        raise ValueError("a short text")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _fraction(value: Any) -> float:
    if type(value) not in (int, float) or not (math.isfinite(value) and 0 <= value <= 1):
        raise ValueError("a number from 0 to 1")
    return float(value)


def _numbers(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_CLASSES:
        raise ValueError(f"a list of 1 to {MAX_CLASSES} numbers")
    return tuple(map(_number, value))


def _colours(value: Any) -> str:
    if value not in ("", *NAMED):
        raise ValueError(f"empty or one of {', '.join(NAMED)}")
    return str(value)


def _scale(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float) or not (math.isfinite(value) and value > 0):
        raise ValueError("a number above 0")
    return float(value)


def _mask(value: Any) -> Mask:
    try:
        data = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        data = b""
    if len(data) != SIDE * SIDE // 8:
        raise ValueError(f"{SIDE} x {SIDE} bits in base64")
    bits = np.unpackbits(np.frombuffer(data, np.uint8))
    return bits.reshape(SIDE, SIDE).astype(bool)


# By the name of the field. What is missing has the default of `Question`.
READERS: dict[str, Callable[[Any], Any]] = {
    "model": _number,
    "photograph": _number,
    "backend": _text,
    "method": _text,
    "layer": _text,
    "classes": _numbers,
    "target": _number,
    "beside_backend": _text,
    "beside_method": _text,
    "mask": _mask,
    "fill": _text,
    "rectified": _flag,
    "against": _flag,
    "cells": _flag,
    "opacity": _fraction,
    "colours": _colours,
    "scale": _scale,
}


@dataclass(frozen=True)
class Question:
    """One question of the page; each address needs some of it.

    model, photograph: their numbers in the session. backend, method, layer: what explains.
    classes: those whose maps are wanted; `None` leaves it to the server. target: the class that is shown.
    beside_backend, beside_method: what is compared with. mask: bool `[SIDE, SIDE]` over what the model
    sees, true where the brush painted; fill: what is put there. rectified, against, cells, opacity,
    colours, scale: the look; colours: a colour map of matplotlib, or empty for camkit's own; scale: the
    value of the strongest colour, `None` for the largest of the map.
    """

    model: int = 0
    photograph: int = 0
    backend: str = "native"
    method: str = "gradcam"
    layer: str = "auto"
    classes: tuple[int, ...] | None = None
    target: int = 0
    beside_backend: str = "native"
    beside_method: str = "gradcam"
    mask: Mask | None = None
    fill: str = "blur"
    rectified: bool = False
    against: bool = False
    cells: bool = False
    opacity: float = 0.8
    colours: str = ""
    scale: float | None = None

    @classmethod
    def read(cls, body: bytes) -> Question:
        """From the body of a request; `UsageError` with the field that is wrong."""
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            raise UsageError("the question is no JSON") from None
        if not isinstance(given, dict):
            raise UsageError("the question is no JSON object")
        values = {}
        for name, value in given.items():
            if name not in READERS:
                raise UsageError(f"the question has an unknown field {name[:40]!r}")
            try:
                values[name] = READERS[name](value)
            except ValueError as error:
                raise UsageError(f"{name} must be {error}") from None
        return cls(**values)


assert {field.name for field in fields(Question)} == set(READERS)
