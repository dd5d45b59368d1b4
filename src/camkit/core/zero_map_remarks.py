"""What has to be said of maps that are zero everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from camkit.core.call_types import Remark

# Methods that look at positive gradients alone: of a single image there may be none.
RECTIFIED = {"gradcam++", "layercam", "gradcam-elementwise"}
SATURATED = 1e-6  # how near a probability is to 0 or 1 where its gradient is lost


def are_zero(maps: Tensor) -> Tensor:
    """Which of the maps `[B, T, ...]` are zero everywhere, bool `[B, T]`; NaN counts as something."""
    return maps.flatten(2).abs().amax(2) == 0


def zero_maps(
    zeros: Mapping[tuple[str, str], Tensor],
    scores: Tensor,
    targets: Tensor,
    hint: Callable[[str], str],
) -> Iterator[Remark]:
    """What to say of maps that are zero everywhere, and why they are.

    zeros: which those are, by method and layer, as `are_zero` says; each has some.
    """
    saturated = _saturated(scores, targets).cpu() if zeros else torch.empty(0)
    for (method, layer), found in zeros.items():
        zero = found.cpu()
        if method in RECTIFIED and not bool(zero.all()):
            continue
        if bool((sure := zero & saturated).any()):
            text = (
                f"{method} is zero at layer {layer!r} because the score is a probability so near to 0 or 1 "
                "that it has no gradient: explain what is below the softmax or sigmoid"
            )
            yield Remark(method, layer, sure, text)
        if bool((other := zero & ~saturated).any()):
            # As behind the last attention of a ViT, from where the class token alone goes on.
            where = hint(layer) if bool(zero.all()) else ""
            text = f"{method} is zero everywhere at layer {layer!r}, as where no gradient arrives{where}"
            yield Remark(method, layer, other, text)


def _saturated(scores: Tensor, targets: Tensor) -> Tensor:
    """Which of the scores explained are probabilities that nothing moves any more, bool `[B, T]`."""
    are = ((scores >= 0) & (scores <= 1)).all(1, keepdim=True)
    add_up = (scores.float().sum(1, keepdim=True) - 1).abs() < 1e-3  # what is rectified may be zero, too
    own = scores.gather(1, targets).float()
    return are & ((own >= 1 - SATURATED) | (add_up & (own <= SATURATED)))
