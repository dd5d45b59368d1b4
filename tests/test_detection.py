"""Detectors: a map for each box, on a detector whose boxes and gradients are known by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.contracts.detections import Detections
from camkit.core.box_scores import BoxScores
from camkit.errors import MapError, ModelError, UsageError
from camkit.images.preprocess import Preprocess

CAT, DOG = (0.0, 0.0, 16.0, 16.0), (16.0, 16.0, 32.0, 32.0)  # in 32 x 32 pixels of the input


class Corners(nn.Module):
    """A cat where the upper left corner is red, a dog where the lower right one is green; best first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 4, 4, bias=False)  # [B, 2, 8, 8]: red, green
        with torch.no_grad():
            self.features.weight.zero_()
            self.features.weight[0, 0] = self.features.weight[1, 1] = 1 / 16

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        f = self.features(x)
        found = []
        for cat, dog in zip(f[:, 0, :4, :4].mean((1, 2)), f[:, 1, 4:, 4:].mean((1, 2)), strict=True):
            scores, boxes = torch.stack([cat, dog]), x.new_tensor([CAT, DOG])
            order = scores.detach().argsort(descending=True)
            order = order[scores.detach()[order] > 0.05]
            found.append({"scores": scores[order], "labels": order, "boxes": boxes[order]})
        return found


def run(*arguments: object) -> Any:
    return runner().invoke(cli, [str(one) for one in arguments], prog_name="camkit")


def read(returned: Any) -> Detections:
    return Detections.padded([(one["scores"], one["labels"], one["boxes"]) for one in returned])


def model(**shown: Any) -> camkit.LoadedModel:
    preprocess = Preprocess(size=(32, 32), mean=(0.0,) * 3, std=(1.0,) * 3, **shown)
    about: dict[str, Any] = {"default_layer": "features", "detections": read}
    return camkit.LoadedModel(Corners().eval(), ("cat", "dog"), preprocess, "corners", **about)


def photo(red: float = 0.8, green: float = 0.6, width: int = 32, height: int = 32) -> Image.Image:
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = round(255 * red)
    pixels[height // 2 :, width // 2 :, 1] = round(255 * green)
    return Image.fromarray(pixels)


def test_each_box_has_the_map_of_its_own_score() -> None:
    both = list(camkit.explain_many(model(), [photo()], box="all", method="hirescam"))
    assert [(r.class_name, r.class_index, str(r.box)) for r in both] == [
        ("cat", 0, "box 1 of 2"),
        ("dog", 1, "box 2 of 2"),
    ]
    for result, share, quarter in zip(both, (0.8, 0.6), (np.s_[:4, :4], np.s_[4:, 4:]), strict=True):
        assert result.box is not None
        assert result.probability == result.logit == pytest.approx(share) == result.box.score
        wanted = torch.zeros(8, 8)  # gradient 1 / 16 times activation
        wanted[quarter] = share / 16
        assert torch.allclose(result.map, wanted, atol=1e-6)
        assert result.predicted == ("cat", "dog") and "box" in result.caption()
    alone = camkit.explain(model(), photo(), box=2, method="hirescam")
    assert torch.equal(alone.map, both[1].map) and str(alone.box) == "box 2 of 2"
    first = camkit.explain(model(), photo(), target="dog")
    assert (first.class_name, str(first.box)) == ("dog", "box 1 of 1")


def test_photographs_of_a_batch_keep_their_own_boxes() -> None:
    """Of which one has more, in another order."""
    photos = [photo(0.2, 0.9), photo(0.7, 0.9), photo(0.9, 0.1)]
    found = list(camkit.explain_many(model(), photos, box="all", method="hirescam"))
    assert [(r.position, r.class_name) for r in found] == [(0, "dog"), (1, "dog"), (1, "cat"), (2, "cat")]
    for result in found:
        (alone,) = camkit.explain_many(
            model(), [photos[result.position]], target=result.class_name, method="hirescam"
        )
        assert torch.allclose(alone.map, result.map, atol=1e-7)


@pytest.mark.parametrize(
    ("shown", "size", "corners"),
    [
        ({"fit": "squash"}, (128, 64), [(0, 0, 64, 32), (64, 32, 128, 64)]),
        ({"fit": "crop"}, (128, 64), [(32, 0, 64, 32), (64, 32, 96, 64)]),
        ({"fit": "pad"}, (128, 64), [(0, -32, 64, 32), (64, 32, 128, 96)]),
        ({"fit": "crop", "resize": 64}, (64, 64), [(16, 16, 32, 32), (32, 32, 48, 48)]),
    ],
)
def test_corners_are_pixels_of_the_photograph(
    shown: dict[str, Any], size: tuple[int, int], corners: list[Any]
) -> None:
    found = camkit.explain_many(model(**shown), [photo(1, 0.9, *size)], box="all", min_score=0.2)
    assert [r.box.corners for r in found if r.box] == [pytest.approx(c) for c in corners]


def test_the_picture_has_the_outline_of_the_box() -> None:
    result = camkit.explain(model(), photo(width=512, height=512), target="dog")
    for view in ("original", "model"):
        picture = np.asarray(result.overlay(view=view, size=512))
        assert tuple(picture[256, 300]) == (17, 17, 17) and tuple(picture[257, 300]) == (255, 255, 255)
        assert tuple(picture[300, 257]) == (255, 255, 255) and tuple(picture[255, 300]) != (17, 17, 17)


def test_a_box_is_found_again_whatever_the_order() -> None:
    """By hand: again its own score, moved the overlap times the score, of another class or none 0."""
    wanted = BoxScores(lambda found: found, torch.tensor([0, 1]), torch.tensor([CAT, DOG]), torch.ones(2))
    half = (0.0, 0.0, 16.0, 8.0)
    rows = [
        ((0.6, 0.9, 0.7), (1, 0, 0), (DOG, half, CAT)),  # a better box of the class lies beside it
        ((0.9, 0.4, 0.0), (0, 0, -1), (half, DOG, (0.0,) * 4)),
    ]
    scores, labels, boxes = (torch.tensor(list(part)) for part in zip(*rows, strict=True))
    scores.requires_grad_()
    found = wanted(Detections(scores, labels, boxes))
    assert torch.allclose(found, torch.tensor([[0.7, 0.6], [0.45, 0.0]]))
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    assert gradient.tolist()[0] == [1, 0, 1] and gradient[1, 0] == 0.5
    empty = Detections(torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.long), torch.zeros(2, 0, 4))
    assert wanted(empty).tolist() == [[0, 0], [0, 0]]


def test_where_a_detector_tells_all_classes_a_box_may_change_its_own() -> None:
    """The similarity of D-RISE: overlap times the cosine of the classes' probabilities times the score."""
    likely = torch.tensor([[[0.6, 0.5, 0.0], [0.0, 0.1, 0.9]]])
    found = Detections(
        torch.tensor([[0.6, 0.9]]), torch.tensor([[0, 2]]), torch.tensor([[CAT, CAT]]), likely
    )
    wanted = torch.tensor([[0.3, 0.8, 0.0]])  # it was a dog
    score = BoxScores(lambda found: found, torch.tensor([1]), torch.tensor([CAT]), torch.ones(1), wanted)(
        found
    )
    cosine = torch.cosine_similarity(likely[0, 0], wanted[0], dim=0)
    assert float(score) == pytest.approx(0.6 * float(cosine))
    again = BoxScores(
        lambda found: found, torch.tensor([0]), torch.tensor([CAT]), torch.ones(1), likely[0, :1]
    )(found)
    assert float(again) == pytest.approx(0.6)  # found again, it is its score
    padded = Detections.padded([(s, n, b, k) for s, n, b, k in zip(*vars(found).values(), strict=True)])
    assert padded.likely is not None and torch.equal(padded.likely, likely)


@pytest.mark.parametrize("method", ["rise", "scorecam", "ablationcam"])
def test_methods_that_run_the_detector_again_follow_the_box(method: str) -> None:
    """Though boxes come in another order, or not at all, when parts are hidden."""
    options = {"masks": 300, "tolerance": 0.5} if method == "rise" else {}
    cat, dog = camkit.explain_many(model(), [photo(0.62, 0.6)], box="all", method=method, **options)
    half = cat.map.shape[0] // 2
    assert float(cat.map[:half, :half].mean()) > 1.5 * float(cat.map[half:, half:].mean())
    assert float(dog.map[half:, half:].mean()) > 1.5 * float(dog.map[:half, :half].mean())


class Fixed(nn.Module):
    """Two boxes, whatever the photograph, with scores by its red and its green."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).mean((2, 3)).sigmoid()


def fixed(
    labels: tuple[int, int], boxes: tuple[tuple[float, ...], tuple[float, ...]], *classes: str
) -> camkit.LoadedModel:
    torch.manual_seed(0)

    def found(scores: Tensor) -> Detections:
        rows = len(scores)
        return Detections(scores, torch.tensor([labels] * rows), torch.tensor([list(boxes)] * rows))

    about: dict[str, Any] = {"default_layer": "features", "detections": found}
    return camkit.LoadedModel(Fixed().eval(), classes, model().preprocess, "fixed", **about)


@pytest.mark.parametrize(
    "boxes", [(CAT, CAT), (CAT, (0.0, 0.0, 16.0, 16.001))], ids=["equal", "equal but for rounding"]
)
def test_boxes_that_cover_each_other_keep_their_scores(boxes: Any) -> None:
    """As of detectors without NMS: the second was explained as the first."""
    found = camkit.explain_many(fixed((0, 0), boxes, "cat"), [photo()], box="all", min_score=0)
    first, second = found
    assert first.box and second.box and first.box.score != second.box.score
    assert (first.logit, second.logit) == pytest.approx((first.box.score, second.box.score))
    assert not torch.equal(first.map, second.map)


def test_a_box_without_an_area_has_its_score() -> None:
    flat = (4.0, 4.0, 4.0, 20.0)
    found = camkit.explain_many(fixed((1, 0), (flat, CAT), "cat", "dog"), [photo()], box="all", min_score=0)
    assert all(r.box and r.logit == pytest.approx(r.box.score) and bool(r.map.any()) for r in found)


def test_of_two_classes_of_one_name_the_box_keeps_its_own() -> None:
    """COCO's detectors name several classes N/A."""
    made = fixed((2, 2), (CAT, DOG), "N/A", "cat", "N/A")
    result = camkit.explain(made, photo(), min_score=0)
    assert (result.class_index, result.predicted_index, result.predicted_name) == (2, 2, "N/A")


def test_a_class_beyond_the_names_is_refused() -> None:
    with pytest.raises(ModelError, match="finds boxes of class 2, and has 2 classes: 0 to 1"):
        camkit.explain(fixed((0, 2), (CAT, DOG), "cat", "dog"), photo())


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MapError, match=r"nothing is detected .* at least 0.9 \(highest 0.8\): --min-score"):
        camkit.explain(model(), photo(), min_score=0.9)
    with pytest.raises(MapError, match="there is no box 3: 2 boxes are detected"):
        camkit.explain(model(), photo(), box=3)
    with pytest.raises(MapError, match=r"no dog is detected .* \(but cat\)"):
        camkit.explain(model(), photo(green=0), target="dog")
    for wrong, said in {
        "a box is all": {"box": 0},
        "between 0 and 1": {"min_score": 2.0},
        "finercam holds a class": {"method": "finercam"},
        "not functions": {"target": lambda scores: scores[:, 0]},
        "--box all": {"target": "top:2"},
    }.items():
        with pytest.raises(UsageError, match=wrong):
            list(camkit.explain_many(model(), [photo()], **said))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no detector"):
        camkit.explain("pets", photo(), box=1)


def test_the_command_tells_of_boxes_and_makes_them_again(tmp_path: Path) -> None:
    source = (
        f"import sys; sys.path.insert(0, {str(Path.cwd())!r})\nfrom tests.test_detection import model\n"
    )
    (tmp_path / "made.py").write_text(source)
    for name, image in {"a": photo(), "b": photo(0.3, 0.2), "c": photo(0.1, 0.7)}.items():
        image.save(tmp_path / f"{name}.png")
    photos = [str(tmp_path / f"{name}.png") for name in "abc"]
    spec, out = f"{tmp_path}/made.py:model", tmp_path / "out"
    done = run("explain", *photos, "--model", spec, "--box", "all", "--out", out, "--workers", 0)
    assert done.exit_code == 3 and "b.png: nothing is detected with a score of at least 0.5" in done.stderr
    assert "cat · box 1 of 2" in done.stdout and "a.png: 2 boxes: cat 80.0%, dog 60.0%" in done.stdout
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert [line["box"] and (line["box"]["number"], line["box"]["corners"]) for line in lines] == [
        (1, [0, 0, 16, 16]),
        (2, [16, 16, 32, 32]),
        None,
        (1, [16, 16, 32, 32]),
    ]
    assert ".native.gradcam.dog.box-2." in lines[1]["map_file"]
    again = run(
        "explain", *photos, "--model", spec, "--box", "all", "--out", out, "--workers", 0, "--resume"
    )
    assert "2 photographs were done already" in again.stderr
    checked = run("verify", out, "--model", spec)
    assert checked.exit_code == 0 and "3 recomputed maps" in checked.stdout
    shown = run("show", out / lines[1]["overlay_file"])
    assert "--box 2 --min-score 0.5" in shown.stdout
    drawn = run("render", out, "--look", "contour")
    assert drawn.exit_code == 0
    assert run("explain", photos[0], "--box", "x").exit_code == 2


def test_a_type_that_has_no_nms_is_named() -> None:
    made = camkit.load_model(
        "torchvision:ssdlite320_mobilenet_v3_large@none", device="cpu", dtype="bfloat16"
    )
    with pytest.raises(ModelError, match="there is no nms_kernel for this dtype on this device: --dtype"):
        camkit.explain(made, photo(), min_score=0)


def test_torchvisions_detectors_show_what_they_are_given() -> None:
    """Boxes and scores are those of the module itself, which stays as it is."""
    from torchvision.models import get_model

    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    loaded = camkit.load_model(f"torchvision:{name}@none", device="cpu")
    assert loaded.default_layer == "backbone.body.16" and loaded.preprocess.size == (320, 320)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8))
    result = camkit.explain(loaded, image, min_score=0.01)
    theirs = get_model(name, weights=None, weights_backbone=None, box_score_thresh=0.01).eval()
    theirs.load_state_dict(loaded.module.state_dict())
    padded = Image.new("RGB", (320, 320))
    padded.paste(image, (0, 40))
    pixels = torch.from_numpy(np.asarray(padded).copy()).permute(2, 0, 1).float() / 255
    with torch.no_grad():
        (found,) = theirs([pixels])
    assert result.box is not None and result.map.shape == (10, 10) and bool(result.map.any())
    assert result.probability == pytest.approx(float(found["scores"][0]), rel=1e-4)
    moved = found["boxes"][0] - torch.tensor([0, 40, 0, 40])
    assert result.box.corners == pytest.approx(tuple(moved.tolist()), abs=0.05)
    own = camkit.load_model(theirs, device="cpu")
    assert own.classes == loaded.classes and "COCO" in own.note
    assert own.module is not theirs and theirs.roi_heads.score_thresh == 0.01
    assert torch.equal(camkit.explain(own, image, min_score=0.01).map, result.map)
    # Of a size that is no multiple of 32 nothing is filled up, which would shift the map.
    wide = replace(loaded.preprocess, size=(250, 333))
    images, _ = loaded.module.transform([torch.zeros(3, *wide.size)])
    assert images.tensors.shape[2:] == images.image_sizes[0] and images.tensors.shape[3] % 32 == 0
