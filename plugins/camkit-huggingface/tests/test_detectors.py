"""Detectors of transformers: boxes as their image processors make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from camkit_huggingface import detectors
from PIL import Image

import camkit
from camkit.errors import ModelError


def detr(**more: Any) -> Any:
    torch.manual_seed(0)
    stages = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    sides = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("attention_heads",)}
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=transformers.ResNetConfig(**stages, out_features=["stage2"]),
        **{"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 9},
        **sides,
        **{"encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "id2label": {0: "cat", 1: "dog", 2: "cow"}},
    )
    return transformers.DetrForObjectDetection(config).eval()


def test_boxes_are_those_of_its_processor(tmp_path: Path) -> None:
    made = detr()
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 64})
    made.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    model = camkit.load_model(f"hf:{tmp_path}", device="cpu")
    assert ".backbone." in model.default_layer and model.preprocess.size == (64, 64)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    found = list(camkit.explain_many(model, [image], box="all", min_score=0.01, method="hirescam"))
    with torch.no_grad():
        returned = made(**processor(images=image, return_tensors="pt"))
    (theirs,) = processor.post_process_object_detection(
        returned, threshold=0.01, target_sizes=torch.tensor([[64, 64]])
    )
    order = theirs["scores"].argsort(descending=True)
    assert [r.class_index for r in found] == theirs["labels"][order].tolist()
    for result, score, box in zip(found, theirs["scores"][order], theirs["boxes"][order], strict=True):
        assert result.box is not None and result.probability == pytest.approx(float(score), abs=1e-4)
        assert result.box.corners == pytest.approx(tuple(box.tolist()), abs=1e-2)
        assert result.map.shape == (8, 8) and bool(result.map.any())


def test_what_is_squashed_is_compared_with_its_processor(tmp_path: Path) -> None:
    """As of RT-DETR: height and width, and nothing that changes photographs may be overlooked."""
    detr().save_pretrained(tmp_path)
    size = {"height": 64, "width": 48}
    transformers.MobileViTImageProcessor(size=size, do_center_crop=False).save_pretrained(tmp_path)
    model = camkit.load_model(f"hf:{tmp_path}", device="cpu")
    assert model.preprocess.fit == "squash" and model.module.flip is True
    transformers.DetrImageProcessor(size=size, do_resize=False).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="shows photographs at the size that they have"):
        camkit.load_model(f"hf:{tmp_path}", device="cpu")


def test_one_without_a_backbone_is_refused(tmp_path: Path) -> None:
    """Behind a transformer alone, boxes would be taken for places."""
    sides = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.YolosConfig(**sides, image_size=[64, 64], num_detection_tokens=4)
    transformers.YolosForObjectDetection(config).save_pretrained(tmp_path)
    size = {"height": 64, "width": 64}
    transformers.YolosImageProcessor(size=size).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no backbone whose output is a map"):
        camkit.load_model(f"hf:{tmp_path}", device="cpu")


def test_the_layer_is_one_that_sees_pixels() -> None:
    """As in Table Transformer, whose positions are embedded in the backbone, last and at the same size."""

    class Positions(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.arange(x[0, 0].numel()).reshape(1, 1, *x.shape[2:]).float()

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = torch.nn.Module()
            self.backbone.conv = torch.nn.Conv2d(3, 4, 4, stride=4)
            self.backbone.positions = Positions()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.backbone.conv(x)
            return features + self.backbone.positions(features)

    net: Any = Net()
    assert detectors.layer(net, (16, 16)) == "backbone.conv"
    net.backbone.conv = Positions()
    with pytest.raises(ModelError, match="no backbone whose output is a map"):
        detectors.layer(net, (16, 16))
