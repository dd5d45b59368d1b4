"""What can be done with finished folders of `camkit explain`: join, verify, draw anew."""

from __future__ import annotations

import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from functools import cache, partial
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from camkit import explanation, images, manifest, reading
from camkit.api import LoadedModel
from camkit.errors import CamkitError, ImageError, ModelError
from camkit.explanation import Backend
from camkit.files import Place, copy, inside, pieces, reason, regular, sha256, sweep
from camkit.images import Photo
from camkit.manifest import Line
from camkit.models import load_model
from camkit.naming import Names, file_name
from camkit.output import drawn, encoded, picture_stem, warnings
from camkit.preprocess import Preprocess
from camkit.reading import Failure, LimitError, Processes
from camkit.render import View, draw
from camkit.style import Style

T = TypeVar("T")

MAX_FILE = 2**32  # bytes of a file that is copied, or of which the hash is looked at
MAP_MEMORY = 2**30  # bytes to read a map with
EFFORT = 50  # times the default, which the options of a stranger's manifest may ask for together


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


class Reader:
    """Reads files of strangers, in a process if there are any, else in this one.

    A file that took such a process down, or took too long, is not tried a second time.
    """

    def __init__(self, processes: Processes | None) -> None:
        self._call = processes.call if processes else reading.call
        self._lost: dict[Path, LimitError] = {}
        self.photographs = processes.read if processes else reading.read

    def read(
        self, path: Path, function: Callable[..., T], *arguments: Any, memory: int = reading.MEMORY
    ) -> T:
        """What `function` says of a file; it may take so much memory."""
        if path in self._lost:
            raise self._lost[path]
        try:
            return self._call(function, *arguments, name=images.display(path), memory=memory)
        except LimitError as error:
            self._lost[path] = error
            raise

    def map(self, folder: Path, line: Line) -> Tensor:
        """The map of a line, float32 `[h, w]`; `CamkitError` if it is not there or not what it was."""
        path = folder / line["map_file"]
        return torch.from_numpy(self.read(path, manifest.load_map, folder, line, memory=MAP_MEMORY).copy())

    def check_map(self, folder: Path, line: Line) -> None:
        """As `map`, for one who only wants to know that it holds."""
        self.read(folder / line["map_file"], manifest.check_map, folder, line, memory=MAP_MEMORY)


# --- joining --------------------------------------------------------------------------------------


def merge(folders: Sequence[Path], out: Path) -> int:
    """Copy the results of `folders` into `out`, each once; how many were added.

    Raises `CamkitError` if two folders hold different files under one name; nothing is overwritten.
    """
    seen = {_copy_id(line) for line in manifest.latest(out)} if (out / manifest.NAME).exists() else set()
    added, place = 0, cache(Place)  # it is made when there is something for it
    for folder in folders:
        for name, lines in groupby(manifest.latest(folder), key=lambda line: line["name"]):
            fresh = [line for line in lines if _copy_id(line) not in seen]
            if not fresh:
                continue
            if not added:
                sweep(out)
            place(out).check(f", and with it {added} results" if added else "")
            files = {line[key] for line in fresh for key in ("map_file", "overlay_file") if line[key]}
            # Lines of older runs do not name it.
            sheets = {line["sheet_file"] or file_name(name, ".sheet.png") for line in fresh}
            _add(folder, out, sorted(files | {s for s in sheets if _is_file(folder, s)}), fresh)
            seen.update(map(_copy_id, fresh))
            added += len(fresh)
    return added


def _add(source: Path, target: Path, files: Sequence[str], lines: Sequence[Line]) -> None:
    """Copy files and tell the manifest; if that fails, none of them is left that was not there before."""
    new = []
    try:
        for file in files:
            if not os.path.lexists(inside(target, file)):
                new.append(target / file)
            _copy(source, target, file)
        manifest.append(target, lines)
    except CamkitError:
        for path in new:
            with suppress(OSError):
                path.unlink()
        raise


def _copy(source: Path, target: Path, file: str) -> None:
    theirs, ours = regular(source, file), inside(target, file)
    if not os.path.exists(ours):  # noqa: PTH110  Path.exists raises if the name is too long
        copy(theirs, ours, MAX_FILE)
        return
    both = (pieces(path, MAX_FILE) for path in (theirs, regular(target, file)))
    try:
        same = all(one == other for one, other in zip_longest(*both))
    except (OSError, ValueError) as error:
        raise CamkitError(f"{theirs} cannot be copied: {reason(error)}") from None
    if not same:
        raise CamkitError(f"{theirs} and {ours} are different: choose another --out")


def _copy_id(line: Line) -> tuple[bytes, str | None]:
    """What tells a result and its picture from all others."""
    return manifest.digest(line), line["overlay_file"]


def _is_file(folder: Path, file: str) -> bool:
    try:
        return bool(regular(folder, file))
    except CamkitError:
        return False


# --- verifying ------------------------------------------------------------------------------------


def verify(
    folder: Path,
    *,
    photographs: Path | None = None,
    sample: int = 8,
    seed: int = 0,
    spec: str | None = None,
    processes: Processes | None = None,
) -> Verdict:
    """Whether files, photographs and maps still are what the manifest says.

    photographs: where they lie now, if not where they lay. sample: maps that are computed again, by the
    model `spec` or the one that the manifest names. processes: which read maps and photographs, if the
    folder is a stranger's; without, that is done in this one. Raises `UsageError` if there is no manifest.
    """
    reader = Reader(processes)
    findings: list[Finding] = []

    def holds(file: str, check: Callable[..., object], *arguments: Any) -> bool:
        """Whether a check passes. Whatever it raises is a finding, because the line may be a stranger's."""
        try:
            check(*arguments)
        except Exception as error:
            findings.append(Finding(file, _told(error)))
            return False
        return True

    lines = [line for line in manifest.latest(folder) if line["status"] == "ok"]
    by_map = {manifest.map_id(line): line for line in lines}
    by_photo = {_photo_id(line): line for line in lines}
    with_picture = [line for line in lines if line["overlay_file"]]
    held = [line for line in by_map.values() if holds(line["map_file"], reader.check_map, folder, line)]
    pictures = sum(holds(line["overlay_file"], _check_picture, folder, line) for line in with_picture)
    sound = {
        photo
        for photo, line in by_photo.items()
        if holds(line["image"], _check_photograph, line, photographs)
    }
    able = [line for line in held if _photo_id(line) in sound]
    chosen = random.Random(seed).sample(able, min(sample, len(able)))
    load = cache(load_model)
    differences = [0.0]

    def check_anew(line: Line) -> None:
        model: LoadedModel = load(spec or line["model_spec"] or line["model"], dtype=line["dtype"])
        again = _computed(line, model, _photograph(line, photographs), reader)
        difference = _difference(reader.map(folder, line), again)
        differences.append(difference)
        if not difference <= manifest.TOLERANCES.get(line["dtype"], 0.0):
            raise CamkitError(f"made anew it differs by {difference:.1e} of its peak")

    for line in chosen:
        holds(line["map_file"], check_anew, line)
    worst = max(differences)
    return Verdict(len(lines), len(held), pictures, len(sound), len(chosen), worst, tuple(findings))


def _check_picture(folder: Path, line: Line) -> None:
    if sha256(regular(folder, line["overlay_file"]), MAX_FILE) != line["overlay_sha256"]:
        raise CamkitError("it is not the picture that was drawn")


def _check_photograph(line: Line, photographs: Path | None) -> None:
    if images.digest(_photograph(line, photographs)) != line["image_sha256"]:
        raise ImageError("it is another photograph now")


def _computed(line: Line, model: LoadedModel, photograph: Path, reader: Reader) -> Tensor:
    """The map of a line, made anew."""
    if model.sha256 != line["model_sha256"]:
        raise ModelError(f"{model.name} is not the model that made it")
    work = explanation.plan(
        model,
        classes=[line["class_index"]],
        backends=[line["backend"]],
        methods=[line["method"]],
        layer=line["layer"],
        layout=line["layout"],
        options=_table(line["options"]),
    )
    for backend in work.backends:
        _check_effort(backend)
    (made,) = explanation.stream(work, [photograph], read=reader.photographs, whole=False)
    if isinstance(made, Failure):
        raise made.error
    return made.map


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
            f"it is not made anew: option {name} = {asked[name]} of {backend.name} asks for more than "
            f"{EFFORT} times the usual work"
        )


def _difference(stored: Tensor, again: Tensor) -> float:
    """The largest difference of two maps, as a share of the peak."""
    if again.shape != stored.shape:
        raise CamkitError(f"made anew it is {list(again.shape)}")
    peak = float(stored.abs().max())
    return float((again - stored).abs().max()) / peak if peak else float(again.abs().max())


# --- drawing anew ---------------------------------------------------------------------------------


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
    processes: Processes | None = None,
) -> Iterator[tuple[Line, CamkitError | None]]:
    """Draw every map of a folder, and tell the manifest; each line, and why it was not drawn if so.

    A picture that looks the same is replaced; others stay, and those of this look get names of their own.
    names: of the folder; afterwards they tell what was in the way. processes: as in `verify`.
    """
    look, reader = Look(style, view, names or Names(folder)), Reader(processes)
    deque(look.names.noting(), 0)
    lines: dict[tuple[str, str, str], Line] = {}
    for line in manifest.latest(folder):
        if line["status"] == "ok":
            known = lines.get(manifest.map_id(line))
            if known is None or known["picture"] != look.picture:
                lines[manifest.map_id(line)] = line
    sweep(folder)
    place = Place(folder)
    try:
        for _, group in groupby(lines.values(), key=_photo_id):
            photos: dict[Preprocess, Photo] = {}
            for line in group:
                place.check()
                try:
                    new = _redrawn(folder, line, look, photographs, reader, photos)
                except CamkitError as error:
                    yield line, error
                    continue
                except Exception as error:  # the line may be a stranger's
                    yield line, CamkitError(f"{line['map_file']}: {_told(error)}")
                    continue
                if new != line:  # else it was drawn before, and is told
                    manifest.append(folder, [new])
                look.names.note([new])
                yield new, None
    finally:
        look.names.drop()


def _redrawn(
    folder: Path,
    line: Line,
    look: Look,
    photographs: Path | None,
    reader: Reader,
    photos: dict[Preprocess, Photo],
) -> Line:
    """The line of a map that is drawn anew. photos: of its photograph, as they were prepared already."""
    preprocess = Preprocess.from_dict(_table(line["preprocessing"]))
    if preprocess not in photos:
        path = _photograph(line, photographs)
        whole = look.view == "original"
        prepare = partial(reading.prepare, whole=whole, pixels=images.DRAWN)
        photos[preprocess] = reader.read(path, prepare, path, preprocess)
    photo = photos[preprocess]
    if photo.sha256 != line["image_sha256"]:
        raise ImageError(f"{photo.source} is another photograph now")
    values = reader.map(folder, line)
    picture = draw(photo, values, preprocess, look.view, look.style)
    said = explanation.remarks(values, look.style, line["backend"], line["method"])
    new = line | {"picture": look.picture, "warnings": warnings(line, said, photo)}
    inside(folder, file_name(picture_stem(new), ".png"))
    return new | drawn(look.names, new, encoded(picture))


# --- lines ----------------------------------------------------------------------------------------


def _photo_id(line: Line) -> tuple[str, str]:
    return line["name"], line["image_sha256"]


def _photograph(line: Line, folder: Path | None) -> Path:
    """Where the photograph of a line lies; lines of older runs know only a name that can be printed."""
    if folder is None:
        return Path(line["image_path"] or line["image"])
    if folder.is_file():
        return folder
    try:
        return inside(folder, line["image_name"] or line["name"])
    except CamkitError as error:
        raise ImageError(str(error)) from None


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CamkitError("the manifest line is damaged")
    return value


def _told(error: Exception) -> str:
    """What an error of any kind says of a file."""
    if isinstance(error, CamkitError):
        return str(error)
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return reason(error) if isinstance(error, OSError) else f"{type(error).__name__}: {reason(error)}"
