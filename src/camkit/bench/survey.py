"""Maps of every row on one scene, whether they are equal to the reference, and what metrics say of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from camkit.bench import statistics
from camkit.bench.entrants import Entrant
from camkit.bench.request import AGREEMENT, BenchRequest
from camkit.bench.results import EQUAL, OF_CLASSES, Agreement, Measure, Score
from camkit.bench.scenes import Scene
from camkit.contracts.metric import MapBatch, Metric, Scores
from camkit.core import devices
from camkit.core.call_types import Call
from camkit.core.device_names import ROUNDED
from camkit.core.run_explainer import run as explain
from camkit.core.targets import target_selector
from camkit.metrics import agreement
from camkit.metrics.controls import CONTROLS, OF_MAPS
from camkit.metrics.map_tools import all_finite, not_constant
from camkit.metrics.measure import measure, passes

Maps = Callable[[Tensor, Tensor], Tensor]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Survey:
    """The maps on one scene, of every row that has some, and how far they agree."""

    maps: dict[str, Tensor]
    agreement: Agreement


def survey(
    request: BenchRequest,
    scene: Scene,
    rows: Sequence[Entrant],
    metrics: Mapping[str, Metric],
    progress: Progress,
) -> Survey:
    """Maps of all rows, equality with the reference, and all scores, on one scene; no maps if all fail."""
    makers = {row.key: maker(scene, row) for row in rows if row.explainer is not None}
    maps: dict[str, Tensor] = {}
    for row in rows:
        if row.kind == "control" and maps:
            first = next(iter(maps))
            makers[row.key] = control(row.method, makers[first], maps[first], request.seed)
        if row.key not in makers:
            continue
        progress(f"{scene.name}: maps of {row.key}")
        try:
            maps[row.key] = all_maps(scene, makers[row.key])
        except Exception as error:  # of a plugin, which may raise anything
            row.fail(f"no maps of the {scene.name}", error)
        else:
            note_odd(row, scene, maps[row.key])
    if not maps:
        return Survey({}, Agreement())
    reference_of = references(rows, maps)
    _parity(request.dtype, scene.name, rows, maps, reference_of)
    for row in rows:
        if row.key not in maps:
            continue
        progress(f"{scene.name}: scores of {row.key}")
        reference: Tensor | None = maps[reference_of[row.key]]
        if reference_of[row.key] == row.key:
            row.note("the reference")
            reference = None
        make = makers[row.key]
        scores = scores_of(scene, row, metrics, maps[row.key], reference, make, request.seed)
        row.scores[scene.name] = scores
    compared = request.wants(AGREEMENT) and not scene.only_metrics
    return Survey(maps, _agreement(maps, scene.photographs, request.seed) if compared else Agreement())


def scores_of(
    scene: Scene,
    row: Entrant,
    metrics: Mapping[str, Metric],
    maps: Tensor,
    reference: Tensor | None,
    make: Maps,
    seed: int,
) -> dict[str, Score]:
    """The scores of a row, by the metrics that have what they need."""
    lacking = {need for need, part in (("truth", scene.truth), ("reference", reference)) if part is None}
    found = {}
    for name, metric in metrics.items():
        if lacking & set(metric.needs):
            continue
        try:
            scores = _scored(metric, name, scene, maps, reference, make, seed)
        except Exception as error:  # of a plugin, which may raise anything
            row.fail(f"no {name} of the {scene.name}", error)
            continue
        found[name] = _summary(metric, scores, scene.photographs, seed)
        undefined = int(scores.values.isnan().sum())
        if undefined and row.kind == "explainer":
            several = scene.name == OF_CLASSES and len(set(scene.photographs)) < len(maps)
            what = "classes" if several else scene.name
            row.note(f"{name} is not defined for {undefined} of {len(maps)} {what}")
    return found


def maker(scene: Scene, row: Entrant, *, frozen: bool = False) -> Maps:
    """From inputs and targets to maps `[B, h, w]` of an explainer, as every call of camkit makes them.

    frozen: a promise that weights do not change, as they do where metrics make them random.
    """

    def maps(inputs: Tensor, targets: Tensor) -> Tensor:
        assert row.explainer is not None
        choose = target_selector(targets, len(inputs))
        arguments = (scene.model.module, inputs, [scene.layer], [row.method], choose)
        call = Call(output=scene.output, frozen=frozen)
        answer = explain(row.explainer, row.backend, *arguments, call=call)
        return answer.maps[row.method, scene.layer][:, 0]

    return maps


def control(name: str, real: Maps, like: Tensor, seed: int) -> Maps:
    """Maps of a control, as large as those that `real` makes; `like` are some of the latter."""

    def maps(inputs: Tensor, targets: Tensor) -> Tensor:
        basis = real(inputs, targets) if name in OF_MAPS else like[:1].expand(len(inputs), -1, -1)
        return CONTROLS[name](inputs, basis, seed)

    return maps


def all_maps(scene: Scene, make: Maps) -> Tensor:
    """Maps float32 `[N, h, w]` of all images of a scene, part by part."""
    return torch.cat([make(scene.inputs[part], scene.targets[part]) for part in scene.slices()]).float()


def note_odd(row: Entrant, scene: Scene, maps: Tensor) -> None:
    """Note how many maps of a row are not finite, and how many constant."""
    bad, flat = int((~all_finite(maps)).sum()), int((all_finite(maps) & ~not_constant(maps)).sum())
    if bad:
        row.note(f"{bad} of {len(maps)} maps of the {scene.name} are NaN or infinite")
    if flat and row.method != "uniform":
        row.note(f"{flat} of {len(maps)} maps of the {scene.name} are constant")


def references(rows: Sequence[Entrant], maps: Mapping[str, Tensor]) -> dict[str, str]:
    """The row to compare each row with: the first of the same method; for controls, the first."""
    first: dict[str, str] = {}
    for row in rows:
        if row.kind == "explainer" and row.key in maps:
            first.setdefault(row.method, row.key)
    return {row.key: first.get(row.method, next(iter(maps))) for row in rows}


def equal_within(dtype: str, device: torch.device) -> float:
    """How far maps of this type on this device may differ, with torch's current settings."""
    return max(EQUAL[dtype], ROUNDED.get(devices.float32_precision(device), 0.0))


def _parity(
    dtype: str,
    scene: str,
    rows: Sequence[Entrant],
    maps: Mapping[str, Tensor],
    reference_of: Mapping[str, str],
) -> None:
    """The largest difference from the reference of the same method, relative to the peak of that."""
    for row in rows:
        reference = reference_of[row.key]
        if row.kind != "explainer" or row.key not in maps or reference == row.key:
            continue
        if maps[row.key].shape != maps[reference].shape:
            row.note(f"its maps have another resolution than those of {reference}")
            continue
        worst = float(agreement.difference(maps[reference], maps[row.key]).max())
        # A NaN stays one, which it does not in `max`.
        row.parity = worst if row.parity is None else float(np.maximum(worst, row.parity))
        if not worst <= equal_within(dtype, maps[reference].device):
            row.note(f"its maps of the {scene} differ from those of {reference} by {worst:.1e} of the peak")


def _scored(
    metric: Metric, name: str, scene: Scene, maps: Tensor, reference: Tensor | None, make: Maps, seed: int
) -> Scores:
    """The scores of all images, in parts: an image's score does not depend on the others."""
    parts = []
    for part in scene.slices():
        batch = MapBatch(
            maps=maps[part],
            module=scene.module,
            inputs=scene.inputs[part],
            targets=scene.targets[part],
            truth=None if scene.truth is None else scene.truth[part],
            reference=None if reference is None else reference[part],
            explain=make,
            seed=seed,
            scores=scene.scores,
        )
        parts.append(measure(metric, name, batch))
    curves = [part.curves for part in parts if part.curves is not None]
    return Scores(
        torch.cat([part.values for part in parts]), torch.cat(curves) if curves else None, parts[0].steps
    )


def _summary(metric: Metric, scores: Scores, photographs: Sequence[int], seed: int) -> Score:
    """The mean is that of the photographs, each of which counts once."""
    values = scores.values.tolist()
    own = statistics.of_groups(values, photographs)
    known = [value for value in own if value == value]
    mean = statistics.estimate(known, seed, metric.range) if known else statistics.Estimate(math.nan)
    return Score(
        mean=mean.middle,
        low=mean.low,
        high=mean.high,
        defined=sum(value == value for value in values),
        passed=passes(metric, Scores(scores.values.new_tensor(own))),
        values=values,
        curves=None if scores.curves is None else scores.curves.tolist(),
        steps=list(scores.steps),
    )


def _agreement(maps: Mapping[str, Tensor], photographs: Sequence[int], seed: int) -> Agreement:
    """The mean of every measure over the photographs for every pair, `None` where resolutions differ.

    Also the 2.5, 50 and 97.5 % quantiles for random maps of the first one's resolution.
    """
    size = (next(iter(maps.values())).shape[-2], next(iter(maps.values())).shape[-1])
    pairs = 1000 if size[0] * size[1] <= 1024 else 50
    names, measures = list(maps), {}
    for measure_name, compare in agreement.MEASURES.items():
        table: list[list[float | None]] = [[None] * len(names) for _ in names]
        for i, j in combinations(range(len(names)), 2):
            a, b = maps[names[i]], maps[names[j]]
            if a.shape == b.shape:
                of_photographs = statistics.of_groups(compare(a, b).tolist(), photographs)
                table[i][j] = table[j][i] = float(torch.tensor(of_photographs).nanmean())
        drawn = agreement.null(compare, size, pairs, seed)
        # A measure that is not defined at that size says nothing of random maps either.
        quantiles = drawn.quantile(torch.tensor([0.025, 0.5, 0.975], dtype=drawn.dtype)).tolist()
        measures[measure_name] = Measure(table, quantiles)
    return Agreement(names, list(size), measures)
