"""Gradients with respect to the input, added up over many inputs near one. No layer is looked at.

The map is the sum over the channels of the input, signed, a value for each pixel. Every image gets the same
noise and baselines. The inputs run in chunks of one image, in which all classes share the forward, so an
image alone has the same map as in a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from camkit.contracts.explainer import Sweep
from camkit.core import path_formulas
from camkit.core.stand_in import wide
from camkit.native import baselines
from camkit.native.gradients import class_gradients
from camkit.native.method_table import NativeOptions
from camkit.native.perturbation import inputs_at_once


class Nearby(ABC):
    """Inputs near an image, by rows from 0 to `count`, and how much the gradient at each counts.

    bases: where paths begin, `[m, C, *size]`, whose scores the sums of the maps start from, or `None`.
    """

    more: ClassVar[str]  # which option makes the sum more exact
    bases: Tensor | None = None

    def __init__(self, options: NativeOptions, like: Tensor) -> None:
        self.options, self.like = options, like
        self.count = options.samples
        self.weights = like.new_full((self.count,), 1 / self.count, dtype=wide(like).dtype)
        # On the host, so that it draws the same on every device.
        self.generator = torch.Generator().manual_seed(options.seed)

    @abstractmethod
    def chunk(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs `[n, C, *size]` near `x`, `[1, C, *size]`, and the steps their gradients count by.

        Called with all rows in their order, for one image after the other.
        """

    def column(self, values: Tensor) -> Tensor:
        """Values `[n]` as factors of inputs."""
        return values.to(self.weights).reshape(-1, *[1] * (self.like.ndim - 1))


class IntegratedGradients(Nearby):
    """Sundararajan et al. 2017: on the straight path from zero, which is the mean colour."""

    more = "steps"

    def __init__(self, options: NativeOptions, like: Tensor) -> None:
        super().__init__(options, like)
        self.count = options.steps
        positions, weights = path_formulas.legendre(self.count)
        self.positions, self.weights = self.column(positions), weights.to(self.weights)
        self.bases = torch.zeros_like(like[:1])

    def chunk(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Points on the path, each with the whole of it."""
        return self.positions[rows] * x, x


class ExpectedGradients(Nearby):
    """Erion et al. 2021: at a random place on the path from each of many baselines.

    The places are spread evenly, one at random in each part of the path. Without a file the baselines are
    even colours, drawn as colours of pixels are distributed after normalisation.
    """

    more = "samples"

    def __init__(self, options: NativeOptions, like: Tensor) -> None:
        super().__init__(options, like)
        if options.baseline is None:
            colours = torch.randn(self.count, like.shape[1], generator=self.generator).to(like)
            stored = colours.reshape(*colours.shape, *[1] * (like.ndim - 2)).expand(-1, *like.shape[1:])
        else:
            stored = baselines.load(options.baseline, like)
        self.bases = stored[torch.arange(self.count, device=like.device) * len(stored) // self.count]
        places = torch.rand(self.count, generator=self.generator)
        places += torch.randperm(self.count, generator=self.generator)
        self.places = self.column(places / self.count)

    def chunk(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """A point on the path from each baseline, with the whole of that path."""
        assert self.bases is not None, "set when it is made"
        base = wide(self.bases[rows])
        return base + self.places[rows] * (x - base), x - base


class SmoothGrad(Nearby):
    """Smilkov et al. 2017: noisy copies."""

    def chunk(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The image with noise, in proportion to its range; the gradients as they are."""
        if not rows[0]:
            self.generator.manual_seed(self.options.seed)
        # One by one: what is drawn does not depend on how many are drawn together.
        drawn = [torch.randn(x.shape[1:], generator=self.generator) for _ in range(len(rows))]
        width = self.options.noise * (x.amax() - x.amin())
        return x + width * torch.stack(drawn).to(x), torch.ones_like(x[:1])


KINDS: dict[str, type[Nearby]] = {
    "integrated-gradients": IntegratedGradients,
    "smoothgrad": SmoothGrad,
    "expected-gradients": ExpectedGradients,
}


def maps(sweep: Sweep, methods: Sequence[str], options: NativeOptions) -> dict[tuple[str, str], Tensor]:
    """Maps `[B, T, *size]`, the same for each layer; all classes share the forwards."""
    kinds = {method: KINDS[method](options, sweep.inputs) for method in methods}  # refuses first
    with torch.no_grad():
        scores = sweep.module(sweep.inputs, *sweep.extras)
        targets = sweep.choose(scores)
    own = wide(scores.detach()).gather(1, targets)
    found: dict[tuple[str, str], Tensor] = {}
    for method, nearby in kinds.items():
        made = torch.stack(
            [_of_image(sweep, nearby, image, columns) for image, columns in enumerate(targets)]
        )
        found |= {(method, layer): made for layer in sweep.layers}
        # Balanced gradients are not those of the score, so they need not add up to its change.
        for image, base in enumerate([] if options.libra else _before(sweep, nearby, targets)):
            text = _incomplete(made[image], own[image], base, nearby)
            this = torch.arange(len(targets), device=targets.device) == image
            for layer in sweep.layers if text else ():
                sweep.remark(method, layer, this, text)
    return found


def _of_image(sweep: Sweep, nearby: Nearby, image: int, targets: Tensor) -> Tensor:
    """Maps `[T, *size]` of one image."""
    x, *extras = (value[image : image + 1] for value in (sweep.inputs, *sweep.extras))
    total = wide(x).new_zeros(len(targets), *x.shape[2:])
    together = inputs_at_once(nearby.options.batch_size, x)
    for rows in torch.split(torch.arange(nearby.count, device=x.device), together):
        points, steps = nearby.chunk(wide(x), rows)
        points = points.to(x.dtype).requires_grad_()
        others = (value.expand(len(rows), *value.shape[1:]) for value in extras)
        with torch.enable_grad():  # a copy goes in: the model may write into it
            scores = sweep.module(points.clone(), *others)
        parts = [
            path_formulas.added(wide(gradients), steps, nearby.weights[rows])
            for (gradients,) in class_gradients(scores, targets.expand(len(rows), -1), [points])
        ]
        total += torch.cat(parts)
    return total


def _before(sweep: Sweep, nearby: Nearby, targets: Tensor) -> list[Tensor]:
    """For each image the mean scores `[T]` where its paths begin; nothing without a beginning."""
    if nearby.bases is None:
        return []
    bases, run = nearby.bases, _in_chunks(sweep, nearby)
    if sweep.extras:  # each image has its own
        means = [
            run(bases, [value[image : image + 1] for value in sweep.extras])
            for image in range(len(targets))
        ]
    else:
        means = [run(bases, [])] * len(targets)
    return [mean[columns] for mean, columns in zip(means, targets, strict=True)]


def _in_chunks(sweep: Sweep, nearby: Nearby) -> Callable[[Tensor, Sequence[Tensor]], Tensor]:
    """From inputs, and the further inputs of one image, to mean scores `[n_classes]`."""

    def run(inputs: Tensor, extras: Sequence[Tensor]) -> Tensor:
        together = inputs_at_once(nearby.options.batch_size, inputs)
        with torch.no_grad():
            scores = [
                sweep.module(part.clone(), *(value.expand(len(part), *value.shape[1:]) for value in extras))
                for part in torch.split(inputs, together)
            ]
        # The host may keep gradients on, for a model that switches them off.
        return wide(torch.cat(scores).detach()).mean(0)

    return run


def _incomplete(maps: Tensor, scores: Tensor, before: Tensor, nearby: Nearby) -> str:
    """What is said of the maps of an image that do not add up to the change of the score; "" if they do."""
    gap, is_off = path_formulas.off(maps, scores, before)
    if not bool(is_off.any()):
        return ""
    worst = int(torch.where(is_off, gap.abs(), 0.0).argmax())
    change = float(scores[worst] - before[worst])
    return (
        f"is inexact: it adds up to {change + float(gap[worst]):.3g}, but the score differs from that of "
        f"the baseline by {change:.3g}: raise {nearby.more}"
    )
