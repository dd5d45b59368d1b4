"""Pascal VOC: the pointing game of 2007's test set, and the masks of 2012.

The pointing game is that of J. Zhang et al., arXiv:1608.00507, as TorchRay plays it (R. Fong, M. Patrick,
A. Vedaldi, ICCV 2019): whole photographs, each class in them, the boxes of all its objects; a hit is a
maximum less than 15 pixels from one; classes count alike, whatever their number of photographs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from camkit.bench.published_task import Figure, Task, mean
from camkit.contracts.model import LoadedModel
from camkit.core import devices
from camkit.core.scored import classifier
from camkit.errors import ImageError, UsageError, reason
from camkit.files import read_regular
from camkit.images import decoding, finding
from camkit.metrics import ground_truth, localisation
from camkit.metrics.map_tools import not_constant, resized
from camkit.models import torchray
from camkit.models.loading import load_quietly

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
    "tvmonitor",
)
TESTED = 4952  # photographs of the test set of 2007
TOLERANCE = 15  # pixels of the photograph
SMALL = 1 / 4  # of the photograph: a smaller object beside another class makes it a difficult one
MAX_LIST = 2**22

POINTING = {"all": {"gradcam": 0.904, "centre": 0.696}, "difficult": {"gradcam": 0.823, "centre": 0.424}}
IOU = {"winsorcam": 0.468, "gradcam": 0.390}
THRESHOLDS = tuple(n / 10 for n in range(1, 10))  # of the map's maximum


def listed(folder: Path, name: str) -> list[str]:
    """The photographs of a part of the data, such as `Main/test`; `UsageError` if there is none."""
    path = folder / "ImageSets" / f"{name}.txt"
    try:
        return read_regular(path, MAX_LIST).decode().split()
    except (OSError, ValueError) as error:
        where = "the folder VOC2007 or VOC2012 of a VOCdevkit is needed"
        raise UsageError(f"{finding.display(path)} cannot be read: {reason(error)}; {where}") from None


# --- the pointing game ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """Whether a class of a photograph was hit, by the method's name; `difficult`: a small object."""

    kind: str
    hit: Mapping[str, bool]
    difficult: bool


def is_hit(mask: Tensor, point: tuple[int, int], tolerance: int = TOLERANCE) -> bool:
    """Whether a pixel of a mask bool `[H, W]` is less than `tolerance` from a point (row, column)."""
    rows, columns = mask.nonzero(as_tuple=True)
    return bool(((rows - point[0]) ** 2 + (columns - point[1]) ** 2 < tolerance**2).any())


def highest(one: Tensor, size: tuple[int, int]) -> tuple[int, int] | None:
    """Row and column of the first maximum of a map `[h, w]` at `size`; `None` if it is constant."""
    if not bool(not_constant(one[None])):
        return None
    place = int(resized(one[None], size).flatten().argmax())
    return place // size[1], place % size[1]


def objects(path: Path, size: tuple[int, int]) -> dict[str, tuple[Tensor, bool]]:
    """By class, the boxes of its objects, bool `[H, W]`, and whether all of them are marked difficult."""
    found: dict[str, list[tuple[ground_truth.Box, bool]]] = {}
    for name, box, difficult in ground_truth.voc_objects(path):
        found.setdefault(name, []).append((box, difficult))
    return {
        name: (ground_truth.drawn(size, boxes=[box for box, _ in those]), all(hard for _, hard in those))
        for name, those in found.items()
    }


def pointing_game(task: Task) -> tuple[list[Figure], list[str]]:
    """The share of hits of each method and of the centre, of all photographs and of the difficult ones."""
    folder = _year(task.folder, "VOC2007")
    if not Path(task.spec).is_file():
        raise UsageError(
            "--model is a file here, TorchRay's resnet50_voc-9ca920d6.pth.tar, and there is none at "
            f"{task.spec}"
        )
    network = torchray.load(Path(task.spec)).to(devices.pick_device(task.device))
    names = task.first(listed(folder, "Main/test"))
    points: list[Point] = []
    for number, name in enumerate(names, 1):
        points += _points(folder, name, network, task)
        if number % 100 == 0 or number == len(names):
            task.progress(f"{number} of {len(names)} photographs")
    rows = [_accuracy(points, method, part) for method in (*task.methods, "centre") for part in POINTING]
    return rows, [
        *task.too_few(len(names), TESTED),
        "difficult: the class covers less than a quarter of the photograph, which shows another one, too",
    ]


def _points(folder: Path, name: str, network: torchray.CaffeResNet50, task: Task) -> Iterator[Point]:
    photo = decoding.load(folder / "JPEGImages" / f"{name}.jpg").image
    known = objects(folder / "Annotations" / f"{name}.xml", photo.size)
    wanted = [kind for kind, (_, skipped) in known.items() if not skipped]
    for kind in wanted:
        if kind not in CLASSES:
            raise UsageError(f"{name}.xml has the class {kind!r}, which is none of VOC's")
    if not wanted:
        return
    size = (photo.height, photo.width)
    picture = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1).float()
    inputs = torchray.seen(picture).to(next(network.parameters()).device)
    targets = [CLASSES.index(kind) for kind in wanted]
    maps = {method: task.maps(network, inputs, targets, method).cpu() for method in task.methods}
    for row, kind in enumerate(wanted):
        mask = known[kind][0]
        found = {method: highest(maps[method][row], size) for method in task.methods}
        found["centre"] = (photo.height // 2, photo.width // 2)
        hits = {method: place is not None and is_hit(mask, place) for method, place in found.items()}
        yield Point(kind, hits, len(known) > 1 and float(mask.float().mean()) < SMALL)


def _accuracy(points: Sequence[Point], method: str, part: str) -> Figure:
    """The mean over the classes of the share of hits."""
    counted_in = [point for point in points if part == "all" or point.difficult]
    hits: dict[str, list[float]] = {}
    for point in counted_in:
        hits.setdefault(point.kind, []).append(float(point.hit[method]))
    value = mean([sum(those) / len(those) for those in hits.values()])
    return Figure(f"{method}, {part}", value, len(counted_in), POINTING[part].get(method))


# --- the masks --------------------------------------------------------------------------------------------


def masks(task: Task) -> tuple[list[Figure], list[str]]:
    """Intersection over union of maps and the masks of their classes, at each method's best threshold."""
    folder = _year(task.folder, "VOC2012")
    model = load_quietly(task.spec, device=task.device, trust_pickle=task.trust_pickle, **task.facts)
    module = classifier(model)
    known = {CLASSES.index(name): i for i, name in enumerate(model.classes) if name in CLASSES}
    if not known:
        raise UsageError(f"{model.name} knows none of VOC's classes, such as {CLASSES[0]}: give --classes")
    names = task.first(listed(folder, "Segmentation/val"))
    found: dict[str, list[tuple[float, ...]]] = {method: [] for method in task.methods}
    for number, name in enumerate(names, 1):
        inputs, truth = _with_masks(folder, name, model, list(known))
        if truth:
            targets = [known[kind] for kind in truth]
            inside = torch.stack(list(truth.values()))
            for method in task.methods:
                maps = task.maps(module, inputs, targets, method).cpu()
                shares = [localisation.iou(maps, inside, threshold).tolist() for threshold in THRESHOLDS]
                found[method] += zip(*shares, strict=True)
        if number % 100 == 0 or number == len(names):
            task.progress(f"{number} of {len(names)} photographs")
    return _best(found)


def _with_masks(
    folder: Path, name: str, model: LoadedModel, kinds: Sequence[int]
) -> tuple[Tensor, dict[int, Tensor]]:
    """What the model is shown of a photograph, and the masks of the classes that it sees, bool `[H, W]`."""
    values = decoding.load_mask(folder / "SegmentationClass" / f"{name}.png")
    photo = decoding.load(folder / "JPEGImages" / f"{name}.jpg", model.preprocess.photo_channels).image
    if photo.size != (values.shape[1], values.shape[0]):
        raise ImageError(f"{name}.png does not have the size of {name}.jpg")
    # 0 is what belongs to no class, 255 the border of objects.
    there = {value - 1 for value in np.unique(values).tolist()} & {*kinds}
    masks = {kind: torch.from_numpy(values == kind + 1) for kind in sorted(there)}
    seen = {kind: ground_truth.as_seen(mask, model.preprocess) for kind, mask in masks.items()}
    inputs = model.preprocess(photo)[None].to(model.device, model.dtype)
    return inputs, {kind: mask for kind, mask in seen.items() if bool(mask.any())}


def _best(found: Mapping[str, Sequence[tuple[float, ...]]]) -> tuple[list[Figure], list[str]]:
    """The mean at the threshold that suits each method best; a map without positive values counts as 0."""
    rows, remarks = [], []
    for method, values in found.items():
        means = torch.tensor(values).nan_to_num(0).mean(0).tolist() if values else []
        best = means.index(max(means)) if means else None
        value = None if best is None else means[best]
        rows.append(Figure(f"IoU of {method}", value, len(values), IOU.get(method)))
        if best is not None:
            remarks.append(
                f"{method}: from {THRESHOLDS[best]} of the maximum on, the best of nine thresholds"
            )
    return rows, [
        *remarks,
        "which photographs and threshold the paper took is not known: here the validation set, every class",
    ]


def _year(folder: Path, name: str) -> Path:
    """The folder of one year, which the whole development kit has, too."""
    return folder / name if (folder / name).is_dir() else folder
