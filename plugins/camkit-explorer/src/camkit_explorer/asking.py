"""What the page asks of a model: maps, what happens without a part of the photograph, tests of a map."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import camkit
from camkit.errors import MapError, UsageError
from camkit.plugin import (
    MapBatch,
    Photo,
    Prediction,
    classifier,
    controls,
    explain_classes,
    make,
    measure,
    predict,
)
from camkit_explorer.models import Ready
from camkit_explorer.packing import pack
from camkit_explorer.questions import Mask, Question

# Methods whose map sums up, to first order, to what the layer adds to the score.
OF_SCORE = ("gradcam", "hirescam")
CURVE_STEPS = 10
STAGES = 4
CONTROLS = ("random", "centre")


def maps(ready: Ready, photo: Photo, question: Question) -> bytes:
    """Maps of classes with the scores of the forward, as `packing` has them."""
    layer = layer_of(ready, question)
    way = {"backend": question.backend, "method": question.method}
    found = ready.explain(ready.inputs(photo), question.classes, **way, layer=layer)
    one = slice(0, 1 if found.shared else None)  # the same for every class
    header = {
        "classes": found.classes[one],
        "shared": found.shared,
        "layer": found.layer,
        "remarks": {str(index): texts for index, texts in found.remarks.items() if texts},
        "of_score": question.method in OF_SCORE,
        **said(found.prediction),
        "box": box(ready, photo),
        "notes": [*photo.warnings, *found.prediction.warnings],
    }
    return pack(header, found.maps[one])


def record(ready: Ready, photo: Photo, question: Question) -> dict[str, Any]:
    """What the picture of a map carries where it is saved, for `camkit show`."""
    way = {"backend": question.backend, "method": question.method, "layer": layer_of(ready, question)}
    result = camkit.explain(ready.model, photo, target=question.target, **way)
    told = result.record(
        relu=question.rectified,
        counterfactual=question.against,
        cells=question.cells,
        alpha=question.opacity,
        cmap=question.colours or None,
        scale=question.scale or "image",
    )
    return {**json.loads(told), "model_spec": ready.spec}


def beside(ready: Ready, photo: Photo, question: Question) -> bytes:
    """The map of one class by another backend or method, and how far the two agree."""
    inputs, layer = ready.inputs(photo), layer_of(ready, question)
    ways = (
        (question.backend, question.method),
        (question.beside_backend, question.beside_method),
    )
    first, second = (
        ready.explain(inputs, [question.target], backend=backend, method=method, layer=layer).maps
        for backend, method in ways
    )
    header: dict[str, Any] = {"spearman": None, "difference": None}
    if first.shape == second.shape:
        header["spearman"] = number(float(_spearman(ready, inputs, first, second)))
        if question.method == question.beside_method:  # other methods have other units
            peak = float(first.abs().max())
            header["difference"] = float((first - second).abs().max()) / (peak or 1.0)
    return pack(header, second)


def _spearman(ready: Ready, inputs: Tensor, first: Tensor, second: Tensor) -> Tensor:
    targets = torch.zeros(1, dtype=torch.long, device=inputs.device)
    batch = MapBatch(first, ready.model.module, inputs, targets, reference=second)
    return measure(make("metric", "spearman"), "spearman", batch).values


def cover(ready: Ready, photo: Photo, question: Question) -> dict[str, Any]:
    """What the model says when a part of what it sees is replaced."""
    if question.mask is None:
        raise UsageError("mask is missing")
    if question.fill not in FILLS:
        raise UsageError(f"fill must be one of {', '.join(FILLS)}")
    inputs = ready.inputs(photo)
    where = torch.from_numpy(stretched(question.mask, inputs.shape[-2:])).to(inputs.device)
    return said(predict(ready.model, torch.where(where, FILLS[question.fill](inputs), inputs)))


def stretched(mask: Mask, size: Sequence[int]) -> Mask:
    """A mask at another size: each pixel has the value of the cell that its middle lies in."""
    rows, columns = ((np.arange(n) * 2 + 1) * m // (2 * n) for n, m in zip(size, mask.shape, strict=True))
    return np.asarray(mask[rows[:, None], columns[None]])


def _blurred(inputs: Tensor) -> Tensor:
    """The means of blocks, eight along the shorter side, and bilinear between their middles."""
    size = inputs.shape[-2:]
    blocks = [max(1, round(8 * side / min(size))) for side in size]
    means = F.adaptive_avg_pool2d(inputs, (blocks[0], blocks[1]))
    return F.interpolate(means, size=size, mode="bilinear", align_corners=False)


def _mean_colour(inputs: Tensor) -> Tensor:
    return inputs.mean((-2, -1), keepdim=True).expand_as(inputs)


# What may be put in the place of what is covered: from inputs to inputs.
FILLS: dict[str, Callable[[Tensor], Tensor]] = {"blur": _blurred, "colour": _mean_colour}


def curves(ready: Ready, photo: Photo, question: Question) -> dict[str, Any]:
    """Deletion and insertion of the map of one class, beside a random map and a bump in the centre."""
    inputs, layer = ready.inputs(photo), layer_of(ready, question)
    target = question.target
    way = {"backend": question.backend, "method": question.method}
    map = ready.explain(inputs, [target], **way, layer=layer).maps.to(inputs.device)
    made = [map, *(controls.CONTROLS[name](inputs, map, 0) for name in CONTROLS)]
    batch = MapBatch(
        torch.cat(made),
        classifier(ready.model),
        inputs.expand(len(made), -1, -1, -1),
        torch.full((len(made),), target, device=inputs.device),
        scores=ready.model.scores,
    )
    answer: dict[str, Any] = {"names": ["map", *CONTROLS], "class": target}
    for name in ("deletion", "insertion"):
        found = measure(make("metric", name, {"steps": CURVE_STEPS}), name, batch)
        assert found.curves is not None, "these metrics sum one up"
        answer[name] = {"areas": numbers(found.values), "curves": [numbers(c) for c in found.curves]}
    return answer


def sanity(ready: Ready, photo: Photo, question: Question) -> bytes:
    """How like its map stays while more and more weights are random, and the last of these maps.

    The weights are afterwards what they were. Adebayo et al. 2018, arXiv:1810.03292.
    """
    inputs, layer = ready.inputs(photo), layer_of(ready, question)
    call: dict[str, Any] = {"backend": question.backend, "method": question.method, "layer": layer}
    map = explain_classes(ready.model, inputs, classes=[question.target], **call).maps
    last = [map]

    def again(inputs: Tensor, targets: Tensor) -> Tensor:
        try:
            made = explain_classes(
                ready.model, inputs, classes=[int(targets[0])], frozen=False, **call
            ).maps
        except MapError:  # random weights may overflow: a stage that is not defined
            made = torch.full_like(map, torch.nan)
        last.append(made)
        return made.to(inputs.device)

    metric = make("metric", "sanity-cascading", {"stages": STAGES})
    target = torch.tensor([question.target], device=inputs.device)
    batch = MapBatch(map.to(inputs.device), classifier(ready.model), inputs, target, explain=again)
    found = measure(metric, "sanity-cascading", batch)
    assert found.curves is not None, "it has a value for each stage"
    header = {
        "class": question.target,
        "stages": found.steps,
        "similarity": numbers(found.curves[0]),
        "limit": metric.limit,
        "passed": None if math.isnan(float(found.values[0])) else float(found.values[0]) < metric.limit,
    }
    return pack(header, last[-1].nan_to_num(0.0, 0.0, 0.0))


def layer_of(ready: Ready, question: Question) -> str:
    """The layer that is asked for, by its full name."""
    if question.layer == "auto":
        return ready.automatic
    if question.layer not in {layer.name for layer in ready.layers}:
        raise UsageError(f"there is no layer {question.layer[:60]!r}")
    return question.layer


def said(prediction: Prediction) -> dict[str, Any]:
    """A prediction for the page."""
    return {
        "scores": numbers(prediction.logits),
        "likely": numbers(prediction.likely),
        "kind": prediction.kind,
        "predicted": prediction.predicted,
    }


def box(ready: Ready, photo: Photo) -> list[float]:
    """The part of the photograph that the model sees, as fractions: left, top, right, bottom."""
    if photo.cut:
        return [0.0, 0.0, 1.0, 1.0]
    width, height = photo.whole or photo.image.size
    found = ready.model.preprocess.box(width, height)
    return [side / whole for side, whole in zip(found, (width, height) * 2, strict=True)]


def numbers(values: Tensor) -> list[float | None]:
    """Values for JSON, which knows no NaN."""
    return [number(value) for value in values.tolist()]


def number(value: float) -> float | None:
    """A value with six digits, or nothing."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
