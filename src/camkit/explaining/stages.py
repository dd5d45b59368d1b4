"""Where the time of a run goes: which stage the others wait for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")


class Stages:
    """Seconds that the process with the model waited for photographs, and for files; the rest is its own.

    Photographs are read, and results written, beside it: as long as it need not wait they cost no time.
    """

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._waited = {"reading": 0.0, "writing": 0.0}

    @contextmanager
    def waiting(self, stage: str) -> Iterator[None]:
        """A block that waits for a stage."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._waited[stage] += time.perf_counter() - begun

    def each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """The items of a stage, as they come."""
        source = iter(items)
        while True:
            with self.waiting(stage):
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def shares(self) -> dict[str, float]:
        """The part, 0 to 1, of the time until now that went into each stage; they sum to 1."""
        whole = time.perf_counter() - self._begun
        waited = {stage: seconds / whole for stage, seconds in self._waited.items()}
        return {"explaining": max(0.0, 1 - sum(waited.values())), **waited}
