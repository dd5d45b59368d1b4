"""The zennit backend: conformance, relevance by hand, and networks of which a part has no rule."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torchvision
from camkit_zennit import METHODS
from torch import Tensor, nn

import camkit
from camkit.errors import ModelError
from camkit.testing import explainer_checks


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield


@explainer_checks("zennit", dist="camkit-zennit")
def test_conformance(check: Callable[[], None]) -> None:
    check()


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 3, bias=False),
    ).double()


def by_hand(net: nn.Module, x: Tensor, target: int) -> Tensor:
    """z-plus for the convolution, epsilon for the linear layer, slowly; `[H, W]`."""
    conv, linear = net.get_submodule("0"), net.get_submodule("3")
    hidden = conv(x[None]).relu()[0]
    weights: Any = linear.weight
    score = weights[target] @ hidden.flatten()
    above = (hidden.flatten() * weights[target] / (score + 1e-6 * score.sign()) * score).view_as(hidden)
    kernel: Any = conv.weight
    relevance = torch.zeros_like(x)
    for k in range(4):
        for i in range(6):
            for j in range(6):
                seen = x[:, i : i + 3, j : j + 3]
                # What has the sign of its weight, so that the product is positive.
                parts = (seen * kernel[k]).clamp(min=0)
                relevance[:, i : i + 3, j : j + 3] += parts / (parts.sum() + 1e-6) * above[k, i, j]
    return relevance.sum(0)


def test_epsilon_plus_by_hand() -> None:
    net, x = plain(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = camkit.maps(net, x, [0, 2], backend="zennit", method="lrp-epsilon-plus", layer="0")
    for row, target in enumerate((0, 2)):
        expected = by_hand(net, x[row], target).detach()
        assert (found[row] - expected).abs().max() <= 1e-5 * expected.abs().max()
    scores = net(x).detach()
    assert torch.allclose(found.sum((1, 2)), scores[[0, 1], [0, 2]], rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_the_model_stays_as_it_is(method: str) -> None:
    net = torchvision.models.resnet18(num_classes=3).eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = camkit.maps(net, torch.randn(1, 3, 32, 32), 1, backend="zennit", method=method)
    assert found.shape == (1, 32, 32) and bool(found.abs().max() > 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in net.modules())
    if method == "excitation-backprop":
        assert found.min() >= 0


class Mean(nn.Module):
    """Pools without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


class Registered(nn.Module):
    """Convolutions, each with a batch norm, registered in the order of `names`."""

    def __init__(self, *names: str, last: int = 4) -> None:
        super().__init__()
        parts = {
            "conv1": lambda: nn.Conv2d(3, 4, 3),
            "norm1": lambda: nn.BatchNorm2d(4),
            "conv2": lambda: nn.Conv2d(4, last, 3),
            "norm2": lambda: nn.BatchNorm2d(last),
            "head": lambda: nn.Linear(last * 28 * 28, 3),
        }
        for name in names:
            self.add_module(name, parts[name]())
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.uniform_(part.running_var, 0.5, 2.0)  # type: ignore[arg-type]
        self.relu, self.flat = nn.ReLU(), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.get_submodule("norm1")(self.get_submodule("conv1")(x)))
        x = self.relu(self.get_submodule("norm2")(self.get_submodule("conv2")(x)))
        return self.get_submodule("head")(self.flat(x))  # type: ignore[no-any-return]


def twice() -> nn.Module:
    conv = nn.Conv2d(3, 3, 3)
    return nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), nn.Flatten(), nn.Linear(3 * 28 * 28, 3))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a sum": (lambda: timm.create_model("test_resnet", num_classes=3), "computes 'Add' in its forward"),
    "a mean": (Mean, "computes 'Mean' in its forward"),
    "attention": (lambda: timm.create_model("test_vit", num_classes=3, img_size=32), "zennit"),
    "norms behind all layers": (
        lambda: Registered("conv1", "conv2", "norm1", "norm2", "head"),
        "merges each batch norm into the layer that was registered before it",
    ),
    "norms of other sizes": (
        lambda: Registered("conv1", "conv2", "norm1", "norm2", "head", last=5),
        "merges each batch norm into the layer that was registered before it",
    ),
    "a layer that runs twice": (twice, "'0' of Sequential runs several times"),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(3600, 3)),
        "use that of parametrizations",
    ),
    "a norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(3600, 3)),
        "computes 'NativeGroupNorm' in its forward",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_rule_is_refused_in_one_line(kind: str) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(ModelError, match=said) as caught:
        camkit.maps(
            make().eval(), torch.randn(1, 3, 32, 32), 0, backend="zennit", method="lrp-epsilon-plus"
        )
    assert "\n" not in str(caught.value)


def test_the_rule_of_the_first_layer_is_that_of_the_first_that_runs() -> None:
    net = Registered("head", "conv1", "norm1", "conv2", "norm2").eval()
    with pytest.raises(ModelError, match="would be that of 'head', which Registered registers first"):
        camkit.maps(net, torch.randn(1, 3, 32, 32), 0, backend="zennit", method="lrp-epsilon-plus-flat")
    for method in ("lrp-epsilon-plus", "lrp-epsilon-gamma-box"):  # the first convolution is the first
        usual = Registered("conv1", "norm1", "conv2", "norm2", "head").eval()
        usual.load_state_dict(net.state_dict())
        x = torch.randn(1, 3, 32, 32)
        found, expected = (camkit.maps(n, x, 0, backend="zennit", method=method) for n in (net, usual))
        assert torch.allclose(found, expected)


@pytest.mark.parametrize("parametrized", ["weight_norm", "spectral_norm", "orthogonal"])
def test_weights_that_are_computed_are_weights(parametrized: str) -> None:
    net, x = plain(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    getattr(nn.utils.parametrizations, parametrized)(net[0])
    net.eval()
    usual = plain()
    with torch.no_grad():
        for index in ("0", "3"):
            weight: Any = usual.get_submodule(index).weight
            weight.copy_(net.get_submodule(index).weight)  # type: ignore[arg-type]
    found, expected = (
        camkit.maps(n, x, 1, backend="zennit", method="lrp-epsilon-plus") for n in (net, usual)
    )
    assert torch.allclose(found, expected) and torch.equal(net(x), usual(x))
    assert nn.utils.parametrize.is_parametrized(net[0])
