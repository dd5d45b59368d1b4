"""How many photographs a second `camkit explain` takes on an accelerator, command by command, start to end.

The photographs of FOLDER are repeated under as many names as are asked for. Each row is one whole command:
its seconds, start-up included, the part of the time that the accelerator was at work, and which stage the
others waited for, as `--verbose` tells it. The model is that of fast.ai's lesson 6 (random weights).

    python -m benchmarks.throughput FOLDER [--images N] [--device cuda] [--model SPEC] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.explain import SPEC, repeated
from camkit.core import devices

IMAGES = 50_000
QUICK = ("--batch-size", "256", "--dtype", "bfloat16")
JPEG = ("--image-format", "jpeg")
# What is asked for, and in how many seconds it is to be done for `IMAGES` on one H100 with 16 cores.
CASES: dict[str, tuple[tuple[str, ...], float | None]] = {
    "parquet": (("--format", "parquet", *QUICK), 30.0),
    "parquet, fast": (("--format", "parquet", *QUICK, "-o", "fast=true"), 30.0),
    "pictures": ((*JPEG, *QUICK), 60.0),
    "as it comes": ((), None),
}
STAGES = re.compile(r"of the time after start-up: (.+)")


class Utilisation(threading.Thread):
    """The share of the time in which the accelerator was at work, 0 to 1, asked four times a second."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)
        self._device, self._over, self.seen = device, threading.Event(), list[float]()

    def run(self) -> None:
        """Until `stop`; nothing where torch cannot tell."""
        told = getattr(torch.get_device_module(self._device), "utilization", None)
        while told and not self._over.wait(0.25):
            try:
                self.seen.append(told(self._device) / 100)
            except Exception:  # without the library of the driver
                return

    def stop(self) -> float | None:
        """The mean, if there is one."""
        self._over.set()
        self.join()
        return statistics.mean(self.seen) if self.seen else None


def measure(photographs: Path, device: torch.device, spec: str, asked: tuple[str, ...]) -> dict[str, Any]:
    """One command."""
    with tempfile.TemporaryDirectory() as out:
        command = ["-m", "camkit", "explain", "--verbose", "--model", spec, "--device", str(device), *asked]
        load = Utilisation(device) if device.type != "cpu" else None
        if load:
            load.start()
        begun, before = time.perf_counter(), os.times()
        done = subprocess.run(
            [sys.executable, *command, "--out", out, str(photographs)], capture_output=True, text=True
        )
        seconds, after = time.perf_counter() - begun, os.times()
        used = load.stop() if load else None
    if done.returncode:
        raise SystemExit(
            f"camkit {' '.join(command[2:])} ended with {done.returncode}: {done.stderr[-500:]}"
        )
    spent = sum(after[2:4]) - sum(before[2:4])
    stages = STAGES.search(done.stderr)
    return {"seconds": seconds, "cpu_seconds": spent, "used": used, "stages": stages and stages[1]}


def report(result: Mapping[str, Any]) -> str:
    """Markdown: on what it was measured, and a row for each command."""
    images, machine = (
        result["images"],
        f"{result['device']}, {result['cores']} cores, torch {result['torch']}",
    )
    columns = ["what", "seconds", "bound", "photographs a second", "seconds of the cores", "device at work"]
    lines = [f"{machine}; {images:,} photographs, one run each.", ""]
    lines += [f"| {' | '.join(columns)} | the time after start-up |", "|---" * 7 + "|"]
    for name, row in result["rows"].items():
        bound = CASES[name][1] if images == IMAGES else None
        used = "-" if row["used"] is None else f"{row['used']:.0%}"
        limit = "-" if bound is None else f"<= {bound:.0f}"
        rate = images / row["seconds"]
        times = f"{row['seconds']:.1f} | {limit} | {rate:.0f} | {row['cpu_seconds']:.0f}"
        lines.append(f"| {name} | {times} | {used} | {row['stages'] or '-'} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write after each row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--model", default=SPEC)
    parser.add_argument("--case", action="append", choices=CASES, help="repeatable; all by default")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/throughput.json"))
    asked = parser.parse_args(arguments)
    device = devices.pick_device(asked.device)
    result: dict[str, Any] = {"device": devices.kind(device), "cores": os.cpu_count()}
    result |= {"torch": torch.__version__, "images": asked.images, "model": asked.model, "rows": {}}
    with tempfile.TemporaryDirectory() as place:
        photographs = repeated(asked.folder, asked.images, Path(place, "photographs"))
        for name in asked.case or CASES:
            result["rows"][name] = measure(photographs, device, asked.model, CASES[name][0])
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
            print(report(result).splitlines()[-1], flush=True)
    print(f"\n{report(result)}")


if __name__ == "__main__":
    main()
