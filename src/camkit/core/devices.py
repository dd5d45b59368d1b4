"""Devices: which exist, and everything that differs between them.

What torch offers for every accelerator (`torch.accelerator`) is preferred to what it offers for one kind
(`torch.get_device_module`). No other module names a kind of accelerator, so a new one needs no change
elsewhere.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor

from camkit.core.device_names import no_device
from camkit.errors import UsageError, counted, reason, typed_reason, warn

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CPU = torch.device("cpu")

T = TypeVar("T")

# --- which one, and in which type --------------------------------------------------------------------


def pick_device(device: str | torch.device) -> torch.device:
    """`auto` or a torch device, with its number; `UsageError` if this machine cannot compute on it.

    auto: the accelerator, if there is one and it answers; else the CPU. A `CamkitWarning` tells of one that
    does not answer, as with a driver that is too old.
    """
    if device == "auto":
        return _accelerator()
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError):
        raise no_device(device) from None
    if picked.index is not None and picked.index >= (count := _count(picked)):
        devices = counted(count, f"{picked.type} device")
        raise UsageError(f"there is no device {device!r}: torch sees {devices}")
    try:
        return _answering(picked)
    # Torch knows devices that it was not built for, or that hold no values; each fails in its own way.
    except Exception as error:
        raise UsageError(f"device {device!r} cannot be used: {typed_reason(error)}") from None


def _accelerator() -> torch.device:
    found = torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return CPU
    try:
        return _answering(found)
    except Exception as error:  # a driver may raise anything
        warn(f"the accelerator {found} does not answer, so the CPU computes: {reason(error)}")
        return CPU


def _answering(device: torch.device) -> torch.device:
    """The device by its full name, after it has returned a number."""
    probe = torch.zeros(1, device=device)
    probe.item()
    return probe.device


def _count(device: torch.device) -> int:
    """How many devices of this kind torch sees; 0 for a kind that it does not know."""
    try:
        return int(torch.get_device_module(device).device_count())
    except (RuntimeError, AttributeError):
        return 0


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point torch type by name."""
    picked = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if picked not in DTYPES:
        raise UsageError(f"there is no type {dtype!r}: use float32, bfloat16, float16 or float64")
    return picked


def name(device: torch.device) -> str:
    """What a person calls an accelerator, such as `NVIDIA H100 80GB HBM3`; its kind, if it has no name."""
    module: Any = torch.get_device_module(device)
    get_name = getattr(module, "get_device_name", None)
    return str(get_name(device)) if get_name else device.type


def kind(device: torch.device) -> str:
    """What results may depend on: the kind of device and its name, but not which of several alike it is."""
    return device.type if device.type == "cpu" else f"{device.type} {name(device)}"


def facts(device: torch.device) -> dict[str, Any]:
    """Name and size of an accelerator, as far as torch knows them."""
    module: Any = torch.get_device_module(device)
    properties: Any = getattr(module, "get_device_properties", lambda _: None)(device)
    capability = f"{properties.major}.{properties.minor}" if hasattr(properties, "major") else None
    found = {
        "name": name(device),
        "memory_bytes": getattr(properties, "total_memory", None),
        "capability": capability,
        "runtime": getattr(torch.version, device.type, None),
    }
    return {fact: value for fact, value in found.items() if value is not None}


def tool_index(device: torch.device) -> str | None:
    """The name of a device for `nvidia-smi`, whichever devices this process may see; else `None`."""
    if device.type != "cuda":
        return None
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


# --- what a device can do ----------------------------------------------------------------------------


@cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64; Apple's and some of Intel's do not."""
    if device.type == "cpu":
        return True
    try:
        return bool((torch.ones(1, dtype=torch.float64, device=device) + 1).item() == 2)
    except (TypeError, RuntimeError):
        return False


def double(tensor: Tensor) -> Tensor:
    """A tensor in float64, on the CPU if its device has no such type. `.to` takes results back."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()


def has_graphs(device: torch.device) -> bool:
    """Whether a device can record work and replay it as a whole (`torch.cuda.CUDAGraph`)."""
    return device.type != "cpu" and hasattr(torch.get_device_module(device), "CUDAGraph")


def pins(device: torch.device) -> bool:
    """Whether copies to a device from pinned memory are quicker, and need no waiting."""
    return device.type in ("cuda", "xpu")


COPIED_AT_ONCE = {"cuda"}  # kinds of devices whose drivers have read small tensors when a copy returns


def put(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor on a device, without a wait where that is safe.

    The device itself fills a constant tensor. Some drivers have read a small host tensor when the call
    returns; others may read it later, when it could be gone.
    """
    if tensor.device == device:
        return tensor
    if tensor.device.type == "cpu" and tensor.numel() and bool((tensor == tensor.flatten()[0]).all()):
        return torch.full(tensor.shape, tensor.flatten()[0].item(), dtype=tensor.dtype, device=device)
    return tensor.to(device, non_blocking=device.type in COPIED_AT_ONCE and tensor.device.type == "cpu")


# --- random numbers ----------------------------------------------------------------------------------


@contextmanager
def random_state_kept(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restores the generators of the CPU and of `device` afterwards; with a `seed`, seeds them inside.

    Not by `torch.random.fork_rng`, which takes five times as long: noticeable with a single image.
    """
    module: Any = None if device.type == "cpu" else torch.get_device_module(device)
    state = torch.default_generator.get_state()
    device_state = module and module.get_rng_state(device)
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if module:
                with torch.accelerator.device_index(device.index):
                    module.manual_seed(seed)
        yield
    finally:
        torch.default_generator.set_state(state)
        if module:
            module.set_rng_state(device_state, device)


# --- time --------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Wait until a device has finished its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


class Stopwatch:
    """Times a device's work until `stop`; `seconds` is `None` on the CPU, or without events."""

    def __init__(self, device: torch.device) -> None:
        self._events: tuple[torch.Event, torch.Event] | None = None
        if device.type != "cpu":
            try:
                first, last = (torch.Event(device=device, enable_timing=True) for _ in range(2))
                first.record()
            except (RuntimeError, NotImplementedError):  # a kind without events
                return
            self._events = first, last

    def stop(self) -> None:
        """End the measurement, without waiting for the device."""
        if self._events:
            self._events[1].record()

    @property
    def seconds(self) -> float | None:
        """The time from creation to `stop`; valid after `synchronise`."""
        if self._events is None:
            return None
        try:
            return float(self._events[0].elapsed_time(self._events[1])) / 1000
        except (RuntimeError, NotImplementedError):  # the events cannot be compared
            return None


def kernel_seconds(call: Callable[[], object], device: torch.device) -> float | None:
    """How long a device computes for a call, without launch times; `None` where torch cannot tell."""
    profiler: Any = torch.profiler
    activity = getattr(profiler.ProfilerActivity, device.type.upper(), None)
    if device.type == "cpu" or activity not in profiler.supported_activities():
        return None
    with profiler.profile(activities=[activity]) as profile:
        call()
        synchronise(device)
    microseconds = sum(event.self_device_time_total for event in profile.key_averages())
    return float(microseconds) / 1e6 or None


# --- memory ------------------------------------------------------------------------------------------


def peak_memory(call: Callable[[], object], device: torch.device) -> dict[str, int]:
    """Bytes that a call needs on an accelerator beyond those in use before.

    `allocated` by tensors, and `reserved` by torch for them. Empty where that cannot be read.
    """
    memory = torch.accelerator
    try:
        synchronise(device)
        memory.empty_cache()
        memory.reset_peak_memory_stats(device)
        before = memory.memory_allocated(device), memory.memory_reserved(device)
    except (RuntimeError, NotImplementedError):  # a kind without such statistics
        return {}
    call()
    synchronise(device)
    after = memory.max_memory_allocated(device), memory.max_memory_reserved(device)
    return {"allocated": after[0] - before[0], "reserved": after[1] - before[1]}


def give_memory_back() -> None:
    """Release the memory that torch keeps on the accelerator without using it."""
    found = torch.accelerator.current_accelerator(check_available=True)
    module: Any = found and torch.get_device_module(found)
    # Not on an accelerator that was not used yet: that would take memory.
    if module and getattr(module, "is_initialized", lambda: True)():
        with suppress(RuntimeError, NotImplementedError):  # a kind that keeps none
            torch.accelerator.empty_cache()


_OUT_OF_MEMORY = re.compile(
    r"out of memory|can't allocate memory|CU(?:DNN|BLAS|SOLVER)_STATUS_ALLOC_FAILED|ERROR_OUT_OF_MEMORY"
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch, a driver or a library means that memory ran out."""
    found = isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None
    )
    return found or (error.__cause__ is not None and is_out_of_memory(error.__cause__))


# --- how exactly float32 is multiplied ----------------------------------------------------------------

_EXACT = ("none", "ieee")
_LOCK = threading.RLock()  # the switches hold for the whole process


def _switches(device: torch.device) -> tuple[Any, ...]:
    backends: Any = torch.backends
    if device.type == "cuda":
        return backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn
    return backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn


def float32_precision(device: torch.device) -> str:
    """How float32 is multiplied on a device now: `ieee`, `tf32` or `bf16`, the coarsest that torch may use.

    By default torch lets cuDNN's convolutions on CUDA devices round their factors to TF32, 10 bits.
    """
    found = {switch.fp32_precision for switch in _switches(device)}.difference(_EXACT)
    return "bf16" if "bf16" in found else min(found, default="ieee")


@contextmanager
def multiplied(device: torch.device, precision: str | None) -> Iterator[None]:
    """Inside, float32 is multiplied on a CUDA device as `precision` says; elsewhere there is no choice.

    `None`: as torch is set. Threads that need another setting take turns.
    """
    if precision is None or device.type != "cuda":
        yield
        return
    with _LOCK:
        if all((switch.fp32_precision == "tf32") == (precision == "tf32") for switch in _switches(device)):
            yield
            return
        with _switches_kept():
            torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
            torch.backends.cudnn.allow_tf32 = precision == "tf32"
            yield


def as_multiplied(device: torch.device, precision: str | None) -> str:
    """What `float32_precision` says inside `multiplied`."""
    with multiplied(device, precision):
        return float32_precision(device)


@contextmanager
def _switches_kept() -> Iterator[None]:
    """Restores the switches of torch's old and new interface afterwards; both set the same things.

    Where only the new one was used, reading the old one, as torch's compiler does, raises.
    """
    backends: Any = torch.backends
    switches = backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv, backends.cudnn.rnn
    new = [switch.fp32_precision for switch in switches]
    matmul, convolutions = (
        _setting(torch.get_float32_matmul_precision),
        _setting(lambda: backends.cudnn.allow_tf32),
    )
    try:
        yield
    finally:
        if matmul is not None:
            torch.set_float32_matmul_precision(matmul)
        if convolutions is not None:
            backends.cudnn.allow_tf32 = convolutions
        for switch, value in zip(switches, new, strict=True):
            if switch.fp32_precision != value:
                switch.fp32_precision = value


def _setting(read: Callable[[], T]) -> T | None:
    """What the old interface says, or `None` where reading it raises."""
    try:
        return read()
    except RuntimeError:
        return None


def kernel_switches() -> tuple[Any, ...]:
    """All process-wide settings that decide what a kernel computes."""
    backends: Any = torch.backends
    return (
        backends.cudnn.deterministic,
        *(switch.enabled for switch in (backends.cudnn, backends.mkldnn)),
        # Not `get_float32_matmul_precision`, which fails where the new interface was used.
        *(of.fp32_precision for of in (backends.cuda.matmul, backends.mkldnn.matmul)),
        *(of.conv.fp32_precision for of in (backends.cudnn, backends.mkldnn)),
        backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
    )


@contextmanager
def without_cudnn() -> Iterator[None]:
    """Torch's own kernels instead of cuDNN's."""
    cudnn: Any = torch.backends.cudnn
    before = cudnn.enabled
    cudnn.enabled = False
    try:
        yield
    finally:
        cudnn.enabled = before


def needs_no_cudnn(device: torch.device) -> bool:
    """Whether recurrent layers of a device are cuDNN's, which have a gradient in training mode only."""
    return device.type == "cuda"
