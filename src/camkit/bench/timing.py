"""How long calls take, measured so that the comparison is fair.

Warmed up first; then every call once in each round, in shuffled order, so that whatever slows the machine
for a while slows all of them. Raw samples are kept; what they mean is for `statistics`.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from camkit.core import devices

Call = Callable[[], object]
BUSY = 0.5  # a device that works for a smaller share of a call mostly waits for the host


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one call.

    host: from the call to the finished result. On an accelerator also `device`, between two events around
    the call, and `enqueue`, until the call returned, whether or not the result was finished.
    """

    host: float
    device: float | None = None
    enqueue: float | None = None


Timer = Callable[[Call], Sample]


@dataclass(frozen=True)
class Rounds:
    """How often: `warmup` rounds that do not count, then rounds until `seconds` have passed.

    But at least `least` and at most `most` of them.
    """

    warmup: int = 2
    least: int = 5
    most: int = 64
    seconds: float = 10.0


@dataclass(frozen=True, slots=True)
class Cold:
    """The very first time of a call: seconds, and whether torch's compiler ran in it."""

    seconds: float
    compiled: bool = False


@dataclass
class Timed:
    """What was measured for one call: a sample of each round.

    error: what it raised; from then on it was not called again.
    """

    samples: list[Sample] = field(default_factory=list)
    error: Exception | None = None

    @property
    def host(self) -> list[float]:
        """Seconds from call to result."""
        return [sample.host for sample in self.samples]


def interleaved(
    calls: Mapping[str, Call],
    timer: Timer,
    rounds: Rounds,
    seed: int = 0,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, Timed]:
    """Time `calls` in shuffled rounds; one that raises is left out from then on, the others go on."""
    timed = {name: Timed() for name in calls}

    def once(name: str) -> Sample | None:
        if timed[name].error is None:
            try:
                return timer(calls[name])
            except Exception as error:  # of a plugin, which may raise anything
                timed[name].error = error
        return None

    order, shuffle = list(calls), random.Random(seed)
    gc.collect()
    start, count = now(), 0
    while count < rounds.warmup + rounds.least or (
        count < rounds.warmup + rounds.most and now() - start < rounds.seconds
    ):
        shuffle.shuffle(order)
        for name in order:
            sample = once(name)
            if sample and count >= rounds.warmup:
                timed[name].samples.append(sample)
        count += 1
    return timed


def cold(call: Call, timer: Timer) -> Cold | None:
    """Time the first run of a call, before any part of it has run; `None` if it raises."""
    before = _compiler_times()
    try:
        sample = timer(call)
    except Exception:  # of a plugin, which may raise anything; it will raise again where maps are made
        return None
    return Cold(sample.host, _compiler_times() != before)


def _compiler_times() -> object:
    """What torch's compiler has spent so far, phase by phase; nothing where it was never imported."""
    compiler = sys.modules.get("torch._dynamo.utils")
    return compiler.compile_times(repr="csv", aggregate=True) if compiler else ([], [])


def timer(device: torch.device) -> Timer:
    """The way to time calls on `device`, until the device has finished."""
    return _on_host if device.type == "cpu" else partial(_on_accelerator, device)


def _on_host(call: Call) -> Sample:
    start = time.perf_counter()
    call()
    return Sample(time.perf_counter() - start)


def _on_accelerator(device: torch.device, call: Call) -> Sample:
    devices.synchronise(device)
    start = time.perf_counter()
    watch = devices.Stopwatch(device)
    call()
    enqueue = time.perf_counter() - start
    watch.stop()
    devices.synchronise(device)
    host = time.perf_counter() - start
    return Sample(host, watch.seconds, enqueue)


def launch_bound(kernels: float | None, host: float) -> bool | None:
    """Whether a device waits for most of a call, so that a faster one would not help; `None` on a CPU.

    kernels: seconds that it works for the call (`devices.kernel_seconds`), host: those of the call. Not
    judged by how soon the call returns, as one that waits inside returns late.
    """
    return None if kernels is None else kernels < BUSY * host


# --- memory -----------------------------------------------------------------------------------------


@contextmanager
def settled() -> Iterator[None]:
    """Collects garbage first; later collections then skip all older objects."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def peak_memory(call: Call, device: torch.device) -> dict[str, int]:
    """Bytes that a call needs beyond those in use before.

    On accelerators what `devices.peak_memory` says. On Linux `resident`: a lower bound, because a reuse of
    memory that the process has kept goes unseen. Empty where it cannot be read.
    """
    if device.type != "cpu":
        return devices.peak_memory(call, device)
    if not _reset_resident_peak():
        return {}
    before_call = _status("VmRSS")
    call()
    peak = _status("VmHWM")
    return {"resident": max(0, peak - before_call)} if before_call and peak else {}


def _reset_resident_peak() -> bool:
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # reuse of what the allocator has kept would go unseen
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError, TypeError):
        return False
    return True


def _status(key: str) -> int:
    """Bytes of an entry of /proc/self/status; 0 if it is not there."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    return 0
