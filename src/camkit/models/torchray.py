"""TorchRay's ResNet-50 of VOC 2007: a network of Caffe, whose tensors torchvision's has in another form.

R. Fong, M. Patrick, A. Vedaldi, "Understanding Deep Networks via Extremal Perturbations and Smooth Masks",
ICCV 2019, and their TorchRay; the weights are those of J. Zhang et al., arXiv:1608.00507.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camkit.errors import ModelError
from camkit.models.checkpoint import read_checkpoint
from camkit.models.weights import put_weights

SIDE = 224  # pixels of the shorter side
MEAN = (123.68, 116.779, 103.939)  # red, green, blue, of 255
# Caffe has BatchNorm as two layers: `bn1.0` holds the statistics, `bn1.1` scale and shift.
_TWO = re.compile(r"\b(bn\d|downsample\.\d)\.[01]\.")


class CaffeResNet50(nn.Module):
    """From `[B, 3, H, W]`, 255 times a picture less `MEAN`, to scores `[B, n]`.

    The score of a class is the logarithm of the sum of the exponentials of its scores in all windows of
    7 x 7 places, so that its gradient is spread over the windows by softmax, as TorchRay spreads it.
    """

    def __init__(self, classes: int) -> None:
        from torchvision.models import resnet50

        super().__init__()
        body = resnet50(num_classes=classes)
        body.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3)
        body.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.fc: nn.Module  # which, like the rest, torchvision makes
        for layer in (body.layer2, body.layer3, body.layer4):
            layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
        for name, module in body.named_children():
            self.add_module(name, module)
        self.avgpool = nn.AvgPool2d(7, stride=1)

    def forward(self, inputs: Tensor) -> Tensor:
        """The scores."""
        x = inputs
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"):
            x = self.get_submodule(name)(x)
        return torch.logsumexp(self.fc(x.flatten(2).transpose(1, 2)), dim=1)


def load(path: Path) -> CaffeResNet50:
    """The network of `resnet50_voc-9ca920d6.pth.tar`; `ModelError` for any other file."""
    state = renamed(read_checkpoint(path).state)
    # The networks of others have no bias here.
    if not {"fc.weight", "conv1.weight", "conv1.bias"} <= state.keys():
        raise ModelError(f"{path} does not hold TorchRay's ResNet-50 (resnet50_voc-9ca920d6.pth.tar)")
    network = CaffeResNet50(len(state["fc.weight"]))
    put_weights(network, state, str(path))
    return network.eval()


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by torchvision's names, for red, green, blue instead of blue, green, red."""
    found = {_TWO.sub(r"\1.", name): tensor for name, tensor in state.items()}
    if "conv1.weight" in found:
        found["conv1.weight"] = found["conv1.weight"].flip(1)
    return found


def seen(picture: Tensor) -> Tensor:
    """What the network is shown of a picture `[3, H, W]`, 0 to 255: `[1, 3, h, w]`, all of it.

    The shorter side gets `SIDE` pixels, bilinear without smoothing.
    """
    height, width = picture.shape[-2:]
    shorter = min(height, width)
    size = (SIDE * height // shorter, SIDE * width // shorter)
    shown = F.interpolate(picture[None], size, mode="bilinear", align_corners=False)
    return shown - torch.tensor(MEAN)[:, None, None]
