"""Plain tables: columns as wide as their content, never cut, so that pipes and `grep` get all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click


def show(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout; the headers are bold on a terminal."""
    lines = [list(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *lines, strict=True)]
    click.echo(click.style(_line(headers, widths), bold=True))
    for line in lines:
        click.echo(_line(line, widths))


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()
