"""A run that an engine does, from its photographs to its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from camkit.contracts.engine import Engine, Outcome
from camkit.engines import store, tables
from camkit.engines.parts import Parts
from camkit.engines.work import ExplainWork
from camkit.errors import UsageError
from camkit.explaining import parquet
from camkit.explaining.request import ExplainRequest
from camkit.images.listing import Listing


class EngineRun:
    """A request whose parts an engine does; all that it names is checked before any photograph is read.

    skipped: parts that were done before. work: what is done with each part.
    """

    def __init__(
        self,
        request: ExplainRequest,
        listing: Listing,
        out: str,
        *,
        workers: int = 2,
        part_size: int = parquet.PHOTOS,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Raises what `load_model` and `plan` raise, and `UsageError` for photographs that are not there.

        out: a folder or an address. part_size: photographs of a part, about.
        note: gets what a user should know.
        """
        store.check(out)
        store.tidy(out)
        tables.check_tables_alone(out)
        if not request.resume:
            tables.check_new(out)
        if next(iter(listing), None) is None:
            raise UsageError("no photograph belongs to this shard")
        self.work = ExplainWork.of(request, out, workers, note, part_size)
        parts = Parts(listing, self.work.photographs, self.work.id)
        found = tables.left(parts, out) if request.resume else tables.Left(parts)
        self.parts, self.skipped, self._stale = found.parts, found.skipped, found.stale

    def outcomes(self, engine: Engine) -> Iterator[Outcome]:
        """Each part that is done, as soon as its table is there."""
        tables.remove(self.work.out, self._stale)  # their photographs are done anew
        outcomes: Any = engine.run(self.work, self.parts)
        with closing(outcomes):
            for outcome in outcomes:
                yield outcome
                if outcome.failed and self.work.request.on_error == "fail":
                    return
