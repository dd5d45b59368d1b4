"""What has to be said of maps that are zero everywhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from camkit.core.call_types import Remark

# Methods that look at positive gradients alone: of a single image there may be none.
RECTIFIED = {"gradcam++", "layercam", "gradcam-elementwise"}
SATURATED = 1e-6  # how near a probability is to 0 or 1 where its gradient is lost


def zero_maps(
    maps: Mapping[tuple[str, str], Tensor],
    agnostic: Sequence[str],
    scores: Tensor,
    targets: Tensor,
    hint: Callable[[str], str],
) -> Iterator[Remark]:
    """What to say of maps that are zero everywhere, and why they are."""
    saturated: Tensor | None = None
    for (method, layer), found in maps.items():
        if method in agnostic:
            continue
        peaks = found.flatten(2).abs().amax(2)
        if bool(peaks.all()):  # NaN counts as something
            continue
        zero = (peaks == 0).cpu()
        if method in RECTIFIED and not bool(zero.all()):
            continue
        if saturated is None:
            saturated = _saturated(scores, targets).cpu()
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
