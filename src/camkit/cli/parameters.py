"""Kinds of values that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from camkit.errors import UsageError


class FilePath(click.Path):
    """A path; an empty one, as of a variable that is not set, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            what = (
                param.get_error_hint(ctx).strip("'") if param is not None and ctx is not None else "a path"
            )
            raise UsageError(f"{what} is empty: give a name")
        return super().convert(value, param, ctx)


PATH = FilePath(path_type=Path)
FOLDER = FilePath(path_type=Path, file_okay=False)
PATTERN = FilePath(path_type=str)
