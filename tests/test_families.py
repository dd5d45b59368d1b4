"""The automatic layer of every classifier of torchvision and every family of timm, and layers chosen there.

A dozen small ones are looked at always; all of them by `make families`.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import camkit
from camkit.core.layer_lookup import resolve_layers
from camkit.errors import LayerError

from .families import FAMILIES, Family, build, examine, wake

QUICK = {
    "torchvision:resnet18",
    "torchvision:squeezenet1_1",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "timm:test_vit",
    "timm:test_convnext",
    "timm:test_coatnet",
    "timm:test_mambaout",
    "timm:test_nfnet",
    "timm:deit_tiny_distilled_patch16_224",
    "timm:pit_ti_distilled_224",
    "timm:xcit_nano_12_p16_224",
}


def check(family: Family) -> None:
    found = examine(build(family.name, family.size), family.size, places=not family.blurred)
    assert (found.layer, found.grid, found.faults) == (family.layer, family.grid, ())


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name in QUICK], ids=lambda f: f.name)
def test_a_few_families(family: Family) -> None:
    if family.name.startswith("timm:") and not timm.is_model(family.name.removeprefix("timm:")):
        pytest.skip(f"this timm has no {family.name}")
    check(family)


@pytest.mark.families
@pytest.mark.skipif(
    os.environ.get("CAMKIT_FAMILIES") != "1",
    reason="takes about half an hour: CAMKIT_FAMILIES=1, make families",
)
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name not in QUICK], ids=lambda f: f.name)
def test_every_family(family: Family) -> None:
    check(family)


def test_the_table_is_whole() -> None:
    """Every model of torchvision, 150 of timm from nearly all of its modules, and what the quick run wants.

    Not looked at, for their size: deepseek_vit.
    """
    from timm.models import _registry
    from torchvision import models

    names = [family.name for family in FAMILIES]
    assert len(set(names)) == len(names) and set(names) >= QUICK
    assert {f"torchvision:{name}" for name in models.list_models(module=models)} <= set(names)
    of_timm = [name.removeprefix("timm:") for name in names if name.startswith("timm:")]
    if missing := [name for name in of_timm if name not in _registry._model_to_module]:
        pytest.skip(f"this timm has no {missing[0]}")
    modules = {_registry._model_to_module[name] for name in of_timm}
    assert len(of_timm) >= 150 and len(modules) >= 90


class Shuffled(nn.Module):
    """Patches of 8 pixels as tokens, in the order of windows of 2 x 2, or of the image."""

    def __init__(self, *, windows: bool) -> None:
        super().__init__()
        self.windows = windows
        self.patches, self.norm, self.head = (
            nn.Conv2d(3, 12, 8, stride=8),
            nn.LayerNorm(12),
            nn.Linear(12, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        x = self.patches(x)
        if self.windows:
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).transpose(3, 4).flatten(2)
        return self.head(self.norm(x.flatten(2).mT).tanh().mean(1))


@pytest.mark.parametrize("windows", [False, True])
def test_an_order_that_is_not_that_of_the_image_is_noticed(windows: bool) -> None:
    """What the check of places is for."""
    found = examine(Shuffled(windows=windows).eval(), (64, 96))
    assert (found.layer, found.grid) == ("norm", (8, 12))
    assert any("changes most at" in fault for fault in found.faults) == windows


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("cait_xxs24_224", {"img_size": (64, 96), "depth": 2}, "blocks_token_only.1.norm1"),
        ("crossvit_tiny_240", {"depth": ([1, 1, 0],)}, "blocks.0.fusion.1.norm1"),
        (
            "pit_ti_distilled_224",
            {"img_size": (64, 96), "depth": [1, 1, 1]},
            "transformers.2.blocks.0.norm1",
        ),
    ],
)
def test_automatic_layer_of_class_attention(name: str, options: Any, expected: str) -> None:
    """The last that sees the whole stream of patches: no branch beside it, and no class tokens alone."""
    size = options.get("img_size", (240, 240))
    module = timm.create_model(name, num_classes=4, **options).eval()
    assert resolve_layers(module, "auto", torch.randn(1, 3, *size)) == [expected]


@pytest.mark.parametrize(
    ("name", "options", "layer", "expected"),
    [
        (
            "hiera_tiny_224",
            {"img_size": (128, 192), "stages": (1, 1, 1, 1), "embed_dim": 16},
            "blocks.0",
            "another order",
        ),
        (
            "hiera_tiny_224",
            {"img_size": (128, 192), "stages": (1, 1, 1, 1), "embed_dim": 16},
            "blocks.2",
            "another order",
        ),
        (
            "hiera_tiny_224",
            {"img_size": (128, 192), "stages": (1, 1, 1, 1), "embed_dim": 16},
            "blocks.3",
            (4, 6),
        ),
        ("pit_ti_distilled_224", {"depth": [1, 1, 1]}, "norm", "only class and register tokens"),
        ("pit_ti_distilled_224", {"depth": [1, 1, 1]}, "transformers.2.blocks.0.norm1", (2, 3)),
        ("samvit_base_patch16_224", {"depth": 1, "embed_dim": 24}, "blocks.0.attn", "like windows"),
        ("samvit_base_patch16_224", {"depth": 1, "embed_dim": 24}, "blocks.0", (4, 6)),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "layers.0.blocks.0.attn", "its rows"),
        ("swin_tiny_patch4_window7_224", {"depths": (1, 1, 1, 1)}, "layers.1", (8, 12)),
        ("test_mambaout", {}, "stages.1", (8, 12)),
    ],
)
def test_layers_that_are_chosen_are_right_or_refused(
    name: str, options: Any, layer: str, expected: str | tuple[int, int]
) -> None:
    size = options.get("img_size", (64, 96))
    if name != "test_mambaout":
        options = {"img_size": size, **options}
    module = timm.create_model(name, num_classes=4, **options).eval()
    wake(module)
    x = torch.randn(1, 3, *size)
    if isinstance(expected, str):
        with pytest.raises(LayerError, match=expected):
            camkit.maps(module, x, 1, layer=layer)
    else:
        assert camkit.maps(module, x, 1, layer=layer).shape[1:] == expected


def test_what_looks_like_windows_may_be_said_to_be_a_map() -> None:
    """A model of channels-last features with a stride of its own in each direction."""

    class Strips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.norm, self.head = (
                nn.Conv2d(3, 6, (1, 8), (1, 8)),
                nn.LayerNorm(6),
                nn.Linear(6, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            """Scores."""
            return self.head(self.norm(self.body(x).movedim(1, -1)).tanh().mean((1, 2)))

    module, x = Strips().eval(), torch.randn(1, 3, 16, 64)
    with pytest.raises(LayerError, match="layout='channels-last'"):
        camkit.maps(module, x, 0, layer="norm")
    assert camkit.maps(module, x, 0, layer="norm", layout="channels-last").shape == (1, 16, 8)
    assert camkit.maps(module, x, 0, layer="body").shape == (1, 16, 8)  # a convolution may have any stride
