"""What a user may write for a device, and the cores of the CPU: known before torch is imported."""

from __future__ import annotations

import os
import re
from typing import Literal

from camkit.errors import UsageError

WAYS = "auto, cpu, cuda[:N], mps or xpu[:N]"

# How float32 is multiplied: as it is, or with factors rounded to 10 bits, as some chips do by themselves.
Precision = Literal["ieee", "tf32"]
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32")
# How far two computations of one map may then be apart, relative to its peak. With TF32 3e-3 were seen.
ROUNDED = {"tf32": 1e-2, "bf16": 5e-2}


def no_device(name: object) -> UsageError:
    """The error for a device that there is not."""
    return UsageError(f"there is no device {name!r}: use {WAYS}")


def check_device_name(name: str) -> None:
    """A device as torch writes them; which kinds there are torch alone knows, for packages add some."""
    if not re.fullmatch(r"[a-z]\w*(:\d{1,4})?", name):
        raise no_device(name)


def usable_cores() -> int:
    """The cores of the CPU that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
