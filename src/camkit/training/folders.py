"""Labels that folders and file names tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from camkit.errors import UsageError
from camkit.images import finding
from camkit.training.labelled import Found, Labelled, is_hidden, part_of, some

NAME = re.compile(r"(?P<label>.+)_\d+\.\w+")


def read(root: Path) -> Found:
    """The photographs below `root`: a sub-folder for each class, or names with a label.

    All of that may lie in `train` and `valid`, as the user split them; `test` is left alone.
    """
    everything = list(finding.expand([root]))
    paths = [path for path in everything if not is_hidden(path.relative_to(root))]
    if not paths:
        raise UsageError(f"no image found in {finding.display(root)!r}, but for hidden ones")
    left_out = {"hidden": len(everything) - len(paths)}
    parts = _parts(root, paths)
    kept = [path for path in paths if parts.get(_top(root, path)) != "test"]
    left_out["test"] = len(paths) - len(kept)
    names, how = _labels(root, kept, inside_parts=bool(parts))
    photos = [
        Labelled(path, (name,), parts.get(_top(root, path), ""))
        for path, name in zip(kept, names, strict=True)
    ]
    return Found(root, photos, how, left_out={kind: count for kind, count in left_out.items() if count})


def is_split(folder: Path) -> bool:
    """Whether a folder holds one for training and one for validation, with sub-folders for the classes."""
    parts = {
        part_of(part.name)
        for part in folder.iterdir()
        if part.is_dir() and any(inner.is_dir() for inner in part.iterdir())
    }
    return {"train", "valid"} <= parts


def _parts(root: Path, paths: Sequence[Path]) -> dict[str, str]:
    """The parts that all of these lie in, by the names of their folders; none if they are not split."""
    tops = {_top(root, path) for path in paths}
    if not all(map(part_of, tops)):
        return {}
    parts = {top: part_of(top) for top in tops}
    if "train" not in parts.values():
        raise UsageError(
            f"{finding.display(root)} holds {some(sorted(tops))} and no folder train: give the folder that "
            "holds the classes"
        )
    return parts


def _top(root: Path, path: Path) -> str:
    """The uppermost folder below `root` that a photograph lies in; empty for none."""
    return path.relative_to(root).parts[0] if path.parent != root else ""


def _labels(root: Path, paths: Sequence[Path], *, inside_parts: bool) -> tuple[list[str], str]:
    folders = [path.relative_to(root).parts[int(inside_parts) : -1] for path in paths]
    if all(folders):
        return _of_folders(folders)
    matches = [
        None if inner else NAME.fullmatch(path.name) for path, inner in zip(paths, folders, strict=True)
    ]
    if unlabelled := [path.name for path, match in zip(paths, matches, strict=True) if not match]:
        raise UsageError(
            f"{len(unlabelled)} of {len(paths)} photographs in {finding.display(root)} have no label "
            f"({some(unlabelled)}): one sub-folder for each class, names such as great_pyrenees_12.jpg, or "
            "a table labels.csv"
        )
    return [match["label"] for match in matches if match], "the file names"


def _of_folders(folders: Sequence[tuple[str, ...]]) -> tuple[list[str], str]:
    """Class names, and how they came about: of levels of folders those count that differ.

    Of two such levels (species/breed) the lower one is the class where that is unique, else the path is.
    Where some photographs lie deeper than others, the first level that differs is the class.
    """
    while min(map(len, folders)) > 1 and len({folder[0] for folder in folders}) == 1:
        folders = [folder[1:] for folder in folders]
    if len(set(map(len, folders))) > 1:
        return [folder[0] for folder in folders], "the sub-folders"
    differing = [i for i, names in enumerate(zip(*folders, strict=True)) if len(set(names)) > 1] or [-1]
    ways = [tuple(folder[i] for i in differing) for folder in folders]
    if len(differing) == 1:
        return [way[-1] for way in ways], "the sub-folders"
    levels = f"{len(differing)} levels of folders"
    if len({way[-1] for way in ways}) == len(set(ways)):
        return [way[-1] for way in ways], f"the last of {levels}"
    return ["/".join(way) for way in ways], f"the path of {levels}"
