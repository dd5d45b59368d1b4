"""Finding and listing layers."""

from __future__ import annotations

import pytest
import torch
import torchvision
from benchmarks.lesson import lesson_model
from torch import nn

from camkit.core import layers
from camkit.errors import LayerError


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
    with pytest.raises(LayerError, match="layer"):
        layers.find(resnet, spec)


def test_a_wrong_name_lists_the_closest(resnet: nn.Module) -> None:
    with pytest.raises(LayerError, match=r"did you mean 'layer4'|'layer1'"):
        layers.find(resnet, "Layer 4")


def test_modules_are_names_too(resnet: nn.Module) -> None:
    def auto() -> str:
        return "layer4"

    assert layers.resolve(resnet, [resnet.layer4[-1], "layer4.1", "auto"], auto) == ["layer4.1", "layer4"]
    with pytest.raises(LayerError, match="part of"):
        layers.resolve(resnet, [nn.Conv2d(1, 1, 1)], auto)
    with pytest.raises(LayerError, match="name or a module"):
        layers.resolve(resnet, [4], auto)  # type: ignore[list-item]


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
