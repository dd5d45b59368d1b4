"""`all`: the last layer of each resolution, or each block, from one forward and one backward."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.core.layer_lookup import resolve_layers
from camkit.errors import CamkitWarning, UsageError

EXPECTED = {
    "torchvision:resnet18": "relu layer1 layer2 layer3 layer4",
    "torchvision:mobilenet_v2": "features.1 features.3 features.6 features.13 features",
    "torchvision:squeezenet1_1": "features.1 features.4 features.7 features",
    "timm:test_efficientnet": "blocks.0 blocks.1 blocks.2 blocks.3 blocks.4",
    "timm:test_vit": "blocks.0 blocks.1 blocks.2 blocks.3 blocks.5.norm1",  # that before it: see `auto`
    "timm:test_convnext": "stages.1.downsample.0 stages.2.downsample.0 stages.3.downsample.0 stages.3",
    "timm:test_coatnet": "stem stages.0 stages.1 stages.2 norm",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_layers_of_families(name: str) -> None:
    source, _, name_ = name.partition(":")
    if source == "timm" and not timm.is_model(name_):
        pytest.skip(f"this timm has no {name_}")
    torch.manual_seed(0)
    build = torchvision.models.get_model if source == "torchvision" else timm.create_model
    model = build(name_).eval()
    x = torch.randn(1, 3, 160, 160, generator=torch.Generator().manual_seed(0))
    expected = EXPECTED[name].split()
    assert resolve_layers(model, "all", x) == expected
    assert resolve_layers(model, "auto", x) == expected[-1:]
    assert resolve_layers(model, ["auto", "all"], x) == [expected[-1], *expected[:-1]]


class Wrapped(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"scores": self.body(x)}


def test_all_layers_of_a_method_share_forward_and_backward(batch: Tensor) -> None:
    body = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3, padding=1)),
        *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    )
    model = Wrapped(body.eval())
    first = camkit.maps_by(model, batch, 1, layer="all", method=["gradcam", "layercam"], output="scores")
    assert list(first) == [(m, f"body.{n}") for m in ("gradcam", "layercam") for n in (1, 4)]
    forwards, backwards = [], []
    body[0].register_forward_hook(lambda *_: forwards.append(1))
    body[7].register_full_backward_hook(lambda *_: backwards.append(1))
    again = camkit.maps_by(model, batch, 1, layer="all", method=["gradcam", "layercam"], output="scores")
    assert len(forwards) == len(backwards) == 1
    for (method, layer), maps in again.items():
        torch.testing.assert_close(maps, first[method, layer])
        alone = camkit.maps(model, batch, 1, layer=layer, method=method, output="scores")
        torch.testing.assert_close(maps, alone)
    body.append(nn.Identity())  # other parts: it is looked at anew
    assert len(camkit.maps_by(model, batch, 1, layer="all", output="scores")) == 2


def test_all_is_not_a_layer_of_its_own(batch: Tensor) -> None:
    head = (nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = nn.Sequential(nn.Conv2d(3, 4, 1), *head).eval()
    (one,) = camkit.maps_by(model, batch, 1, layer="all")  # a single one
    assert one == ("gradcam", resolve_layers(model, "auto", batch)[0])
    pooled = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), *head)
    with pytest.raises(UsageError, match=r"layer 'all' means several layers \(0, 3\): camkit\.maps_by"):
        camkit.maps(pooled.eval(), batch, 1, layer="all")
    maps = camkit.maps(nn.Flatten(), batch, 1, layer="all", method="rise", masks=16, tolerance=0)
    assert maps.any()  # no layer is needed


def test_the_command_line(tmp_path: Path) -> None:
    result = runner().invoke(cli, ["explain", "--layer", "all", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["layer"] for line in lines] == ["blocks.0", "blocks.1", "blocks.2", "blocks.4", "bn2"]


@pytest.mark.parametrize("method", ["refinecam", "gradcam"])
def test_layers_do_not_depend_on_what_is_explained_first(method: str) -> None:
    """Before biases of a black photograph everything is zero, and no layer says anything."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        parts = [nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, 1, bias=False)]
        last = [nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(*parts, *last, nn.Flatten(), nn.Linear(8, 3)).eval()

    photo, black = torch.rand(1, 3, 32, 32), torch.zeros(1, 3, 32, 32)
    how: dict[str, Any] = {"method": method, "layer": "all"} if method == "gradcam" else {"method": method}
    alone, after = made(), made()
    expected = camkit.maps_by(alone, photo, 1, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamkitWarning)
        camkit.maps_by(after, black, 1, **how)
    found = camkit.maps_by(after, photo, 1, **how)
    assert list(found) == list(expected)
    assert all(torch.equal(found[key], expected[key]) for key in found)
