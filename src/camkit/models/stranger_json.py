"""JSON files beside weights, which may be a stranger's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from camkit.errors import CamkitError, ModelError, reason, typed_reason
from camkit.files import read_regular
from camkit.models.specs import MAX_CONFIG


def read_json(path: Path) -> Any:
    """What a file holds; `ModelError` if that is no JSON, or larger than `MAX_CONFIG`."""
    try:
        return json.loads(read_regular(path, MAX_CONFIG).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"it cannot be read as JSON: {reason(error)}") from None


@contextmanager
def errors_of(path: Path) -> Iterator[None]:
    """Whatever is wrong with what `path` says becomes one line that names it."""
    try:
        yield
    # Not every source looks at each value before it uses it.
    except Exception as error:
        text = str(error) if isinstance(error, CamkitError) else typed_reason(error)
        raise ModelError(f"{path}: {' '.join(text.split())[:300]}") from error
