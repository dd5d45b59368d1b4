"""What a user may write for a device, known before torch is imported."""

from __future__ import annotations

import re

from camkit.errors import UsageError

WAYS = "auto, cpu, cuda[:N], mps or xpu[:N]"


def no_device(name: object) -> UsageError:
    """The error for a device that there is not."""
    return UsageError(f"there is no device {name!r}: use {WAYS}")


def check_device_name(name: str) -> None:
    """A device as torch writes them; which kinds there are torch alone knows, for packages add some."""
    if not re.fullmatch(r"[a-z]\w*(:\d{1,4})?", name):
        raise no_device(name)
