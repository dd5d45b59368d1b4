"""Device names as users write them, and the CPU's cores: known before torch is imported."""

from __future__ import annotations

import os
import re
from typing import Literal

from camkit.errors import UsageError

WAYS = "auto, cpu, cuda[:N], mps or xpu[:N]"

# How float32 is multiplied: as it is, or with factors rounded to 10 bits, as some chips do by default.
Precision = Literal["ieee", "tf32"]
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32")
# How far two computations of a map may then differ, relative to its peak. With TF32, 3e-3 was seen.
ROUNDED = {"tf32": 1e-2, "bf16": 5e-2}


def no_device(name: object) -> UsageError:
    """The error for a device that does not exist."""
    return UsageError(f"there is no device {name!r}: use {WAYS}")


def check_device_name(name: str) -> None:
    """Refuse a name that no device can have; only torch knows which kinds exist, as packages add some."""
    if not re.fullmatch(r"[a-z]\w*(:\d{1,4})?", name):
        raise no_device(name)


def usable_cores() -> int:
    """The cores of the CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
