"""The native explainer: Grad-CAM for the price of one forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from camkit import cams, capture
from camkit.api import Explainer, Query, Sweep, option
from camkit.errors import LayerError

# Gradients of several classes are computed together; a chunk of classes holds at most this much.
GRADIENT_BYTES = 256 * 2**20


@dataclass(frozen=True)
class NativeOptions:
    """Options of the native explainer."""

    reduction: Literal["sum", "mean"] = option(
        "sum", help="gradcam over channels: sum is the paper's, mean is the number of the lesson"
    )


# Methods that need the features alone: [B, C, h, w] -> [B, 1, h, w], the same for every class.
FEATURE_METHODS: dict[str, Callable[[Tensor], Tensor]] = {"activations": cams.activations}

# Methods that need gradients too: features, gradients [T, B, C, h, w], options -> [B, T, h, w].
GRADIENT_METHODS: dict[str, Callable[[Tensor, Tensor, NativeOptions], Tensor]] = {
    "gradcam": lambda features, gradients, options: cams.gradcam(
        features, gradients, reduction=options.reduction
    ),
}


class Native(Explainer):
    """Hooks and `autograd.grad` from the target layer upwards; classes and layers share a forward."""

    summary = "Hook-based Grad-CAM; one forward, nothing below the layer is differentiated"
    methods = (*GRADIENT_METHODS, *FEATURE_METHODS)
    dtypes = ("float32", "float64", "bfloat16", "float16")
    class_agnostic = tuple(FEATURE_METHODS)
    thread_safe = True
    Options: ClassVar[type] = NativeOptions

    def maps(self, query: Query) -> Tensor:
        """Raw maps `[B, h, w]`."""
        targets = query.targets[:, None]
        sweep = Sweep(query.module, query.inputs, (query.layer,), (query.method,), choose=lambda _: targets)
        return self.many(sweep)[query.method, query.layer][:, 0]

    def many(self, sweep: Sweep) -> dict[tuple[str, str], Tensor]:
        """Raw maps `[B, T, h, w]` by method and layer, all from one forward."""
        scores, captured = capture.forward(sweep.module, sweep.inputs, sweep.layers)
        targets = sweep.choose(scores.detach())
        with_gradients = [m for m in sweep.methods if m in GRADIENT_METHODS]
        pieces: dict[tuple[str, str], list[Tensor]] = {
            (m, layer): [] for m in sweep.methods for layer in sweep.layers
        }
        if with_gradients:
            outputs = [captured[layer].output for layer in sweep.layers]
            for gradients in class_gradients(scores, targets, outputs):
                for layer, gradient in zip(sweep.layers, gradients, strict=True):
                    item = captured[layer]
                    for m in with_gradients:
                        part = GRADIENT_METHODS[m](
                            item.features, item.layout.to_map(gradient), self.options
                        )
                        pieces[m, layer].append(part)
        for m in (m for m in sweep.methods if m in FEATURE_METHODS):
            for layer in sweep.layers:
                shared = FEATURE_METHODS[m](captured[layer].features)
                pieces[m, layer].append(shared.expand(-1, targets.shape[1], -1, -1))
        return {key: torch.cat(parts, dim=1) for key, parts in pieces.items()}


def class_gradients(
    scores: Tensor, targets: Tensor, outputs: Sequence[Tensor]
) -> Iterator[tuple[Tensor, ...]]:
    """Gradients of `scores[b, targets[b, t]]` with respect to each of `outputs`.

    scores `[B, n]`, targets int64 `[B, T]`; yields, for consecutive chunks of the T classes, one tensor
    `[chunk, *output.shape]` for each output. Raises `LayerError` if the scores do not depend on one.
    """
    per_class = sum(output.numel() * output.element_size() for output in outputs)
    chunks = torch.split(targets, max(1, GRADIENT_BYTES // per_class), dim=1)
    for index, columns in enumerate(chunks):
        seeds = torch.zeros(columns.shape[1], *scores.shape, dtype=scores.dtype, device=scores.device)
        seeds.scatter_(2, columns.t().unsqueeze(2), 1.0)
        keep = index < len(chunks) - 1
        try:
            yield _gradients(scores, outputs, seeds, keep)
        except RuntimeError as error:
            if "graph" not in str(error) and "require grad" not in str(error):
                raise
            raise LayerError(
                "the scores do not depend on the target layer through differentiable steps"
            ) from error


def _gradients(scores: Tensor, outputs: Sequence[Tensor], seeds: Tensor, keep: bool) -> tuple[Tensor, ...]:
    if len(seeds) > 1:
        try:
            return torch.autograd.grad(scores, outputs, seeds, retain_graph=True, is_grads_batched=True)
        except RuntimeError:  # an operation that vmap cannot batch: one class after the other
            pass
    single = [
        torch.autograd.grad(scores, outputs, seed, retain_graph=keep or seed is not seeds[-1])
        for seed in seeds
    ]
    return tuple(torch.stack(parts) for parts in zip(*single, strict=True))
