"""What the native explainer costs beside the forward that it explains, and beside others.

Interleaved, shuffled rounds: every candidate runs once in each round and is divided by the bare
`inference_mode` forward of the same round, after a check that all maps agree. Prints the table and
writes the raw samples as JSON. On an accelerator every call is timed by events, too, and
a result counts when it is there: each call ends with a synchronisation.

    python -m benchmarks.native [--device cuda] [--rounds N] [--case 8x224]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import random
import resource
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from textwrap import fill
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import camkit
from benchmarks.lesson import lesson_model
from benchmarks.peers import PEERS, comparable
from camkit.bench import timing
from camkit.core import devices

CASES = {"cpu": ("1x224", "8x224", "16x352"), "accelerator": ("1x224", "8x224", "16x352", "256x224")}
SIX = ("gradcam", "gradcam++", "hirescam", "xgradcam", "layercam", "eigencam")
BARE = "bare forward"

# What is divided by what, and the bound that the ratio should keep; other ratios are shown without one.
BOUNDS = {
    ("one class", BARE): "<= 1.03",
    ("37 classes", BARE): "<= 1.12",
    ("six methods", BARE): "<= 1.20",
    ("ablationcam", BARE): "<= 2.00",
    ("one class, fast", BARE): "<= 0.80",
    ("one class, fast, bfloat16", BARE): "<= 0.55",
    ("pytorch-grad-cam", "one class"): ">= 3.00",
    ("pytorch-grad-cam", "one class, fast"): ">= 4.00",
}
GRAPH, HALF_GRAPH = "forward as a graph", "forward as a graph, bfloat16"
BOUNDS_ON_GPU = {
    ("one class, fast", GRAPH): "<= 1.10",
    ("37 classes, fast", GRAPH): "<= 1.15",
    ("pytorch-grad-cam", "one class, fast"): ">= 10.0",
    ("one class, fast, bfloat16", HALF_GRAPH): "<= 1.05",
}

Calls = dict[str, Callable[[], Any]]
# Of each call, in each round: seconds until the result is there; on a GPU those until everything was
# asked for, and those that the GPU took.
Samples = dict[str, dict[str, list[float]]]


def candidates(model: nn.Sequential, inputs: Tensor, explained: int) -> Calls:
    """What is timed. The bare forward stands twice: the second shows the noise of the method."""
    classes = [explained] * len(inputs)

    def bare() -> Any:
        with torch.inference_mode():
            return model(inputs)

    def maps(targets: list[int] | None = classes, **options: Any) -> Callable[[], Any]:
        return lambda: camkit.maps(model, inputs, targets, layer="0", **options)

    calls: Calls = {
        BARE: bare,
        "bare forward again": bare,
        "one class": maps(),
        "predicted class": maps(None),
        "37 classes": lambda: camkit.class_maps(model, inputs, layer="0"),
        "six methods": lambda: camkit.maps_by(model, inputs, classes, layer="0", method=SIX),
        "ablationcam": maps(method="ablationcam"),
        "one class, fast": maps(fast=True, frozen=True),
        "one class, fast, not frozen": maps(fast=True),
        "37 classes, fast": lambda: camkit.class_maps(model, inputs, layer="0", fast=True, frozen=True),
        "one class, fast, bfloat16": maps(fast=True, frozen=True, dtype="bfloat16"),
    }
    if devices.has_graphs(inputs.device):
        calls |= graphed(model, inputs)
    return calls | {name: partial(peer, model, inputs, classes) for name, peer in PEERS.items()}


def graphed(model: nn.Sequential, inputs: Tensor) -> Calls:
    """The fastest forwards that there are to compare with: recorded, and replayed as a whole."""
    half = copy.deepcopy(model).bfloat16().to(memory_format=torch.channels_last)
    low = inputs.bfloat16().contiguous(memory_format=torch.channels_last)
    return {GRAPH: recorded(model, inputs, inputs), HALF_GRAPH: recorded(half, low, inputs)}


def recorded(model: nn.Module, like: Tensor, inputs: Tensor) -> Callable[[], Any]:
    """A call that copies `inputs` into what a graph reads, and replays it."""
    module: Any = torch.get_device_module(inputs.device)
    graph, static = module.CUDAGraph(), like.clone(memory_format=torch.preserve_format)
    with torch.no_grad():
        for _ in range(3):  # what is tuned in the first runs does not belong in it
            model(static)
        devices.synchronise(inputs.device)
        with module.graph(graph):
            model(static)

    def replay() -> None:
        static.copy_(inputs)
        graph.replay()

    return replay


def with_evidence(model: nn.Sequential, inputs: Tensor) -> int:
    """The class whose maps have the most positive peaks: others rectify, and nothing would be left."""
    peaks = camkit.class_maps(model, inputs, layer="0").amax((2, 3))
    return int(peaks.amin(0).argmax())


def check(calls: Calls, explained: int, size: int, bound: float = 1e-4) -> dict[str, dict[str, float]]:
    """Errors relative to the peak and rank correlations with the maps of one class, which must agree."""
    channels = 512  # of the layer
    raw = calls["one class"]()
    fast = [name for name in calls if name.startswith("one class, fast")]
    maps = {name: calls[name]() for name in (*fast, *PEERS)}
    maps |= {name: calls[name]()[:, explained] for name in ("37 classes", "37 classes, fast")}
    maps["six methods"] = calls["six methods"]()["gradcam", "0"]
    agreement = {}
    for name, found in maps.items():
        wanted = comparable(name, raw, size, channels) if name in PEERS else raw
        error = (found.cpu() - wanted.cpu()).abs().max() / wanted.abs().max().cpu()
        ranks = [
            spearmanr(*pair).statistic
            for pair in zip(found.cpu().flatten(1), wanted.cpu().flatten(1), strict=True)
        ]
        agreement[name] = {"error": float(error), "rank": float(min(ranks))}
        # Noise through random weights is the worst case for bfloat16; photographs are better off.
        assert error <= bound or ("bfloat16" in name and min(ranks) >= 0.9), (name, agreement[name])
    return agreement


def measure(calls: Calls, rounds: int, device: torch.device, seed: int = 0) -> Samples:
    """Seconds of every call in every round, after three rounds of warm-up."""
    shuffle, timed = random.Random(seed), timing.timer(device)
    samples: Samples = {name: {} for name in calls}
    for number in range(rounds + 3):
        order = list(calls)
        shuffle.shuffle(order)
        for name in order:
            sample = timed(calls[name])
            seconds = {"result": sample.host, "asked": sample.enqueue, "gpu": sample.device}
            for kind, value in seconds.items() if number >= 3 else ():
                if value is not None:
                    samples[name].setdefault(kind, []).append(value)
    return samples


def ratio(samples: Samples, above: str, below: str) -> tuple[float, float, float]:
    """Median of the paired ratios with a 95 % bootstrap interval of that median."""
    pairs = [a / b for a, b in zip(samples[above]["result"], samples[below]["result"], strict=True)]
    draw = random.Random(0)
    medians = sorted(median(draw.choices(pairs, k=len(pairs))) for _ in range(1000))
    return median(pairs), medians[25], medians[975]


def table(cases: Sequence[Mapping[str, Any]], bounds: Mapping[tuple[str, str], str]) -> str:
    """Markdown: a row for every ratio, a column for every case."""
    samples = [case["seconds"] for case in cases]
    lines = ["| what | bound |" + "".join(f" {case['batch']} x {case['size']} |" for case in cases)]
    lines.append("|---|---|" + "---|" * len(cases))
    times = (f"{1000 * median(case[BARE]['result']):.1f} ms{launch_bound(case[BARE])}" for case in samples)
    lines.append(f"| {BARE} | | {' | '.join(times)} |")
    for above, below in dict.fromkeys([*((name, BARE) for name in list(samples[0])[1:]), *bounds]):
        cells = (
            "{:.3f} ({:.3f} to {:.3f})".format(*ratio(case, above, below)) + launch_bound(case[above])
            for case in samples
        )
        what = above if below == BARE else f"{above} / {below}"
        bound = bounds.get((above, below), "")
        lines.append(f"| {what} | {bound}{' ' if bound else ''}| {' | '.join(cells)} |")
    return "\n".join(lines)


def launch_bound(samples: Mapping[str, list[float]]) -> str:
    """Says so where a GPU waits for what it is asked, so that the ratio tells of the host."""
    waits = "gpu" in samples and median(samples["asked"]) > 0.9 * median(samples["gpu"])
    return ", launch-bound" if waits else ""


def report(result: Mapping[str, Any], bounds: Mapping[tuple[str, str], str]) -> str:
    """Markdown: on what it was measured, the table, the agreement of the maps, the memory."""
    cases = result["cases"]
    cpu = f"{result['threads']} threads of a CPU with {result['vectors']}"
    device = cpu if result["device"] == "cpu" else result["device"]
    rounds = ", ".join(str(len(case["seconds"][BARE]["result"])) for case in cases)
    errors = {
        name: max(case["agreement"][name]["error"] for case in cases) for name in cases[0]["agreement"]
    }
    grown = {name: result["memory"][name]["growth_kib"] for name in ("plain", "fast")}
    hooks = sum(result["memory"][name]["hooks"] for name in ("plain", "fast"))
    paragraphs = [
        f"{device}, torch {result['torch']}, Python {result['python']}; rounds: {rounds}.",
        table(cases, bounds),
        "Largest difference from the maps of one class, relative to the peak: "
        + "; ".join(f"{name} {error:.1e}" for name, error in errors.items())
        + ".",
        f"{result['memory'].get('calls', 500)} calls in a row: the peak of resident memory grows by "
        f"{grown['plain']} KiB, in fast mode by "
        f"{grown['fast']} KiB; {hooks} hooks are left.",
    ]
    return "\n\n".join(text if text.startswith("|") else fill(text, 120) for text in paragraphs)


def memory(model: nn.Sequential, inputs: Tensor, calls: int, **options: Any) -> dict[str, int]:
    """Growth of the resident peak over the last `calls` of 50 more, in KiB, and hooks left behind."""
    for _ in range(50):
        camkit.maps(model, inputs, 0, layer="0", **options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(calls):
        camkit.maps(model, inputs, 0, layer="0", **options)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"growth_kib": after - before, "hooks": sum(len(m._forward_hooks) for m in model.modules())}


def machine(device: torch.device, precision: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "device": devices.kind(device),
        "precision": precision,
    } | {name: version(name) for name in ("grad-cam", "captum", "torchcam")}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=41, help="for one image; a third of it for more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calls", type=int, default=500, help="of which the memory is looked at")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["ieee", "tf32"], default="ieee", help="of float32 on CUDA")
    parser.add_argument("--case", action="append", help="BATCHxSIZE, such as 8x224")
    parser.add_argument("--out", type=Path, help="JSON, by default below benchmarks/results")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    device = devices.pick_device(args.device)
    kind = device.type
    bounds = BOUNDS if kind == "cpu" else BOUNDS_ON_GPU
    cases = args.case or CASES["cpu" if kind == "cpu" else "accelerator"]
    result: dict[str, Any] = machine(device, args.precision) | {"cases": []}
    with devices.multiplied(device, args.precision):
        model = lesson_model().to(device)
        for case in cases:
            batch, size = map(int, case.split("x"))
            inputs = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(
                device
            )
            explained = with_evidence(model, inputs)
            calls = candidates(model, inputs, explained)
            found: dict[str, Any] = {"batch": batch, "size": size}
            found["agreement"] = check(
                calls, explained, size, bound=1e-4 if args.precision == "ieee" else 1e-2
            )
            rounds = args.rounds if batch == 1 else max(args.rounds // 3, min(11, args.rounds))
            found["seconds"] = measure(calls, rounds, device)
            result["cases"].append(found)
            print(f"\n{table([found], bounds)}", flush=True)
        small = torch.randn(1, 3, 64, 64).to(device)
        result["memory"] = {
            name: memory(model, small, args.calls, fast=name == "fast") for name in ("plain", "fast")
        } | {"calls": args.calls}
    out = args.out or Path(f"benchmarks/results/native{'' if kind == 'cpu' else '-' + kind}.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result) + "\n")
    print(f"\n{report(result, bounds)}")


if __name__ == "__main__":
    main()
