"""Which explainers agree, and which tell the truth: `camkit bench` on photographs whose objects are known.

PHOTOS and TRUTH are what `--images` and `--truth` of `camkit bench` take. Writes the document of the run
without the names of the photographs and without curves, and prints tables as Markdown.

    python -m benchmarks.truth PHOTOS TRUTH [--limit N] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camkit.bench import bench_json, results, significance
from camkit.bench.request import BenchRequest
from camkit.bench.results import Document
from camkit.bench.runner import run

BACKENDS = ("native", "captum", "pytorch-grad-cam", "torchcam")
METHODS = ("gradcam", "layercam")
METRICS = ("agreement", "faithfulness", "localisation", "sanity")
SHOWN = ("BACKEND", "METHOD", "AGREE", "GAIN", "POINTING", "ENERGY", "SANITY")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("photos")
    parser.add_argument("truth")
    parser.add_argument("--limit", type=int, default=24)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/truth.json"))
    args = parser.parse_args()
    request = BenchRequest(
        backends=BACKENDS,
        methods=METHODS,
        images=(args.photos,),
        truth=args.truth,
        metrics=METRICS,
        limit=args.limit,
        quick=True,
    )
    document = run(request, lambda text: print(text, file=sys.stderr)).document
    strip(document)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(bench_json.as_json(document))
    print(report(json.loads(bench_json.as_json(document))))


def strip(document: Document) -> None:
    """Remove what the tables do not need."""
    for score in (
        score for row in document.rows for found in row.scores.values() for score in found.values()
    ):
        score.curves, score.steps = None, []
    for scene in document.scenes:
        scene.titles = []
    document.examples = []


def report(result: Mapping[str, Any]) -> str:
    """Markdown: figures of each row, parity, and each explainer against the controls."""
    document = results.read(result)
    (scene,) = document.scenes
    columns = [bench_json.HEADERS.index(name) for name in SHOWN]
    rows = [[line[i] for i in columns] for line in bench_json.headline(document)[1:]]
    parity = [f"{row.key} {row.parity:.1e}" for row in document.rows if row.parity is not None]
    text = (
        f"{scene.images} photographs, truth for {scene.with_truth}; the objects cover "
        f"{scene.truth_share:.2f}, the chance of ENERGY. Largest difference from native, relative to "
        f"the peak: {'; '.join(parity)}."
    )
    tables = [(SHOWN, rows), (significance.BETTER, significance.better(document))]
    return "\n\n".join([*("\n".join(_table(*table)) for table in tables), text])


def _table(headers: Any, rows: Any) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (headers, ["---"] * len(headers), *rows)]


if __name__ == "__main__":
    main()
