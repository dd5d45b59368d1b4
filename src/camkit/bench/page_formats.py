"""A report as Markdown, and as one HTML page with its pictures in it, which opens from disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from camkit.pages import page
from camkit.pages.charts import Chart, Matrix, Strips

MARKDOWN, HTML = "report.md", "report.html"
TEMPLATES = {MARKDOWN: "bench.md", HTML: "bench.html"}
Picture = bytes  # of a PNG file
NUMBER = re.compile(r"[-+]?\d")
NOTHING = "-"


@dataclass(frozen=True)
class Section:
    """A heading with words, a table, drawings, pictures and a line of code, each of which may be missing.

    details: further words, of which there may be many. pictures: with a text that says what they show.
    Only the page has drawings and pictures.
    """

    title: str
    words: Sequence[str] = ()
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    details: Sequence[str] = ()
    drawings: Sequence[Chart | Strips | Matrix] = ()
    pictures: Sequence[tuple[str, Picture]] = ()
    code: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Which columns hold only numbers, with intervals or units."""
        return [
            all(cell == NOTHING or NUMBER.match(cell) for cell in column)
            for column in zip(*self.rows, strict=True)
        ]


@dataclass(frozen=True)
class Map:
    """A map on a photograph: its explainer, lines that say how it is drawn, and the picture as JPEG."""

    row: str
    lines: Sequence[str]
    picture: bytes | None


@dataclass(frozen=True)
class Photograph:
    """A photograph as the model saw it, with lines that say what is explained, and its maps."""

    title: str
    lines: Sequence[str]
    picture: bytes
    maps: Sequence[Map]


@dataclass(frozen=True)
class Report:
    """What was found in words, what was not measured, maps side by side, and everything else.

    legend: the colours of maps, from the most negative to the most positive, `#rrggbb`. made_by: the
    command.
    """

    headline: str
    words: Sequence[str]
    missing: Sequence[str]
    sections: Sequence[Section]
    photographs: Sequence[Photograph] = ()
    photographs_words: str = ""
    legend: Sequence[str] = field(default=())
    made_by: str = "camkit bench"


def render(name: str, report: Report) -> Iterator[str]:
    """The text of `MARKDOWN` or `HTML` piece by piece: that of a stranger's document may be large."""
    return page.render(TEMPLATES[name], report=report)
