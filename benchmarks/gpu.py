"""Everything that only a machine with an accelerator can tell, in one command and in a limited time.

Parts, in the order of their worth: the tests marked `gpu`, the cost of the explainer, many photographs from
start to end, a training, the usual tests where `--device auto` is the accelerator, and `camkit bench`. Each
has a time of its own and none stops the others. What a part prints goes to a log beside the samples, its
last lines to the terminal; `python -m benchmarks.page` makes tables of samples in `benchmarks/results/`.
PHOTOGRAPHS is a folder of photographs that are named after their classes.

    python -m benchmarks.gpu PHOTOGRAPHS [--device cuda] [--seconds N] [--part NAME]... [--small]
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from camkit.core import devices

SHOWN = 12  # lines of each part


@dataclass(frozen=True)
class Asked:
    """What the parts are made from."""

    photographs: Path
    device: str
    out: Path
    small: bool

    def results(self, name: str) -> tuple[str, str]:
        """The option of a benchmark that says where its samples go."""
        return "--out", str(self.out / f"{name}.json")


@dataclass(frozen=True)
class Part:
    """seconds: after which it is stopped. command: arguments of Python."""

    seconds: int
    command: Callable[[Asked], list[str]]


def _tests(asked: Asked) -> list[str]:
    how = ["-rfEs", "--tb=short", "-p", "no:cacheprovider"]
    return ["-m", "pytest", "-m", "gpu", *how, "tests", "plugins"]


def _native(asked: Asked) -> list[str]:
    cases = ["1x64"] if asked.small else ["1x224", "256x224", "8x224"]
    chosen = [argument for case in cases for argument in ("--case", case)]
    rounds = "3" if asked.small else "21"
    device = ["--device", asked.device]
    return ["-m", "benchmarks.native", *device, "--rounds", rounds, *chosen, *asked.results("native-cuda")]


def _throughput(asked: Asked) -> list[str]:
    small = ["--images", "40", "--model", "timm:test_resnet@none"] if asked.small else []
    place = [str(asked.photographs), "--device", asked.device]
    return ["-m", "benchmarks.throughput", *place, *small, *asked.results("throughput")]


def _training(asked: Asked) -> list[str]:
    arch = ["--arch", "timm:test_resnet" if asked.small else "torchvision:resnet34"]
    place = [str(asked.photographs), "--device", asked.device]
    return ["-m", "benchmarks.training", *place, *arch, "--rounds", "1", *asked.results("training-cuda")]


def _suite(asked: Asked) -> list[str]:
    which = ["-m", "not slow", "-n", str(max(1, (os.cpu_count() or 2) - 2)), "--dist", "worksteal"]
    files = ["tests/test_formulas.py"] if asked.small else []
    return ["-m", "pytest", *which, "--tb=line", "-rfE", "-p", "no:cacheprovider", *files]


def _bench(asked: Asked) -> list[str]:
    backends = ["--backend", "native", "--backend", "pytorch-grad-cam", "--method", "gradcam"]
    small = ["--batch-size", "1", "--rounds", "2", "--metrics", "latency"] if asked.small else []
    out = ["--out", str(asked.out / "bench")]
    return ["-m", "camkit", "bench", "--quick", "--device", asked.device, *backends, *small, *out]


PARTS = {
    "tests": Part(120, _tests),
    "native": Part(150, _native),
    "throughput": Part(210, _throughput),
    "training": Part(90, _training),
    "suite": Part(150, _suite),
    "bench": Part(60, _bench),
}


def run(name: str, asked: Asked, seconds: float) -> int | None:
    """Run a part: its exit code, or `None` if it was stopped. Its output goes to a log of its own."""
    log = asked.out / f"{name}.log"
    with (
        log.open("w", encoding="utf-8") as file,
        subprocess.Popen(
            [sys.executable, *PARTS[name].command(asked)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        ) as process,
    ):
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started, which would go on
            code = None
    lines = log.read_text("utf-8", errors="replace").splitlines()[-SHOWN:]
    print("\n".join(line[:200] for line in lines))
    return code


def main(arguments: list[str] | None = None) -> int:
    """0 if no part failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("photographs", type=Path, help="a folder")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=int, default=480, help="for all of it")
    parser.add_argument("--part", action="append", choices=PARTS, help="repeatable; all by default")
    parser.add_argument("--small", action="store_true", help="little of everything, in a folder of its own")
    given = parser.parse_args(arguments)
    device = devices.pick_device(given.device)
    if device.type == "cpu" and not given.small:  # its figures would stand for those of a card
        parser.error("there is no accelerator here: --small tries it on the CPU")
    out = Path(tempfile.mkdtemp(prefix="camkit-gpu-")) if given.small else Path("benchmarks/results")
    print(f"{devices.kind(device)}, {os.cpu_count()} cores; results are in {out}", flush=True)
    asked = Asked(given.photographs, str(device), out, given.small)
    until, failed = time.monotonic() + given.seconds, 0
    for name in given.part or PARTS:
        left = until - time.monotonic()
        if left < 10:
            print(f"=== {name}: no time is left", flush=True)
            continue
        begun = time.monotonic()
        print(f"=== {name}", flush=True)
        code = run(name, asked, min(left, PARTS[name].seconds))
        ended = "stopped" if code is None else f"exit code {code}"
        print(f"--- {name}: {ended} after {time.monotonic() - begun:.0f} s", flush=True)
        failed += code != 0
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
