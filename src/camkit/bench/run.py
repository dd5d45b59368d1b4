"""From a request to a document: every explainer on the same images, in the same rounds, by the same rules.

A plugin that fails costs its own cells, with a note that says why, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camkit import images, plugins, render
from camkit.api import LoadedModel, Metric
from camkit.bench import environment, scenes, stats, timing
from camkit.bench.document import ENERGY, FIGURES, FORWARD, SCHEMA, estimate, figure_name, plain
from camkit.bench.hard import hard_cases
from camkit.bench.request import GROUPS, BenchRequest, command
from camkit.bench.rows import Row, all_rows
from camkit.bench.scenes import Scene
from camkit.bench.survey import Progress, Survey, maker, references, survey
from camkit.errors import CamkitError, OptionError, closest
from camkit.metrics import agreement, truth
from camkit.models import load_model

if TYPE_CHECKING:
    from PIL.Image import Image

EXAMPLES = 3
ALIKE = 0.999  # rank correlation from which on two maps differ by rounding only

Colds = Mapping[tuple[str, int], timing.Cold | None]


@dataclass(frozen=True)
class Outcome:
    """A document as `bench.json` holds it, and the pictures that it names."""

    document: dict[str, Any]
    pictures: dict[str, Image]
    failures: tuple[str, ...]


def run(request: BenchRequest, progress: Progress = lambda text: None) -> Outcome:
    """Measure what `request` asks for.

    Raises `CamkitError`s for what concerns everything: names that do not exist, the model, no image that
    can be read, no explainer that works.
    """
    metrics = _metrics(request)
    rows = all_rows(request)
    masks = truth.read(request.truth) if request.truth else None
    paths = list(images.expand(request.images)) if request.images else [images.sample()]
    progress(f"loading {request.model}")
    model = load_model(
        request.model, device=request.device, dtype=request.dtype, trust_pickle=request.trust_pickle
    )
    before = environment.conditions(model.device)
    limit = request.limit or request.effort.images
    places = [scenes.photographs(model, request.layer, paths, limit, masks)]
    colds = _cold(request, places[0], rows, progress) if "latency" in request.metrics else {}
    surveys = [_surveyed(request, places[0], rows, progress)]
    if not surveys[0].maps:
        reasons = [note for row in rows for note in row.notes]
        raise CamkitError(f"no explainer gives maps: {reasons[0] if reasons else 'none is installed'}")
    if any("truth" in metric.needs for metric in metrics.values()):
        places += _with_truth(request, places[0], paths, progress)
        surveys += [_surveyed(request, place, rows, progress) for place in places[1:]]
    if "latency" in request.metrics:
        with timing.settled():
            _latency(request, places[0], rows, surveys[0].maps, colds, progress)
    hard = hard_cases(rows, model.device, request.seed) if "agreement" in request.metrics else []
    pictures, examples = _examples(places[0], surveys[0].maps)
    document = {
        "schema": SCHEMA,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(request),
        "settings": _settings(request, model, places[0], rows),
        "environment": environment.environment(model.device, model.dtype, _packages(rows)),
        "conditions": {"before": before, "after": environment.conditions(model.device)},
        "scenes": [_described(scene) for scene in places],
        "metrics": {name: _explained(metric) for name, metric in metrics.items()},
        "rows": [row.to_dict() for row in rows],
        "agreement": {scene.name: found.matrix for scene, found in zip(places, surveys, strict=True)},
        "hard_cases": hard,
        "examples": examples,
    }
    return Outcome(plain(document), pictures, places[0].failures)


def _with_truth(
    request: BenchRequest, first: Scene, paths: Sequence[Path], progress: Progress
) -> list[Scene]:
    """What localisation is measured on beside photographs: mosaics of them; of drawn shapes, if those fail.

    And drawn shapes themselves, if nobody says where the objects in the photographs are.
    """

    @cache
    def shapes() -> Scene:
        progress("training a small model of drawn shapes, whose evidence is known")
        device, dtype, count = first.inputs.device, first.model.dtype, request.effort.shapes
        return scenes.drawn_shapes(count, device, dtype, request.seed)

    found = [shapes()] if first.truth is None else []
    count = request.effort.mosaics
    if count and ENERGY in request.measures():
        progress("making mosaics")
        try:
            pool = scenes.photographs(first.model, first.layer, paths, scenes.POOL)
            found.append(scenes.mosaics(pool, count, request.seed))
        except CamkitError as error:
            found.append(scenes.mosaics(shapes(), count, request.seed, f"not of photographs: {error}"))
    return found


def _surveyed(request: BenchRequest, scene: Scene, rows: Sequence[Row], progress: Progress) -> Survey:
    return survey(request, scene, rows, _metrics(request, scene), progress)


def _metrics(request: BenchRequest, scene: Scene | None = None) -> dict[str, Metric]:
    """The plugins by name, with the options that suit a scene.

    Raises `OptionError` for a name that is neither a group nor a metric.
    """
    known = [*GROUPS, *(found.name for found in plugins.find("metric"))]
    for name in request.metrics:
        if name not in known:
            hint = closest(name, known) or f" (groups: {', '.join(GROUPS)}; or one of `camkit plugin list`)"
            raise OptionError(f"there is no metric {name!r}{hint}")
    made = {}
    for name in request.measures():
        if scene is not None and scene.only and name not in scene.only:
            continue
        values = dict(request.effort.options.get(name, {}))
        if scene is not None:
            has = {field.name for field in fields(plugins.load(plugins.get("metric", name)).Options)}
            values |= {"chunk": scene.chunk} if "chunk" in has else {}
            values |= scene.metric_options.get(name, {})
        made[name] = plugins.make("metric", name, values)
    return made


def figure_names(request: BenchRequest) -> list[str]:
    """The names that a condition about the outcome of `request` may hold."""
    figures = [*FIGURES, *request.measures()]
    return [figure_name(row.backend, row.method, figure) for row in all_rows(request) for figure in figures]


# --- time and memory --------------------------------------------------------------------------------


def _batch_sizes(request: BenchRequest, device: torch.device) -> tuple[int, ...]:
    return request.batch_sizes or request.effort.batch_sizes[device.type != "cpu"]


def _calls(scene: Scene, rows: Sequence[Row], batch: int) -> dict[str, timing.Call]:
    """What is timed of the bare forward and of the explainers, by row."""
    inputs, targets = scene.first(batch)

    def forward() -> Tensor:
        with torch.inference_mode():
            return scene.model.module(inputs)  # type: ignore[no-any-return]

    def mapped(row: Row) -> timing.Call:
        make = maker(scene, row, frozen=True)
        return lambda: make(inputs, targets)

    return {row.key: forward if row.kind == "forward" else mapped(row) for row in rows}


def _cold(request: BenchRequest, scene: Scene, rows: Sequence[Row], progress: Progress) -> Colds:
    """The first call of each row at each batch size, before anything else of it has run.

    Only the model has, to find the classes of the photographs.
    """
    device = scene.inputs.device
    timer, able = timing.timer(device), [row for row in rows if row.kind == "forward" or row.explainer]
    progress("first calls")
    return {
        (key, batch): timing.cold(call, timer)
        for batch in _batch_sizes(request, device)
        for key, call in _calls(scene, able, batch).items()
    }


def _latency(
    request: BenchRequest,
    scene: Scene,
    rows: Sequence[Row],
    maps: Mapping[str, Tensor],
    colds: Colds,
    progress: Progress,
) -> None:
    """Time of the bare forward and of every explainer that gives maps, for each batch size."""
    device = scene.inputs.device
    timed_rows = [row for row in rows if row.kind == "forward" or (row.explainer and row.key in maps)]
    reference_of = references(rows, maps)
    for batch in _batch_sizes(request, device):
        progress(f"timing, batch of {batch}")
        calls = _calls(scene, timed_rows, batch)
        timed = timing.interleaved(calls, timing.timer(device), request.timing, request.seed)
        bare = timed[" ".join(FORWARD)]
        for row in timed_rows:
            own = timed[row.key]
            if own.error is not None:
                row.fail(f"batch of {batch}", own.error)
                continue
            reference = None if row.kind == "forward" else timed.get(reference_of[row.key])
            cold = colds[row.key, batch]
            record = latency_record(batch, own, bare, reference, cold, request.seed)
            row.latency.append(record | {"memory": timing.peak_memory(calls[row.key], device)})
            if record["launch_bound"]:
                row.note(f"launch-bound at a batch of {batch}")


def latency_record(
    batch: int,
    own: timing.Timed,
    bare: timing.Timed,
    reference: timing.Timed | None,
    cold: timing.Cold | None,
    seed: int,
) -> dict[str, Any]:
    """Raw samples of one call in seconds, and what they come to.

    `ratio` is to the bare forward of the same rounds, `against` to the reference backend. `cold` is the
    first call of all, and `compile` what it took beyond a usual one if torch's compiler ran in it: that is
    how long the user waits for it, imports and checks included.
    """
    against = None
    if reference is not None and reference is not own and reference.host:
        ratio = stats.paired(own.host, reference.host, seed)
        against = estimate(ratio) | {"verdict": stats.verdict(ratio)}
    middle = stats.median(own.host, seed)
    return {
        "batch": batch,
        "seconds": estimate(middle),
        "p90": stats.percentile(own.host, 90),
        "p99": stats.percentile(own.host, 99),
        "images_per_second": batch / middle.middle,
        "ratio": estimate(stats.paired(own.host, bare.host, seed))
        if own is not bare and bare.host
        else None,
        "against": against,
        "cold": cold and cold.seconds,
        "compile": max(0.0, cold.seconds - middle.middle) if cold and cold.compiled else None,
        "launch_bound": own.launch_bound,
        "samples": {
            name: [getattr(sample, name) for sample in own.samples]
            for name in ("host", "device", "enqueue")
        },
    }


# --- examples and descriptions ----------------------------------------------------------------------


def _examples(scene: Scene, maps: Mapping[str, Tensor]) -> tuple[dict[str, Image], list[dict[str, Any]]]:
    """The images on which two explainers agree least, drawn side by side."""
    real = {key: value for key, value in maps.items() if not key.startswith("control ")}
    pairs = [(a, b) for a, b in combinations(real, 2) if real[a].shape == real[b].shape]
    if not pairs:
        return {}, []
    table = torch.stack([agreement.spearman(real[a], real[b]) for a, b in pairs])  # [pairs, N]
    worst, which = table.nan_to_num(nan=2.0).min(0)  # where nothing is defined, nothing is shown
    pictures: dict[str, Image] = {}
    examples: list[dict[str, Any]] = []
    for index in worst.argsort()[:EXAMPLES].tolist():
        value, pair = float(worst[index]), pairs[int(which[index])]
        if value >= ALIKE:
            continue
        seen = scene.picture(index)
        panels = [render.Panel("as the model sees it", seen)]
        for key in pair:
            panels.append(render.Panel(key, render.overlay(seen, real[key][index].cpu(), render.Style())))
        name = f"example-{len(examples) + 1}.png"
        shown = scene.model.classes[int(scene.targets[index])]
        title = f"{scene.titles[index]}: {shown}, rank correlation {value:.2f}"
        pictures[name] = render.sheet([panels], title)
        examples.append({"file": name, "title": title, "pair": list(pair), "spearman": value})
    return pictures, examples


def _settings(
    request: BenchRequest, model: LoadedModel, scene: Scene, rows: Sequence[Row]
) -> dict[str, Any]:
    explainers = [row for row in rows if row.kind == "explainer"]
    return {
        "model": images.display(Path(model.name).name),
        "model_sha256": model.sha256,
        "layer": scene.layer,
        "size": list(scene.inputs.shape[-2:]),
        "dtype": request.dtype,
        "options": dict(request.options),
        "backends": list(dict.fromkeys(row.backend for row in explainers)),
        "methods": list(dict.fromkeys(row.method for row in explainers)),
        "metrics": list(request.metrics),
        "seed": request.seed,
        "quick": request.quick,
    }


def _packages(rows: Sequence[Row]) -> list[str]:
    """The distributions of the backends."""
    return sorted({row.version.partition(" ")[0] for row in rows if row.version})


def _described(scene: Scene) -> dict[str, Any]:
    return {
        "name": scene.name,
        "model": images.display(Path(scene.model.name).name),
        "layer": scene.layer,
        "images": len(scene.inputs),
        "titles": list(scene.titles),
        "with_truth": 0 if scene.truth is None else int(scene.truth.flatten(1).any(1).sum()),
        "truth_share": None if scene.truth is None else float(scene.truth.float().mean()),
        "remark": scene.remark,
        "failures": list(scene.failures),
    }


def _explained(metric: Metric) -> dict[str, Any]:
    return {
        "summary": metric.summary,
        "direction": metric.direction,
        "range": list(metric.range),
        "limit": metric.limit,
        "paper": metric.paper,
    }
