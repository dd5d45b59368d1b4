"""A request from its photographs to the folder of results: what the command, a script or a page calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from functools import partial
from itertools import groupby, islice
from threading import Event

from camkit.errors import ImageError
from camkit.explaining import pipeline
from camkit.explaining.manifest_lines import Result
from camkit.explaining.naming import output_name
from camkit.explaining.output import Output
from camkit.explaining.plan import make_backends
from camkit.explaining.planning import planned
from camkit.explaining.request import ExplainRequest
from camkit.explaining.stages import Stages
from camkit.explaining.writers import Written
from camkit.images import workers
from camkit.images.decoding import DRAWN, digest
from camkit.images.finding import Source
from camkit.images.listing import Listing
from camkit.images.workers import Failure, Processes
from camkit.metrics import ground_truth
from camkit.registry.options import check_methods


class Run:
    """A request with everything that it names: made, loaded and checked before any photograph is read.

    work: what is computed. id: the same for two runs with the same results. is_any: whether a photograph
    falls into the part that is asked for. skipped: photographs that were done before. stages: what the time
    goes into.
    """

    def __init__(
        self,
        request: ExplainRequest,
        processes: Processes | None = None,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        """Raises what `load_model`, `plan` and `Output` raise.

        processes: which read the photographs; without, this one does. note: gets what a user should know.
        """
        self._request, self._processes = request, processes
        truth = ground_truth.read(request.truth) if request.truth else None
        # Before the model is loaded, so that what is misspelt or broken is told at once.
        backends = make_backends(request.backends, request.methods, request.options)
        check_methods({m.name: m.explainer.Options for m in backends}, request.options, request.methods)
        for made in backends:
            if lacking := [m for m in dict.fromkeys(request.methods) if m not in made.methods]:
                note(f"{made.name} has no {', '.join(lacking)}")
        self.is_any = any(True for _ in self.sources())
        read = processes.read if processes else workers.read
        found = planned(request, read=read)
        self.work, self.id = found.work, found.id
        if note_of_model := self.work.model.note:
            note(note_of_model)
        self.skipped = 0
        self.stages = Stages()
        self.output = Output(
            request.out,
            style=request.style,
            name_layers=request.layers != ("auto",),
            format=request.format,
            image_format=request.image_format,
            spec=found.spec,
            facts=request.facts,
            request=self.id,
            resume=request.resume,
            truth=truth,
        )

    def sources(self) -> Iterator[Source]:
        """The photographs of the part that is asked for."""
        request = self._request
        listing = request.listing or Listing(request.images, without=str(request.out), shard=request.shard)
        return (Source(one.path, one.name) for one in listing)

    def written(self, interrupted: Event | None = None) -> Iterator[Written]:
        """Write the results of each photograph, and say what was written.

        Once `interrupted` is set what was begun is finished, and `KeyboardInterrupt` raised.
        """
        request = self._request
        size, read = request.batch_size, workers.read
        if self._processes is not None:
            read = partial(self._processes.read, ahead=2 * size)
        stream = pipeline.stream(
            self.work,
            self._missing() if request.resume else self.sources(),
            batch_size=size,
            read=lambda *args, **options: self.stages.each(read(*args, **options)),
            ahead=self.stages.ahead,
            whole=request.style.view == "original" and request.format == "png",
            side=request.style.size or DRAWN,
            rows=sum(1 for _ in islice(self.sources(), size)),  # the same when the run is resumed
        )
        groups: Iterator[list[Result]] = (
            list(group) for _, group in groupby(stream, key=lambda result: result.position)
        )
        if request.on_error == "fail":
            groups = _until_failure(groups)
        with closing(stream):  # the model works ahead of what is written; it ends first
            yield from self.output.write_all(_until(groups, interrupted or Event()))

    def _missing(self) -> Iterator[Source]:
        """The sources without the batches of which everything is there.

        Batches stay as they were, because the last digits of a score depend on who shares its batch.
        """
        sources = self.sources()
        while batch := list(islice(sources, self._request.batch_size)):
            there = [self._is_there(source) for source in batch]
            self.skipped += sum(there)
            if not all(there):
                yield from batch

    def _is_there(self, source: Source) -> bool:
        try:
            return self.output.has(output_name(source.name), digest(source.path))
        except ImageError:
            return False


def _until_failure(groups: Iterable[list[Result]]) -> Iterator[list[Result]]:
    """The groups up to the first that holds a failure, with it."""
    for group in groups:
        yield group
        if any(isinstance(result, Failure) for result in group):
            return


def _until(groups: Iterable[list[Result]], interrupted: Event) -> Iterator[list[Result]]:
    for group in groups:
        if interrupted.is_set():
            raise KeyboardInterrupt
        yield group
