"""What scores mean: by hand, from the graph, and in everything that tells a probability."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.conftest import SmallNet, runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.contracts import scores as meant
from camkit.contracts.metric import MapBatch
from camkit.contracts.model import LoadedModel
from camkit.errors import CamkitWarning, ModelError, UsageError
from camkit.metrics import faithfulness, faithfulness_masks, faithfulness_noise, localisation
from camkit.metrics.measure import measure

LOG3 = math.log(3)  # the logit of three quarters


def never() -> bool | None:
    raise AssertionError("the scores alone tell what they are")


# --- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "scores", "expected"),
    [
        ("softmax", [[0.0, LOG3]], [[0.25, 0.75]]),
        ("sigmoid", [[0.0, LOG3]], [[0.5, 0.75]]),
        ("sigmoid", [[-LOG3]], [[0.25]]),
        ("probabilities", [[0.3, 0.9]], [[0.3, 0.9]]),
    ],
)
def test_probabilities(kind: Any, scores: Any, expected: Any) -> None:
    found = meant.probabilities(torch.tensor(scores), kind)
    assert found is not None
    torch.testing.assert_close(found, torch.tensor(expected))


def test_no_probabilities() -> None:
    assert meant.probabilities(torch.tensor([[2.0]]), "none") is None


@pytest.mark.parametrize(
    ("scores", "squashed", "expected"),
    [
        ([[2.0, -1.0]], never, "softmax"),
        ([[2.0]], never, "sigmoid"),
        ([[0.5]], lambda: False, "sigmoid"),
        ([[0.5]], lambda: None, "sigmoid"),
        ([[0.5]], lambda: True, "probabilities"),
        ([[0.5, 0.9]], lambda: True, "probabilities"),  # several labels
        ([[0.5, 0.9]], lambda: None, "softmax"),
        ([[0.2, 0.8]], lambda: None, "probabilities"),
        ([[0.2, 0.8]], lambda: False, "softmax"),  # of a linear layer: it only happens to sum to one
        ([[0.2, 0.8], [0.1, 0.2]], lambda: None, "softmax"),  # one row does not make it so
        ([[0.2, 0.8], [0.5, -0.5]], never, "softmax"),
        ([[math.nan, 0.8], [0.2, 0.8]], lambda: None, "probabilities"),  # NaN tells nothing
        ([[math.nan, 0.8]], never, "softmax"),
    ],
)
def test_what_scores_tell_of_themselves(
    scores: Any, squashed: Callable[[], bool | None], expected: str
) -> None:
    assert meant.meaning("auto", torch.tensor(scores), squashed) == expected


def test_what_is_said_is_taken() -> None:
    scores = torch.tensor([[0.2, 0.8]])
    for kind in meant.KINDS:
        assert meant.meaning(meant.checked(kind), scores, never) == kind
    assert meant.meaning("softmax", torch.tensor([[0.2]]), never) == "sigmoid"  # of one it is always 1
    with pytest.raises(ModelError, match=r"probabilities.* -1 to 3"):
        meant.meaning("probabilities", torch.tensor([[-1.0, 3.0]]), never)


@pytest.mark.parametrize(
    ("likely", "exclusive", "expected"),
    [
        ([0.3, 0.4, 0.3], True, [1]),
        ([0.6, 0.4, 0.9], False, [2, 0]),
        ([0.5, 0.4, 0.1], False, []),
    ],
)
def test_predictions(likely: Any, exclusive: bool, expected: list[int]) -> None:
    assert meant.predictions(torch.tensor(likely), exclusive=exclusive) == expected


def test_probabilities_that_sum_to_one_exclude_each_other() -> None:
    assert meant.excludes(torch.tensor([[0.2, 0.8]]), "probabilities")
    assert not meant.excludes(torch.tensor([[0.7, 0.8]]), "probabilities")
    assert not meant.excludes(torch.tensor([[0.8]]), "probabilities")
    assert not meant.excludes(torch.tensor([[0.2, 0.8]]), "sigmoid")


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ torch.linspace(-1, 1, x[0].numel() * 3).view(-1, 3)


ENDINGS: dict[str, tuple[Callable[[Tensor], Any], bool | None]] = {
    "logits": (linear, False),
    "a softmax": (lambda x: linear(x).softmax(1), True),
    "a sigmoid that is reshaped": (lambda x: linear(x).sigmoid()[:, :1].squeeze(1)[:, None], True),
    "the mean over flips": (lambda x: (linear(x).softmax(1) + linear(x.flip(-1)).softmax(1)) / 2, True),
    "both sides of a sigmoid": (
        lambda x: torch.cat([linear(x)[:, :1].sigmoid(), 1 - linear(x)[:, :1].sigmoid()], 1),
        True,
    ),
    "a gate": (lambda x: linear(x) * linear(x).sigmoid(), False),
    "pooled": (lambda x: x.mean((2, 3)), False),
    "no graph": (lambda x: linear(x).softmax(1).detach(), None),
    "no tensor": (lambda x: {"scores": x}, None),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_the_graph_tells_where_scores_come_from(name: str) -> None:
    model, expected = ENDINGS[name]
    with torch.inference_mode():
        assert meant.squashed(model, torch.rand(1, 3, 2, 2)) is expected


class Frozen(nn.Module):
    """A network that runs without a graph."""

    def __init__(self, *ending: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(SmallNet(2), *ending)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        return self.body(x).detach()


def test_without_a_graph_the_last_module_tells() -> None:
    assert meant.squashed(Frozen(nn.Softmax(1)), torch.rand(1, 3, 8, 8))
    assert meant.squashed(Frozen(), torch.rand(1, 3, 8, 8)) is None


# --- explained ------------------------------------------------------------------------------------


def model(classes: int, *ending: nn.Module, bias: list[float] | None = None, **facts: Any) -> LoadedModel:
    """A network of known scores: the weights above the features are zero, but for a trace."""
    torch.manual_seed(0)
    net = SmallNet(classes).eval()
    net.fc.weight.data *= 1e-3
    net.fc.bias.data = torch.tensor(bias or [0.0] * classes)
    module = nn.Sequential(net, *ending).eval() if ending else net
    names = tuple("abcdefg"[:classes])
    preprocess = camkit.Preprocess(size=(16, 16))
    return LoadedModel(
        module, names, preprocess, name="net", default_layer="0.act" if ending else "act", **facts
    )


PHOTO = Image.effect_noise((20, 16), 60).convert("RGB")


def said(loaded: LoadedModel, **asked: Any) -> camkit.Explanation:
    return camkit.explain(loaded, PHOTO, **asked)


@pytest.mark.parametrize(("bias", "name"), [(LOG3, "a"), (-LOG3, None)])
def test_one_output_is_above_a_half_or_not(bias: float, name: str | None) -> None:
    found = said(model(1, bias=[bias]))
    assert found.scores == "sigmoid" and found.class_name == "a"
    assert found.probability == pytest.approx(0.75 if name else 0.25, abs=1e-3)
    assert (found.predicted_name, found.predicted_index) == ((name, 0) if name else (None, None))
    assert found.predicted == ((name,) if name else ())
    assert found.verdict() == ("a 75.0%: above 50%" if name else "a 25.0%: not above 50%")


def test_a_softmax_of_one_output_is_read_otherwise_and_says_so() -> None:
    asked = said(model(1, bias=[LOG3], scores="softmax"))
    assert asked.probability == pytest.approx(0.75, abs=1e-3) and asked.scores == "sigmoid"
    assert any("softmax over one score" in text for text in asked.warnings)
    assert not said(model(1, bias=[LOG3])).warnings


def test_several_labels() -> None:
    labels = model(3, bias=[LOG3, -LOG3, 2 * LOG3], scores="sigmoid")
    found = said(labels, target="b")
    assert found.probability == pytest.approx(0.25, abs=1e-3)
    assert found.predicted == ("c", "a") and found.predicted_name == "c" and not found.exclusive
    assert [name for name, _ in found.top] == ["c", "a", "b"]
    assert found.verdict() == "above 50%: c 90.0%, a 75.0%"
    nothing = said(model(3, bias=[-LOG3, -2.0, -3.0], scores="sigmoid"))
    assert (nothing.predicted, nothing.predicted_index, nothing.class_name) == ((), None, "a")
    assert nothing.verdict() == "no class above 50%; highest: a 25.0%"


@pytest.mark.parametrize("ending", [nn.Softmax(1), nn.Sigmoid()])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_network_of_probabilities_gets_no_second_softmax(ending: nn.Module, classes: int) -> None:
    if classes == 1 and isinstance(ending, nn.Softmax):
        ending = nn.Sigmoid()
    loaded = model(classes, ending, bias=[1.0, 2.0, -1.0][:classes])
    found = said(loaded)
    assert found.scores == "probabilities" and found.probability == pytest.approx(found.logit)
    assert found.exclusive == isinstance(ending, nn.Softmax)
    with torch.no_grad():
        scores = loaded.module(loaded.preprocess(PHOTO)[None])[0]
    assert found.logit == pytest.approx(float(scores.max()), abs=1e-5)


def test_the_other_layers_scores_say_the_same() -> None:
    """A fresh explanation costs no second look at the graph, and the next batch is read as the first."""
    loaded = model(2, nn.Sigmoid(), bias=[1.0, 1.0])
    kinds = {r.scores for r in camkit.explain_many(loaded, [PHOTO, PHOTO.rotate(90)], batch_size=1)}
    assert kinds == {"probabilities"}


def test_a_guess_is_said() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = Frozen().eval()
        net.body[0].fc.weight.data *= 1e-3
        net.body[0].fc.bias.data = torch.tensor([0.3, 0.3])
        loaded = LoadedModel(
            net, ("a", "b"), camkit.Preprocess(size=(16, 16)), "net", default_layer="body.0.act"
        )
        found = said(loaded, method="activations")
        assert found.scores == "softmax" and "--scores probabilities" in found.warnings[0]
        assert said(replace(loaded, scores="softmax"), method="activations").warnings == ()


def test_a_regression_has_scores_alone() -> None:
    found = said(model(2, bias=[5.0, 7.25], scores="none"))
    assert found.probability is None and found.predicted_name == "b"
    assert found.figure == f"{found.logit:.4g}" and found.verdict().startswith("b 7.2")
    assert found.caption().startswith(f"b {found.figure} · native")


def test_probabilities_that_are_none_are_refused() -> None:
    with pytest.raises(ModelError, match="probabilities"):
        said(model(2, bias=[5.0, -1.0], scores="probabilities"))


# --- kept and given -------------------------------------------------------------------------------


def test_a_bundle_keeps_it(tmp_path: Path) -> None:
    loaded = camkit.load_model("torchvision:squeezenet1_1@none", device="cpu", scores="sigmoid")
    folder = camkit.save_bundle(loaded, tmp_path / "bundle", half=True)
    assert camkit.load_model(folder, device="cpu").scores == "sigmoid"
    assert camkit.load_model(folder, device="cpu", scores="none").scores == "none"
    config = json.loads((folder / "camkit.json").read_text())
    for value in ("logits", None, 3, ["softmax"]):
        (folder / "camkit.json").write_text(json.dumps({**config, "scores": value}))
        with pytest.raises(ModelError, match="unknown scores"):
            camkit.load_model(folder, device="cpu")
    del config["scores"]
    (folder / "camkit.json").write_text(json.dumps(config))
    assert camkit.load_model(folder, device="cpu").scores == "auto"


def test_an_unknown_word_is_told() -> None:
    with pytest.raises(ModelError, match=r"'logits'.*softmax, sigmoid, probabilities, none"):
        camkit.load_model("pets", device="cpu", scores="logits")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="unknown scores 'logit'"):
        model(1, scores="logit")


def test_the_command_line(here: Path) -> None:
    PHOTO.save("cat.png")

    def ran(*arguments: str) -> Any:
        done = runner().invoke(
            cli, ["explain", "cat.png", "--model", "tiny:x", "--workers", "0", *arguments]
        )
        assert done.exit_code == 0, done.output
        return done.stdout

    table = ran("--scores", "sigmoid", "--class", "all")
    assert "cat.png: above 50%: " in table or "cat.png: no class above 50%; highest: " in table
    lines = [
        json.loads(line) for line in ran("--scores", "sigmoid", "--class", "all", "--json").splitlines()
    ]
    for line in lines:
        assert line["probability"] == pytest.approx(1 / (1 + math.exp(-line["logit"])), abs=1e-6)
        assert line["scores"] == "sigmoid"
        assert (line["class_name"] in line["predicted"]) == (line["probability"] > 0.5)
    without = ran("--scores", "none")
    assert "SCORE" in without and "%" not in without
    (line,) = map(json.loads, ran("--scores", "none", "--json").splitlines())
    assert line["probability"] is None and line["predicted"] == [line["class_name"]]


# --- measured -------------------------------------------------------------------------------------


def batch(module: nn.Module, **facts: Any) -> MapBatch:
    inputs = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    maps = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(4))
    return MapBatch(maps, module, inputs, torch.tensor([0, 1]), **facts)


def network(*ending: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(SmallNet(3), *ending).eval()
    net[0].fc.weight.data *= 20
    return net


METRICS = {
    "deletion": faithfulness.Deletion,
    "insertion": faithfulness.Insertion,
    "symmetric-relevance-gain": faithfulness.SymmetricRelevanceGain,
    "road": faithfulness.Road,
    "average-drop": faithfulness_masks.AverageDrop,
    "increase": faithfulness_masks.Increase,
    "infidelity": faithfulness_noise.Infidelity,
}


@pytest.mark.parametrize("name", METRICS)
def test_metrics_read_scores_as_the_model_means_them(name: str) -> None:
    def value(module: nn.Module, **facts: Any) -> Tensor:
        metric = METRICS[name](METRICS[name].Options())
        return measure(metric, name, batch(module, **facts)).values

    for ending, kind in ((nn.Softmax(1), "softmax"), (nn.Sigmoid(), "sigmoid")):
        found, expected = value(network(ending)), value(network(), scores=kind)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found, value(network(ending), scores="probabilities"))
    differ = value(network(), scores="sigmoid"), value(network(), scores="softmax")
    assert name == "increase" or not torch.allclose(*differ, rtol=1e-2, atol=0)


def test_metrics_of_scores_that_are_no_probabilities() -> None:
    given = batch(network())
    arguments = (given.module, given.inputs, given.maps, given.targets)
    raw = faithfulness.deletion_curve(*arguments, scores="none")
    assert torch.equal(raw, faithfulness.deletion_curve(*arguments, logits=True))
    assert faithfulness_masks.average_drop(*arguments, scores="none").isnan().all()
    assert not faithfulness_masks.increase(*arguments, scores="none").isnan().any()


def test_mosaics_are_sure_by_what_the_scores_mean() -> None:
    scores = torch.full((4, 4), 1e-3)
    scores[range(4), range(4)] = 0.997
    inputs = torch.rand(4, 3, 4, 4)
    made = localisation.mosaics(lambda _: scores, inputs, confidence=0.99)
    assert len(made.inputs) == 4  # a second softmax would leave 0.47
    with pytest.raises(UsageError, match=r"99%.* 0"):
        localisation.mosaics(lambda _: scores, inputs, scores="softmax")
    with pytest.raises(UsageError, match="probabilities"):
        localisation.mosaics(lambda _: scores, inputs, scores="none")


class Squashing(nn.Module):
    """Returns probabilities of several labels, as many networks for them do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3))).sigmoid()


@pytest.mark.parametrize("scores", ["sigmoid", "softmax"])
def test_a_second_sigmoid_is_told(scores: Any) -> None:
    torch.manual_seed(0)
    image = Image.effect_noise((32, 32), 90).convert("RGB")
    said = {"size": 32, "resize": 32, "mean": (0.5,) * 3, "std": (0.5,) * 3, "classes": ("a", "b", "c")}
    model = camkit.load_model(Squashing().eval(), scores=scores, **said)
    (warning,) = [text for text in camkit.explain(model, image).warnings if "already" in text]
    assert warning.endswith("say --scores probabilities")
    right = camkit.load_model(Squashing().eval(), scores="probabilities", **said)
    assert not [text for text in camkit.explain(right, image).warnings if "already" in text]


def test_what_is_assumed_of_the_scores_of_a_module_is_told() -> None:
    with pytest.warns(CamkitWarning, match=r"3 classes without names: --classes") as told:
        model = camkit.load_model(nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    assert "one class for each photograph is assumed (--scores sigmoid: several)" in str(told[0].message)
    assert not model.is_sure
