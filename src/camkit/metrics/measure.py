"""Let a metric score a batch of maps, with what must be the same for every metric around it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from camkit.contracts.metric import MapBatch, Metric, Scores
from camkit.core import hooks
from camkit.errors import BrokenPlugin, UsageError


def measure(metric: Metric, name: str, batch: MapBatch) -> Scores:
    """The scores of `metric`, registered as `name`.

    The model is in eval mode inside; modes and random states are as before afterwards. Maps come in any
    floating-point type, values go out in float32 at least. Raises `UsageError` if `batch` lacks what the
    metric needs or its parts do not fit together, `BrokenPlugin` if the metric does not give one value for
    each image.
    """
    _check(batch)
    if missing := [need for need in metric.needs if getattr(batch, need) is None]:
        raise UsageError(f"{name} needs {' and '.join(missing)}, which is not given")
    maps, reference = _plain(batch.maps), batch.reference
    inputs = hooks.normal_tensor(batch.inputs.detach())
    reference = None if reference is None else _plain(reference)
    batch = dataclasses.replace(batch, maps=maps, reference=reference, inputs=inputs)
    with hooks.as_it_was(batch.module, batch.inputs.device):
        scores = metric.score(batch)
    if not isinstance(scores, Scores) or scores.values.shape != (len(batch.maps),):
        got = list(scores.values.shape) if isinstance(scores, Scores) else type(scores).__name__
        raise BrokenPlugin(f"metric {name!r} gives {got} for {len(batch.maps)} maps, not Scores of as many")
    return scores


def passes(metric: Metric, scores: Scores) -> bool | None:
    """Whether a test is passed over the images it is defined for; `None` if there is nothing to pass."""
    mean = float(scores.values.nanmean())
    if metric.limit is None or mean != mean:
        return None
    return mean < metric.limit if metric.direction == "lower" else mean > metric.limit


def _check(batch: MapBatch) -> None:
    count, size = len(batch.maps), batch.inputs.shape[-2:]
    if batch.maps.ndim != 3 or batch.inputs.ndim != 4 or not count:
        shapes = f"{list(batch.maps.shape)} for inputs {list(batch.inputs.shape)}"
        raise UsageError(f"maps must be [B, h, w] for inputs [B, C, H, W], not {shapes}")
    for what, part, shape in (
        ("inputs", batch.inputs, (count, *batch.inputs.shape[1:])),
        ("targets", batch.targets, (count,)),
        ("truth", batch.truth, (count, *size)),
        ("reference", batch.reference, tuple(batch.maps.shape)),
    ):
        if part is not None and tuple(part.shape) != shape:
            raise UsageError(f"{what} are {list(part.shape)}; with these maps they must be {list(shape)}")
    if batch.truth is not None and batch.truth.dtype != torch.bool:
        raise UsageError(f"truth is of type {batch.truth.dtype}; it must be bool")


def _plain(maps: Tensor) -> Tensor:
    """Without a graph, usable in one, and float32 at least."""
    maps = hooks.normal_tensor(maps.detach())
    return maps if maps.dtype == torch.float64 else maps.float()
