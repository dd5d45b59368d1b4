"""The model of fast.ai's lesson 6: resnet34 under fastai's head for 37 classes, 21,831,050 parameters."""

from __future__ import annotations

import torch
from torch import nn

from camkit.models.fastai import FastaiSource


def lesson_model(classes: int = 37, seed: int = 0) -> nn.Sequential:
    """Body and head, randomly initialised but with BatchNorm statistics that are not trivial."""
    backbone = {"source": "torchvision", "name": "resnet34"}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = FastaiSource().build({"backbone": backbone, "num_classes": classes})
    generator = torch.Generator().manual_seed(seed)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.running_mean.copy_(0.1 * torch.randn(part.num_features, generator=generator))  # type: ignore[union-attr]
            part.running_var.copy_(0.5 + torch.rand(part.num_features, generator=generator))  # type: ignore[union-attr]
    return model.eval()
