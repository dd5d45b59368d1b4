"""What runs in Ray's processes: the listing, the reading of bytes, and the actor with the model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from camkit.errors import CamkitError
from camkit.plugin import contents
from camkit_ray import wire

if TYPE_CHECKING:
    from camkit.plugin import Part, Work

THREADS = 16  # that read the files of a part
TOGETHER = 2**28  # bytes of a part that travel; what is beyond is read by the actor
LARGEST = 2**24  # bytes of a file that travels


class Listed(Datasource):  # type: ignore[misc]  # Ray's types are half there
    """The parts of a run, listed by one task, which goes no further than what follows keeps up with."""

    def __init__(self, parts: Iterable[Part]) -> None:
        super().__init__()
        self._parts = parts

    def get_read_tasks(self, *_: Any, **__: Any) -> list[ReadTask]:
        """One task: its blocks are the same each time, so a lost one can be made again."""
        parts = self._parts

        def blocks() -> Iterator[pa.Table]:
            try:
                for part in parts:
                    yield pa.table({"part": [wire.of_part(part)]})
            except CamkitError as error:
                yield pa.table({"part": [wire.of_error(error)]})

        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(blocks, unknown)]

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows before it is listed."""
        return None


def read_bytes(batch: pa.Table) -> pa.Table:
    """The bytes of a part's photographs beside it; null for those that the actor reads: large, or none."""
    text = batch["part"][0].as_py()
    found: list[bytes | None] = []
    if not wire.is_error(text):
        part, left = wire.part_of(text), TOGETHER
        with ThreadPoolExecutor(THREADS) as pool:
            for data in pool.map(_bytes, (one.path for one in part.photographs)):
                fits = data is not None and len(data) <= left
                found.append(data if fits else None)
                left -= len(data) if fits and data is not None else 0
    return batch.append_column("contents", pa.array([found], pa.list_(pa.large_binary())))


def _bytes(path: str) -> bytes | None:
    """The contents of a file or an address; what is wrong is found, and told, where it is decoded."""
    try:
        return contents(path, LARGEST)
    except CamkitError:
        return None


class Explained:
    """An actor: it loads the model once, explains parts and writes their tables."""

    def __init__(self, work: Work, threads: int | None) -> None:
        if threads:
            os.environ["OMP_NUM_THREADS"] = str(threads)
        self._work, self._threads = work, threads
        self._worker: Any = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """The outcome of a part; or the `CamkitError` that ends the run."""
        return pa.table({"outcome": [self._made(batch["part"][0].as_py(), batch["contents"][0])]})

    def _made(self, text: str, read: Any) -> str:
        if wire.is_error(text):
            return text
        try:
            if self._worker is None:
                self._worker = self._work.start(self._threads)
            found = {
                place: data.as_buffer().to_pybytes()
                for place, data in enumerate(read.values)
                if data.is_valid
            }
            return wire.of_outcome(self._worker(wire.part_of(text), found))
        except CamkitError as error:
            return wire.of_error(error)
