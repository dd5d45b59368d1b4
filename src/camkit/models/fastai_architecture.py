"""The networks of fastai's vision learners, in plain torch."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from camkit.errors import ModelError, typed_reason
from camkit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from camkit.models.heads import build_head

LESSON_CLASSES = 37
HIDDEN = 512
SWITCHES = {"bn_final": True, "bias": False}  # of the head, and what they are if nothing is said
# Of torchvision the networks whose photographs `vision_learner` normalises by itself.
NORMALISED = re.compile(r"alexnet|densenet\d+|resnet\d+|squeezenet1_\d|vgg\d+_bn")


class AdaptiveConcatPool2d(nn.Module):
    """Maximum and mean over the positions, concatenated: how fastai's head begins."""

    def __init__(self) -> None:
        super().__init__()
        self.ap = nn.AdaptiveAvgPool2d(1)
        self.mp = nn.AdaptiveMaxPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` to `[B, 2 C, 1, 1]`."""
        return torch.cat([self.mp(x), self.ap(x)], 1)


class TimmBody(nn.Module):
    """A model of timm without its classifier: its last feature map, or a vector if it pools on its own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.pooled = model.default_cfg.get("pool_size") is None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 3, H, W]` to `[B, C, h, w]`, or `[B, C]` if it pools on its own."""
        return cast("Tensor", self.model(x) if self.pooled else self.model.forward_features(x))


def cut(source: str, module: nn.Module) -> nn.Module:
    """The body of a classifier of `source` (`torchvision` or `timm`), as fastai cuts it, with its weights.

    Of torchvision everything before the last child that pools. Raises `ModelError` if there is none.
    """
    if source == "timm":
        cast("Any", module).reset_classifier(0)
        return TimmBody(module)
    children = list(module.children())
    pools = [i for i, child in enumerate(children) if _pools(child)]
    # The pool of DenseNet is a function, and the pools within its features are not the last one.
    end = len(children) - 1 if type(module).__name__ == "DenseNet" else max(pools, default=0)
    if not end:
        raise ModelError(f"{type(module).__name__} cannot be cut into body and head as fastai does")
    return nn.Sequential(*children[:end])


def _pools(part: nn.Module) -> bool:
    return any("Pool" in type(module).__name__ for module in part.modules())


def usual_size(body: nn.Module) -> int:
    """Pixels of a side that a body takes: 224, unless its positions are for others."""
    config = body.model.default_cfg if isinstance(body, TimmBody) else {}
    return int(config["input_size"][-1]) if config.get("fixed_input_size") else 224


def usual_view(body: nn.Module, architecture: Mapping[str, Any]) -> Preprocess:
    """What `vision_learner` shows a pretrained body where the user says nothing, but for the size.

    `Resize` cuts a photograph first and resizes then. It normalises by the statistics that timm has for a
    network, or by ImageNet's for those of torchvision that it knows; else, and of other channels than
    three, values stay in [0, 1]. fastai v1, whose heads have biases, did nothing by itself, and its lessons
    say ImageNet's.
    """
    backbone, size = architecture["backbone"], (usual_size(body),) * 2
    channels = backbone.get("channels", 3)
    as_it_is = Preprocess(size=size, fit="crop-first", mean=(0.0,) * channels, std=(1.0,) * channels)
    if channels != 3:
        return as_it_is
    if isinstance(body, TimmBody):
        config = body.model.default_cfg
        return replace(as_it_is, mean=tuple(config["mean"]), std=tuple(config["std"]))
    if architecture.get("bias") or NORMALISED.fullmatch(backbone["name"]):
        return replace(as_it_is, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    return as_it_is


def features(body: nn.Module, size: int | None = None, *, inputs: int = 3) -> int:
    """How many channels a body returns for photographs of `size`; nothing is computed.

    size: pixels of a side; `None` is what is usual for the body.
    Raises `ModelError` if it cannot take that size or returns neither `[B, C, h, w]` nor `[B, C]`.
    """
    size = size or usual_size(body)
    try:
        shape = (
            copy.deepcopy(body).to("meta").eval()(torch.empty(1, inputs, size, size, device="meta")).shape
        )
    except Exception as error:  # whatever a network says to a size that it does not take
        raise ModelError(f"the body cannot take {size} x {size} pixels: {typed_reason(error)}") from None
    known = getattr(body.model, "num_features", shape[1]) if isinstance(body, TimmBody) else shape[1]
    if len(shape) not in (2, 4) or known != shape[1]:
        raise ModelError(f"the body returns {list(shape)}, which fastai's head cannot take: channels first")
    return int(shape[1])


def head(channels: int, classes: int, *, pool: bool, bn_final: bool, bias: bool = False) -> nn.Sequential:
    """fastai's `create_head`: pooled features `[B, channels, h, w]` to scores `[B, classes]`.

    pool: the body returns a feature map, not a vector. bias: of the linear layers; fastai v1 had it.
    """
    width = 2 * channels if pool else channels
    return nn.Sequential(
        *([AdaptiveConcatPool2d(), nn.Flatten()] if pool else []),
        nn.BatchNorm1d(width),
        nn.Dropout(0.25),
        nn.Linear(width, HIDDEN, bias=bias),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(HIDDEN),
        nn.Dropout(0.5),
        nn.Linear(HIDDEN, classes, bias=bias),
        *([nn.BatchNorm1d(classes, momentum=0.01)] if bn_final else []),
    )


def own_head(layers: Any, channels: int, *, pool: bool) -> nn.Module:
    """A head of the user's own (`custom_head=`, `lin_ftrs=`, `concat_pool=`) with these layers.

    Its width tells how it pools. Raises `ModelError` for one that the body does not fit.
    """
    made: Any = build_head(layers)
    if not pool:
        return cast("nn.Module", made)
    width = next((layer[1] for layer in layers if layer[0] in ("BatchNorm1d", "Linear")), 0)
    if width not in (channels, 2 * channels) or len(made) < 3:
        raise ModelError(f"the head takes {width} values, but the body makes {channels} channels")
    made[0] = nn.AdaptiveAvgPool2d(1) if width == channels else AdaptiveConcatPool2d()
    made[1] = nn.Flatten()
    return cast("nn.Module", made)


def default_layer(module: nn.Module) -> str:
    """The whole body, as in the lesson, of a body under a head that pools; of anything else `auto`."""
    parts = list(module.children()) if type(module) is nn.Sequential else []
    first = next(iter(parts[1].children()), None) if len(parts) == 2 else None
    return "0" if first is not None and _pools(first) else "auto"
