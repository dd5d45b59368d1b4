"""From a request to a document: every explainer on the same images, in the same rounds, by the same rules.

A plugin that fails costs its own cells, with a note that says why, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camkit import images, plugins, render
from camkit.api import LoadedModel, Metric
from camkit.bench import environment, scenes, stats, timing
from camkit.bench.document import FIGURES, FORWARD, SCHEMA, estimate, figure_name, plain
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
    surveys = [_surveyed(request, places[0], rows, progress)]
    if not surveys[0].maps:
        reasons = [note for row in rows for note in row.notes]
        raise CamkitError(f"no explainer gives maps: {reasons[0] if reasons else 'none is installed'}")
    if places[0].truth is None and any("truth" in metric.needs for metric in metrics.values()):
        progress("training a small model of drawn shapes, whose evidence is known")
        count = request.effort.shapes
        places.append(scenes.drawn_shapes(count, model.device, model.dtype, request.seed))
        surveys.append(_surveyed(request, places[1], rows, progress))
    if "latency" in request.metrics:
        _latency(request, places[0], rows, surveys[0].maps, progress)
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
        "examples": examples,
    }
    return Outcome(plain(document), pictures, places[0].failures)


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


def _latency(
    request: BenchRequest, scene: Scene, rows: Sequence[Row], maps: Mapping[str, Tensor], progress: Progress
) -> None:
    """Time of the bare forward and of every explainer that gives maps, for each batch size."""
    module, device = scene.model.module, scene.inputs.device
    timed_rows = [row for row in rows if row.kind == "forward" or (row.explainer and row.key in maps)]
    reference_of = references(rows, maps)
    for batch in request.batch_sizes or request.effort.batch_sizes[device.type != "cpu"]:
        progress(f"timing, batch of {batch}")
        inputs, targets = scene.first(batch)

        def forward(inputs: Tensor = inputs) -> Tensor:
            with torch.inference_mode():
                return module(inputs)  # type: ignore[no-any-return]

        def mapped(row: Row, inputs: Tensor = inputs, targets: Tensor = targets) -> timing.Call:
            make = maker(scene, row)
            return lambda: make(inputs, targets)

        calls = {row.key: forward if row.kind == "forward" else mapped(row) for row in timed_rows}
        timed = timing.interleaved(calls, timing.timer(device), request.timing, request.seed)
        bare = timed[" ".join(FORWARD)]
        for row in timed_rows:
            own = timed[row.key]
            if own.error is not None:
                row.fail(f"batch of {batch}", own.error)
                continue
            reference = None if row.kind == "forward" else timed.get(reference_of[row.key])
            record = latency_record(batch, own, bare, reference, request.seed)
            row.latency.append(record | {"memory": timing.peak_memory(calls[row.key], device)})
            if record["launch_bound"]:
                row.note(f"launch-bound at a batch of {batch}")


def latency_record(
    batch: int, own: timing.Timed, bare: timing.Timed, reference: timing.Timed | None, seed: int
) -> dict[str, Any]:
    """Raw samples of one call in seconds, and what they come to.

    `ratio` is to the bare forward of the same rounds, `against` to the reference backend. The cold call is
    the first of all, with whatever is compiled or fetched then.
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
        "cold": own.cold,
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
