"""Which question a file of a folder answers: it is replaced by another answer to the same one alone."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from camkit.explaining.manifest import PICTURES, Line

# What a file answers, by its field and ending; the contents of a table give it its name.
_KINDS = {
    "map_file": {".npy": "map", ".npz": "run"},
    "overlay_file": dict.fromkeys(PICTURES, "picture"),
    "sheet_file": dict.fromkeys(PICTURES, "run"),
}
# A map and its picture are told by what made them, on any device of a kind; several maps by the request.
_MAP = (
    "image_sha256 backend backend_dist backend_version method options layer layout class_index class_name "
    "like_sha256 box model_sha256 output preprocessing camkit_version torch_version device dtype precision"
).split()
_QUESTIONS = {"map": _MAP, "picture": [*_MAP, "picture", "scores"], "run": ["request", "image_sha256"]}
_SORTED = json.JSONEncoder(sort_keys=True).encode


class Owners:
    """Which question each file of a folder answers, as far as its manifest tells: 16 bytes for a file."""

    def __init__(self) -> None:
        self._noted = array("Q"), array("Q")
        self._files = self._questions = np.zeros(0, np.uint64)

    def noting(self, lines: Iterable[Line]) -> Iterator[Line]:
        """The same lines; when all have passed, their files are known."""
        for line in lines:
            for field, kinds in _KINDS.items():
                file = line[field]
                kind = kinds.get(file[file.rfind(".") :]) if file else None
                if kind is not None:
                    self._noted[0].append(_hash(file))
                    self._noted[1].append(question(line, kind))
            yield line
        files, questions = (np.array(values, np.uint64) for values in self._noted)
        self._noted = array("Q"), array("Q")
        order = np.argsort(files, kind="stable")  # so that of one file the last line is the last
        self._files, self._questions = files[order], questions[order]

    def get(self, file: str) -> int | None:
        """The question that a file answers; `None` if no line names it."""
        place = int(np.searchsorted(self._files, np.uint64(_hash(file)), "right")) - 1
        known = place >= 0 and self._files[place] == _hash(file)
        return int(self._questions[place]) if known else None


def question(line: Mapping[str, Any], kind: str) -> int:
    """What a file of a kind (`map`, `picture`, `run`) tells: the same number for the same answer."""
    facts = line.get("model_facts")
    output = facts.get("output") if isinstance(facts, dict) else None
    told = {**line, "device": str(line.get("device")).partition(":")[0], "output": output}
    return _hash(_SORTED([told[key] for key in _QUESTIONS[kind]]))


def _hash(text: str) -> int:
    raw = text.encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "big")
