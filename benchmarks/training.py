"""Whether camkit's way of feeding a training costs time: seconds per epoch against a bare fastai Learner.

The same photographs, split, size, batch, augmentation and network, in alternation; an epoch is
training and validation, for camkit with its checkpoint. Needs the plugin camkit-fastai.

    python -m benchmarks.training FOLDER [--arch timm:test_resnet] [--rounds N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import camkit
from camkit.training import dataset

SIZE, BATCH, PRESIZE = 224, 64, 460
BOUND = 1.15
AUGMENTATION = {
    "max_rotate": 20.0,
    "max_zoom": 1.3,
    "max_lighting": 0.4,
    "max_warp": 0.4,
    "p_affine": 1.0,
    "p_lighting": 1.0,
    "pad_mode": "reflection",
}


def bare(folder: Path, arch: str, device: str, workers: int | None) -> float:
    """Seconds of one epoch as fastai's own documentation would write it."""
    from fastai.vision import all as fastai

    data = dataset.read(folder)
    _, valid = data.split()
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock(vocab=data.classes)),
        get_items=lambda _: list(range(len(data.paths))),
        get_x=lambda i: data.paths[i],
        get_y=lambda i: data.label(i),  # a method's own name would say what fastai makes of it
        splitter=fastai.IndexSplitter(valid),
        item_tfms=fastai.Resize(PRESIZE),
        batch_tfms=fastai.aug_transforms(size=SIZE, **AUGMENTATION),
    )
    loaders = block.dataloaders(folder, bs=BATCH, device=torch.device(device), num_workers=workers)
    source, name = arch.split(":")
    learner = fastai.vision_learner(
        loaders,
        name if source == "timm" else getattr(fastai.models, name),
        pretrained=False,
        metrics=fastai.error_rate,
        bn_final=True,
    )
    with learner.no_bar(), learner.no_logging():
        start = time.perf_counter()
        learner.fit_one_cycle(1, 1e-3)
        return time.perf_counter() - start


def ours(folder: Path, arch: str, device: str, workers: int | None) -> float:
    """Seconds of one epoch of `camkit train`, from the report that it begins to the one that it is done."""
    stages = [{"size": SIZE, "epochs": 1, "lr_max": 1e-3}]
    recipe = {"batch_size": BATCH, "presize": PRESIZE, "bn_final": True, "stages": stages, **AUGMENTATION}
    times: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        camkit.train(
            folder,
            trainer="fastai",
            out=out,
            recipe=recipe,
            arch=arch,
            weights="none",
            device=device,
            workers=workers,
            progress=lambda *_: times.append(time.perf_counter()),
        )
    return times[-1] - times[0]


def report(result: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: a row for each network and device."""
    lines = [
        "| network | device | rounds | bare Learner | camkit | ratio, median | lowest to highest | bound |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in result:
        samples = found["seconds"]
        pairs = [c / b for c, b in zip(samples["camkit"], samples["bare"], strict=True)]
        middles = " | ".join(f"{median(samples[name]):.2f} s" for name in ("bare", "camkit"))
        extent = f"{median(pairs):.3f} | {min(pairs):.3f} to {max(pairs):.3f}"
        lines.append(
            f"| `{found['arch']}` | {found['device']} | {len(pairs)} | {middles} | {extent} | {BOUND} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--arch", default="timm:test_resnet", help="tiny, so that reading is what counts")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/training.json"))
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    samples: dict[str, list[float]] = {"bare": [], "camkit": []}
    calls = {"bare": bare, "camkit": ours}
    shuffle = random.Random(0)
    for number in range(args.rounds + 1):  # the first round warms up
        for name in shuffle.sample(list(calls), 2):
            seconds = calls[name](args.folder, args.arch, args.device, args.workers)
            if number:
                samples[name].append(seconds)
    facts: dict[str, Any] = {"arch": args.arch, "device": args.device, "workers": args.workers}
    facts |= {"torch": str(torch.__version__), "python": platform.python_version(), "seconds": samples}
    known = json.loads(args.out.read_text()) if args.out.exists() else []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = [*(r for r in known if (r["arch"], r["device"]) != (args.arch, args.device)), facts]
    args.out.write_text(json.dumps(result) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
