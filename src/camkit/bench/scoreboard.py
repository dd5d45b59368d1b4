"""A scoreboard: methods x models x photographs, cell by cell; what is done is not measured again.

Every cell is measured as `camkit bench` does it: the same photographs, metrics and controls.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

import camkit
from camkit.bench import bench_json, environment, scene_words, scenes, timing
from camkit.bench.entrants import Entrant, all_rows, one_line, without_contrast
from camkit.bench.metric_choice import Measures, chosen
from camkit.bench.request import FULL
from camkit.bench.results import PLACES, SceneFacts, Score
from camkit.bench.scenes import Scene, check_truth
from camkit.bench.scoreboard_plan import (
    CONTROL,
    COST,
    GRID,
    GROUPS,
    LOCALISATION,
    SCHEMA,
    SLOW,
    BoardRequest,
    Cell,
    Cost,
    Measured,
    cell_path,
    cells_of,
    plan,
    read_cell,
    spread,
    write_cell,
)
from camkit.bench.subjects import PREDICTED, Asked, of_request, without
from camkit.bench.survey import Maps, Progress, all_maps, control, maker, note_odd, scores_of
from camkit.bench.timing import Rounds
from camkit.bench.typed_json import finite, mapped
from camkit.contracts.model import LoadedModel
from camkit.core import devices
from camkit.errors import CamkitError, UsageError
from camkit.explaining import boxes
from camkit.explaining.plan import check_functions
from camkit.files import digest, digest_of
from camkit.images import finding
from camkit.metrics import ground_truth
from camkit.metrics.ground_truth import Truth
from camkit.models.identity import identity

TILES = 4  # photographs of a mosaic


@dataclass(frozen=True)
class Outcome:
    """The cells that are done, those that failed with a line that says why, and those left for later.

    others: how many finished cells lie in the folder that the request does not ask for.
    """

    done: dict[Cell, Measured] = field(default_factory=dict)
    failed: dict[Cell, str] = field(default_factory=dict)
    left: list[Cell] = field(default_factory=list)
    others: int = 0


@dataclass
class _Stage:
    """One model with what is shown to it; scenes are made when a cell first needs them."""

    request: BoardRequest
    spec: str
    paths: list[Path]
    truth: Truth | None
    rows: dict[tuple[str, str], Entrant]
    measures: Measures
    model: LoadedModel
    asked: Asked
    busy: str | None  # what is said of costs, if other work kept the machine busy when the run began
    _scenes: dict[tuple[str, int], Scene | CamkitError] = field(default_factory=dict)
    _maps: dict[tuple[str, str, int], Tensor] = field(default_factory=dict)
    _digests: dict[int, str] = field(default_factory=dict)

    def scene(self, group: str, count: int) -> Scene:
        """The photographs, or mosaics of them; raises the `CamkitError` that it raised before."""
        kind = GRID if group == GRID else "photographs"
        if (kind, count) not in self._scenes:
            try:
                self._scenes[kind, count] = self._made(kind, count)
            except CamkitError as error:
                self._scenes[kind, count] = error
        found = self._scenes[kind, count]
        if isinstance(found, CamkitError):
            raise found
        return found

    def _made(self, kind: str, count: int) -> Scene:
        truth = None if kind == GRID else self.truth
        asked = PREDICTED if kind == GRID else self.asked
        made = scenes.photographs(self.model, self.request.layer, self.paths, count, truth, asked)
        return made if kind != GRID else scenes.mosaics(made, max(1, count // TILES), self.request.seed)

    @cached_property
    def without(self) -> dict[str, str]:
        """Groups that say nothing of what is explained, and why."""
        metrics = without(self.model, self.asked.functions)
        found = {} if self._of_classes else {GRID: "mosaics are of classes"}
        for group, names in GROUPS.items():
            found |= {group: metrics[names[0]]} if names and set(names) <= metrics.keys() else {}
        return found

    @property
    def groups(self) -> tuple[str, ...]:
        """What is measured: boxes and segments are where they were found, of a place it is not known."""
        located = self.truth is not None or (self._finds and not self.asked.at)
        return self.request.groups_of(located=located, without=self.without)

    @property
    def _finds(self) -> bool:
        return not (self.model.detections is None and self.model.segments is None)

    @property
    def _of_classes(self) -> bool:
        return not (self._finds or self.asked.functions)

    @cached_property
    def reference(self) -> Entrant:
        """The explainer whose maps give the controls their size."""
        found = next((row for row in self.rows.values() if row.explainer is not None), None)
        if found is None:
            notes = [note for row in self.rows.values() for note in row.notes]
            raise CamkitError(f"no explainer can run: {notes[0] if notes else 'none is installed'}")
        return found

    def facts(self, cell: Cell) -> dict[str, Any]:
        """Everything that decides the figures of a cell."""
        request = self.request
        row = self.rows.get((cell.backend, cell.method), self.reference)
        facts = {
            "schema": SCHEMA,
            "model": finding.display(Path(cell.model).name),
            "model_sha256": self.model.sha256,
            "model_identity": self._identity,
            "backend": cell.backend,
            "version": row.version,
            "method": cell.method,
            "options": dict(sorted(vars(row.explainer.options).items())) if row.explainer else {},
            "layer": request.layer,
            "group": cell.group,
            "metrics": {name: dict(FULL.options.get(name, {})) for name in GROUPS[cell.group]},
            "photographs": cell.count,
            "photographs_sha256": self._digest(cell.count),
            "truth_sha256": self._truth_digest(cell.count) if cell.group == LOCALISATION else None,
            "device": str(self.model.device),
            "dtype": request.dtype,
            "precision": request.precision,
            "seed": request.seed,
        }
        facts |= {"reference": f"{row.backend} {row.method}"} if cell.backend == CONTROL else {}
        if request.asked:
            like = {"like_sha256": digest([Path(path) for path in request.like])} if request.like else {}
            facts |= {"asked": request.asked | like}
        return facts | ({"batch": request.batch} if cell.group == COST else {})

    def _digest(self, count: int) -> str:
        if count not in self._digests:
            self._digests[count] = digest(spread(self.paths, count))
        return self._digests[count]

    @cached_property
    def _identity(self) -> str:
        return identity(self.model, self.spec)

    @cached_property
    def _annotations(self) -> str:
        return digest_of(Path(str(self.request.truth)))

    def _truth_digest(self, count: int) -> str | None:
        """Of the annotations, and of the names of the photographs, by which they are found."""
        if not self.request.truth:
            return None
        names = "\0".join(path.name for path in spread(self.paths, count))
        text = names.encode("utf-8", "surrogateescape") + self._annotations.encode()
        return hashlib.sha256(text).hexdigest()

    def maps(self, cell: Cell, scene: Scene, row: Entrant) -> tuple[Maps, Tensor]:
        """What makes the maps of a cell, and those of the scene; slow ones are kept for other groups."""
        if cell.backend == CONTROL:
            real = maker(scene, self.reference)
            make = control(cell.method, real, real(*scene.first(1)), self.request.seed)
        else:
            make = maker(scene, row)
        key = (row.key, scene.name, cell.count)
        maps = self._maps[key] if key in self._maps else all_maps(scene, make)
        if cell.method in SLOW:
            self._maps[key] = maps
        return make, maps

    @cached_property
    def environment(self) -> dict[str, Any]:
        """The machine and the libraries."""
        return environment.environment(self.model.device, self.model.dtype)


def run(
    request: BoardRequest, board: Path, progress: Progress = lambda text: None, minutes: float | None = None
) -> Outcome:
    """Measure the cells that are not in `board`, and read those that are.

    minutes: start no cell later than that. Raises `CamkitError`s for what affects the whole board; a cell
    that fails is told, not written, and tried again next time.
    """
    device = devices.pick_device(request.device)
    with devices.multiplied(device, request.precision):
        return _run(request, board, progress, None if minutes is None else time.monotonic() + 60 * minutes)


def _run(request: BoardRequest, board: Path, progress: Progress, end: float | None) -> Outcome:
    paths = spread(list(finding.expand(request.images)), request.limit)
    truth = ground_truth.read(request.truth) if request.truth else None
    outcome, asked = Outcome(), set[Path]()
    before = environment.conditions(devices.pick_device(request.device))
    busy = bench_json.busy(before.get("load"), os.cpu_count())
    for spec in dict.fromkeys(request.models):
        of_model = request.of_model(spec)
        rows = {(row.backend, row.method): row for row in all_rows(of_model) if row.kind == "explainer"}
        stage = _stage(request, spec, paths, truth, rows, busy)
        for group, why in stage.without.items():
            if group in request.asked_groups:
                progress(f"{spec}: without {group}, as {why}")
        cells = list(plan(request, spec, list(rows), len(paths), stage.groups))
        for number, cell in enumerate(cells, 1):
            place = f"{number}/{len(cells)} {cell}"
            facts = stage.facts(cell)
            path = cell_path(board, cell, facts)
            asked.add(path)
            if found := read_cell(path, facts):
                outcome.done[cell] = found
            elif end is not None and time.monotonic() >= end:
                outcome.left.append(cell)
            else:
                progress(place)
                row = rows.get((cell.backend, cell.method), Entrant(CONTROL, CONTROL, cell.method))
                failure = _measure(stage, cell, row, facts, outcome.done)
                if failure is None:
                    write_cell(path, outcome.done[cell])
                else:
                    if failure not in outcome.failed.values():
                        progress(f"    {failure}")
                    outcome.failed[cell] = failure
    return replace(outcome, others=len({*cells_of(board)} - asked))


def _stage(
    request: BoardRequest,
    spec: str,
    paths: list[Path],
    truth: Truth | None,
    rows: dict[tuple[str, str], Entrant],
    busy: str | None,
) -> _Stage:
    of_model = request.of_model(spec)
    model, asked = of_request(of_model)
    check_truth(model, truth)
    check_functions(model, asked.functions)
    boxes.wanted(model, asked.boxes, asked.min_score, asked.classes, asked.at)
    without_contrast(list(rows.values()), model)
    return _Stage(request, spec, paths, truth, rows, chosen(of_model), model, asked, busy)


def _measure(
    stage: _Stage, cell: Cell, row: Entrant, facts: dict[str, Any], done: dict[Cell, Measured]
) -> str | None:
    """Add a cell to those that are `done`, or say in a line why it failed."""
    row = replace(row, notes=[], scores={}, failed=False) if row.explainer or row.kind == CONTROL else row
    if not (row.explainer or row.kind == CONTROL):
        return row.notes[0] if row.notes else "it cannot run"
    cost, scores = None, dict[str, Score]()
    try:
        scene = stage.scene(cell.group, cell.count)
        if cell.group == COST:
            cost = _cost(stage, scene, row, cell)
            row.notes += [stage.busy] if stage.busy else []
        else:
            scores = _scores(stage, cell, scene, row)
    except Exception as error:  # of a plugin, which may raise anything
        return one_line(error)
    if row.failed:
        return row.notes[-1]
    whole = Measured(
        request=facts,
        scene=_scene_facts(scene),
        scores=scores,
        cost=cost,
        notes=row.notes,
        environment=stage.environment,
        photographs=list(scene.photographs),
        camkit=camkit.__version__,
    )
    done[cell] = mapped(whole, finite)
    return None


def _scene_facts(scene: Scene) -> dict[str, Any]:
    photographs = list(scene.photographs)
    facts = SceneFacts(
        name=scene.name,
        images=len(scene.inputs),
        names=list(scene.names),
        photographs=photographs,
        with_truth=0,
    )
    return {
        "things": scene_words.things(facts),
        "named": scene_words.names(facts),
        "marked": f"{scene.name} that the model found" if scene.name in PLACES else "objects",
        "images": len(scene.inputs),
        "with_truth": 0 if scene.truth is None else int(scene.truth.flatten(1).any(1).sum()),
        "truth_share": scene.truth_share,
        "layer": scene.layer,
        "remark": "" if scene.without else scene.remark,  # no group has a metric that is left out
        "failures": list(scene.failures),
    }


def _scores(stage: _Stage, cell: Cell, scene: Scene, row: Entrant) -> dict[str, Score]:
    """The scores of a group; without curves, of which nothing is told."""
    if cell.group == LOCALISATION and scene.truth is None:
        raise UsageError("--truth knows no object of these photographs")
    every = stage.measures.make(stage.request.of_model(stage.spec), scene)
    metrics = {name: metric for name, metric in every.items() if name in GROUPS[cell.group]}
    make, maps = stage.maps(cell, scene, row)
    note_odd(row, scene, maps)
    found = scores_of(scene, row, metrics, maps, None, make, stage.request.seed)
    for score in found.values():
        score.curves, score.steps = None, []
    return found


def _cost(stage: _Stage, scene: Scene, row: Entrant, cell: Cell) -> Cost:
    """The time of the bare forward and of the explainer on the same photographs, batch by batch."""
    size = min(stage.request.batch, len(scene.inputs))
    starts = range(0, len(scene.inputs) - size + 1, size)  # whole batches only
    make = maker(scene, row, frozen=True)

    def forward(inputs: Tensor, targets: Tensor) -> object:
        with scene.without_graph():
            return scene.module(inputs)

    def walking(call: Callable[[Tensor, Tensor], object]) -> timing.Call:
        parts: Iterator[int] = itertools.cycle(starts)

        def once() -> object:
            part = slice(start := next(parts), start + size)
            return call(scene.inputs[part], scene.targets[part])

        return once

    rounds = Rounds(warmup=0 if cell.method in SLOW else 1, least=len(starts), most=len(starts))
    calls: Mapping[str, timing.Call] = {"forward": walking(forward), "explainer": walking(make)}
    with timing.settled():
        timed = timing.interleaved(calls, timing.timer(scene.inputs.device), rounds, stage.request.seed)
    for one in timed.values():
        if one.error is not None:
            raise one.error
    return Cost(batch=size, forward=timed["forward"].host, explainer=timed["explainer"].host)
