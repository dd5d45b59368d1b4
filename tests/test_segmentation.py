"""Segmentations: a map for each segment or place, on a network whose segments are known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.core.segment_scores import SegmentScores
from camkit.drawing.outline import BORDER, EDGE
from camkit.errors import CamkitWarning, MapError, UsageError
from camkit.images import run_lengths
from camkit.images.preprocess import Preprocess

# A file of the user's: red is road, blue is sky, and what is dark is background.
MINE = """
import torch
from torch import nn

class Colours(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.head = nn.Conv2d(3, 3, 1)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[:, :, None, None])
            weight = torch.tensor([[0.0, 0, 0], [2, 0, 0], [0, 0, 3]])
            self.head.weight.copy_(weight[:, :, None, None])
            self.head.bias.copy_(torch.tensor([0.5, 0, 0]))

    def forward(self, x):
        return {"out": self.head(torch.relu(self.features(x)))}

def colours():
    return Colours().eval()
"""


def run(*arguments: object) -> Any:
    return runner().invoke(cli, [str(one) for one in arguments], prog_name="camkit")


@pytest.fixture(autouse=True)
def _street(here: Path) -> None:
    """A street: sky above (a quarter), road below (a half), dark between."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:8, :, 2], pixels[16:, :, 0] = 255, 255
    Image.fromarray(pixels).save("street.png")
    Path("mine.py").write_text(MINE)


def explain(*asked: object, out: str = "out") -> Any:
    how = (
        "--model",
        "mine.py:colours",
        "--output",
        "out",
        "--classes",
        "background,road,sky",
        "--size",
        32,
    )
    plain = ("--size", 32, "--mean", "0,0,0", "--std", "1,1,1", "--workers", 0, "--layer", "features")
    return run("explain", "street.png", *how, *plain, "--out", out, *asked)


def lines(out: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(out, "manifest.jsonl").read_text("utf-8").splitlines()]


def test_the_largest_segment_but_the_background() -> None:
    done = explain()
    assert done.exit_code == 0, done.output
    assert "street.png: by area: road 50.0%, background 25.0%, sky 25.0%" in done.stdout
    (line,) = lines()
    assert line["class_name"] == "road" and line["logit"] == pytest.approx(2)
    assert line["probability"] == pytest.approx(float(torch.tensor([0.5, 2, 0]).softmax(0)[1]), abs=1e-5)
    box = line["box"]
    assert (box["number"], box["of"], box["area"], box["at"]) == (1, 2, 0.5, None)
    assert box["corners"] == [0, 16, 32, 32]
    map = np.load(Path("out", line["map_file"]))
    # Only the red channel counts, with a gradient of 2 at each place of the mask over their number.
    assert map[16:].min() > 0 and not map[:16].any()
    assert map[20, 5] == pytest.approx(2 / 1024, rel=1e-5)
    assert line["overlay_file"] == "street.png.native.gradcam.road.segment-1.features.mine.py_colours.png"


def test_the_picture_has_the_outline_of_the_segment_itself() -> None:
    """A road with a puddle of sky in it: the box around it would say that the puddle is road."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[16:56, 8:56, 0] = 255
    pixels[24:40, 24:40] = 0, 0, 255
    Image.fromarray(pixels).save("street.png")
    size = ("--size", 64, "--image-size", 256, "--class", "road")
    assert explain(*size).exit_code == 0
    (line,) = lines()
    mask = run_lengths.decoded(line["box"]["mask"])
    assert np.array_equal(mask, pixels[..., 0] > 0), "as fine as what the model returns"

    def is_outlined(picture: Path) -> bool:
        drawn = np.asarray(Image.open(picture).convert("RGB")).astype(int)
        left, top, *_ = line["overlay_box"]
        place = drawn[top : top + 256, left : left + 256]
        edges = [(64, 100, 1, 0), (100, 32, 0, 1), (95, 130, -1, 0), (130, 95, 0, -1)]
        return all(
            [tuple(place[y + k * dy, x + k * dx]) for k in range(3)] == [EDGE, BORDER, EDGE]
            for y, x, dy, dx in edges
        )

    assert is_outlined(Path("out", line["overlay_file"]))
    assert run("render", "out", "--cmap", "viridis").exit_code == 0
    assert is_outlined(Path("out", lines()[-1]["overlay_file"])), "drawn again from the manifest alone"


@pytest.mark.parametrize("mask", [{"size": [2, 2], "counts": [5]}, {"size": "x"}, {"size": [2, 2]}])
def test_a_mask_of_a_stranger_that_is_none(mask: Any) -> None:
    assert explain().exit_code == 0
    (line,) = lines()
    line["box"]["mask"] = mask
    Path("out", "manifest.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    told = run("render", "out", "--cmap", "viridis")
    assert told.exit_code == 1 and "the mask of its segment cannot be read" in told.stderr


@pytest.mark.parametrize(("field", "value"), [("area", 0.51), ("mask", None), ("score", 0.8)])
def test_another_segment_than_the_recorded_one_is_named(field: str, value: Any) -> None:
    assert explain().exit_code == 0
    (line,) = lines()
    mask = np.zeros((32, 32), bool)
    mask[16:, 1:] = True  # 16 of 512 places are missing
    line["box"][field] = value or run_lengths.encoded(mask)
    Path("out", "manifest.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    told = run("verify", "out", "--model", "mine.py:colours")
    assert told.exit_code == 1 and "box: the manifest says {" in told.stdout


def test_all_segments_and_those_of_a_class() -> None:
    assert explain("--box", "all").exit_code == 0
    assert [line["class_name"] for line in lines()] == ["road", "sky"]
    assert explain("--class", "sky", "--class", "background", out="two").exit_code == 0
    assert [line["class_name"] for line in lines("two")] == ["background", "sky"]
    assert explain("--box", 2, out="second").exit_code == 0
    assert [line["class_name"] for line in lines("second")] == ["sky"]
    told = run("verify", "two", "--model", "mine.py:colours")
    assert told.exit_code == 0 and "2 recomputed maps differ by at most 0.0e+00" in told.stdout


def test_places() -> None:
    assert explain("--at", "5,3", "--at", "20,30").exit_code == 0
    first, second = lines()
    assert (first["class_name"], second["class_name"]) == ("sky", "road")
    assert first["box"]["at"] == [5, 3] and first["logit"] == pytest.approx(3)
    assert first["overlay_file"].startswith("street.png.native.gradcam.sky.at-5-3.")
    map = np.load(Path("out", first["map_file"]))
    assert map[3, 5] == pytest.approx(3 / 1024, rel=1e-5)
    shown = run("show", Path("out", second["overlay_file"])).stdout.splitlines()
    assert any("--at 20,30" in line and "--min-score" not in line for line in shown)
    assert run("verify", "out", "--model", "mine.py:colours").exit_code == 0
    assert "1 photograph was done already" in explain("--at", "5,3", "--at", "20,30", "--resume").stderr
    named = explain("--at", "20,30", "--class", "sky", out="other")
    assert named.exit_code == 0 and lines("other")[0]["class_name"] == "sky"  # what speaks for sky there
    drawn = run("render", "out", "--look", "spotlight")
    assert drawn.exit_code == 0 and drawn.stdout.count(".spotlight") == 2
    assert explain("--at", "20,30", "--class", "sky", "--class", "road", out="both").exit_code == 0
    checked = run("verify", "both", "--model", "mine.py:colours")
    assert checked.exit_code == 0 and "2 recomputed maps differ by at most 0.0e+00" in checked.stdout


@pytest.mark.parametrize(
    ("asked", "said", "code"),
    [
        (["--at", "5"], "a place is X,Y in pixels of the photograph, such as 120,80, not '5'", 2),
        (["--at", "5,3", "--box", "all"], "explains places, --at, or segments, --box: leave one out", 2),
        (["--min-score", "0.3"], "its segments have areas, leave out --min-score", 2),
        (["--at", "500,3"], "street.png: the model does not see the place 500,3 of this photograph", 1),
        (["--box", "3"], "there is no segment 3: 2 are there (road 50%, background 25%, sky 25%)", 1),
        (["--method", "finercam"], "choose another method", 2),
        (["--class", "sky", "--class", "pred"], "leave out pred, or the names", 2),
    ],
)
def test_what_cannot_be_explained(asked: list[str], said: str, code: int) -> None:
    done = explain(*asked)
    assert done.exit_code == code and said in done.stderr, done.output


def test_a_class_that_is_nowhere_seen_is_an_error_of_that_photograph() -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).save("red.png")
    done = explain("--class", "sky", "red.png")
    assert done.exit_code == 3
    assert "Error: red.png: nothing of it is taken for sky (it is road 100%)" in done.stderr
    assert [line["status"] for line in lines()] == ["ok", "error"]
    assert run("explain", "red.png", "--at", "1,1").exit_code == 2  # pets is no segmentation


def test_of_several_classes_those_that_are_seen_are_explained_and_the_others_named() -> None:
    Image.new("RGB", (32, 32), (255, 0, 0)).save("red.png")
    done = explain("--class", "sky", "--class", "road", "red.png")
    assert done.exit_code == 3
    assert "Error: red.png: nothing of it is taken for sky (it is road 100%)" in done.stderr
    assert [line["class_name"] for line in lines() if line["status"] == "ok"] == ["road", "sky", "road"]


def test_masks_stay_where_parts_are_hidden() -> None:
    """A mask of the hidden photograph would leave out what is hidden, and nothing would matter."""
    done = explain("--method", "rise", "-o", "masks=256", "-o", "cells=2", "-o", "tolerance=0")
    assert done.exit_code == 0, done.output
    map = np.load(Path("out", lines()[0]["map_file"]))
    assert map[24:].mean() > 2 * abs(map[:8].mean())


def test_scores_are_means_over_masks() -> None:
    scores = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    masks = torch.zeros(2, 4, 5, dtype=torch.bool)
    masks[0, 1, 1:3] = masks[1, 3] = True
    found = SegmentScores(lambda x: x, torch.tensor([2, 0]), masks)(scores)
    expected = torch.stack([scores[:, 2, 1, 1:3].mean(1), scores[:, 0, 3].mean(1)], 1)
    assert torch.allclose(found, expected) and found.requires_grad


def test_what_is_filled_up_is_no_part_of_a_photograph() -> None:
    model = camkit.load_model("torchvision:lraspp_mobilenet_v3_large@none", device="cpu")
    assert model.preprocess.fit == "pad" and model.classes[:2] == ("__background__", "aeroplane")
    Image.new("RGB", (60, 20), (90, 140, 30)).save("wide.png")
    (result,) = camkit.explain_many(model, ["wide.png"])
    left, top, right, bottom = result.box.corners if result.box else (0, 0, 0, 0)
    assert left >= -1 and top >= -1 and right <= 61 and bottom <= 21
    assert sum(share for _, share in result.top) <= 1 + 1e-6 and result.layer == "backbone.16"
    with pytest.raises(MapError, match="does not see the place"):
        camkit.explain(model, "wide.png", at=(5, 25))


def test_modules_of_torchvision_and_of_others() -> None:
    torch.manual_seed(0)
    net = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=21)
    voc = camkit.load_model(net.eval())
    assert voc.classes[15] == "person" and "taken for those of VOC" in voc.note
    with pytest.warns(CamkitWarning):
        dense = camkit.load_model(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(), classes=list("abcd"))
    assert dense.segments is not None and "taken for a segmentation" in dense.note
    result = camkit.explain(dense, "street.png", box=1, layer="0")
    assert result.class_name in "abcd" and result.map.shape[0] > 100
    plain: Any = camkit.load_model("pets", device="cpu")
    with pytest.raises(UsageError, match="pets is no segmentation: leave out --at"):
        camkit.explain(plain, "street.png", at=(1, 1))
    own = camkit.LoadedModel(
        net, plain.classes[:21], Preprocess(size=(64, 64)), "own", segments=lambda found: found["out"]
    )
    assert isinstance(camkit.explain(own, "street.png", at=(1, 1), layer="backbone.layer4").map, Tensor)


class Fixed(nn.Module):
    """The same scores for each photograph, `[K]` at every place."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 1)
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[:, :1] * 0 + self.scores[:, None, None]


@pytest.mark.parametrize(
    ("scores", "kind", "name", "likely"),
    [
        ([19.0, 31.0], "sigmoid", "b", 1.0),  # both 1 in float32
        ([0.25, 0.75], "probabilities", "b", 0.75),
        ([0.0, 0.0, 2.0], "softmax", "c", 0.787),
    ],
)
def test_the_class_of_a_place_is_that_of_the_highest_score(
    scores: list[float], kind: Any, name: str, likely: float
) -> None:
    model = camkit.LoadedModel(
        *(Fixed(scores).eval(), tuple("abc"[: len(scores)]), Preprocess(size=(32, 32)), "fixed"),
        default_layer="layer",
        segments=lambda returned: returned,
        scores=kind,
    )
    found = camkit.explain(model, "street.png", at=(3, 3))
    assert found.box is not None
    assert (found.class_name, found.box.score) == (name, pytest.approx(likely, abs=1e-3))


def ending(end: Any, channels: int = 3, classes: tuple[str, ...] = ("background", "road", "sky")) -> Any:
    """The colours of a street as scores, in an ending of the user's."""

    class Ending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(3, channels, 1)
            with torch.no_grad():
                self.features.weight.copy_(torch.eye(3)[[1, 0, 2]][-channels:, :, None, None] * 4)
                self.features.bias.fill_(-1)

        def forward(self, x: Tensor) -> Any:
            return end(self.features(x))

    plain = Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    return camkit.load_model(Ending().eval(), classes=classes or None, preprocess=plain)


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
@pytest.mark.parametrize(
    ("end", "kind", "likely"),
    [
        (lambda z: z, "softmax", 0.9647),
        (lambda z: z.softmax(1), "probabilities", 0.9647),
        (lambda z: nn.functional.interpolate(z.softmax(1), scale_factor=2.0), "probabilities", 0.9647),
        (lambda z: z.log_softmax(1), "softmax", 0.9647),
        (lambda z: z.sigmoid(), "probabilities", 0.9526),
    ],
)
def test_probabilities_are_those_that_the_model_means(end: Any, kind: str, likely: float) -> None:
    """The road scores 3, all else -1: e^3 / (e^3 + 2 e^-1), or 1 / (1 + e^-3)."""
    result = camkit.explain(ending(end), "street.png", target="road")
    assert (result.scores, result.probability) == (kind, pytest.approx(likely, abs=1e-4))
    assert result.box is not None and result.box.area == pytest.approx(0.5)  # type: ignore[attr-defined]
    assert result.facts()["predicted_probability"] is None, "how much of it is road is no probability"


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
@pytest.mark.parametrize(
    "end",
    [
        lambda z: z,
        lambda z: z.softmax(1),
        lambda z: z.log_softmax(1),
        lambda z: nn.functional.interpolate(z, scale_factor=2.0, mode="bilinear").softmax(1),
        lambda z: nn.functional.interpolate(z.softmax(1), scale_factor=2.0),
    ],
)
def test_the_layer_is_below_the_scores_however_they_end(end: Any) -> None:
    """The last convolution holds the scores of places: a map of it is nothing but these."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
            self.head = nn.Conv2d(8, 3, 1)

        def forward(self, x: Tensor) -> Any:
            return end(self.head(self.body(x)))

    plain = Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    model = camkit.load_model(Net().eval(), classes=("a", "b", "c"), preprocess=plain)
    assert camkit.explain(model, "street.png", box=1).layer in ("body", "body.1")


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_scores_without_a_probability() -> None:
    model = camkit.load_model(ending(lambda z: z), scores="none")
    result = camkit.explain(model, "street.png", target="road")
    assert result.probability is None and result.figure == "3" and result.box is not None
    assert result.box.score == pytest.approx(3)


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_where_classes_exclude_no_other_a_place_may_be_of_several_or_none() -> None:
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:8, :, 2], pixels[4:16, :, 0] = 255, 255
    Image.fromarray(pixels).save("street.png")
    model = camkit.load_model(ending(lambda z: z), scores="sigmoid")
    found = camkit.explain_many(model, ["street.png"], box="all")
    areas = {r.class_name: r.box.area for r in found if r.box}  # type: ignore[attr-defined]
    assert areas == {"road": 12 / 32, "sky": 8 / 32}
    assert camkit.explain(model, "street.png", at=(5, 30)).probability == pytest.approx(0.2689, abs=1e-4)


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
@pytest.mark.parametrize("end", [lambda z: z, lambda z: z.sigmoid()])
def test_one_channel_is_a_segmentation_of_the_class_that_is_named(end: Any) -> None:
    model = ending(end, 1, ("sky",))
    result = camkit.explain(model, "street.png")
    assert result.box is not None and result.box.corners == (0, 0, 32, 8)
    assert (result.class_name, result.probability) == ("sky", pytest.approx(0.9526, abs=1e-4))
    Image.new("RGB", (32, 32), (255, 0, 0)).save("red.png")
    with pytest.raises(MapError, match=r"taken for sky \(no class has 50% anywhere\)"):
        camkit.explain(model, "red.png", target="sky")


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_one_channel_without_a_name_may_be_anything() -> None:
    model = ending(lambda z: z, 1, ())
    with pytest.raises(camkit.errors.ModelError, match="one number for each place"):
        camkit.explain(model, "street.png")
