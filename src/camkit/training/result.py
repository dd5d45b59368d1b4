"""What a training came to, kept in its folder: so that its report can be made later, and elsewhere."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from camkit.contracts.trainer import TrainResult
from camkit.errors import ImageError, UsageError, reason
from camkit.files import read_regular, write_whole
from camkit.images import decoding

BUNDLE, CHECKPOINT, NAME = "bundle", "checkpoint.pt", "result.json"
FORMAT = 1
MAX_BYTES = 32 * 2**20  # JSON takes up to 25 times as much memory


@dataclass(frozen=True)
class Kept:
    """A result that was read, with the SHA-256 of each held-out photograph's file.

    identity: hashes of what the training was asked for, by name; empty of an older one.
    """

    result: TrainResult
    hashes: tuple[str | None, ...]
    identity: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def gone(self) -> list[Path]:
        """The held-out photographs that are not there any more, or are not what they were."""
        photos = zip(self.result.validation, self.hashes, strict=True)
        return [path for (path, _), known in photos if known is None or _digest(path) != known]

    def any_in(self, root: Path) -> bool:
        """Whether one of the held-out photographs lies below a folder, or there are none."""
        photos = zip(self.names, self.hashes, strict=True)
        return not self.names or any(known == _digest(root / name) for name, known in photos if known)


def check_free(out: Path, *, resume: bool) -> None:
    """Raise `UsageError` if a folder holds a training already, unless it is one to go on with."""
    if os.path.lexists(out / BUNDLE):
        raise UsageError(f"{out} holds a trained model already: choose another --out")
    if os.path.lexists(out / CHECKPOINT) and not resume:
        raise UsageError(
            f"{out} holds an unfinished training: go on with --resume, or choose another --out"
        )


def write(result: TrainResult, root: Path, identity: Mapping[str, str]) -> Path:
    """Keep a result beside its bundle, whole or not at all; `CamkitError` if that cannot be done.

    root: the folder of the photographs, which can lie elsewhere later. identity: as of `Kept`.
    """
    facts = {
        "format": FORMAT,
        "metrics": dict(result.metrics),
        "history": [dict(epoch) for epoch in result.history],
        "steps": [dict(step) for step in result.steps],
        "root": os.path.abspath(root),  # noqa: PTH100  as it is called, whatever links it has
        # Names that are no UTF-8 have halves of signs in them, which JSON escapes.
        "photos": [
            [path.relative_to(root).as_posix(), name, _digest(path)] for path, name in result.validation
        ],
        "trained_on": dict(result.trained_on),
        "told": list(result.told),
        "skipped": result.skipped,
        "identity": dict(identity),
    }
    return write_whole(result.bundle.parent / NAME, json.dumps(facts) + "\n")


def read(out: Path, root: Path | None = None) -> Kept:
    """The result of the training in `out`, which may come from a stranger.

    root: where the photographs lie now. `UsageError` if there is no result or no bundle, or it is damaged.
    """
    path = out / NAME
    try:
        facts = json.loads(read_regular(path, MAX_BYTES))
    except FileNotFoundError:
        raise UsageError(f"{out} holds no {NAME}, which `camkit train` keeps there for a report") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from None
    if not (out / BUNDLE).is_dir():
        raise UsageError(f"{out} holds no trained model yet: `camkit train --resume` goes on with it")
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        raise UsageError(f"{path} has another format than {FORMAT}, which this camkit reads")
    try:
        root = Path(_text(facts["root"])) if root is None else root
        photos = [(_inside(root, name), _label(label), digest) for name, label, digest in facts["photos"]]
        result = TrainResult(
            out / BUNDLE,
            figures(facts["metrics"]),
            tuple(map(figures, facts["history"])),
            tuple(map(figures, facts["steps"])),
            tuple((path, label) for path, label, _ in photos),
            figures(facts.get("trained_on", {})),
            tuple(map(_text, facts.get("told", ()))),
            int(_number(facts.get("skipped", 0))),
        )
        hashes = tuple(None if digest is None else _text(digest) for *_, digest in photos)
        identity = {_text(name): _text(value) for name, value in dict(facts.get("identity", {})).items()}
        return Kept(result, hashes, identity, tuple(name for name, *_ in facts["photos"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged: {type(error).__name__}: {reason(error)}") from None


def figures(value: Any) -> dict[str, float]:
    """Numbers by name, from a stranger's file; `TypeError` or `ValueError` for anything else."""
    return {_text(name): _number(figure) for name, figure in dict(value).items()}


def _number(value: Any) -> float:
    if type(value) is float or (type(value) is int and abs(value) < 2**53):
        return value
    raise ValueError(f"{value!a:.50} is no number")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!a:.50} is no text")
    return value


def _label(value: Any) -> str | tuple[str, ...]:
    return tuple(map(_text, value)) if isinstance(value, list) else _text(value)


def _inside(root: Path, name: Any) -> Path:
    """A photograph below `root`; links are followed there, of which a collection may consist."""
    parts = PurePosixPath(_text(name)).parts
    if not parts or ".." in parts or parts[0] == "/":
        raise ValueError(f"{name!a:.50} is no photograph below a folder")
    return root.joinpath(*parts)


def _digest(path: Path) -> str | None:
    try:
        return decoding.digest(path)
    except ImageError:
        return None
