"""Perturbation: scores without one channel of a layer, and scores of the input seen through one channel.

Scores are those of classes `targets`, int64 `[B, T]`, for every image and channel: `[T, B, C]`. Images and
channels run together in chunks, so memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from camkit.core import formulas, hooks
from camkit.core.hooks import Captured
from camkit.native.split import split

# The most bytes in a chunk of altered outputs or of masked inputs.
ROW_BYTES = 256 * 2**20

# Bytes of inputs in one forward on a CPU, where more fall out of the caches and the system takes their
# memory back each time: of 224 pixels, 32 at once take 2.3 times as long each as 4.
CPU_BYTES = 5 * 2**19


@dataclass(frozen=True)
class Head:
    """What a model does above a layer.

    scores: from outputs of the layer `[n, ...]`, which it may overwrite, and the index of the image that
        each belongs to, int64 `[n]`, to scores `[n, n_classes]`; without a graph.
    affine: whether the scores are certainly an affine function of the output.
    """

    scores: Callable[[Tensor, Tensor], Tensor]
    affine: bool


def head(module: nn.Module, inputs: Sequence[Tensor], layer: str, batch: int = 0) -> Head:
    """What `module` does above `layer`; where it cannot be split there, the whole module runs.

    What goes around the layer is computed once, and must be tensors with a row for each image.
    batch: the dimension of the images in the layer's output.
    """
    parts = split(module, layer) if len(inputs) == 1 and batch == 0 else None
    around: Sequence[Any] = ()
    if parts and parts.around:
        with torch.no_grad():
            around = parts.body(inputs[0])[1:]
    rows = len(inputs[0])
    if parts is None or not all(isinstance(v, Tensor) and v.shape[:1] == (rows,) for v in around):

        def whole(output: Tensor, image: Tensor) -> Any:
            return hooks.with_output(module, [x[image] for x in inputs], layer, output)

        return Head(whole, affine=False)

    @torch.no_grad()
    def part(output: Tensor, image: Tensor) -> Any:
        return parts.head(output, *(value[image] for value in around))

    return Head(part, is_affine(parts.head))


def without_channel(head: Head, captured: Captured, targets: Tensor, batch_size: int) -> Tensor:
    """Scores `[T, B, C]` with the positions of one channel set to zero; class tokens stay as they are."""
    output = captured.output.detach()
    images, count = captured.features.shape[:2]

    def scores(image: Tensor, channel: Tensor) -> Tensor:
        altered = output.index_select(captured.layout.batch, image)
        rows = torch.arange(len(image), device=image.device)
        captured.layout.to_map(altered)[rows, channel] = 0  # a view
        return head.scores(altered, image)

    return _every_channel(scores, images, count, targets, rows_at_once(batch_size, output, images))


def through_channel(
    module: nn.Module, inputs: Sequence[Tensor], features: Tensor, targets: Tensor, batch_size: int
) -> Tensor:
    """Scores `[T, B, C]` of the first input times the mask of one channel (`cams.masks`)."""
    first, *extras = inputs
    images, count = features.shape[:2]

    def scores(image: Tensor, channel: Tensor) -> Tensor:
        mask = formulas.masks(features[image, channel], tuple(first.shape[2:])).to(first.dtype)
        with torch.no_grad():
            result: Tensor = module(first[image] * mask, *(extra[image] for extra in extras))
        return result

    return _every_channel(scores, images, count, targets, rows_at_once(batch_size, first, images))


def _every_channel(
    scores: Callable[[Tensor, Tensor], Tensor], images: int, channels: int, targets: Tensor, rows: int
) -> Tensor:
    pairs = torch.arange(images * channels, device=targets.device)
    found = [
        scores(chunk // channels, chunk % channels).gather(1, targets[chunk // channels])
        for chunk in torch.split(pairs, rows)
    ]
    return torch.cat(found).reshape(images, channels, -1).permute(2, 0, 1)


def rows_at_once(batch_size: int, like: Tensor, images: int) -> int:
    """How many rows like the `images` of `like` run together: `batch_size`, or what `ROW_BYTES` hold."""
    return max(1, min(batch_size, ROW_BYTES // (like.numel() // images * like.element_size())))


def inputs_at_once(batch_size: int, like: Tensor) -> int:
    """How many inputs made from one like those of `like` run together; on a CPU fewer, which is faster."""
    together, one = rows_at_once(batch_size, like, len(like)), like[0].numel() * like.element_size()
    return max(1, min(together, CPU_BYTES // one)) if like.device.type == "cpu" else together


# Modules in eval mode, and functions, whose result is affine in their only tensor, or a shape.
_MODULES = {
    *(nn.Linear, nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
}
_FUNCTIONS = {torch.flatten, torch.mean, torch.squeeze, F.adaptive_avg_pool2d}
_METHODS = {"flatten", "mean", "squeeze", "view", "reshape", "permute", "size"}


def is_affine(head: Callable[..., Tensor]) -> bool:
    """Whether the `head` of a `Split` is a chain of affine steps, such as a global mean and a linear layer.

    `False` where that is not certain.
    """
    if not isinstance(head, fx.GraphModule):
        return False
    known: dict[str, Callable[[Any], bool]] = {
        "placeholder": lambda _: True,
        "call_module": lambda name: _affine_module(head.get_submodule(name)),
        "call_function": _FUNCTIONS.__contains__,
        "call_method": _METHODS.__contains__,
        "output": lambda _: True,
    }
    return all(node.op in known and known[node.op](node.target) for node in head.graph.nodes)


def pooled(module: nn.Module, layer: str, features: Tensor) -> Callable[[Tensor], Tensor] | None:
    """What `module` does above `layer`, if that is certainly affine in the means of the channels.

    It takes them as `[n, C, 1, 1]`. features `[B, C, h, w]` is what the layer returned. Tested on noise: an
    affine function with the same value for noise and for its means depends on the means only.
    """
    parts = split(module, layer) if features.dtype in (torch.float32, torch.float64) else None
    if parts is None or parts.around or not is_affine(parts.head):
        return None
    noise = torch.randn(features.shape[1:], generator=torch.Generator().manual_seed(0)).to(features)[None]
    means = noise.mean(tuple(range(2, noise.ndim)), keepdim=True)
    try:
        with torch.no_grad():
            zero = parts.head(torch.zeros_like(means))
            of_means, of_noise = parts.head(means), parts.head(noise)
    except RuntimeError:  # it needs as many positions as there were
        return None
    same = (of_noise - of_means).norm() <= 1e-3 * (of_noise - zero).norm()
    return parts.head if same else None


def _affine_module(module: nn.Module) -> bool:
    """Judged by the exact type: a subclass may do anything, and so may hooks."""
    if module.training or module._forward_hooks or module._forward_pre_hooks:
        return False
    if type(module) is nn.Sequential:
        return all(map(_affine_module, module))
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        return False  # it takes the statistics of the batch
    return type(module) in _MODULES
