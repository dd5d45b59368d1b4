"""The watch over long runs: what it sees of processes, and when it calls them flat."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from benchmarks import endurance

from camkit.images import decoding, finding

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="there is no /proc here")


def test_a_process_is_seen_with_those_that_it_has_started() -> None:
    waits = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()']); "
    with subprocess.Popen([sys.executable, "-c", waits], stdin=subprocess.PIPE) as process:
        end = time.monotonic() + 20
        while (found := endurance.sample(process.pid)) and found[0] < 2 and time.monotonic() < end:
            time.sleep(0.05)
        process.communicate(b"\n")
    assert found and len(found) == len(endurance.COLUMNS) - 1
    seen = dict(zip(endurance.COLUMNS[1:], found, strict=True))
    assert seen["processes"] == 2 and seen["threads"] == seen["threads of the others"] == 1
    assert seen["files"] >= 3 and 1 < seen["memory"] < 100
    assert endurance.sample(process.pid) is None


def test_what_this_process_opens_is_counted() -> None:
    _, files, threads = endurance.held(os.getpid())
    with open(os.devnull), open(os.devnull):  # noqa: PTH123
        assert endurance.held(os.getpid())[1:] == (files + 2, threads)


def samples(**grows: float) -> list[list[float]]:
    """A minute of samples in which these columns grow by so much in all."""
    at = range(1, 121)
    return [
        [n / 2, *(10 + grows.get(name.replace(" ", "_"), 0) * n / 120 for name in endurance.COLUMNS[1:])]
        for n in at
    ]


@pytest.mark.parametrize(
    ("grows", "verdicts"), [({}, 0), ({"files": 10}, 1), ({"memory": 200, "threads": 20}, 2)]
)
def test_what_grows_is_not_flat(grows: dict[str, float], verdicts: int) -> None:
    told = endurance.report({"png": {"photographs": 9, "model": "pets", "samples": samples(**grows)}})
    assert told.count("| NO |") == verdicts and told.count("| yes |") == len(endurance.BOUNDS) - verdicts


def test_a_start_that_takes_much_is_no_growth() -> None:
    high = [[n / 2, *[500.0] * 7] for n in range(1, 20)]
    told = endurance.report(
        {"png": {"photographs": 9, "model": "pets", "samples": [*high, *samples()[20:]]}}
    )
    assert "NO" not in told and "| memory, MiB | 10 | 10 | 500 | 32 | yes |" in told


def test_the_photographs_differ_and_are_the_same_every_time(tmp_path: Path) -> None:
    first, second = (endurance.photographs(tmp_path / name, 4) for name in "ab")
    digests = [[decoding.digest(path) for path in finding.expand([folder])] for folder in (first, second)]
    assert digests[0] == digests[1] and len(set(digests[0])) == 4
