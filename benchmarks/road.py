"""How long ROAD takes, beside `pytorch_grad_cam.metrics.road`, for one image of a batch.

The same model, photographs, maps, fractions (nine, both orders) and batch for both. First it is checked
that they agree where both are right, without noise and without equal pixels: filled-in pixels with the
direct sparse solve to 1e-3, scores with theirs to 1e-3. Then both run in shuffled rounds. Prints a Markdown
table and writes the raw samples as JSON; exit code 1 if they disagree or ours is not five times faster.

    python -m benchmarks.road [--images N] [--rounds N] [--threads N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer, ROADCombined
from torch import Tensor

import camkit
from camkit.bench import environment, statistics, timing
from camkit.images import decoding
from camkit.metrics import faithfulness
from camkit.metrics.imputation import NOISE, impute
from camkit.metrics.map_tools import resized, uniform

EQUAL, BOUND = 1e-3, 5.0
CHECKED = 2  # images of which everything is compared: the sparse solve takes seconds for each

Case = tuple[torch.nn.Module, Tensor, Tensor, Tensor]


def case(count: int) -> Case:
    """The bundled model, `count` parts of the bundled photograph, their Grad-CAM in full size, classes."""
    model = camkit.load_model("pets")
    photo = decoding.load(decoding.sample()).image
    side = min(photo.size) * 3 // 4
    places = np.linspace(0, 1, count)
    corners = [(round(p * (photo.width - side)), round((1 - p) * (photo.height - side))) for p in places]
    parts = [photo.crop((x, y, x + side, y + side)) for x, y in corners]
    inputs = torch.stack([model.preprocess(part) for part in parts])
    with torch.no_grad():
        targets = model.module(inputs).argmax(1)
    maps = camkit.maps(model.module, inputs, targets, layer=model.default_layer)
    full = resized(maps, inputs.shape[-2:])
    # No two pixels are equal: there, their percentiles remove another number of pixels.
    grain = 1e-3 * full.abs().amax((1, 2), keepdim=True) * uniform(tuple(full.shape), 0, full)
    return model.module, inputs, full + grain, targets


def ours(case: Case, noise: float = NOISE) -> Tensor:
    """Scores `[B]`; as many images in a forward as theirs."""
    return faithfulness.road(*case, noise=noise, chunk=len(case[1]))


def theirs(case: Case, noise: float = NOISE) -> Tensor:
    """Scores `[B]`, of probabilities as ours."""
    model, inputs, maps, targets = case
    metric = ROADCombined()
    for order in (metric.morf_averager, metric.lerf_averager):
        order.imputer = partial(_with_noise, order.imputer, noise)

    def probability(target: int) -> Callable[[Tensor], Tensor]:
        return lambda scores: scores.softmax(0)[target]

    picked = [probability(target) for target in targets.tolist()]
    return torch.as_tensor(metric(inputs, maps.numpy(), picked, model))


def _with_noise(make: Callable[[int], Any], noise: float, percentile: int) -> Any:
    metric = make(percentile)
    metric.perturbation.imputer.noise = noise
    return metric


def disagreement(case: Case) -> dict[str, float]:
    """Largest differences: of filled-in pixels from the sparse solve, of scores from theirs."""
    model, inputs, maps, targets = case[0], case[1][:CHECKED], case[2][:CHECKED], case[3][:CHECKED]
    known = maps < maps.flatten(1).median(1).values[:, None, None]
    direct = NoisyLinearImputer(noise=0)
    solved = torch.stack([direct(image, mask.float()) for image, mask in zip(inputs, known, strict=True)])
    few = (model, inputs, maps, targets)
    return {
        "pixels": float((impute(inputs, known) - solved).abs().max()),
        "scores": float((ours(few, noise=0.0) - theirs(few, noise=0.0)).abs().max()),
    }


def main() -> None:
    """Check, measure, print, write; exit code 1 for what is wrong or too slow."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/road.json"))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cpu = torch.device("cpu")
    before = environment.conditions(cpu)
    batch = case(args.images)
    apart = disagreement(batch)
    calls: dict[str, timing.Call] = {"ours": lambda: ours(batch), "theirs": lambda: theirs(batch)}
    limits = timing.Rounds(warmup=0, least=args.rounds, most=args.rounds)
    timed = timing.interleaved(calls, timing.timer(cpu), limits)
    for found in timed.values():
        if found.error is not None:
            raise found.error
    ratio = statistics.paired(timed["theirs"].host, timed["ours"].host)
    record: dict[str, Any] = {
        "environment": environment.environment(cpu, torch.float32, ["grad-cam"]),
        "conditions": {"before": before, "after": environment.conditions(cpu)},
        "images": args.images,
        "disagreement": apart,
        "seconds": {name: found.host for name, found in timed.items()},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(record) + "\n")
    print(report(record))
    if max(apart.values()) > EQUAL or ratio.middle < BOUND:
        raise SystemExit(1)


def report(result: Mapping[str, Any]) -> str:
    """Markdown: the table, and how far both agree."""
    seconds, count, apart = result["seconds"], result["images"], result["disagreement"]
    ratio = statistics.paired(seconds["theirs"], seconds["ours"])
    span = "" if ratio.low is None else f" ({ratio.low:.2f} to {ratio.high:.2f})"
    cells = {"ours": f"{ratio.middle:.2f}{span} | {BOUND:g} at least", "theirs": " | "}
    lines = ["| ROAD | seconds an image, median | theirs over ours | bound |", "|---|---|---|---|"]
    for name, samples in seconds.items():
        lines.append(f"| {name} | {statistics.median(samples).middle / count:.3f} | {cells[name]} |")
    told = f"a batch of {count}, {len(seconds['ours'])} rounds, {result['environment']['threads']} threads"
    return "\n".join(lines) + (
        f"\n\n{told}; largest difference of pixels {apart['pixels']:.1e}, of scores {apart['scores']:.1e}."
    )


if __name__ == "__main__":
    main()
