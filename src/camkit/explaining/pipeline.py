"""Photographs in, explanations out, batch by batch."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, zip_longest
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from camkit.contracts import scores as meanings
from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind
from camkit.core.call_types import Answer, Call, Layer
from camkit.core.class_names import class_index
from camkit.core.hooks import as_it_was
from camkit.core.layer_lookup import better_layer
from camkit.core.run_explainer import run
from camkit.core.targets import Fixed
from camkit.drawing import overlay
from camkit.errors import CamkitWarning, MapError, ModelError, UsageError, counted
from camkit.explaining.explanation import Explanation
from camkit.explaining.plan import Backend, Plan, plan
from camkit.images import inputs
from camkit.images.decoding import Photo
from camkit.images.workers import Failure, ImageSource, processes, read
from camkit.models.loading import load_model

OF_MODEL = ("classes", "preprocess", "output", "scores")  # of a model that does not say it itself


def explain(model: Any, image: ImageSource, *, target: str | int | None = None, **call: Any) -> Explanation:
    """Explain one photograph for one class.

    call: everything else that `explain_many` takes. For several methods, layers or classes at once, and for
    functions as targets, there is `maps`. Raises `ImageError`, `MapError` and what `maps` raises.
    """
    for name, value in {"image": image, "target": target}.items():
        if isinstance(value, list | tuple):
            raise UsageError(f"{name} is a single one here, not {len(value)}: `explain_many` takes more")
    return next(explain_many(model, [image], target=target, **call))


def explain_many(
    model: Any,
    images: Any,
    *,
    target: str | int | Sequence[str | int] | None = None,
    targets: Iterable[str | int] | None = None,
    backend: str = "native",
    method: str = "gradcam",
    layer: Layer = "auto",
    layout: str | None = None,
    batch_size: int = 16,
    workers: int = 0,
    **more: Any,
) -> Iterator[Explanation]:
    """A stream of explanations, in the order of `images`; no more than a few batches are in memory.

    model: what `load_model` gives or takes: any `nn.Module`, a `Learner`, a file of weights, ...
    images: a folder, a glob, or any iterable of files, addresses, Pillow images, bytes, arrays, tensors, or
        rows of a data set that hold one; see `camkit.images.inputs`.
    target: a class name or index, or several for every photograph; `None` is the predicted class.
    targets: one for each photograph, in their order. layout: see `maps`.
    workers: processes that read photographs ahead of the model, with limits on time and memory; a script
        that asks for them is imported by each, so it begins with `if __name__ == "__main__":`.
    more: of a model that does not say it itself, `classes`, `preprocess`, `output` and `scores`, see
        `load_model`; everything else are options of the backend.
    The first photograph that cannot be explained ends the stream with its error.
    """
    for name, value in {"backend": backend, "method": method, "layer": layer}.items():
        if isinstance(value, list | tuple) or (callable(value) and not isinstance(value, nn.Module)):
            raise UsageError(f"{name} is a single one here, not {value!r}: `camkit.maps` takes more")
    model, options = _loaded(model, more)
    if callable(target):
        raise UsageError("a target is a class here: a function of the scores goes to `camkit.maps`")
    if targets is not None and target is not None:
        raise UsageError("target is for all photographs, targets has one for each: give one of them")
    classes = [target] if isinstance(target, str | int) else list(target or ["pred"])
    work = plan(
        model,
        classes=classes,
        backends=[backend],
        methods=[method],
        layer=layer,
        layout=layout,
        options=options,
    )
    if len(work.layers) > 1:
        raise UsageError(f"layer {layer!r} means several layers ({', '.join(work.layers)}): name one")
    sources = inputs.several(images)
    if targets is not None:
        chosen: dict[int, int] = {}
        work = replace(work, targets=chosen)
        sources = _with_targets(sources, targets, model.classes, chosen)
    with processes(workers) as pool:
        ahead = partial(pool.read, ahead=2 * batch_size) if pool else read
        for result in stream(work, sources, batch_size=batch_size, read=ahead):
            if isinstance(result, Failure):
                raise result.error
            yield result


def _loaded(model: Any, more: dict[str, Any]) -> tuple[LoadedModel, dict[str, Any]]:
    """A model with what belongs to it, and the options that are left of `more`."""
    said = {name: more[name] for name in OF_MODEL if name in more}
    if not isinstance(model, LoadedModel) or said:
        model = load_model(model, **said)
        if model.note:
            warnings.warn(CamkitWarning(model.note), stacklevel=3)
    return model, {name: value for name, value in more.items() if name not in said}


def _with_targets(
    sources: Iterable[Any], targets: Iterable[str | int], classes: Sequence[str], chosen: dict[int, int]
) -> Iterator[Any]:
    """The sources; the class of each is in `chosen`, by its position, before it is explained."""
    ends = object()
    for position, (source, target) in enumerate(zip_longest(sources, targets, fillvalue=ends)):
        if source is ends or target is ends:
            raise UsageError(f"there are {'fewer' if target is ends else 'more'} targets than photographs")
        chosen[position] = class_index(str(target), classes)
        yield source


def stream(
    work: Plan,
    sources: Iterable[ImageSource],
    *,
    batch_size: int = 16,
    read: Callable[..., Iterator[tuple[int, Photo] | Failure]] = read,
    whole: bool = True,
    pixels: int | None = None,
) -> Iterator[Explanation | Failure]:
    """Every explanation of every photograph, batch by batch; failures take their place in the order.

    whole: keep the photographs, reduced to at most so many `pixels`; else only what the model sees of them.
    """
    if not 1 <= batch_size <= sys.maxsize:
        raise UsageError(f"batch size must be at least 1, and no more than there is, not {batch_size}")
    photos = read(sources, work.model.preprocess, whole=whole, pixels=pixels)
    while batch := list(islice(photos, batch_size)):
        yield from _explain_batch(work, batch)


def _explain_batch(
    work: Plan, batch: Sequence[tuple[int, Photo] | Failure]
) -> Iterator[Explanation | Failure]:
    photos = [item for item in batch if not isinstance(item, Failure)]
    results = _explain_photos(work, photos) if photos else iter(())
    for item in batch:
        if isinstance(item, Failure):
            yield item
        else:
            yield from next(results)


def _explain_photos(
    work: Plan, photos: Sequence[tuple[int, Photo]]
) -> Iterator[list[Explanation | Failure]]:
    """For each photograph the list of its results, from one batch."""
    model = work.model
    views = [overlay.seen(photo, model.preprocess) for _, photo in photos]
    batch = model.preprocess.batch(views, model.device).to(model.dtype)
    selector = work.selector
    if work.targets is not None:
        selector = Fixed(torch.tensor([[work.targets[position]] for position, _ in photos]))
    answers = {
        backend.name: run(
            *(backend.explainer, backend.name, model.module, batch),
            *(work.layers, backend.methods, selector),
            # Nobody changes the model while it is camkit's.
            call=Call(output=model.output, layout=work.layout, frozen=True),
        )
        for backend in work.backends
    }
    hint = cache(lambda layer: better_layer(model.module, layer, batch))
    for row, (position, photo) in enumerate(photos):
        yield [
            result
            for backend in work.backends
            for result in _results(work, backend, answers[backend.name], row, position, photo, hint)
        ]


def _results(
    work: Plan,
    backend: Backend,
    answer: Answer,
    row: int,
    position: int,
    photo: Photo,
    hint: Callable[[str], str],
) -> Iterator[Explanation | Failure]:
    """The results of one backend for one photograph, each with the scores of the forward it explains."""
    model = work.model
    predicted = _prediction(model, answer.scores.float().cpu(), row, photo)
    kind = predicted.fields["scores"]
    columns = {index: column for column, index in reversed(list(enumerate(answer.targets[row].tolist())))}
    for (method, layer), maps in answer.maps.items():
        for index, column in sorted(columns.items(), key=lambda item: item[1]):
            map = maps[row, column].float().cpu().clone()
            try:
                overlay.check_finite(map)
                # One NaN among the scores leaves no class a probability.
                if not math.isfinite(float(predicted.logits[index] + predicted.likely[index])):
                    raise MapError("the model's score is NaN or infinite (try --dtype float32)")
            except MapError as error:
                text = f"{photo.source}: {backend.name} {method}, class {model.classes[index]}: {error}"
                yield Failure(photo.source, MapError(text), position, photo.sha256, photo.name, photo.path)
                continue
            doubts = [
                remark.text
                for remark in answer.remarks
                if (remark.method, remark.layer) == (method, layer) and bool(remark.concerned[row, column])
            ]
            if overlay.is_flat(map) and not doubts:
                doubts = [f"the map is constant: it says nothing{hint(layer)}"]
            yield Explanation(
                map=map,
                backend=backend.name,
                method=method,
                layer=layer,
                layout=work.layout,
                class_index=index,
                class_name=model.classes[index],
                probability=None if kind == "none" else float(predicted.likely[index]),
                logit=float(predicted.logits[index]),
                photo=photo,
                model=model,
                options=vars(backend.explainer.options),
                position=position,
                warnings=(*photo.warnings, *predicted.warnings, *doubts),
                **predicted.fields,
            )


@dataclass(frozen=True)
class _Prediction:
    """What a model predicts for a photograph.

    logits: the score of each class; likely: what predictions are made by: probabilities, if there are any.
    fields: those of an `Explanation` that all of its results share. warnings: that it is a guess what the
    scores are.
    """

    logits: Tensor
    likely: Tensor
    fields: dict[str, Any]
    warnings: tuple[str, ...]


def _prediction(model: LoadedModel, scores: Tensor, row: int, photo: Photo) -> _Prediction:
    logits, names = scores[row], model.classes
    if len(names) != len(logits):
        raise ModelError(
            f"model {model.name!r} names {counted(len(names), 'class', 'classes')} but returns "
            f"{counted(len(logits), 'score')}"
        )
    kind, warnings = _meaning(model, scores, photo)
    probabilities = meanings.probabilities(scores, kind)
    likely = logits if probabilities is None else probabilities[row]
    exclusive = meanings.excludes(scores, kind)
    predicted = meanings.predictions(likely, exclusive=exclusive)
    top = likely.topk(min(5, len(logits)))
    fields = {
        "top": tuple((names[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)),
        "predicted": tuple(names[i] for i in predicted),
        "predicted_index": predicted[0] if predicted else None,
        "predicted_name": names[predicted[0]] if predicted else None,
        "scores": kind,
        "exclusive": exclusive,
    }
    return _Prediction(logits, likely, fields, warnings)


# Of modules whose scores alone do not tell what they are, found out once.
_SQUASHED: WeakKeyDictionary[nn.Module, bool | None] = WeakKeyDictionary()


def _squashed(model: LoadedModel, photo: Photo) -> bool | None:
    if model.module not in _SQUASHED:
        inputs = model.preprocess.batch([overlay.seen(photo, model.preprocess)], model.device)
        with as_it_was(model.module, model.device):
            _SQUASHED[model.module] = meanings.squashed(model.module, inputs.to(model.dtype))
    return _SQUASHED[model.module]


def _meaning(model: LoadedModel, scores: Tensor, photo: Photo) -> tuple[ScoreKind, tuple[str, ...]]:
    """What the scores of a batch are, and a warning where that is a guess."""
    kind = meanings.meaning(model.scores, scores, partial(_squashed, model, photo))
    if (model.scores, kind) == ("softmax", "sigmoid"):
        return kind, ("a softmax over one score is always 1, so the score was taken for that of a sigmoid",)
    ambiguous = model.scores == "auto" and kind != "probabilities" and meanings.within_unit(scores)
    if not ambiguous or _SQUASHED[model.module] is not None:
        return kind, ()
    return kind, (
        f"all scores lie between 0 and 1, and were taken for logits ({kind}); of a model that returns "
        "probabilities say so: --scores probabilities",
    )
