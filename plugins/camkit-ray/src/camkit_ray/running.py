"""A run on Ray Data: one task lists, tasks read bytes, actors with a model explain and write."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before it is imported

import ray
from ray.exceptions import RayError

from camkit.errors import CamkitError, UsageError, reason
from camkit_ray import wire
from camkit_ray.stages import Explained, Listed, read_bytes

if TYPE_CHECKING:
    from camkit.plugin import Outcome, Part, Work
    from camkit_ray import RayOptions

# Cores of a task that lists, or reads bytes: they wait, mostly. Were they equal, Ray would make them one.
LISTING, READING = 0.0, 0.25
SECONDS = 10.0  # for a cluster to answer


def outcomes(work: Work, parts: Iterable[Part], options: RayOptions) -> Iterator[Outcome]:
    """The outcome of each part, as soon as its table is there."""
    if next(iter(parts), None) is None:
        return  # before a cluster is started
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(_cluster(options.address))
        actors, gpus, threads = _sizes(options)
        source = ray.data.read_datasource(Listed(parts), override_num_blocks=1, num_cpus=LISTING)
        read = source.map_batches(read_bytes, batch_size=1, batch_format="pyarrow", num_cpus=READING)
        done = read.map_batches(
            Explained,
            fn_constructor_args=(work, threads),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_cpus=0.5 if gpus else 1,
            num_gpus=gpus or None,
        )
        seen: set[str] = set()  # a task that is done again, after a process was lost, has an outcome again
        # Block by block: batches of rows would wait until there are many.
        blocks = done.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        try:
            for text in (text for block in blocks for text in block["outcome"].to_pylist()):
                made = wire.outcome_of(text)
                if made.part.id not in seen:
                    seen.add(made.part.id)
                    yield made
        except RayError as error:
            raise CamkitError(f"the cluster gave up: {reason(_cause(error))}") from None


def _cause(error: BaseException) -> BaseException:
    return getattr(error, "cause", None) or error.__cause__ or error


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """The cluster at `address`, the one that is connected already, or one that starts and ends here."""
    if ray.is_initialized():
        yield
        return
    _check_answers(address)
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level="ERROR",
            **({} if address else {"include_dashboard": False}),
        )
    # Whatever Ray raises where there is no cluster, or none can be started.
    except Exception as error:
        where = f"no cluster answers at {address}" if address else "no cluster could be started here"
        if address and "RAY_AUTH_TOKEN" not in os.environ:
            where += " (or it asks for a token: RAY_AUTH_MODE=token RAY_AUTH_TOKEN=...)"
        raise UsageError(f"{where}: {reason(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_answers(address: str) -> None:
    """Raise `UsageError` if nobody listens at `HOST:PORT`: Ray would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^/:]+):(?P<port>\d+)", address)
    if found is None:  # nothing, `auto`, or what Ray knows itself
        return
    try:
        socket.create_connection((found["host"], int(found["port"])), SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(f"no cluster answers at {address}: {reason(error)}") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without bars and log, and with blocks handed out in any order, as soon as they are there.

    Ray tells of each process and node that is lost, from its own threads and past Python; what was lost is
    done again, or ends the run with an error.
    """
    context, log = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.execution_options.preserve_order, log.level
    context.enable_progress_bars, context.execution_options.preserve_order = False, False
    log.setLevel(logging.CRITICAL)
    stdout, stderr, own = sys.stdout, sys.stderr, os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    kept: Any = stderr
    if getattr(stderr, "name", "") == "<stderr>":  # which is no file of a test
        kept = os.fdopen(os.dup(own), "w", 1, stderr.encoding, stderr.errors)
    sys.stdout, sys.stderr = _WithoutRay(stdout), _WithoutRay(kept)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        os.dup2(own, 2)
        os.close(own)
        os.close(nowhere)
        context.enable_progress_bars, context.execution_options.preserve_order = before[:2]
        log.setLevel(before[2])


class _WithoutRay:
    """A stream that leaves out what Ray's own threads say."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """How many signs were written, or would have been."""
        is_ray = threading.current_thread().name.startswith("ray_")
        return len(text) if is_ray else int(self._stream.write(text))


def _sizes(options: RayOptions) -> tuple[int, float, int | None]:
    """How many actors, with how many GPUs each, and how many threads where there are none."""
    there = ray.cluster_resources()
    cpus, all_gpus = there.get("CPU", 1.0), there.get("GPU", 0.0)
    gpus = options.gpus_per_actor if options.gpus_per_actor >= 0 else float(all_gpus > 0)
    if gpus:
        most = int(all_gpus // gpus) if gpus <= 1 else int(all_gpus / gpus)
        if gpus < 1:
            most = int(all_gpus) * int(1 / gpus)
    else:
        most = int(cpus) - 1  # a core is for what reads
    if gpus and most < 1:
        raise UsageError(f"--gpus-per-actor {gpus:g}: the cluster has {all_gpus:g} GPUs")
    if options.actors > max(1, most):
        kind = f"GPUs, {all_gpus:g} in all" if gpus else f"cores, {cpus:g} in all, one of which reads"
        raise UsageError(f"--actors {options.actors}: the cluster has room for {max(1, most)} ({kind})")
    actors = options.actors or max(1, most if gpus else int(cpus) // 2)
    nodes = max(1, sum(1 for node in ray.nodes() if node["Alive"]))
    threads = max(1, int(cpus / nodes / -(-actors // nodes)))
    return actors, gpus, None if gpus else threads
