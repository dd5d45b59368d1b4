"""Each library used directly, as its own documentation says, beside the same through camkit.

Grad-CAM of given classes on the bundled model `pets` and parts of the bundled photograph. Interleaved,
shuffled rounds; every candidate has its own copy of the model and is divided by the bare `inference_mode`
forward of the same round. Prints a Markdown table and writes the raw samples as JSON.

    python -m benchmarks.adapters [--rounds N] [--threads N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import camkit
from benchmarks.peers import PEERS, comparable
from benchmarks.road import case
from camkit.bench import bench_json, environment, statistics, timing
from camkit.core.layer_lookup import resolve_layers

LIBRARIES = ("captum", "torchcam", "pytorch-grad-cam")
BATCHES = (1, 8)
BARE = "bare forward"


def candidates(module: torch.nn.Module, layer: str, inputs: Tensor, targets: list[int]) -> dict[str, Any]:
    """What is timed, each with a model of its own: hooks that a library leaves would cost the others."""

    def bare(model: torch.nn.Module) -> Any:
        with torch.inference_mode():
            return model(inputs)

    def through(backend: str, model: torch.nn.Module) -> Any:
        return camkit.maps(model, inputs, targets, layer=layer, backend=backend)

    def directly(library: str, model: torch.nn.Module) -> Tensor:
        return PEERS[library](model, inputs, targets, layer)

    calls: dict[str, Callable[..., Any]] = {BARE: bare, "native": partial(through, "native")}
    for library in LIBRARIES:
        calls[f"{library}, directly"] = partial(directly, library)
        calls[f"{library}, through camkit"] = partial(through, library)
    return {name: partial(call, copy.deepcopy(module)) for name, call in calls.items()}


def differences(calls: Mapping[str, Callable[[], Any]], size: int) -> dict[str, float]:
    """Of each library's maps from those of `native` in its own form, relative to the peak."""
    raw, found = calls["native"](), {}
    for library in LIBRARIES:
        for name, wanted in (
            (f"{library}, directly", comparable(library, raw, size, 1)),
            (f"{library}, through camkit", raw),
        ):
            found[name] = float((calls[name]() - wanted).abs().max() / wanted.abs().max())
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=31, help="for one image; a third of it for more")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/adapters.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpu = torch.device("cpu")
    result: dict[str, Any] = {"conditions": {"before": environment.conditions(cpu)}, "cases": []}
    for batch in BATCHES:
        module, inputs, _, targets = case(batch)
        (layer,) = resolve_layers(module, "auto", inputs)
        calls = candidates(module, layer, inputs, targets.tolist())
        rounds = args.rounds if batch == 1 else max(args.rounds // 3, 6)
        apart = differences(calls, inputs.shape[-1])
        limits = timing.Rounds(warmup=2, least=rounds, most=rounds)
        timed = timing.interleaved(calls, timing.timer(cpu), limits)
        for found in timed.values():
            if found.error is not None:
                raise found.error
        result["cases"].append(
            {
                "batch": batch,
                "size": inputs.shape[-1],
                "differences": apart,
                "seconds": {name: found.host for name, found in timed.items()},
            }
        )
    result["conditions"]["after"] = environment.conditions(cpu)
    packages = ("grad-cam", "captum", "torchcam")
    result["environment"] = environment.environment(cpu, torch.float32, packages)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result) + "\n")
    print(report(result))


def report(result: Mapping[str, Any]) -> str:
    """Markdown: a row for each candidate, a column for each batch."""
    cases = result["cases"]
    lines = ["| what |" + "".join(f" {one['batch']} x {one['size']} |" for one in cases)]
    lines[0] += " difference from `native` |"
    lines.append("|---|" + "---|" * (len(cases) + 1))
    for name in cases[0]["seconds"]:
        cells = [_cell(one["seconds"], name) for one in cases]
        apart = [one["differences"][name] for one in cases if name in one["differences"]]
        lines.append(f"| {name} | {' | '.join(cells)} | {f'{max(apart):.1e}' if apart else ''} |")
    rounds = ", ".join(str(len(one["seconds"][BARE])) for one in cases)
    machine = result["environment"]
    versions = ", ".join(
        f"{name} {machine['versions'][name]}" for name in ("captum", "torchcam", "grad-cam")
    )
    told = f"{machine['threads']} threads of a CPU, torch {machine['versions']['torch']}, {versions}"
    line = bench_json.busy(result["conditions"]["before"].get("load"), machine.get("cores"))
    busy = f" Note: {line}." if line else ""
    return "\n".join(lines) + f"\n\n{told}; rounds: {rounds}.{busy}"


def _cell(seconds: Mapping[str, list[float]], name: str) -> str:
    if name == BARE:
        return f"{1000 * statistics.median(seconds[name]).middle:.1f} ms"
    ratio = statistics.paired(seconds[name], seconds[BARE])
    return f"{ratio.middle:.3f}" + ("" if ratio.low is None else f" ({ratio.low:.3f} to {ratio.high:.3f})")


if __name__ == "__main__":
    main()
