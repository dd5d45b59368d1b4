"""One job of the model at a time, a short queue before it, and a limit on how long anybody waits."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from torch.nn.modules.module import register_module_forward_pre_hook

T = TypeVar("T")

WAITING = 8
SECONDS = 60.0

TOO_LONG = "That took longer than {:g} seconds. Try a cheaper method or a smaller model."
BEHIND = "For {:g} seconds the model was busy with what was asked before. Try again in a moment."


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
        unwanted = threading.Event()
        future = self._thread.submit(partial(_stoppable, work, unwanted))
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # of the work itself
            raise Busy((BEHIND if future.cancelled() else TOO_LONG).format(self._seconds)) from None
        finally:
            unwanted.set()

    def end(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _stoppable(work: Callable[[], T], unwanted: threading.Event) -> T:
    """What `work` returns, unless a module runs in this thread once it is unwanted."""
    thread = threading.get_ident()

    def check(*_: Any) -> None:
        if unwanted.is_set() and threading.get_ident() == thread:
            raise Stopped

    hook: Any = register_module_forward_pre_hook(check)
    try:
        return work()
    finally:
        hook.remove()
