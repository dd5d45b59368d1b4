"""The plan of a scoreboard: cells, each a method on a model measured in one way, and their files.

A cell that is done is a file, written whole; its name is a digest of everything that decides its figures.
So a command goes on where it was stopped, and one that asks for something else finds no cell of its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from camkit.bench.request import OPTIONS as BENCH_OPTIONS
from camkit.bench.request import BenchRequest, option_words, shown
from camkit.bench.results import ENERGY, GAIN, MAX_IMAGES, Count, Facts, Line, Name, Score, Seconds
from camkit.bench.typed_json import Fault, Most, from_json, to_json
from camkit.core.device_names import Precision
from camkit.errors import OptionError, closest
from camkit.files import read_regular, write_whole
from camkit.metrics.controls import CONTROLS
from camkit.native.method_table import AT_LAYER, BLACK_BOX, COMBINED, INPUT_GRADIENTS

SCHEMA = 1
CELLS = "cells"  # the folder of finished ones
COST = "cost"
GRID = "gridpg"
LOCALISATION = "localisation"
# What is measured together, by the metrics that score it; the cost has none.
GROUPS: Mapping[str, tuple[str, ...]] = {
    COST: (),
    LOCALISATION: ("pointing-game", ENERGY, "relevance-rank"),
    GRID: (ENERGY,),
    "faithfulness": (GAIN, "road"),
    "sanity": ("sanity-cascading",),
}
CHANGING = ("faithfulness", "sanity")  # many forwards for each photograph: measured on fewer
CONTROL = "control"
# Methods of hundreds of forwards, of any backend, as far as their names tell: measured on fewer still.
SLOW = frozenset((*BLACK_BOX, *INPUT_GRADIENTS, "scorecam", "lime", "kernel-shap", "occlusion"))
# Those that look at layers and take at most a few forwards.
USUAL = tuple(name for name in (*AT_LAYER, *COMBINED) if name not in SLOW)
MAX_FILE = 64 * 2**20
ASKED = ("classes", "boxes", "at", "min_score", "texts", "like", "targets")  # what is explained


@dataclass(frozen=True)
class BoardRequest:
    """What a scoreboard shall hold.

    images, truth, backends, layer, options, device, dtype, precision, seed, and what is explained, `ASKED`:
    as of `BenchRequest`. methods: none means `USUAL`, and with `black_box` also `BLACK_BOX`. groups: of
    `GROUPS`; none means all that can be measured. limit: photographs for cost, localisation and the grid.
    faithfulness: for it and sanity. black_box: for `SLOW` methods, whatever is measured. batch: photographs
    of one timed call.
    """

    images: tuple[str, ...]
    models: tuple[str, ...] = ("pets",)
    classes: tuple[str, ...] = ("pred",)
    boxes: tuple[str, ...] = ()
    at: tuple[tuple[float, float], ...] = ()
    min_score: float | None = None
    texts: tuple[str, ...] = ()
    like: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    backends: tuple[str, ...] = ("native",)
    methods: tuple[str, ...] = ()
    layer: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)
    truth: str | None = None
    groups: tuple[str, ...] = ()
    limit: int = 1000
    faithfulness: int = 60
    black_box: int | None = None
    batch: int = 8
    device: str = "auto"
    dtype: str = "float32"
    precision: Precision = "ieee"
    seed: int = 0
    trust_pickle: bool = False

    @property
    def all_methods(self) -> tuple[str, ...]:
        """The methods by name."""
        return self.methods or (*USUAL, *(BLACK_BOX if self.black_box else ()))

    @property
    def asked(self) -> dict[str, Any]:
        """What is explained, by the name of the field, as far as it is not the usual."""
        values = {name: getattr(self, name) for name in ASKED}
        return {name: value for name, value in values.items() if value != getattr(BoardRequest, name)}

    @property
    def all_groups(self) -> tuple[str, ...]:
        """The groups that can be measured of classes; `OptionError` for a name that is none of them."""
        return self.groups_of(located=self.truth is not None)

    def groups_of(self, *, located: bool, without: Collection[str] = ()) -> tuple[str, ...]:
        """The groups that can be measured. located: whether it is known where things are."""
        if LOCALISATION in self.asked_groups and not located and self.groups:
            raise OptionError("localisation needs --truth: where the objects are")
        return tuple(
            name for name in self.asked_groups if name not in without and (name != LOCALISATION or located)
        )

    @property
    def asked_groups(self) -> tuple[str, ...]:
        """The groups by name, whatever the model; `OptionError` for a name that is none of them."""
        for name in self.groups:
            if name not in GROUPS:
                shown = closest(name, GROUPS) or f": use {', '.join(GROUPS)}"
                raise OptionError(f"a scoreboard does not measure {name!r}{shown}")
        return tuple(name for name in GROUPS if name in (self.groups or GROUPS))

    def photographs(self, group: str, method: str) -> int:
        """On how many photographs a group is measured, if there are so many."""
        usual = min(self.limit, self.faithfulness) if group in CHANGING else self.limit
        return min(usual, self.black_box or 20) if method in SLOW else usual

    def of_model(self, model: str) -> BenchRequest:
        """The request of a benchmark of one model, with all metrics of the board."""
        same = ("backends", "layer", "options", "images", "truth", "device", "dtype", "precision", "seed")
        return BenchRequest(
            model=model,
            methods=self.all_methods,
            metrics=tuple(dict.fromkeys(name for group in self.asked_groups for name in GROUPS[group])),
            limit=self.limit,
            trust_pickle=self.trust_pickle,
            **{name: getattr(self, name) for name in (*same, *ASKED)},
        )


OPTIONS = {
    **{"models": "--model", **{name: BENCH_OPTIONS[name] for name in ASKED}},
    **{"backends": "--backend", "methods": "--method", "layer": "--layer"},
    **{"options": "--option", "truth": "--truth", "groups": "--metrics", "limit": "--limit"},
    **{"faithfulness": "--faithfulness", "black_box": "--black-box", "batch": "--batch-size"},
    **{"device": "--device", "dtype": "--dtype", "precision": "--precision", "seed": "--seed"},
    "trust_pickle": "--trust-pickle",
}


def command(request: BoardRequest) -> str:
    """The command that repeats a request. Of absolute paths only the last part is shown."""
    images = [shown(text) for text in request.images]
    words = ["camkit", "bench", "scoreboard", *images, *option_words(request, BoardRequest(()), OPTIONS)]
    return shlex.join(words)


@dataclass(frozen=True)
class Cell:
    """One method, or control, on one model, measured in one way.

    count: of the photographs it is measured on, evenly spread over all.
    """

    model: str
    backend: str
    method: str
    group: str
    count: int

    def __str__(self) -> str:
        return f"{self.model} {self.backend} {self.method}: {self.group}, {self.count} photographs"


@dataclass(kw_only=True)
class Cost:
    """Seconds of the bare forward and of the explainer in each round, of the same photographs."""

    batch: int
    forward: Annotated[list[Seconds], Most(1000)]
    explainer: Annotated[list[Seconds], Most(1000)]


@dataclass(kw_only=True)
class Measured:
    """What is known of a cell: `request`, everything that decides its figures, and the figures.

    scene: what to know of the images: `things`, `named`, `with_truth`, `remark`, `layer`. photographs: the
    number of that of each image; none: each is its own.
    """

    request: Facts
    scene: Facts
    scores: Annotated[dict[str, Score], Most(100)]
    cost: Cost | None
    notes: Annotated[list[Line], Most(100)]
    environment: Facts
    photographs: Annotated[list[Count], Most(MAX_IMAGES)] = field(default_factory=list)
    camkit: Name = ""


def plan(
    request: BoardRequest,
    model: str,
    rows: Sequence[tuple[str, str]],
    found: int,
    groups: Sequence[str],
) -> Iterator[Cell]:
    """The cells of one model, for pairs `rows` of backend and method, with `found` photographs.

    Group by group, each with the controls that its methods are compared with, on the same photographs.
    """
    for group in groups:
        counts: dict[int, None] = {}
        for backend, method in rows:
            count = min(found, request.photographs(group, method))
            counts[count] = None
            yield Cell(model, backend, method, group, count)
        if group != COST:
            # An even map has no order, which is all that the metrics of these groups look at.
            controls = [name for name in CONTROLS if not (name == "uniform" and group in CHANGING)]
            yield from (Cell(model, CONTROL, name, group, count) for count in counts for name in controls)


# --- files ------------------------------------------------------------------------------------------


def cell_path(board: Path, cell: Cell, request: Mapping[str, Any]) -> Path:
    """The file of a cell; request: everything that decides its figures."""
    text = json.dumps(request, sort_keys=True, ensure_ascii=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:20]
    words = [Path(cell.model).name, cell.backend, cell.method, cell.group]
    name = "-".join(re.sub(r"[^A-Za-z0-9+]+", "_", word)[:40] for word in words)
    return board / CELLS / f"{name}-{digest}.json"


def cells_of(board: Path) -> list[Path]:
    """The files of all finished cells in a folder."""
    return list((board / CELLS).glob("*.json"))


def read_cell(path: Path, request: Mapping[str, Any]) -> Measured | None:
    """A finished cell; `None` if there is none, or the file is damaged or of something else."""
    try:
        table = json.loads(read_regular(path, MAX_FILE))
        cell = from_json(Measured, table)
    except (OSError, ValueError, RecursionError, Fault):
        return None
    counts = {len(score.values) for score in cell.scores.values()}
    fits = not cell.photographs or counts <= {len(cell.photographs)}
    return cell if fits and cell.request == json.loads(json.dumps(request)) else None


def write_cell(path: Path, cell: Measured) -> None:
    """Write a finished cell, whole."""
    write_whole(path, json.dumps(cell, ensure_ascii=False, allow_nan=False, default=to_json) + "\n")


def spread(paths: Sequence[Path], count: int) -> list[Path]:
    """`count` of the paths, evenly spread, as a benchmark chooses them."""
    count = min(count, len(paths))
    return [paths[len(paths) * i // count] for i in range(count)]
