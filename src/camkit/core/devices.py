"""Where a model runs, and in which type."""

from __future__ import annotations

import torch

from camkit.errors import UsageError, typed_reason

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def pick_device(device: str | torch.device) -> torch.device:
    """`auto` or a torch device; `UsageError` if this machine cannot compute on it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"there is no device {device!r}: use auto, cpu, cuda or cuda:N") from None
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"device {device!r} is not there: torch sees {count} CUDA devices")
    try:
        torch.zeros(1, device=picked).item()
    # Torch knows devices that it was not built for, or that hold no values; each fails in its own way.
    except Exception as error:
        raise UsageError(f"device {device!r} cannot be used: {typed_reason(error)}") from None
    return picked


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point torch type by name."""
    picked = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if picked not in DTYPES:
        raise UsageError(f"there is no type {dtype!r}: use float32, bfloat16, float16 or float64")
    return picked
