"""Photographs in, explanations out, batch by batch."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain, islice

import torch
from torch import Tensor

from camkit.core import devices
from camkit.core.call_types import Answer
from camkit.core.layer_lookup import better_layer
from camkit.core.run_explainer import run
from camkit.drawing import evidence, overlay
from camkit.errors import MapError, ModelError, UsageError, warn
from camkit.explaining import detection, segmentation
from camkit.explaining.explanation import Explanation
from camkit.explaining.plan import Backend, Plan
from camkit.explaining.questions import Found, Question, Told, questions
from camkit.images.decoding import Photo
from camkit.images.workers import Failure, ImageSource, read
from camkit.models.weights import broken

Results = Iterator[Explanation | Failure]


def stream(
    work: Plan,
    sources: Iterable[ImageSource],
    *,
    batch_size: int = 16,
    read: Callable[..., Iterator[tuple[int, Photo] | Failure]] = read,
    whole: bool = True,
    side: int | None = None,
    rows: int | None = None,
    ahead: Callable[[Iterator[Results]], Iterator[Results]] = iter,
) -> Generator[Explanation | Failure]:
    """Every explanation of every photograph, batch by batch; failures take their place in the order.

    whole: keep photographs, reduced to a longest `side` of so many pixels; else only what the model sees.
    rows: of the batches of fast mode, all of which have as many, since another number would be compiled
    anew; by default as many as the first batch was asked for.
    ahead: takes the parts one by one, each of which the model has been through when it is handed out; with
    one that computes in a thread the model works on the next while the results of the last are taken.
    """
    if not 1 <= batch_size <= sys.maxsize:
        raise UsageError(f"batch size must be at least 1, and no more than there is, not {batch_size}")
    photos = read(sources, work.model.preprocess, whole=whole, side=side)
    memory = _Memory(work, rows or 0)
    for results in ahead(_parts(memory, photos, batch_size)):
        yield from results


def _parts(
    memory: _Memory, photos: Iterator[tuple[int, Photo] | Failure], batch_size: int
) -> Iterator[Results]:
    """The results of photographs that the model has been through together, in their order."""
    while batch := list(islice(photos, batch_size)):
        memory.rows = memory.rows or len(batch)
        items = iter(batch)
        for count, results in memory.explain([item for item in batch if not isinstance(item, Failure)]):
            part: list[tuple[int, Photo] | Failure] = []
            while count:
                part.append(next(items))
                count -= not isinstance(part[-1], Failure)
            yield _in_order(part, results)
        yield _in_order(list(items), iter(()))  # failures behind the last photograph


def _in_order(
    items: Sequence[tuple[int, Photo] | Failure], results: Iterator[list[Explanation | Failure]]
) -> Results:
    """The results of photographs, and failures in their places."""
    for item in items:
        if isinstance(item, Failure):
            yield item
        else:
            yield from next(results)


class _Memory:
    """Explains as many photographs at once as there is memory for: half of them where it runs out."""

    def __init__(self, work: Plan, rows: int) -> None:
        self._work = work
        self.rows = rows  # of a part, at most; 0: as many as the first batch has

    def explain(
        self, photos: Sequence[tuple[int, Photo]]
    ) -> Iterator[tuple[int, Iterator[list[Explanation | Failure]]]]:
        """Parts: how many photographs each has, and for each of these the list of its results.

        The model has been through a part when it is handed out. `ModelError` if there is no room for one
        photograph.
        """
        tried, device = 0, self._work.model.device
        while part := photos[: self.rows]:
            results = _explain_photos(self._work, part, self.rows)
            try:
                first = next(results)
            except Exception as error:
                if not devices.is_out_of_memory(error):
                    raise
                if len(part) == 1:
                    raise ModelError(f"out of memory on {device}: a smaller size may fit") from error
                tried, self.rows = tried or len(part), len(part) // 2
            else:
                if tried:
                    much = f"out of memory on {device} with {tried} photographs at once"
                    warn(f"{much}: {self.rows} at once from here on")
                yield len(part), chain([first], results)
                tried, photos = 0, photos[len(part) :]
                continue
            gc.collect()  # the error held what was computed
            devices.give_memory_back()


def _explain_photos(
    work: Plan, photos: Sequence[tuple[int, Photo]], rows: int
) -> Iterator[list[Explanation | Failure]]:
    """For each photograph the list of its results, from one batch.

    rows: of the batch in fast mode; the last photograph fills it up.
    """
    model = work.model
    views = [overlay.seen(photo, model.preprocess) for _, photo in photos]
    batch = model.preprocess.batch(views, model.device).to(model.dtype)
    if work.boxes is None:
        yield from _explain_batch(work, photos, batch, rows)
        return
    look = segmentation.find if model.segments is not None else detection.find
    found: Sequence[Found] = look(model, work.boxes, batch, [photo for _, photo in photos])
    those = [row for row, one in enumerate(found) if one.told]
    answers: Iterator[list[Explanation | Failure]] = iter(())
    if those:
        boxes = [found[row] for row in those]
        answers = iter(
            list(_explain_batch(work, [photos[row] for row in those], batch[those], rows, boxes))
        )
    for one, (position, photo) in zip(found, photos, strict=True):
        results = next(answers) if one.told else list[Explanation | Failure]()
        if one.missing is not None:
            error = MapError(f"{photo.source}: {one.missing}")
            results = [*results, _failure(photo, position, error)]
        yield results


def _failure(photo: Photo, position: int, error: MapError) -> Failure:
    return Failure(photo.source, error, position, photo.sha256, photo.name, photo.path)


def _explain_batch(
    work: Plan,
    photos: Sequence[tuple[int, Photo]],
    batch: Tensor,
    rows: int,
    found: Sequence[Found] | None = None,
) -> Iterator[list[Explanation | Failure]]:
    """For each photograph the list of its results; found: boxes or segments."""
    missing = max(0, rows - len(photos)) if any(map(_is_fast, work.backends)) else 0
    batch = torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])]) if missing else batch
    asked = questions(work, batch, [position for position, _ in photos], found)
    answers = [
        (backend, question, _on_host(_answer(work, backend, question, batch)))
        for backend in work.backends
        for question in asked
    ]
    told = [question.told(answer) for _, question, answer in answers]
    states = [_states(answer) for _, _, answer in answers]
    hint = cache(
        lambda layer, number: better_layer(work.model.module, layer, batch, call=asked[number].call)
    )
    for row, (position, photo) in enumerate(photos):
        yield [
            result
            for number, (backend, _, answer) in enumerate(answers)
            for result in _results(
                *(work, backend, answer, states[number], row, told[number][row]),
                *(position, photo, partial(hint, number=number % len(asked))),
            )
        ]


def _answer(work: Plan, backend: Backend, question: Question, batch: Tensor) -> Answer:
    return run(
        *(backend.explainer, backend.name, work.model.module, batch),
        *(work.layers, backend.methods, question.selector),
        call=question.call,
    )


def _is_fast(backend: Backend) -> bool:
    """Whether a backend compiles for the number of photographs that it is given."""
    return bool(getattr(backend.explainer.options, "fast", False))


def _on_host(answer: Answer) -> Answer:
    """An answer on the CPU, in float32: all photographs of a batch come down at once."""
    maps = {key: maps.float().cpu() for key, maps in answer.maps.items()}
    return replace(answer, maps=maps, scores=answer.scores.float().cpu(), targets=answer.targets.cpu())


States = dict[tuple[str, str], list[list[tuple[bool, bool]]]]


def _states(answer: Answer) -> States:
    """Of each method and layer, for each photograph and class: is the map finite, and is it constant?"""
    states: States = {}
    for key, maps in answer.maps.items():
        values = maps.flatten(2)
        finite, flat = values.isfinite().all(2).tolist(), (values.amax(2) == values.amin(2)).tolist()
        states[key] = [list(zip(*row, strict=True)) for row in zip(finite, flat, strict=True)]
    return states


def _results(
    work: Plan,
    backend: Backend,
    answer: Answer,
    states: States,
    row: int,
    told: Told,
    position: int,
    photo: Photo,
    hint: Callable[[str], str],
) -> Iterator[Explanation | Failure]:
    """The results of one backend for one photograph, each with the scores of the forward it explains."""
    model = work.model
    for (method, layer), maps in answer.maps.items():
        layerless = method in backend.explainer.layerless
        if layerless and layer != work.layers[0]:
            continue  # it is the same map
        for subject in told.subjects:
            map = maps[row, subject.column].clone()
            finite, flat = states[method, layer][row][subject.column]
            try:
                if not finite:
                    evidence.check_finite(map)
                # One NaN among the scores leaves no class a probability.
                if not math.isfinite(subject.score + subject.likely):
                    raise MapError("the model's score is NaN or infinite (try --dtype float32)")
            except MapError as error:
                what = f"{backend.name} {method}, {subject.kind} {subject.name}"
                text = f"{photo.source}: {what}: {_cause(error, model.module)}"
                yield _failure(photo, position, MapError(text))
                continue
            doubts = (
                [told.nothing] if told.nothing else _remarks(answer, method, layer, row, subject.column)
            )
            if flat and not doubts:
                better = "" if layerless else hint(layer)
                doubts = [f"the map is constant: it says nothing{better}"]
            yield Explanation(
                map=map,
                backend=backend.name,
                method=method,
                layer="" if layerless else layer,
                layout=work.layout,
                precision=answer.precision,
                class_index=subject.index,
                class_name=subject.name,
                probability=subject.probability,
                logit=subject.score,
                box=subject.box,
                like_sha256=subject.like_sha256,
                photo=photo,
                model=model,
                options=vars(backend.explainer.options),
                position=position,
                warnings=(*photo.warnings, *told.warnings, *doubts),
                **told.fields,
            )


def _remarks(answer: Answer, method: str, layer: str, row: int, column: int) -> list[str]:
    """What the explainer says of one map."""
    return [
        remark.text
        for remark in answer.remarks
        if (remark.method, remark.layer) == (method, layer) and bool(remark.concerned[row, column])
    ]


def _cause(error: MapError, module: torch.nn.Module) -> str:
    """Why a map is not finite: weights that are not, if there are such, as the map only shows that."""
    weights = broken(module)
    return f"the model's weights are NaN or infinite: {weights}" if weights else str(error)
