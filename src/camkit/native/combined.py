"""Maps from many layers together, which the methods choose by themselves: one forward and one backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from camkit.contracts.explainer import Sweep
from camkit.core import all_layers, hooks, layer_formulas
from camkit.errors import UsageError
from camkit.native.gradients import class_gradients
from camkit.native.method_table import NativeOptions

Formula = Callable[[Sequence[Tensor], Sequence[Tensor], tuple[int, ...]], Tensor]


def maps(sweep: Sweep, methods: Sequence[str], options: NativeOptions) -> dict[tuple[str, str], Tensor]:
    """Maps `[B, T, *size]`, the same for each layer of the sweep."""
    formulas: dict[str, Formula] = {
        "winsorcam": partial(layer_formulas.winsorcam, percentile=options.percentile),
        "refinecam": layer_formulas.refinecam,
    }
    used = _layers(sweep, methods)
    names = list(dict.fromkeys(name for layers in used.values() for name in layers))
    scores, captured = hooks.forward(sweep.module, sweep.inputs, names, sweep.extras)
    targets = sweep.choose(scores)
    size, pieces = tuple(sweep.inputs.shape[2:]), {method: list[Tensor]() for method in methods}
    features = {name: captured[name].features for name in names}
    for found in class_gradients(scores, targets, [captured[name].output for name in names]):
        slopes = {n: captured[n].layout.to_map(g) for n, g in zip(names, found, strict=True)}
        for method, layers in used.items():
            pair = [features[name] for name in layers], [slopes[name] for name in layers]
            pieces[method].append(formulas[method](*pair, size))
    return {(method, at): torch.cat(parts, 1) for method, parts in pieces.items() for at in sweep.layers}


def _layers(sweep: Sweep, methods: Sequence[str]) -> dict[str, Sequence[str]]:
    """The layers of each method; `UsageError` if there are not several."""
    layers = all_layers.find(sweep.module, (sweep.inputs, *sweep.extras))
    used: dict[str, Sequence[str]] = {"winsorcam": layers.convolutions, "refinecam": layers.stages}
    kinds = {"winsorcam": "convolutions", "refinecam": "resolutions or blocks"}
    for method in methods:
        if len(used[method]) < 2:
            raise UsageError(
                f"{method} combines all {kinds[method]} of a model, of which this one has "
                f"{len(used[method]) or 'none'} with a map: choose another method"
            )
    return {method: used[method] for method in methods}
