"""Checks of engines: every part is done once, as on this machine, whatever happens."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from camkit.contracts.engine import Outcome, Part
from camkit.engines import tables
from camkit.engines.local import LocalEngine
from camkit.engines.parts import Parts
from camkit.engines.work import ExplainWork
from camkit.errors import CamkitError, UsageError
from camkit.explaining import parquet
from camkit.explaining.request import ExplainRequest
from camkit.images.listing import Listing
from camkit.testing.kit import Subject, raises

MODEL = "timm:test_resnet@none"
PHOTOGRAPHS, SIZE = 10, 4  # of all, and of a part
SETTLED = 1.0  # seconds after which nothing may still be written


@dataclass(frozen=True)
class _Broken:
    """A listing that fails after its first part."""

    parts: Parts

    def __iter__(self) -> Iterator[Part]:
        yield next(iter(self.parts))
        raise UsageError("the listing broke")


def check_parts(subject: Subject) -> None:
    """Every part is done, and its table holds its photographs, each once: users count on whole runs."""
    with _run(subject) as run:
        list(run.outcomes())
        names = sorted(row["name"] for row in run.rows())
        assert names == sorted(run.names), f"rows are of {names}, photographs are {sorted(run.names)}"


def check_outcomes(subject: Subject) -> None:
    """Each part has one outcome, which comes once its table is there: progress and --resume rely on it."""
    with _run(subject) as run:
        seen = []
        for outcome in run.outcomes():
            assert isinstance(outcome, Outcome), f"run yields {type(outcome).__name__}, not an Outcome"
            assert outcome.part.id in tables.there(run.out).parts, "an outcome comes before its table"
            seen.append(outcome.part.id)
        wanted = [part.id for part in run.parts]
        assert sorted(seen) == sorted(wanted), f"outcomes are of {len(seen)} parts, not of {len(wanted)}"


def check_rows(subject: Subject) -> None:
    """Rows and maps are those of the engine `local`, bit for bit: where it ran must not matter."""
    with _run(subject) as run:
        list(run.outcomes())
        found, wanted = run.rows(), _local_rows()
        assert len(found) == len(wanted), f"{len(found)} rows, not {len(wanted)}"
        for one, other in zip(found, wanted, strict=True):
            differ = [key for key in other if one.get(key) != other[key] and key not in _OF_THE_FOLDER]
            assert not differ, f"{one['name']}: {', '.join(differ)} differ from those of the engine local"


def check_failures(subject: Subject) -> None:
    """A photograph that cannot be read is a row with its reason, and fails alone."""
    with _run(subject, broken="0002.png") as run:
        failed = [image for outcome in run.outcomes() for image, _ in outcome.failed]
        assert len(failed) == 1 and failed[0].endswith("0002.png"), f"outcomes tell of {failed}"
        errors = [row["name"] for row in run.rows() if row["status"] == "error"]
        assert errors == ["0002.png"], f"rows with an error are of {errors}"
        assert len(run.rows()) == PHOTOGRAPHS, "the others must be done"


def check_errors(subject: Subject) -> None:
    """An error of the listing or of the work ends the run, as the `CamkitError` it is."""
    with _run(subject) as run:
        with raises(CamkitError, "a listing that breaks"):
            list(run.outcomes(parts=_Broken(run.parts)))
        with raises(CamkitError, "a model that is not there"):
            wrong = ExplainRequest(model="timm:no_such_network@none", device="cpu")
            list(run.outcomes(work=ExplainWork(wrong, run.out, "0" * 16, 0)))


def check_closing(subject: Subject) -> None:
    """Nothing goes on once the caller has gone away, such as with Ctrl-C."""
    with _run(subject) as run:
        outcomes: Any = run.outcomes()
        with closing(outcomes):
            next(outcomes)
        before = tables.there(run.out).parts
        time.sleep(SETTLED)
        assert tables.there(run.out).parts == before, "tables are written after the run was closed"


# Fields that tell where photographs lay and how long ago.
_OF_THE_FOLDER = ("image", "image_path")


class _Run:
    """A small run in a folder of its own."""

    def __init__(self, folder: Path, broken: str) -> None:
        photographs = folder / "photographs"
        photographs.mkdir()
        generator = np.random.default_rng(0)
        for number in range(PHOTOGRAPHS):
            path = photographs / f"{number:04}.png"
            Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
        if broken:
            (photographs / broken).write_bytes(b"no picture")
        self.out = str(folder / "out")
        request = ExplainRequest((str(photographs),), model=MODEL, device="cpu", batch_size=2)
        self.work = ExplainWork.of(request, self.out, 0, lambda text: None)
        self.parts = Parts(Listing(request.images), SIZE, self.work.id)
        self.names = [path.name for path in photographs.iterdir()]
        self.engine: Any = LocalEngine(None)

    def outcomes(self, *, work: Any = None, parts: Any = None) -> Iterator[Outcome]:
        """What the engine says."""
        made: Iterator[Outcome] = self.engine.run(work or self.work, parts or self.parts)
        return made

    def rows(self) -> list[dict[str, Any]]:
        """All rows, by name."""
        return _rows(self.out)


@contextmanager
def _run(subject: Subject, broken: str = "") -> Iterator[_Run]:
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(Path(folder), broken)
        run.engine = subject.make()
        yield run


@cache
def _local_rows() -> Sequence[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        run = _Run(Path(folder), "")
        list(run.outcomes())
        return run.rows()


def _rows(out: str) -> list[dict[str, Any]]:
    files = [Path(out, tables.name_of(one)) for one in sorted(tables.there(out).parts)]
    found = [row for file in files for row in parquet.read_rows(file.read_bytes())]
    return sorted(found, key=lambda row: str(row["name"]))
