"""Folders of results joined into one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import groupby, zip_longest
from pathlib import Path

from camkit.errors import CamkitError, counted, reason
from camkit.explaining import manifest
from camkit.explaining.checked_reading import MAX_FILE, Findings, Reader, check_picture
from camkit.explaining.manifest import Finding, Line
from camkit.explaining.naming import file_name
from camkit.files import Place, copy, inside, pieces, regular, sweep
from camkit.images.workers import Processes


@dataclass(frozen=True)
class Merged:
    """What a merge came to: how many results were added, and what was left out and why."""

    added: int
    findings: tuple[Finding, ...]


def merge(folders: Sequence[Path], out: Path, *, processes: Processes | None = None) -> Merged:
    """Copy the results of `folders` into `out`, each once, but for those that do not hold any more.

    processes: which read the maps, if the folders are strangers'; without, that is done in this one.
    Raises `CamkitError` if two folders hold different files under one name; nothing is overwritten.
    """
    seen = {_copy_id(line) for line in manifest.latest(out)} if (out / manifest.NAME).exists() else set()
    added, place = 0, cache(Place.make)  # when there is something for it
    reader, findings = Reader(processes), Findings()
    for folder in folders:
        own = Findings()
        for name, lines in groupby(manifest.latest(folder, own), key=lambda line: line["name"]):
            new = [line for line in lines if _copy_id(line) not in seen]
            fresh = _sound(folder, new, reader, own)
            if not fresh:
                continue
            if not added:
                sweep(out)
            place(out).check(f", and with it {counted(added, 'result')}" if added else "")
            files = {line[key] for line in fresh for key in ("map_file", "overlay_file") if line[key]}
            # Lines of older runs do not name it.
            sheets = {line["sheet_file"] or file_name(name, ".sheet.png") for line in fresh}
            _add(folder, out, sorted(files | {s for s in sheets if manifest.is_there(folder, s)}), fresh)
            seen.update(map(_copy_id, fresh))
            added += len(fresh)
        findings += (Finding(f"{folder}/{found.file}", found.reason) for found in own)
    return Merged(added, tuple(findings))


def _sound(folder: Path, lines: Sequence[Line], reader: Reader, findings: Findings) -> list[Line]:
    """Those of the lines whose files are what they were, and so is all else that the files hold."""
    damaged = set()
    for line in lines:
        if line["map_file"] and not findings.attempt(line["map_file"], reader.check_map, folder, line):
            damaged.add(line["map_file"])
        if line["overlay_file"] and not findings.attempt(line["overlay_file"], check_picture, folder, line):
            damaged.add(line["overlay_file"])
    return [line for line in lines if not damaged & {line["map_file"], line["overlay_file"]}]


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
