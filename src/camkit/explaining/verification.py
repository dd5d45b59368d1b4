"""Whether a folder of results still is what its manifest says."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.errors import CamkitError, ImageError, ModelError, counted
from camkit.explaining import boxes, manifest, pipeline, plan, score_targets, statements, stored_maps
from camkit.explaining.checked_reading import Findings, Reader, check_picture, photo_id, photograph, table
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest import Finding, Line
from camkit.explaining.plan import Backend
from camkit.images import decoding, finding
from camkit.images.preprocess import OWN, Preprocess
from camkit.images.workers import Failure, Processes
from camkit.models.loading import load_quietly
from camkit.models.specs import runs_code, split

EFFORT = 50  # times the default, which the options of a stranger's manifest may ask for together


@dataclass(frozen=True)
class Verdict:
    """What a verification came to.

    lines: results that were looked at. maps, pictures, photographs: those whose hash holds; a map may have
    several pictures. recomputed: maps computed again; difference: the largest, relative to the peak.
    unchecked: models that nobody said to trust, and how many maps are not computed again for that.
    """

    lines: int
    maps: int
    pictures: int
    photographs: int
    recomputed: int
    difference: float
    findings: tuple[Finding, ...]
    unchecked: Mapping[str, int]


def verify(
    folder: Path,
    *,
    photographs: Path | str | None = None,
    sample: int = 8,
    seed: int = 0,
    spec: str | None = None,
    processes: Processes | None = None,
) -> Verdict:
    """Whether files, photographs and maps still are what the manifest says, and what it says of these.

    photographs: where they lie now, if not where they lay. sample: maps that are computed again, by the
    model `spec` or the one that the manifest names, if that is no code; if the manifest names `spec`, those
    of its lines alone. processes: which read maps and photographs, if the folder is a stranger's; without,
    that is done in this one. Raises `UsageError` if there is no manifest.
    """
    reader = Reader(processes)
    findings = Findings()
    everything = list(manifest.latest(folder, findings))
    if not findings:  # else a damaged line may be what is missing
        findings += _missing(manifest.read(folder))
    lines = [line for line in everything if line["status"] == "ok"]
    by_map = {manifest.map_id(line): line for line in lines}
    by_photo = {photo_id(line): line for line in lines}
    check = findings.attempt
    sound = [line for line in by_map.values() if check(line["map_file"], reader.check_map, folder, line)]
    pictures = [
        line
        for line in lines
        if line["overlay_file"] and check(line["overlay_file"], check_picture, folder, line)
    ]
    photos = {
        photo
        for photo, line in by_photo.items()
        if check(_shown(line, photographs), _check_photograph, line, photographs)
    }
    candidates = [line for line in sound if photo_id(line) in photos]
    sampled = random.Random(seed).sample(candidates, min(sample, len(candidates)))
    load = cache(load_quietly)
    is_named = any(_recorded(line) == spec for line in lines)  # then it is the model of its own lines alone

    def may_load(line: Line) -> bool:
        """Whether its model was said by the user, or is no code."""
        recorded = _recorded(line)
        return not _is_code(recorded) if spec is None else recorded == spec or not is_named

    unchecked = Counter(_recorded(line) for line in sampled if not may_load(line))

    def differs(line: Line) -> float:
        named = spec or _recorded(line)
        model: LoadedModel = load(named, dtype=line["dtype"], **_facts(line, named))
        again = _computed(line, model, photograph(line, photographs), reader)
        return _compared(line, reader.map(folder, line), again, findings)

    differences = [check(line["map_file"], differs, line) for line in sampled if may_load(line)]
    known = [difference for difference in differences if difference is not None]
    counts = len(lines), len(sound), len(pictures), len(photos), len(known)
    return Verdict(*counts, max(known, default=0.0), tuple(findings), unchecked)


def _missing(lines: Iterable[Line]) -> Iterator[Finding]:
    """Photographs of which fewer results are told than there were.

    lines: all of the manifest, also those that another request has superseded. A map may have several
    pictures.
    """
    told: dict[tuple[Any, str, str], set[Any]] = {}
    counts: dict[tuple[Any, str, str], Any] = {}
    for line in lines:
        group = line["request"], *photo_id(line)
        one = manifest.map_id(line) if line["status"] == "ok" else json.dumps(line, sort_keys=True)
        told.setdefault(group, set()).add(one)
        counts[group] = line["results"]
    for group, count in counts.items():
        name, there = group[1], len(told[group])
        if isinstance(count, int) and there < count:
            yield Finding(
                name, f"its lines tell of {counted(count, 'result')}, and {there} of them are there"
            )


def _compared(line: Line, stored: Tensor, again: Explanation, findings: Findings) -> float:
    """The difference of a map to that which is computed again; what does not hold becomes a finding."""
    difference, bound = _difference(stored, again.map), stored_maps.tolerance(line)
    if not difference <= bound:
        findings.add(line["map_file"], f"recomputed, it differs by {difference:.1e} of its peak")
    named = not isinstance(table(line["model_facts"] or {}).get("classes"), int)  # else they are many
    for what in statements.wrong(line, stored, again, bound, named=named):
        findings.add(line["map_file"], what)
    return difference


def _is_code(spec: str) -> bool:
    """Whether to load a model runs code; of one that is not there, loading says so."""
    try:
        return runs_code(spec)
    except CamkitError:
        return False


def _recorded(line: Line) -> str:
    """The model that a line names."""
    return str(line["model_spec"] or line["model"])


def _facts(line: Line, spec: str) -> dict[str, Any]:
    """What was said of the model, as arguments of `load_model`; of many classes the number is told."""
    told, preparing = table(line["model_facts"] or {}), table(line["preprocessing"])
    named = told.get("classes")
    return {
        # Options of the command may have said it; a function of the user's comes with the model.
        "preprocess": None if OWN in preparing else Preprocess.from_dict(preparing),
        "arch": told.get("arch") if split(spec)[0] == "file" else None,
        **{name: told.get(name) for name in ("output", "scores")},
        "classes": tuple(named) if isinstance(named, list) else None,
    }


def _shown(line: Line, photographs: Path | str | None) -> str:
    """Where a photograph is looked for, or what the line calls it if that is nowhere."""
    try:
        return finding.display(photograph(line, photographs))
    except CamkitError:
        return str(line["image"])


def _check_photograph(line: Line, photographs: Path | str | None) -> bool:
    if decoding.digest(photograph(line, photographs)) != line["image_sha256"]:
        raise ImageError("it has changed")
    return True


def _computed(line: Line, model: LoadedModel, photograph: Path | str, reader: Reader) -> Explanation:
    """What a line tells of, computed again."""
    if model.sha256 != line["model_sha256"]:
        raise ModelError(f"{model.name} is not the model that made it")
    targets, index, box = score_targets.ScoreTargets(model), line["class_index"], line["box"]
    if index is None:
        targets = score_targets.of_name(model, line["class_name"], reader.photographs)
        _check_other(line, targets)
    classes = ["pred" if index is None else index]
    # Of one class, and of a place, it is the class that is explained.
    if box is not None and len(box["classes"]) != 1 and not box.get("at"):
        classes = box["classes"] or ["pred"]
    work = plan.plan(
        targets.model,
        classes=classes,
        functions=targets.functions,
        backends=[line["backend"]],
        methods=[line["method"]],
        layer=line["layer"] or "auto",
        layout=line["layout"],
        options=table(line["options"]),
        precision="tf32" if line["precision"] == "tf32" else "ieee",
        **({} if box is None else boxes.asked(box)),
    )
    for backend in work.backends:
        _check_effort(backend)
    (made,) = pipeline.stream(work, [photograph], read=reader.photographs, whole=False)
    if isinstance(made, Failure):
        raise made.error
    return made


def _check_other(line: Line, targets: score_targets.ScoreTargets) -> None:
    """Whether the likeness is to the photograph that it was to."""
    for name, score in targets.functions.items():
        known = line["like_sha256"]  # older lines have none
        if known and isinstance(score, score_targets.Likeness) and score.sha256 != known:
            raise ImageError(f"{name.removeprefix(score_targets.LIKE)} has changed")


def _check_effort(backend: Backend) -> None:
    """Refuse options that take far more time than those by default, where their owner sets no limit."""
    options = backend.explainer.options
    asked, times = vars(options), dict[str, float]()
    for field in fields(options):
        if type(asked[field.name]) is int and field.metadata.get("max") is None:
            usual = field.default if type(field.default) is int and field.default else 100
            times[field.name] = asked[field.name] / usual
    if math.prod(max(1, factor) for factor in times.values()) > EFFORT:
        name = max(times, key=lambda key: times[key])
        raise CamkitError(
            f"it is not recomputed: option {name} = {asked[name]} of {backend.name} asks for more than "
            f"{EFFORT} times the usual work"
        )


def _difference(stored: Tensor, again: Tensor) -> float:
    """The largest difference of two maps, as a share of the peak."""
    if again.shape != stored.shape:
        raise CamkitError(f"recomputed, it is {list(again.shape)}")
    peak = float(stored.abs().max())
    return float((again - stored).abs().max()) / peak if peak else float(again.abs().max())
