"""Time and memory of the rows, in this process or in fresh ones, and a summary of all samples.

The same code in another process is faster or slower by more than the rounds of one process show: memory
lies elsewhere, threads run on other cores. So several processes measure, one after the other, and their
medians are compared.
"""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from camkit.bench import scenes, statistics, timing
from camkit.bench.entrants import Entrant, all_rows, one_line
from camkit.bench.request import BenchRequest
from camkit.bench.results import FORWARD, Against, LatencyRecord, Median, Samples
from camkit.bench.scenes import Scene
from camkit.bench.statistics import Estimate, Spread
from camkit.bench.subjects import of_request
from camkit.bench.survey import Progress, maker
from camkit.bench.timing import Cold, Sample
from camkit.core import devices
from camkit.errors import CamkitError


@dataclass(frozen=True)
class Measured:
    """A row at one batch size in one process: a sample of each round, the first call of all, memory.

    kernels: seconds that an accelerator works for one call. error: one line, if the row raised.
    """

    samples: list[Sample]
    cold: Cold | None = None
    memory: dict[str, int] = field(default_factory=dict)
    kernels: float | None = None
    error: str | None = None

    @property
    def host(self) -> list[float]:
        """Seconds from call to result."""
        return [sample.host for sample in self.samples]


Key = tuple[str, int]  # of a row, with the batch size
Colds = Mapping[Key, Cold | None]
Process = Mapping[Key, Measured]


def batch_sizes(request: BenchRequest, device: torch.device) -> tuple[int, ...]:
    """The requested batch sizes, or those that suit the device."""
    return request.batch_sizes or request.effort.batch_sizes[device.type != "cpu"]


# --- in one process ---------------------------------------------------------------------------------


def first_calls(request: BenchRequest, scene: Scene, rows: Sequence[Entrant]) -> Colds:
    """The first call of each row at each batch size, before anything else of that row has run.

    Only the model has run, to find the classes of the photographs.
    """
    device = scene.inputs.device
    timer, runnable = timing.timer(device), [row for row in rows if row.kind == "forward" or row.explainer]
    return {
        (key, batch): timing.cold(call, timer)
        for batch in batch_sizes(request, device)
        for key, call in _calls(scene, runnable, batch).items()
    }


def measured(request: BenchRequest, scene: Scene, rows: Sequence[Entrant], colds: Colds) -> Process:
    """Rounds of all `rows`, the bare forward among them, and the memory of each, for each batch size."""
    device, found = scene.inputs.device, {}
    with timing.settled():
        for batch in batch_sizes(request, device):
            calls = _calls(scene, rows, batch)
            timed = timing.interleaved(calls, timing.timer(device), request.timing, request.seed)
            for key, own in timed.items():
                failed = own.error is not None
                found[key, batch] = Measured(
                    own.samples,
                    colds.get((key, batch)),
                    {} if failed else timing.peak_memory(calls[key], device),
                    None if failed else devices.kernel_seconds(calls[key], device),
                    one_line(own.error) if own.error else None,
                )
    return found


def _calls(scene: Scene, rows: Sequence[Entrant], batch: int) -> dict[str, timing.Call]:
    """The calls to time, by row: the bare forward and the explainers."""
    inputs, targets = scene.first(batch)

    def forward() -> Tensor:
        with scene.without_graph():
            return scene.module(inputs)  # type: ignore[no-any-return]

    def mapped(row: Entrant) -> timing.Call:
        make = maker(scene, row, frozen=True)
        return lambda: make(inputs, targets)

    return {row.key: forward if row.kind == "forward" else mapped(row) for row in rows}


# --- in several processes ---------------------------------------------------------------------------


def processes(
    request: BenchRequest, paths: Sequence[Path], rows: Collection[str], progress: Progress
) -> list[Process]:
    """Measure the rows with these keys in each of `request.process_count` fresh processes.

    They start together, as that takes longest, then measure one after the other. Raises `CamkitError` if
    one of them dies.
    """
    count, context = request.process_count, multiprocessing.get_context("spawn")
    devices.give_memory_back()
    progress(f"starting {count} processes to measure in")
    with ExitStack() as stack:
        pools = [stack.enter_context(ProcessPoolExecutor(1, mp_context=context)) for _ in range(count)]
        try:
            for started in [pool.submit(_begin, request, torch.get_num_threads()) for pool in pools]:
                started.result()
            found = []
            for number, pool in enumerate(pools):
                progress(f"timing, process {number + 1} of {count}")
                own = replace(request, seed=request.seed + number)
                found.append(pool.submit(_in_process, own, tuple(paths), frozenset(rows)).result())
                pool.shutdown()  # the next one needs its memory
        except BrokenProcessPool:
            reason = "a measuring process has died, as when memory runs out"
            raise CamkitError(f"{reason}; --processes 1 measures in this one") from None
    return found


def _begin(request: BenchRequest, threads: int) -> None:
    """Import everything, so that no process does while another measures."""
    warnings.simplefilter("ignore")  # shown where the maps are made
    torch.set_num_threads(threads)
    all_rows(request)


def _in_process(request: BenchRequest, paths: Sequence[Path], keys: Collection[str]) -> Process:
    model, asked = of_request(request)
    scene = scenes.photographs(model, request.layer, paths, request.photographs, asked=asked)
    rows = [row for row in all_rows(request) if row.key in keys]
    with devices.multiplied(model.device, request.precision):
        return measured(request, scene, rows, first_calls(request, scene, rows))


# --- summaries --------------------------------------------------------------------------------------


def add_records(rows: Sequence[Entrant], reference_of: Mapping[str, str], found: Sequence[Process]) -> None:
    """A record for each row and batch size, with verdicts on all of them against their references.

    A row that failed in a process has a note in place of the record.
    """
    compared: list[tuple[LatencyRecord, Spread]] = []
    for batch in dict.fromkeys(batch for process in found for _, batch in process):
        bare = _all_of(found, " ".join(FORWARD), batch)
        for row in rows:
            if not (own := _all_of(found, row.key, batch)):
                continue
            if errors := [one.error for one in own if one.error]:
                row.fail(f"batch of {batch}", errors[0])
                continue
            other = [] if row.kind == "forward" else _all_of(found, reference_of[row.key], batch)
            reference = None if other == own or not all(one.host for one in other) else other
            record = latency_record(batch, own, None if row.kind == "forward" else bare, reference or None)
            row.latency.append(record)
            if record.launch_bound:
                row.note(f"launch-bound at a batch of {batch}")
            if reference:
                compared.append((record, statistics.over_processes(_ratios(own, reference))))
    verdicts = statistics.verdicts([spread for _, spread in compared])
    for (record, spread), (ratio, verdict) in zip(compared, verdicts, strict=True):
        if record.against and spread.freedom:
            record.against = Against.of(ratio, verdict=verdict)


def _all_of(found: Sequence[Process], key: str, batch: int) -> list[Measured]:
    return [process[key, batch] for process in found if (key, batch) in process]


def latency_record(
    batch: int,
    own: Sequence[Measured],
    bare: Sequence[Measured] | None,
    reference: Sequence[Measured] | None,
) -> LatencyRecord:
    """Raw samples of one call in seconds, process by process, and their summary.

    `ratio` is to the bare forward of the same rounds, `against` to the reference backend. A figure of
    several processes is the geometric mean of their medians, of one the median of its rounds. `cold` is
    the first call of the first process, and `compile` its extra time over a usual one if torch's compiler
    ran in it: what the user waits for, imports and checks included.
    """
    middle = _middle([one.host for one in own])
    samples, cold = [sample for one in own for sample in one.samples], own[0].cold
    host = [sample.host for sample in samples]
    return LatencyRecord(
        batch=batch,
        seconds=Median.of(middle),
        p90=statistics.percentile(host, 90),
        p99=statistics.percentile(host, 99),
        images_per_second=batch / middle.middle,
        ratio=Median.of(_ratio(own, bare)) if bare and all(one.host for one in bare) else None,
        against=Against.of(_ratio(own, reference), verdict="UNCLEAR") if reference else None,
        cold=cold.seconds if cold else None,
        compile=max(0.0, cold.seconds - middle.middle) if cold and cold.compiled else None,
        launch_bound=timing.launch_bound(own[0].kernels, middle.middle),
        memory={**own[0].memory},
        samples=Samples(
            process=[number for number, one in enumerate(own) for _ in one.samples],
            host=host,
            device=[sample.device for sample in samples],
            enqueue=[sample.enqueue for sample in samples],
        ),
    )


def _middle(parts: Sequence[Sequence[float]]) -> Estimate:
    if len(parts) == 1:
        return statistics.median(parts[0])
    return statistics.over_processes([statistics.median(part).middle for part in parts]).interval()


def _ratio(own: Sequence[Measured], base: Sequence[Measured]) -> Estimate:
    if len(own) == 1:
        return statistics.paired(own[0].host, base[0].host)
    return statistics.over_processes(_ratios(own, base)).interval()


def _ratios(own: Sequence[Measured], base: Sequence[Measured]) -> list[float]:
    """For each process, the median of the ratios within its rounds."""
    return [statistics.paired(a.host, b.host).middle for a, b in zip(own, base, strict=False)]
