"""zennit as a backend of camkit: layer-wise relevance propagation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from zennit import composites, types

from camkit.errors import warn
from camkit.plugin import Explainer, Query, option
from camkit_zennit.network import canonizers, check, copied


@dataclass(frozen=True)
class ZennitOptions:
    """Options of the zennit backend."""

    epsilon: float = option(
        1e-6, min=0.0, help="of the epsilon rule: what small relevances are damped with"
    )
    gamma: float = option(0.25, min=0.0, help="of the gamma rule: how much positive weights are favoured")


def _box(options: ZennitOptions, inputs: Tensor) -> dict[str, Any]:
    """The range of the values of each input, by channel."""
    low, high = inputs.amin((2, 3), keepdim=True), inputs.amax((2, 3), keepdim=True)
    return {"low": low, "high": high, "epsilon": options.epsilon, "gamma": options.gamma}


def _epsilon(options: ZennitOptions, _: Tensor) -> dict[str, Any]:
    return {"epsilon": options.epsilon}


def _nothing(_: ZennitOptions, __: Tensor) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Method:
    """A composite of zennit's rules, and its arguments from options and inputs.

    of_score: the score is handed down; else 1, of methods that know no sign. first: of which kind the layer
    is that has a rule of its own.
    """

    composite: Callable[..., Any]
    note: str
    arguments: Callable[[ZennitOptions, Tensor], dict[str, Any]] = _epsilon
    of_score: bool = True
    first: tuple[Any, ...] = ()


METHODS: Mapping[str, Method] = {
    "lrp-epsilon-plus": Method(
        composites.EpsilonPlus, "z-plus for convolutions, epsilon for linear layers; about the score in sum"
    ),
    "lrp-epsilon-plus-flat": Method(
        composites.EpsilonPlusFlat,
        "the same with the flat rule in the first layer: what is seen, smoothly",
        first=types.Linear,
    ),
    "lrp-epsilon-gamma-box": Method(
        composites.EpsilonGammaBox,
        "gamma for convolutions, the range of the values in the first layer",
        _box,
        first=types.Convolution,
    ),
    "lrp-epsilon-alpha2-beta1": Method(
        composites.EpsilonAlpha2Beta1, "positive relevance twice, negative once, for convolutions"
    ),
    "excitation-backprop": Method(
        composites.ExcitationBackprop, "z-plus everywhere, of 1: never negative", _nothing, of_score=False
    ),
}


class Zennit(Explainer):
    """A copy of the model, with zennit's rules in place of gradients."""

    summary = "Layer-wise relevance propagation by zennit; patented for commercial use"
    methods = tuple(METHODS)
    layerless = methods
    dtypes = ("float32", "float64")
    unsigned = ("excitation-backprop",)
    notes: ClassVar[Mapping[str, str]] = {
        name: f"{method.note}; patented: commercial use needs a licence of its owners"
        for name, method in METHODS.items()
    }
    Options: ClassVar[type] = ZennitOptions

    def maps(self, query: Query) -> Tensor:
        """Relevance, summed over the channels, `[B, H, W]`."""
        module, inputs = copied(query.module), query.inputs.detach().clone()
        method = METHODS[query.method]
        check(module, inputs, type(query.module).__name__, method.first)
        composite = method.composite(canonizers=canonizers(), **method.arguments(self.options, inputs))
        with torch.enable_grad(), composite.context(module) as network:
            scores = network(inputs.requires_grad_())
            query.seen(scores.detach())
            start = torch.zeros_like(scores).scatter(1, query.targets[:, None], 1)
            start = start * scores.detach() if method.of_score else start
            (relevance,) = torch.autograd.grad(scores, inputs, start)
        found = relevance.detach().sum(1)
        if not bool(found.isfinite().all()):
            warn("zennit's relevance is not finite: a larger epsilon may help")
        return found
