"""What is explained in place of classes: numbers made of all scores, likeness, one of several outputs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from tests.test_cli import camkit_, explain, lines, maps, photo
from torch import Tensor, nn

import camkit
from camkit.contracts.model import LoadedModel
from camkit.errors import CamkitWarning, ModelError

pytestmark = pytest.mark.usefixtures("here")

# A network with two outputs, one of them the scores of classes, in a file of the user's.
TWO = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, stride=4), nn.Tanh())
        self.age, self.breed = nn.Linear(6, 1), nn.Linear(6, 4)

    def forward(self, x):
        pooled = self.body(x).mean((2, 3))
        return {"age": self.age(pooled), "breed": self.breed(pooled)}

def two():
    torch.manual_seed(0)
    return Two().eval()
"""


def model(module: nn.Module, count: int, **facts: Any) -> LoadedModel:
    names = tuple(f"class {i}" for i in range(count))
    return LoadedModel(module.eval(), names, camkit.Preprocess(size=(32, 32)), name="net", **facts)


def gradients(module: nn.Module, layer: nn.Module, inputs: Tensor, score: Any) -> np.ndarray:
    """The Grad-CAM of a score of whatever the module returns, slowly."""
    kept: list[Tensor] = []
    handle = layer.register_forward_hook(lambda *call: kept.append(call[2]))
    (gradient,) = torch.autograd.grad(score(module(inputs)), kept)
    handle.remove()
    weights = gradient.mean((2, 3), keepdim=True)
    found: np.ndarray = (weights * kept[0]).sum(1)[0].detach().numpy()
    return found


REDUCED = {"sum": lambda s: s.sum(), "mean": lambda s: s.mean(), "norm": lambda s: (s * s).sum().sqrt()}


@pytest.mark.parametrize("name", REDUCED)
def test_a_number_made_of_all_scores(name: str) -> None:
    photo()
    done = explain("cat.png", "--target", name, "--layer", "body.0")
    assert done.exit_code == 0, done.output
    (line,) = lines()
    assert (line["class_name"], line["class_index"], line["probability"]) == (name, None, None)
    loaded = camkit.load_model("tiny:net", device="cpu")
    view = loaded.preprocess(Image.open("cat.png"))[None]
    (found,) = maps().values()
    expected = gradients(loaded.module, loaded.module.get_submodule("body.0"), view, REDUCED[name])
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()


def test_several_at_once_hold_and_say_how_to_make_them_again() -> None:
    photo("a.png", 0), photo("b.png", 1), photo("c.png", 2)
    assert explain("a.png", "--target", "sum", "--target", "norm").exit_code == 0
    assert explain("a.png", "--like", "b.png", "--like", "c.png").exit_code == 0
    assert [line["class_name"] for line in lines()] == ["sum", "norm", "like b.png", "like c.png"]
    done = camkit_("verify", "out")
    assert done.exit_code == 0 and "4 recomputed maps differ by at most 0.0e+00" in done.stdout
    names = {line["class_name"]: line["overlay_file"] for line in lines()}
    for name, words in {"sum": "--target sum", "like b.png": "--like b.png"}.items():
        told = camkit_("show", Path("out", names[name])).stdout.splitlines()[-1]
        assert told.startswith("camkit explain a.png --model tiny:net") and words in told
        assert "--class" not in told
    again = explain("a.png", "--like", "b.png", "--like", "c.png", "--resume")
    assert "1 photograph was done already" in again.stderr
    photo("b.png", 5)  # another photograph of that name is another question
    assert "done already" not in explain("a.png", "--like", "b.png", "--like", "c.png", "--resume").stderr


def test_another_photograph_of_the_same_name_is_no_longer_what_was_compared_with() -> None:
    photo("a.png", 0), photo("b.png", 1)
    assert explain("a.png", "--like", "b.png").exit_code == 0
    (line,) = lines()
    assert line["like_sha256"] == hashlib.sha256(Path("b.png").read_bytes()).hexdigest()
    photo("b.png", 5)
    checked = camkit_("verify", "out")
    assert checked.exit_code == 1 and "b.png has changed" in checked.stdout + checked.stderr


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--target", "summ"], "there is no target 'summ'; did you mean 'sum'?"),
        (["--target", "sum", "--class", "tabby"], "--target is in place of --class: leave one out"),
        (["--like", "cat.png", "--class", "pred"], "--like is in place of --class: leave one out"),
        (["--like", "cat.png", "--target", "sum"], "give one of them"),
        (["--like", "dog.png"], "there is no file or folder 'dog.png'"),
        (["--text", "a cat", "--classes", "a,b"], "--text and --classes both say"),
        (["--text", "a cat", "--text", " "], "--text is empty: give what"),
        (["--text", "a cat", "--text", "a cat "], "--text 'a cat' is given twice"),
        (["--text", "a cat"], "tiny:net knows no texts: --text is for CLIP and SigLIP"),
    ],
)
def test_what_cannot_be_asked(asked: list[str], said: str) -> None:
    photo()
    done = explain("cat.png", *asked)
    assert said in done.stderr and done.stderr.count("\n") == 1 and done.exit_code == 2
    assert not Path("out").exists()


def test_a_damaged_photograph_to_compare_with_is_named() -> None:
    photo()
    Path("bad.png").write_bytes(b"no picture")
    done = explain("cat.png", "--like", "bad.png")
    assert done.exit_code == 1 and done.stderr.startswith("Error: bad.png is not an image")


# --- what is below the last layer -------------------------------------------------------------------


def pooled(net: nn.Module) -> nn.Module:
    net.fc = nn.Identity()
    return net


HEADS: dict[str, Any] = {
    "resnet": (lambda: torchvision.models.resnet18(num_classes=5), "fc"),
    "vgg": (lambda: torchvision.models.vgg11(num_classes=5), "classifier.6"),
    "vit": (lambda: timm.create_model("test_vit", num_classes=5, img_size=32), "head"),
    "softmax behind": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                              nn.Linear(6, 5), nn.Softmax(1)), "4"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_an_encoder_returns_what_the_last_layer_takes(name: str) -> None:
    make, head = HEADS[name]
    torch.manual_seed(0)
    net = make().eval()
    before = {key: value.data_ptr() for key, value in net.state_dict().items()}
    made, inputs = camkit.encoder(model(net, 5)), torch.rand(2, 3, 32, 32)
    taken: list[Tensor] = []
    handle = net.get_submodule(head).register_forward_pre_hook(lambda _, given: taken.append(given[0]))
    net(inputs)
    handle.remove()
    embedding = made.module(inputs)
    if name == "softmax behind":  # which stays, over the embedding
        embedding = made.module[:4](inputs)
    assert torch.equal(embedding, taken[0]) and made.sha256 == model(net, 5).sha256
    assert {key: value.data_ptr() for key, value in net.state_dict().items()} == before
    assert type(net.get_submodule(head)) is nn.Linear and made.scores == "none"
    assert len(made.classes) == made.module(inputs).shape[1]
    shared = {p.data_ptr() for p in net.parameters()}
    assert all(p.data_ptr() in shared for p in made.module.parameters())


class Distilled(nn.Module):
    """As DeiT with a distillation token: the scores are the mean of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 8, stride=8)
        self.head, self.head_dist = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.features(x)
        return (self.head(maps.mean((2, 3))) + self.head_dist(maps.amax((2, 3)))) / 2


def test_of_two_heads_the_mean_of_what_both_take_is_the_embedding() -> None:
    torch.manual_seed(0)
    net, inputs = Distilled(), torch.rand(2, 3, 32, 32)
    maps = net.features(inputs)
    embedding = camkit.encoder(model(net, 5)).module(inputs)
    assert torch.equal(embedding, (maps.mean((2, 3)) + maps.amax((2, 3))) / 2)


def test_scores_that_no_linear_layer_makes_are_said_to_be_compared() -> None:
    """SqueezeNet ends in a convolution: what it returns are scores of classes, and no embedding."""
    net = torchvision.models.squeezenet1_1(num_classes=5)
    with pytest.warns(CamkitWarning, match="the likeness is that of the scores; --scores none"):
        assert len(camkit.encoder(model(net, 5)).classes) == 5


@pytest.mark.parametrize("method", ["gradcam", "rise"])
def test_the_same_photograph_has_nothing_that_could_make_it_more_alike(method: str) -> None:
    """What is left of its gradients is rounding, which would be drawn at full colour."""
    photo("a.png", 0), photo("b.png", 1)
    torch.manual_seed(0)
    encoder = camkit.encoder(model(torchvision.models.resnet18(num_classes=5), 5))
    target = camkit.likeness(encoder, "a.png")
    options = {"masks": 16} if method == "rise" else {}
    same, other = camkit.explain_many(encoder, ["a.png", "b.png"], target=target, method=method, **options)
    assert same.logit == pytest.approx(1, abs=1e-6) and other.logit < 1 - 1e-6
    (said,) = same.warnings
    assert "nothing could make it more alike" in said
    assert bool(same.map.any()) == (method == "rise") and not any("cosine" in w for w in other.warnings)


def test_a_model_without_a_head_is_its_own_encoder() -> None:
    torch.manual_seed(0)
    net = pooled(torchvision.models.resnet18())
    given = model(net, 512, scores="none")
    assert camkit.encoder(given).module is net
    dense = model(nn.Conv2d(3, 4, 1), 4, scores="none")
    with pytest.raises(ModelError, match=r"returns \[1, 4, 32, 32\], no embedding"):
        camkit.encoder(dense)


def test_likeness_in_python_is_that_of_the_command_line() -> None:
    photo("a.png", 0), photo("b.png", 1)
    assert explain("a.png", "--like", "b.png").exit_code == 0
    encoder = camkit.encoder(camkit.load_model("tiny:net", device="cpu"))
    target = camkit.likeness(encoder, "b.png")
    result = camkit.explain(encoder, "a.png", target={"like b.png": target})
    (line,), (map,) = lines(), maps().values()
    assert np.array_equal(result.map.numpy(), map) and result.logit == line["logit"]
    own = camkit.explain(encoder, "b.png", target=target)
    assert own.logit == pytest.approx(1, abs=1e-6)
    a, b = (encoder.preprocess(Image.open(name))[None] for name in ("a.png", "b.png"))
    other = encoder.module(b)[0].detach()
    layer = encoder.module.get_submodule(result.layer)
    expected = gradients(encoder.module, layer, a, lambda e: (e[0] @ other) / (e[0].norm() * other.norm()))
    assert np.abs(map - expected).max() <= 1e-5 * np.abs(expected).max()


# --- one of several outputs -------------------------------------------------------------------------


@pytest.mark.parametrize(("output", "classes"), [("breed", "a,b,c,d"), ("age", "years")])
def test_one_of_several_outputs(output: str, classes: str) -> None:
    Path("mine.py").write_text(TWO)
    photo()
    asked = ("--classes", classes, "--output", output, "--scores", "none", "--size", "32")
    done = explain("cat.png", *asked, model="mine.py:two")
    assert done.exit_code == 0, done.output
    (line,) = lines()
    assert line["class_name"] in classes.split(",") and line["probability"] is None
    assert line["model_facts"]["output"] == output
    shown = camkit_("show", Path("out", line["overlay_file"])).stdout
    assert f"--output {output}" in shown
    checked = camkit_("verify", "out", "--model", "mine.py:two")
    assert checked.exit_code == 0 and "1 recomputed map differs" in checked.stdout


def test_maps_of_other_outputs_do_not_replace_each_other() -> None:
    Path("mine.py").write_text(TWO)
    photo()
    for output in ("breed", "age", "breed"):
        asked = ("--output", output, "--target", "sum", "--size", "32")
        done = explain("cat.png", *asked, model="mine.py:two")
        assert done.exit_code == 0, done.output
    assert len(list(Path("out").glob("*.npy"))) == 2
    assert len({line["map_sha256"] for line in lines()}) == 2
    checked = camkit_("verify", "out", "--model", "mine.py:two")
    assert checked.exit_code == 0 and "2 recomputed maps differ" in checked.stdout
    unsaid = camkit_("verify", "out")
    assert "2 maps of mine.py:two are not computed again: if you trust that model" in unsaid.stdout
    assert unsaid.exit_code == 1 and "What was checked holds; not everything was" in unsaid.stderr
    Path("other.py").write_text(TWO)
    asked = ("--output", "breed", "--target", "sum", "--size", "32")
    assert explain("cat.png", *asked, model="other.py:two").exit_code == 0
    several = camkit_("verify", "out", "--model", "mine.py:two")
    assert "1 map of other.py:two is not computed again" in several.stdout and several.exit_code == 1
    for scores in ("softmax", "sigmoid"):
        asked = ("--output", "breed", "--scores", scores, "--class", "0", "--size", "32", "--out", "other")
        done = explain("cat.png", *asked, model="mine.py:two")
        assert done.exit_code == 0, done.output
    assert len(list(Path("other").glob("*.png"))) == 2  # whose captions tell other probabilities


def test_a_wrong_output_is_named_with_those_that_there_are() -> None:
    Path("mine.py").write_text(TWO)
    photo()
    done = explain("cat.png", "--output", "breeds", "--size", "32", model="mine.py:two")
    assert done.exit_code == 1 and done.stderr.count("\n") == 1
    assert "output='breeds' is not in what the model returns" in done.stderr and "'breed'" in done.stderr


def test_an_output_by_its_number() -> None:
    Path("mine.py").write_text(TWO.replace('{"age": self.age(pooled), "breed": self.breed(pooled)}',
                                           "(self.age(pooled), self.breed(pooled))"))  # fmt: skip
    photo()
    done = explain("cat.png", "--output", "1", "--size", "32", "--classes", "a,b,c,d", "--json",
                   model="mine.py:two")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["model_facts"]["output"] == 1


def test_the_sum_of_a_dense_output() -> None:
    """As of a network of depth: one number for each pixel."""
    with pytest.warns(CamkitWarning):
        result = camkit.explain(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 1, 1)),
            photo(),
            target={"depth": lambda returned: returned.flatten(1).sum(1)},
            classes=["depth"],
            layer="0",
        )
    assert result.class_name == "depth" and bool(result.map.abs().max() > 0)


DEPTH = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.depth = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        features = torch.relu(self.features(x))
        return {"depth": self.depth(features), "both": self.depth(features).repeat(1, 2, 1, 1)}


def net():
    torch.manual_seed(0)
    return Net().eval()
"""


@pytest.mark.parametrize("output", ["depth", "both"])
def test_a_number_of_a_value_for_each_pixel(output: str) -> None:
    """Of an image of one channel, or of several, which is taken for a segmentation."""
    Path("mine.py").write_text(DEPTH)
    photo()
    done = explain("cat.png", "--output", output, "--target", "mean", model="mine.py:net")
    assert done.exit_code == 0, done.output
    (line,) = lines()
    assert line["class_name"] == "mean" and line["layer"] == "features"  # not the depths themselves
    checked = camkit_("verify", "out", "--model", "mine.py:net")
    assert checked.exit_code == 0 and "1 recomputed map differs" in checked.stdout
    if output == "depth":
        done = explain("cat.png", "--output", output, model="mine.py:net")
        assert done.exit_code == 1 and "if it is a depth or the like: --target mean" in done.stderr


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_an_embedding_lies_below_what_makes_probabilities() -> None:
    """It was their softmax, in which nearly all photographs are alike."""

    def net(*end: nn.Module) -> nn.Module:
        torch.manual_seed(0)
        body = nn.Conv2d(3, 8, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4)
        return nn.Sequential(*body, *end).eval()

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x).softmax(1)
            return found

    def embedding(module: nn.Module) -> Tensor:
        shown = camkit.Preprocess(size=(32, 32))
        model = camkit.encoder(camkit.load_model(module, classes=list("abcd"), preprocess=shown))
        found: Tensor = model.module(torch.linspace(-1, 1, 3072).reshape(1, 3, 32, 32))
        return found

    plain = embedding(net())
    assert plain.shape == (1, 32)
    for end in (nn.Softmax(1), nn.LogSoftmax(1), nn.Sigmoid()):
        assert torch.equal(embedding(net(end)), plain)
    with pytest.raises(camkit.errors.ModelError, match="in its own code: no embedding"):
        embedding(Own())
