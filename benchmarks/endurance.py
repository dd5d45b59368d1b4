"""Whether `camkit explain` holds more the longer it runs: memory, files and threads over many photographs.

The photographs are pieces of the bundled one, each another. Twice a second the process and those that it
has started are looked at; the first fifth of the time, in which everything starts, is left out. Flat is
what has not grown from the second fifth to the last: see `BOUNDS`.

    python -m benchmarks.endurance [--photographs N] [--format NAME] [--model SPEC] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from camkit.images import decoding

EVERY = 0.5  # seconds
FORMATS = ("png", "npz")
BATCH = 16
SIZE = (320, 240)
# Of a sample, all of the process itself and of those below it together; MiB, and counts.
COLUMNS = (
    *("seconds", "processes", "memory", "memory of the others"),
    *("files", "files of the others", "threads", "threads of the others"),
)
BOUNDS = {"memory": 32, "memory of the others": 32} | dict.fromkeys(COLUMNS[4:], 2)  # what it may grow by

Sample = Sequence[float]


def photographs(folder: Path, count: int) -> Path:
    """`count` small JPEG files in `folder`, each another piece of the bundled photograph."""
    random = np.random.default_rng(0)
    whole = decoding.load(decoding.sample()).image
    folder.mkdir()
    for number in range(count):
        height = int(random.integers(whole.height // 3, whole.height))
        width = height * SIZE[0] // SIZE[1]
        left = int(random.integers(0, 1 + whole.width - width))
        top = int(random.integers(0, 1 + whole.height - height))
        piece = whole.resize(SIZE, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        piece.save(folder / f"{number:05}.jpg", quality=85)
    return folder


def watched(arguments: Sequence[str]) -> list[Sample]:
    """What a `camkit` command holds while it runs, a sample for each `EVERY`; it must end well."""
    begun = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "camkit", *arguments]) as process:
        samples: list[Sample] = []
        while process.poll() is None:
            if found := sample(process.pid):
                samples.append([round(time.monotonic() - begun, 2), *found])
            time.sleep(EVERY)
    if process.returncode:
        raise SystemExit(f"camkit {' '.join(arguments)} ended with {process.returncode}")
    return samples


def sample(process: int) -> Sample | None:
    """The columns but for the first; `None` of a process that has just ended."""
    others = list(below(process))
    try:
        own = held(process)
    except OSError:
        return None
    rest = np.zeros(3)
    for other in others:
        try:
            rest += held(other)
        except OSError:  # it has ended meanwhile
            continue
    return [1 + len(others), *(float(n) for pair in zip(own, rest, strict=True) for n in pair)]


def held(process: int) -> tuple[float, int, int]:
    """Resident MiB, open files and threads of a process; `OSError` if it has ended."""
    place = Path("/proc", str(process))
    pages = int((place / "statm").read_text().split()[1])
    memory = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    files, threads = (sum(1 for _ in (place / name).iterdir()) for name in ("fd", "task"))
    return round(memory, 1), files, threads


def below(process: int) -> Iterator[int]:
    """The processes that a process has started, and those that these have."""
    for task in Path("/proc", str(process), "task").glob("*/children"):
        try:
            children = task.read_text().split()
        except OSError:  # it has ended meanwhile
            continue
        for child in map(int, children):
            yield child
            yield from below(child)


def run(count: int, format: str, model: str) -> dict[str, Any]:
    """One run of the command on `count` photographs."""
    with tempfile.TemporaryDirectory() as place:
        photos = photographs(Path(place, "photos"), count)
        out = Path(place, "out")
        chosen = ("--model", model, "--device", "cpu", "--batch-size", str(BATCH), "--format", format)
        samples = watched(["explain", str(photos), *chosen, "--quiet", "--out", str(out)])
        done = (out / "manifest.jsonl").read_bytes().count(b"\n")
    if done != count:
        raise SystemExit(f"{done} of {count} photographs are in the manifest")
    return {"photographs": count, "model": model, "samples": samples}


def growth(samples: Sequence[Sample]) -> dict[str, tuple[float, float, float]]:
    """Of each column the median of the second and of the last fifth of the time, and the highest value."""
    end = samples[-1][0]
    second, last = (
        [s for s in samples if part * end / 5 <= s[0] <= (part + 1) * end / 5] for part in (1, 4)
    )
    if not (second and last):
        raise SystemExit("it took too little time to tell: use more photographs")
    return {
        name: (median(s[i] for s in second), median(s[i] for s in last), max(s[i] for s in samples))
        for i, name in enumerate(COLUMNS)
        if i
    }


def main() -> None:
    """Measure, print, write; what was measured before and is not now stays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photographs", type=int, default=3000)
    parser.add_argument("--format", choices=FORMATS, action="append")
    parser.add_argument("--model", default="pets")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/endurance.json"))
    args = parser.parse_args()
    if not Path("/proc/self/task").is_dir():
        print("not measured: processes are watched through /proc, which this system does not have")
        return
    result: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.exists() else {}
    for format in args.format or FORMATS:
        result[format] = run(args.photographs, format, args.model)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result) + "\n", "utf-8")
    print(report(result))


def report(result: Mapping[str, Any]) -> str:
    """Markdown: a table for each format."""
    tables = []
    for format, found in result.items():
        samples = found["samples"]
        lines = [
            f"`--format {format}`: {found['photographs']} photographs with `{found['model']}` in "
            f"{samples[-1][0]:.0f} s, {len(samples)} samples.\n",
            "| held | second fifth, median | last fifth, median | highest | may grow by | flat |",
            "|---|---|---|---|---|---|",
        ]
        for name, (early, late, most) in growth(samples).items():
            bound = BOUNDS.get(name)
            unit = ", MiB" if name.startswith("memory") else ""
            verdict = " | " if bound is None else f"{bound} | {'yes' if late - early <= bound else 'NO'}"
            lines.append(f"| {name}{unit} | {early:.0f} | {late:.0f} | {most:.0f} | {verdict} |")
        tables.append("\n".join(lines))
    return "\n\n".join(tables)


if __name__ == "__main__":
    main()
