"""What is explained: photographs, with or without truth, and drawn shapes, whose evidence is known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from camkit import images, layers, render
from camkit.api import LoadedModel
from camkit.errors import ImageError, UsageError
from camkit.host import resolve_layers
from camkit.metrics import shapes
from camkit.metrics.truth import Truth, as_seen

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 16  # images that are explained and scored at once
CHUNK = 64  # changed inputs that a metric gives to the model at once
# Of them on a CPU: with more, most of the time goes into fetching memory.
CPU_PIXELS = 8 * 224 * 224


@dataclass(frozen=True)
class Scene:
    """A model, its target layer and a batch of inputs with the classes to explain.

    inputs: `[N, C, H, W]` on the model's device; targets: int64 `[N]`; titles: of the images, for people.
    truth: bool `[N, H, W]`, nowhere true where it is not known, or `None` if it is for no image.
    failures: one line for each photograph that could not be used.
    metric_options: by metric, where those that are usual do not suit these images.
    """

    name: str
    model: LoadedModel
    layer: str
    inputs: Tensor = field(repr=False)
    targets: Tensor
    titles: tuple[str, ...] = ()
    truth: Tensor | None = field(default=None, repr=False)
    failures: tuple[str, ...] = ()
    metric_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def first(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` inputs and their targets, from the start again where there are fewer."""
        index = torch.arange(count, device=self.inputs.device) % len(self.inputs)
        return self.inputs[index], self.targets[index]

    @property
    def chunk(self) -> int:
        """How many changed inputs a metric should give to the model at once."""
        height, width = self.inputs.shape[-2:]
        return min(CHUNK, max(1, CPU_PIXELS // (height * width))) if self.inputs.is_cpu else CHUNK

    def slices(self) -> Iterator[slice]:
        """The images in parts of `BATCH`."""
        for start in range(0, len(self.inputs), BATCH):
            yield slice(start, start + BATCH)

    def picture(self, index: int) -> Image:
        """An input as a picture."""
        preprocess = self.model.preprocess
        mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
        return render.picture(self.inputs[index].float().cpu() * std + mean)


def photographs(
    model: LoadedModel, layer: str, paths: Sequence[Path], limit: int, truth: Truth | None = None
) -> Scene:
    """At most `limit` photographs, evenly spread over `paths`; each explained for its predicted class.

    Raises `ImageError` if none can be read, `UsageError` for a truth that does not fit its photograph.
    """
    tensors, masks, titles, failures = [], [], [], []
    chosen = paths if len(paths) <= limit else [paths[len(paths) * i // limit] for i in range(limit)]
    for path in chosen:
        try:
            photo = images.load(path).image
        except ImageError as error:
            failures.append(str(error))
            continue
        known = truth(path, photo.size) if truth else None
        tensors.append(model.preprocess(photo))
        masks.append(None if known is None else as_seen(known, model.preprocess))
        titles.append(images.display(path.name))
    if not tensors:
        raise ImageError(failures[0])
    inputs = torch.stack(tensors).to(model.device, model.dtype)
    unknown = torch.zeros(inputs.shape[-2:], dtype=torch.bool)
    stacked = torch.stack([unknown if mask is None else mask for mask in masks]).to(model.device)
    return Scene(
        name="photographs",
        model=model,
        layer=_layer(model, layer),
        inputs=inputs,
        targets=_predicted(model, inputs),
        titles=tuple(titles),
        truth=stacked if bool(stacked.any()) else None,
        failures=tuple(failures),
    )


def drawn_shapes(count: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Scene:
    """`count` images of shapes and a small model of them, trained here; each explained for its class."""
    model = shapes.train(seed, device=str(device)).to(dtype=dtype)
    # Far from the seeds of the images that the model was trained on.
    data = shapes.draw(count, seed + 1_000_003)
    return Scene(
        name="shapes",
        model=model,
        layer=_layer(model, "auto"),
        inputs=data.inputs.to(device, dtype),
        targets=data.targets.to(device),
        titles=tuple(f"{shapes.CLASSES[target]} {i}" for i, target in enumerate(data.targets.tolist())),
        truth=data.truth.to(device),
        # The usual 15 pixels are for photographs: of 64 they would let the middle hit every shape.
        metric_options={"pointing-game": {"tolerance": 4}},
    )


def _predicted(model: LoadedModel, inputs: Tensor) -> Tensor:
    with torch.inference_mode():
        parts = [model.module(part).argmax(1) for part in torch.split(inputs, BATCH)]
    return torch.cat(parts).clone()


def _layer(model: LoadedModel, spec: str) -> str:
    spec = model.default_layer if spec == "auto" else spec
    like = next(p for p in model.module.parameters() if p.is_floating_point())
    names = resolve_layers(model.module, spec, layers.example_inputs(model.preprocess.size, like))
    if len(names) > 1:
        raise UsageError(f"layer {spec!r} means several layers ({', '.join(names)}): bench takes one")
    return names[0]
