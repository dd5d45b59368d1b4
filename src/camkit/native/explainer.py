"""The native explainer: the whole family from one forward."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.contracts.explainer import Explainer, Query, Sweep
from camkit.core import all_layers, hooks
from camkit.core import formulas as cams
from camkit.core.hooks import Captured
from camkit.errors import UsageError, warn
from camkit.native import black_box, combined, compiled, input_gradients, perturbation
from camkit.native.attention import Seen, watched
from camkit.native.attention_maps import Attended
from camkit.native.gradients import class_gradients, classes_at_once, pooled_slopes, second_order
from camkit.native.libra import Libra
from camkit.native.method_table import (
    ATTENDED,
    BALANCED,
    BLACK_BOX,
    COMBINED,
    FEATURES,
    GRADIENTS,
    INPUT_GRADIENTS,
    METHODS,
    NativeOptions,
)
from camkit.native.perturbation import Head
from camkit.native.tail import GradientFormula

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

# Methods that are asked for no layer, by what computes them.
APART = {
    BLACK_BOX: black_box.maps,
    INPUT_GRADIENTS: input_gradients.maps,
    COMBINED: combined.maps,
}

# What is said where libra=true has nothing to balance.
UNBALANCED = (
    "is the same without libra=true: what is above the layer has no norm, gate or product to balance"
)

# These have no sum over channels.
SUMLESS = ("eigengradcam", *FEATURE_METHODS, *ATTENDED)


class Native(Explainer):
    """Hooks and `autograd.grad` from the target layer upwards; classes and layers share a forward."""

    summary = "Grad-CAM and its family from one forward; nothing below the layer is differentiated"
    methods = METHODS
    dtypes = ("float32", "float64", "bfloat16", "float16")
    class_agnostic = (*FEATURE_METHODS, "attention-rollout")
    layerless = (*ATTENDED, *BLACK_BOX, *INPUT_GRADIENTS, *COMBINED)
    unsigned = (*ATTENDED, "sobol", "hsic", *COMBINED)
    needs_attention = ATTENDED
    contrasting = ("finercam",)
    notes: ClassVar[Mapping[str, str]] = {
        "shapleycam": "where the score is linear in the layer it equals gradcam",
        "finercam": "gradcam of the score minus those of the most similar classes",
        "ablationcam": "one run of what is above the layer for each channel; none if that is affine",
        "scorecam": "one forward for each channel; weights are positive",
        "attention-rollout": "attention of all blocks; how much reaches the class token, no sign",
        "generic-attention": "attention of all blocks times its positive gradients; no sign",
        "legrad": "positive gradients by the attention of each block; no sign",
        "grad-eclip": "values of the last attention by their gradients, as for CLIP; no sign",
        "rise": "how the score differs from its mean where a place stays; what is hidden is zero",
        "sobol": "share of the variance of the score, no sign; the interval is wide with few masks",
        "hsic": "dependence of the score on a cell, no sign and no unit",
        "integrated-gradients": "of each pixel; they add up to the change from the mean colour",
        "smoothgrad": "mean gradient of noisy copies, of each pixel; not what it adds to the score",
        "expected-gradients": "of each pixel; they add up to the change from the mean of the baselines",
        "winsorcam": "gradcam of all convolutions, by their importance, clipped; no sign",
        "refinecam": "product of gradcam++ of all resolutions, or blocks; no sign",
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
        if not self.options.libra:
            return self._many(sweep)
        if "shapleycam" in sweep.methods:
            raise UsageError(
                "shapleycam takes second derivatives, and libra=true leaves none: gradcam is the same there"
            )
        if not set(COMBINED).isdisjoint(sweep.methods):
            # Which layers there are is found once, from gradients that nothing has balanced.
            all_layers.find(sweep.module, (sweep.inputs, *sweep.extras))
        with Libra() as libra:
            found = self._many(sweep)
        concerned = () if libra.applied else [m for m in sweep.methods if m in BALANCED]
        for method, layer in ((method, layer) for method in concerned for layer in sweep.layers):
            sweep.remark(method, layer, torch.ones(len(sweep.inputs), dtype=torch.bool), UNBALANCED)
        return found

    def _many(self, sweep: Sweep) -> Maps:
        apart = {compute: [m for m in sweep.methods if m in known] for known, compute in APART.items()}
        at_layer = tuple(m for m in sweep.methods if not any(m in those for those in apart.values()))
        maps = self._at_layer(replace(sweep, methods=at_layer)) if at_layer else {}
        for compute, methods in apart.items():
            maps |= compute(sweep, methods, self.options) if methods else {}
        return {(method, layer): maps[method, layer] for method in sweep.methods for layer in sweep.layers}

    def _at_layer(self, sweep: Sweep) -> Maps:
        """Raw maps `[B, T, h, w]` by method and layer, all from one forward of the whole model."""
        fast = self._fast(sweep)
        if fast and (found := self._at_once(fast, sweep)):
            return found
        scores, captured, seen = _forward(sweep, fast)
        attended = Attended(sweep, seen, scores) if seen else None
        run = _Run(sweep, self.options, scores, sweep.choose(scores), captured, attended)
        maps = run.curvature_maps()  # first, while there is a graph
        maps |= run.attention_maps()
        maps |= run.gradient_maps()  # their last pass frees the graph
        maps |= run.feature_maps()
        maps |= run.perturbation_maps()
        if self.options.reduction == "mean":  # over channels: the sum, divided at the end
            for method, layer in maps:
                if method not in SUMLESS:
                    maps[method, layer] = maps[method, layer] / captured[layer].features.shape[1]
        return maps

    def _fast(self, sweep: Sweep) -> compiled.Fast | None:
        """The compiled model, where it is wanted and possible."""
        if self.options.fast and self.options.libra:
            warn("without fast mode: libra=true balances the plain forward only")
            return None
        if self.options.fast and not set(ATTENDED).isdisjoint(sweep.methods):
            warn("without fast mode: attention is seen in the plain forward only")
            return None
        return compiled.ready(sweep) if self.options.fast else None

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


def _forward(sweep: Sweep, fast: compiled.Fast | None) -> tuple[Tensor, dict[str, Captured], Seen | None]:
    """Scores, the outputs of the layers, and the attention, as far as methods look at them."""
    twice = _twice_differentiable() if "shapleycam" in sweep.methods else nullcontext()
    if fast:
        with twice:
            return (*compiled.forward(fast, sweep), None)
    layers = () if set(ATTENDED).issuperset(sweep.methods) else sweep.layers
    ask = (sweep.module, sweep.inputs, layers, sweep.extras)
    if set(ATTENDED).isdisjoint(sweep.methods):
        with twice:
            return (*hooks.forward(*ask, kind=sweep.layout), None)
    with watched(sweep.module, len(sweep.inputs), blocks="legrad" in sweep.methods) as watch, twice:
        found = hooks.forward(*ask, kind=sweep.layout)
    return (*found, watch.seen)


@dataclass(frozen=True)
class _Run:
    """The results of one forward, and the maps that each kind of method makes from them."""

    sweep: Sweep
    options: NativeOptions
    scores: Tensor
    targets: Tensor
    captured: dict[str, Captured]
    attended: Attended | None

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

    def attention_maps(self) -> Maps:
        """From all blocks, so at every layer the same; without those that share gradients."""
        maps, classes = {}, self.targets.shape[1]
        if self.attended and "attention-rollout" in self.sweep.methods:
            maps["attention-rollout"] = self.attended.rollout().expand(-1, classes, -1, -1)
        if self.attended and "generic-attention" in self.sweep.methods:
            _ = self.attended.chain  # whatever is refused is, while there is a graph
        if self.attended and "legrad" in self.sweep.methods:
            maps["legrad"] = self.attended.legrad(self.targets)
        if self.attended and "grad-eclip" in self.sweep.methods:
            maps["grad-eclip"] = self.attended.eclip(self.targets)
        return {(method, layer): value for method, value in maps.items() for layer in self.sweep.layers}

    def gradient_maps(self) -> Maps:
        """Methods of the same scores share the gradients, chunk by chunk of the classes."""
        generic = self.attended if "generic-attention" in self.sweep.methods else None
        attentions = [attention.output for attention in generic.chain] if generic else []
        passes = [p for p in self._passes() if p[0] or (generic and p[1] is self.scores)]
        of_attention: list[Tensor] = []
        pieces: dict[tuple[str, str], list[Tensor]] = {key: [] for p in passes for key in p[0]}
        for formulas, scores, targets in passes:
            layers = list(dict.fromkeys(layer for _, layer in formulas))
            keep = formulas is not passes[-1][0]
            further = attentions if scores is self.scores else []
            for gradients in self._gradients(scores, targets, layers, further, keep=keep):
                if generic and further:
                    of_attention.append(generic.generic(gradients[len(layers) :]))
                for (method, layer), formula in formulas.items():
                    kept, gradient = self.captured[layer], gradients[layers.index(layer)]
                    slopes = kept.layout.to_map(gradient)
                    maps = formula(kept.features, slopes)
                    if not pieces[method, layer] and method not in NEVER_NOISE:
                        noise = cams.is_noise(maps, formula, kept.features, slopes)
                        self.sweep.remark(method, layer, noise, cams.NOISY)
                    pieces[method, layer].append(maps)
        if of_attention:
            pieces |= {("generic-attention", layer): of_attention for layer in self.sweep.layers}
        return {key: torch.cat(parts, dim=1) for key, parts in pieces.items()}

    def _gradients(
        self,
        scores: Tensor,
        targets: Tensor,
        layers: Sequence[str],
        further: Sequence[Tensor],
        keep: bool,
    ) -> Iterator[tuple[Tensor, ...]]:
        """Like `class_gradients`; for many classes behind a global mean without differentiating each.

        further: what they are wanted of, too, behind the outputs of the layers.
        """
        outputs = [*(self.captured[layer].output for layer in layers), *further]
        at_once, slopes = classes_at_once(outputs), None
        if targets.shape[1] > at_once and scores is self.scores and len(layers) == 1 == len(outputs):
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


_SWITCHES = threading.Lock()  # the choice of attention kernels is global to the process


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Plain attention instead of the fused one, which has no second derivative."""
    with _SWITCHES, sdpa_kernel(SDPBackend.MATH):
        yield
