"""Sections of words, tables and pictures as Markdown, and as one HTML page that loads and runs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from camkit.pages import page

MARKDOWN, HTML = "report.md", "report.html"
Picture = bytes  # of a PNG file


@dataclass(frozen=True)
class Section:
    """A heading with words, a table, pictures and a line of code below it, each of which may be missing.

    pictures: with a text that says what is to be seen; only the page has them.
    """

    title: str
    words: Sequence[str] = ()
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    pictures: Sequence[tuple[str, Picture]] = ()
    code: str = ""


def render(template: str, sections: Iterable[Section]) -> Iterator[str]:
    """The text of `MARKDOWN` or `HTML` piece by piece: of a stranger's document it may be large."""
    return page.render(template, sections=sections)
