"""`camkit.view`: maps of one photograph to switch between, in a notebook or as a file."""

from __future__ import annotations

import html
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from camkit.drawing import interactive
from camkit.drawing.interactive import Layer
from camkit.drawing.style import Style
from camkit.errors import UsageError
from camkit.explaining import captions
from camkit.explaining.explanation import Explanation
from camkit.files import write_whole


class View:
    """Maps of one photograph: in a notebook they are shown below the cell; `save` writes a page.

    Class, method, layer and opacity are chosen in the page, without a server and without Python.
    """

    def __init__(self, page: str, height: int) -> None:
        self.page = page
        self._height = height

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all; it needs no other file and no network."""
        write_whole(Path(path), self.page.encode("utf-8"))

    def _repr_html_(self) -> str:
        """In a frame of its own, so that neither the notebook nor another view is in its way."""
        return (
            f'<iframe title="camkit" sandbox="allow-scripts" srcdoc="{html.escape(self.page)}" '
            f'style="width:100%;max-width:680px;height:{self._height}px;border:0"></iframe>'
        )


def view(results: Explanation | Iterable[Explanation]) -> View:
    """The maps of one photograph, to switch between; see `View`.

    results: of one photograph, as `explain_many` with several targets gives them, or several calls with
    other methods, layers or backends. Raises `UsageError` for none, and for those of several photographs.
    """
    found = [results] if isinstance(results, Explanation) else list(results)
    if not found:
        raise UsageError("a view needs at least one explanation")
    if len({(result.photo.source, result.photo.sha256) for result in found}) > 1:
        raise UsageError("a view is of one photograph; of several `camkit.sheet` makes one picture")
    first, style = found[0], Style()
    subjects, ways = _told_apart(found)
    layers = [
        Layer(
            *(result.map, captions.caption(result.facts(), result.map, style), subject, way),
            result.model.preprocess,
        )
        for result, subject, way in zip(found, subjects, ways, strict=True)
    ]
    width, height = first.photo.image.size
    side = interactive.SIDE / max(width, height)
    return View(interactive.page(first.photo, layers), round(height * side) + 260)


def _told_apart(found: Sequence[Explanation]) -> tuple[list[str], list[str]]:
    """What each map is of, and in which way it was made, so that no two are the same in both.

    Classes that share a name by their index; models by their names, and what is left by numbers.
    """
    shared = {r.subject for r in found if len({o.class_index for o in found if o.subject == r.subject}) > 1}
    subjects = [f"{r.subject} ({r.class_index})" if r.subject in shared else r.subject for r in found]
    several = len({r.model.name for r in found}) > 1
    ways = [
        " · ".join(filter(None, (r.method, r.layer, r.backend, r.model.name if several else "")))
        for r in found
    ]
    seen = Counter[tuple[str, str]]()
    for number, pair in enumerate(zip(subjects, list(ways), strict=True)):
        seen[pair] += 1
        if seen[pair] > 1:
            ways[number] = f"{ways[number]} ({seen[pair]})"
    return subjects, ways
