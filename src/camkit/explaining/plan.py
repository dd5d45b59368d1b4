"""What to compute for every photograph, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from camkit.contracts.explainer import Explainer, unknown_method
from camkit.contracts.model import LoadedModel
from camkit.core import layers
from camkit.core.call_types import Call, Layer
from camkit.core.layer_lookup import as_list, resolve_layers
from camkit.core.scored import Score, all_places
from camkit.core.targets import Selector, class_selector
from camkit.errors import UNPRINTABLE, LayerError, UsageError
from camkit.explaining import boxes as detected
from camkit.registry import discovery, loading
from camkit.registry import options as registry_options


@dataclass(frozen=True)
class Backend:
    """An explainer with its name, and those of the methods asked for that it has."""

    name: str
    explainer: Explainer
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What to compute for every photograph: checked against model and plugins before any work.

    targets: the class of each photograph by its position, in place of what `selector` says. functions: what
    is explained in place of classes, by name. boxes: which ones of a detector, which has them in place of
    classes. precision: how float32 is multiplied, if that is said.
    """

    model: LoadedModel
    backends: tuple[Backend, ...]
    layers: tuple[str, ...]
    selector: Selector
    layout: str | None = None
    targets: Mapping[int, int] | None = None
    functions: Mapping[str, Score] = field(default_factory=dict)
    precision: str | None = None
    boxes: detected.Wanted | None = None


def plan(
    model: LoadedModel,
    *,
    classes: Sequence[str | int] = ("pred",),
    functions: Mapping[str, Score] | None = None,
    backends: Sequence[str] = ("native",),
    methods: Sequence[str] = ("gradcam",),
    layer: Layer | Sequence[Layer] = "auto",
    layout: str | None = None,
    options: Mapping[str, Any] | None = None,
    precision: str | None = None,
    boxes: Sequence[str | int] | None = None,
    min_score: float | None = None,
    at: Sequence[tuple[float, float]] = (),
) -> Plan:
    """Resolve names; raises `UsageError`s and `PluginError`s for whatever does not exist.

    Every method and every option goes to those of the backends that have it; one must.
    """
    model = all_places(model) if functions else model
    wanted = [model.default_layer if one == "auto" else one for one in as_list(layer)]
    like = next(p for p in model.module.parameters() if p.is_floating_point())
    inputs = layers.example_inputs(model.preprocess.size, like, model.preprocess.channels)
    made = make_backends(backends, methods, options or {})
    needed = any(not set(backend.methods) <= set(backend.explainer.layerless) for backend in made)
    asked = detected.wanted(model, boxes, min_score, classes, at)
    if asked is not None:
        _check_boxes(model, made, functions)
    call = Call(output=scores_for_layer(model))
    names = resolve_layers(model.module, wanted, inputs, call=call, needed=needed)
    for name in filter(UNPRINTABLE.search, names):
        raise LayerError(f"layer {name!r} has a name that no manifest can hold: rename the module")
    selector = class_selector(classes if asked is None else ["all"], model.classes)
    more: dict[str, Any] = {"functions": functions or {}, "precision": precision, "boxes": asked}
    return Plan(model, made, tuple(names), selector, layout, **more)


def scores_for_layer(model: LoadedModel) -> Any:
    """What its automatic layer is found by: the output, or the scores of all boxes, or of all places."""
    boxes, segments = model.detections, model.segments
    if boxes is not None:
        return lambda returned: boxes(returned).scores
    return model.output if segments is None else segments


def _check_boxes(
    model: LoadedModel, made: Sequence[Backend], functions: Mapping[str, Score] | None
) -> None:
    """`UsageError` for what cannot be explained of a detector."""
    check_functions(model, functions)
    for backend in made:
        for method in backend.methods:
            check_contrast(model, backend.explainer, method)


def check_functions(model: LoadedModel, functions: Mapping[str, Score] | None) -> None:
    """`UsageError` for functions of the scores of a detector."""
    if functions and model.detections is not None:
        raise UsageError(f"{model.name} has boxes: these are explained, not functions of its scores")


def check_contrast(model: LoadedModel, explainer: Explainer, method: str) -> None:
    """`UsageError` for a method that needs classes, of a model of boxes or segments."""
    if method in explainer.contrasting and not (model.detections is None and model.segments is None):
        raise UsageError(
            f"{method} holds a class against the others, and {model.name} has boxes or segments, which are "
            "no classes: choose another method"
        )


def make_backends(
    names: Sequence[str], methods: Sequence[str], options: Mapping[str, Any]
) -> tuple[Backend, ...]:
    """The explainers `names`, each with what it has of `methods` and `options`."""
    classes = {name: loading.load(discovery.get("explainer", name)) for name in dict.fromkeys(names)}
    owner = " and ".join(classes)
    shared = registry_options.share_options({n: c.Options for n, c in classes.items()}, options)
    known = list(dict.fromkeys(m for cls in classes.values() for m in cls.methods))
    for method in methods:
        if method not in known:
            raise unknown_method(method, owner, known)
    made = []
    for name, cls in classes.items():
        own = tuple(m for m in dict.fromkeys(methods) if m in cls.methods)
        if not own:
            raise unknown_method(methods[0], name, cls.methods)
        made.append(Backend(name, cls(shared[name]), own))
    return tuple(made)
