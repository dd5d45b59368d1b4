"""What a picture costs, drawn and encoded, beside that of an older camkit; nothing of a model is in it.

The photograph is the bundled one at 500 x 375, the maps are random, 7 x 7. Each camkit runs in a process of
its own, with one thread; they take turns, in shuffled order, and the ratio is that of the same round.

    python -m benchmarks.drawing OLD [--rounds N] [--out FILE]      OLD: a checkout of camkit at c1f436d
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

BOUND = 1.3
PICTURES = 5  # drawn in a turn
OLD = "older camkit, --view original"
LOOKS = ("default", "contour", "spotlight", "lesson")

# Run with `src` of the older checkout before all else.
WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import time, torch
from camkit.drawing.style import Style
from camkit.images.decoding import Photo, load, sample
from camkit.images.preprocess import Preprocess

torch.set_num_threads(1)
photo = Photo(load(sample()).image.resize((500, 375)), "chelsea.png", "")
seeded = [torch.Generator().manual_seed(seed) for seed in range(int(sys.argv[2]))]
maps = [torch.randn(7, 7, generator=generator) for generator in seeded]
preprocess = Preprocess(resize=256)
exec(sys.argv[3])
print("ready", flush=True)
for name in sys.stdin:
    begun = time.perf_counter()
    for map in maps:
        draw(name.strip(), map)
    print((time.perf_counter() - begun) / len(maps), flush=True)
"""
THEN = """
from camkit.drawing.overlay import draw as drawn
from camkit.explaining.writers import encoded
def draw(look, map):
    encoded(drawn(photo, map, preprocess, "original", Style()))
"""
NOW = """
from camkit.drawing.caption import Caption
from camkit.drawing.overlay import draw as drawn
from camkit.explaining.embedding import KEPT, encoded
caption = Caption("Egyptian cat", "39.8%", "predicted", ("gradcam", "layer layer4", "resnet34"))
line = dict.fromkeys(KEPT, "as long as fields are")
def draw(look, map):
    encoded(drawn(photo, map, preprocess, Style(look=look), caption), "png", [line])
"""


def measure(old: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds for each picture, in each round."""
    sources = {OLD: (old / "src", THEN), **dict.fromkeys(LOOKS, (Path("src"), NOW))}
    workers = {source: _worker(*source) for source in set(sources.values())}
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(sources), len(sources)):
            found = workers[sources[name]](name)
            if number:  # the first round fills caches
                seconds[name].append(found)
    return seconds


def _worker(source: Path, code: str) -> Callable[[str], float]:
    """A process that draws with the camkit of a folder; called with a look, it tells the seconds."""
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(source), str(PICTURES), code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    given, told = process.stdin, process.stdout
    assert given is not None and told is not None
    assert told.readline() == "ready\n"

    def ask(name: str) -> float:
        given.write(f"{name}\n")
        given.flush()
        return float(told.readline())

    return ask


def report(result: Mapping[str, Any]) -> str:
    """Markdown: milliseconds of each look, and the ratio to the older camkit in the same rounds."""
    lines = [
        "| PNG picture of 500 x 375 | ms, median | of the older one, median | bound |",
        "|---|---|---|---|",
    ]
    seconds = result["seconds"]
    for name, values in seconds.items():
        ratio = median(new / old for new, old in zip(values, seconds[OLD], strict=True))
        bound = f"<= {BOUND}" if name == "default" else ""
        shown = name if name == OLD else f"`--look {name}`"
        lines.append(f"| {shown} | {1000 * median(values):.1f} | {ratio:.2f} | {bound} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print Markdown, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("old", type=Path)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/drawing.json"))
    asked = parser.parse_args()
    found = {"seconds": measure(asked.old, asked.rounds)}
    print(report(found))
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
