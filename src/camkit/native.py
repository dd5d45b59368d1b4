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
        "sum", help="over channels, where a method has a sum: as in the papers, or the lesson's mean"
    )


# Methods that need the features alone: [B, C, h, w] -> [B, 1, h, w], the same for every class.
FEATURE_METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    "activations": cams.activations,
    "eigencam": cams.eigencam,
}

# Methods that need gradients too: features, gradients [T, B, C, h, w] -> [B, T, h, w].
SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gradcam": cams.gradcam,
    "gradcam++": cams.gradcam_plus_plus,
    "xgradcam": cams.xgradcam,
    "hirescam": cams.hirescam,
    "gradcam-elementwise": cams.gradcam_elementwise,
    "layercam": cams.layercam,
}
GRADIENT_METHODS = SUMS | {"eigengradcam": cams.eigengradcam}


class Native(Explainer):
    """Hooks and `autograd.grad` from the target layer upwards; classes and layers share a forward."""

    summary = "Grad-CAM and its family from one forward; nothing below the layer is differentiated"
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
        outputs = [captured[layer].output for layer in sweep.layers]
        for gradients in class_gradients(scores, targets, outputs) if with_gradients else ():
            for layer, gradient in zip(sweep.layers, gradients, strict=True):
                features, by_feature = captured[layer].features, captured[layer].layout.to_map(gradient)
                for m in with_gradients:
                    pieces[m, layer].append(GRADIENT_METHODS[m](features, by_feature))
        for m in (m for m in sweep.methods if m in FEATURE_METHODS):
            for layer in sweep.layers:
                shared = FEATURE_METHODS[m](captured[layer].features)
                pieces[m, layer].append(shared.expand(-1, targets.shape[1], -1, -1))
        return {
            (m, layer): torch.cat(parts, dim=1) / self._divisor(m, captured[layer].features)
            for (m, layer), parts in pieces.items()
        }

    def _divisor(self, method: str, features: Tensor) -> int:
        """The mean over channels is the sum, divided at the end."""
        return features.shape[1] if self.options.reduction == "mean" and method in SUMS else 1


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
