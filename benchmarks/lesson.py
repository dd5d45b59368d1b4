"""The model of fast.ai's lesson 6 in plain torch: resnet34 under fastai's head, 21,831,050 parameters."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models import resnet34


class AdaptiveConcatPool2d(nn.Module):
    """Maximum and mean over the positions, concatenated, as fastai's head begins."""

    def __init__(self) -> None:
        super().__init__()
        self.ap = nn.AdaptiveAvgPool2d(1)
        self.mp = nn.AdaptiveMaxPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` to `[B, 2 C, 1, 1]`."""
        return torch.cat([self.mp(x), self.ap(x)], 1)


def lesson_model(classes: int = 37, seed: int = 0) -> nn.Sequential:
    """Body and head, randomly initialised but with BatchNorm statistics that are not trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        body = nn.Sequential(*list(resnet34(weights=None).children())[:-2])
        head = nn.Sequential(
            AdaptiveConcatPool2d(),
            nn.Flatten(),
            nn.BatchNorm1d(1024),
            nn.Dropout(0.25),
            nn.Linear(1024, 512, bias=False),
            nn.ReLU(inplace=True),
            nn.BatchNorm1d(512),
            nn.Dropout(0.5),
            nn.Linear(512, classes, bias=False),
            nn.BatchNorm1d(classes, momentum=0.01),
        )
    model = nn.Sequential(body, head)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.copy_(0.1 * torch.randn(part.num_features, generator=generator))  # type: ignore[union-attr]
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))  # type: ignore[union-attr]
    return model.eval()
