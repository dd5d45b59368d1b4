"""The layer that `auto` means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from benchmarks.lesson import lesson_model
from torch import Tensor, nn

import camkit
from camkit.core.layer_lookup import resolve_layers
from camkit.errors import LayerError


def chosen(module: nn.Module, inputs: Tensor) -> str:
    (name,) = resolve_layers(module, "auto", inputs)
    return name


@pytest.mark.parametrize(
    ("model", "size", "expected"),
    [
        (lambda: torchvision.models.resnet18(weights=None), 64, "layer4"),
        (lambda: torchvision.models.vgg11(weights=None), 64, "features"),
        (lambda: torchvision.models.alexnet(weights=None), 96, "features"),
        (lambda: torchvision.models.squeezenet1_1(weights=None), 64, "features"),
        (lambda: torchvision.models.DenseNet(8, (2, 2), 16), 64, "features"),
        (lambda: torchvision.models.mobilenet_v3_small(weights=None), 64, "features"),
        (lambda: torchvision.models.shufflenet_v2_x0_5(weights=None), 64, "conv5"),
        (lambda: torchvision.models.googlenet(weights=None, init_weights=False), 96, "inception5b"),
        (lambda: torchvision.models.swin_t(weights=None), 64, "permute"),
        (lambda: torchvision.models.vit_b_16(weights=None), 224, "encoder.layers.encoder_layer_11.ln_1"),
        (lambda: timm.create_model("resnet10t"), 64, "layer4"),
        (lambda: timm.create_model("tf_efficientnet_lite0"), 64, "blocks.6"),
        (lambda: timm.create_model("convnext_atto"), 64, "stages.3"),
        (lambda: timm.create_model("vit_tiny_patch16_224"), 224, "blocks.11.norm1"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), 224, "blocks.11.norm1"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), 224, "norm"),
        (lesson_model, 64, "0"),
    ],
)
def test_automatic_choice_has_gradients(model: Callable[[], Any], size: int, expected: str) -> None:
    """torchcam picks `conv_proj`, `k_norm` and `classifier.2` for some of these; none of them is right."""
    module = model().eval()
    if hasattr(module, "heads"):  # torchvision's ViT starts with a zero head, hence with zero gradients
        nn.init.normal_(module.heads.head.weight)
    x = torch.randn(1, 3, size, size)
    assert chosen(module, x) == expected
    maps = camkit.maps(module, x, 1)
    assert isinstance(maps, Tensor)
    assert maps.abs().max() > 0 and min(maps.shape[1:]) > 1


@pytest.mark.parametrize(
    ("name", "options", "grid"),
    [
        ("test_vit", {"img_size": (64, 96)}, (4, 6)),
        ("test_vit4", {"img_size": (64, 96)}, (4, 6)),
        ("vit_tiny_patch16_224", {"img_size": (64, 96), "depth": 2, "global_pool": "avg"}, (4, 6)),
        ("deit_tiny_patch16_224", {"img_size": (64, 96), "depth": 2}, (4, 6)),
        ("deit_tiny_distilled_patch16_224", {"img_size": (64, 96), "depth": 2}, (4, 6)),
        ("cait_xxs24_224", {"img_size": (64, 96), "depth": 2}, (4, 6)),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": (64, 96), "depths": (1, 1, 1, 1), "window_size": 2},
            (2, 3),
        ),
        ("test_convnext", {}, (2, 3)),
        ("vit_tiny_r_s16_p8_224", {"img_size": (64, 96), "depth": 2}, (2, 3)),  # a hybrid
        ("mobilevit_xxs", {}, (2, 3)),  # another
    ],
)
def test_transformers_on_images_that_are_not_square(name: str, options: Any, grid: tuple[int, int]) -> None:
    """The grid of the tokens is found, and some gradient arrives at the automatic layer."""
    model = timm.create_model(name, num_classes=4, **options).eval()
    methods = ["gradcam", "layercam", "shapleycam", "finercam"]
    maps = camkit.maps_by(model, torch.randn(2, 3, 64, 96), [0, 2], layer=["auto"], method=methods)
    assert len(maps) == len(methods)
    for found in maps.values():
        assert found.shape == (2, *grid)
        assert found.isfinite().all() and found.flatten(1).any(1).all()


def test_no_layer_with_a_map() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(LayerError, match="Sequential"):
        chosen(flat, torch.zeros(1, 3, 2, 2))


def test_a_body_that_runs_twice_is_the_reason_why_there_is_no_layer() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 3, 3, padding=1)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            scores: Tensor = self.head(self.body(self.body(x)).mean((2, 3)))
            return scores

    with pytest.raises(LayerError, match="layer 'body' ran 2 times in one forward"):
        camkit.maps(Twice(), torch.rand(1, 3, 8, 8), 0)
