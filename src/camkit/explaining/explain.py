"""`explain` and `explain_many`: what Python calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from typing import Any, Literal

from torch import nn

from camkit.contracts.model import LoadedModel
from camkit.core.call_types import Layer
from camkit.core.scored import Score
from camkit.errors import UsageError, warn
from camkit.explaining import row_targets
from camkit.explaining.explanation import Explanation
from camkit.explaining.pipeline import stream
from camkit.explaining.plan import Plan, plan
from camkit.images import inputs
from camkit.images.decoding import Photo
from camkit.images.inputs import Row
from camkit.images.prepared import PreparedInputs, shape_of
from camkit.images.preprocess import Preprocess
from camkit.images.workers import Failure, ImageSource, processes, read
from camkit.models.facts import ModelFacts, called_here
from camkit.models.loading import load_quietly, warn_of_assumptions
from camkit.registry import discovery, loading

OF_MODEL = ("classes", "preprocess", "output", "scores")  # of a model that does not say it itself


def explain(
    model: Any,
    image: ImageSource,
    *,
    target: str | int | Score | Mapping[str, Score] | None = None,
    **call: Any,
) -> Explanation:
    """Explain one photograph for one class.

    call: everything else that `explain_many` takes. For several methods, layers or classes at once there is
    `maps_by`. Raises `ImageError`, `MapError` and what `maps` raises.
    """
    rows, box = list(inputs.of_row(image, prepared=call.get("prepared", False))), call.get("box")
    several = {"image": len(rows), "target": len(_several(target)), "box": len(_several(box))}
    for name, value in {"box": box, "target": target}.items():
        if isinstance(value, str) and (value == "all" or value.startswith("top:")):
            raise UsageError(f"{name} is a single one here, not {value!r}: `explain_many` takes more")
    for name, count in several.items():
        if count != 1:
            raise UsageError(f"{name} is a single one here, not {count}: `explain_many` takes more")
    return next(explain_many(model, rows, target=target, **call))


def _several(target: Any) -> list[Any]:
    """One or several of something as a list."""
    single = isinstance(target, str) or not isinstance(target, Iterable) or getattr(target, "ndim", 1) == 0
    return [target] if single else list(target)


def explain_many(
    model: Any,
    images: Any,
    *,
    target: str | int | Score | Mapping[str, Score] | Sequence[str | int] | None = None,
    targets: Iterable[str | int] | Literal["labels"] | None = None,
    box: str | int | Sequence[int] | None = None,
    min_score: float | None = None,
    at: tuple[float, float] | Sequence[tuple[float, float]] | None = None,
    backend: str = "native",
    method: str = "gradcam",
    layer: Layer = "auto",
    layout: str | None = None,
    prepared: bool = False,
    batch_size: int = 16,
    workers: int = 0,
    **more: Any,
) -> Iterator[Explanation]:
    """A stream of explanations, in the order of `images`; no more than a few batches are in memory.

    model: what `load_model` gives or takes: any `nn.Module`, a `Learner`, a file of weights, ...
    images: a folder, a glob, or any iterable of files, addresses, Pillow images, bytes, arrays, tensors, or
        rows of a data set that hold one, or batches of a loader; see `camkit.images.inputs`.
    target: a class name or index, or several for every photograph; `None` is the predicted class. Or a
        function from scores `[B, n]` to one number for each row, as of `maps`, or several by their names.
    targets: one class for each photograph, in their order; `labels` are those of the rows. Where a data set
        names its classes they are found by name. layout: see `maps`.
    box: of a detector, which boxes: a number (1 is the best, the default), several, or `all`; each is a
        result of its own. Then `target` names the classes whose boxes count. min_score: the lowest
        score of a box, 0.5. Of a segmentation `box` numbers its segments by their areas, and `at` is a
        place, x and y in pixels of the photograph, or several.
    prepared: the images are tensors `[C, H, W]`, or batches of them, that go to the model as they are: of
        its size, and normalised. For the picture mean and std of the model are undone.
    workers: processes that read photographs ahead of the model, with limits on time and memory; a script
        that asks for them is imported by each, so it begins with `if __name__ == "__main__":`.
    more: of a model that does not say it itself, `classes`, `preprocess`, `output` and `scores`, see
        `load_model`; everything else are options of the backend.
    The first photograph that cannot be explained ends the stream with its error.
    """
    _check_single(backend=backend, method=method, layer=layer)
    if targets is not None and target is not None:
        raise UsageError("target is for all photographs, targets has one for each: give one of them")
    rows, shape = inputs.several(images, prepared=prepared), None
    if prepared:
        if (first := next(rows, None)) is None:
            return
        shape, rows = shape_of(first), chain([first], rows)
    model, options = _loaded(model, more, shape)
    _check_names(options, backend)
    how = {"layer": layer, "layout": layout, "min_score": min_score, **_boxes(box, at)}
    work = _planned(model, target, backends=[backend], methods=[method], options=options, **how)
    if targets is not None:
        if work.boxes is not None:
            raise UsageError(f"{model.name} has boxes or segments: target= names their classes")
        chosen: dict[int, int] = {}
        work = replace(work, targets=chosen)
        rows = row_targets.chosen(rows, targets, model.classes, inputs.class_names(images), into=chosen)
    # Without their labels: processes that read need not know of them.
    sources = _photos(rows, model.preprocess) if prepared else (Row(one.image, one.name) for one in rows)
    yield from _results(work, sources, batch_size, 0 if prepared else workers)


def _planned(model: LoadedModel, target: Any, *, layer: Layer, **how: Any) -> Plan:
    """What is computed for `target`; how: what else `plan` takes."""
    functions = _functions(target)
    if not (classes := ["pred"] if target is None or functions else _several(target)):
        raise UsageError("target is empty: it is a class, several of them, or None for the predicted one")
    work = plan(model, classes=classes, functions=functions, layer=layer, **how)
    if len(work.layers) > 1:
        raise UsageError(f"layer {layer!r} means several layers ({', '.join(work.layers)}): name one")
    return work


def _boxes(box: Any, at: Any) -> dict[str, Any]:
    """Which boxes or places, as `plan` takes them."""
    places = [] if at is None else [at] if isinstance(at[0], int | float) else list(at)
    return {"boxes": None if box is None else _several(box), "at": places}


def _check_single(**asked: Any) -> None:
    for name, value in asked.items():
        if isinstance(value, list | tuple) or (callable(value) and not isinstance(value, nn.Module)):
            raise UsageError(f"{name} is a single one here, not {value!r}: `camkit.maps_by` takes more")


def _results(
    work: Plan, sources: Iterable[ImageSource], batch_size: int, workers: int
) -> Iterator[Explanation]:
    with processes(workers) as pool:
        ahead = partial(pool.read, ahead=2 * batch_size) if pool else read
        for result in stream(work, sources, batch_size=batch_size, read=ahead):
            if isinstance(result, Failure):
                raise result.error
            yield result


def _loaded(
    model: Any, more: dict[str, Any], shape: tuple[int, int, int] | None
) -> tuple[LoadedModel, dict[str, Any]]:
    """A model with what belongs to it, and the options that are left of `more`.

    shape: `[C, H, W]` of prepared inputs.
    """
    said = {name: more[name] for name in OF_MODEL if name in more}
    if not isinstance(model, LoadedModel) or said or shape:
        model = load_quietly(model, inputs=shape, **said)
        warn_of_assumptions(model)
    return model, {name: value for name, value in more.items() if name not in said}


def _check_names(options: Mapping[str, Any], backend: str) -> None:
    """`UsageError` for what is no option of the backend, if it is clear what was meant."""
    known = {field.name for field in fields(loading.load(discovery.get("explainer", backend)).Options)}
    for name in options.keys() - known:
        if hint := called_here(name):
            raise UsageError(f"{name}={hint}")
        if name in ModelFacts.__dataclass_fields__:
            raise UsageError(f"{name}= belongs to the model: camkit.load_model(..., {name}=...)")


def _functions(target: Any) -> dict[str, Score]:
    """Functions as targets, by what they are called."""
    if isinstance(target, Mapping):
        for name, function in target.items():
            if not (isinstance(name, str) and callable(function)):
                raise UsageError(
                    f"target is {{name: function of the scores}}, not {{{name!r}: {function!r}}}"
                )
        return dict(target)
    if not callable(target):
        return {}
    named = getattr(target, "func", target)  # of a `partial`
    name = getattr(named, "__name__", type(named).__name__)
    return {"function" if name == "<lambda>" else name: target}


def _photos(rows: Iterable[Row], preprocess: Preprocess) -> Iterator[Photo]:
    """Prepared tensors as photographs, with one warning if they do not look as the model's."""
    assert isinstance(preprocess, PreparedInputs)
    told = False
    for row in rows:
        photo = preprocess.photo(row.image, row.name or "image")
        if photo.warnings and not told:
            warn(f"{photo.source}: {photo.warnings[0]}")
            told = True
        yield photo
