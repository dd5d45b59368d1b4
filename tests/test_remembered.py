"""What is remembered of a model from one call to the next, and held while several calls go on."""

from __future__ import annotations

import copy
import json
import pickle
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.test_cli import camkit_
from torch import Tensor, nn

import camkit
from camkit import Preprocess
from camkit.core.hooks import as_it_was
from camkit.files import check_writable

SHOWN = Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")


class Net(nn.Module):
    """Two branches, and scores in three forms, all between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()) for _ in range(2))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        one, other = self.norm(self.one(x)), self.other(x)
        scores = self.head(one.mean((2, 3))).sigmoid()
        return {"scores": scores, "likely": scores.softmax(1), "other": self.head(other.mean((2, 3)))}


def explained(net: nn.Module, output: str) -> Any:
    module = Logits(net) if output == "logits" else net
    model = camkit.load_model(
        module, classes=list("abcd"), preprocess=SHOWN, output=None if output == "logits" else output
    )
    return camkit.explain(model, Image.new("RGB", (32, 32), (90, 40, 200)), layer="one")


class Logits(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)["scores"]
        return found


@pytest.mark.parametrize("order", [("scores", "likely"), ("likely", "scores")])
def test_what_scores_mean_is_found_out_for_each_output(order: tuple[str, str]) -> None:
    """Both come out of something that makes probabilities; a copy of the head made of one does not."""
    net = Net().eval()
    told = {output: explained(net, output) for output in order}
    alone = {output: explained(Net().eval(), output) for output in order}
    for output in order:
        assert told[output].probability == alone[output].probability
        assert told[output].scores == alone[output].scores


def test_what_scores_mean_is_found_out_anew_for_another_head() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.features, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)
            with torch.no_grad():
                self.head.weight.mul_(0.01)
                self.head.bias.fill_(0.5)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.features(x).mean((2, 3)))
            return found

    net, photo = Plain().eval(), Image.new("RGB", (32, 32), (90, 40, 200))
    model = camkit.load_model(net, classes=list("abcd"), preprocess=SHOWN)
    before = camkit.explain(model, photo, layer="features")
    assert before.scores == "softmax"
    net.head = nn.Sequential(net.head, nn.Sigmoid())  # type: ignore[assignment]
    after = camkit.explain(model, photo, layer="features")
    assert after.scores == "probabilities" and len(after.predicted) == 4


def test_the_layer_is_found_for_each_function_of_one_code() -> None:
    net, x = Net().eval(), torch.rand(1, 3, 32, 32)

    def of(name: str) -> Any:
        return lambda returned: returned[name]

    both = [camkit.maps(net, x, [0], output=of(name)) for name in ("scores", "other")]
    alone = [camkit.maps(Net().eval(), x, [0], output=of(name)) for name in ("scores", "other")]
    assert all(torch.equal(a, b) for a, b in zip(both, alone, strict=True)) and both[1].any()


def test_a_call_that_ends_leaves_eval_mode_to_those_that_go_on() -> None:
    """As of two threads, one of which ends first; a model in training trains on afterwards."""
    net = Net().train()
    with ExitStack() as last:
        with ExitStack() as first:
            first.enter_context(as_it_was(net, CPU))
            last.enter_context(as_it_was(net, CPU))
        assert not any(part.training for part in net.modules())
    assert all(part.training for part in net.modules())


def test_a_frozen_part_stays_in_eval_mode() -> None:
    net = Net().train()
    net.norm.eval()
    with as_it_was(net, CPU), as_it_was(net, CPU):
        assert not any(part.training for part in net.modules())
    assert not net.norm.training and net.one.training


def test_the_working_folder_can_be_written_into(here: Path) -> None:
    check_writable(Path())
    assert list(here.iterdir()) == []


def test_a_class_that_is_called_by_a_number_is_explained_again(here: Path) -> None:
    """Sorted as texts, the class `2` of twelve has the index 4, and another class is called `4`."""
    Path("mine.py").write_text(
        "import torch\nfrom torch import nn\nimport camkit\n\n"
        "def net():\n    torch.manual_seed(0)\n"
        "    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()\n"
        "    net = nn.Sequential(nn.Conv2d(3, 4, 3), *pool, nn.Linear(4, 12))\n"
        "    classes = tuple(sorted(map(str, range(12))))\n"
        "    shown = camkit.Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)\n"
        "    return camkit.LoadedModel(net.eval(), classes, shown, 'twelve', '0')\n"
    )
    Image.new("RGB", (32, 32), (90, 40, 200)).save("a.png")
    done = camkit_(
        "explain", "a.png", "--model", "mine.py:net", "--class", "2", "--workers", "0", "--out", "out"
    )
    assert done.exit_code == 0, done.output
    (line,) = map(json.loads, Path("out", "manifest.jsonl").read_text().splitlines())
    assert (line["class_index"], line["class_name"]) == (4, "2")
    command = camkit_("show", Path("out", line["overlay_file"])).stdout.splitlines()[-1]
    assert re.search(r"--class 2\b", command), command


def test_a_view_has_every_map_in_its_own_place() -> None:
    photo = Image.new("RGB", (64, 32), (90, 40, 200))
    crop = Preprocess(size=(32, 32), resize=40, mean=(0.0,) * 3, std=(1.0,) * 3)
    squash = Preprocess(size=(32, 32), fit="squash", mean=(0.0,) * 3, std=(1.0,) * 3)
    models = [
        camkit.LoadedModel(Logits(Net()).eval(), ("a", "b", "b", "c"), shown, name, "net.one")
        for name, shown in (("first", squash), ("second", crop))
    ]
    results = [one for model in models for one in camkit.explain_many(model, [photo], target=[1, 2])]
    page = camkit.view(results).page
    (data,) = re.findall(r'id="data">(.*?)</script>', page, re.DOTALL)
    maps = json.loads(data)["maps"]
    assert len({(one["class"], one["way"]) for one in maps}) == 4
    assert [one["class"] for one in maps[:2]] == ["b (1)", "b (2)"]
    assert maps[0]["box"] != maps[2]["box"] and maps[0]["box"][0] == 0
    assert "...map.values" not in page, "a large map is more arguments than a function may have"


def test_the_hash_of_weights_is_that_of_what_they_are_now() -> None:
    """As after a training in place; a cast is no change, and a copy knows that."""
    model = camkit.LoadedModel(Logits(Net()).eval(), tuple("abcd"), SHOWN, "net", "net.one")
    photo, before = Image.new("RGB", (32, 32), (90, 40, 200)), model.sha256
    first = camkit.explain(model, photo)
    with torch.no_grad():
        next(model.module.parameters()).view(-1)[0] += 1
    assert model.sha256 != before
    assert camkit.explain(model, photo).facts()["model_sha256"] == model.sha256 != before
    assert first.map is not None
    after = model.sha256
    assert model.to(dtype=torch.bfloat16).sha256 == after
    assert copy.deepcopy(model).sha256 == pickle.loads(pickle.dumps(model)).sha256 == after
    model.module.net.head = nn.Linear(4, 4).bfloat16()  # type: ignore[union-attr,assignment]
    assert model.sha256 != after
