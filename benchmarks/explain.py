"""What `camkit explain` costs on many photographs beside the bare forward, and what it holds in memory.

The photographs of FOLDER are repeated under as many names as are needed. The model is that of fast.ai's
lesson 6 (resnet34, 37 classes, random weights) at 224 pixels. Rates come from shuffled rounds in one
process: the bare `inference_mode` forward of as many images in batches of the same size, and reading,
explaining and writing in each format, without start-up. Memory, start-up and `--resume` are those of whole
processes of the command.

    python -m benchmarks.explain FOLDER [--images N] [--rounds N] [--many N] [--part NAME] [--out FILE]
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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `camkit explain` does, before torch is imported
import torch

import camkit
from camkit.drawing.style import Style
from camkit.explaining import pipeline, plan
from camkit.explaining.manifest_lines import Format
from camkit.explaining.output import Output
from camkit.explaining.stages import Stages
from camkit.images import decoding, finding, workers

SPEC = "fastai:resnet34@none"
BATCH, READERS = 16, 2
LOOKS = {"lesson": Style(look="lesson")}
FORMATS: dict[str, Format] = {"png": "png", "lesson": "png", "npz": "npz", "parquet": "parquet"}
BOUNDS = {"png": 0.78, "lesson": 0.87, "npz": 0.94, "parquet": 0.94}


def repeated(folder: Path, count: int, target: Path) -> Path:
    """`count` photographs of `folder`, under new names, by hard links or copies."""
    paths = list(finding.expand([folder]))
    target.mkdir(parents=True)
    for number in range(count):
        path = paths[number % len(paths)].resolve()
        name = target / f"{number:05}-{path.name}"
        try:
            os.link(path, name)
        except OSError:
            shutil.copyfile(path, name)
    return target


def rates(folder: Path, count: int, rounds: int, spec: str = SPEC) -> dict[str, list[float]]:
    """Seconds for each round: of the bare forward, and of `camkit explain` in each format."""
    model = camkit.load_model(spec, device="cpu")
    work = plan.plan(model)
    inputs = torch.randn(BATCH, 3, *model.preprocess.size)
    with tempfile.TemporaryDirectory() as place, workers.processes(READERS) as pool:
        assert pool is not None
        photos = repeated(folder, count, Path(place, "photos"))

        def bare() -> None:
            with torch.inference_mode():
                for start in range(0, count, BATCH):
                    model.module(inputs[: count - start])

        def explain(name: str) -> None:
            out, format = Path(tempfile.mkdtemp(dir=place)), FORMATS[name]
            style = LOOKS.get(name, Style())
            output = Output(out, style=style, format=format)
            stream = pipeline.stream(
                work,
                finding.find([photos]),
                batch_size=BATCH,
                read=partial(pool.read, ahead=2 * BATCH),
                whole=format == "png" and style.view == "original",
                side=decoding.DRAWN,
                ahead=Stages().ahead,
            )
            groups = (list(group) for _, group in groupby(stream, key=lambda result: result.position))
            written = sum(len(photo.lines) for photo in output.write_all(groups))
            assert written == count, f"{written} of {count}"
            shutil.rmtree(out)

        calls: dict[str, Callable[[], None]] = {"bare": bare}
        calls |= {name: partial(explain, name) for name in FORMATS}
        bare()
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for number in range(rounds):
            order = list(calls)
            random.Random(number).shuffle(order)
            for name in order:
                begun = time.perf_counter()
                calls[name]()
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def command(*arguments: str) -> tuple[float, float]:
    """Seconds, and MiB of the largest process, of one `camkit` command."""
    code = (
        "import resource, subprocess, sys; "
        "done = subprocess.run([sys.executable, '-m', 'camkit', *sys.argv[1:]], stdout=2); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024); sys.exit(done.returncode)"
    )
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.PIPE, text=True
    )
    return time.perf_counter() - begun, float(done.stdout)


def memory(folder: Path, many: int) -> Iterator[tuple[str, float]]:
    """Peak memory of a tenth and of all, and what `--resume` takes when all is done."""
    with tempfile.TemporaryDirectory() as place:
        few = repeated(folder, many // 10, Path(place, "few"))
        all_ = repeated(folder, many, Path(place, "all"))
        ask = ("explain", "--model", SPEC, "--device", "cpu", "--batch-size", str(BATCH), "-q", "--out")
        seconds, peak = command(*ask, f"{place}/out-few", str(few))
        yield f"peak memory, {many // 10} photographs, MiB", peak
        one = str(next(finding.expand([few])))
        command(*ask, f"{place}/out-one", one)
        seconds, peak = command(*ask, f"{place}/out-all", str(all_))
        yield f"peak memory, {many} photographs, MiB", peak
        yield f"{many} photographs, s", seconds
        start = median(command(*ask, f"{place}/out-one", "--resume", one)[0] for _ in range(3))
        again = median(command(*ask, f"{place}/out-all", "--resume", str(all_))[0] for _ in range(3))
        yield "--resume of one finished photograph, s", start
        yield f"--resume of {many} finished photographs, s", again


def start(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds from the start of a command to its end: of one photograph, and of what it has to import."""
    photo = str(next(finding.expand([folder])))
    seconds: dict[str, list[float]] = {"import": [], "explain": [], "explain, lesson's model": []}
    with tempfile.TemporaryDirectory() as place:
        run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        explain: list[Any] = [sys.executable, "-m", "camkit", "explain", photo, "--out", f"{place}/out"]
        for _ in range(rounds):
            for name, arguments in (
                ("import", [sys.executable, "-c", "import torch, torchvision"]),
                ("explain", explain),
                ("explain, lesson's model", [*explain, "--model", SPEC]),
            ):
                begun = time.perf_counter()
                run(arguments)
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--many", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default=SPEC, help="of the rates; timm:test_resnet@none costs little")
    parser.add_argument("--part", choices=["rate", "memory", "start"], action="append")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/explain.json"))
    asked = parser.parse_args()
    parts = asked.part or ["rate", "memory", "start"]
    torch.set_num_threads(asked.threads)
    found: dict[str, Any] = {"torch": str(torch.__version__), "threads": asked.threads, "batch": BATCH}
    if "rate" in parts:
        seconds = rates(asked.folder, asked.images, asked.rounds, asked.model)
        found["rate"] = {"images": asked.images, "seconds": seconds}
    if "start" in parts:
        found["start"] = start(asked.folder, asked.rounds)
    if "memory" in parts:
        found["memory"] = dict(memory(asked.folder, asked.many))
    print(report(found))
    known = json.loads(asked.out.read_text("utf-8")) if asked.out.exists() else {}
    asked.out.write_text(json.dumps(known | found, indent=1) + "\n", encoding="utf-8")


def report(result: Mapping[str, Any]) -> str:
    """Markdown: a table for each part that was measured."""
    tables = []
    if rate := result.get("rate"):
        lines = ["| what | images a second | of the bare forward, median | lowest to highest | bound |"]
        lines.append("|---|---|---|---|---|")
        for name, values in rate["seconds"].items():
            ratios = [bare / value for bare, value in zip(rate["seconds"]["bare"], values, strict=True)]
            speed, extent = rate["images"] / median(values), f"{min(ratios):.3f} to {max(ratios):.3f}"
            lines.append(
                f"| {name} | {speed:.1f} | {median(ratios):.3f} | {extent} | {BOUNDS.get(name, '')} |"
            )
        tables.append(lines)
    if begun := result.get("start"):
        rows = [f"| {name} | {median(values):.2f} |" for name, values in begun.items()]
        tables.append(["| from start to end, one photograph | seconds, median |", "|---|---|", *rows])
    if held := result.get("memory"):
        rows = [f"| {name} | {value:.1f} |" for name, value in held.items()]
        tables.append(["| the whole command | |", "|---|---|", *rows])
    return "\n\n".join("\n".join(lines) for lines in tables)


if __name__ == "__main__":
    main()
