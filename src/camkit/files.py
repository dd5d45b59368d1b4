"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from camkit.errors import CamkitError


def write_whole(path: Path, data: bytes | str) -> Path:
    """Write under a temporary name, then rename; folders are made. `CamkitError` if that cannot be done."""
    draft = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CamkitError(f"cannot write {path}: {error.strerror}") from None
    return path
