"""Benchmarks with published figures: what each needs, what it was published with, and how it is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from camkit.bench import published_funnybirds, published_voc
from camkit.bench.published_task import Figure, Task

# Figures that no method changes.
OF_MODEL = {*published_funnybirds.OF_MODEL, *(f"centre, {part}" for part in published_voc.POINTING)}

Found = tuple[list[Figure], list[str]]


@dataclass(frozen=True)
class Benchmark:
    """A row of the table.

    data, model: what to download, or to have. backend, methods, layer: those of the published figures.
    """

    title: str
    paper: str
    data: str
    model: str
    backend: str
    methods: tuple[str, ...]
    layer: str
    measure: Callable[[Task], Found]


BENCHMARKS = {
    "funnybirds": Benchmark(
        title="FunnyBirds: eight figures, of birds whose parts are taken away",
        paper="Hesse et al. 2023, arXiv:2308.06248",
        data="FunnyBirds/ of download.visinf.tu-darmstadt.de/data/funnybirds/FunnyBirds.zip (1.6 GB)",
        model="resnet50_final_0_checkpoint_best.pth.tar, from the same place below models/",
        backend="captum",
        methods=("input-x-gradient",),
        layer="auto",
        measure=published_funnybirds.measure,
    ),
    "voc07-pointing": Benchmark(
        title="VOC 2007, pointing game: hits of all and of difficult photographs",
        paper="Zhang et al. 2016, arXiv:1608.00507; Fong et al. 2019 (TorchRay)",
        data="VOCdevkit/VOC2007/ with the test set",
        model="resnet50_voc-9ca920d6.pth.tar of TorchRay (dl.fbaipublicfiles.com/torchray/)",
        backend="native",
        methods=("gradcam",),
        layer="layer4",
        measure=published_voc.pointing_game,
    ),
    "voc12-iou": Benchmark(
        title="VOC 2012, masks: intersection over union of Winsor-CAM and Grad-CAM",
        paper="Wall et al. 2026, arXiv:2507.10846",
        data="VOCdevkit/VOC2012/ with the segmentations",
        model="a DenseNet-121 that knows VOC's classes, of your own: the paper's is not published",
        backend="native",
        methods=("winsorcam", "gradcam"),
        layer="auto",
        measure=published_voc.masks,
    ),
}


def run(name: str, task: Task) -> Found:
    """Measure, with the published method where the task names none.

    Raises `UsageError` for data that are others, and what `camkit.maps` and `camkit.load_model` raise.
    """
    benchmark = BENCHMARKS[name]
    task = replace(
        task,
        backend=task.backend or benchmark.backend,
        methods=task.methods or benchmark.methods,
        layer=benchmark.layer if task.layer == "auto" else task.layer,
    )
    rows, remarks = benchmark.measure(task)
    if task.backend == benchmark.backend and {*task.methods} <= {*benchmark.methods}:
        return rows, remarks
    return [row if row.name in OF_MODEL else replace(row, published=None) for row in rows], remarks
