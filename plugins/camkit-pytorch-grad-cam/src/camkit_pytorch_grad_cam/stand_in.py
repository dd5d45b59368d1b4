"""The model as pytorch-grad-cam gets it: a stand-in that it may hook, switch and change at will."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camkit import Query
from camkit.errors import LayerError
from camkit.layers import layout


class StandIn(nn.Module):
    """From inputs to scores `[B, n_classes]` as `query.module`, with the target layer as its one child.

    What goes in and out of `layer` is the feature map `[B, C, h, w]`, at least float32, also where the
    model computes tokens or half precision. The library switches its model to eval mode, hooks the layer
    or replaces it: done to the stand-in, nothing of that reaches the model, which carries one hook for
    the time of a forward. The hook hands a copy on, so an in-place ReLU behind the layer does no harm.

    features: what `layer` gave in the latest forward; a leaf that the scores can be differentiated by
        if gradients were enabled. Nothing below the layer has a graph, so frozen models work.
    """

    features: Tensor

    def __init__(self, query: Query) -> None:
        super().__init__()
        self.layer = nn.Identity()
        # The library takes the device of the first parameter for that of the model.
        self.device = nn.Parameter(query.inputs.new_empty(0), requires_grad=False)
        self._query = query

    def forward(self, x: Tensor) -> Tensor:
        """Scores, at least float32; `LayerError` if the layer did not run exactly once."""
        query, graph, owner, runs = self._query, torch.is_grad_enabled(), threading.get_ident(), 0

        def hook(_: nn.Module, __: Any, output: Any) -> Tensor | None:
            nonlocal runs
            if threading.get_ident() != owner:  # another thread uses the same model
                return None
            runs += 1
            shape = layout(output, x.shape, query.layer)
            torch.set_grad_enabled(graph)  # from here upwards; `no_grad` below restores it at the end
            features = wide(shape.to_map(output.detach()).clone()).requires_grad_(graph)
            self.features = self.layer(features)
            handed_on: Tensor = output.detach().clone()
            shape.to_map(handed_on).copy_(self.features)  # a view: class tokens stay as they are
            return handed_on

        handle = query.layer_module.register_forward_hook(hook)
        try:
            with torch.no_grad():
                scores = query.module(x.to(query.inputs.dtype, copy=True))
        finally:
            handle.remove()
        if runs != 1:
            raise LayerError(
                f"layer {query.layer!r} ran {runs} times in one forward, so it has no single map; choose "
                "one that runs once (hooks do not fire inside compiled, traced or exported modules)"
            )
        return wide(scores)


def differentiate(score: Tensor, by: Sequence[Tensor], origin: str, **flags: Any) -> tuple[Tensor, ...]:
    """`torch.autograd.grad`; `LayerError` if `score` does not depend on `by`, which `origin` names."""
    try:
        return tuple(torch.autograd.grad(score, by, **flags))
    except RuntimeError as error:
        if "not have been used in the graph" not in str(error) and "require grad" not in str(error):
            raise
        raise LayerError(f"the scores do not depend on {origin} through differentiable steps") from error


def wide(tensor: Tensor) -> Tensor:
    """At least float32: numpy knows no bfloat16."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
