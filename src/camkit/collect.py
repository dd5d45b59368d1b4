"""What can be done with finished folders of `camkit explain`: join, verify, draw anew."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from camkit import explanation, images, manifest
from camkit.api import LoadedModel
from camkit.errors import CamkitError, ImageError, ModelError
from camkit.explanation import View
from camkit.files import inside, reason, regular, write_whole
from camkit.manifest import Line
from camkit.models import load_model
from camkit.naming import file_name
from camkit.output import Names, drawn, encoded, picture_stem, warnings
from camkit.preprocess import Preprocess
from camkit.reading import Failure
from camkit.render import overlay
from camkit.style import Style


@dataclass(frozen=True)
class Finding:
    """Something that does not hold: the file, and why."""

    file: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What a verification came to.

    lines: results that were looked at. maps, pictures, photographs: those whose hash holds; a map may have
    several pictures. anew: maps computed again; difference: the largest one of them, relative to the peak.
    """

    lines: int
    maps: int
    pictures: int
    photographs: int
    anew: int
    difference: float
    findings: tuple[Finding, ...]


def merge(folders: Sequence[Path], out: Path) -> int:
    """Copy the results of `folders` into `out`, each once; how many were added.

    Raises `CamkitError` if two folders hold different files under one name; nothing is overwritten.
    """
    seen = {_copy_id(line) for line in manifest.latest(out)} if (out / manifest.NAME).exists() else set()
    added = 0
    for folder in folders:
        for name, lines in groupby(manifest.latest(folder), key=lambda line: line["name"]):
            fresh = [line for line in lines if _copy_id(line) not in seen]
            files = {line[key] for line in fresh for key in ("map_file", "overlay_file") if line[key]}
            # Lines of older runs do not name it.
            sheets = {line["sheet_file"] or file_name(name, ".sheet.png") for line in fresh}
            for file in sorted(files | {sheet for sheet in sheets if _is_file(folder, sheet)}):
                _copy(folder, out, file)
            if fresh:
                manifest.append(out, fresh)
            seen.update(map(_copy_id, fresh))
            added += len(fresh)
    return added


def verify(
    folder: Path,
    *,
    photographs: Path | None = None,
    sample: int = 8,
    seed: int = 0,
    spec: str | None = None,
) -> Verdict:
    """Whether files, photographs and maps still are what the manifest says.

    photographs: where they lie now, if not where they lay. sample: maps that are computed again, by the
    model `spec` or the one that the manifest names. Raises `UsageError` if there is no manifest.
    """
    findings: list[Finding] = []
    lines = [line for line in manifest.latest(folder) if line["status"] == "ok"]
    by_map = {manifest.map_id(line): line for line in lines}
    maps = pictures = 0
    for line in by_map.values():
        try:
            manifest.load_map(folder, line)
            maps += 1
        except CamkitError as error:
            findings.append(Finding(line["map_file"], str(error)))
    for line in lines:
        if line["overlay_file"]:
            try:
                data = regular(folder, line["overlay_file"]).read_bytes()
                if hashlib.sha256(data).hexdigest() != line["overlay_sha256"]:
                    raise CamkitError("it is not the picture that was drawn")
                pictures += 1
            except (CamkitError, OSError) as error:
                findings.append(Finding(line["overlay_file"], reason(error)))
    sound = set()
    for (name, sha256), line in {(line["name"], line["image_sha256"]): line for line in lines}.items():
        try:
            if images.digest(_photograph(line, photographs)) != sha256:
                raise ImageError("it is another photograph now")
            sound.add((name, sha256))
        except ImageError as error:
            findings.append(Finding(line["image"], str(error)))
    able = [line for line in by_map.values() if (line["name"], line["image_sha256"]) in sound]
    chosen = random.Random(seed).sample(able, min(sample, len(able)))
    load = cache(load_model)
    worst = 0.0
    for line in chosen:
        try:
            difference = _difference(folder, line, photographs, spec, load)
            worst = max(worst, difference)
            if not difference <= manifest.TOLERANCES.get(line["dtype"], 0.0):
                raise CamkitError(f"made anew it differs by {difference:.1e} of its peak")
        except CamkitError as error:
            findings.append(Finding(line["map_file"], str(error)))
    return Verdict(len(lines), maps, pictures, len(sound), len(chosen), worst, tuple(findings))


@dataclass(frozen=True)
class Look:
    """How maps are drawn, and under which names."""

    style: Style
    view: View
    names: Names

    @property
    def picture(self) -> dict[str, Any]:
        """What the manifest tells of it."""
        return {"view": self.view, **asdict(self.style)}


def redraw(
    folder: Path,
    *,
    style: Style,
    view: View = "model",
    photographs: Path | None = None,
    names: Names | None = None,
) -> Iterator[tuple[Line, CamkitError | None]]:
    """Draw every map of a folder, and tell the manifest; each line, and why it was not drawn if so.

    A picture that looks the same is replaced; others stay, and those of this look get names of their own.
    names: of the folder; afterwards they tell what was in the way.
    """
    look = Look(style, view, names or Names(folder))
    deque(look.names.noting(), 0)
    lines: dict[tuple[str, str, str], Line] = {}
    for line in manifest.latest(folder):
        if line["status"] == "ok":
            known = lines.get(manifest.map_id(line))
            if known is None or known["picture"] != look.picture:
                lines[manifest.map_id(line)] = line
    for _, group in groupby(lines.values(), key=lambda line: (line["name"], line["image_sha256"])):
        for line, error in _redraw_photo(folder, list(group), look, photographs):
            if error is None:
                manifest.append(folder, [line])
            yield line, error


def _redraw_photo(
    folder: Path, lines: Sequence[Line], look: Look, photographs: Path | None
) -> Iterable[tuple[Line, CamkitError | None]]:
    try:
        photo = images.load(_photograph(lines[0], photographs))
        if photo.sha256 != lines[0]["image_sha256"]:
            raise ImageError(f"{photo.source} is another photograph now")
    except ImageError as error:
        return [(line, error) for line in lines]
    results: list[tuple[Line, CamkitError | None]] = []
    for line in lines:
        try:
            preprocess = Preprocess.from_dict(_table(line["preprocessing"]))
            values = torch.from_numpy(manifest.load_map(folder, line).copy())
            if look.view == "original":
                picture = overlay(photo.image, values, look.style, preprocess.box(*photo.image.size))
            else:
                picture = overlay(preprocess.view(photo.image), values, look.style)
            said = explanation.remarks(values, look.style, line["backend"], line["method"])
            new = line | {"picture": look.picture, "warnings": warnings(line, said)}
            inside(folder, file_name(picture_stem(new), ".png"))
            results.append((new | drawn(look.names, new, encoded(picture)), None))
        except CamkitError as error:
            results.append((line, error))
    return results


def _difference(folder: Path, line: Line, photographs: Path | None, spec: str | None, load: Any) -> float:
    model: LoadedModel = load(spec or line["model_spec"] or line["model"], dtype=line["dtype"])
    if model.sha256 != line["model_sha256"]:
        raise ModelError(f"{model.name} is not the model that made it")
    stored = torch.from_numpy(manifest.load_map(folder, line).copy())
    work = explanation.plan(
        model,
        classes=[line["class_index"]],
        backends=[line["backend"]],
        methods=[line["method"]],
        layer=line["layer"],
        layout=line["layout"],
        options=_table(line["options"]),
    )
    (made,) = explanation.stream(work, [_photograph(line, photographs)])
    if isinstance(made, Failure):
        raise made.error
    again = made.map
    if again.shape != stored.shape:
        raise CamkitError(f"made anew it is {list(again.shape)}")
    peak = float(stored.abs().max())
    return float((again - stored).abs().max()) / peak if peak else float(again.abs().max())


def _copy_id(line: Line) -> tuple[bytes, str | None]:
    """What tells a result and its picture from all others."""
    return manifest.digest(line), line["overlay_file"]


def _photograph(line: Line, folder: Path | None) -> Path:
    """Where the photograph of a line lies."""
    if folder is None:
        return Path(line["image"])
    if folder.is_file():
        return folder
    try:
        return inside(folder, line["name"])
    except CamkitError as error:
        raise ImageError(str(error)) from None


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CamkitError("the manifest line is damaged")
    return value


def _copy(source: Path, target: Path, file: str) -> None:
    try:
        data = regular(source, file).read_bytes()
        there = inside(target, file)
        if there.exists():
            if regular(target, file).read_bytes() != data:
                raise CamkitError(f"{source / file} and {there} are different: choose another --out")
            return
    except OSError as error:
        raise CamkitError(f"{source / file} cannot be copied: {error.strerror}") from None
    write_whole(there, data)


def _is_file(folder: Path, file: str) -> bool:
    try:
        return bool(regular(folder, file))
    except CamkitError:
        return False
