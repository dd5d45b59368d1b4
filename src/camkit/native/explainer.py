"""The native explainer: the whole family from one forward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.contracts.explainer import Explainer, Query, Sweep
from camkit.core import formulas as cams
from camkit.core import hooks
from camkit.core.hooks import Captured
from camkit.errors import UsageError
from camkit.native import black_box, compiled, perturbation
from camkit.native.method_table import BLACK_BOX, FEATURES, GRADIENTS, METHODS, NativeOptions
from camkit.native.perturbation import Head
from camkit.native.tail import GradientFormula

# Gradients of several classes are computed together; a chunk of classes takes at most this much. On a CPU
# larger chunks are slower: they fall out of the caches, and the system takes their memory back each time.
# With smaller ones, accelerators wait for the host.
GRADIENT_BYTES = 16 * 2**20
GRADIENT_BYTES_OF_ACCELERATORS = 2**30


# Of the features alone: [B, C, h, w] -> [B, 1, h, w].
FEATURE_METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(cams, formula) for name, formula in FEATURES.items()
}

GRADIENT_METHODS: dict[str, GradientFormula] = {
    name: getattr(cams, formula) for name, formula in GRADIENTS.items()
}

# A principal component and a sum of positive terms cannot cancel.
NEVER_NOISE = ("eigengradcam", "gradcam-elementwise")

# Gradients of one class, with no more than a formula: a solver waits for the device.
AT_ONCE = GRADIENT_METHODS.keys() - {"eigengradcam"}

# These have no sum over channels.
SUMLESS = ("eigengradcam", *FEATURE_METHODS)


class Native(Explainer):
    """Hooks and `autograd.grad` from the target layer upwards; classes and layers share a forward."""

    summary = "Grad-CAM and its family from one forward; nothing below the layer is differentiated"
    methods = METHODS
    dtypes = ("float32", "float64", "bfloat16", "float16")
    class_agnostic = tuple(FEATURE_METHODS)
    layerless = BLACK_BOX
    unsigned = ("sobol", "hsic")
    notes: ClassVar[Mapping[str, str]] = {
        "shapleycam": "where the score is linear in the layer it equals gradcam",
        "finercam": "gradcam of the score minus those of the most similar classes",
        "ablationcam": "one run of what is above the layer for each channel; none if that is affine",
        "scorecam": "one forward for each channel; weights are positive",
        "rise": "how the score differs from its mean where a place stays; what is hidden is zero",
        "sobol": "share of the variance of the score, no sign; the interval is wide with few masks",
        "hsic": "dependence of the score on a cell, no sign and no unit",
    }
    thread_safe = True
    dimensions = (1, 2, 3)
    several_inputs = True
    Options: ClassVar[type] = NativeOptions

    def maps(self, query: Query) -> Tensor:
        """Raw maps `[B, h, w]`."""
        targets = query.targets[:, None]

        def choose(scores: Tensor) -> Tensor:
            query.seen(scores)
            return targets

        sweep = Sweep(
            *(query.module, query.inputs, (query.layer,), (query.method,), choose, query.extras),
            targets=targets,
            layout=query.layout,
            remark=lambda _, __, images, text: query.remark(images, text),
        )
        return self.many(sweep)[query.method, query.layer][:, 0]

    def many(self, sweep: Sweep) -> dict[tuple[str, str], Tensor]:
        """Raw maps `[B, T, h, w]` by method and layer: of all that look at a layer from one forward."""
        at_layer = tuple(method for method in sweep.methods if method not in BLACK_BOX)
        maps = self._at_layer(replace(sweep, methods=at_layer)) if at_layer else {}
        if blind := [method for method in sweep.methods if method in BLACK_BOX]:
            maps |= black_box.maps(sweep, blind, self.options)
        return {(method, layer): maps[method, layer] for method in sweep.methods for layer in sweep.layers}

    def _at_layer(self, sweep: Sweep) -> Maps:
        """Raw maps `[B, T, h, w]` by method and layer, all from one forward of the whole model."""
        fast = compiled.ready(sweep) if self.options.fast else None
        if fast and (found := self._at_once(fast, sweep)):
            return found
        with _twice_differentiable() if "shapleycam" in sweep.methods else nullcontext():
            scores, captured = (
                compiled.forward(fast, sweep)
                if fast
                else hooks.forward(
                    *(sweep.module, sweep.inputs, sweep.layers, sweep.extras), kind=sweep.layout
                )
            )
        run = _Run(sweep, self.options, scores, sweep.choose(scores), captured)
        maps = run.curvature_maps()  # first, while there is a graph
        maps |= run.gradient_maps()  # their last pass frees the graph
        maps |= run.feature_maps()
        maps |= run.perturbation_maps()
        if self.options.reduction == "mean":  # over channels: the sum, divided at the end
            for method, layer in maps:
                if method not in SUMLESS:
                    maps[method, layer] = maps[method, layer] / captured[layer].features.shape[1]
        return maps

    def _at_once(self, fast: compiled.Fast, sweep: Sweep) -> Maps | None:
        """The maps, if they are of one class of each input and compiled as a whole."""
        one = sweep.predicted if sweep.targets is None else sweep.targets.shape[1] == 1
        if not one or len(sweep.layers) > 1 or not AT_ONCE.issuperset(sweep.methods):
            return None
        answer = compiled.at_once(fast, sweep, {m: GRADIENT_METHODS[m] for m in sweep.methods})
        if answer is None:
            return None
        scores, found, channels = answer
        sweep.choose(scores)
        (layer,), mean = sweep.layers, self.options.reduction == "mean"
        for method, (_, noise) in zip(sweep.methods, found, strict=True):
            if method not in NEVER_NOISE:
                sweep.remark(method, layer, noise, cams.NOISY)
        return {
            (method, layer): maps / channels if mean else maps
            for method, (maps, _) in zip(sweep.methods, found, strict=True)
        }


Maps = dict[tuple[str, str], Tensor]  # [B, T, h, w] by method and layer


@dataclass(frozen=True)
class _Run:
    """The results of one forward, and the maps that each kind of method makes from them."""

    sweep: Sweep
    options: NativeOptions
    scores: Tensor
    targets: Tensor
    captured: dict[str, Captured]

    @cached_property
    def heads(self) -> dict[str, Head]:
        """What is above each layer, for ablation."""
        captured = self.captured if "ablationcam" in self.sweep.methods else {}
        return {
            layer: perturbation.head(self.sweep.module, self.inputs, layer, kept.layout.batch)
            for layer, kept in captured.items()
        }

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        return (self.sweep.inputs, *self.sweep.extras)

    def curvature_maps(self) -> Maps:
        """Class by class: a second derivative cannot be shared."""
        maps: Maps = {}
        for layer, kept in self.captured.items() if "shapleycam" in self.sweep.methods else ():
            parts = [
                cams.shapleycam(kept.features, kept.layout.to_map(g)[None], kept.layout.to_map(h)[None])
                for g, h in second_order(self.scores, self.targets, kept)
            ]
            maps["shapleycam", layer] = torch.cat(parts, dim=1)
        return maps

    def gradient_maps(self) -> Maps:
        """Methods of the same scores share the gradients, chunk by chunk of the classes."""
        passes = [p for p in self._passes() if p[0]]
        pieces: dict[tuple[str, str], list[Tensor]] = {key: [] for p in passes for key in p[0]}
        for formulas, scores, targets in passes:
            layers = list(dict.fromkeys(layer for _, layer in formulas))
            keep = formulas is not passes[-1][0]
            for gradients in self._gradients(scores, targets, layers, keep=keep):
                for (method, layer), formula in formulas.items():
                    kept, gradient = self.captured[layer], gradients[layers.index(layer)]
                    slopes = kept.layout.to_map(gradient)
                    maps = formula(kept.features, slopes)
                    if not pieces[method, layer] and method not in NEVER_NOISE:
                        noise = cams.is_noise(maps, formula, kept.features, slopes)
                        self.sweep.remark(method, layer, noise, cams.NOISY)
                    pieces[method, layer].append(maps)
        return {key: torch.cat(parts, dim=1) for key, parts in pieces.items()}

    def _gradients(
        self, scores: Tensor, targets: Tensor, layers: Sequence[str], keep: bool
    ) -> Iterator[tuple[Tensor, ...]]:
        """Like `class_gradients`; for many classes behind a global mean without differentiating each."""
        outputs = [self.captured[layer].output for layer in layers]
        at_once, slopes = classes_at_once(outputs), None
        if targets.shape[1] > at_once and scores is self.scores and len(layers) == 1:
            slopes = pooled_slopes(self.sweep.module, layers[0], self.captured[layers[0]])
        if slopes is None:
            yield from class_gradients(scores, targets, outputs, keep=keep)
        else:
            yield from ((slopes[columns.t()],) for columns in torch.split(targets, at_once, dim=1))

    def _passes(self) -> Iterator[tuple[dict[tuple[str, str], GradientFormula], Tensor, Tensor]]:
        """Formulas by method and layer, with the scores and targets whose gradients they take."""
        methods, layers = self.sweep.methods, list(self.captured)
        plain = {
            (m, layer): GRADIENT_METHODS[m] for m in methods if m in GRADIENT_METHODS for layer in layers
        }
        affine = [layer for layer in self.heads if self.heads[layer].affine]
        plain |= {("ablationcam", layer): cams.ablationcam_affine for layer in affine}
        yield plain, self.scores, self.targets
        if "finercam" in methods:
            if self.scores.shape[1] < 2:
                raise UsageError("finercam holds a class against others, but there is only one score")
            contrast = cams.contrast(
                self.scores, self.targets, self.options.alpha, self.options.comparisons
            )
            every = torch.arange(contrast.shape[1], device=contrast.device).expand(len(contrast), -1)
            yield {("finercam", layer): cams.gradcam for layer in layers}, contrast, every

    def feature_maps(self) -> Maps:
        """The same map for every class."""
        shared = {
            (m, layer): FEATURE_METHODS[m](kept.features)
            for m in self.sweep.methods
            if m in FEATURE_METHODS
            for layer, kept in self.captured.items()
        }
        classes = self.targets.shape[1]
        return {key: map.expand(-1, classes, *map.shape[2:]) for key, map in shared.items()}

    def perturbation_maps(self) -> Maps:
        """From further runs of the head, or of the whole model, for each channel."""
        maps, rows = {}, self.options.batch_size
        for layer, head in self.heads.items():
            if not head.affine:
                own = self.scores.detach().gather(1, self.targets)
                ablated = perturbation.without_channel(head, self.captured[layer], self.targets, rows)
                maps["ablationcam", layer] = cams.ablationcam(self.captured[layer].features, own, ablated)
        for layer, kept in self.captured.items() if "scorecam" in self.sweep.methods else ():
            masked = perturbation.through_channel(
                self.sweep.module, self.inputs, kept.features, self.targets, rows
            )
            maps["scorecam", layer] = cams.scorecam(kept.features, masked)
        return maps


def class_gradients(
    scores: Tensor, targets: Tensor, outputs: Sequence[Tensor], *, keep: bool = False
) -> Iterator[tuple[Tensor, ...]]:
    """Gradients of `scores[b, targets[b, t]]` with respect to each of `outputs`.

    scores `[B, n]`, targets int64 `[B, T]`; yields, for consecutive chunks of the T classes, one tensor
    `[chunk, *output.shape]` for each output. keep: the graph is used again afterwards. Torch raises if the
    scores do not depend on an output.
    """
    chunks = torch.split(targets, classes_at_once(outputs), dim=1)
    for index, columns in enumerate(chunks):
        yield _gradients(scores, columns, outputs, keep or index < len(chunks) - 1)


def classes_at_once(outputs: Sequence[Tensor]) -> int:
    """How many classes fit into the bytes that suit the device, at least one.

    The formulas copy their inputs a few times, and eigengradcam in float64, so chunks keep memory from
    growing with the classes. On a CPU, at batch 32 and 224 pixels, 5 classes fit at the last layer of a
    ResNet-34 (3 MB each), one at its first (26 MB).
    """
    per_class = sum(output.numel() * output.element_size() for output in outputs)
    on_cpu = outputs[0].device.type == "cpu"
    return max(1, (GRADIENT_BYTES if on_cpu else GRADIENT_BYTES_OF_ACCELERATORS) // per_class)


def pooled_slopes(module: nn.Module, layer: str, captured: Captured) -> Tensor | None:
    """Gradients of all scores `[n, C, 1, 1]` where they are the same at all positions of all images.

    That is behind a global mean and a linear layer with weights `W`, where they are `W / (h w)`: the class
    activation maps of Zhou et al. 2016, arXiv:1512.04150. `None` behind anything else.
    """
    features = captured.features
    plain = captured.layout.kind == "channels-first" and not captured.layout.flat
    head = perturbation.pooled(module, layer, features) if plain else None
    if head is None:
        return None
    means = features.new_zeros(1, features.shape[1], *[1] * (features.ndim - 2)).requires_grad_()
    with torch.enable_grad():
        scores = head(means.clone())
    classes = torch.arange(scores.shape[1], device=scores.device)[None]
    gradients = torch.cat([chunk[:, 0] for (chunk,) in class_gradients(scores, classes, [means])])
    return gradients / prod(features.shape[2:])


def second_order(scores: Tensor, targets: Tensor, captured: Captured) -> Iterator[tuple[Tensor, ...]]:
    """For each of the T classes, the gradient by the output, and the Hessian times the features.

    Backwards through the gradient, not by the derivative of `J^T v` by `v`, which would serve all classes
    at once: in a third derivative, torch treats the mean and deviation of LayerNorm as constants.
    """
    direction = torch.zeros_like(captured.output)
    captured.layout.to_map(direction).copy_(captured.features)  # a view, so class tokens stay out
    for column in torch.split(targets, 1, dim=1):
        compute = partial(_second_order, scores, column, captured, direction)
        try:
            yield _scaled([scores, captured.output], compute)
        except RuntimeError as error:  # the host explains what has no first derivative
            if "is not implemented" not in str(error) and "differentiate twice" not in str(error):
                raise
            raise UsageError("shapleycam needs second derivatives, which this model lacks") from error


def _second_order(
    scores: Tensor, column: Tensor, captured: Captured, direction: Tensor, scale: float
) -> tuple[Tensor, ...]:
    """Gradient and curvature of one class, times `scale`."""
    own = _sum(scores, column, scale)
    (gradient,) = torch.autograd.grad(own, captured.output, create_graph=True)
    curvature = torch.zeros_like(gradient)  # if scores are linear in the output
    if gradient.requires_grad:
        (curvature,) = torch.autograd.grad(
            gradient, captured.output, direction, retain_graph=True, materialize_grads=True
        )
    return gradient.detach(), curvature


def _gradients(
    scores: Tensor, targets: Tensor, outputs: Sequence[Tensor], keep: bool
) -> tuple[Tensor, ...]:
    tensors = [scores, *outputs]
    return _scaled(tensors, partial(_scaled_gradients, scores, targets, outputs, keep or _is_half(tensors)))


def _scaled_gradients(
    scores: Tensor, targets: Tensor, outputs: Sequence[Tensor], keep: bool, scale: float
) -> tuple[Tensor, ...]:
    """Gradients of the scores times `scale`."""
    columns = torch.split(targets, 1, dim=1)
    if len(columns) > 1:
        seeds = scores.new_zeros(len(columns), *scores.shape).scatter_(2, targets.t().unsqueeze(2), scale)
        try:
            return torch.autograd.grad(scores, outputs, seeds, retain_graph=True, is_grads_batched=True)
        except RuntimeError:  # vmap cannot batch an operation: one class after the other
            pass
    # A sum, not `grad_outputs`: to check the latter, torch imports sympy, which takes 0.4 seconds.
    single = [
        torch.autograd.grad(
            _sum(scores, column, scale), outputs, retain_graph=keep or column is not columns[-1]
        )
        for column in columns
    ]
    return tuple(
        torch.stack(parts) if len(parts) > 1 else parts[0][None] for parts in zip(*single, strict=True)
    )


def _sum(scores: Tensor, column: Tensor, scale: float) -> Tensor:
    own = scores.gather(1, column)
    return own.sum() if scale == 1 else (own.float() * scale).sum()


# Factors for float16 gradients, lest those of large maps vanish; the smaller ones if they overflow.
SCALES = (2.0**14, 2.0**7, 1.0)


def _scaled(
    tensors: Sequence[Tensor], compute: Callable[[float], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """`compute(1.0)`; if a tensor is float16, that of a larger scale, divided by it in float32."""
    if not _is_half(tensors):
        return compute(1.0)
    for scale in SCALES:
        found = compute(scale)
        if bool(torch.stack([gradient.isfinite().all() for gradient in found]).all()):
            break
    return tuple(gradient.float() / scale for gradient in found)


def _is_half(tensors: Sequence[Tensor]) -> bool:
    return any(tensor.dtype == torch.float16 for tensor in tensors)


_SWITCHES = threading.Lock()  # the choice of attention kernels is global to the process


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Plain attention instead of the fused one, which has no second derivative."""
    with _SWITCHES, sdpa_kernel(SDPBackend.MATH):
        yield
