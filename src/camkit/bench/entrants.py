"""The rows of the table: the bare forward, every backend with every method, and the controls."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from camkit.bench.request import BenchRequest
from camkit.bench.results import FORWARD, MAX_ROWS, LatencyRecord, Row, Score
from camkit.contracts.explainer import Explainer, unknown_method
from camkit.contracts.model import LoadedModel
from camkit.errors import CamkitError, PluginError, UsageError, typed_reason
from camkit.explaining.plan import check_contrast
from camkit.metrics.controls import CONTROLS
from camkit.registry import discovery, loading, options

REFERENCE = "native"  # comes first, if it takes part


@dataclass(kw_only=True)
class Entrant(Row):
    """A row while it is measured, with its explainer."""

    explainer: Explainer | None = field(default=None, repr=False)
    parity: float | None = None
    latency: list[LatencyRecord] = field(default_factory=list)
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Add a remark, once."""
        if text not in self.notes:
            self.notes.append(text)

    def fail(self, what: str, error: Exception | str) -> None:
        """Note a failure: an error, or one line about it."""
        self.note(f"{what}: {error if isinstance(error, str) else one_line(error)}")
        self.failed = True

    def row(self) -> Row:
        """What was measured."""
        return Row(**{item.name: getattr(self, item.name) for item in dataclasses.fields(Row)})


def one_line(error: Exception) -> str:
    """An error in one line, with its type unless it is camkit's own."""
    return str(error).partition("\n")[0] if isinstance(error, CamkitError) else typed_reason(error)


def all_rows(request: BenchRequest) -> list[Entrant]:
    """The forward, the explainers and the controls; `UsageError` for more than a document holds."""
    controls = [Entrant("control", "control", name) for name in CONTROLS]
    found = [Entrant("forward", *FORWARD), *_explainer_rows(request), *controls]
    if len(found) > MAX_ROWS:
        raise UsageError(f"these are {len(found)} rows, and a benchmark has {MAX_ROWS} at most")
    return found


def without_contrast(rows: Sequence[Entrant], model: LoadedModel) -> None:
    """Leave out, with a note, what cannot explain the boxes or segments of a model."""
    for row in rows:
        if row.explainer is not None:
            try:
                check_contrast(model, row.explainer, row.method)
            except UsageError as error:
                row.fail("not run", error)
                row.explainer = None


def _explainer_rows(request: BenchRequest) -> list[Entrant]:
    """A row for each backend and method; an unknown name raises, a broken plugin is noted."""
    names = request.backends or tuple(found.name for found in discovery.find("explainer"))
    names = tuple(sorted(dict.fromkeys(names), key=lambda name: name != REFERENCE))
    found = {name: discovery.get("explainer", name) for name in request.backends}
    classes: dict[str, type[Explainer]] = {}
    broken: dict[str, PluginError] = {}
    for name in names:
        try:
            found[name] = found.get(name) or discovery.get("explainer", name)
            classes[name] = loading.load(found[name])
        except PluginError as error:
            broken[name] = error
    known = list(dict.fromkeys(method for cls in classes.values() for method in cls.methods))
    for method in request.methods:
        if method not in known and classes:
            raise unknown_method(method, " and ".join(classes), known)
    shared = options.share_options({n: c.Options for n, c in classes.items()}, request.options)
    rows = []
    for name in names:
        for method in dict.fromkeys(request.methods):
            version = f"{found[name].dist} {found[name].version}" if name in found else ""
            row = Entrant("explainer", name, method, version=version)
            rows.append(row)
            if name in broken:
                row.fail("not run", broken[name])
            elif method not in classes[name].methods:
                row.note(f"{name} has no {method}")
            else:
                try:
                    row.explainer = loading.start("explainer", name, classes[name], shared[name])
                except PluginError as error:
                    row.fail("not run", error)
    return rows
