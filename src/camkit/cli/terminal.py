"""What is printed. Whatever strangers wrote, a terminal shows it and does nothing that it says."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import click

from camkit.errors import ESCAPES, CamkitError, printable


def say(text: object = "", *, err: bool = False, nl: bool = True, bold: bool = False) -> None:
    """Print on stdout or stderr; what a text holds beyond visible signs and line ends is escaped.

    Raises `CamkitError` if it cannot be written, as on a full disk.
    """
    safe = str(text).translate(ESCAPES)
    _echo(click.style(safe, bold=True) if bold else safe, err=err, nl=nl)


def say_json(text: str) -> None:
    """Print a document or a line of JSON on stdout: the same JSON, escaped in its own way."""
    _echo(text.translate(_in_json()), nl=not text.endswith("\n"))


def say_table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table on stdout: columns as wide as their content, never cut, so that `grep` gets it all."""
    lines = [[printable(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headers, *lines, strict=True)]
    say(_line(headers, widths), bold=True)
    for line in lines:
        say(_line(line, widths))


@cache
def _in_json() -> dict[int, str]:
    """The escapes of JSON for all that `say` escapes."""
    import json

    return {code: json.dumps(chr(code))[1:-1] for code in ESCAPES} | {0x7F: "\\u007f"}  # which JSON leaves


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)).rstrip()


def _echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    try:
        click.echo(text, err=err, nl=nl)
    except BrokenPipeError:  # a reader that has gone away, which click knows
        raise
    except OSError as error:
        where = "standard error" if err else "standard output"
        raise CamkitError(f"cannot write to {where}: {error.strerror}") from None
