"""What a process of an engine does: it explains the photographs of a part and writes their table."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

from camkit.contracts.engine import Outcome, Part, Photograph
from camkit.contracts.model import LoadedModel
from camkit.engines import tables
from camkit.explaining import parquet, pipeline
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest_lines import line_of, request_id
from camkit.explaining.map_keys import Keys
from camkit.explaining.naming import output_name
from camkit.explaining.object_seen import object_seen
from camkit.explaining.plan import Plan, plan
from camkit.explaining.request import ExplainRequest
from camkit.images import workers
from camkit.images.decoding import Fetched
from camkit.images.finding import Source
from camkit.metrics import ground_truth
from camkit.models.loading import load_quietly, with_classes

MAX_WARNINGS = 20  # of a part that are told one by one


@dataclass(frozen=True)
class ExplainWork:
    """A request, and where its tables go; it pickles.

    out: a folder or an address. id: what is asked for, apart from the photographs and the devices.
    workers: processes that read photographs beside a model. part_size: photographs of a part, about.
    """

    request: ExplainRequest
    out: str
    id: str
    workers: int = 2
    part_size: int = parquet.PHOTOS

    @classmethod
    def of(
        cls,
        request: ExplainRequest,
        out: str,
        workers: int,
        note: Callable[[str], object],
        part_size: int = parquet.PHOTOS,
    ) -> ExplainWork:
        """Raises what `load_model` and `plan` raise, before any photograph is read.

        note: gets what a user should know. The model is loaded on the CPU: the processes that explain may
        be on other machines.
        """
        model, work = planned(request, "cpu")
        if model.note:
            note(model.note)
        told = request_id(
            work,
            request.classes,
            style=request.style,
            format="parquet",
            image_format="png",
            truth=request.truth,
        )
        asked = [told, request.device, request.precision, request.batch_size]
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]
        return cls(request, out, digest, workers, part_size)

    @property
    def photographs(self) -> int:
        """How many photographs a part has: whole batches, so that they are those of any other run."""
        size = self.request.batch_size
        return size * max(1, round(self.part_size / size))

    def start(self, threads: int | None = None) -> ExplainWorker:
        """What does parts in this process; threads: that torch computes with on a CPU."""
        return ExplainWorker(self, threads)


class ExplainWorker:
    """Does parts, with the model that it has loaded; processes read for it until it is closed."""

    def __init__(self, work: ExplainWork, threads: int | None = None) -> None:
        self._work = work
        self._stack = ExitStack()
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        self._processes = self._stack.enter_context(workers.processes(work.workers))
        if threads:
            import torch

            torch.set_num_threads(threads)
        try:
            _, self._plan = planned(work.request, work.request.device)
        except BaseException:
            self.close()
            raise
        request = work.request
        spec = with_classes(request.model, request.facts.classes)
        own = request_id(
            self._plan,
            request.classes,
            style=request.style,
            format="parquet",
            image_format="png",
            truth=request.truth,
        )
        shared = {"request": own, "model_spec": spec, "model_facts": request.facts.told()}
        self._truth = ground_truth.read(request.truth) if request.truth else None
        self._keys = Keys(shared, request.layers != ("auto",))

    def __call__(self, part: Part, contents: Mapping[int, bytes] | None = None) -> Outcome:
        """Explain the photographs of a part and write their table.

        contents: the bytes of those, by their place, that have been read already.
        """
        lines, maps = [], []
        for results in self._results(part, contents or {}):
            first = results[0]
            name = output_name(first.photo.name if isinstance(first, Explanation) else first.name)
            objects = object_seen(self._truth, results) if self._truth else None
            for result in results:
                lines.append(line_of(result, name, len(results), self._keys, objects))
                maps.append(result.map.numpy() if isinstance(result, Explanation) else None)
        tables.write(self._work.out, part, self._work.id, lines, maps)
        failed = tuple((line["image"], line["error"]) for line in lines if line["status"] == "error")
        told = dict.fromkeys(text for line in lines for text in line["warnings"])
        return Outcome(part, len(lines) - len(failed), failed, tuple(told)[:MAX_WARNINGS])

    def close(self) -> None:
        """End the processes that read."""
        self._stack.close()

    def _results(self, part: Part, contents: Mapping[int, bytes]) -> Iterator[list[Any]]:
        size, read = self._work.request.batch_size, workers.read
        if self._processes is not None:
            read = partial(self._processes.read, ahead=2 * size)
        sources = [_source(one, contents.get(place)) for place, one in enumerate(part.photographs)]
        stream = pipeline.stream(self._plan, sources, batch_size=size, read=read, whole=False, rows=size)
        for _, group in groupby(stream, key=lambda result: result.position):
            yield list(group)


def planned(request: ExplainRequest, device: str) -> tuple[LoadedModel, Plan]:
    """The model of a request on a device, and what is computed with it."""
    model = load_quietly(
        with_classes(request.model, request.facts.classes),
        device=device,
        dtype=request.dtype,
        trust_pickle=request.trust_pickle,
        **request.facts.said(),
    )
    return model, plan(model, **request.of_plan())


def _source(one: Photograph, data: bytes | None) -> Any:
    if data is not None:
        return Fetched(one.path, one.name, data)
    return Source(one.path, one.name)
