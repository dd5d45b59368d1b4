"""Files that the lines of a stranger's manifest name, read in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from camkit.errors import CamkitError, ImageError, reason, typed_reason
from camkit.explaining import stored_maps
from camkit.explaining.manifest import Finding, Line
from camkit.files import inside, regular, sha256
from camkit.images import finding, workers
from camkit.images.addresses import is_address
from camkit.images.workers import LimitError, Processes

T = TypeVar("T")

MAX_FILE = 2**32  # bytes of a file that is copied, or of which the hash is looked at
MAP_MEMORY = 2**30  # bytes to read a map with


class Reader:
    """Reads files of strangers, in a process if there are any, else in this one.

    A file that took such a process down, or took too long, is not tried a second time.
    """

    def __init__(self, processes: Processes | None) -> None:
        self._call = processes.call if processes else workers.call
        self._lost: dict[Path | str, LimitError] = {}
        self.photographs = processes.read if processes else workers.read

    def read(
        self, path: Path | str, function: Callable[..., T], *arguments: Any, memory: int = workers.MEMORY
    ) -> T:
        """What `function` says of a file; it may take so much memory."""
        if path in self._lost:
            raise self._lost[path]
        try:
            return self._call(function, *arguments, name=finding.display(path), memory=memory)
        except LimitError as error:
            self._lost[path] = error
            raise

    def map(self, folder: Path, line: Line) -> Tensor:
        """The map of a line, float32 `[h, w]`; `CamkitError` if it is not there or not what it was."""
        path = folder / line["map_file"]
        return torch.from_numpy(
            self.read(path, stored_maps.load_map, folder, line, memory=MAP_MEMORY).copy()
        )

    def check_map(self, folder: Path, line: Line) -> bool:
        """True, or raises as `map`."""
        return self.read(folder / line["map_file"], stored_maps.check_map, folder, line, memory=MAP_MEMORY)


class Findings(list[Finding]):
    """What does not hold, each once."""

    def __init__(self) -> None:
        super().__init__()
        self._known = set[Finding]()

    def add(self, file: str, reason: str) -> None:
        """One more, unless it is known."""
        finding = Finding(file, reason)
        if finding not in self._known:
            self._known.add(finding)
            self.append(finding)

    def attempt(self, file: str, function: Callable[..., T], *arguments: Any) -> T | None:
        """What a function returns. Any error is a finding, because the line may be a stranger's."""
        try:
            return function(*arguments)
        except Exception as error:
            self.add(file, message(error))
            return None


def check_picture(folder: Path, line: Line) -> bool:
    """True; `CamkitError` if the picture of a line is not the one that was drawn."""
    path = regular(folder, line["overlay_file"])
    try:
        digest = sha256(path, MAX_FILE)
    except (OSError, ValueError) as error:
        raise CamkitError(f"{path} cannot be read: {reason(error)}") from None
    if digest != line["overlay_sha256"]:
        raise CamkitError(f"{path} is not the picture that was drawn")
    return True


def photo_id(line: Line) -> tuple[str, str]:
    """What tells a photograph from all others: how it is called, and its contents."""
    return line["name"], line["image_sha256"]


def photograph(line: Line, folder: Path | str | None) -> Path | str:
    """Where the photograph of a line lies; lines of older runs know only a name that can be printed.

    folder: a folder or an address where all of them lie now, or the only photograph.
    """
    if folder is None:
        path = str(line["image_path"] or line["image"])
        return path if is_address(path) else Path(path)
    if isinstance(folder, str):
        name = str(line["image_name"] or line["name"])
        if ".." in name.split("/"):
            raise ImageError(f"{name!r} is no photograph of {folder}: refused")
        return f"{folder.rstrip('/')}/{name}"
    if folder.is_file():
        return folder
    try:
        return inside(folder, line["image_name"] or line["name"])
    except CamkitError as error:
        raise ImageError(str(error)) from None


def table(value: object) -> dict[str, Any]:
    """A field that must be a table; `CamkitError` if it is none."""
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise CamkitError("the manifest line is damaged")
    return value


def message(error: Exception) -> str:
    """What an error of any kind says of a file."""
    if isinstance(error, CamkitError):
        return str(error)
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    return reason(error) if isinstance(error, OSError) else typed_reason(error)
