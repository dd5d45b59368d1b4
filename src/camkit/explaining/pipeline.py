"""Photographs in, explanations out, batch by batch."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from camkit.contracts import scores as meanings
from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind
from camkit.core.call_types import Answer, Call
from camkit.core.hooks import as_it_was
from camkit.core.layer_lookup import better_layer
from camkit.core.run_explainer import run
from camkit.core.scored import classifier
from camkit.core.targets import Fixed, Selector, every
from camkit.drawing import evidence, overlay
from camkit.errors import MapError, ModelError, UsageError, counted
from camkit.explaining.explanation import Explanation
from camkit.explaining.plan import Backend, Plan
from camkit.images.decoding import Photo
from camkit.images.workers import Failure, ImageSource, read


def stream(
    work: Plan,
    sources: Iterable[ImageSource],
    *,
    batch_size: int = 16,
    read: Callable[..., Iterator[tuple[int, Photo] | Failure]] = read,
    whole: bool = True,
    side: int | None = None,
) -> Iterator[Explanation | Failure]:
    """Every explanation of every photograph, batch by batch; failures take their place in the order.

    whole: keep photographs, reduced to a longest `side` of so many pixels; else only what the model sees.
    """
    if not 1 <= batch_size <= sys.maxsize:
        raise UsageError(f"batch size must be at least 1, and no more than there is, not {batch_size}")
    photos = read(sources, work.model.preprocess, whole=whole, side=side)
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
    # Nobody changes the model while it is camkit's.
    usual = Call(output=model.output, layout=work.layout, frozen=True)
    asked: dict[str, tuple[Selector, Call]] = {
        name: (every, replace(usual, score=score)) for name, score in work.functions.items()
    } or {"": (selector, usual)}
    answers = {
        (backend.name, name): run(
            *(backend.explainer, backend.name, model.module, batch),
            *(work.layers, backend.methods, select),
            call=call,
        )
        for backend in work.backends
        for name, (select, call) in asked.items()
    }
    hint = cache(lambda layer, name: better_layer(model.module, layer, batch, call=asked[name][1]))
    for row, (position, photo) in enumerate(photos):
        yield [
            result
            for backend in work.backends
            for name in asked
            for result in _results(
                work, backend, answers[backend.name, name], row, position, photo, hint, name
            )
        ]


def _results(
    work: Plan,
    backend: Backend,
    answer: Answer,
    row: int,
    position: int,
    photo: Photo,
    hint: Callable[[str, str], str],
    function: str = "",
) -> Iterator[Explanation | Failure]:
    """The results of one backend for one photograph, each with the scores of the forward it explains.

    function: what a target is called that is no class; then the scores are its values.
    """
    model, scores = work.model, answer.scores.float().cpu()
    if function:
        predicted = _Prediction(scores[row], scores[row], {"scores": "none", "exclusive": False}, ())
    else:
        predicted = _prediction(model, scores, row, photo)
    kind = predicted.fields["scores"]
    columns = {index: column for column, index in reversed(list(enumerate(answer.targets[row].tolist())))}
    for (method, layer), maps in answer.maps.items():
        for index, column in sorted(columns.items(), key=lambda item: item[1]):
            map, name = maps[row, column].float().cpu().clone(), function or model.classes[index]
            try:
                evidence.check_finite(map)
                # One NaN among the scores leaves no class a probability.
                if not math.isfinite(float(predicted.logits[index] + predicted.likely[index])):
                    raise MapError("the model's score is NaN or infinite (try --dtype float32)")
            except MapError as error:
                what = f"{'target' if function else 'class'} {name}"
                text = f"{photo.source}: {backend.name} {method}, {what}: {error}"
                yield Failure(photo.source, MapError(text), position, photo.sha256, photo.name, photo.path)
                continue
            doubts = [
                remark.text
                for remark in answer.remarks
                if (remark.method, remark.layer) == (method, layer) and bool(remark.concerned[row, column])
            ]
            if evidence.is_flat(map) and not doubts:
                doubts = [f"the map is constant: it says nothing{hint(layer, function)}"]
            yield Explanation(
                map=map,
                backend=backend.name,
                method=method,
                layer=layer,
                layout=work.layout,
                class_index=None if function else index,
                class_name=name,
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
            _SQUASHED[model.module] = meanings.squashed(classifier(model), inputs.to(model.dtype))
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
