"""Grad-CAM of one class for each image as others compute it: the usage that their documentation shows.

Each function takes the model, inputs `[B, 3, H, W]`, class indices `[B]` and the name of the layer, and
returns maps `[B, h, w]` in its own form; `comparable` brings a raw map into that form.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import LayerGradCam  # type: ignore[import-untyped]
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn
from torchcam.methods import GradCAM as TorchcamGradCAM


def pytorch_grad_cam(model: nn.Module, inputs: Tensor, classes: list[int], layer: str = "0") -> Tensor:
    """Rectified, scaled and enlarged to the size of the inputs."""
    with GradCAM(model=model, target_layers=[model.get_submodule(layer)]) as cam:
        return torch.from_numpy(cam(inputs, [ClassifierOutputTarget(c) for c in classes]))


def captum(model: nn.Module, inputs: Tensor, classes: list[int], layer: str = "0") -> Tensor:
    """Raw."""
    attribution = LayerGradCam(model, model.get_submodule(layer)).attribute(
        inputs, torch.tensor(classes, device=inputs.device)
    )
    return attribution.detach()[:, 0]  # type: ignore[no-any-return]


def torchcam(model: nn.Module, inputs: Tensor, classes: list[int], layer: str = "0") -> Tensor:
    """Rectified and scaled."""
    with TorchcamGradCAM(model, target_layer=layer) as extractor:
        return extractor(classes, model(inputs))[0]


def lesson(model: nn.Module, inputs: Tensor, classes: list[int], layer: str = "0") -> Tensor:
    """The code of fast.ai's lesson 6 with its `hook_output`, for a batch: the mean over channels."""
    stored: dict[str, Tensor] = {}

    def keep_output(_: nn.Module, __: Any, output: Tensor) -> None:
        stored["acts"] = output.detach()

    def keep_gradient(_: nn.Module, __: Any, gradients: tuple[Tensor, ...]) -> None:
        stored["grad"] = gradients[0].detach()

    hooks = [
        model.get_submodule(layer).register_forward_hook(keep_output),
        model.get_submodule(layer).register_full_backward_hook(keep_gradient),
    ]
    try:
        predictions = model(inputs)
        predictions[range(len(inputs)), classes].sum().backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    gradient = stored["grad"].mean((2, 3))
    return (stored["acts"] * gradient[..., None, None]).mean(1)


PEERS: dict[str, Callable[..., Tensor]] = {
    "captum": captum,
    "torchcam": torchcam,
    "the lesson's code": lesson,
    "pytorch-grad-cam": pytorch_grad_cam,
}


def comparable(peer: str, raw: Tensor, size: int, channels: int) -> Tensor:
    """A raw map `[B, h, w]` as `peer` would return it."""
    if peer == "captum":
        return raw
    if peer == "the lesson's code":
        return raw / channels
    rectified = raw.clamp(min=0)
    if peer == "torchcam":
        low, high = rectified.amin((1, 2), keepdim=True), rectified.amax((1, 2), keepdim=True)
        return (rectified - low) / (high - low)
    enlarged = scale_cam_image(rectified.cpu().numpy(), (size, size))
    return torch.from_numpy(scale_cam_image(enlarged))  # it scales before and after
