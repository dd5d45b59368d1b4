"""Which metrics a run uses: every installed one by its category, or those that are named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from camkit.bench.request import LATENCY, BenchRequest
from camkit.bench.scenes import Scene
from camkit.contracts.metric import Metric
from camkit.errors import OptionError, PluginError, closest
from camkit.registry import discovery, loading
from camkit.registry import options as registry_options


@dataclass(frozen=True)
class Measures:
    """The metrics of a run: their classes and distributions by name, and why others cannot be used."""

    classes: Mapping[str, type[Metric]]
    dists: Mapping[str, str]
    broken: Mapping[str, PluginError]

    def make(self, request: BenchRequest, scene: Scene | None = None) -> dict[str, Metric]:
        """The metrics that are meaningful on a scene, with the options that suit it."""
        made = {}
        for name, cls in self.classes.items():
            if scene is not None and scene.only_metrics and name not in scene.only_metrics:
                continue
            if scene is not None and name in scene.without:
                continue
            values: dict[str, Any] = dict(request.effort.options.get(name, {}))
            if scene is not None:
                has = {field.name for field in fields(cls.Options)}
                values |= {"chunk": scene.chunk} if "chunk" in has else {}
            options = registry_options.read_options(cls.Options, values, owner=name)
            made[name] = loading.start("metric", name, cls, options)
        return made


def chosen(request: BenchRequest) -> Measures:
    """What `request.metrics` means.

    A metric that cannot be used is left out with its reason, unless it is asked for by name. Raises
    `OptionError` for a name that is neither a category nor a metric, and the `PluginError` of a metric that
    is asked for.
    """
    classes: dict[str, type[Metric]] = {}
    dists: dict[str, str] = {}
    broken: dict[str, PluginError] = {}
    announced = discovery.find("metric")
    usable = {found.name for found in announced if not found.problem}
    if request.metrics and set(request.metrics) <= usable | {LATENCY}:  # no other code needs to run
        announced = [found for found in announced if found.name in request.metrics]
    for found in announced:
        name = found.full_name if found.ambiguous else found.name
        if found.problem and name in usable:
            continue  # it would shadow the usable one
        try:
            classes[name] = loading.load(discovery.get("metric", name))
            dists[name] = found.dist
        except PluginError as error:
            broken[name] = error
    categories = {name: cls.category for name, cls in classes.items()}
    known = dict.fromkeys((LATENCY, *categories.values()))
    for asked in request.metrics:
        if asked in broken:
            raise broken[asked]
        if asked not in known and asked not in classes:
            if asked in usable:
                discovery.get("metric", asked)  # raises, as several packages offer it
            hint = closest(asked, [*known, *classes])
            shown = f" (categories: {', '.join(known)}; or one of `camkit plugin list`)"
            raise OptionError(f"there is no metric {asked!r}{hint or shown}")
    names = request.measures(categories)
    return Measures({name: classes[name] for name in names}, dists, {} if request.metrics else broken)
