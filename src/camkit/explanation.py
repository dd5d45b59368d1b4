"""Photographs in, explanations out: one, many, or a stream with its failures."""

from __future__ import annotations

import base64
import html
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, get_args
from weakref import WeakKeyDictionary

from PIL import Image
from torch import Tensor, nn

from camkit import layers, plugins, reading, render
from camkit.api import Explainer, LoadedModel
from camkit.capture import as_it_was
from camkit.errors import (
    UNPRINTABLE,
    LayerError,
    MapError,
    ModelError,
    PluginError,
    UsageError,
    counted,
)
from camkit.files import write_whole
from camkit.host import Answer, Call, Layer, better_layer, layer_specs, resolve_layers, run
from camkit.images import Photo
from camkit.methods import unknown_method
from camkit.reading import Failure, ImageSource
from camkit.render import View
from camkit.scores import (
    THRESHOLD,
    ScoreKind,
    excludes,
    meaning,
    predictions,
    probabilities,
    squashed,
    told,
)
from camkit.style import Style
from camkit.targets import Chooser, class_chooser

# What is said of a picture that cannot say it itself: of the map of a class; of one that knows no class.
REMARKS: dict[render.Remark, tuple[str, str]] = {
    "constant": ("the map is constant, it says nothing",) * 2,
    "nothing for": (
        "nothing speaks for it, the picture is flat",
        "no value is positive, the picture is flat",
    ),
    "nothing against": (
        "nothing speaks against it, the picture is flat",
        "no value is negative, the picture is flat",
    ),
    "least against": (
        "nothing speaks for it, brightest is least against it",
        "no value is positive, brightest is least negative",
    ),
}


@dataclass(frozen=True)
class Explanation:
    """One map of one photograph for one class, with everything needed to draw it and to account for it.

    map: raw, float32 `[h, w]`, on the CPU.
    scores: what the model's scores were read as: `softmax`, `sigmoid`, `probabilities` or `none`;
        exclusive: whether one class excludes the others.
    probability: what that makes of the score; `None` for `none`. logit: the score itself.
    top: the most probable classes with their probabilities (or scores), most probable first.
    predicted: the names of the classes that are predicted: of classes that exclude each other the most
        probable one, else all above 0.5, the most probable first, which may be none.
    predicted_index, predicted_name: the first of them, or `None`.
    position: of the photograph among those that were asked for.
    layout: how the output of the layer was said to be read, if it was.
    """

    map: Tensor = field(repr=False)
    backend: str
    method: str
    layer: str
    class_index: int
    class_name: str
    probability: float | None
    logit: float
    top: tuple[tuple[str, float], ...]
    predicted_index: int | None
    predicted_name: str | None
    photo: Photo = field(repr=False)
    model: LoadedModel = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0
    layout: str | None = None
    warnings: tuple[str, ...] = ()
    predicted: tuple[str, ...] = ()
    scores: ScoreKind = "softmax"
    exclusive: bool = True

    @property
    def figure(self) -> str:
        """The probability for people, or the score of a model that has none."""
        return told(self.probability, self.logit)

    def verdict(self) -> str:
        """One line: what the model says to the photograph."""
        best = [(name, told(None if self.scores == "none" else p, p)) for name, p in self.top]
        if self.exclusive:
            return ", ".join(f"{name} {figure}" for name, figure in best[:3])
        if len(self.model.classes) == 1:
            return f"{' '.join(best[0])}: {'' if self.predicted else 'not '}above {THRESHOLD:.0%}"
        said = [f"{name} {figure}" for (name, figure), _ in zip(best, self.predicted, strict=False)]
        more = len(self.predicted) - len(said)
        if said:
            return f"above {THRESHOLD:.0%}: {', '.join(said)}{f' and {more} more' if more else ''}"
        return f"no class above {THRESHOLD:.0%}; highest: {' '.join(best[0])}"

    def overlay(
        self,
        *,
        view: View = "model",
        style: Style | None = None,
        scale: tuple[float, float] | None = None,
        **look: Any,
    ) -> Image.Image:
        """The photograph with the map over it.

        view: `model` shows what the model saw, after resize and crop; `original` the whole photograph.
        scale: values for the lowest and the highest colour; `None` takes them from this map.
        look: the fields of `Style`: relu, counterfactual, alpha, cmap.
        """
        style = style or Style(**look)
        if view not in get_args(View):
            raise UsageError(f"view must be model or original, not {view!r}")
        return render.draw(self.photo, self.map, self.model.preprocess, view, style, scale)

    def save(self, path: str | os.PathLike[str], **look: Any) -> None:
        """Write the overlay, whole or not at all; the suffix says the format."""
        path, picture, buffer = Path(path), self.overlay(**look), io.BytesIO()
        format = Image.registered_extensions().get(path.suffix.lower())
        if format not in Image.SAVE:
            raise UsageError(f"{path} has no suffix of a picture's format, such as .png")
        picture.save(buffer, format)
        write_whole(path, buffer.getvalue())

    def show(self, **look: Any) -> None:
        """Show the overlay: in a notebook below the cell, elsewhere in the system's viewer."""
        picture = self.overlay(**look)
        try:
            from IPython import get_ipython  # type: ignore[import-not-found,unused-ignore]
            from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

            in_notebook = get_ipython() is not None
        except ImportError:
            in_notebook = False
        if in_notebook:
            display(picture)  # type: ignore[no-untyped-call,unused-ignore]
        else:
            picture.show()

    def caption(self) -> str:
        """One line: what is shown, and what the picture cannot show by itself."""
        said = f"{self.class_name} {self.figure} · {self.backend} {self.method} at {self.layer}"
        return " · ".join([said, *self.remarks()])

    def remarks(self, style: Style | None = None) -> tuple[str, ...]:
        """What the picture cannot show by itself: that nothing speaks for the class, or against it."""
        return remarks(self.map, style or Style(), self.backend, self.method)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.overlay().save(buffer, "PNG")
        return buffer.getvalue()

    def _repr_html_(self) -> str:
        data = base64.b64encode(self._repr_png_()).decode()
        caption = html.escape(f"{self.photo.source}: {self.caption()}")
        return (
            f'<figure style="margin:0"><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )


def remarks(map: Tensor, style: Style, backend: str, method: str) -> tuple[str, ...]:
    """What has to be said of the picture of a map, in words of the method: one remark or none."""
    found = render.remark(map, style)
    if found is None:
        return ()
    try:
        knows_no_class = method in plugins.load(plugins.get("explainer", backend)).class_agnostic
    except PluginError:  # not installed here, where its maps are drawn anew; those words are true of any
        knows_no_class = True
    return (REMARKS[found][knows_no_class],)


@dataclass(frozen=True)
class Backend:
    """An explainer with its name, and those of the methods asked for that it has."""

    name: str
    explainer: Explainer
    methods: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What to compute for every photograph: checked against model and plugins before any work."""

    model: LoadedModel
    backends: tuple[Backend, ...]
    layers: tuple[str, ...]
    choose: Chooser
    layout: str | None = None


def plan(
    model: LoadedModel,
    *,
    classes: Sequence[str | int] = ("pred",),
    backends: Sequence[str] = ("native",),
    methods: Sequence[str] = ("gradcam",),
    layer: Layer | Sequence[Layer] = "auto",
    layout: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Resolve names; raises `UsageError`s and `PluginError`s for whatever does not exist.

    Every method and every option goes to those of the backends that have it; one must.
    """
    specs = layer_specs(layer)
    specs = [model.default_layer if spec == "auto" else spec for spec in specs]
    like = next(p for p in model.module.parameters() if p.is_floating_point())
    names = resolve_layers(model.module, specs, layers.example_inputs(model.preprocess.size, like))
    for name in filter(UNPRINTABLE.search, names):
        raise LayerError(f"layer {name!r} has a name that no manifest can hold: rename the module")
    chooser = class_chooser(classes, model.classes)
    return Plan(model, make_backends(backends, methods, options or {}), tuple(names), chooser, layout)


def make_backends(
    names: Sequence[str], methods: Sequence[str], options: Mapping[str, Any]
) -> tuple[Backend, ...]:
    """The explainers `names`, each with what it has of `methods` and `options`."""
    classes = {name: plugins.load(plugins.get("explainer", name)) for name in dict.fromkeys(names)}
    owner = " and ".join(classes)
    shared = plugins.share_options({n: c.Options for n, c in classes.items()}, options)
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


def explain(
    model: LoadedModel,
    image: ImageSource,
    *,
    target: str | int | None = None,
    backend: str = "native",
    method: str = "gradcam",
    layer: Layer = "auto",
    layout: str | None = None,
    **options: Any,
) -> Explanation:
    """Explain one photograph for one class.

    image: a file or a Pillow image. target: a class name or index; `None` is the predicted class.
    For several methods, layers or classes at once, and for functions as targets, there is `maps`.
    layout: see `maps`. Raises `ImageError`, `MapError` and what `maps` raises.
    """
    results = explain_many(
        model,
        [image],
        target=target,
        backend=backend,
        method=method,
        layer=layer,
        layout=layout,
        **options,
    )
    return next(results)


def explain_many(
    model: LoadedModel,
    images: Iterable[ImageSource],
    *,
    target: str | int | None = None,
    backend: str = "native",
    method: str = "gradcam",
    layer: Layer = "auto",
    layout: str | None = None,
    batch_size: int = 16,
    workers: int = 0,
    **options: Any,
) -> Iterator[Explanation]:
    """A stream of explanations, in the order of `images`; no more than a few batches are in memory.

    workers: processes that read photographs ahead of the model, with limits on time and memory; a script
        that asks for them is imported by each, so it begins with `if __name__ == "__main__":`.
    The first photograph that cannot be explained ends the stream with its error.
    """
    for name, value in {"target": target, "backend": backend, "method": method, "layer": layer}.items():
        if isinstance(value, list | tuple) or (callable(value) and not isinstance(value, nn.Module)):
            raise UsageError(f"{name} is a single one here, not {value!r}: `camkit.maps` takes more")
    spec = "pred" if target is None else target
    work = plan(
        model,
        classes=[spec],
        backends=[backend],
        methods=[method],
        layer=layer,
        layout=layout,
        options=options,
    )
    if len(work.layers) > 1:
        raise UsageError(f"layer {layer!r} means several layers ({', '.join(work.layers)}): name one")
    with reading.processes(workers) as pool:
        read = partial(pool.read, ahead=2 * batch_size) if pool else reading.read
        for result in stream(work, images, batch_size=batch_size, read=read):
            if isinstance(result, Failure):
                raise result.error
            yield result


def stream(
    work: Plan,
    sources: Iterable[ImageSource],
    *,
    batch_size: int = 16,
    read: Callable[..., Iterator[tuple[int, Photo] | Failure]] = reading.read,
    whole: bool = True,
    pixels: int | None = None,
) -> Iterator[Explanation | Failure]:
    """Every explanation of every photograph, batch by batch; failures take their place in the order.

    whole: keep the photographs, reduced to at most so many `pixels`; else only what the model sees of them.
    """
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, not {batch_size}")
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
    views = [render.seen(photo, model.preprocess) for _, photo in photos]
    inputs = model.preprocess.batch(views, model.device).to(model.dtype)
    answers = {
        backend.name: run(
            *(
                backend.explainer,
                backend.name,
                model.module,
                inputs,
                work.layers,
                backend.methods,
                work.choose,
            ),
            call=Call(layout=work.layout, frozen=True),  # nobody changes the model while it is camkit's
        )
        for backend in work.backends
    }
    hint = cache(lambda layer: better_layer(model.module, layer, inputs))
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
    model, scores = work.model, answer.scores.float().cpu()
    logits = scores[row]
    if len(model.classes) != len(logits):
        raise ModelError(
            f"model {model.name!r} names {counted(len(model.classes), 'class', 'classes')} but returns "
            f"{counted(len(logits), 'score')}"
        )
    kind, doubt = _meaning(model, scores, photo)
    every = probabilities(scores, kind)
    likely = logits if every is None else every[row]
    exclusive = excludes(scores, kind)
    predicted = predictions(likely, exclusive=exclusive)
    top = likely.topk(min(5, len(logits)))
    best = [(model.classes[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    columns = {index: column for column, index in reversed(list(enumerate(answer.targets[row].tolist())))}
    for (method, layer), maps in answer.maps.items():
        for index, column in sorted(columns.items(), key=lambda item: item[1]):
            map = maps[row, column].float().cpu().clone()
            try:
                render.check_finite(map)
                # One NaN among the scores leaves no class a probability.
                if not math.isfinite(float(logits[index] + likely[index])):
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
            if render.is_flat(map) and not doubts:
                doubts = [f"the map is constant: it says nothing{hint(layer)}"]
            yield Explanation(
                map=map,
                backend=backend.name,
                method=method,
                layer=layer,
                layout=work.layout,
                class_index=index,
                class_name=model.classes[index],
                probability=None if every is None else float(likely[index]),
                logit=float(logits[index]),
                top=tuple(best),
                predicted_index=predicted[0] if predicted else None,
                predicted_name=model.classes[predicted[0]] if predicted else None,
                photo=photo,
                model=model,
                options=vars(backend.explainer.options),
                position=position,
                warnings=(*photo.warnings, *doubt, *doubts),
                predicted=tuple(model.classes[i] for i in predicted),
                scores=kind,
                exclusive=exclusive,
            )


# Of modules whose scores alone do not tell what they are, found out once.
_SQUASHED: WeakKeyDictionary[nn.Module, bool | None] = WeakKeyDictionary()


def _meaning(model: LoadedModel, scores: Tensor, photo: Photo) -> tuple[ScoreKind, tuple[str, ...]]:
    """What the scores of a batch are, and a warning where that is a guess."""
    module, asked = model.module, False

    def ask() -> bool | None:
        nonlocal asked
        asked = True
        if module not in _SQUASHED:
            inputs = model.preprocess.batch([render.seen(photo, model.preprocess)], model.device)
            with as_it_was(module, model.device):
                _SQUASHED[module] = squashed(module, inputs.to(model.dtype))
        return _SQUASHED[module]

    kind = meaning(model.scores, scores, ask)
    if (model.scores, kind) == ("softmax", "sigmoid"):
        return kind, ("a softmax over one score is always 1, so the score was taken for that of a sigmoid",)
    if not asked or kind == "probabilities" or _SQUASHED[module] is not None:
        return kind, ()
    return kind, (
        f"all scores lie between 0 and 1, and were taken for logits ({kind}); of a model that returns "
        "probabilities say so: --scores probabilities",
    )
