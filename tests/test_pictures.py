"""The default picture, the other looks, their captions and colours, and what a picture tells of itself."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from tests import browser
from tests.conftest import SmallNet

import camkit
from camkit import LoadedModel
from camkit.drawing import caption, colours, looks, png, text
from camkit.drawing.caption import Caption, Legend
from camkit.drawing.evidence import Scale, sampled, scale_of, signed
from camkit.drawing.overlay import draw, overlay, sized
from camkit.drawing.style import Style
from camkit.errors import CamkitError, ImageError, UsageError
from camkit.explaining import embedding, repeating
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess

GREY = (120, 120, 120)
SIGNED = torch.tensor([[-1.0, 0.0, 1.0]])
SAID = Caption("Bengal", "93.1%", "predicted", ("gradcam", "layer bn2", "pets"))


def numbers(image: Image.Image) -> np.ndarray:
    """`[h, w, 3]`, as numbers that do not wrap around."""
    return np.asarray(image.convert("RGB")).astype(int)


def bare(map: torch.Tensor, image: Image.Image | None = None, **look: Any) -> np.ndarray:
    """A map on a grey photograph, without caption."""
    return numbers(overlay(image or Image.new("RGB", (90, 30), GREY), map, Style(**look)))


def drawn(map: torch.Tensor = SIGNED, size: tuple[int, int] = (300, 200), **look: Any) -> Image.Image:
    """The picture of a map on a grey photograph of a size, of which the model saw the middle."""
    photo = Photo(Image.new("RGB", size, GREY), "a.jpg", "00")
    said = look.pop("said", SAID)
    return draw(photo, map, Preprocess(size=(32, 32)), Style(**look), said)


# --- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [png._compressed, png._with_zlib])
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (67, 41)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_png_has_the_pixels(
    mode: str, size: tuple[int, int], compress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every byte of them, with the compression that is installed and with that of every Python."""
    monkeypatch.setattr(png, "_compressed", compress)
    width, height = size
    count = len(mode) * width * height
    pixels = np.random.default_rng(0).integers(0, 256, count, np.uint8).tobytes()
    data = png.to_png(Image.frombytes(mode, size, pixels), {"camkit": "a line"})
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert (image.mode, image.size, image.tobytes()) == (mode, size, pixels)
        assert image.info == {"camkit": "a line"}


# --- colours --------------------------------------------------------------------------------------


def linear(table: np.ndarray) -> np.ndarray:
    """sRGB bytes as linear light."""
    values = table / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lightness(light: np.ndarray) -> np.ndarray:
    """CIE L* of linear sRGB."""
    y = np.clip(light, 0, 1) @ [0.2126, 0.7152, 0.0722]
    return np.where(y > 216 / 24389, 116 * np.cbrt(y) - 16, y * 24389 / 27)


# Viénot, Brettel and Mollon 1999 in linear sRGB, as of Machado et al. 2009 at full severity.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("eye", BLINDNESS)
@pytest.mark.parametrize("name", colours.TABLES)
def test_lightness_only_grows_so_print_in_grey_and_the_colour_blind_read_the_sign(
    name: str, eye: str
) -> None:
    table = colours.TABLES[name]
    assert table.shape == (256, 3) and table.dtype == np.uint8
    seen = lightness(linear(table.astype(float)) @ BLINDNESS[eye].T)
    assert (np.diff(seen) > -0.6).all()  # bytes are rounded
    assert (np.diff(seen[::16]) > 0.5).all()
    zero = seen[128 if name == "signed" else 0]
    assert seen[-1] - zero > 25
    assert zero - seen[0] > 25 or name != "signed"


def test_evidence_against_has_other_colours_than_evidence_for() -> None:
    hues = [colours.FOR[160:].astype(int), colours.AGAINST[160:].astype(int)]
    assert (hues[0][:, 0] > hues[0][:, 2] + 60).all()  # orange to yellow
    assert (hues[1][:, 2] > hues[1][:, 0] + 60).all()  # cyan


# --- the default picture --------------------------------------------------------------------------


def test_zero_is_the_photograph_and_opacity_grows_with_the_evidence() -> None:
    row = bare(SIGNED)[15]
    away = np.abs(row - GREY).sum(1)
    assert away[45] <= 3  # in the middle cell
    assert row[5, 2] > row[5, 0] + 60  # blue
    assert row[85, 0] > row[85, 2] + 60  # yellow
    assert (np.diff(away[46:76]) >= 0).all()  # to the middle of the last cell


def test_the_strongest_value_has_the_last_colour_at_the_given_opacity() -> None:
    found = bare(SIGNED, alpha=0.5)[15, -1]
    expected = 0.5 * np.array(GREY) + 0.5 * colours.SIGNED[-1]
    assert np.abs(found - expected).max() <= 2
    found = bare(SIGNED, alpha=1.0, cmap="viridis")[15, -1]
    assert np.abs(found - 255 * np.array(colormaps["viridis"](1.0)[:3])).max() <= 1


def test_a_signed_scale_has_zero_in_its_middle_and_a_rectified_one_at_its_beginning() -> None:
    maps = [torch.tensor([[-0.5, 2.0]]), torch.tensor([[-3.0, 1.0]])]
    assert scale_of(maps, Style()) == Scale(-3, 3, "signed")
    assert scale_of(maps, Style(relu=True)) == Scale(0, 2, "for")
    assert scale_of(maps, Style(counterfactual=True)) == Scale(0, 3, "against")
    assert scale_of(maps, Style(scale=8)) == Scale(-8, 8, "signed", shared=True)
    assert scale_of(maps, Style(look="spotlight")) == Scale(0, 2, "for")


def test_of_one_scale_half_the_map_has_half_the_place() -> None:
    strong, weak = (bare(SIGNED * size, scale=2.0, alpha=1.0)[15, -1] for size in (2, 1))
    assert np.abs(strong - colours.SIGNED[-1]).max() <= 1
    assert np.abs(weak - strong).max() > 20
    assert np.array_equal(bare(SIGNED * 9, scale=1.0)[15, -1], bare(SIGNED, scale=1.0)[15, -1])


@pytest.mark.parametrize("value", [-2.0, 0.0, 5.0])
@pytest.mark.parametrize("look", ["default", "contour"])
def test_a_constant_map_colours_nothing(value: float, look: str) -> None:
    assert (bare(torch.full((7, 7), value), look=look) == GREY).all()


def test_a_map_without_positive_values_is_blue_and_rectified_it_is_clear() -> None:
    negative = -torch.tensor([[1.0, 0.3, 0.8]])
    found = bare(negative)
    assert (found[..., 2] >= found[..., 0]).all() and found[15, 5, 2] > found[15, 5, 0] + 60
    assert (bare(negative, relu=True) == GREY).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_only_rounding_is_not_drawn_as_evidence(sign: int) -> None:
    """Without a bound the one value above zero would be the strongest of a rectified picture."""
    map = sign * torch.tensor([[-2.0, -1.0, 1e-6]])
    look = {"relu": sign == 1, "counterfactual": sign == -1}
    assert (bare(map, **look) == GREY).all()
    assert scale_of([map], Style(**look)).high == 0
    assert (bare(map * torch.tensor([1, 1, 1e3]), **look)[15, -1] != GREY).any()
    assert signed(map, Style(look="lesson")) is map  # its pixels are those of the lesson


@pytest.mark.parametrize("shape", [(7, 7), (1, 5), (2, 1)])
def test_between_the_cells_no_value_is_beyond_the_map_and_in_their_middle_it_is_theirs(
    shape: tuple[int, int],
) -> None:
    map = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    height, width = shape[0] * 9, shape[1] * 9
    found = sampled(map, (0, 0, width, height), (0, 0, width, height))
    assert found.min() >= map.min() - 1e-9 and found.max() <= map.max() + 1e-9
    np.testing.assert_allclose(found[4::9, 4::9], map, atol=1e-6)


def test_cells_have_the_colour_of_their_value_up_to_their_edges() -> None:
    map = torch.tensor([[-1.0, 0.5], [0.0, 1.0]])
    found = sampled(map, (-2, 0, 8, 6), (0, 0, 8, 6), "nearest")  # the model saw more than there is
    assert np.array_equal(found, np.repeat(np.repeat(map.numpy(), 3, 0), (3, 5), 1))
    picture = bare(map, Image.new("RGB", (8, 6), GREY), cells=True)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 4 and (picture[3:, :4] == GREY).all()


@pytest.mark.parametrize(
    ("own", "asked", "expected"),
    [
        ((500, 375), None, (500, 375)),
        ((4000, 2000), None, (1024, 512)),
        ((2000, 4000), 300, (150, 300)),
        ((100, 50), 400, (400, 200)),
        ((32, 24), None, (256, 192)),
        ((130, 20), None, (130, 20)),
    ],
)
def test_the_size_of_a_picture(own: tuple[int, int], asked: int | None, expected: tuple[int, int]) -> None:
    assert sized(Image.new("RGB", own), asked).size == expected


def test_views() -> None:
    whole = drawn(caption=False)
    seen = drawn(caption=False, view="model")
    assert whole.size == (300, 200) and seen.size == (256, 256)
    dark = numbers(whole)[100]
    assert (dark[[10, 290]] == 66).all() and (dark[[49, 250]] == 255).all()


# --- the other looks ------------------------------------------------------------------------------


def test_contours_run_where_the_map_has_their_values() -> None:
    ramp = torch.linspace(0, 1, 101)[None]
    found = bare(ramp, Image.new("RGB", (1010, 20), GREY), look="contour")[10]
    changed = np.abs(found - GREY).sum(1) > 40
    middles = [255, 505, 755]  # of the cells 25, 50, 75
    assert all(changed[x] for x in middles)
    assert changed.sum() < 40
    expected = [colour for _, colour in looks.contours(Scale(-1, 1), Style(look="contour")) if _ > 0]
    assert np.abs(found[middles] - expected).max() <= 2


def test_the_spotlight_is_where_the_evidence_is() -> None:
    row = bare(torch.tensor([[-1.0, 0.0, 1.0]]), look="spotlight")[15]
    assert np.abs(row[-1] - GREY).max() <= 1
    assert row[5].max() <= 0.16 * 120 and row[40].max() <= 0.2 * 120
    lit = bare(torch.tensor([[-1.0, 0.0, 1.0]]), look="spotlight", counterfactual=True)[15]
    assert np.abs(lit[0] - GREY).max() <= 1 and lit[-1].max() <= 0.16 * 120


@pytest.mark.parametrize(
    ("look", "message"),
    [
        ({"look": "heat"}, "default, lesson, contour, spotlight, not 'heat'"),
        ({"look": "lesson", "view": "original"}, "lesson .*model saw.*leave out view"),
        ({"look": "lesson", "scale": 2.0}, "lesson .*leave out scale"),
        ({"look": "lesson", "scale": "run"}, "lesson .*leave out scale"),
        ({"look": "lesson", "cells": True}, "lesson .*leave out cells"),
        ({"look": "contour", "cells": True}, "contour .*leave out cells"),
        ({"look": "spotlight", "cmap": "magma"}, "spotlight .*leave out cmap"),
        ({"view": "side"}, "model, not 'side'"),
        ({"scale": "all"}, "image, run or a value above 0, not 'all'"),
        ({"scale": 0.0}, "not 0.0"),
        ({"scale": float("nan")}, "not nan"),
        ({"size": 8}, "32 to 4096 pixels, not 8"),
    ],
)
def test_what_does_not_go_together(look: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Style(**look)


# --- captions -------------------------------------------------------------------------------------


def test_below_the_picture_stands_what_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    write = text.write
    monkeypatch.setattr(
        text,
        "write",
        lambda draw, at, shown, size, **how: told.append(shown) or write(draw, at, shown, size, **how),
    )
    picture = drawn(torch.tensor([[-0.5, 0.5]]), (600, 400))
    assert picture.width == 600 and 400 < picture.height < 560
    whole = " ".join(told)
    for words in (
        "Bengal  93.1%",
        "predicted",
        "gradcam · layer bn2 · pets · own scale",
        "did not see the dimmed part",
    ):
        assert words in whole
    assert "0" in told and "−0.5 speaks against" in told and "speaks for 0.5" in told
    told.clear()
    negative = dataclasses.replace(SAID, remarks=("nothing speaks for Bengal",))
    drawn(torch.tensor([[-0.25, -0.5]]), counterfactual=True, said=negative)
    assert told[0] == "against Bengal (93.1%)" and "nothing speaks for Bengal" in told
    assert "speaks against 0.5" in told


def test_the_bar_ends_where_the_map_does_and_marks_zero() -> None:
    assert Legend(Scale(-2, 2), -0.5, 2).span == (-0.5, 2)
    assert Legend(Scale(-2, 2), 1, 2).span == (0, 2)
    assert Legend(Scale(-2, 2), -2, -1).span == (-2, 0)
    assert Legend(Scale(-2, 2, shared=True), -0.5, 1).span == (-2, 2)
    paper = Image.new("RGB", (420, 60), "white")
    caption.bar(paper, (10, 0, 410), 12, Style(), Legend(Scale(-1, 1), -1, 1))
    row = numbers(paper)[8]
    assert np.abs(row[210] - (17, 17, 17)).max() == 0  # the mark, in the middle
    assert row[14, 2] > row[14, 0] + 50 and row[405, 0] > row[405, 2] + 50


def test_values_beyond_a_shared_scale_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(text, "write", lambda draw, at, shown, size, **how: told.append(shown))
    drawn(SIGNED * 5, size=(700, 300), scale=2.0)
    assert "≤−2 speaks against" in told and "speaks for ≥2" in told
    assert "shared scale" in " ".join(told) and "own scale" not in " ".join(told)
    told.clear()
    drawn(SIGNED * 0 + 1, size=(700, 300))
    assert "own scale" not in " ".join(told), "there is no scale"


@pytest.mark.parametrize(("size", "is_told"), [(20, True), (8, False)])
def test_a_map_that_is_strong_in_few_places_says_so(
    monkeypatch: pytest.MonkeyPatch, size: int, is_told: bool
) -> None:
    told: list[str] = []
    monkeypatch.setattr(text, "write", lambda draw, at, shown, size, **how: told.append(shown))
    map = torch.full((size, size), 0.2)
    map[3, 4] = 1.0
    drawn(map, size=(700, 300))
    assert (f"a quarter of it or more in only {1 / size**2:.2%} of the map" in " ".join(told)) == is_told


@pytest.mark.parametrize("size", [(40, 900), (900, 40), (24, 24), (5000, 300)])
@pytest.mark.parametrize(
    "name",
    [
        "x",
        "a class with a very long name, as some data sets have them " * 4,
        "Weißkopfseeadler, Übergröße",
        "柴犬",
        "🐈",
        "\x1b[31m\u202eevil",
        "",
    ],
)
def test_any_name_on_any_photograph(name: str, size: tuple[int, int]) -> None:
    said = dataclasses.replace(SAID, name=name, how=(name, name, name), remarks=(name,))
    picture = drawn(size=size, said=said)
    assert picture.width >= caption.NARROWEST and picture.width <= 1024


def test_a_long_name_is_shortened_in_its_middle() -> None:
    name = "Mustela_nigripes_black_footed_ferret"
    short = text.shortened(name, 14, 150)
    assert text.width(short, 14) <= 150 < text.width(name, 14)
    begin, end = short.split("…")
    assert name.startswith(begin) and name.endswith(end) and len(begin) >= len(end) > 3
    assert text.shortened("cat", 14, 150) == "cat"


def test_names_that_the_font_lacks_are_written_with_one_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = text._own(False)
    signs = text._signs
    other = Path("other.ttf")
    monkeypatch.setattr(text, "_eastern", lambda: (other,))
    monkeypatch.setattr(
        text, "_signs", lambda path: {ord("柴"), ord("犬")} if path == other else signs(own)
    )
    text._missing.cache_clear()
    opened: list[Path] = []
    monkeypatch.setattr(text, "_opened", lambda path, size: opened.append(path))
    for name in ("Bengal", "柴犬", "Größe", "🐈"):
        text.font(12, name)
    assert opened == [own, other, own, own]
    text._missing.cache_clear()


# --- what a picture tells of itself ---------------------------------------------------------------

LINE: dict[str, Any] = {
    "schema": 2,
    "request": "abc",
    "name": "cat.jpg",
    "results": 3,
    "image": "cats/my cat.jpg",
    "image_path": "cats/my cat.jpg",
    "image_name": "my cat.jpg",
    "image_sha256": "ab" * 32,
    "status": "ok",
    "backend": "native",
    "method": "gradcam",
    "options": {"reduction": "mean", "fast": False},
    "layer": "layer4",
    "layout": None,
    "class_index": 4,
    "class_name": "Norwegische Waldkatze 猫",
    "probability": 0.5,
    "logit": 1.0,
    "map_file": "cat.jpg.native.gradcam.Norwegische_Waldkatze_猫.npy",
    "map_key": "native.gradcam.Norwegische_Waldkatze_猫",
    "map_sha256": "cd" * 32,
    "map_shape": [7, 7],
    "map_range": [-1.0, 2.0],
    "picture": dataclasses.asdict(Style()),
    "full_scale": 2.0,
    "model": "pets",
    "model_spec": "pets",
    "model_facts": {},
    "dtype": "float32",
    "warnings": [],
}


@pytest.mark.parametrize("format", embedding.ENCODINGS)
def test_every_picture_carries_its_line(tmp_path: Path, format: Any) -> None:
    path = tmp_path / "picture"
    path.write_bytes(embedding.encoded(Image.new("RGB", (40, 30), "red"), format, [LINE]))
    (line,) = embedding.read(path)
    assert {name: line[name] for name in embedding.KEPT} == {
        name: LINE.get(name) for name in embedding.KEPT
    }
    with Image.open(path) as picture:
        assert picture.format == format.upper() and np.abs(numbers(picture) - (255, 0, 0)).max() <= 3


def test_a_sheet_carries_the_lines_of_all_its_maps(tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    lines = [LINE, LINE | {"method": "layercam"}]
    path.write_bytes(embedding.encoded(Image.new("RGB", (40, 30)), "png", lines))
    assert [line["method"] for line in embedding.read(path)] == ["gradcam", "layercam"]


def test_a_line_that_is_too_long_for_exif_loses_its_longest_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    long = LINE | {"predicted": ["x" * 100] * 900, "warnings": ["odd"]}
    path.write_bytes(embedding.encoded(Image.new("RGB", (40, 30)), "jpeg", [long]))
    (line,) = embedding.read(path)
    assert line["predicted"] is None and line["warnings"] == ["odd"] and line["method"] == "gradcam"


def damaged(data: bytes) -> bytes:
    return data.replace(b'"schema": 2', b'"schema": [')


HOSTILE: dict[str, tuple[Any, str]] = {
    "empty": (b"", "a.png"),
    "no picture": (b"hello", "not an image"),
    "an older line": (lambda data: data.replace(b'"schema": 2', b'"schema": 1'), "schema"),
    "cut off": (lambda data: data[:60], "a.png"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_picture_of_camkit_is_one_line(tmp_path: Path, case: str) -> None:
    import zlib

    change, message = HOSTILE[case]
    path = tmp_path / "a.png"
    data = embedding.encoded(Image.new("RGB", (40, 30)), "png", [LINE])
    data = change if isinstance(change, bytes) else change(data)
    at = data.find(b"tEXt")
    if at > 0:  # with the checksum of what was changed
        size = int.from_bytes(data[at - 4 : at], "big")
        end = at + 4 + size
        data = data[:end] + zlib.crc32(data[at:end]).to_bytes(4, "big") + data[end + 4 :]
    path.write_bytes(data)
    with pytest.raises(CamkitError, match=message) as caught:
        embedding.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "told", ["{", "[" * 100_000, "[]", "3", '{"schema": 2}', json.dumps(LINE | {"map_key": 3})]
)
def test_a_picture_that_tells_nonsense(tmp_path: Path, told: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("camkit", told)
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    with pytest.raises(ImageError, match=r"tells of itself"):
        embedding.read(path)


def test_a_picture_of_others_tells_nothing(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        with pytest.raises(CamkitError, match="does not tell how it was made"):
            embedding.read(tmp_path / name)


def command(**changes: Any) -> str:
    """The command of a line, without what is always there."""
    line = dict.fromkeys(embedding.FIELDS) | LINE | changes
    told = repeating.command([line])
    assert told.startswith("camkit explain 'cats/my cat.jpg' ")
    return told.removeprefix("camkit explain 'cats/my cat.jpg' ")


def test_the_command_that_makes_a_picture_again() -> None:
    assert command() == (
        "--backend native --method gradcam --class 'Norwegische Waldkatze 猫' --layer layer4 "
        "-o reduction=mean"
    )
    look = Style(look="contour", relu=True, alpha=0.5, scale="run", size=300, caption=False)
    assert command(picture=dataclasses.asdict(look), options={}).endswith(
        "--layer layer4 --look contour --relu --alpha 0.5 --image-size 300 --scale 2.0 --no-caption"
    )
    assert command(picture=dataclasses.asdict(Style(cells=True))).endswith(" --cells")
    assert "--class 4 " in command(class_name="top:3")  # which would mean something else
    assert "--class 4 " in command(map_key="native.gradcam.Norwegische_Waldkatze_猫-4")  # one of two
    said = {"size": [160, 224], "mean": [0.5, 0.5, 0.5], "classes": ["a", "b"], "arch": "timm:resnet18"}
    assert command(model_spec="w.pth", model_facts=said).startswith(
        "--model w.pth --arch timm:resnet18 --size 160x224 --mean 0.5,0.5,0.5 --classes a,b --backend"
    )
    assert repeating.lacks([LINE | {"model_facts": {"classes": 1000}, "model_spec": "w.pth"}])
    assert repeating.lacks([LINE]) is None
    two = [dict.fromkeys(embedding.FIELDS) | LINE | {"image_path": name} for name in ("a.jpg", "b.jpg")]
    assert repeating.command([*two, two[0]]).startswith("camkit explain a.jpg b.jpg --backend")
    assert "camkit.sheet" in str(repeating.lacks(two))


# --- to switch between ----------------------------------------------------------------------------


def small(classes: tuple[str, ...]) -> LoadedModel:
    return LoadedModel(SmallNet(len(classes)).eval(), classes, Preprocess(size=(24, 24)), "small")


def told(page: str) -> Any:
    """The data in the page of a view."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_a_view_holds_the_maps_of_a_photograph_and_asks_nobody_for_anything(tmp_path: Path) -> None:
    model = small(("newt", "</script><img src=x>", "猫"))
    image = Image.effect_noise((60, 40), 90).convert("RGB")
    results = [
        result
        for method in ("gradcam", "activations")
        for result in camkit.explain_many(model, [image], target=model.classes, method=method)
    ]
    view = camkit.view(results)
    data = told(view.page)
    assert [(one["class"], one["way"].split()[0]) for one in data["maps"]] == [
        (result.class_name, result.method) for result in results
    ]
    for one, result in zip(data["maps"], results, strict=True):
        values = np.frombuffer(base64.b64decode(one["values"]), dtype="<f4").reshape(one["h"], one["w"])
        assert np.array_equal(values, result.map.numpy())
        assert one["speaks"] == (result.method == "gradcam")
    # The view is the middle square of the photograph, which is enlarged fourfold.
    assert data["maps"][0]["box"] == pytest.approx([40, 0, 200, 160])
    assert "<img" not in view.page and view.page.count("</script>") == 2
    assert "http" not in re.sub(r'content="[^"]*"|http-equiv', "", view.page)
    view.save(tmp_path / "view.html")
    assert (tmp_path / "view.html").read_text("utf-8") == view.page
    assert html.unescape(view._repr_html_()).count(view.page) == 1


def test_a_view_is_of_one_photograph() -> None:
    model = small(("newt", "cat", "dog"))
    images = [Image.new("RGB", (30, 30), colour) for colour in ("red", "blue")]
    with pytest.raises(UsageError, match=r"of one photograph; of several `camkit\.sheet`"):
        camkit.view(camkit.explain_many(model, images))
    with pytest.raises(UsageError, match="at least one"):
        camkit.view([])


@pytest.mark.slow
def test_a_view_in_a_browser_draws_what_the_pictures_show(tmp_path: Path) -> None:
    """Pixel by pixel, but for the photograph's JPEG: a grey one, which that leaves as it is."""
    model = small(("newt", "cat", "dog"))
    torch.manual_seed(0)
    image = Image.new("RGB", (300, 200), GREY)
    results = [
        dataclasses.replace(result, map=torch.randn(5, 5))
        for result in camkit.explain_many(model, [image], target=["newt", "dog"])
    ]
    camkit.view(results).save(tmp_path / "view.html")
    with browser.launched() as chromium, browser.opened(chromium, tmp_path / "view.html") as page:
        for result in results:
            assert page.inner_text("#head") == f"{result.class_name} {result.figure}"
            canvas = page.evaluate("() => document.getElementById('picture').toDataURL('image/png')")
            seen = numbers(Image.open(io.BytesIO(base64.b64decode(canvas.partition(",")[2]))))
            expected = numbers(result.overlay(caption=False))
            off = np.abs(seen - expected).max(axis=2)
            off[:, [49, 250]] = 0  # the line around what the model saw
            assert off.max() <= 2
            page.focus("#picture")
            page.keyboard.press("ArrowRight")
        assert page.inner_text("#head").startswith("newt")


@pytest.mark.parametrize(
    ("low", "high"), [(-0.01, 1.0), (-1.0, 0.01), (-0.5, 0.5), (0.0, 1.0), (-1.0, 0.0)]
)
def test_a_bar_has_the_values_of_both_ends_and_zero_beside_them(low: float, high: float) -> None:
    full, words, width = max(-low, high), ("speaks against", "speaks for"), 500
    legend = Legend(Scale(-full, full, "signed"), low, high, words)
    zero = round(-low / (high - low) * (width - 1))
    labels = caption._labels(legend, (0, width), zero, 14)
    told = " ".join(label for _, label in labels).split()
    assert "0" in told and all(caption.shown(end) in told for end in (low, high))
    places = sorted((begin, begin + text.width(label, 14)) for begin, label in labels)
    assert places[0][0] >= 0 and places[-1][1] <= width
    assert all(end < begin for (_, end), (begin, _) in pairwise(places))
