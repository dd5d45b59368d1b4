"""How much of the evidence lies on the object: by hand, in the manifest, on the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests import browser
from tests.test_cli import camkit_, explain, lines, photo
from torch import nn

import camkit
from camkit.errors import ImageError
from camkit.explaining.object_seen import ObjectSeen
from camkit.metrics import ground_truth
from camkit.metrics.ground_truth import as_seen

pytestmark = pytest.mark.usefixtures("here")


def mask(path: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """A mask of this size (width, height), white in the box."""
    picture = Image.new("L", size)
    picture.paste(255, box)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def pairs(found: list[dict[str, Any]]) -> dict[str, tuple[float | None, float | None]]:
    return {line["image_name"]: (line["truth_share"], line["truth_area"]) for line in found}


def test_the_share_by_hand() -> None:
    seen = torch.zeros(4, 4, dtype=torch.bool)
    seen[:, :2] = True
    map = torch.zeros(4, 4)
    map[0, 0], map[1, 3], map[2, 2] = 3, 1, -9
    assert ObjectSeen(seen).of(map) == {"truth_share": 0.75, "truth_area": 0.5}
    assert ObjectSeen(seen).of(-map.abs()) == {"truth_share": None, "truth_area": 0.5}
    assert ObjectSeen(~seen & seen).of(map) == {"truth_share": None, "truth_area": 0}
    assert ObjectSeen(None).of(map) == {}


@pytest.mark.parametrize("how", [(), ("--view", "model"), ("--format", "npz"), ("--image-size", "64")])
def test_the_manifest_tells_it_of_each_map_however_it_is_drawn(how: tuple[str, ...]) -> None:
    for seed, name in enumerate(("left.png", "whole.png", "unknown.png")):
        photo(f"photos/{name}", seed, size=(150, 100))
    mask("masks/left.png", (0, 0, 75, 100), (150, 100))
    mask("masks/whole.png", (0, 0, 150, 100), (150, 100))
    done = explain("photos", "--truth", "masks", "--class", "top:2", *how)
    assert done.exit_code == 0 and "Warning" not in done.stderr, done.stderr
    found = lines()
    assert len(found) == 6
    told = pairs(found)
    assert told["unknown.png"] == (None, None)
    assert told["whole.png"] == (1.0, 1.0)
    left = next(line for line in found if line["image_name"] == "left.png")
    assert left["truth_area"] == pytest.approx(0.5, abs=0.02) and 0 < left["truth_share"] < 1
    if left["map_file"].endswith(".npy"):
        map = torch.from_numpy(np.load(Path("out", left["map_file"])))
        full = nn.functional.interpolate(map[None, None], (32, 32), mode="bilinear")[0, 0].clamp(min=0)
        assert left["truth_share"] == pytest.approx(float(full[:, :16].sum() / full.sum()), abs=0.03)


def test_without_truth_nothing_is_told_and_with_it_the_work_is_done_again() -> None:
    photo("a.png", size=(60, 40))
    mask("masks/a.png", (0, 0, 30, 40), (60, 40))
    explain("a.png", "--resume")
    assert pairs(lines()) == {"a.png": (None, None)}
    plain = Path("out", lines()[0]["overlay_file"]).read_bytes()
    explain("a.png", "--resume", "--truth", "masks")
    known = lines()[-1]
    assert known["truth_share"] is not None
    assert Path("out", known["overlay_file"]).read_bytes() == plain, "the picture is the same"
    assert camkit_("verify", "out").exit_code == 0


def test_annotations_that_cannot_be_used_are_a_warning_of_their_photograph() -> None:
    photo("photos/a.png", size=(60, 40))
    photo("photos/b.png", 1, size=(60, 40))
    mask("masks/a.png", (0, 0, 3, 3), (61, 40))
    mask("masks/b.png", (0, 0, 30, 40), (60, 40))
    done = explain("photos", "--truth", "masks")
    assert done.exit_code == 0 and len(lines()) == 2
    assert (
        "Warning: photos/a.png: where the object is, is not known: masks/a.png is 61 x 40, its photograph"
        in done.stderr
    )
    told = pairs(lines())
    assert told["a.png"] == (None, None) and told["b.png"][0] is not None


@pytest.mark.parametrize(
    ("truth", "said"), [("nowhere", "there is no file or folder 'nowhere'"), ("empty", "no masks in")]
)
def test_no_annotations_are_wrong_usage(truth: str, said: str) -> None:
    Path("empty").mkdir()
    done = explain(photo("a.png"), "--truth", truth)
    assert done.exit_code == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
    assert not Path("out").exists()


def test_what_a_function_shows_the_model_has_no_known_place() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    def corner(image: Image.Image) -> torch.Tensor:
        return (
            torch.from_numpy(np.array(image.resize((64, 64)).crop((0, 0, 32, 32)))).permute(2, 0, 1) / 255
        )

    model = camkit.load_model(net, preprocess=corner)
    with pytest.raises(ImageError, match="is not known"):
        as_seen(torch.ones(64, 64, dtype=torch.bool), model.preprocess)


def test_boxes_of_coco_are_read() -> None:
    photo("a.png", size=(60, 40))
    data = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [{"image_id": 1, "bbox": [0, 0, 60, 20]}],
    }
    Path("boxes.json").write_text(json.dumps(data))
    explain("a.png", "--truth", "boxes.json")
    assert lines()[0]["truth_area"] == pytest.approx(0.5, abs=0.05)
    assert ground_truth.read("boxes.json")(Path("b.png"), (60, 40)) is None


def test_the_page_is_ordered_by_it() -> None:
    for seed in range(4):
        photo(f"photos/{seed}.png", seed, size=(60, 40))
        if seed:
            mask(f"masks/{seed}.png", (0, 0, 12 * seed, 40), (60, 40))
    explain("photos", "--truth", "masks")
    known = {line["image_name"]: line["truth_share"] for line in lines() if line["truth_share"] is not None}
    order = sorted(known, key=lambda name: known[name])
    with browser.launched() as chromium, browser.opened(chromium, Path("out/index.html")) as shown:
        shown.select_option("#order", "off")
        tiles = shown.locator(".tile").all_inner_texts()
        assert [text.split("\n")[-1] for text in tiles] == [*order, "0.png"]
        assert f"{100 * known[order[0]]:.1f}% on the object" in tiles[0]
        shown.locator(".tile").first.click()
        assert "of the evidence for the class (the object covers" in shown.locator("#large").inner_text()
    explain("photos", "--out", "plain")
    with browser.launched() as chromium, browser.opened(chromium, Path("plain/index.html")) as shown:
        assert shown.locator("#order option[value=off]").count() == 0, "only where it is known"
