"""Sheets: maps side by side, a column for each way to compute them, a row for each class and photograph."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from camkit.drawing import evidence, overlay
from camkit.drawing.caption import Legend, words
from camkit.drawing.evidence import Scale
from camkit.drawing.sheet import CELL, Key, Panel, Row, Section, composed
from camkit.drawing.style import Style
from camkit.errors import UsageError
from camkit.explaining import embedding
from camkit.explaining.captions import knows_class, speaks
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest import Line

MAX_CLASSES, MAX_COLUMNS = 8, 6

T = TypeVar("T")
Kind = tuple[str, str]  # method and layer: whose maps share a scale
Target = tuple[int | None, str]  # the index of a class, if it is one, and its name
Photograph = tuple[int, str]  # its position and its hash
Subject = tuple[int, str, Target]  # a photograph and a target: what has a row


class Sheet(Image.Image):
    """A picture of Pillow that knows the maps on it.

    lines: of the manifest, one for each map.
    """

    lines: Sequence[Line] = ()

    def __init__(self, picture: Image.Image, lines: Sequence[Line]) -> None:
        self.__setstate__([picture.info, picture.mode, picture.size, None, picture.tobytes()])
        self.lines = lines

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """Write it to a path, whole or not at all; PNG, JPEG and WebP carry what `camkit show` prints.

        Otherwise, or with parameters of Pillow, as that writes it, without the lines.
        """
        if self.lines and isinstance(fp, str | os.PathLike) and format is None and not params:
            embedding.save(self, Path(fp), self.lines)
        else:
            super().save(fp, format, **params)


def sheet(results: Iterable[Explanation], *, style: Style | None = None, **look: object) -> Sheet:
    """Explanations side by side: of one photograph or several, of classes, methods, layers, backends.

    style: how, or the fields of one as `look`. Of many classes a sheet shows the eight likeliest.
    """
    results = list(results)
    if not results:
        raise UsageError("a sheet needs at least one explanation")
    style = style or Style(**look)  # type: ignore[arg-type]
    picture, fulls = _sheet(results, style), full_scales(results, style)
    return Sheet(picture, [r.line(style, full) for r, full in zip(results, fulls, strict=True)])


def full_scales(results: Sequence[Explanation], style: Style) -> list[float]:
    """The value that has the strongest colour, of the map of each result on the sheet of all of them."""
    scales = _scales(results, style)
    return [scales[_column(result)[:2]].high for result in results]


def sheet_of(results: Sequence[Explanation], style: Style) -> Image.Image | None:
    """The sheet of one photograph; nothing if it would have a single panel."""
    shown = {(*_column(r), *(_subject(r) if _knows_class(r) else ())) for r in results}
    return _sheet(results, style) if len(shown) > 1 else None


def _sheet(results: Sequence[Explanation], style: Style) -> Image.Image:
    """All maps of one method and layer have one scale, so that they can be compared."""
    style = replace(style, caption=False, size=None if style.look == "lesson" else CELL)
    scales = _scales(results, style)
    columns = sorted(dict.fromkeys(map(_column, results)), key=lambda c: list(scales).index(c[:2]))
    rows = _rows(results)
    names = list(dict.fromkeys(Path(r.photo.source).name for r in results))
    photos = len({key[:2] for key in rows})
    if len(columns) == 1:
        return _of_one_column(columns[0], rows, scales, style, names, _left_out(results))
    sections = [
        _section(part, rows, scales, style, several=photos > 1)
        for part in _folded(_with_differences(columns))
    ]
    shown = names[0] if photos == 1 else f"{photos} photographs"
    return composed(sections, shown + _left_out(results))


def _of_one_column(
    column: tuple[str, str, str],
    rows: dict[Subject, list[Explanation]],
    scales: dict[Kind, Scale],
    style: Style,
    names: Sequence[str],
    left_out: str,
) -> Image.Image:
    """Every panel has its own title; they are laid out as a grid."""
    results = [result for row in rows.values() for result in row]
    scale = scales[column[:2]]
    panels = []
    for result in results:
        name = f"{Path(result.photo.source).name}\n" if len(names) > 1 else ""
        panels.append(_panel(result, scale, style, f"{name}{result.subject} · {result.figure}"))
    parts = _folded(panels)
    keys = _keys([column], results, scales, style, last=len(parts[0]) - 1)
    section = Section([Row(part) for part in parts], (), keys)
    shown = names[0] if len(names) == 1 else f"{len(names)} photographs"
    return composed([section], f"{shown} · {_header(column)}".replace("\n", " · ") + left_out)


def _section(
    columns: Sequence[tuple[str, ...]],
    rows: dict[Subject, list[Explanation]],
    scales: dict[Kind, Scale],
    style: Style,
    *,
    several: bool,
) -> Section:
    """Some of the columns with all rows. Of maps that know no class the first row has the only one."""
    made = []
    for group in rows.values():
        by_column = {_column(result): result for result in group}
        first = group[0]
        panels = [_cell(column, by_column, scales, style) for column in columns]
        photo = f"{Path(first.photo.source).name} · " if several else ""
        made.append(Row(panels, f"{photo}{first.subject} {first.figure}"))
    results = [result for group in rows.values() for result in group]
    return Section(made, [_header(column) for column in columns], _keys(columns, results, scales, style))


def _cell(
    column: tuple[str, ...],
    by_column: dict[tuple[str, str, str], Explanation],
    scales: dict[Kind, Scale],
    style: Style,
) -> Panel | None:
    method, layer, *backends = column
    results = [by_column.get((method, layer, backend)) for backend in backends]
    one = results[0]
    if one is None or None in results:
        return None
    scale = scales[method, layer]
    if len(results) == 1:
        return _panel(one, scale, style, "" if _knows_class(one) else "the same for every class")
    return _difference(one, results[1], scale, style)


def _panel(result: Explanation, scale: Scale, style: Style, title: str) -> Panel:
    return Panel(title, result.overlay(style=style, together=scale), " · ".join(result.remarks(style)))


def _difference(a: Explanation, b: Explanation | None, scale: Scale, style: Style) -> Panel | None:
    """What one backend says more than another, on the scale of both: it is clear where they agree."""
    if b is None or a.map.shape != b.map.shape:
        return None
    between = evidence.signed(a.map, style) - evidence.signed(b.map, style)
    plain = replace(style, relu=False, counterfactual=False, look="default", alpha=None, cmap=None)  # type: ignore[arg-type]
    full = max(abs(scale.low), abs(scale.high))
    picture = overlay.draw(
        a.photo, between, a.model.preprocess, plain, scale=Scale(-full, full, "signed", shared=True)
    )
    share = float(between.abs().max()) / full if full else 0.0
    return Panel(f"at most {share:.1e} of the scale", picture)


def _keys(
    columns: Sequence[tuple[str, ...]],
    results: Sequence[Explanation],
    scales: dict[Kind, Scale],
    style: Style,
    last: int = 0,
) -> list[Key]:
    """A legend for each scale, below its columns. last: where that of a single column ends."""
    keys = []
    for kind, scale in scales.items():
        own = [n for n, column in enumerate(columns) if column[:2] == kind]
        drawn = [evidence.signed(r.map, style) for r in results if _column(r)[:2] == kind]
        if own and drawn:
            evidence_of = any(speaks(r.backend, r.method) for r in results if _column(r)[:2] == kind)
            legend = Legend(scale, *evidence.extent(drawn), words(scale, evidence_of))
            if legend.low < legend.high:
                alone = overlay.SHARED if scale.shared else overlay.OWN
                note = f"one scale for these {len(drawn)} maps" if len(drawn) > 1 else alone
                keys.append(Key(own[0], max(own[-1], last), legend, style, note))
    return keys


def _scales(results: Sequence[Explanation], style: Style) -> dict[Kind, Scale]:
    maps: dict[Kind, list[Explanation]] = {}
    for result in results:
        maps.setdefault(_column(result)[:2], []).append(result)
    return {kind: evidence.scale_of([r.map for r in group], style) for kind, group in maps.items()}


def _rows(results: Sequence[Explanation]) -> dict[Subject, list[Explanation]]:
    """The results of each photograph and class; of a photograph those of the likeliest classes."""
    rows: dict[Subject, list[Explanation]] = {}
    likeliest = _likeliest(results)
    seen = set()
    for result in results:
        position, sha256, target = _subject(result)
        same = position, sha256, *_column(result)
        if target not in likeliest[position, sha256] or (same in seen and not _knows_class(result)):
            continue
        seen.add(same)
        rows.setdefault((position, sha256, target), []).append(result)
    return rows


def _likeliest(results: Sequence[Explanation]) -> dict[Photograph, list[Target]]:
    """Of each photograph the targets with the highest scores, as many as a sheet shows."""
    return {
        photo: sorted(scores, key=lambda target: scores[target], reverse=True)[:MAX_CLASSES]
        for photo, scores in _scores(results).items()
    }


def _left_out(results: Sequence[Explanation]) -> str:
    """What a title adds where not all classes, or boxes, are shown."""
    most = max(map(len, _scores(results).values()))
    things = "classes" if all(result.box is None for result in results) else "boxes or segments"
    return f" · the {MAX_CLASSES} likeliest of {most} {things}" if most > MAX_CLASSES else ""


def _scores(results: Sequence[Explanation]) -> dict[Photograph, dict[Target, float]]:
    """The score of each target of each photograph."""
    scores: dict[Photograph, dict[Target, float]] = {}
    for result in results:
        position, sha256, target = _subject(result)
        scores.setdefault((position, sha256), {})[target] = result.logit
    return scores


def _with_differences(columns: Sequence[tuple[str, str, str]]) -> list[tuple[str, ...]]:
    """The columns, and behind two backends of one method and layer their difference."""
    made: list[tuple[str, ...]] = []
    for kind in dict.fromkeys(column[:2] for column in columns):
        own = [column for column in columns if column[:2] == kind]
        made += own
        if len(own) == 2:
            made.append((*kind, own[0][2], own[1][2]))
    return made


def _header(column: tuple[str, ...]) -> str:
    method, layer, *backends = column
    return f"{method}{layer and f' · {layer}'}\n{' − '.join(backends)}"


def _column(result: Explanation) -> tuple[str, str, str]:
    return result.method, result.layer, result.backend


def _subject(result: Explanation) -> Subject:
    return result.position, result.photo.sha256, (result.class_index, result.subject)


def _knows_class(result: Explanation) -> bool:
    return knows_class(result.backend, result.method)


def _folded(items: Sequence[T]) -> list[Sequence[T]]:
    """What is too wide, as several rows of about the same length."""
    rows = math.ceil(len(items) / MAX_COLUMNS)
    width = math.ceil(len(items) / rows)
    return [items[start : start + width] for start in range(0, len(items), width)]
