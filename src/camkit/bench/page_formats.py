"""Sections of words, tables and pictures as Markdown, and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Picture = bytes  # of a PNG file
Rows = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A heading with words, a table, pictures and a line of code below it, each of which may be missing.

    pictures: with a text that says what is to be seen.
    """

    title: str
    words: Sequence[str] = ()
    headers: Sequence[str] = ()
    rows: Rows = ()
    pictures: Sequence[tuple[str, Picture]] = ()
    code: str = ""


# --- Markdown ---------------------------------------------------------------------------------------


def markdown(sections: Iterable[Section]) -> str:
    """Words and tables; pictures are for the page."""
    return "".join(markdown_parts(sections))


def markdown_parts(sections: Iterable[Section]) -> Iterator[str]:
    """The same piece by piece, because of a stranger's document it may be large."""
    for number, section in enumerate(sections):
        yield f"{'##' if number else '#'} {_md(section.title)}\n\n"
        for text in section.words:
            yield f"{_md(text)}\n\n"
        if section.rows:
            yield f"{_md_row(section.headers)}\n{'|' + '---|' * len(section.headers)}\n"
            yield from (f"{_md_row(row)}\n" for row in section.rows)
            yield "\n"
        if section.code:
            yield f"    {' '.join(section.code.split())}\n\n"


def _md(text: str) -> str:
    """A text that means nothing to Markdown, on one line."""
    escaped = _ACTIVE.sub(r"\\\g<0>", html.escape(" ".join(str(text).split()), quote=False))
    return _BEGINS.sub(r"\1\\\2", escaped)


_ACTIVE = re.compile(r"[\\`*_\[\]|~]")
_BEGINS = re.compile(r"^(\d*)([#+=.)-])")  # a heading, a line or a list, where a text begins with it


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_md, cells))} |"


# --- HTML -------------------------------------------------------------------------------------------

# Nothing but what is in the page: no scripts, no fonts, no requests.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .7em; text-align: left; vertical-align: top; }
figure { margin: 1em 0; } img { max-width: 100%; } figcaption, p { max-width: 60em; }
.wide { overflow-x: auto; } pre { background: #f4f4f4; padding: .7em; overflow-x: auto; }
"""


def page(sections: Iterable[Section]) -> str:
    """One HTML page that needs nothing else and runs nothing."""
    return "".join(page_parts(sections))


def page_parts(sections: Iterable[Section]) -> Iterator[str]:
    """The same piece by piece."""
    yield (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>camkit bench</title><style>{STYLE}</style></head>\n<body>\n"
    )
    for number, section in enumerate(sections):
        yield from _html(section, number)
    yield "</body></html>\n"


def _html(section: Section, number: int) -> Iterator[str]:
    yield f"{_tag(f'h{2 if number else 1}', section.title)}\n"
    yield from (f"{_tag('p', text)}\n" for text in section.words)
    if section.rows:
        yield f'<div class="wide"><table>{_row("th", section.headers)}'
        yield from (_row("td", row) for row in section.rows)
        yield "</table></div>\n"
    yield from (_figure(caption, picture) for caption, picture in section.pictures)
    if section.code:
        yield f"{_tag('pre', section.code)}\n"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(_tag(name, cell) for cell in cells)}</tr>"


def _tag(name: str, text: str) -> str:
    return f"<{name}>{html.escape(str(text))}</{name}>"


def _figure(caption: str, picture: Picture) -> str:
    data = base64.b64encode(picture).decode("ascii")
    text = html.escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>\n"
