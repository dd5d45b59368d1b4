"""The engine `local`: this machine, one part after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

from camkit.contracts.engine import Engine, Outcome, Part, Work


class LocalEngine(Engine):
    """One process on this machine, with others that read for it."""

    summary = "this machine: one process explains, others read for it"

    def run(self, work: Work, parts: Iterable[Part]) -> Iterator[Outcome]:
        """Each part, in their order."""
        with closing(work.start()) as worker:
            yield from map(worker, parts)
