"""FullGrad looks at the input and at every bias, not at one layer, so it has a forward of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from pytorch_grad_cam import FullGrad
from torch import Tensor, nn

from camkit.plugin import Query, wide
from camkit_pytorch_grad_cam.methods import adapted


class _FullGrad(adapted(FullGrad)):  # type: ignore[misc]  # the library has no types
    """The library's formula on gradients from elsewhere; its constructor hooks and switches the model."""

    def __init__(self, layers: Sequence[nn.Module], grads: Sequence[Tensor]) -> None:
        self.bias_data = [wide(self.get_bias_data(layer)).cpu().numpy() for layer in layers]
        self.activations_and_grads = SimpleNamespace(gradients=grads, release=lambda: None)


def fullgrad(query: Query, total: Callable[[Tensor], Tensor], eigen_smooth: bool) -> Tensor:
    """`[B, H, W]`, as large as the inputs; `total` sums the explained scores of `[B, n_classes]`."""
    runs: list[tuple[nn.Module, Tensor]] = []
    owner = threading.get_ident()

    def hook(layer: nn.Module, _: Any, output: Tensor) -> Tensor | None:
        if threading.get_ident() != owner:  # another thread uses the same model
            return None
        runs.append((layer, output))
        return output.clone()  # an in-place operation behind the layer must not change what is kept

    inputs = query.inputs.detach().clone().requires_grad_()
    handles = [
        layer.register_forward_hook(hook, prepend=True)
        for layer in query.module.modules()
        if _has_bias_map(layer)
    ]
    try:
        scores = query.module(inputs.clone())
        query.seen(scores.detach())
        score = total(wide(scores))
    finally:
        for handle in handles:
            handle.remove()
    outputs = [output for _, output in runs]
    by_input, *by_output = torch.autograd.grad(score, [inputs, *outputs], allow_unused=True)
    if (
        by_input is None
    ):  # unlike a layer beside the score, that is an error: torch's own, which the host knows
        torch.autograd.grad(score, inputs)
    grads = [wide(torch.zeros_like(o) if g is None else g) for o, g in zip(outputs, by_output, strict=True)]
    cam = _FullGrad([layer for layer, _ in runs], grads)
    leaf = wide(inputs.detach())
    leaf.grad = wide(by_input)
    return torch.from_numpy(cam.compute_cam_per_layer(leaf, None, eigen_smooth)[:, 0]).to(leaf.dtype)


def _has_bias_map(layer: nn.Module) -> bool:
    """The library's choice of layers, without those that have no running mean to make a bias of."""
    if type(layer) is nn.BatchNorm2d:
        return layer.bias is not None and layer.running_mean is not None
    return type(layer) is nn.Conv2d and layer.bias is not None
