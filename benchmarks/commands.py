"""What whole commands take, from their start to their end, in alternation.

`camkit --help` and `camkit plugin list` against `python -c "import click"`; loading the bundled model after
the import of torch; `camkit bench` as it comes, and quick.

    python -m benchmarks.commands [--rounds N] [--part start|load|bench] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

BASE = "python -c 'import click'"
STARTS = {
    BASE: ("-c", "import click"),
    "camkit --help": ("-m", "camkit", "--help"),
    "camkit plugin list": ("-m", "camkit", "plugin", "list"),
}
BOUND = 2.5  # of what starts
BENCHES = {"camkit bench": ((), 120), "camkit bench --quick": (("--quick",), 30)}
LOAD = (
    "import time, torch; begun = time.perf_counter(); import camkit; camkit.load_model('pets'); "
    "print(time.perf_counter() - begun)"
)
LOAD_BOUND = 0.5


def starts(rounds: int) -> dict[str, list[float]]:
    """Seconds of each command in each round."""
    shuffle = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in STARTS}
    for _ in range(rounds):
        for name in shuffle.sample(list(STARTS), len(STARTS)):
            seconds[name].append(_seconds(STARTS[name]))
    return seconds


def loads(rounds: int) -> list[float]:
    """Seconds of loading `pets` in processes that have imported torch."""
    run = [sys.executable, "-c", LOAD]
    return [float(subprocess.run(run, check=True, capture_output=True).stdout) for _ in range(rounds)]


def benches() -> dict[str, float]:
    """Seconds of whole runs, once each."""
    with tempfile.TemporaryDirectory() as place:
        return {
            name: _seconds(("-m", "camkit", "bench", *arguments, "--out", place))
            for name, (arguments, _) in BENCHES.items()
        }


def _seconds(arguments: Sequence[str]) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    return time.perf_counter() - begun


def main() -> None:
    """Measure, print, write; what was measured before and is not now stays."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--part", choices=["start", "load", "bench"], action="append")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/commands.json"))
    args = parser.parse_args()
    parts = args.part or ["start", "load", "bench"]
    result: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    if "start" in parts:
        result["start"] = starts(args.rounds)
    if "load" in parts:
        result["load"] = loads(max(1, args.rounds // 8))
    if "bench" in parts:
        result["bench"] = benches()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result) + "\n")
    print(report(result))


def report(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each command that was measured."""
    lines = [
        "| command | seconds, median | rounds | of `import click`, median | bound |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in result.get("start", {}).items():
        ratios = [own / base for own, base in zip(seconds, result["start"][BASE], strict=True)]
        cells = " | " if name == BASE else f"{median(ratios):.2f} | {BOUND:g} times"
        lines.append(f"| `{name}` | {median(seconds):.3f} | {len(seconds)} | {cells} |")
    if loaded := result.get("load"):
        lines.append(f"| loading `pets` | {median(loaded):.3f} | {len(loaded)} | | {LOAD_BOUND:g} s |")
    for name, taken in result.get("bench", {}).items():
        lines.append(f"| `{name}` | {taken:.1f} | 1 | | {BENCHES[name][1]} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
