"""Names of classes in files beside a model."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from camkit.errors import ModelError, typed_reason

FILES = ("classes.txt", "labels.json")


def names_beside(folder: Path) -> tuple[str, ...]:
    """The names in `classes.txt` or `labels.json` of a folder; none if it has neither.

    A line each; or a JSON list, or a table from indices to names or the other way round.
    """
    for file in (folder / name for name in FILES):
        if not file.is_file():
            continue
        try:
            text = file.read_text(encoding="utf-8")
            return _of_lines(text) if file.suffix == ".txt" else _of_json(json.loads(text))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise ModelError(f"{file} cannot be read as class names: {typed_reason(error)}") from None
    return ()


def _of_lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def _of_json(data: Any) -> tuple[str, ...]:
    if isinstance(data, dict):
        if all(isinstance(index, int) for index in data.values()):
            data = {index: name for name, index in data.items()}
        ordered = {int(index): name for index, name in data.items()}
        if sorted(ordered) != list(range(len(data))):
            raise ValueError(f"the indices are not 0 to {len(data) - 1}")
        data = [ordered[i] for i in range(len(ordered))]
    if not isinstance(data, list) or not all(isinstance(name, str) for name in data):
        raise ValueError("neither a list of names nor a table of them")
    return tuple(data)


def numbered(classes: Sequence[str]) -> bool:
    """Whether all names are such as `LABEL_0`, which transformers makes where nobody gave any."""
    return all(re.fullmatch(r"LABEL_\d+", name) for name in classes)
