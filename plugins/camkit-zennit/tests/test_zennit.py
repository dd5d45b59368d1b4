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


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a sum": (lambda: timm.create_model("test_resnet", num_classes=3), "computes 'add' in its forward"),
    "a mean": (Mean, "computes 'mean' in its forward"),
    "attention": (lambda: timm.create_model("test_vit", num_classes=3, img_size=32), "zennit"),
    "a norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(3600, 3)),
        "no rule for GroupNorm",
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
