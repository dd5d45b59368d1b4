"""One job of the model at a time, a short queue before it, and a limit on how long anybody waits."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Generic, TypeVar

from torch.nn.modules.module import register_module_forward_pre_hook

T = TypeVar("T")

WAITING = 8
M_ARENA_MAX = -8  # of glibc's `malloc.h`
SECONDS = 60.0

TOO_LONG = "That took longer than {:g} seconds. Try a cheaper method or a smaller model."
BEHIND = "For {:g} seconds the model was busy with what was asked before. Try again in a moment."


def one_arena() -> None:
    """Let all threads share their memory where the C library is glibc, before they begin.

    What a thread has freed goes back to the system after each forward, which takes as long again.
    """
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)


class Busy(Exception):
    """A job was not done: there are too many before it, or it takes too long."""


class Stopped(BaseException):
    """Ends a job that nobody waits for; no `except Exception` of an explainer catches it."""


class Jobs:
    """Runs functions in one thread, in the order in which they came.

    waiting: how many may be begun and waiting together. seconds: how long one may wait and work. What takes
    longer, or is not wanted any more, ends where the next module of the model would run.
    """

    def __init__(self, *, waiting: int = WAITING, seconds: float = SECONDS) -> None:
        self._waiting, self._seconds = waiting, seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._open: set[Future[Any]] = set()

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises; `Busy` if it cannot be done in time.

        If the caller is cancelled, a job that has not begun is never done, and one that has is stopped.
        """
        if len(self._open) >= self._waiting:
            raise Busy(f"The model is busy: {self._waiting} questions wait already. Try again in a moment.")
        job = _Job(work)
        future = self._thread.submit(job)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # of the work itself
            raise Busy((BEHIND if future.cancelled() else TOO_LONG).format(self._seconds)) from None
        finally:
            job.stop()

    def now(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises, in the thread of all jobs; the caller waits for it."""
        return self._thread.submit(work).result()

    def end(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


class _Job(Generic[T]):
    """Work that ends where the next module would run in its thread, once it is stopped.

    Until then nothing is hooked: a hook of all modules costs a quarter of a small network's forward.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work, self._lock = work, threading.Lock()
        self._stopped = self._ended = False
        self._thread: int | None = None
        self._hook: Any = None

    def __call__(self) -> T:
        """What the work returns."""
        with self._lock:
            if self._stopped:
                raise Stopped
            self._thread = threading.get_ident()
        try:
            return self._work()
        finally:
            with self._lock:
                self._ended = True
                if self._hook is not None:
                    self._hook.remove()

    def stop(self) -> None:
        """Nobody waits for it any more; nothing happens if it has ended."""
        with self._lock:
            self._stopped = True
            if self._thread is not None and not self._ended and self._hook is None:
                self._hook = register_module_forward_pre_hook(self._check)

    def _check(self, *_: Any) -> None:
        if threading.get_ident() == self._thread:
            raise Stopped
