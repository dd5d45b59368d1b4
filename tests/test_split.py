"""Splitting a model at a layer: the two parts make the whole, or there is a reason why they cannot."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from benchmarks.lesson import lesson_model
from torch import Tensor, nn

from camkit.native.split import Split, split, split_or_reason

TV = torchvision.models
lesson = functools.cache(lesson_model)
resnet18 = functools.cache(TV.resnet18)


def parts(model: nn.Module, layer: str) -> Split:
    result = split_or_reason(model, layer)
    assert isinstance(result, Split), result
    return result


def captured(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The output of a layer by a plain hook."""
    kept: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, o: kept.append(o.clone()))
    model(x)
    handle.remove()
    return kept[0]


def tiny(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=7, **options)


class Written(nn.Module):
    """The head writes into what goes around the layer; what is made of a parameter is made again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 3, 1), nn.Parameter(torch.randn(2, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale, kept = self.scale.exp(), x * 2
        kept += self.conv(x) * scale.prod(0)
        return kept.mean((2, 3))


@torch.no_grad()
@pytest.mark.parametrize(
    ("make", "layer", "around"),
    [
        (resnet18, "layer4", 0),
        (resnet18, "layer4.1", 0),
        (resnet18, "conv1", 0),
        (resnet18, "fc", 0),
        (lambda: TV.vgg11_bn(num_classes=7, init_weights=False), "features.26", 0),  # then in-place ReLU
        (lambda: TV.DenseNet(8, (2, 2), 16, num_classes=7), "features", 0),
        (lambda: TV.DenseNet(8, (2, 2), 16, num_classes=7), "features.denseblock2", 0),
        (lambda: TV.mobilenet_v3_small(num_classes=7), "features.11", 0),
        (tiny("tf_efficientnet_lite0"), "blocks.6", 0),
        (tiny("test_convnext"), "stages.3", 0),
        (tiny("test_resnet"), "layer4", 0),
        (tiny("vit_tiny_patch16_224", img_size=64), "blocks.3", 0),  # parameters, used before it
        (lesson, "0", 0),
        (lesson, "0.6", 0),
        (lesson, "1.4", 0),
        # What a skip connection, or a second branch, leads around the layer.
        (resnet18, "layer4.1.bn2", 1),
        (lesson, "1.0.ap", 1),  # the other pooling
        (resnet18, "layer4.0.conv1", 1),  # the other branch is computed in the head
        (lambda: TV.DenseNet(8, (2, 2), 16, num_classes=7), "features.denseblock2.denselayer1", 1),
        (tiny("vit_tiny_patch16_224", img_size=64), "blocks.11.norm1", 1),
        (tiny("convnext_atto"), "stages.3.blocks.1.norm", 1),
        (Written, "conv", 1),
    ],
)
def test_the_head_of_the_body_is_the_model(make: Callable[[], nn.Module], layer: str, around: int) -> None:
    model = make().eval()
    x = torch.randn(2, 3, 64, 64)
    found = parts(model, layer)
    values = found.body(x)
    assert len(values) == 1 + around == 1 + found.around
    torch.testing.assert_close(values[0], captured(model, layer, x))
    torch.testing.assert_close(found.head(*(value.clone() for value in values)), model(x))
    # The head takes any number of images: those that a perturbation makes of one.
    thrice = (value[:1].repeat(3, *[1] * (value.ndim - 1)) for value in values)
    torch.testing.assert_close(found.head(*thrice)[2], model(x)[0])


# --- when it cannot be ----------------------------------------------------------------------------


class Odd(nn.Module):
    """A convolution and what is done with its output, `how`."""

    def __init__(self, how: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(3, 3, 1), how

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        scores = self.how(self, x, self.conv(x)).mean((2, 3))
        return scores if scale is None else scores * scale


def storing(model: Any, x: Tensor, y: Tensor) -> Tensor:
    model.last = y
    return y


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (resnet18, "layer4.1.relu", "calls the layer 2 times"),
        (tiny("test_vit"), "blocks.3", "control flow"),
        (resnet18, "", "the whole model"),
        (lambda: Odd(lambda m, x, y: y if y.sum() > 0 else -y), "conv", "control flow"),
        (lambda: Odd(lambda m, x, y: m.conv(y)), "conv", "calls the layer 2 times"),
        (lambda: Odd(storing), "conv", "sets the attribute 'last'"),
        (lambda: Odd(lambda m, x, y: y + torch.rand(1)), "conv", "draws random numbers"),
    ],
)
def test_no_split_and_why(make: Callable[[], nn.Module], layer: str, reason: str) -> None:
    model = make().eval()
    why = split_or_reason(model, layer)
    assert isinstance(why, str) and reason in why and "\n" not in why
    assert split(model, layer) is None


def test_hooks_around_the_layer_would_not_be_called(small_net: nn.Module) -> None:
    handle = small_net.register_forward_hook(lambda m, i, o: o * 2)
    assert "SmallNet, which contains the layer" in str(split_or_reason(small_net, "body"))
    handle.remove()
    assert split(small_net, "body") is not None


# --- without a trace ------------------------------------------------------------------------------


def test_parameters_are_shared_and_the_model_is_as_it_was(small_net: nn.Module, batch: Tensor) -> None:
    small_net.train()
    names = set(vars(small_net)), [*small_net.state_dict()]
    found = parts(small_net, "body")
    assert (set(vars(small_net)), [*small_net.state_dict()]) == names
    assert all(part.training for part in small_net.modules())
    small_net.eval()
    with torch.no_grad():
        for parameter in small_net.parameters():
            parameter.mul_(1.5)
        torch.testing.assert_close(found.head(*found.body(batch)), small_net(batch))


def test_what_a_traced_forward_stores_is_taken_back() -> None:
    model = Odd(storing).eval()
    before = model(torch.ones(1, 3, 2, 2))
    kept = model.last
    assert split(model, "conv") is None
    assert model.last is kept and torch.equal(model(torch.ones(1, 3, 2, 2)), before)
    fresh = Odd(storing).eval()
    assert split(fresh, "conv") is None and not hasattr(fresh, "last")


def test_other_threads_run_models_meanwhile(small_net: nn.Module, batch: Tensor) -> None:
    """fx patches `nn.Module` while it traces."""
    expected, found = small_net(batch), []

    def meanwhile(model: Any, x: Tensor, y: Tensor) -> Tensor:
        thread = threading.Thread(target=lambda: found.append(small_net(batch)))
        thread.start()
        thread.join()
        return y

    assert split(Odd(meanwhile).eval(), "conv") is not None
    assert len(found) == 1 and torch.equal(found[0], expected)


def test_threads_split_one_after_the_other() -> None:
    found: list[Split | None] = []
    threads = [
        threading.Thread(target=lambda: found.extend(split(lesson(), "0") for _ in range(5)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 20 and None not in found
