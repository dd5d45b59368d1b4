"""EfficientNet-Lite0 in plain torch: the network of the models `pets` and `imagenet`.

Without timm and torchvision, because their import takes longer than all the rest of a first picture. It
takes the weights of timm's `tf_efficientnet_lite0` and returns the same scores; a test compares them.
Tan, Le: EfficientNet (arXiv:1905.11946); its Lite variants leave out squeeze-and-excitation and swish.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

STEM, HEAD = 32, 1280  # channels
# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """`[B, 3, H, W]` to scores `[B, num_classes]`; `bn2` holds the last feature map `[B, 1280, h, w]`."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.conv_stem = Conv(3, STEM, 3, stride=2)
        self.bn1 = Norm(STEM, relu=True)
        stages, channels = [], STEM
        for count, kernel, stride, expansion, out in STAGES:
            first = _block(channels, out, kernel, stride, expansion)
            rest = [_block(out, out, kernel, 1, expansion) for _ in range(count - 1)]
            stages.append(nn.Sequential(first, *rest))
            channels = out
        self.blocks = nn.Sequential(*stages)
        self.conv_head = Conv(channels, HEAD, 1)
        self.bn2 = Norm(HEAD, relu=True)
        self.classifier = nn.Linear(HEAD, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Scores."""
        features = self.blocks(self.bn1(self.conv_stem(images)))
        features = self.bn2(self.conv_head(features))
        return self.classifier(features.mean((2, 3)))  # type: ignore[no-any-return]


class Conv(nn.Conv2d):
    """A convolution padded as TensorFlow does: the odd pixel goes to the right and to the bottom."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(inside, out, kernel, stride, padding, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, out, ceil(H / stride), ceil(W / stride)]`."""
        stride, kernel = self.stride[0], self.kernel_size[0]
        if stride > 1:
            height, width = (_missing(length, kernel, stride) for length in input.shape[2:])
            sides = (width // 2, width - width // 2, height // 2, height - height // 2)
            input = F.pad(input, sides)
        return super().forward(input)


class Norm(nn.BatchNorm2d):
    """BatchNorm, and ReLU6 behind it or not."""

    def __init__(self, channels: int, *, relu: bool = False) -> None:
        super().__init__(channels, eps=1e-3)
        self.relu = relu

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` to the same shape."""
        normed = super().forward(input)
        return F.relu6(normed) if self.relu else normed


class Separable(nn.Module):
    """The first block: depthwise, then pointwise."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = Conv(inside, inside, kernel, stride, groups=inside)
        self.bn1 = Norm(inside, relu=True)
        self.conv_pw = Conv(inside, out, 1)
        self.bn2 = Norm(out)

    def forward(self, input: Tensor) -> Tensor:
        """`[B, inside, H, W]` to `[B, out, h, w]`."""
        return self.bn2(self.conv_pw(self.bn1(self.conv_dw(input))))  # type: ignore[no-any-return]


class InvertedResidual(nn.Module):
    """Expand, depthwise, project, with a skip connection where the shapes allow it (arXiv:1801.04381)."""

    def __init__(self, inside: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inside * expansion
        self.conv_pw = Conv(inside, wide, 1)
        self.bn1 = Norm(wide, relu=True)
        self.conv_dw = Conv(wide, wide, kernel, stride, groups=wide)
        self.bn2 = Norm(wide, relu=True)
        self.conv_pwl = Conv(wide, out, 1)
        self.bn3 = Norm(out)
        self.skip = stride == 1 and inside == out

    def forward(self, input: Tensor) -> Tensor:
        """`[B, inside, H, W]` to `[B, out, h, w]`."""
        hidden = self.bn2(self.conv_dw(self.bn1(self.conv_pw(input))))
        output: Tensor = self.bn3(self.conv_pwl(hidden))
        return output + input if self.skip else output


def _block(inside: int, out: int, kernel: int, stride: int, expansion: int) -> nn.Module:
    if expansion == 1:
        return Separable(inside, out, kernel, stride)
    return InvertedResidual(inside, out, kernel, stride, expansion)


def _missing(length: int, kernel: int, stride: int) -> int:
    """Pixels to add so that a convolution gives `ceil(length / stride)` positions."""
    return max((-(-length // stride) - 1) * stride + kernel - length, 0)
