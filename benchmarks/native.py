"""What the native explainer costs beyond the forward that it explains.

Interleaved, shuffled rounds: every candidate once in each round, and the ratio to the bare
`inference_mode` forward of the same round. Prints a Markdown table and writes the raw samples as JSON.

    python -m benchmarks.native [--rounds N] [--threads N] [--device cpu] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import camkit
from benchmarks.lesson import lesson_model

CASES = ((1, 224), (8, 224), (16, 352))


def candidates(model: nn.Module, inputs: Tensor) -> dict[str, Callable[[], Any]]:
    """What is timed. The bare forward stands twice: the second shows the noise of the method."""

    def bare() -> Tensor:
        with torch.inference_mode():
            return model(inputs)  # type: ignore[no-any-return]

    targets = [0] * len(inputs)
    return {
        "bare forward": bare,
        "bare forward again": bare,
        "maps, one class": lambda: camkit.maps(model, inputs, targets, layer="0"),
        "maps, predicted class": lambda: camkit.maps(model, inputs, layer="0"),
        "class_maps, 37 classes": lambda: camkit.class_maps(model, inputs, layer="0"),
        "gradcam and activations": lambda: camkit.maps(
            model, inputs, targets, layer="0", method=["gradcam", "activations"]
        ),
    }


def measure(calls: dict[str, Callable[[], Any]], rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of every call in every round, after three rounds of warm-up."""
    shuffle = random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 3):
        order = list(calls)
        shuffle.shuffle(order)
        for name in order:
            start = time.perf_counter()
            calls[name]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number >= 3:
                samples[name].append(time.perf_counter() - start)
    return samples


def ratios(samples: dict[str, list[float]], name: str) -> tuple[float, float, float]:
    """Median of the paired ratios with a 95 % bootstrap interval of that median."""
    pairs = [a / b for a, b in zip(samples[name], samples["bare forward"], strict=True)]
    draw = random.Random(0)
    medians = sorted(median(draw.choices(pairs, k=len(pairs))) for _ in range(1000))
    return median(pairs), medians[25], medians[975]


def check(model: nn.Module, inputs: Tensor) -> None:
    """One class and all classes must be the same maps before anything is timed."""
    every = camkit.class_maps(model, inputs, layer="0")
    single = camkit.maps(model, inputs, 5, layer="0")
    assert isinstance(every, Tensor) and isinstance(single, Tensor)
    torch.testing.assert_close(every[:, 5], single)


def memory(model: nn.Module, calls: int = 500) -> dict[str, int]:
    """Growth of the resident peak over the last `calls` of 550 calls, in KiB, and hooks left behind."""
    inputs = torch.randn(1, 3, 64, 64)
    for _ in range(50):
        camkit.maps(model, inputs, 0, layer="0")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(calls):
        camkit.maps(model, inputs, 0, layer="0")
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"growth_kib": after - before, "hooks": sum(len(m._forward_hooks) for m in model.modules())}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/native.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = lesson_model().to(given.device)
    result: dict[str, Any] = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": given.threads,
        "device": given.device,
        "cases": [],
    }
    print("| batch x size | what | ms (median) | ratio to the bare forward | 95 % interval |")
    print("|---|---|---|---|---|")
    for batch, size in CASES:
        inputs = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))
        inputs = inputs.to(given.device)
        check(model, inputs)
        rounds = given.rounds if batch == 1 else max(11, given.rounds // 3)
        samples = measure(candidates(model, inputs), rounds)
        result["cases"].append({"batch": batch, "size": size, "seconds": samples})
        for name, values in samples.items():
            middle, low, high = ratios(samples, name)
            row = f"{1000 * median(values):.1f} | {middle:.3f} | {low:.3f} to {high:.3f}"
            print(f"| {batch} x {size} | {name} | {row} |", flush=True)
    result["memory"] = memory(model.cpu())
    print(f"\n500 calls: peak memory grew by {result['memory']['growth_kib']} KiB, ", end="")
    print(f"{result['memory']['hooks']} hooks left.")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
