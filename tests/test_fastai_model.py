"""Models of fastai in plain torch: what their files tell, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import camkit
from camkit.errors import ModelError
from camkit.models.fastai import FastaiSource
from camkit.models.fastai_architecture import cut, features
from camkit.models.torchvision import TorchvisionSource
from camkit.testing import model_source_checks

# What is assumed of the models is told; here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")

RESNET = {"source": "torchvision", "name": "resnet18"}


@model_source_checks("fastai", reference="resnet18@none", dist="camkit")
def test_conformance(check: Callable[[], None]) -> None:
    check()


def test_the_lessons_parameters() -> None:
    """21,831,050; the lesson printed 549 more: fastai v1 gave its linear layers biases."""
    lesson = {"backbone": {**RESNET, "name": "resnet34"}, "num_classes": 37}
    counts = [
        sum(p.numel() for p in FastaiSource().build({**lesson, "bias": bias}).parameters())
        for bias in (False, True)
    ]
    assert counts == [21_831_050, 21_831_599]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bn_final", [False, True])
def test_files_of_every_fastai_are_read(tmp_path: Path, bias: bool, bn_final: bool) -> None:
    facts = {"backbone": RESNET, "num_classes": 5, "bias": bias, "bn_final": bn_final}
    saved = FastaiSource().build(facts).eval()
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    loaded = camkit.load_model(f"fastai:resnet18@{tmp_path / 'w.pth'}", device="cpu")
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.module(inputs), saved(inputs))
    assert loaded.architecture == {"source": "fastai", **facts} and len(loaded.classes) == 5


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("resnet18", "fastai:resnet18@FILE"),
        ("resnet43@none", "resnet43.*did you mean"),
        ("vit_b_16@none", "cut"),
        ("some.pkl", "no file"),
        ("xresnet18@w.pth", "learn.export"),
        ("resnet18@nowhere.pth", r"nowhere\.pth"),
    ],
)
def test_references_that_are_refused(reference: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        camkit.load_model(f"fastai:{reference}", device="cpu")


def test_a_pickle_needs_trust(tmp_path: Path) -> None:
    (tmp_path / "some.pkl").write_bytes(b"\x80\x04N.")
    for spec in (f"fastai:{tmp_path / 'some.pkl'}", tmp_path / "some.pkl"):
        with pytest.raises(ModelError, match="--trust-pickle"):
            camkit.load_model(spec, device="cpu")


def test_weights_without_fastais_head_are_refused(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="head"):
        camkit.load_model(f"fastai:resnet18@{tmp_path / 'w.pth'}", device="cpu")


@pytest.mark.parametrize(
    "architecture",
    [
        {},
        {"backbone": "resnet18", "num_classes": 2},
        {"backbone": {"source": "bundle", "name": "/etc"}, "num_classes": 2},
        {"backbone": {"source": "fastai", "backbone": RESNET}, "num_classes": 2},
        {"backbone": RESNET, "num_classes": 0},
        {"backbone": RESNET, "num_classes": "2"},
    ],
)
def test_architectures_from_strangers(architecture: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        FastaiSource().build(architecture)


def test_counting_features_computes_nothing_and_leaves_the_body() -> None:
    body = cut("torchvision", TorchvisionSource().build({"name": "resnet18", "num_classes": 2}))
    assert features(body, 4096) == 512
    assert next(body.parameters()).device.type == "cpu"
