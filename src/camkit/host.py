"""The host: turns what users write into queries, runs explainers, and returns maps and explanations."""

from __future__ import annotations

import base64
import copy
import html
import io
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from camkit import capture, images, layers, models, plugins, render
from camkit.api import Explainer, LoadedModel, Sweep
from camkit.errors import ImageError, MapError, ModelError, TargetError, UsageError, closest
from camkit.images import Photo
from camkit.render import Style

Targets = int | Sequence[int] | Tensor | None
Layer = str | nn.Module
ImageSource = str | os.PathLike[str] | Image.Image
View = Literal["model", "original"]
Chooser = Callable[[Tensor], Tensor]

# --- maps of tensors ------------------------------------------------------------------------------


@overload
def maps(
    module: nn.Module,
    inputs: Tensor,
    targets: Targets = None,
    *,
    layer: Layer = "auto",
    backend: str = "native",
    method: str = "gradcam",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor: ...
@overload
def maps(
    module: nn.Module,
    inputs: Tensor,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]: ...
def maps(
    module: nn.Module,
    inputs: Tensor,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]:
    """Raw attribution maps `[B, h, w]` of a batch.

    module: any classifier from `[B, C, H, W]` to scores `[B, n_classes]`; unchanged afterwards.
    targets: a class index for all inputs, one for each, or `None` for the predicted class.
    layer: a dotted name, a module of the model, or `auto`. A list of layers or of methods gives a dict
        keyed by `(method, dotted name of the layer)`.
    device, dtype: run on a moved or cast copy of the model instead.
    options: those of the backend (`camkit plugin show BACKEND`).

    Maps are at least float32 and on the device of the inputs. NaN in a map stays NaN.
    Raises `LayerError`, `TargetError`, `OptionError`, `PluginError`, `ModelError`.
    """
    chooser = _given(targets, len(inputs) if isinstance(inputs, Tensor) else 0)
    result = _sweep(module, inputs, chooser, layer, backend, method, device, dtype, options)
    return _shaped({key: m[:, 0] for key, m in result.items()}, layer, method)


def class_maps(
    module: nn.Module,
    inputs: Tensor,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]:
    """Raw maps of every class, `[B, n_classes, h, w]`; arguments as for `maps`."""
    result = _sweep(module, inputs, _every, layer, backend, method, device, dtype, options)
    return _shaped(result, layer, method)


def _sweep(
    module: nn.Module,
    inputs: Tensor,
    choose: Chooser,
    layer: Layer | Sequence[Layer],
    backend: str,
    method: str | Sequence[str],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    options: Mapping[str, Any],
) -> dict[tuple[str, str], Tensor]:
    explainer: Explainer = plugins.make("explainer", backend, options)
    module = _unwrapped(module)
    home = inputs.device if isinstance(inputs, Tensor) else None
    _check_inputs(inputs)
    specs = [layer] if isinstance(layer, str | nn.Module) else list(layer)
    with capture.as_it_was(module, inputs.device):
        names = layers.resolve(module, specs, inputs[:1])
    if device is not None or dtype is not None:
        module, inputs = _converted(module, inputs, device, dtype)
    methods = [method] if isinstance(method, str) else list(method)
    result = run(explainer, backend, module, inputs, names, methods, choose)
    return {key: value.to(home) for key, value in result.items()}


def run(
    explainer: Explainer,
    backend: str,
    module: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    methods: Sequence[str],
    choose: Chooser,
) -> dict[tuple[str, str], Tensor]:
    """Let `explainer` answer, with everything around it as every explainer may expect it."""
    for method in methods:
        if method not in explainer.methods:
            hint = closest(method, explainer.methods)
            known = ", ".join(explainer.methods)
            raise UsageError(f"{backend} has no method {method!r}{hint} (methods: {known})")
    kind = str(inputs.dtype).removeprefix("torch.")
    if kind not in explainer.dtypes:
        raise UsageError(f"{backend} works in {', '.join(explainer.dtypes)}, not in {kind}")
    # What the caller recorded stays recorded: nothing here is part of a graph of theirs.
    inputs = capture.usable(inputs.detach())
    sweep = Sweep(module, inputs, tuple(names), tuple(methods), _checked(choose, len(inputs)))
    with capture.as_it_was(module, inputs.device):
        return {key: value.detach() for key, value in explainer.many(sweep).items()}


def _shaped(
    result: dict[tuple[str, str], Tensor], layer: Any, method: Any
) -> Tensor | dict[tuple[str, str], Tensor]:
    if not (isinstance(layer, str | nn.Module) and isinstance(method, str)):
        return result
    if len(result) > 1:
        names = ", ".join(name for _, name in result)
        raise UsageError(f"layer {layer!r} means several layers ({names}): pass a list of them")
    return next(iter(result.values()))


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, on which hooks fire."""
    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module, not {type(module).__name__}")
    return module


def _check_inputs(inputs: Tensor) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        kind = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UsageError(f"inputs must be a floating-point tensor [B, C, H, W], not {kind}")
    if inputs.ndim != 4 or 0 in inputs.shape:
        hint = ": add the batch dimension with inputs[None]" if inputs.ndim == 3 else ""
        raise UsageError(f"inputs must be [B, C, H, W], not {list(inputs.shape)}{hint}")


def _converted(
    module: nn.Module,
    inputs: Tensor,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
) -> tuple[nn.Module, Tensor]:
    """A moved and cast copy; convert once yourself when calling often."""
    where = inputs.device if device is None else models.pick_device(device)
    kind = inputs.dtype if dtype is None else models.pick_dtype(dtype)
    return copy.deepcopy(module).to(where, kind), inputs.to(where, kind)


# --- which classes --------------------------------------------------------------------------------


def _given(targets: Targets, batch: int) -> Chooser:
    """The chooser of fixed targets; `TargetError` for a wrong kind or length."""
    if targets is None:
        return _predicted
    wanted = "targets must be an int, a list of ints or an int64 tensor [B]"
    if isinstance(targets, bool | float | str):
        raise TargetError(f"{wanted}, not {targets!r}")
    try:
        tensor = targets if isinstance(targets, Tensor) else torch.as_tensor(np.asarray(targets))
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"{wanted}, not {targets!r}") from None
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TargetError(f"{wanted}, not of type {tensor.dtype}")
    if tensor.ndim == 0:
        tensor = tensor.expand(batch)
    if tensor.shape != (batch,):
        raise TargetError(f"{list(tensor.shape)} targets for {batch} inputs: give one for each")
    return lambda scores: tensor[:, None]


def _predicted(scores: Tensor) -> Tensor:
    return scores.argmax(1, keepdim=True)


def _every(scores: Tensor) -> Tensor:
    return torch.arange(scores.shape[1]).expand(len(scores), -1)


def _checked(choose: Chooser, batch: int) -> Chooser:
    """`choose` behind the checks that every explainer relies on."""

    def checked(scores: Tensor) -> Tensor:
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != batch:
            got = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise ModelError(f"the model returns {got}; a classifier returns scores [B, n_classes]")
        targets = choose(scores).to(scores.device, torch.int64)
        bad = targets[(targets < 0) | (targets >= scores.shape[1])]
        if len(bad):
            raise TargetError(
                f"there is no class {int(bad[0])}: the model has {scores.shape[1]} classes, "
                f"0 to {scores.shape[1] - 1}"
            )
        return targets

    return checked


def class_chooser(specs: Sequence[str | int], classes: Sequence[str]) -> Chooser:
    """From `pred`, `top:K`, `all`, names and indices to a chooser of the classes they mean."""
    choosers = [_one_spec(spec, classes) for spec in specs]
    return lambda scores: torch.cat([c(scores).to(scores.device) for c in choosers], dim=1)


def _one_spec(spec: str | int, classes: Sequence[str]) -> Chooser:
    text = str(spec)
    if text == "pred":
        return _predicted
    if text == "all":
        return _every
    if text.startswith("top:"):
        if not re.fullmatch(r"[1-9]\d*", text[4:]):
            raise TargetError(f"class {text!r}: K in top:K is a positive number")
        count = int(text[4:])
        return lambda scores: scores.topk(min(count, scores.shape[1]), dim=1).indices
    index = class_index(text, classes)
    return lambda scores: torch.full((len(scores), 1), index)


def class_index(name: str, classes: Sequence[str]) -> int:
    """The index of a class by its name, in any spelling of case, spaces and underscores, or by number.

    Raises `TargetError` for an unknown name, with the closest, and for a name that several classes bear.
    """
    for spelled in (str, _folded):
        hits = [i for i, candidate in enumerate(classes) if spelled(candidate) == spelled(name)]
        if len(hits) > 1:
            indices = " or ".join(map(str, hits))
            raise TargetError(f"several classes are called {name!r}: use the index {indices}")
        if hits:
            return hits[0]
    if re.fullmatch(r"\d+", name):
        if int(name) < len(classes):
            return int(name)
        raise TargetError(f"there is no class {name}: the model has 0 to {len(classes) - 1}")
    hint = closest(name.replace("_", " "), [c.replace("_", " ") for c in classes])
    raise TargetError(f"the model has no class {name!r}{hint} ({len(classes)} classes)")


def _folded(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


# --- explanations of photographs ------------------------------------------------------------------


@dataclass(frozen=True)
class Explanation:
    """One map of one photograph for one class, with everything needed to draw it and to account for it.

    map: raw, float32 `[h, w]`, on the CPU.
    probability: softmax of the model's scores; logit: the score itself.
    top: the most probable classes with their probabilities, most probable first.
    position: of the photograph among those that were asked for.
    """

    map: Tensor = field(repr=False)
    backend: str
    method: str
    layer: str
    class_index: int
    class_name: str
    probability: float
    logit: float
    top: tuple[tuple[str, float], ...]
    predicted_index: int
    predicted_name: str
    photo: Photo = field(repr=False)
    model: LoadedModel = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)
    position: int = 0
    warnings: tuple[str, ...] = ()

    def overlay(self, *, view: View = "model", style: Style | None = None, **look: Any) -> Image.Image:
        """The photograph with the map over it.

        view: `model` shows what the model saw, after resize and crop; `original` the whole photograph.
        look: the fields of `Style`: relu, counterfactual, alpha, cmap.
        """
        style = style or Style(**look)
        preprocess, photo = self.model.preprocess, self.photo.image
        if view == "original":
            return render.overlay(photo, self.map, style, preprocess.box(*photo.size))
        return render.overlay(preprocess.view(photo), self.map, style)

    def save(self, path: str | os.PathLike[str], **look: Any) -> None:
        """Write the overlay; the suffix says the format."""
        self.overlay(**look).save(path)

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
            display(picture)
        else:
            picture.show()

    def caption(self) -> str:
        """One line: what is shown."""
        return f"{self.class_name} {self.probability:.1%} · {self.backend} {self.method} at {self.layer}"

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


@dataclass(frozen=True)
class Failure:
    """A photograph, or one map of it, that could not be explained; the others are not affected."""

    source: str
    error: ImageError | MapError
    position: int
    sha256: str | None = None


@dataclass(frozen=True)
class Plan:
    """What to compute for every photograph: checked against model and plugins before any work."""

    model: LoadedModel
    explainers: tuple[tuple[str, Explainer], ...]
    methods: tuple[str, ...]
    layers: tuple[str, ...]
    choose: Chooser


def plan(
    model: LoadedModel,
    *,
    classes: Sequence[str | int] = ("pred",),
    backends: Sequence[str] = ("native",),
    methods: Sequence[str] = ("gradcam",),
    layer: Layer | Sequence[Layer] = "auto",
    options: Mapping[str, Any] | None = None,
) -> Plan:
    """Resolve names; raises `UsageError`s and `PluginError`s for whatever does not exist."""
    explainers = tuple((b, plugins.make("explainer", b, options)) for b in dict.fromkeys(backends))
    specs = [layer] if isinstance(layer, str | nn.Module) else list(layer)
    specs = [model.default_layer if spec == "auto" else spec for spec in specs]
    like = next(p for p in model.module.parameters() if p.is_floating_point())
    example = layers.example_inputs(model.preprocess.size, like)
    with capture.as_it_was(model.module, like.device):
        names = layers.resolve(model.module, specs, example)
    chooser = class_chooser(classes, model.classes)
    return Plan(model, explainers, tuple(dict.fromkeys(methods)), tuple(names), chooser)


def explain(
    model: LoadedModel,
    image: ImageSource,
    *,
    target: str | int | None = None,
    backend: str = "native",
    method: str = "gradcam",
    layer: Layer = "auto",
    **options: Any,
) -> Explanation:
    """Explain one photograph for one class.

    image: a file or a Pillow image. target: a class name or index; `None` is the predicted class.
    Raises `ImageError`, `MapError` and what `maps` raises.
    """
    results = explain_many(
        model,
        [image],
        target=target,
        backend=backend,
        method=method,
        layer=layer,
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
    batch_size: int = 16,
    **options: Any,
) -> Iterator[Explanation]:
    """A stream of explanations, in the order of `images`; no more than a batch is in memory.

    The first photograph that cannot be explained ends the stream with its error.
    """
    spec = "pred" if target is None else target
    work = plan(
        model,
        classes=[spec],
        backends=[backend],
        methods=[method],
        layer=layer,
        options=options,
    )
    for result in stream(work, images, batch_size=batch_size):
        if isinstance(result, Failure):
            raise result.error
        yield result


def stream(
    work: Plan, sources: Iterable[ImageSource], *, batch_size: int = 16
) -> Iterator[Explanation | Failure]:
    """Every explanation of every photograph, batch by batch; failures take their place in the order."""
    if batch_size < 1:
        raise UsageError(f"batch size must be at least 1, not {batch_size}")
    batch: list[tuple[int, Photo] | Failure] = []
    for position, source in enumerate(sources):
        try:
            batch.append((position, images.load(source)))
        except ImageError as error:
            name = "image" if isinstance(source, Image.Image) else images.display(source)
            batch.append(Failure(name, error, position))
        if len(batch) == batch_size:
            yield from _explain_batch(work, batch)
            batch = []
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
    tensors = [model.preprocess(photo.image) for _, photo in photos]
    inputs = torch.stack(tensors).to(model.device, model.dtype)
    seen: list[Tensor] = []

    def choose(scores: Tensor) -> Tensor:  # the scores of the very forward that is explained
        chosen = work.choose(scores)
        seen[:] = [scores.detach().float().cpu(), chosen.cpu()]
        return chosen

    answers: dict[tuple[str, str, str], Tensor] = {}
    for backend, explainer in work.explainers:
        found = run(explainer, backend, model.module, inputs, work.layers, work.methods, choose)
        answers |= {(backend, *key): value.float().cpu() for key, value in found.items()}
    scores, chosen = seen
    for row, (position, photo) in enumerate(photos):
        yield list(_results(work, answers, scores, chosen, row, position, photo))


def _results(
    work: Plan,
    answers: Mapping[tuple[str, str, str], Tensor],
    scores: Tensor,
    chosen: Tensor,
    row: int,
    position: int,
    photo: Photo,
) -> Iterator[Explanation | Failure]:
    model, logits = work.model, scores[row]
    if len(model.classes) != len(logits):
        raise ModelError(
            f"model {model.name!r} names {len(model.classes)} classes but returns {len(logits)}"
        )
    probabilities = logits.softmax(0)
    top = probabilities.topk(min(5, len(logits)))
    best = [(model.classes[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
    explainers = dict(work.explainers)
    columns = {index: column for column, index in reversed(list(enumerate(chosen[row].tolist())))}
    for (backend, method, layer), maps in answers.items():
        for index, column in sorted(columns.items(), key=lambda item: item[1]):
            map = maps[row, column].clone()
            try:
                render.check_finite(map)
                if not math.isfinite(float(logits[index])):
                    raise MapError("the model's score is NaN or infinite (try --dtype float32)")
            except MapError as error:
                text = f"{photo.source}: {backend} {method}, class {model.classes[index]}: {error}"
                yield Failure(photo.source, MapError(text), position, photo.sha256)
                continue
            flat = ("the map is constant: it says nothing",) if render.is_flat(map) else ()
            yield Explanation(
                map=map,
                backend=backend,
                method=method,
                layer=layer,
                class_index=index,
                class_name=model.classes[index],
                probability=float(probabilities[index]),
                logit=float(logits[index]),
                top=tuple(best),
                predicted_index=int(logits.argmax()),
                predicted_name=model.classes[int(logits.argmax())],
                photo=photo,
                model=model,
                options=vars(explainers[backend].options),
                position=position,
                warnings=(*photo.warnings, *flat),
            )
