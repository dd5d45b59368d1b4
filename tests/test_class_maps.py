"""Maps of all classes with the scores that they explain, and what a plugin needs to ask for them."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from PIL import Image
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit import LoadedModel
from camkit.cli import cli
from camkit.errors import ImageError, MapError, ModelError, UsageError
from camkit.images.preprocess import Preprocess
from camkit.plugin import classifier, explain_classes, map_layers, photo_reader, plugin_names, predict
from camkit.registry import discovery

SIZE = (32, 32)


class Net(nn.Module):
    """Two convolutions, a global mean and a linear layer; its scores may come in a dict."""

    def __init__(self, *, packed: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 6, 3, 2))
        self.head = nn.Linear(6, 5)
        self.packed = packed

    def forward(self, x: Tensor) -> Any:
        scores = self.head(self.body(x).mean((2, 3)))
        return {"scores": scores} if self.packed else scores


def model(**more: Any) -> LoadedModel:
    torch.manual_seed(3)
    net = Net(packed="output" in more).eval()
    classes = tuple(f"class {i}" for i in range(5))
    return LoadedModel(net, classes, Preprocess(SIZE), "net", default_layer="body.2", **more)


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(1, 3, *SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("more", [{}, {"output": "scores"}], ids=["plain", "output"])
def test_all_classes_and_scores_are_those_of_the_single_calls(inputs: Tensor, more: Any) -> None:
    subject = model(**more)
    found = explain_classes(subject, inputs)
    expected = camkit.class_maps(subject.module, inputs, layer="body.2", output=subject.output)[0]
    torch.testing.assert_close(found.maps, expected)
    assert (found.classes, found.layer, found.shared) == (tuple(range(5)), "body.2", False)
    scores = classifier(subject)(inputs)[0]
    torch.testing.assert_close(found.prediction.logits, scores.detach())
    torch.testing.assert_close(found.prediction.likely, scores.softmax(0).detach())
    again = predict(subject, inputs)
    torch.testing.assert_close(again.logits, found.prediction.logits)
    assert again.predicted == found.prediction.predicted == (int(scores.argmax()),)
    # Behind a global mean and a linear layer the sum of a map is the score without the bias.
    torch.testing.assert_close(found.maps.sum((1, 2)) + subject.module.head.bias.detach(), scores.detach())


def test_chosen_classes_come_once_and_in_the_order_asked_for(inputs: Tensor) -> None:
    found = explain_classes(model(), inputs, classes=[3, "class 1", "3"])
    assert found.classes == (3, 1) and len(found.maps) == 2
    assert explain_classes(model(), inputs, method="activations").shared
    with pytest.raises(UsageError, match=r"several layers .*body\.0"):
        explain_classes(model(), inputs, layer="body.*")
    with pytest.raises(UsageError, match="one photograph"):
        explain_classes(model(), inputs.expand(2, -1, -1, -1))


def test_what_cannot_be_drawn_or_named_is_refused(inputs: Tensor) -> None:
    with pytest.raises(MapError, match="NaN"):
        explain_classes(model(), inputs * torch.nan)
    subject = model()
    unnamed = LoadedModel(subject.module, ("one",), subject.preprocess, "net", default_layer="body.2")
    for call in (explain_classes, predict):
        with pytest.raises(ModelError, match="names 1 class but returns 5 scores"):
            call(unnamed, inputs)
    with pytest.raises(ModelError, match="a dict with 'scores'"):
        predict(LoadedModel(Net(packed=True), ("a",), subject.preprocess, "net"), inputs)


def test_predicting_leaves_the_modes_as_they_are(inputs: Tensor) -> None:
    subject = model()
    subject.module.train()
    subject.module.body[1].eval()
    predict(subject, inputs)
    assert [part.training for part in subject.module.body] == [True, False, True]


def test_the_layers_that_carry_a_map_come_with_the_automatic_one() -> None:
    records, auto = map_layers(model())
    assert [(r.name, r.grid) for r in records] == [
        ("body.0", (15, 15)),
        ("body.1", (15, 15)),
        ("body.2", (7, 7)),
        ("body", (7, 7)),
    ]
    assert auto == "body.2"
    subject = model()
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)).eval()
    assert map_layers(LoadedModel(flat, subject.classes, subject.preprocess, "flat")) == ([], None)


def test_a_photograph_is_read_from_its_bytes_in_another_process() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (80, 60), "red").save(buffer, "PNG")
    with photo_reader() as read:
        photo = read(buffer.getvalue(), Preprocess(SIZE), side=40)
        assert photo.image.size == (40, 30) and photo.view is not None and photo.view.size == SIZE
        with pytest.raises(ImageError, match=r"cannot be decoded|not an image"):
            read(buffer.getvalue()[:60], Preprocess(SIZE), side=40)
        assert read(buffer.getvalue(), Preprocess(SIZE), side=100).image.size == (80, 60)


def test_plugins_are_known_by_the_names_that_pick_them() -> None:
    names = plugin_names("explainer")
    assert names[0] == "native"
    assert [discovery.get("explainer", name).problem for name in names] == [None] * len(names)


def test_a_command_of_ours_that_is_not_installed_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CAMKIT_PLUGINS", "")
    done = runner().invoke(cli, ["explore", "photos"])
    assert done.exit_code == 2
    assert done.stderr == "Error: there is no command 'explore' (pip install camkit-explorer)\n"
