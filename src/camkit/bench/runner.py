"""From a request to a document: every explainer on the same images, in the same rounds, by the same rules.

A plugin that fails loses its own cells, with a note that says why, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camkit.bench import environment, latency, results, scenes
from camkit.bench.bench_json import FIGURES, figure_name
from camkit.bench.entrants import Entrant, all_rows, without_contrast
from camkit.bench.examples import disagreements, side_by_side
from camkit.bench.metric_choice import chosen
from camkit.bench.parity_cases import hard_cases
from camkit.bench.request import AGREEMENT, LATENCY, BenchRequest, command
from camkit.bench.results import ENERGY, OF_CLASSES, Document
from camkit.bench.scenes import Scene
from camkit.bench.subjects import of_request
from camkit.bench.survey import Progress, Survey, references, survey
from camkit.bench.typed_json import finite, from_json, mapped
from camkit.contracts.metric import Metric
from camkit.contracts.model import LoadedModel
from camkit.core import devices
from camkit.errors import CamkitError
from camkit.images import decoding, finding
from camkit.metrics import ground_truth

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Outcome:
    """A document as `bench.json` holds it, and the pictures that it names."""

    document: Document
    pictures: dict[str, Image]
    failures: tuple[str, ...]


def run(request: BenchRequest, progress: Progress = lambda text: None) -> Outcome:
    """Measure what `request` asks for.

    Raises `CamkitError`s for what affects the whole run: names that do not exist, the model, no image that
    can be read, no explainer that works.
    """
    with devices.multiplied(devices.pick_device(request.device), request.precision):
        return _run(request, progress)


def _run(request: BenchRequest, progress: Progress) -> Outcome:
    measures = chosen(request)
    metrics = measures.make(request)
    rows = all_rows(request)
    masks = ground_truth.read(request.truth) if request.truth else None
    paths = list(finding.expand(request.images)) if request.images else [decoding.sample()]
    progress(f"loading {request.model}")
    model, asked = of_request(request)
    if model.note:
        progress(model.note)
    before = _machine_state(model.device)
    places = [scenes.photographs(model, request.layer, paths, request.photographs, masks, asked)]
    without_contrast(rows, model)
    colds: latency.Colds = {}
    alone = request.process_count == 1
    if request.wants(LATENCY) and alone:
        progress("first calls")
        colds = latency.first_calls(request, places[0], rows)

    def surveyed(scene: Scene) -> Survey:
        return survey(request, scene, rows, measures.make(request, scene), progress)

    surveys = [surveyed(places[0])]
    if not surveys[0].maps:
        reasons = [note for row in rows for note in row.notes]
        raise CamkitError(f"no explainer gives maps: {reasons[0] if reasons else 'none is installed'}")
    if any("truth" in metric.needs for metric in metrics.values()):
        places += _with_truth(request, places[0], paths, ENERGY in metrics, progress)
        surveys += [surveyed(place) for place in places[1:]]
    for row in (row for row in rows if row.kind == "explainer"):
        for name, error in measures.broken.items():
            row.fail(f"no {name}", error)
    if request.wants(LATENCY):
        _timed(request, places[0], paths, rows, surveys[0].maps, colds, progress)
    parity_cases = hard_cases(rows, model.device, request.seed) if request.wants(AGREEMENT) else []
    maps = surveys[0].maps
    pictures, shown = side_by_side(places[0], maps, references(rows, maps))
    more_pictures, examples = disagreements(places[0], maps)
    facts = environment.environment(model.device, model.dtype, _packages(rows))
    document = Document(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command(request),
        settings=_settings(request, model, places[0], rows),
        environment=from_json(results.Environment, facts),
        conditions=results.Conditions(before, _machine_state(model.device)),
        scenes=[_scene_facts(scene) for scene in places],
        metrics={name: _metric_facts(metric, measures.dists[name]) for name, metric in metrics.items()},
        rows=[row.row() for row in rows],
        agreement={scene.name: found.agreement for scene, found in zip(places, surveys, strict=True)},
        hard_cases=parity_cases,
        examples=examples,
        shown=shown,
    )
    return Outcome(mapped(document, finite), pictures | more_pictures, places[0].failures)


def _with_truth(
    request: BenchRequest, first: Scene, paths: Sequence[Path], energy: bool, progress: Progress
) -> list[Scene]:
    """Further scenes for localisation: drawn shapes, if the truth of the photographs is unknown.

    With `energy`, also mosaics of photographs, or of drawn shapes if those fail.
    """

    @cache
    def shapes() -> Scene:
        progress("training a small model of drawn shapes, whose evidence is known")
        device, dtype, count = first.inputs.device, first.model.dtype, request.effort.shapes
        return scenes.drawn_shapes(count, device, dtype, request.seed)

    found = [shapes()] if first.truth is None else []
    count = request.effort.mosaics if first.name == OF_CLASSES else 0
    if count and energy:
        progress("making mosaics")
        try:
            pool = scenes.photographs(first.model, first.layer, paths, scenes.POOL)
            found.append(scenes.mosaics(pool, count, request.seed))
        except CamkitError as error:
            found.append(scenes.mosaics(shapes(), count, request.seed, f"not of photographs: {error}"))
    return found


def _timed(
    request: BenchRequest,
    scene: Scene,
    paths: Sequence[Path],
    rows: Sequence[Entrant],
    maps: Mapping[str, Tensor],
    colds: latency.Colds,
    progress: Progress,
) -> None:
    """Time and memory of the bare forward and of every explainer that gives maps."""
    runnable = [row for row in rows if row.kind == "forward" or (row.explainer and row.key in maps)]
    if request.process_count == 1:
        progress("timing")
        found = [latency.measured(request, scene, runnable, colds)]
    else:
        here = replace(request, layer=scene.layer)
        try:
            found = latency.processes(here, paths, [row.key for row in runnable], progress)
        except CamkitError as error:
            for row in runnable:
                row.fail("not timed", error)
            return
    latency.add_records(runnable, references(rows, maps), found)


def figure_names(request: BenchRequest) -> list[str]:
    """The names that a condition on the outcome of `request` may use."""
    figures = [*FIGURES, *chosen(request).classes]
    return [figure_name(row.backend, row.method, figure) for row in all_rows(request) for figure in figures]


# --- descriptions -----------------------------------------------------------------------------------


def _settings(
    request: BenchRequest, model: LoadedModel, scene: Scene, rows: Sequence[Entrant]
) -> results.Settings:
    explainers = [row for row in rows if row.kind == "explainer"]
    return results.Settings(
        model=finding.display(Path(model.name).name),
        model_sha256=model.sha256,
        layer=scene.layer,
        size=list(scene.inputs.shape[-2:]),
        dtype=request.dtype,
        options=dict(request.options),
        backends=list(dict.fromkeys(row.backend for row in explainers)),
        methods=list(dict.fromkeys(row.method for row in explainers)),
        metrics=list(request.metrics) or "all",
        processes=request.process_count,
        seed=request.seed,
        quick=request.quick,
    )


def _packages(rows: Sequence[Entrant]) -> list[str]:
    """The distributions of the backends."""
    return sorted({row.version.partition(" ")[0] for row in rows if row.version})


def _scene_facts(scene: Scene) -> results.SceneFacts:
    return results.SceneFacts(
        name=scene.name,
        model=finding.display(Path(scene.model.name).name),
        layer=scene.layer,
        images=len(scene.inputs),
        titles=list(scene.titles),
        names=list(scene.names),
        photographs=list(scene.photographs),
        with_truth=0 if scene.truth is None else int(scene.truth.flatten(1).any(1).sum()),
        truth_share=scene.truth_share,
        remark=scene.remark,
        failures=list(scene.failures),
    )


def _machine_state(device: torch.device) -> results.MachineState:
    return from_json(results.MachineState, environment.conditions(device))


def _metric_facts(metric: Metric, dist: str) -> results.MetricFacts:
    same = ("category", "summary", "direction", "limit", "paper")
    facts: dict[str, Any] = {name: getattr(metric, name) for name in same}
    return results.MetricFacts(dist=dist, range=list(metric.range), **facts)
