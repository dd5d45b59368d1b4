"""What is above a layer, with the gradient and the maps of one class for each input, as one function.

Asked for step by step they are dozens of small operations, for which an accelerator waits and a CPU finds
nothing in its caches. So head, backward and formulas are traced together, by `torch.fx`, into operations
that need no autograd: a compiler takes them as a whole, and a graph of the device records them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from camkit.core import formulas as cams
from camkit.core.layout import Layout
from camkit.errors import CamkitError
from camkit.native.split import TRACING

# Of features and gradients [T, B, C, h, w] -> [B, T, h, w].
GradientFormula = Callable[[Tensor, Tensor], Tensor]

# Scores [B, n], then for each formula maps [B, 1, h, w] and whether they are only rounding noise, bool [B].
Found = tuple[Tensor, ...]
# From classes int64 [B, 1], the output of the layer and what goes around it.
Tail = Callable[..., Found]

# Operations that depend on values, for which the host would have to wait, or on chance.
_REFUSED = {
    torch.Tag.data_dependent_output,
    torch.Tag.dynamic_output_shape,
    torch.Tag.nondeterministic_seeded,
}


def tail(head: Callable[..., Any], layout: Layout, formulas: Mapping[str, GradientFormula]) -> Tail:
    """The function, step by step. Classes that do not exist are clamped: whoever asks for them is told."""

    def run(targets: Tensor, output: Tensor, *around: Tensor) -> Found:
        with torch.enable_grad():
            kept = output.detach().requires_grad_()
            scores = head(kept.clone(), *(value.clone() for value in around))
            own = scores.gather(1, targets.clamp(0, scores.shape[1] - 1))
            (gradient,) = torch.autograd.grad(own.sum(), kept)
        features, slopes = layout.to_map(output), layout.to_map(gradient[None])
        found = [scores.detach()]
        for formula in formulas.values():
            maps = formula(features, slopes)
            found += [maps, cams.is_noise(maps, formula, features, slopes)]
        return tuple(found)

    return run


def of_predicted(head: Callable[..., Any], run: Tail) -> Tail:
    """A `tail` that looks for the classes itself; its scores are those that they are the highest of."""

    @torch.no_grad()
    def predicted(_: Tensor, *values: Tensor) -> Found:
        scores: Tensor = head(*(value.clone() for value in values))
        return scores, *run(scores.argmax(1, keepdim=True), *values)[1:]

    return predicted


def traced(run: Tail, targets: Tensor, values: Sequence[Any]) -> fx.GraphModule:
    """The operations of a `tail` for these shapes; the weights are the model's own tensors.

    Raises `CamkitError` for one that cannot be repeated blindly, and whatever the head raises.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes its time

    if not all(isinstance(value, Tensor) for value in values):
        raise CamkitError("what goes around the layer is more than tensors")
    with TRACING:
        graph: fx.GraphModule = make_fx(run)(targets, *values)
    for node in graph.graph.nodes:
        if _REFUSED.intersection(getattr(node.target, "tags", ())):
            raise CamkitError(f"{node.target} depends on values, or on chance")
        if any(device != targets.device for device in _devices(node, graph)):
            raise CamkitError(f"{node.target} is on another device")  # a copy in each call
    return graph


def _devices(node: fx.Node, graph: fx.GraphModule) -> Iterator[torch.device]:
    """The devices that an operation names, or that a tensor of the model is on."""
    named = node.kwargs.get("device")
    if isinstance(named, torch.device):
        yield named
    if node.op == "get_attr" and isinstance(constant := getattr(graph, str(node.target)), Tensor):
        yield constant.device
