"""Finding, listing and choosing layers, and reading their output as a map."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from benchmarks.lesson import lesson_model
from torch import Tensor, nn

import camkit
from camkit import layers
from camkit.errors import LayerError
from camkit.layers import Layout


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return torchvision.models.resnet18(weights=None).eval()


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("layer4", ["layer4"]),
        ("layer4.-1", ["layer4.1"]),
        ("layer4[-1]", ["layer4.1"]),
        ("layer4[0].conv1", ["layer4.0.conv1"]),
        ("layer4.1.bn2", ["layer4.1.bn2"]),
        ("layer?", ["layer1", "layer2", "layer3", "layer4"]),
        ("layer*.0", ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]),
        ("layer4.*.conv?", ["layer4.0.conv1", "layer4.0.conv2", "layer4.1.conv1", "layer4.1.conv2"]),
    ],
)
def test_names(resnet: nn.Module, spec: str, names: list[str]) -> None:
    assert layers.find(resnet, spec) == names


@pytest.mark.parametrize("spec", ["layer5", "layer4.7", "layer4[-3]", "layer4[9]", "nothing*", "", "."])
def test_names_that_mean_nothing(resnet: nn.Module, spec: str) -> None:
    with pytest.raises(LayerError, match="has no layer"):
        layers.find(resnet, spec)


def test_a_wrong_name_lists_the_closest(resnet: nn.Module) -> None:
    with pytest.raises(LayerError, match=r"did you mean 'layer4'|'layer1'"):
        layers.find(resnet, "Layer 4")


def test_modules_are_names_too(resnet: nn.Module) -> None:
    x = torch.zeros(1, 3, 64, 64)
    assert layers.resolve(resnet, [resnet.layer4[-1], "layer4.1", "layer3"], x) == ["layer4.1", "layer3"]
    with pytest.raises(LayerError, match="not part of"):
        layers.resolve(resnet, [nn.Conv2d(1, 1, 1)], x)
    with pytest.raises(LayerError, match="a name or a module"):
        layers.resolve(resnet, [4], x)  # type: ignore[list-item]


# --- layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "inputs", "expected"),
    [
        ((2, 512, 7, 7), (224, 224), Layout("channels-first", (7, 7))),
        ((2, 7, 7, 768), (224, 224), Layout("channels-last", (7, 7))),
        ((2, 8, 8, 8), (224, 224), Layout("channels-first", (8, 8))),  # either; the common one
        ((2, 64, 4, 12), (128, 384), Layout("channels-first", (4, 12))),
        ((2, 4, 12, 64), (128, 384), Layout("channels-last", (4, 12))),
        ((2, 197, 192), (224, 224), Layout("tokens", (14, 14), 1)),
        ((2, 198, 192), (224, 224), Layout("tokens", (14, 14), 2)),
        ((2, 196, 192), (224, 224), Layout("tokens", (14, 14), 0)),
        ((2, 201, 192), (224, 224), Layout("tokens", (14, 14), 5)),
        ((2, 1 + 8 * 14, 192), (128, 224), Layout("tokens", (8, 14), 1)),
    ],
)
def test_layouts(shape: tuple[int, ...], inputs: tuple[int, int], expected: Layout) -> None:
    assert layers.layout(torch.zeros(shape), (2, 3, *inputs), "x") == expected


@pytest.mark.parametrize(
    ("shape", "inputs", "expected"),
    [
        ((2, 64, 25), (100,), Layout("channels-first", (25,))),
        ((2, 64, 4, 7, 14), (16, 112, 224), Layout("channels-first", (4, 7, 14))),
        ((2, 4, 7, 14, 64), (16, 112, 224), Layout("channels-last", (4, 7, 14))),
    ],
)
def test_layouts_of_signals_and_volumes(
    shape: tuple[int, ...], inputs: tuple[int, ...], expected: Layout
) -> None:
    assert layers.layout(torch.zeros(shape), (2, 3, *inputs), "x") == expected
    assert expected.to_map(torch.zeros(shape)).shape == (2, 64, *expected.grid)


@pytest.mark.parametrize(
    ("shape", "inputs", "message"),
    [
        ((2, 64, 1), (100,), "single position"),
        ((2, 64), (100,), r"\[B, C, l\]"),
        ((2, 8, 7, 7), (16, 112, 112), r"\[B, C, d, h, w\]"),
        ((2, 197, 64), (16, 112, 112), r"\[B, C, d, h, w\]"),
    ],
)
def test_outputs_that_are_no_map_of_signals_or_volumes(
    shape: tuple[int, ...], inputs: tuple[int, ...], message: str
) -> None:
    with pytest.raises(LayerError, match=message):
        layers.layout(torch.zeros(shape), (2, 3, *inputs), "x")


@pytest.mark.parametrize("shape", [(2, 1000), (2,), (2, 3, 4, 5, 6), (2, 199, 8), (2, 3, 1, 1)])
def test_outputs_that_are_no_map(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayerError, match=r"layer 'x'"):
        layers.layout(torch.zeros(shape), (2, 3, 224, 224), "x")


def test_integer_output_is_no_map() -> None:
    with pytest.raises(LayerError, match="not a feature map"):
        layers.layout(torch.zeros(2, 8, 7, 7, dtype=torch.int64), (2, 3, 224, 224), "x")


def test_every_layout_turns_to_channels_first() -> None:
    maps = torch.randn(5, 2, 3, 4, 6)  # any leading dimensions
    last = maps.movedim(-3, -1)
    assert torch.equal(Layout("channels-last", (4, 6)).to_map(last), maps)
    tokens = torch.cat([torch.zeros(5, 2, 1, 3), last.flatten(2, 3)], dim=2)
    assert torch.equal(Layout("tokens", (4, 6), 1).to_map(tokens), maps)
    assert Layout("channels-first", (4, 6)).to_map(maps) is maps


# --- automatic choice -----------------------------------------------------------------------------


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
        (lambda: torchvision.models.swin_t(weights=None), 64, "features"),
        (lambda: torchvision.models.vit_b_16(weights=None), 224, "encoder.layers.encoder_layer_11.ln_1"),
        (lambda: timm.create_model("resnet10t"), 64, "layer4"),
        (lambda: timm.create_model("tf_efficientnet_lite0"), 64, "blocks.6"),
        (lambda: timm.create_model("convnext_atto"), 64, "stages.3"),
        (lambda: timm.create_model("vit_tiny_patch16_224"), 224, "blocks.11.norm1"),
        (lambda: timm.create_model("deit_tiny_distilled_patch16_224"), 224, "blocks.11.norm1"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), 224, "layers.3"),
        (lesson_model, 64, "0"),
    ],
)
def test_automatic_choice_has_gradients(model: Callable[[], Any], size: int, expected: str) -> None:
    """torchcam picks `conv_proj`, `k_norm` and `classifier.2` for some of these; none of them is right."""
    module = model().eval()
    if hasattr(module, "heads"):  # torchvision's ViT starts with a zero head, hence with zero gradients
        nn.init.normal_(module.heads.head.weight)
    x = torch.randn(1, 3, size, size)
    assert layers.automatic(module, x) == expected
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
    maps = camkit.maps(model, torch.randn(2, 3, 64, 96), [0, 2], layer=["auto"], method=methods)
    assert isinstance(maps, dict) and len(maps) == len(methods)
    for found in maps.values():
        assert found.shape == (2, *grid)
        assert found.isfinite().all() and found.flatten(1).any(1).all()


def test_no_layer_with_a_map() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(LayerError, match="no layer of Sequential"):
        layers.automatic(flat, torch.zeros(1, 3, 2, 2))


# --- listing --------------------------------------------------------------------------------------


def test_trace_lists_shapes_and_the_lessons_parameters() -> None:
    model = lesson_model()
    records = layers.trace(model, torch.zeros(1, 3, 64, 64))
    by_name = {r.name: r for r in records}
    assert by_name["0"].shapes == ((1, 512, 2, 2),) and by_name["0"].grid == (2, 2)
    assert by_name["1.8"].parameters == 512 * 37 and by_name["1.8"].grid is None
    assert by_name["0.4.0.relu"].grid is None  # ran twice
    assert len(by_name["0.4.0.relu"].shapes) == 2
    # 21,831,599 in the lesson: fastai 2 drops the bias of the two linear layers before BatchNorm.
    assert layers.parameter_totals(model) == (21_831_050, 21_831_050)
    assert 21_831_050 + 512 + 37 == 21_831_599
    assert sum(r.parameters for r in records) == 21_831_050
    model[0].requires_grad_(False)
    assert layers.parameter_totals(model)[1] == 546_378


def test_trace_leaves_no_hook(resnet: nn.Module) -> None:
    with pytest.raises(RuntimeError):
        layers.trace(resnet, torch.zeros(1, 5, 64, 64))
    assert all(not m._forward_hooks for m in resnet.modules())


def test_misfit_is_symmetric() -> None:
    assert math.isclose(layers._misfit((4, 8), (9, 9)), layers._misfit((8, 4), (9, 9)))
