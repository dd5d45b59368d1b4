"""One job of the model at a time, a short queue before it, and a limit on how long anybody waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

WAITING = 8
SECONDS = 60.0

TOO_LONG = "That took longer than {:g} seconds. Try a cheaper method or a smaller model."
BEHIND = (
    "For {:g} seconds the model was busy with what was asked before, which cannot be stopped. "
    "Try again in a moment."
)


class Busy(Exception):
    """A job was not done: there are too many before it, or it takes too long."""


class Jobs:
    """Runs functions in one thread, in the order in which they came.

    waiting: how many may be begun and waiting together. seconds: how long one may wait and work. A thread
    cannot be stopped: what takes too long goes on, the next job begins when it has ended, and whoever asks
    meanwhile waits as long at most.
    """

    def __init__(self, *, waiting: int = WAITING, seconds: float = SECONDS) -> None:
        self._waiting, self._seconds = waiting, seconds
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._open: set[Future[Any]] = set()

    async def do(self, work: Callable[[], T]) -> T:
        """What `work` returns or raises; `Busy` if it cannot be done in time.

        If the caller is cancelled, a job that has not begun is never done.
        """
        if len(self._open) >= self._waiting:
            raise Busy(f"The model is busy: {self._waiting} questions wait already. Try again in a moment.")
        future = self._thread.submit(work)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._seconds)
        except TimeoutError:
            if future.done() and not future.cancelled():
                raise  # of the work itself
            raise Busy((BEHIND if future.cancelled() else TOO_LONG).format(self._seconds)) from None

    def end(self) -> None:
        """Begin nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
