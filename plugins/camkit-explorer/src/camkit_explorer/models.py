"""The models of a start, each loaded when it is first asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from camkit.errors import ModelError, UsageError
from camkit.plugin import (
    ClassMaps,
    LoadedModel,
    Photo,
    explain_classes,
    load_image,
    map_layers,
    predict,
    sample_image,
)
from camkit_explorer.pace import FEW, Pace


@dataclass(frozen=True)
class Layer:
    """A layer of the slider: its dotted name and the grid of its maps, height and width."""

    name: str
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Ready:
    """A loaded model with what the page needs of it: layers, the automatic one among them, and its pace."""

    spec: str
    model: LoadedModel
    layers: tuple[Layer, ...]
    automatic: str
    pace: Pace

    def inputs(self, photo: Photo) -> Tensor:
        """What the model is shown of a photograph, `[1, C, H, W]`."""
        view = photo.view or self.model.preprocess.view(photo.image)
        return self.model.preprocess.batch([view], self.model.device).to(self.model.dtype)

    def explain(
        self,
        inputs: Tensor,
        classes: Sequence[int] | None = None,
        *,
        backend: str = "native",
        method: str = "gradcam",
        layer: str,
    ) -> ClassMaps:
        """Maps of classes; without any of as many as are cheap: of all, or of the most probable ones."""
        key = (backend, method, layer)
        cheap = "all" if self.pace.all_at_once(key) else f"top:{FEW}"
        wanted: Sequence[str | int] = classes or [cheap]
        begun = time.perf_counter()
        found = explain_classes(
            self.model, inputs, classes=wanted, backend=backend, method=method, layer=layer
        )
        seconds = time.perf_counter() - begun
        self.pace.note(key, seconds, len(found.classes), len(self.model.classes), found.maps[0].numel())
        return found


class Models:
    """Models by their number in a list of specifications."""

    def __init__(self, specs: Sequence[str], load: Callable[[str], LoadedModel]) -> None:
        self.specs = tuple(specs)
        self._load = load
        self._ready: dict[int, Ready] = {}

    def loaded(self, number: int) -> Ready | None:
        """A model, if it is loaded already."""
        return self._ready.get(number)

    def __getitem__(self, number: int) -> Ready:
        """Loads a model the first time, in one thread at a time; raises what `load_model` raises."""
        if number >= len(self.specs):
            raise UsageError(f"there is no model {number}")
        if number not in self._ready:
            self._ready[number] = made(self.specs[number], self._load(self.specs[number]))
        return self._ready[number]


def made(spec: str, model: LoadedModel) -> Ready:
    """A model with its layers, warmed up. Raises `ModelError` if none of them can carry a map."""
    records, automatic = map_layers(model)
    if automatic is None:
        raise ModelError(f"{model.name} has no layer that can carry a map")
    # What other layers are made of comes first: a slider of a hundred steps is none.
    blocks = [record for record in records if not record.leaf]
    kept = blocks if len(blocks) > 3 else [record for record in records if not record.pooling]
    names = {record.name for record in kept} | {automatic}
    layers = tuple(Layer(r.name, r.grid) for r in records if r.name in names and r.grid)
    view = model.preprocess.view(load_image(sample_image()).image)
    inputs = model.preprocess.batch([view], model.device).to(model.dtype)
    predict(model, inputs)  # what torch prepares at first is no part of the time of a forward
    begun = time.perf_counter()
    predict(model, inputs)
    ready = Ready(spec, model, layers, automatic, Pace(time.perf_counter() - begun))
    for _ in range(2):  # of a few classes, which tells what all would cost, and perhaps of all
        ready.explain(inputs, layer=automatic)
    return ready
