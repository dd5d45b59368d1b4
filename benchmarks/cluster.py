"""Large runs with the engine `ray`, on a cluster of three nodes of this machine.

    python -m benchmarks.cluster kills [--photographs 5000] [--kills 20]   of workers, nodes and drivers
    python -m benchmarks.cluster overhead [--rounds 3]    the same work with the engines `local` and `ray`
    python -m benchmarks.cluster memory                   of the driver, for 10,000 and 100,000 photographs
    python -m benchmarks.cluster rows [--count 1000000]   listing, resume, and after a changed listing

Each adds its figures to `benchmarks/results/cluster.json`. It needs camkit-ray, and takes minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).with_name("results") / "cluster.json"
CHEAP = "timm:test_resnet@none"
NODE = {"num_cpus": 2, "object_store_memory": 150 * 2**20}
# A network that costs next to nothing, so that what is measured is all else.
NOTHING = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
"""


def photographs(folder: Path, count: int, size: tuple[int, int] = (96, 72)) -> Path:
    """Noise, each of its own, in folders of a thousand."""
    for number in range(count):
        path = folder / f"{number // 1000:03}" / f"{number:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, quality=80)
    return folder


def command(*arguments: object) -> list[str]:
    """The command line in a process of its own."""
    return [sys.executable, "-m", "camkit", "explain", *map(str, arguments)]


def rows_of(out: Path) -> list[tuple[str, str]]:
    """The name of each row, and the hash of its map."""
    from pyarrow import parquet

    found: list[tuple[str, str]] = []
    for file in sorted(out.glob("part-*.parquet")):
        table = parquet.read_table(file, columns=["name", "map_sha256"])
        found += zip(*(table[name].to_pylist() for name in ("name", "map_sha256")), strict=True)
    return found


@contextmanager
def cluster(nodes: int = 3) -> Iterator[Any]:
    """A cluster of separate nodes on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    made.workers = [made.add_node(**NODE) for _ in range(nodes - 1)]
    try:
        yield made
    finally:
        made.shutdown()


# --- kills --------------------------------------------------------------------------------------------


def kills(options: argparse.Namespace) -> dict[str, Any]:
    """Runs that are disturbed until so many kills are done; each must end with the rows of a quiet one."""
    chosen = random.Random(options.seed)
    counts: Counter[str] = Counter()
    lost = twice = runs = 0
    with tempfile.TemporaryDirectory() as base, cluster() as nodes:
        photos = photographs(Path(base, "photos"), options.photographs)
        quiet: list[Any] = [photos, "--model", CHEAP, "--device", "cpu", "--quiet"]
        subprocess.run(command(*quiet, "--out", f"file://{base}/quiet"), check=True)
        wanted = set(rows_of(Path(base, "quiet")))
        asked = [photos, "--model", CHEAP, "--device", "cpu", "--engine", "ray", "--address", nodes.address]
        asked += ["--actors", 3, "--part-size", 32, "--workers", 1]
        while sum(counts.values()) < options.kills:
            out = Path(base, f"out-{runs}")
            runs += 1
            left = options.kills - sum(counts.values())
            _disturbed(asked, out, nodes, chosen, counts, left)
            found = Counter(rows_of(out))
            lost += len(wanted - found.keys())
            twice += sum(found.values()) - len(found)
            print(f"run {runs}: {dict(counts)}, {lost} lost, {twice} twice", flush=True)
    return {
        "photographs": options.photographs,
        "runs": runs,
        "kills": dict(counts),
        "lost": lost,
        "twice": twice,
    }


def _disturbed(
    asked: list[Any], out: Path, nodes: Any, chosen: random.Random, counts: Counter[str], most: int
) -> None:
    """One run until it is finished, with kills at random moments after its first table."""
    process, begun = _started(asked, out), 0
    while process.poll() is None:
        deadline = time.monotonic() + 120
        while len(_parts(out)) <= begun and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(chosen.uniform(0, 4))
        begun = len(_parts(out))
        if most <= 0 or process.poll() is not None:
            process.wait(600)
            break
        what = chosen.choice(["worker", "node", "driver"])
        if what == "worker" and (workers := _workers()):
            os.kill(chosen.choice(workers), signal.SIGKILL)
        elif what == "node":
            nodes.remove_node(nodes.workers.pop(), allow_graceful=False)
            nodes.workers.append(nodes.add_node(**NODE))
        else:
            what = "driver"
            process.kill()
            process.wait()
            process = _started(asked, out)
        counts[what] += 1
        most -= 1
    if process.wait() != 0:
        raise SystemExit(f"the run ended with {process.returncode}")


def _started(asked: list[Any], out: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*asked, "--out", out, "--resume", "--quiet"))


def _parts(out: Path) -> list[Path]:
    return list(out.glob("part-*.parquet"))


def _workers() -> list[int]:
    found = subprocess.run(["pgrep", "-f", "^ray::MapWorker"], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


# --- overhead ----------------------------------------------------------------------------------------


def overhead(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds for each photograph, from the difference of a long and a short run, in turns."""
    few, many = 64, options.photographs
    seconds: dict[str, list[float]] = {"local": [], "ray": []}
    with tempfile.TemporaryDirectory() as base:
        photos = {n: photographs(Path(base, str(n)), n, (500, 375)) for n in (few, many)}
        for number in range(options.rounds):
            for engine in seconds:
                took = {
                    n: _timed(photos[n], Path(base, f"{engine}-{number}-{n}"), engine) for n in (few, many)
                }
                seconds[engine].append((took[many] - took[few]) / (many - few))
            print({engine: round(times[-1], 4) for engine, times in seconds.items()}, flush=True)
    ratios = [ray / local for ray, local in zip(seconds["ray"], seconds["local"], strict=True)]
    return {"photographs": [few, many], "seconds": seconds, "ratio": median(ratios), "bound": 1.15}


def _timed(photos: Path, out: Path, engine: str) -> float:
    asked: list[Any] = [photos, "--model", "torchvision:resnet34@none", "--device", "cpu", "--quiet"]
    asked += ["--format", "parquet", "--out", out]
    more: list[Any] = ["--engine", "ray", "--actors", 1, "--part-size", 32] if engine == "ray" else []
    begun = time.monotonic()
    subprocess.run(command(*asked, *more), check=True)
    return time.monotonic() - begun


# --- memory ------------------------------------------------------------------------------------------


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """The largest resident memory of the driver alone, in MiB."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as base, cluster() as nodes:
        Path(base, "nothing.py").write_text(NOTHING)
        photos = photographs(Path(base, "photos"), options.photographs, (16, 16))
        paths = sorted(map(str, photos.rglob("*.jpg")))
        for count in (options.photographs // 10, options.photographs):
            Path(base, "list.txt").write_text("\n".join(paths[:count]))
            asked: list[Any] = ["--from", Path(base, "list.txt"), "--model", f"{base}/nothing.py:build"]
            asked += [
                "--size",
                16,
                "--mean",
                "0,0,0",
                "--std",
                "1,1,1",
                "--classes",
                "a,b",
                "--device",
                "cpu",
            ]
            asked += ["--engine", "ray", "--address", nodes.address, "--actors", 2, "--workers", 0]
            asked += ["--batch-size", 256, "--out", Path(base, f"out-{count}")]
            begun = time.monotonic()
            process = subprocess.Popen(command(*asked, "--quiet"))
            found[str(count)] = _peak(process)
            rate = count / (time.monotonic() - begun)
            print(f"{count} photographs: {found[str(count)]:.0f} MiB, {rate:.0f} a second", flush=True)
    few, many = found.values()
    return {"mebibytes": found, "growth": many / few - 1, "bound": 0.1}


def _peak(process: subprocess.Popen[bytes]) -> float:
    """The largest resident memory of a process while it runs, in MiB, by the system's own count."""
    largest = 0.0
    status = Path(f"/proc/{process.pid}/status")
    while process.poll() is None:
        try:
            lines = status.read_text().splitlines()
        except OSError:
            break
        fields = dict(line.split(":", 1) for line in lines if ":" in line)
        # Without what is shared: the store of objects is mapped, and belongs to the node.
        own = [int(fields[name].split()[0]) for name in ("RssAnon",) if name in fields]
        largest = max(largest, sum(own) / 1024)
        time.sleep(0.1)
    if process.wait() != 0:
        raise SystemExit(f"the run ended with {process.returncode}")
    return largest


# --- rows --------------------------------------------------------------------------------------------


def rows(options: argparse.Namespace) -> dict[str, Any]:
    """Listing, resume, and resume after the listing has changed, of synthetic tables on the local disk."""
    with tempfile.TemporaryDirectory() as base:
        place, file = Path(base, "out"), Path(base, "list.txt")
        place.mkdir()
        file.write_text("".join(f"/photographs/{n // 1000:04}/{n:08}.jpg\n" for n in range(options.count)))
        found: dict[str, Any] = {"rows": options.count, "write": _written(file, place)}
        for what in ("listing", "resume", "changed"):
            if what == "changed":
                file.write_text("/photographs/0000/00000000-.jpg\n" + file.read_text())
            code = (
                f"from benchmarks import cluster; cluster.measured({what!r}, {str(file)!r}, {str(place)!r})"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            found[what] = json.loads(done.stdout)
            print(what, found[what], flush=True)
    return found


def measured(what: str, file: str, place: str) -> None:
    """In a process of its own: print seconds, MiB and what was found."""
    from camkit.engines import tables
    from camkit.engines.parts import Parts
    from camkit.images.listing import Listing

    before = _highest()
    begun = time.monotonic()
    parts = Parts(Listing(listed=file), 256, "request")
    skipped = 0
    if what != "listing":
        found = tables.left(parts, place)
        parts, skipped = found.parts, found.skipped
    left = sum(len(part.photographs) for part in parts)
    seconds = time.monotonic() - begun
    facts = {"seconds": round(seconds, 2), "mebibytes": round(_highest() - before, 1)}
    print(json.dumps({**facts, "photographs left": left, "parts skipped": skipped}))


def _highest() -> float:
    """The largest resident memory of this process until now, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def _written(file: Path, place: Path) -> dict[str, float]:
    """Tables of synthetic maps, each 7 x 7, with the columns of any other."""
    from camkit.engines import tables
    from camkit.engines.parts import Parts
    from camkit.explaining.manifest import FIELDS
    from camkit.images.listing import Listing

    begun, size = time.monotonic(), 0
    maps = np.random.default_rng(0).normal(size=(256, 7, 7)).astype(np.float32)
    usual = dict.fromkeys(FIELDS) | {"status": "ok", "schema": 2, "warnings": [], "map_shape": [7, 7]}
    for part in Parts(Listing(listed=str(file)), 256, "request"):
        lines = [{**usual, "name": one.name, "image": one.path} for one in part.photographs]
        tables.write(str(place), part, "request", lines, list(maps[: len(lines)]))
        size += (place / tables.name_of(part.id)).stat().st_size
    return {"seconds": round(time.monotonic() - begun, 1), "mebibytes on disk": round(size / 2**20, 1)}


def report(found: Mapping[str, Any]) -> str:
    """Markdown: a row for each figure that was measured."""
    lines = ["| what | bound | measured |", "|---|---|---|"]
    if done := found.get("kills"):
        told = ", ".join(f"{count} of {what}s" for what, count in sorted(done["kills"].items()))
        many = sum(done["kills"].values())
        runs = "a run" if done["runs"] == 1 else f"{done['runs']} runs"
        what = f"{many} kills ({told}) in {runs} of {done['photographs']:,} photographs"
        lines.append(f"| {what}: rows lost, twice | 0, 0 | {done['lost']}, {done['twice']} |")
    if done := found.get("overhead"):
        seconds = " and ".join(f"{median(times):.3f} s ({name})" for name, times in done["seconds"].items())
        what = f"`ray` beside `local`, resnet34, one actor, start-up apart: {seconds} for each photograph"
        lines.append(f"| {what} | <= {done['bound']} | {done['ratio']:.2f} |")
    if done := found.get("memory"):
        sizes = ", ".join(f"{size:.0f} MiB for {int(count):,}" for count, size in done["mebibytes"].items())
        what = f"memory of the command, without what is shared: {sizes} photographs"
        lines.append(f"| {what} | + 10 % | {done['growth']:+.1%} |")
    if done := found.get("rows"):
        for kind, what in {
            "listing": "listing and parts",
            "resume": "resume, all there",
            "changed": "resume after one photograph was added in front",
        }.items():
            one = done[kind]
            what = f"{done['rows']:,} rows: {what}"
            lines.append(f"| {what} | | {one['seconds']:.1f} s, {one['mebibytes']:.0f} MiB |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and add the figures to the file of results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    for kind, defaults in {
        kills: {"photographs": 5000, "kills": 20, "seed": 0},
        overhead: {"photographs": 320, "rounds": 3},
        memory: {"photographs": 100_000},
        rows: {"count": 1_000_000},
    }.items():
        own = kinds.add_parser(kind.__name__)
        own.set_defaults(run=kind)
        for name, default in defaults.items():
            own.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    begun = time.monotonic()
    found = options.run(options)
    found["took"] = round(time.monotonic() - begun)
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, options.run.__name__: found}, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
