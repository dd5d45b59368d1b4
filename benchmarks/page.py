"""Write the tables of `docs/benchmarks.md` from the samples in `benchmarks/results/`; nothing is measured.

A table stands between two marks, with the command that makes the samples and the file that holds them.

    python -m benchmarks.page [PAGE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import (
    adapters,
    cluster,
    commands,
    drawing,
    endurance,
    explain,
    explorer,
    folders,
    native,
    road,
    throughput,
    training,
    truth,
)

RESULTS = Path("benchmarks/results")


@dataclass(frozen=True)
class Block:
    """A part of the page: the command that measures, the file of its samples, and what is told of them."""

    command: str
    file: str
    report: Callable[[Any], str]


BLOCKS = {
    "native on cpu": Block(
        "python -m benchmarks.native", "native.json", partial(native.report, bounds=native.BOUNDS)
    ),
    "native on cuda": Block(
        "python -m benchmarks.native --device cuda",
        "native-cuda.json",
        partial(native.report, bounds=native.BOUNDS_ON_GPU),
    ),
    "adapters": Block("python -m benchmarks.adapters", "adapters.json", adapters.report),
    "throughput": Block("python -m benchmarks.throughput FOLDER", "throughput.json", throughput.report),
    "training": Block("python -m benchmarks.training FOLDER", "training.json", training.report),
    "training on cuda": Block(
        "python -m benchmarks.training FOLDER --device cuda --arch torchvision:resnet34",
        "training-cuda.json",
        training.report,
    ),
    "truth": Block("python -m benchmarks.truth PHOTOS TRUTH", "truth.json", truth.report),
    "road": Block("python -m benchmarks.road", "road.json", road.report),
    "explain": Block("python -m benchmarks.explain FOLDER", "explain.json", explain.report),
    "folders": Block("python -m benchmarks.folders OLD FOLDER", "folders.json", folders.report),
    "drawing": Block("python -m benchmarks.drawing OLD", "drawing.json", drawing.report),
    "explorer": Block("python -m benchmarks.explorer", "explorer.json", explorer.report),
    "cluster": Block("python -m benchmarks.cluster kills", "cluster.json", cluster.report),
    "endurance": Block("python -m benchmarks.endurance", "endurance.json", endurance.report),
    "commands": Block("python -m benchmarks.commands", "commands.json", commands.report),
}


def text(name: str, results: Path = RESULTS) -> str:
    """What stands between the marks of a block."""
    block = BLOCKS[name]
    file = results / block.file
    if not file.exists():
        return f"`{block.command}`: not measured."
    told = f"`{block.command}`; samples: `{RESULTS.as_posix()}/{block.file}`."
    return f"{told}\n\n{block.report(json.loads(file.read_text('utf-8')))}"


def marks(name: str) -> tuple[str, str]:
    """The lines around a block."""
    return f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"


def into(page: str, name: str, told: str) -> str:
    """The page with this between the marks of the block."""
    first, last = marks(name)
    before, begun, rest = page.partition(first)
    _, ended, after = rest.partition(last)
    if not (begun and ended):
        raise SystemExit(f"there is no place for the table: {first.strip()} ... {last.strip()}")
    return f"{before}{first}\n{told}\n\n{last}{after}"


def main() -> None:
    """All blocks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("page", type=Path, nargs="?", default=Path("docs/benchmarks.md"))
    path: Path = parser.parse_args().page
    page = path.read_text("utf-8")
    for name in BLOCKS:
        page = into(page, name, text(name))
    path.write_text(page, "utf-8")


if __name__ == "__main__":
    main()
