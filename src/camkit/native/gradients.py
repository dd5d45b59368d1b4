"""Gradients of class scores: in chunks of classes, scaled in half precision, and of second order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import prod

import torch
from torch import Tensor, nn

from camkit.core.hooks import Captured
from camkit.errors import UsageError
from camkit.native import perturbation

# Gradients of several classes are computed together; a chunk of classes takes at most this much. On a CPU
# larger chunks are slower: they fall out of the caches, and the system takes their memory back each time.
# With smaller ones, accelerators wait for the host.
GRADIENT_BYTES = 16 * 2**20
GRADIENT_BYTES_OF_ACCELERATORS = 2**30


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
    return fitting(per_class, outputs[0].device)


def fitting(size: int, device: torch.device) -> int:
    """How many times so many bytes fit into those that suit the device, at least once."""
    return max(1, (GRADIENT_BYTES if device.type == "cpu" else GRADIENT_BYTES_OF_ACCELERATORS) // size)


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
            yield scaled([scores, captured.output], compute)
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
    return scaled(tensors, partial(_scaled_gradients, scores, targets, outputs, keep or _is_half(tensors)))


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


def scaled(tensors: Sequence[Tensor], compute: Callable[[float], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
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
