"""Ground truth from files: pets, folders of masks, COCO; and what strangers may put into them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from camkit import Preprocess
from camkit.errors import CamkitError, ImageError, UsageError
from camkit.images import decoding, finding
from camkit.metrics import ground_truth

SIZE = (6, 4)  # width, height
VOC = """<annotation><size><width>6</width><height>4</height></size>
<object><name>cat</name><bndbox><xmin>2</xmin><ymin>1</ymin><xmax>4</xmax><ymax>2</ymax></bndbox></object>
</annotation>"""


def picture(path: Path, values: Any, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.array(values, dtype=np.uint8))
    (image.convert(mode) if mode else image).save(path)
    return path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def places(mask: torch.Tensor | None) -> list[list[int]]:
    assert mask is not None and mask.dtype == torch.bool and mask.shape == SIZE[::-1]
    return mask.nonzero().tolist()


# --- pets -----------------------------------------------------------------------------------------


def test_the_foreground_of_a_trimap_and_otherwise_the_box(tmp_path: Path) -> None:
    trimap = np.full((4, 6), 2)
    trimap[1, 2], trimap[1, 3] = 1, 3  # foreground, border
    picture(tmp_path / "trimaps" / "cat_1.png", trimap)
    write(tmp_path / "xmls" / "cat_1.xml", VOC)
    write(tmp_path / "xmls" / "cat_2.xml", VOC)
    read = ground_truth.read(tmp_path)
    assert places(read(Path("anywhere/cat_1.jpg"), SIZE)) == [[1, 2]]
    assert places(read(Path("cat_2.jpg"), SIZE)) == [[y, x] for y in (0, 1) for x in (1, 2, 3)]
    assert read(Path("cat_3.jpg"), SIZE) is None


def test_the_sample_of_the_pets(pets: Path) -> None:
    read = ground_truth.read(pets / "annotations")
    photo = finding.expand([pets / "images"])
    sizes = {path: decoding.load(path).image.size for path in list(photo)[:5]}
    for path, size in sizes.items():
        mask = read(path, size)
        assert mask is not None and 0.02 < float(mask.float().mean()) < 0.95


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE a [<!ENTITY b "bbb">]><annotation>&b;</annotation>', "document type"),
        ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "document type"),
        ("<annotation>", "VOC"),
        ("", "VOC"),
        (VOC.replace(">4<", ">four<"), "VOC.*four"),
        (VOC.replace(">4<", ">nan<"), "nan"),
        (VOC.replace("<xmin>2</xmin>", ""), "xmin"),
        ("<annotation>" + " " * 2**20 + "</annotation>", "1 MiB"),
    ],
)
def test_xml_from_strangers(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "xmls" / "cat_1.xml", text)
    with pytest.raises(UsageError, match=message) as raised:
        ground_truth.read(tmp_path)(Path("cat_1.jpg"), SIZE)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_an_entity_bomb_in_another_encoding_is_no_way_round(tmp_path: Path) -> None:
    bomb = '<?xml version="1.0" encoding="utf-16"?><!DOCTYPE a [<!ENTITY b "bbb">]><a>&b;</a>'
    (tmp_path / "xmls").mkdir()
    (tmp_path / "xmls" / "cat_1.xml").write_bytes(bomb.encode("utf-16"))
    with pytest.raises(UsageError, match="document type"):
        ground_truth.read(tmp_path)(Path("cat_1.jpg"), SIZE)


# --- masks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "mode"), [("png", None), ("png", "P"), ("png", "1"), ("bmp", None)])
def test_whatever_is_not_zero_belongs_to_the_object(tmp_path: Path, suffix: str, mode: str | None) -> None:
    values = np.zeros((4, 6))
    values[2, 5] = 255
    picture(tmp_path / f"cat_1.{suffix}", values, mode)
    read = ground_truth.read(tmp_path)
    assert places(read(Path("cat_1.jpg"), SIZE)) == [[2, 5]]
    assert read(Path("dog.jpg"), SIZE) is None


def test_sixteen_bits_and_indices_are_not_scaled_away(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 300]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert decoding.load_mask(tmp_path / "a.png").tolist() == [[0, 1, 300]]
    assert decoding.load_mask(indexed(tmp_path / "b.png", [0, 0, 0, 90, 0, 0, 0, 0, 0])).tolist() == [
        [0, 1, 2]
    ], "index 0 is black, as in VOC's"
    coloured = indexed(tmp_path / "c.png", [68, 1, 84, 33, 144, 140, 253, 231, 36])
    assert decoding.load_mask(coloured).tolist() == [[0, 1, 2]]


def indexed(path: Path, palette: list[int]) -> Path:
    """A picture of the indices 0, 1, 2 of a palette, or of fewer."""
    image = Image.new("P", (len(palette) // 3, 1))
    image.putpalette(palette)
    for x in range(image.width):
        image.putpixel((x, 0), x)
    image.save(path)
    return path


def test_of_two_colours_the_black_one_is_the_background(tmp_path: Path) -> None:
    """Whatever wrote the palette: many begin it with the commonest or with the brightest colour."""
    black_and_white = indexed(tmp_path / "a.png", [255, 255, 255, 0, 0, 0])
    assert decoding.load_mask(black_and_white).tolist() == [[1, 0]]
    values = np.zeros((4, 6), np.uint8)
    values[1, 2:4] = 255
    grey = Image.fromarray(values)
    grey.quantize(2).save(tmp_path / "b.png")
    grey.convert("RGB").save(tmp_path / "c.gif")
    for name in ("b.png", "c.gif"):
        assert (decoding.load_mask(tmp_path / name) != 0).nonzero()[1].tolist() == [2, 3], name
    three = indexed(tmp_path / "d.png", [200, 0, 0, 0, 0, 0, 0, 0, 200])
    with pytest.raises(ImageError, match="nobody knows which of them is the background"):
        decoding.load_mask(three)


@pytest.mark.parametrize("other", ["photos/cat.png", "elsewhere/cat.jpg"])
@pytest.mark.parametrize("layout", ["masks", "pets"])
def test_photographs_that_share_a_stem_do_not_share_a_mask(tmp_path: Path, layout: str, other: str) -> None:
    picture(tmp_path / ("trimaps" if layout == "pets" else "") / "cat.png", np.ones((4, 6)))
    read = ground_truth.read(tmp_path)
    assert read(Path("photos/cat.jpg"), SIZE) is not None
    assert read(Path("photos/cat.jpg"), SIZE) is not None
    with pytest.raises(UsageError, match=r"has the name of photos/cat\.jpg"):
        read(Path(other), SIZE)


def test_two_masks_of_one_photograph_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "cat.png", np.ones((4, 6)))
    picture(tmp_path / "cat.bmp", np.zeros((4, 6)))
    with pytest.raises(UsageError, match=r"cat\.png and .*cat\.bmp are of the same photograph"):
        ground_truth.read(tmp_path)


@pytest.mark.parametrize(("turn", "size", "known"), [(1, SIZE, True), (3, SIZE, False), (6, SIZE, True)])
def test_annotations_of_a_photograph_that_is_turned(
    tmp_path: Path, turn: int, size: tuple[int, int], known: bool
) -> None:
    """A quarter turn shows in the size, unless the photograph is square; a half turn never does."""
    picture(tmp_path / "masks" / "a.png", np.ones((4, 6)))
    picture(tmp_path / "masks" / "b.png", np.ones((4, 4)))
    read = ground_truth.read(tmp_path / "masks")
    exif = Image.Exif()
    exif[0x0112] = turn
    stored = size if turn < 5 else size[::-1]
    for name, shape in (("a.jpg", stored), ("b.jpg", (4, 4))):
        Image.new("RGB", shape).save(tmp_path / name, exif=exif)
        photo = decoding.load(tmp_path / name)
        assert photo.turn == turn
        if turn == 1 or (known and name == "a.jpg"):
            assert ground_truth.of_photograph(read, tmp_path / name, photo) is not None
            continue
        with pytest.raises(UsageError, match=rf"{name} is turned by its EXIF orientation {turn}"):
            ground_truth.of_photograph(read, tmp_path / name, photo)


@pytest.mark.parametrize(("mode", "message"), [("RGB", "RGB: .*one channel"), ("RGBA", "RGBA")])
def test_a_picture_in_colours_is_no_mask(tmp_path: Path, mode: str, message: str) -> None:
    picture(tmp_path / "cat_1.png", np.zeros((4, 6)), mode)
    with pytest.raises(ImageError, match=message):
        ground_truth.read(tmp_path)(Path("cat_1.jpg"), SIZE)


def test_what_is_no_mask_or_not_of_this_photograph(tmp_path: Path) -> None:
    picture(tmp_path / "cat_1.png", np.zeros((3, 3)))
    with pytest.raises(UsageError, match=r"3 x 3.* 6 x 4"):
        ground_truth.read(tmp_path)(Path("cat_1.jpg"), SIZE)
    (tmp_path / "cat_2.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"cat_2\.png.*\(PNG, GIF"):
        ground_truth.read(tmp_path)(Path("cat_2.jpg"), SIZE)
    jpeg = picture(tmp_path / "mask.jpg", np.zeros((4, 6)))
    with pytest.raises(ImageError, match=r"mask\.jpg"):
        decoding.load_mask(jpeg)  # its values would not be those that were meant


# --- COCO -----------------------------------------------------------------------------------------


def coco(path: Path, *annotations: dict[str, Any]) -> Path:
    data = {
        "images": [{"id": 7, "file_name": "train/a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 7, **one} for one in annotations],
    }
    return write(path / "instances.json", json.dumps(data))


def test_annotations_of_another_size_are_refused(tmp_path: Path) -> None:
    """They would lie elsewhere, or be cut away."""
    write(tmp_path / "xmls" / "cat.xml", VOC)
    with pytest.raises(UsageError, match=r"cat.xml is of 6 x 4, the photograph has 3 x 2 pixels"):
        ground_truth.read(tmp_path)(Path("cat.jpg"), (3, 2))
    write(tmp_path / "xmls" / "dog.xml", VOC.replace("<width>6</width>", "<width>0</width>"))
    assert ground_truth.read(tmp_path)(Path("dog.jpg"), (3, 2)) is not None  # it does not tell
    path = coco(tmp_path, {"bbox": [0, 0, 2, 2]})
    data = json.loads(path.read_text())
    data["images"][0] |= {"width": 6, "height": 4}
    write(path, json.dumps(data))
    assert places(ground_truth.read(path)(Path("a.jpg"), SIZE)) == [[y, x] for y in (0, 1) for x in (0, 1)]
    with pytest.raises(UsageError, match=r"a.jpg in .* is of 6 x 4, the photograph has 12 x 8 pixels"):
        ground_truth.read(path)(Path("a.jpg"), (12, 8))


def test_photographs_of_one_name_do_not_share_a_mask(tmp_path: Path) -> None:
    picture(tmp_path / "1.png", np.ones((4, 6)))
    read = ground_truth.read(tmp_path)
    assert read(Path("cats/1.png"), SIZE) is not None and read(Path("cats/1.png"), SIZE) is not None
    with pytest.raises(UsageError, match=r"dogs/1.png has the name of .*cats/1.png"):
        read(Path("dogs/1.png"), SIZE)


def test_a_polygon_covers_what_a_box_of_its_corners_does() -> None:
    square = [2.0, 1.0, 32.0, 1.0, 32.0, 31.0, 2.0, 31.0]
    polygon = ground_truth.drawn((40, 36), polygons=[square])
    assert int(polygon.sum()) == 900
    assert torch.equal(polygon, ground_truth.drawn((40, 36), boxes=[(2, 1, 32, 31)]))
    assert int(ground_truth.drawn((4, 4), polygons=[[-9, -9, 99, -9, 99, 99, -9, 99]]).sum()) == 16


def test_boxes_and_polygons_of_one_photograph_together(tmp_path: Path) -> None:
    box = {"bbox": [0, 0, 1, 2], "segmentation": []}
    polygon = {"bbox": [0, 0, 6, 4], "segmentation": [[3, 1, 5, 1, 5, 2, 3, 2]]}
    read = ground_truth.read(coco(tmp_path, box, polygon))
    expected = [[0, 0], [1, 0]] + [[1, x] for x in (3, 4)]  # edges of pixels, as of boxes
    assert places(read(Path("elsewhere/a.jpg"), SIZE)) == sorted(expected)
    assert places(read(Path("b.jpg"), SIZE)) == []  # nothing is there, and that is known
    assert read(Path("c.jpg"), SIZE) is None
    outside = ground_truth.read(coco(tmp_path, {"bbox": [-3, -3, 99, 4]}))
    assert places(outside(Path("a.jpg"), SIZE)) == [[0, x] for x in range(6)]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        ({"segmentation": [[1, 2, 3, 4]]}, "polygon.* 4 "),
        ({"segmentation": [[1, 2, 3, 4, "x", 6]]}, "'x'"),
        ({"bbox": [1, 2, 3]}, "values"),
        ({"bbox": [1, 2, 3, float("nan")]}, "nan"),
        ({}, "'bbox'"),
    ],
)
def test_annotations_that_cannot_be_read(tmp_path: Path, annotation: dict[str, Any], message: str) -> None:
    read = ground_truth.read(coco(tmp_path, annotation))
    with pytest.raises(UsageError, match=message) as raised:
        read(Path("a.jpg"), SIZE)
    assert "a.jpg" in str(raised.value)


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "{",
        '{"images": []}',
        '{"images": [{"id": 1}], "annotations": []}',
        '{"images": [], "annotations": [{"image_id": 3}]}',
        '{"images": [{"id": 1, "file_name": "a/x"}, {"id": 2, "file_name": "b/x"}], "annotations": []}',
        "[" * 100_000,
    ],
)
def test_a_json_of_another_kind(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"x\.json.*COCO"):
        ground_truth.read(write(tmp_path / "x.json", text))


def test_no_truth_at_all(tmp_path: Path) -> None:
    for what in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(CamkitError, match=r"no (masks|truth)"):
            ground_truth.read(what)


# --- as the model sees it ---------------------------------------------------------------------------


@pytest.mark.parametrize("fit", ["crop", "squash"])
def test_the_mask_goes_the_way_of_the_photograph(fit: str) -> None:
    preprocess = Preprocess(size=(32, 32), resize=40, fit=fit, interpolation="bicubic")  # type: ignore[arg-type]
    mask = torch.zeros(60, 90, dtype=torch.bool)
    mask[20:40, 30:50] = True
    photo = Image.fromarray(np.where(mask.numpy()[..., None], 255, 0).astype(np.uint8).repeat(3, axis=2))
    seen = ground_truth.as_seen(mask, preprocess)
    expected = torch.from_numpy(np.asarray(preprocess.view(photo))[..., 0] > 127)
    assert seen.dtype == torch.bool and seen.shape == (32, 32)
    assert torch.equal(seen, expected) and expected.any() and not expected.all()


# --- what is in every standard file, and what is not --------------------------------------------------


@pytest.mark.parametrize("counts", [[3, 2, 15, 4], "32?2"], ids=["numbers", "text"])
def test_run_lengths_are_read_beside_other_annotations(tmp_path: Path, counts: Any) -> None:
    """Down the columns, from the left; the text is what pycocotools 2.0.11 writes of these numbers."""
    run_length = {"segmentation": {"counts": counts, "size": [4, 6]}, "iscrowd": 1, "bbox": [0, 0, 6, 4]}
    read = ground_truth.read(coco(tmp_path, run_length, {"bbox": [2, 0, 1, 2]}))
    assert places(read(Path("a.jpg"), SIZE)) == [
        *([0, 1], [0, 2], [0, 5], [1, 2], [1, 5], [2, 5]),
        *([3, 0], [3, 5]),
    ]


@pytest.mark.parametrize(
    ("segmentation", "cause"),
    [
        ({"counts": [3, 2, 15, 5], "size": [4, 6]}, "25 pixels for 4 x 6"),
        ({"counts": [3, 2, -5, 24], "size": [4, 6]}, "list of numbers"),
        ({"counts": [12], "size": [3, 4]}, "a mask of 4 x 3 pixels"),
        ({"counts": "\x7f", "size": [4, 6]}, "no text of COCO's"),
        ({"counts": "oooooooooo", "size": [4, 6]}, "no text of COCO's"),
        ({"counts": "32?o", "size": [4, 6]}, "end within a number"),
        ({"counts": [], "size": [10**9, 10**9]}, "no size of a mask"),
    ],
)
def test_run_lengths_that_are_none(tmp_path: Path, segmentation: dict[str, Any], cause: str) -> None:
    read = ground_truth.read(coco(tmp_path, {"segmentation": segmentation}))
    with pytest.raises(UsageError, match=rf"an annotation of a\.jpg cannot be read \(.*{cause}"):
        read(Path("a.jpg"), SIZE)


@pytest.mark.parametrize("number", ["1e300", "-2e6", "1e7"])
def test_a_coordinate_far_outside_is_none(tmp_path: Path, number: str) -> None:
    read = ground_truth.read(coco(tmp_path, {"segmentation": [[1, 1, float(number), 2, 3, 3]]}))
    with pytest.raises(UsageError, match="coordinate"):
        read(Path("a.jpg"), SIZE)


@pytest.mark.parametrize("kind", ["pipe", "link to no end"])
def test_annotations_are_regular_files(tmp_path: Path, kind: str) -> None:
    (tmp_path / "xmls").mkdir()
    for path in (tmp_path / "coco.json", tmp_path / "xmls" / "a.xml"):
        os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"no truth.*coco\.json"):
        ground_truth.read(tmp_path / "coco.json")
    assert ground_truth.read(tmp_path)(Path("a.jpg"), SIZE) is None
    for read in (
        lambda: ground_truth.coco(tmp_path / "coco.json"),
        lambda: ground_truth.voc_boxes(tmp_path / "xmls/a.xml"),
    ):
        with pytest.raises(UsageError, match="not a regular file"):
            read()
