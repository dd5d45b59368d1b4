"""Power cuts, as far as `kill -9` is one: every command is killed somewhere, goes on, and loses nothing.

    python -m tests.kills                       thirty kills, spread over all jobs
    python -m tests.kills --job train --kills 4

Each job runs undisturbed once, which tells how long it takes and what it should come to. Then it is killed,
with all its processes, at a time that depends on the seed alone, and started again. A kill counts as
survived if the folder holds what the undisturbed run wrote, nothing twice, nothing torn, and no draft.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from camkit.errors import CamkitError
from camkit.explaining import manifest, stored_maps

Words = tuple[str, ...]
PHOTOS, CLASSES = 40, 2


@dataclass(frozen=True)
class Job:
    """A command that is killed in the folder `out`, and what it should come to.

    before: what has to be there, made once. resume: is added when it goes on. told: what counts of `out`.
    """

    command: Words
    told: Callable[[Path], object]
    before: tuple[Words, ...] = ()
    resume: Words = ()


def lines(out: Path) -> object:
    """The results that a manifest tells of, each map read; every line once."""
    found = list(manifest.read(out))
    for line in found:
        stored_maps.load_map(out, line)
        if line["overlay_file"]:
            with Image.open(out / line["overlay_file"]) as picture:
                picture.load()
    facts = sorted(
        (line["name"], line["method"], line["class_index"], line["map_sha256"], line["overlay_file"] or "")
        for line in found
    )
    if len(set(facts)) < len(facts):
        raise CamkitError("a result is told twice")
    return facts


def trained(out: Path) -> object:
    """The figures of a bundle, and the names of what else a training leaves."""
    config = json.loads((out / "bundle" / "camkit.json").read_bytes())
    weights = (out / "bundle" / "model.safetensors").stat().st_size
    names = sorted(path.name for path in out.iterdir())
    return config["metrics"], config["history"], config["split"], weights, names


def benched(out: Path) -> object:
    """The rows of a benchmark, and the names of what it leaves."""
    document = json.loads((out / "bench.json").read_bytes())
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*"))
    return [(row["backend"], row["method"]) for row in document["rows"]], names


EXPLAIN = ("explain", "photos", "--batch-size", "4", "--class", "all", "--model", "net", "--workers", "1")
BENCH = ("--model", "net", "--backend", "native", "--images", "photos", "--batch-size", "1")
HALVES = tuple((*EXPLAIN, "--shard", f"{n}/2", "--out", f"half{n}") for n in (1, 2))
RECIPE = "batch_size = 8\n" + "".join(f"[[stages]]\nepochs = 2\nlr = {lr}\n" for lr in (1e-3, 1e-4))
JOBS = {
    **{
        f"explain {format}": Job(
            (*EXPLAIN, "--format", format, "--out", "out"), lines, resume=("--resume",)
        )
        for format in ("png", "npz", "parquet")
    },
    "merge": Job(("explain", "merge", "half1", "half2", "--out", "out"), lines, HALVES),
    "render": Job(("render", "out"), lines, ((*EXPLAIN, "--format", "npz", "--out", "out"),)),
    "train": Job(
        (
            *("train", "data", "--trainer", "torch", "--arch", "test_resnet", "--weights", "none"),
            *("--recipe", "recipe.toml", "--out", "out"),
        ),
        trained,
        resume=("--resume",),
    ),
    "bench": Job(
        (
            *("bench", "--quick", "--rounds", "5", "--metrics", "latency,spearman,deletion", *BENCH),
            *("--out", "out"),
        ),
        benched,
    ),
}


def prepare(folder: Path) -> None:
    """A small model, photographs, two classes of them to train on, and a recipe."""
    from tests.fuzz import bundle

    bundle(folder / "net")
    draw = np.random.default_rng(0)
    for number in range(PHOTOS):
        picture = Image.fromarray(draw.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        for place in ("photos", f"data/{'ab'[number % CLASSES]}"):
            (folder / place).mkdir(parents=True, exist_ok=True)
            picture.save(folder / place / f"{number:03}.jpg")
    (folder / "recipe.toml").write_text(RECIPE)


def start(folder: Path, words: Words) -> subprocess.Popen[bytes]:
    """`camkit` in a group of its own, so that all its processes can be killed."""
    command = [sys.executable, "-m", "camkit", *words]
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, start_new_session=True, env={**os.environ}
        )


def finish(folder: Path, words: Words) -> None:
    """Run to the end; `CamkitError` with the last line if it fails."""
    if code := start(folder, words).wait(600):
        last = (folder / "log").read_text(errors="replace").strip().rpartition("\n")[2]
        raise CamkitError(f"exit code {code}: {last[:200]}")


def drafts(folder: Path) -> Iterator[str]:
    """What no finished run leaves."""
    return (str(path) for path in folder.rglob("*") if path.name.endswith(".partial"))


def trials(job: Job, site: Path, kills: int, random: Random) -> Iterator[str | None]:
    """What is wrong after each kill; `None` if nothing is."""
    folder, before = site / "run", site / "before"
    shutil.copytree(site / "stock", before)
    for words in job.before:
        finish(before, words)

    def afresh() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(before, folder)

    afresh()
    begun = time.monotonic()
    finish(folder, job.command)
    seconds, expected = time.monotonic() - begun, job.told(folder / "out")
    for _ in range(kills):
        afresh()
        child = start(folder, job.command)
        with suppress(subprocess.TimeoutExpired):  # more often where something is written
            child.wait(seconds * random.choice((random.uniform(0.1, 1), random.uniform(0.6, 1))))
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        over = child.returncode == 0
        try:
            finish(folder, (*job.command, *(job.resume if not over or job.resume else ())))
            found = job.told(folder / "out")
            left = list(drafts(folder))
            wrong = f"drafts: {left}" if left else None if found == expected else "it holds something else"
        except (CamkitError, OSError, ValueError, KeyError) as error:
            wrong = f"{type(error).__name__}: {error}"
        yield wrong


def main() -> int:
    """Kill, tell, and return 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", choices=list(JOBS))
    given = parser.parse_args()
    chosen = [given.job] if given.job else list(JOBS)
    lost = 0
    with tempfile.TemporaryDirectory() as place:
        stock = Path(place, "stock")
        stock.mkdir()
        prepare(stock)
        for number, name in enumerate(chosen):
            kills = (given.kills + len(chosen) - 1 - number) // len(chosen)
            site = Path(place, name.replace(" ", "-"))
            site.mkdir()
            (site / "stock").symlink_to(stock)
            wrong = list(trials(JOBS[name], site, kills, Random(f"{given.seed} {name}")))
            lost += sum(text is not None for text in wrong)
            print(f"{name:16}{kills:4} kills, {sum(text is None for text in wrong)} survived", flush=True)
            for text in filter(None, wrong):
                print(f"    {text}", flush=True)
    return 1 if lost else 0


if __name__ == "__main__":
    raise SystemExit(main())
