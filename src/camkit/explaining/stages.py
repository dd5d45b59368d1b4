"""Where the time of a run goes: which stage the others wait for."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Stages:
    """Seconds that the model waited for photographs, and for its results to be taken; the rest is its own.

    Photographs are read, and results written, beside it: as long as it need not wait they cost no time.
    """

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._waited = {"reading": 0.0, "writing": 0.0}

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Photographs, as they come; the time until each is there goes into reading."""
        source = iter(items)
        while True:
            begun = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            finally:
                self._waited["reading"] += time.perf_counter() - begun
            yield item

    def ahead(self, items: Iterator[T]) -> Generator[T]:
        """The items, each of which is computed, in a thread, while the caller is busy with the one before.

        Time in which nothing is computed, because the caller still is, goes into writing.
        """
        end = object()

        def compute() -> tuple[T | object, float]:
            return next(items, end), time.perf_counter()

        with ThreadPoolExecutor(1, "model") as thread:
            coming = thread.submit(compute)
            while True:
                item, finished = coming.result()
                if item is end:
                    return
                self._waited["writing"] += time.perf_counter() - finished
                coming = thread.submit(compute)
                yield item  # type: ignore[misc]  # which is not the end

    def shares(self) -> dict[str, float]:
        """The part, 0 to 1, of the time until now that went into each stage; they sum to 1."""
        whole = time.perf_counter() - self._begun
        waited = {stage: seconds / whole for stage, seconds in self._waited.items()}
        return {"explaining": max(0.0, 1 - sum(waited.values())), **waited}
