"""Pictures side by side, under headers, over the legends of their colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from camkit.drawing import text
from camkit.drawing.caption import ALARM, FAINT, INK, PAPER, Legend, bar, bar_size
from camkit.drawing.style import Style

CELL = 320  # pixels of a panel's longest side
GAP, PAD = 12, 16
HEADING, HEADER, SMALL = 20, 15, 13  # pixels of type
LINE = 1.4  # of the type: how high a line is


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet: a title of a few lines over an image. remark: what it cannot show."""

    title: str
    image: Image.Image
    remark: str = ""


@dataclass(frozen=True)
class Row:
    """Panels beside each other, under a header if it is not empty; `None` leaves a gap."""

    panels: Sequence[Panel | None]
    header: str = ""


@dataclass(frozen=True)
class Key:
    """The legend of a scale, below the columns that share it: from the first to the last.

    note: which maps have this scale.
    """

    first: int
    last: int
    legend: Legend
    style: Style
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Rows with the same columns. headers: of the columns, if they have any."""

    rows: Sequence[Row]
    headers: Sequence[str] = ()
    keys: Sequence[Key] = ()


def sheet(rows: Sequence[Sequence[Panel]], heading: str) -> Image.Image:
    """Panels in rows under one heading."""
    return composed([Section([Row(row) for row in rows])], heading)


def composed(sections: Sequence[Section], heading: str) -> Image.Image:
    """Sections below each other under one heading."""
    columns = max(len(row.panels) for section in sections for row in section.rows)
    width = 2 * PAD + columns * (CELL + GAP) - GAP
    parts = [_titled(heading, width)] + [_drawn(section, width) for section in sections]
    paper = Image.new("RGB", (width, sum(part.height for part in parts) + PAD), PAPER)
    y = 0
    for part in parts:
        paper.paste(part, (0, y))
        y += part.height
    return paper


def _titled(heading: str, width: int) -> Image.Image:
    paper = Image.new("RGB", (width, PAD + round(LINE * HEADING)), PAPER)
    shown = text.shortened(heading, HEADING, width - 2 * PAD, bold=True)
    text.write(ImageDraw.Draw(paper), (PAD, PAD), shown, HEADING, fill=INK, bold=True)
    return paper


def _drawn(section: Section, width: int) -> Image.Image:
    """A section as a picture."""
    parts = [_headers(section.headers, width)] if section.headers else []
    parts += [_row(row, width) for row in section.rows]
    if section.keys:
        parts.append(_keys(section.keys, width))
    paper = Image.new("RGB", (width, sum(part.height for part in parts)), PAPER)
    y = 0
    for part in parts:
        paper.paste(part, (0, y))
        y += part.height
    return paper


def _headers(headers: Sequence[str], width: int) -> Image.Image:
    """The headers of the columns: as many lines as the longest needs."""
    texts = [[line for part in header.split("\n") for line in _wrapped(part, HEADER)] for header in headers]
    line = round(LINE * HEADER)
    paper = Image.new("RGB", (width, line * max(map(len, texts)) + GAP // 2), PAPER)
    draw = ImageDraw.Draw(paper)
    for column, lines in enumerate(texts):
        for number, shown in enumerate(lines):
            text.write(draw, (_left(column), number * line), shown, HEADER, fill=INK, bold=True)
    return paper


def _row(row: Row, width: int) -> Image.Image:
    """A row under its header, titles over their pictures."""
    images = [_fitted(panel.image) if panel else None for panel in row.panels]
    titles = [_title(panel) if panel else [] for panel in row.panels]
    line, high = round(LINE * SMALL), max(map(len, titles))
    top = round(LINE * HEADER) + 4 if row.header else 0
    tallest = max((image.height for image in images if image), default=0)
    paper = Image.new("RGB", (width, top + line * high + tallest + GAP), PAPER)
    draw = ImageDraw.Draw(paper)
    if row.header:
        shown = text.shortened(row.header, HEADER, width - 2 * PAD, bold=True)
        text.write(draw, (PAD, 2), shown, HEADER, fill=INK, bold=True)
    for column, (image, lines) in enumerate(zip(images, titles, strict=True)):
        for number, (shown, colour) in enumerate(lines):
            text.write(draw, (_left(column), top + number * line), shown, SMALL, fill=colour)
        if image:
            paper.paste(image, (_left(column), top + line * high))
    return paper


def _keys(keys: Sequence[Key], width: int) -> Image.Image:
    line = round(LINE * SMALL) if any(key.note for key in keys) else 0
    paper = Image.new("RGB", (width, bar_size(SMALL) + line), PAPER)
    draw = ImageDraw.Draw(paper)
    for key in keys:
        left, right = _left(key.first), _left(key.last) + CELL
        bar(paper, (left, 0, right), SMALL, key.style, key.legend)
        text.write(draw, (left, bar_size(SMALL)), key.note, SMALL, fill=FAINT)
    return paper


def _title(panel: Panel) -> list[tuple[str, str]]:
    """The lines over a panel, each with its colour."""
    lines = [(line, FAINT) for part in panel.title.split("\n") if part for line in _wrapped(part, SMALL)]
    return lines + [(line, ALARM) for line in _wrapped(panel.remark, SMALL) if panel.remark]


def _wrapped(words: str, size: int) -> list[str]:
    """A text as wide as a cell, broken where it has dots."""
    return text.lines(words.split(" · "), size, CELL)


def _left(column: int) -> int:
    return PAD + column * (CELL + GAP)


def _fitted(image: Image.Image) -> Image.Image:
    """A picture at the size of a cell."""
    scale = CELL / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    filter = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize((width, height), filter)
