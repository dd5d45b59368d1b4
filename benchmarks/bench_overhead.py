"""What the harness of `camkit bench` adds to a call that it times.

Calls of a known length, which look at the clock until it is over, go through the interleaved rounds. Told
apart are what lies inside a sample beyond the call itself, which would falsify it, and everything between
the end of a call and the start of the next, which only takes time. Medians, so that what else the machine
does is not counted. Both as a share of the call; less than 1 % is wanted from 5 ms on.

    python -m benchmarks.bench_overhead [--rounds N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch

from camkit.bench import environment, timing

LENGTHS = (0.0005, 0.005, 0.05)
CALLS = 5  # in each round
LIMIT, FROM = 0.01, 0.005


def busy(seconds: float, spans: list[tuple[float, float]]) -> Callable[[], None]:
    """A call of that length, which notes when it began and ended."""

    def call() -> None:
        start = end = time.perf_counter()
        while end - start < seconds:
            end = time.perf_counter()
        spans.append((start, end))

    return call


def overhead(seconds: float, rounds: int) -> dict[str, float]:
    """Seconds that the harness adds to a call: inside of the sample, and from call to call."""
    own: dict[str, list[tuple[float, float]]] = {f"call {i}": [] for i in range(CALLS)}
    calls = {name: busy(seconds, spans) for name, spans in own.items()}
    limits = timing.Rounds(warmup=0, least=rounds, most=rounds)
    timed = timing.interleaved(calls, timing.timer(torch.device("cpu")), limits)
    inside = [
        sample - (end - start)
        for name, spans in own.items()
        for sample, (start, end) in zip(timed[name].host, spans[1:], strict=True)  # the first was cold
    ]
    order = sorted(span for spans in own.values() for span in spans)
    between = [after - end for (_, end), (after, _) in pairwise(order)]
    return {"call": seconds, "inside": median(inside), "in_all": median(between)}


def main() -> None:
    """Measure, print, write; exit code 1 if it is too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/bench_overhead.json"))
    args = parser.parse_args()
    cpu = torch.device("cpu")
    results = [overhead(seconds, args.rounds) for seconds in LENGTHS]
    print("| call | added inside of the sample | share | added from call to call | share |")
    print("|---|---|---|---|---|")
    for found in results:
        cells = (
            f"{1e6 * found[key]:.1f} µs | {found[key] / found['call']:.3%}" for key in ("inside", "in_all")
        )
        print(f"| {1000 * found['call']:g} ms | {' | '.join(cells)} |")
    record = {
        "environment": environment.environment(cpu, torch.float32),
        "conditions": environment.conditions(cpu),
        "overhead": results,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record) + "\n")
    if any(found["in_all"] > LIMIT * found["call"] for found in results if found["call"] >= FROM):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
