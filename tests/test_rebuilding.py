"""Bundles of models that do not say how they are built: told by their tensors, proved by their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import camkit
from camkit.core.scored import classifier
from camkit.errors import ModelError, UsageError
from camkit.models.fastai import FastaiSource
from camkit.models.loading import load_quietly

CLASSES = ("cat", "dog", "newt")


def network(name: str = "test_resnet", **facts: Any) -> Any:
    torch.manual_seed(0)
    made = timm.create_model(name, num_classes=3, **facts)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):  # else many values are zero, and a difference would not show
            module.running_mean.normal_(0, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return made.eval()


class Wrapped(nn.Module):
    """Whatever is done to a network's scores, of another name for each tensor."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Labelled(Wrapped):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.net(x), "loss": None}


class Scaled(Wrapped):
    """The fault of a single number that no tensor tells."""

    def forward(self, x: Tensor) -> Any:
        return self.net(x) * 1.001


def with_head() -> nn.Module:
    net = network()
    net.fc = nn.Sequential(nn.Dropout(0.4), nn.Linear(net.num_features, 8), nn.ReLU(), nn.Linear(8, 3))
    return net  # type: ignore[no-any-return]


def of_fastai(**facts: Any) -> nn.Module:
    backbone = {"source": "timm", "name": "test_resnet", **facts}
    return FastaiSource().build({"backbone": backbone, "num_classes": 3}).eval()


KNOWN: dict[str, tuple[Any, dict[str, Any]]] = {
    "a network of timm": (network, {}),
    "for photographs of another size": (lambda: network("test_vit", img_size=96), {"size": (96, 96)}),
    "of one channel": (lambda: network(in_chans=1), {"channels": 1}),
    "with another head": (with_head, {}),
    "inside another module": (lambda: Wrapped(network()), {}),
    "that returns a dict": (lambda: Labelled(network()), {"output": "logits"}),
    "of fastai's learner": (of_fastai, {}),
    "of fastai's learner, one channel": (lambda: of_fastai(channels=1), {"channels": 1}),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_what_a_library_has_comes_back_with_the_same_scores(kind: str, tmp_path: Path) -> None:
    make, facts = KNOWN[kind]
    model = load_quietly(make(), classes=CLASSES, scores="softmax", **{"size": (64, 64), **facts})
    again = camkit.load_model(camkit.save_bundle(model, tmp_path / "bundle"), device="cpu")
    inputs = torch.rand(2, model.preprocess.channels, *model.preprocess.size)
    with torch.no_grad():
        torch.testing.assert_close(again.module(inputs), classifier(model)(inputs))
    assert (again.classes, again.scores, again.output) == (CLASSES, "softmax", None)
    assert again.preprocess == model.preprocess


OTHER = {
    "scores that are scaled": (lambda: Scaled(network()), "but computes something else with them"),
    "layers of one's own": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        "torchvision, timm and fastai's vision_learner have none like it",
    ),
}


@pytest.mark.parametrize("kind", OTHER)
def test_another_network_is_in_no_bundle(kind: str, tmp_path: Path) -> None:
    make, why = OTHER[kind]
    model = load_quietly(make(), classes=CLASSES, size=(64, 64))
    with pytest.raises(ModelError, match=f"no bundle holds .*use it as it is: .*{why}") as told:
        camkit.save_bundle(model, tmp_path / "bundle")
    assert "\n" not in str(told.value) and not (tmp_path / "bundle").exists()


def test_a_key_of_the_scores_is_kept_and_a_function_is_not(tmp_path: Path) -> None:
    """Of a model that says how it is built."""
    facts: dict[str, Any] = {"device": "cpu", "classes": [str(i) for i in range(1000)]}
    model = camkit.load_model("timm:test_resnet@none", output=lambda scores: scores, **facts)
    with pytest.raises(ModelError, match="no bundle holds the function output="):
        camkit.save_bundle(model, tmp_path / "bundle")


def test_a_stranger_s_output_is_checked(tmp_path: Path) -> None:
    model = camkit.load_model("timm:test_resnet@none", device="cpu")
    folder = camkit.save_bundle(model, tmp_path / "bundle", half=True)
    text = (folder / "camkit.json").read_text()
    for bad in ("[1]", "true", "1.5", "{}"):
        (folder / "camkit.json").write_text(text.replace('"format": 1', f'"format": 1, "output": {bad}'))
        with pytest.raises(ModelError, match="is neither an index nor a key"):
            camkit.load_model(folder, device="cpu")
    (folder / "camkit.json").write_text(text.replace('"format": 1', '"format": 1, "output": "logits"'))
    with pytest.raises((ModelError, UsageError), match="output='logits' is not in what the model returns"):
        camkit.explain(camkit.load_model(folder, device="cpu"), torch.zeros(3, 160, 160))
