"""`camkit bench` of boxes, segments, likenesses and numbers: the same measures as of classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from tests.conftest import runner

from camkit.bench import bench_json, latency, scenes, significance, statistics
from camkit.bench.conclusion import conclusion
from camkit.bench.request import BenchRequest, command
from camkit.bench.subjects import of_request
from camkit.cli import cli
from camkit.errors import UsageError

# Of 32 x 32 pixels: a cat where the upper left corner is red, a dog where the lower right one is green.
# And a segmentation: red is road, blue is sky, what is dark is background. And a classifier.
MODELS = """
import torch
from torch import nn
from camkit import LoadedModel, Preprocess
from camkit.plugin import Detections

SHOWN = Preprocess(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))

class Corners(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 2, 4, 4, bias=False)
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.weight[0, 0] = self.features.weight[1, 1] = 1 / 16
    def forward(self, x):
        f, found = self.features(x), []
        for cat, dog in zip(f[:, 0, :4, :4].mean((1, 2)), f[:, 1, 4:, 4:].mean((1, 2))):
            scores = torch.stack([cat, dog])
            boxes = torch.tensor([[0.0, 0, 16, 16], [16.0, 16, 32, 32]])
            order = scores.detach().argsort(descending=True)
            order = order[scores.detach()[order] > 0.05]
            found.append((scores[order], order, boxes[order]))
        return found

def corners():
    about = {"default_layer": "features", "detections": Detections.padded}
    return LoadedModel(Corners().eval(), ("cat", "dog"), SHOWN, "corners", **about)

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
        return self.head(torch.relu(self.features(x)))

def colours():
    about = {"default_layer": "features", "segments": lambda returned: returned}
    return LoadedModel(Colours().eval(), ("background", "road", "sky"), SHOWN, "colours", **about)

def classes():
    body = Colours().features
    net = nn.Sequential(body, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
    torch.manual_seed(0)
    nn.init.normal_(net[-1].weight)
    return LoadedModel(net.eval(), tuple("abcd"), SHOWN, "classes", default_layer="0")
"""


@pytest.fixture(autouse=True)
def _photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAMKIT_PLUGINS", "")
    monkeypatch.chdir(tmp_path)
    Path("m.py").write_text(MODELS)
    Path("photos").mkdir()
    for name, red, green in (("a", 0.8, 0.6), ("b", 0.7, 0.1), ("c", 0.2, 0.9)):
        pixels = np.zeros((32, 32, 3), np.uint8)
        pixels[:16, :16, 0], pixels[16:, 16:, 1] = round(255 * red), round(255 * green)
        Image.fromarray(pixels).save(f"photos/{name}.png")
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:8, :, 2], pixels[16:, :, 0] = 255, 255
    Image.fromarray(pixels).save("street.png")


def call(*words: str, metrics: str = "energy-pointing-game,pointing-game,deletion") -> Result:
    usual = ("--backend", "native", "--metrics", metrics, "--device", "cpu", "--out", "out")
    return runner().invoke(cli, ["bench", *words, *usual], prog_name="camkit")


def bench(*words: str, **more: str) -> dict[str, Any]:
    done = call(*words, **more)
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(Path("out/bench.json").read_text("utf-8"))
    return found


def scores(found: dict[str, Any], method: str, metric: str, scene: str = "boxes") -> list[float]:
    (row,) = (row for row in found["rows"] if row["method"] == method)
    values: list[float] = row["scores"][scene][metric]["values"]
    return values


def test_boxes_are_scenes_whose_truth_is_the_box() -> None:
    found = bench("--model", "m.py:corners", "--box", "all", "--images", "photos", "--method", "hirescam")
    (scene,) = found["scenes"]
    assert (scene["name"], scene["images"], scene["with_truth"]) == ("boxes", 4, 4)
    assert scene["titles"] == ["a.png", "a.png", "b.png", "c.png"]
    # All of a map is in its box but for what drawing it larger smears over the edge.
    assert scores(found, "hirescam", "energy-pointing-game") == pytest.approx([0.938] * 4, abs=0.001)
    assert scores(found, "hirescam", "pointing-game") == [1, 1, 1, 1]
    assert scores(found, "uniform", "energy-pointing-game") == pytest.approx([0.25] * 4)
    # Nothing is left of a score once its corner is dark: the first of the steps take it all.
    assert all(one < 0.3 for one in scores(found, "hirescam", "deletion"))
    assert scene["names"][:2] == ["cat, box 1 of 2", "dog, box 2 of 2"]
    assert scene["photographs"] == [0, 0, 1, 2]
    assert "without random-logit, as there is no other class" in scene["remark"]
    assert "--box all" in found["command"]
    assert (found["shown"][0]["class_name"], found["shown"][0]["probability"]) == (
        "cat, box 1 of 2",
        pytest.approx(0.8, abs=0.01),
    )


@pytest.mark.parametrize(
    ("model", "asked", "images", "around"),
    [
        ("corners", ("--box", "2"), "photos/a.png", (16, 16, 32, 32)),
        ("colours", ("--class", "road"), "street.png", (0, 16, 32, 32)),
    ],
)
def test_what_is_explained_is_outlined_in_the_pictures(
    model: str, asked: tuple[str, ...], images: str, around: tuple[int, int, int, int]
) -> None:
    bench("--model", f"m.py:{model}", *asked, "--images", images, "--method", "hirescam")
    for name in ("photograph-1.png", "photograph-1-1.png"):
        (path,) = Path("out").rglob(name)
        drawn = Image.open(path)
        times = drawn.width // 32
        white = np.argwhere((np.asarray(drawn) == 255).all(-1)) // times
        left, top, right, bottom = around
        assert (*white.min(0), *(white.max(0) + 1)) == (top, left, bottom, right)


def test_the_score_of_a_scene_is_that_of_its_own_box() -> None:
    request = BenchRequest(model="m.py:corners", boxes=("all",), device="cpu")
    model, asked = of_request(request)
    paths = sorted(Path("photos").glob("*.png"))
    scene = scenes.photographs(model, "auto", paths, 8, asked=asked)
    with scene.without_graph():
        own = scene.module(scene.inputs).gather(1, scene.targets[:, None])[:, 0]
    assert own.tolist() == pytest.approx([0.8, 0.6, 0.7, 0.9], abs=0.005)
    assert scene.truth is not None and scene.truth[0, :16, :16].all() and int(scene.truth[0].sum()) == 256
    measured = latency._in_process(
        BenchRequest(**{**vars(request), "rounds": 1, "batch_sizes": (2,)}), tuple(paths), {"bare forward"}
    )
    assert [key for key, _ in measured] == ["bare forward"]


def test_what_is_asked_of_a_detector_stands_for_all_photographs() -> None:
    done = call("--model", "m.py:corners", "--class", "dog", "--images", "photos", "--min-score", "0.7")
    assert done.exit_code == 3  # two photographs have none
    (scene,) = json.loads(Path("out/bench.json").read_text("utf-8"))["scenes"]
    assert scene["titles"] == ["c.png"]
    assert len(scene["failures"]) == 2 and "no dog is detected" in scene["failures"][0]


def test_methods_that_need_classes_are_left_out() -> None:
    words = ("--method", "finercam", "--method", "gradcam", "--images", "photos")
    done = call("--model", "m.py:corners", *words, metrics="energy-pointing-game")
    assert done.exit_code == 3
    assert "finercam holds a class against the others" in done.stdout


def test_segments_are_scenes_and_their_masks_the_truth() -> None:
    words = ("--model", "m.py:colours", "--class", "road", "--images", "street.png", "--method", "hirescam")
    found = bench(*words, metrics="energy-pointing-game,sanity-cascading")
    (scene,) = found["scenes"]
    assert (scene["name"], scene["images"], scene["truth_share"]) == ("segments", 1, 0.5)
    assert scores(found, "hirescam", "energy-pointing-game", "segments") == pytest.approx([1])
    assert found["rows"][1]["scores"]["segments"]["sanity-cascading"]["defined"] == 1


def test_values_of_one_photograph_count_as_one() -> None:
    words = ("--model", "m.py:classes", "--images", "photos", "--class", "top:4", "--method", "hirescam")
    found = bench(*words, metrics="agreement,symmetric-relevance-gain,entropy")
    (row,) = (row for row in found["rows"] if row["method"] == "hirescam")
    score = row["scores"]["photographs"]["entropy"]
    values = np.array(score["values"], float).reshape(3, 4)
    # Twelve values would have an interval; three photographs have none.
    assert (score["mean"], score["low"]) == (pytest.approx(np.nanmean(np.nanmean(values, 1))), None)
    (contest,) = significance.better(bench_json.read(Path("out")))
    cells = dict(zip(significance.BETTER, contest, strict=True))
    assert cells["IMAGES"] == "3" and "too few images" in cells["DIFFERENCE"]
    assert cells["VERDICT"] == "UNCLEAR"
    found["scenes"][0]["photographs"].pop()
    Path("out/bench.json").write_text(json.dumps(found), "utf-8")
    with pytest.raises(UsageError, match=r"of the photographs are not of its photographs"):
        bench_json.read(Path("out"))


def test_the_mean_of_groups() -> None:
    nan = float("nan")
    assert statistics.of_groups([1.0, 2.0], []) == [1, 2]
    assert statistics.of_groups([1.0, 5.0, 3.0, nan, 4.0], [7, 2, 7, 2, 2]) == [2, 4.5]
    assert str(statistics.of_groups([nan, 1.0], [0, 1])) == "[nan, 1.0]"


def test_more_than_a_document_holds_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "MAX_IMAGES", 11)
    done = call("--model", "m.py:classes", "--images", "photos", "--class", "all")
    assert done.exit_code == 2
    assert "12 classes of 3 photographs are more than a benchmark holds, 11" in done.stderr


def test_what_says_nothing_is_told_where_it_was_asked_for() -> None:
    done = call("--model", "m.py:corners", "--box", "all", "--images", "photos", metrics="random-logit")
    assert "explained: 4 boxes of 3 photographs: cat, box 1 of 2; dog, box 2 of 2; " in done.stderr
    assert "of boxes: without random-logit, as there is no other class to compare with" in done.stderr
    missing = conclusion(bench_json.read(Path("out"))).missing
    assert any("Of boxes: without random-logit" in line for line in missing)


def test_of_a_place_nobody_knows_what_belongs_to_it() -> None:
    words = ("--model", "m.py:colours", "--at", "5,20", "--images", "street.png")
    found = bench(*words, metrics="deletion")
    assert found["scenes"][0]["with_truth"] == 0
    assert "--at 5,20" in found["command"]


def test_likenesses_and_numbers_are_scenes() -> None:
    words = ("--model", "m.py:classes", "--images", "photos", "--method", "hirescam")
    found = bench(*words, "--like", "photos/a.png", "--like", "photos/c.png", metrics="deletion")
    assert (found["scenes"][0]["name"], found["scenes"][0]["images"]) == ("targets", 6)
    shown = [(one["title"], one["class_name"], one["probability"]) for one in found["shown"]]
    assert shown[0] == ("a.png", "like photos/a.png", None)
    assert {name for _, name, _ in shown} == {"like photos/a.png", "like photos/c.png"}
    found = bench(*words, "--target", "norm", metrics="deletion")
    model, asked = of_request(BenchRequest(model="m.py:classes", targets=("norm",), device="cpu"))
    scene = scenes.photographs(model, "auto", sorted(Path("photos").glob("*.png")), 8, asked=asked)
    with torch.no_grad():
        assert torch.allclose(scene.module(scene.inputs)[:, 0], model.module(scene.inputs).norm(dim=1))


def test_classes_that_are_named_are_explained_in_each_photograph() -> None:
    found = bench("--model", "m.py:classes", "--images", "photos", "--class", "top:2", metrics="deletion")
    assert (found["scenes"][0]["name"], found["scenes"][0]["images"]) == ("photographs", 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "m.py:classes", "--box", "all"), "is no detector"),
        (("--model", "m.py:corners", "--truth", "photos"), "leave out --truth"),
        (("--model", "m.py:corners", "--target", "sum"), "has boxes: these are explained"),
        (("--model", "m.py:corners", "--box", "zero"), "a box is all, or a number"),
        (("--model", "m.py:classes", "--like", "photos/a.png", "--class", "a"), "leave one out"),
        (("--model", "m.py:classes", "--like", "nowhere.png"), "nowhere.png"),
    ],
)
def test_what_a_model_has_not_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    done = call(*words, "--images", "photos")
    assert done.exit_code == 2 and said in done.stderr


def test_nothing_that_is_detected_is_an_error() -> None:
    done = call("--model", "m.py:corners", "--images", "photos", "--min-score", "0.95")
    assert done.exit_code == 1
    assert "there is nothing to explain" in done.stderr and "nothing is detected" in done.stderr


def test_the_command_that_repeats_it_names_all_that_was_asked() -> None:
    asked = BenchRequest(
        boxes=("1", "2"), min_score=0.3, classes=("dog",), texts=("a cat",), at=((3.0, 4.5),)
    )
    words = command(asked)
    for part in ("--box 1 --box 2", "--min-score 0.3", "--class dog", "--text 'a cat'", "--at 3,4.5"):
        assert part in words


def board(*words: str, metrics: str) -> Result:
    usual = ("--method", "hirescam", "--device", "cpu", "--metrics", metrics, "--out", "board")
    return runner().invoke(cli, ["bench", "scoreboard", "photos", *words, *usual], prog_name="camkit")


def test_a_scoreboard_of_boxes() -> None:
    done = board("--model", "m.py:corners", "--box", "all", metrics="cost,localisation,gridpg,sanity")
    assert done.exit_code == 0, done.stderr
    assert "m.py:corners: without gridpg, as mosaics are of classes" in done.stderr
    assert "m.py:corners: without sanity, as with random weights a detector finds none" in done.stderr
    made = json.loads(Path("board/scoreboard.json").read_text("utf-8"))
    (line,) = (line for line in made["lines"] if line["method"] == "hirescam")
    # Four boxes of three photographs are three values.
    assert {name: figure["count"] for name, figure in line["figures"].items()} == {
        "POINTING": 3,
        "ENERGY": 3,
        "TOP PIXELS": 3,
    }
    assert line["figures"]["ENERGY"]["mean"] == pytest.approx(0.938, abs=0.001)
    assert list(made["scenes"]["m.py:corners"]) == ["cost", "localisation"]
    page = Path("board/scoreboard.md").read_text("utf-8")
    assert (
        "localisation: 4 boxes of 3 photographs: cat, box 1 of 2; " in page and "mosaic cells" not in page
    )
    assert "--box all" in made["command"]
    # Other boxes are other cells; the same ones are not measured anew.
    again = board("--model", "m.py:corners", "--box", "all", metrics="localisation")
    other = board("--model", "m.py:corners", "--box", "1", metrics="localisation")
    assert (again.exit_code, other.exit_code) == (0, 0)
    assert "hirescam: localisation" not in again.stderr and "hirescam: localisation" in other.stderr


def test_a_scoreboard_of_likenesses_knows_the_other_photograph_by_its_contents() -> None:
    words = ("--model", "m.py:classes", "--like", "street.png")
    first = board(*words, metrics="cost")
    assert first.exit_code == 0 and "hirescam: cost" in first.stderr
    Path("street.png").write_bytes(Path("photos/b.png").read_bytes())
    assert "hirescam: cost" in board(*words, metrics="cost").stderr
    assert "hirescam: cost" not in board(*words, metrics="cost").stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--model", "m.py:corners", "--truth", "photos"), "leave out --truth"),
        (("--model", "m.py:corners", "--target", "sum"), "has boxes: these are explained"),
        (("--model", "m.py:colours", "--at", "5,20"), "localisation needs --truth"),
        (("--model", "m.py:classes", "--like", "photos/a.png", "--class", "a"), "leave one out"),
        (("--model", "m.py:classes", "--box", "1", "--truth", "photos"), "is no detector"),
    ],
)
def test_what_a_scoreboard_cannot_have_is_refused_in_one_line(words: tuple[str, ...], said: str) -> None:
    done = board(*words, metrics="localisation")
    assert done.exit_code == 2 and said in done.stderr


def test_pictures_of_a_run_before_do_not_stay() -> None:
    kept = Path("out/examples/photograph-of-mine.png")
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"of the user")
    words = ("--model", "m.py:corners", "--method", "hirescam")
    bench(*words, "--box", "all", "--images", "photos", metrics="deletion")
    assert Path("out/examples/photograph-4.png").exists()
    bench(*words, "--box", "1", "--images", "photos/a.png", metrics="deletion")
    left = {path.name for path in Path("out/examples").iterdir()}
    assert left == {"photograph-1.png", "photograph-1-1.png", kept.name}


def test_what_is_said_of_a_model_is_said_to_the_benchmark_too() -> None:
    """A network of the user's own, which says nothing of its classes, and returns a table."""
    Path("own.py").write_text(
        "from torch import nn\n"
        "from m import classes\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.body = classes().module\n"
        "    def forward(self, x):\n"
        "        return {'loss': x.mean(), 'scores': self.body(x)}\n"
    )
    said = ("--classes", "ant,bee,cow,dog", "--output", "scores", "--size", "32", "--scores", "softmax")
    found = bench(
        *("--model", "own.py:Net", *said, "--class", "bee", "--layer", "body.0"),
        *("--images", "photos", "--method", "hirescam"),
        metrics="deletion",
    )
    (scene,) = found["scenes"]
    assert scene["names"] == ["bee"] * 3
    for words in ("--classes ant,bee,cow,dog", "--output scores", "--size 32x32", "--scores softmax"):
        assert words in found["command"]
    done = call("--model", "m.py:classes", "--classes", "a,b", "--images", "photos")
    assert done.exit_code == 1 and "2 classes" in done.stderr
