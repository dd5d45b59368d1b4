"""Sections of words, tables and pictures as Markdown, and as one HTML page that loads and runs nothing."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

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
    templates = Environment(
        loader=PackageLoader("camkit.bench"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    templates.filters |= {"text": _markdown, "base64": lambda data: base64.b64encode(data).decode("ascii")}
    return templates.get_template(template).generate(sections=sections)


def _markdown(text: str) -> str:
    """A text that means nothing to Markdown, on one line."""
    escaped = _ACTIVE.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
    return _BEGINS.sub(r"\1\\\2", escaped)


_ACTIVE = re.compile(r"[\\`*_\[\]|~]")
_BEGINS = re.compile(r"^(\d*)([#+=.)-])")  # a heading, a line or a list, where a text begins with it
