"""Remarks on maps that are zero everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from camkit.core.call_types import Remark

# Methods of positive parts, whose map may be zero although the score depends on the input.
POSITIVE = {
    "generic-attention": "no weight of attention has a positive gradient",
    "legrad": "no weight of attention has a positive gradient",
    "grad-eclip": "the values of no patch speak for it",
    "winsorcam": "no layer with a positive map has a positive mean gradient (LayerNorm makes it 0)",
    "refinecam": "the positive parts of its layers do not overlap",
}
# Methods that use only positive gradients: a single image may have none.
RECTIFIED = {"gradcam++", "layercam", "gradcam-elementwise", "generic-attention", "legrad"}
SATURATED = 1e-6  # how near a probability is to 0 or 1 where its gradient is lost


def are_zero(maps: Tensor) -> Tensor:
    """Which of the maps `[B, T, ...]` are zero everywhere, bool `[B, T]`; NaN counts as something."""
    return maps.flatten(2).abs().amax(2) == 0


def zero_maps(
    zeros: Mapping[tuple[str, str], Tensor],
    scores: Tensor,
    targets: Tensor,
    layerless: Sequence[str],
    hint: Callable[[str], str],
) -> Iterator[Remark]:
    """What to say about maps that are zero everywhere, and why they are.

    zeros: which ones are, by method and layer, from `are_zero`; each holds at least one. layerless: methods
    that look at no layer.
    """
    saturated = _saturated(scores, targets).cpu() if zeros else torch.empty(0)
    for (method, layer), found in zeros.items():
        zero = found.cpu()
        if method in RECTIFIED and not bool(zero.all()):
            continue
        if method in layerless:
            why = POSITIVE.get(method, "the score is the same whatever is done to the input")
            text = f"{method} is zero everywhere: {why}"
            yield Remark(method, layer, zero, text)
            continue
        if bool((sure := zero & saturated).any()):
            text = (
                f"{method} is zero at layer {layer!r} because the score is a probability so near to 0 or 1 "
                "that it has no gradient: explain what is below the softmax or sigmoid"
            )
            yield Remark(method, layer, sure, text)
        if bool((other := zero & ~saturated).any()):
            # As behind the last attention of a ViT, after which only the class token is used.
            where = hint(layer) if bool(zero.all()) else ""
            text = f"{method} is zero everywhere at layer {layer!r}, as where no gradient arrives{where}"
            yield Remark(method, layer, other, text)


def _saturated(scores: Tensor, targets: Tensor) -> Tensor:
    """Which of the explained scores are saturated probabilities, bool `[B, T]`."""
    in_range = ((scores >= 0) & (scores <= 1)).all(1, keepdim=True)
    add_up = (scores.float().sum(1, keepdim=True) - 1).abs() < 1e-3  # rectified scores may be zero, too
    own = scores.gather(1, targets).float()
    return in_range & ((own >= 1 - SATURATED) | (add_up & (own <= SATURATED)))
