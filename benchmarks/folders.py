"""What a folder of photographs costs where the model costs next to nothing, beside an older camkit.

Whole commands with `timm:test_resnet@none` take turns: of all photographs, less the same command with a
single one, so that start-up does not count. What the older camkit drew by default, the view of the model,
is `--look lesson` today; today's default picture was `--view original`, without a caption.

    python -m benchmarks.folders OLD FOLDER [--images N] [--rounds N] [--out FILE]
                                                       OLD: a checkout of camkit at 8f3f312
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import camkit
from benchmarks.explain import repeated

NOW = Path(camkit.__file__).parents[2]
ASK = ("-m", "camkit", "explain", "--model", "timm:test_resnet@none", "--device", "cpu", "-q")
# What is written: how each of both camkits is asked for it, and how much quicker it is to be.
CASES: dict[str, tuple[list[str], list[str], float | None]] = {
    "parquet": (["--format", "parquet"], ["--format", "parquet"], 1.8),
    "--look lesson": ([], ["--look", "lesson"], 1.6),
    "default picture": (["--view", "original"], [], None),
}


def seconds(checkout: Path, photographs: Path, asked: list[str], out: Path) -> float:
    """Seconds of one command."""
    shutil.rmtree(out, ignore_errors=True)
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, *ASK, *asked, "--out", str(out), str(photographs)],
        check=True,
        env=os.environ | {"PYTHONPATH": str(checkout.resolve() / "src")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - begun


def measure(old: Path, folder: Path, count: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of all photographs beyond those of one, by what is written and by which camkit."""
    found: dict[str, dict[str, list[float]]] = {name: {"old": [], "new": []} for name in CASES}
    with tempfile.TemporaryDirectory() as place:
        many, one = (repeated(folder, number, Path(place, str(number))) for number in (count, 1))
        turns = [(name, which) for name in CASES for which in ("old", "new")]
        for number in range(rounds):
            random.Random(number).shuffle(turns)
            for name, which in turns:
                checkout, asked = (old, CASES[name][0]) if which == "old" else (NOW, CASES[name][1])
                begin, all_ = (seconds(checkout, at, asked, Path(place, "out")) for at in (one, many))
                found[name][which].append(all_ - begin)
    return found


def report(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each thing that is written."""
    lines = ["| what | older, images a second | now | times as quick, median | lowest to highest | bound |"]
    lines.append("|---|---|---|---|---|---|")
    for name, both in result["seconds"].items():
        ratios = [old / new for old, new in zip(both["old"], both["new"], strict=True)]
        old, new = (f"{result['images'] / median(both[which]):.0f}" for which in ("old", "new"))
        extent, bound = f"{min(ratios):.2f} to {max(ratios):.2f}", CASES[name][2] or ""
        lines.append(f"| {name} | {old} | {new} | {median(ratios):.2f} | {extent} | {bound} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("old", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/folders.json"))
    asked = parser.parse_args()
    found = measure(asked.old, asked.folder, asked.images, asked.rounds)
    result = {"images": asked.images, "seconds": found}
    print(report(result))
    asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
