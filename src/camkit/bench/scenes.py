"""What is explained: photographs, with or without truth, and drawn shapes, whose evidence is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from camkit.bench import shapes
from camkit.bench.results import ENERGY, MAX_IMAGES, MOSAICS, OF_CLASSES, PLACES, SEGMENTS, SHAPES
from camkit.bench.subjects import PREDICTED, Asked, Subjects, subjects
from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind
from camkit.core import layers
from camkit.core.call_types import Call
from camkit.core.layer_lookup import resolve_layers
from camkit.core.scored import Output, Scored
from camkit.drawing import overlay
from camkit.drawing.evidence import Box
from camkit.errors import ImageError, UsageError, counted
from camkit.explaining.plan import scores_for_layer
from camkit.images import decoding, finding
from camkit.metrics import localisation
from camkit.metrics.ground_truth import Truth, as_seen, of_photograph

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 16  # images that are explained and scored at once; fewer if they are large
PHOTO_PIXELS = 224 * 224
CHUNK = 64  # changed inputs that a metric gives to the model at once
# Their pixels on a CPU: with more, most of the time goes into fetching memory.
CPU_PIXELS = 8 * PHOTO_PIXELS

POOL = 64  # photographs to choose from for mosaics
SURE = 0.9  # the paper has 0.99, which a model trained on softened labels never reaches


@dataclass(frozen=True)
class Scene:
    """A model, its target layer and a batch of inputs with the classes to explain.

    inputs: `[N, C, H, W]` on the model's device; targets: int64 `[N]`; titles: of the images, for people;
    names: of what is explained; photographs: the number of the photograph, or mosaic, of each, where one
    may have several, else none. output: makes scores `[B, n]` of what the model returns, as `Call` takes
    it; scores: what these are.
    truth: bool `[N, H, W]`, nowhere true if not known for an image, or `None` if for none.
    failures: one line for each photograph that could not be used.
    only_metrics: those that are meaningful here; none means all. without: others that are not, and why.
    remark: what to know about the images.
    """

    name: str
    model: LoadedModel
    layer: str
    inputs: Tensor = field(repr=False)
    targets: Tensor
    titles: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    photographs: tuple[int, ...] = ()
    output: Output = None
    scores: ScoreKind = "auto"
    truth: Tensor | None = field(default=None, repr=False)
    failures: tuple[str, ...] = ()
    only_metrics: tuple[str, ...] = ()
    without: Mapping[str, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def truth_share(self) -> float | None:
        """How much of an image its truth covers, the mean over those where it is known."""
        if self.truth is None:
            return None
        shares = self.truth.float().flatten(1).mean(1)
        return float(shares[shares > 0].mean()) if bool(shares.any()) else 0.0

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` inputs and their targets, starting again where there are fewer."""
        index = torch.arange(count, device=self.inputs.device) % len(self.inputs)
        return self.inputs[index], self.targets[index]

    @cached_property
    def module(self) -> nn.Module:
        """What returns the scores `[B, n]`: the model's module, with its `output` selected."""
        return self.model.module if self.output is None else Scored(self.model.module, self.output, None)

    def without_graph(self) -> AbstractContextManager[Any]:
        """Inside, a forward keeps no graph.

        A detector may keep what it makes for its next forward, such as anchors, and that may need one.
        """
        return torch.inference_mode() if self.model.detections is None else torch.no_grad()

    @property
    def chunk(self) -> int:
        """How many changed inputs a metric should give to the model at once."""
        height, width = self.inputs.shape[-2:]
        return min(CHUNK, max(1, CPU_PIXELS // (height * width))) if self.inputs.is_cpu else CHUNK

    def slices(self) -> Iterator[slice]:
        """The images in parts of `BATCH`, or of as many pixels if they are large."""
        height, width = self.inputs.shape[-2:]
        size = max(1, min(BATCH, BATCH * PHOTO_PIXELS // (height * width)))
        for start in range(0, len(self.inputs), size):
            yield slice(start, start + size)

    def picture(self, index: int) -> Image:
        """An input as a picture."""
        return overlay.picture(self.model.preprocess.pixels(self.inputs[index]))

    def outline(self, index: int) -> Box | Tensor | None:
        """The box that is explained, in pixels of the input, or the segment, bool `[H, W]`; else `None`."""
        if self.truth is None or self.name not in PLACES:
            return None
        if self.name == SEGMENTS:
            return self.truth[index]
        rows, columns = self.truth[index].nonzero().unbind(1)  # those of a box are all of it that is seen
        if not len(rows):
            return None
        top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
        return float(left), float(top), float(right), float(bottom)


def photographs(
    model: LoadedModel,
    layer: str,
    paths: Sequence[Path],
    limit: int,
    truth: Truth | None = None,
    asked: Asked = PREDICTED,
) -> Scene:
    """At most `limit` photographs, evenly spread over `paths`; each explained for what is asked.

    Raises `ImageError` if none can be used, `UsageError` for a truth that does not fit its photograph, or
    for what the model has not.
    """
    check_truth(model, truth)
    tensors, masks, titles, photos, failures = [], [], [], [], []
    chosen = paths if len(paths) <= limit else [paths[len(paths) * i // limit] for i in range(limit)]
    for path in chosen:
        try:
            loaded = decoding.load(path, model.preprocess.photo_channels)
        except ImageError as error:
            failures.append(str(error))
            continue
        photo = loaded.image
        known = of_photograph(truth, path, loaded) if truth else None
        photos.append(loaded)
        tensors.append(model.preprocess(photo))
        masks.append(None if known is None else as_seen(known, model.preprocess))
        titles.append(finding.display(path.name))
    if not tensors:
        raise ImageError(failures[0])
    inputs = torch.stack(tensors).to(model.device, model.dtype)
    unknown = torch.zeros(inputs.shape[-2:], dtype=torch.bool)
    stacked = torch.stack([unknown if mask is None else mask for mask in masks]).to(model.device)
    found = subjects(model, asked, inputs, photos, BATCH)
    failures += found.failures
    if not len(found.rows):
        raise ImageError(f"there is nothing to explain: {failures[0]}")
    _check_number(found, len(inputs))
    marked = stacked[found.rows] if found.truth is None else found.truth
    return Scene(
        name=found.kind,
        model=model,
        layer=_layer(model, layer),
        inputs=inputs[found.rows],
        targets=found.targets,
        titles=tuple(titles[row] for row in found.rows.tolist()),
        names=found.names,
        photographs=tuple(found.rows.tolist()),
        output=found.output,
        scores=found.scores,
        truth=marked if bool(marked.any()) else None,
        failures=tuple(failures),
        without=found.without,
        remark=_left_out(found.without),
    )


def check_truth(model: LoadedModel, truth: Truth | None) -> None:
    """`UsageError` for annotations of what a detector or a segmentation finds."""
    if truth is not None and not (model.detections is None and model.segments is None):
        raise UsageError(f"what {model.name} finds is where it is: leave out --truth")


def _check_number(found: Subjects, photographs: int) -> None:
    if len(found.rows) > MAX_IMAGES:
        things = "classes" if found.kind == OF_CLASSES else found.kind
        raise UsageError(
            f"{len(found.rows):,} {things} of {counted(photographs, 'photograph')} are more than a "
            f"benchmark holds, {MAX_IMAGES:,}: ask for fewer, or for fewer photographs (--limit)"
        )


def _left_out(without: Mapping[str, str]) -> str:
    """Metrics that are left out, those of one reason together."""
    reasons: dict[str, list[str]] = {}
    for metric, why in without.items():
        reasons.setdefault(why, []).append(metric)
    return "; ".join(f"without {' and '.join(names)}, as {why}" for why, names in reasons.items())


def drawn_shapes(count: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Scene:
    """`count` images of shapes and a small model of them, trained here; each explained for its class."""
    model = shapes.train(seed, device=str(device)).to(dtype=dtype)
    # Far from the seeds of the images that the model was trained on.
    data = shapes.draw(count, seed + 1_000_003)
    return Scene(
        name=SHAPES,
        model=model,
        layer=_layer(model, "auto"),
        inputs=data.inputs.to(device, dtype),
        targets=data.targets.to(device),
        titles=tuple(f"{shapes.CLASSES[target]} {i}" for i, target in enumerate(data.targets.tolist())),
        names=tuple(shapes.CLASSES[target] for target in data.targets.tolist()),
        scores=model.scores,
        truth=data.truth.to(device),
    )


def mosaics(pool: Scene, count: int, seed: int = 0, remark: str = "") -> Scene:
    """The grid pointing game: `count` mosaics of 2 x 2 images of `pool`, explained for each class in them.

    Raises `UsageError` if there are too few images that the model is sure of, and if it does not take
    images twice as large.
    """
    module = pool.module

    def scores(inputs: Tensor) -> Tensor:
        with torch.inference_mode():
            return torch.cat([module(part) for part in torch.split(inputs, BATCH // 4)]).clone()

    kind = pool.model.scores
    if pool.name not in (OF_CLASSES, SHAPES):
        raise UsageError(f"mosaics are of classes, not of {pool.name}")
    made = localisation.mosaics(scores, pool.inputs, confidence=SURE, count=count, seed=seed, scores=kind)
    try:
        place = localisation.place(scores(made.inputs[::4]).repeat_interleave(4, 0), made.targets)
    except Exception as error:  # of a model, which may raise anything
        raise UsageError(f"the model does not take images twice as large ({error})") from None
    numbers = tuple(i // 4 for i in range(len(made.targets)))  # of the mosaic of each
    seen = float((place < 4).float().mean())
    origin = (
        f"2 x 2 {pool.name}, each recognised with {SURE:.0%} or more; of the mosaic's four classes "
        f"{seen:.0%} are among the first four of the model"
    )
    return Scene(
        name=MOSAICS,
        model=pool.model,
        layer=pool.layer,
        inputs=made.inputs,
        targets=made.targets,
        names=tuple(pool.model.classes[target] for target in made.targets.tolist()),
        output=pool.output,
        scores=pool.scores,
        titles=tuple(f"mosaic {number + 1}" for number in numbers),
        photographs=numbers,
        truth=made.truth,
        only_metrics=(ENERGY,),
        remark="; ".join(filter(None, (origin, remark))),
    )


def _layer(model: LoadedModel, spec: str) -> str:
    spec = model.default_layer if spec == "auto" else spec
    like = next(p for p in model.module.parameters() if p.is_floating_point())
    inputs = layers.example_inputs(model.preprocess.size, like, model.preprocess.channels)
    names = resolve_layers(model.module, spec, inputs, call=Call(output=scores_for_layer(model)))
    if len(names) > 1:
        raise UsageError(f"layer {spec!r} means several layers ({', '.join(names)}): bench takes one")
    return names[0]
