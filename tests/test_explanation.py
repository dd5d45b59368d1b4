"""Photographs in, explanations out."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import camkit
from camkit.contracts.model import LoadedModel
from camkit.drawing.evidence import Scale
from camkit.errors import ImageError, MapError, ModelError, TargetError, UsageError
from camkit.explaining import embedding, repeating, stored_maps
from camkit.explaining.explanation import Explanation
from camkit.explaining.pipeline import stream
from camkit.explaining.plan import make_backends, plan
from camkit.images.decoding import sample
from camkit.images.workers import Failure

CLASSES = ("red", "green", "blue")


@pytest.fixture
def colours() -> LoadedModel:
    """Scores are the mean of each colour channel: the map of a class is where its colour is."""
    model = nn.Sequential(
        nn.Conv2d(3, 3, 8, stride=8, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)
    )
    model[0].weight.data = torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8) / 64
    model[3].weight.data = 4 * torch.eye(3)
    model[3].bias.data.zero_()
    preprocess = camkit.Preprocess(size=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return LoadedModel(model.eval(), CLASSES, preprocess, name="colours", default_layer="0")


def picture(colour: str, corner: str) -> Image.Image:
    """Black, with a quarter in one colour at the top left or the bottom right."""
    image = Image.new("RGB", (32, 32))
    image.paste(colour, (0, 0, 16, 16) if corner == "top left" else (16, 16, 32, 32))
    return image


def test_the_map_is_where_the_evidence_is(colours: LoadedModel) -> None:
    image = Image.new("RGB", (32, 32))
    image.paste("red", (0, 0, 16, 16))
    image.paste("blue", (16, 16, 32, 32))
    red = camkit.explain(colours, image, target="red")
    blue = camkit.explain(colours, image, target="blue")
    assert red.map[:2, :2].min() > red.map[2:, 2:].max()
    assert blue.map[2:, 2:].min() > blue.map[:2, :2].max()
    pixels = np.asarray(red.overlay(look="lesson", alpha=1.0)).astype(int).sum(2)
    assert pixels[4, 4] > pixels[28, 28]


def test_what_an_explanation_says(colours: LoadedModel) -> None:
    result = camkit.explain(colours, picture("#00ff00", "top left"))
    assert (result.class_name, result.class_index) == ("green", 1)
    assert (result.predicted_name, result.predicted_index) == ("green", 1)
    assert result.logit == pytest.approx(1.0)  # 4 times a mean of 0.25
    assert result.probability == pytest.approx(torch.tensor([0.0, 1.0, 0.0]).softmax(0)[1].item())
    assert result.top[0][0] == "green" and len(result.top) == 3
    assert (result.backend, result.method, result.layer) == ("native", "gradcam", "0")
    assert result.map.shape == (4, 4) and result.map.dtype == torch.float32
    assert result.options["reduction"] == "sum"
    assert result.warnings == ()


def test_options_and_methods_are_passed_on(colours: LoadedModel) -> None:
    image = picture("red", "top left")
    summed = camkit.explain(colours, image, target="red")
    mean = camkit.explain(colours, image, target="red", reduction="mean")
    torch.testing.assert_close(summed.map, 3 * mean.map)
    assert camkit.explain(colours, image, method="activations").method == "activations"


def test_a_constant_map_is_said_to_be_constant(colours: LoadedModel) -> None:
    result = camkit.explain(colours, Image.new("RGB", (32, 32), "white"))
    assert "constant" in result.warnings[0]


def test_many_in_order_and_a_batch_at_a_time(colours: LoadedModel) -> None:
    taken = 0

    def pictures() -> Iterator[Image.Image]:
        nonlocal taken
        for name in ("red", "#00ff00", "blue", "red", "blue"):
            taken += 1
            yield picture(name, "top left")

    results = camkit.explain_many(colours, pictures(), batch_size=2)
    assert next(results).class_name == "red"
    assert taken == 2
    assert [r.class_name for r in results] == ["green", "blue", "red", "blue"]


def test_batches_do_not_change_the_maps(colours: LoadedModel) -> None:
    pictures = [picture(c, "top left") for c in ("red", "blue", "#00ff00")]
    together = list(camkit.explain_many(colours, pictures, batch_size=3))
    alone = [camkit.explain(colours, p) for p in pictures]
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.map, b.map)


def test_a_bad_file_costs_only_itself(colours: LoadedModel, tmp_path: Path) -> None:
    good = tmp_path / "good.png"
    picture("red", "top left").save(good)
    bad = tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:60])
    results = list(stream(plan(colours), [good, bad, good], batch_size=2))
    assert [type(r).__name__ for r in results] == ["Explanation", "Failure", "Explanation"]
    assert [r.position for r in results] == [0, 1, 2]
    assert isinstance(results[1], Failure) and "bad.png" in str(results[1].error)
    with pytest.raises(ImageError, match=r"bad\.png"):
        list(camkit.explain_many(colours, [good, bad]))
    with pytest.raises(ImageError, match=r"missing\.png"):
        camkit.explain(colours, tmp_path / "missing.png")


def test_a_map_that_is_not_finite_costs_only_its_photograph(colours: LoadedModel) -> None:
    class Burning(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            red = x[:, :1].amax((2, 3), keepdim=True) > 0.1
            return torch.where(red, torch.nan, x)

    colours.module[0] = nn.Sequential(colours.module[0], Burning())
    red, blue = picture("red", "top left"), picture("blue", "top left")
    results = list(stream(plan(colours), [blue, red, blue]))
    assert [type(r).__name__ for r in results] == ["Explanation", "Failure", "Explanation"]
    with pytest.raises(MapError, match="NaN"):
        camkit.explain(colours, red)


def test_several_classes_methods_and_layers_of_one_photograph(colours: LoadedModel) -> None:
    work = plan(colours, classes=["pred", "top:2", "blue"], methods=["gradcam", "activations"], layer=["0"])
    results = list(stream(work, [picture("red", "top left")]))
    # pred is red, top:2 is red and one of the others; nothing is explained twice.
    names = [(r.method, r.class_name) for r in results if not isinstance(r, Failure)]
    assert names[0] == ("gradcam", "red")
    assert len(names) == len(set(names)) and ("activations", "blue") in names


def test_methods_and_options_go_to_the_backends_that_have_them(other_backend: str) -> None:
    methods = ["activations", "gradcam", "extra"]
    options = {"reduction": "mean", "size": "3"}
    native, other = make_backends(["native", other_backend, "native"], methods, options)
    assert (native.name, native.methods) == ("native", ("activations", "gradcam"))
    assert (other.name, other.methods) == ("other", ("gradcam", "extra"))
    assert native.explainer.options.reduction == "mean"
    assert not hasattr(native.explainer.options, "size")
    assert (other.explainer.options.reduction, other.explainer.options.size) == ("mean", 3)


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (["gradcam", "nothing"], {}, "native and other .*'nothing'"),
        (["extra"], {}, "native .*'extra'"),
        (["gradcam"], {"nothing": "1"}, "option 'nothing'"),
        (["gradcam"], {"size": "big"}, "size of other .*int.*'big'"),
    ],
)
def test_what_no_backend_has(
    other_backend: str, methods: list[str], options: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_backends(["native", other_backend], methods, options)


def test_two_backends_side_by_side(colours: LoadedModel, other_backend: str) -> None:
    work = plan(colours, backends=["native", other_backend], options={"size": 2})
    native, other = stream(work, [picture("red", "top left")])
    assert isinstance(native, Explanation) and isinstance(other, Explanation)
    assert (native.backend, other.backend) == ("native", "other")
    torch.testing.assert_close(other.map, native.map + 1)
    assert other.options["size"] == 2 and "size" not in native.options


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"method": ["gradcam", "layercam"]},
            r"method .*\['gradcam', 'layercam'\]",
        ),
        ({"backend": ("native",)}, "backend .*'native'"),
        ({"layer": ["conv"]}, "layer .*'conv'"),
        ({"layer": "*"}, r"'\*'.*several"),
    ],
)
def test_one_map_for_one_photograph(colours: LoadedModel, asked: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        camkit.explain(colours, sample(), **asked)


def difference(scores: Tensor) -> Tensor:
    return scores[:, 0] - scores[:, 1]


def test_a_function_as_target(colours: LoadedModel) -> None:
    image = picture("red", "top left")
    result = camkit.explain(colours, image, target=difference)
    inputs = colours.preprocess(image)[None]
    expected = camkit.maps(colours.module, inputs, difference, layer="0")
    torch.testing.assert_close(result.map, expected[0])
    assert (result.class_index, result.class_name, result.probability) == (None, "difference", None)
    assert result.logit == pytest.approx(difference(colours.module(inputs)).item(), abs=1e-5)
    # Nothing is known of classes, and nothing is said of them.
    assert (result.predicted, result.predicted_index, result.predicted_name, result.top) == (
        (),
        None,
        None,
        (),
    )
    assert result.verdict() == f"difference {result.logit:.4g}"
    assert result.caption().startswith(f"difference {result.logit:.4g} · native gradcam at 0")
    assert "difference" in result._repr_html_()


def test_functions_by_their_names(colours: LoadedModel) -> None:
    class Output:
        """As the targets of pytorch-grad-cam."""

        def __call__(self, scores: Tensor) -> Tensor:
            return scores[..., 2]

    images = [picture("red", "top left"), picture("blue", "top left")]
    functions = {"red - green": difference, "blue": Output()}
    found = list(camkit.explain_many(colours, images, target=functions))
    assert [one.class_name for one in found] == ["red - green", "blue"] * 2
    blue = list(camkit.explain_many(colours, images, target="blue"))
    for one, other in zip(found[1::2], blue, strict=True):
        torch.testing.assert_close(one.map, other.map)
    names = {Output(): "Output", partial(difference): "difference", lambda scores: scores[:, 0]: "function"}
    for function, name in names.items():
        assert camkit.explain(colours, images[0], target=function).class_name == name
    with pytest.raises(TargetError, match=r"\[B\]"):
        camkit.explain(colours, images[0], target=lambda scores: scores)
    for several in ("all", "top:2"):
        with pytest.raises(UsageError, match=f"target is a single one here, not '{several}'"):
            camkit.explain(colours, images[0], target=several)
    with pytest.raises(UsageError, match="target is a single one here, not 2"):
        camkit.explain(colours, images[0], target=functions)
    for wrong, text in (({}, "empty"), ([], "empty"), ({"red": 0}, r"\{'red': 0\}")):
        with pytest.raises(UsageError, match=text):
            list(camkit.explain_many(colours, images, target=wrong))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="a function for all is target="):
        list(camkit.explain_many(colours, images, targets=[difference] * 2))  # type: ignore[list-item]


def test_wrong_requests(colours: LoadedModel) -> None:
    image = picture("red", "top left")
    with pytest.raises(TargetError, match="'grean': it has red, green, blue"):
        camkit.explain(colours, image, target="grean")
    with pytest.raises(TargetError, match="0 to 2"):
        camkit.explain(colours, image, target=3)
    with pytest.raises(UsageError, match=r"alpha.* 2"):
        camkit.explain(colours, image).overlay(alpha=2)
    with pytest.raises(UsageError, match=r"original or model.*'side'"):
        camkit.explain(colours, image).overlay(view="side")
    with pytest.raises(UsageError, match=r"batch.*at least 1"):
        list(stream(plan(colours), [image], batch_size=0))


def test_a_model_with_too_few_class_names(colours: LoadedModel) -> None:
    short = LoadedModel(colours.module, CLASSES[:2], colours.preprocess, "short", default_layer="0")
    with pytest.raises(ModelError, match=r"2 classes.* 3"):
        camkit.explain(short, picture("red", "top left"))


def test_pictures_for_files_and_notebooks(colours: LoadedModel, tmp_path: Path) -> None:
    result = camkit.explain(colours, picture("red", "top left"))
    result.save(tmp_path / "out.png", view="original", relu=True)
    with Image.open(tmp_path / "out.png") as saved:
        assert saved.width == 320 and saved.height > 256  # tiny, so enlarged, and with a caption
    assert result._repr_png_().startswith(b"\x89PNG")
    assert "<figcaption>" in result._repr_html_() and "red" in result._repr_html_()


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
def test_a_saved_picture_tells_how_it_was_made(colours: LoadedModel, tmp_path: Path, suffix: str) -> None:
    image = tmp_path / "photo.png"
    picture("red", "top left").save(image)
    result = camkit.explain(colours, image, target="red")
    result.save(tmp_path / f"out{suffix}", look="spotlight", relu=True)
    (line,) = embedding.read(tmp_path / f"out{suffix}")
    assert (line["class_name"], line["map_shape"]) == ("red", list(result.map.shape))
    assert line["map_sha256"] == stored_maps.map_digest(result.map.numpy())
    assert line["full_scale"] == pytest.approx(float(result.map.max()))
    told = repeating.command([line])
    assert f"{image} --model MODEL" in told and told.endswith("--look spotlight --relu")
    said = str(repeating.lacks([line]))
    assert "of Python" in said and "--size" in said  # the model is an object, and may have been told things
    result.save(tmp_path / "together.png", together=Scale(-9.0, 9.0, "signed", shared=True))
    assert embedding.read(tmp_path / "together.png")[0]["full_scale"] == 9
    with pytest.raises(UsageError, match="scale run is of a folder"):
        result.save(tmp_path / "run.png", scale="run")
    result.save(tmp_path / "out.bmp")
    with pytest.raises(UsageError, match="no suffix"):
        result.save(tmp_path / "out")


def test_a_saved_sheet_tells_how_its_maps_were_made(colours: LoadedModel, tmp_path: Path) -> None:
    for name in ("one", "two"):
        picture("red", "top left").save(tmp_path / f"{name}.png")
    photographs = [tmp_path / f"{name}.png" for name in ("one", "two")]
    results = list(camkit.explain_many(colours, photographs, targets=["red", "green"]))
    made = camkit.sheet(results, relu=True)
    for name in ("out.png", "out.webp", "out.jpg"):
        made.save(tmp_path / name)
        lines = embedding.read(tmp_path / name)
        assert [line["class_name"] for line in lines] == ["red", "green"]
        assert [line["map_sha256"] for line in lines] == [
            stored_maps.map_digest(result.map.numpy()) for result in results
        ]
        most = max(float(result.map.max()) for result in results)
        assert [line["full_scale"] for line in lines] == pytest.approx([most, most])
        told = repeating.command(lines)
        assert told.startswith(f"camkit explain {photographs[0]} {photographs[1]} ")
        assert told.endswith(" --class red --class green --layer 0 --relu")
    with Image.open(tmp_path / "out.png") as saved:
        assert saved.tobytes() == made.tobytes()
    for plain in (made.copy(), made.rotate(90)):  # another picture, which does not tell of this one
        assert type(plain) is Image.Image
    made.save(tmp_path / "small.jpg", quality=10)  # as Pillow does it
    assert (tmp_path / "small.jpg").stat().st_size < (tmp_path / "out.jpg").stat().st_size / 2
    with pytest.raises(UsageError, match="no suffix"):
        made.save(tmp_path / "out")


def test_class_names_are_escaped_in_notebooks(colours: LoadedModel) -> None:
    evil = LoadedModel(
        colours.module, ("<script>", "b", "c"), colours.preprocess, "evil", default_layer="0"
    )
    assert "<script>" not in camkit.explain(evil, picture("red", "top left"))._repr_html_()


@pytest.fixture(scope="module")
def imagenet() -> LoadedModel:
    return camkit.load_model("imagenet", device="cpu")


def test_the_sample_photograph_is_a_cat(imagenet: LoadedModel) -> None:
    result = camkit.explain(imagenet, sample())
    assert result.predicted_name in ("tabby", "tiger cat", "Egyptian cat")
    assert result.map.shape == (7, 7)
    assert result.overlay(look="lesson").size == (224, 224)
    assert result.overlay(caption=False).size == result.photo.image.size
    assert result.overlay().width == result.photo.image.width


def test_counterfactual_and_rectified_pictures_differ(imagenet: LoadedModel) -> None:
    result = camkit.explain(imagenet, sample(), target="goldfish")
    assert result.map.min() < 0 < result.map.max()
    pictures: list[Any] = [result.overlay(), result.overlay(relu=True), result.overlay(counterfactual=True)]
    assert len({p.tobytes() for p in pictures}) == 3


def test_a_picture_can_be_drawn_on_a_scale_that_is_given(imagenet: LoadedModel, tmp_path: Path) -> None:
    result = camkit.explain(imagenet, sample())
    full = float(result.map.abs().max())
    assert result.overlay(caption=False, scale=full).tobytes() == result.overlay(caption=False).tobytes()
    result.save(tmp_path / "weak.png", caption=False, scale=1000 * full)
    weak = np.asarray(Image.open(tmp_path / "weak.png")).astype(int)
    plain = np.asarray(result.overlay(caption=False, alpha=0)).astype(int)
    assert np.abs(weak - plain).max() <= 2, "next to nothing on such a scale"


def test_on_pets_the_heat_lies_on_the_head_more_often_than_not(pets: Path, imagenet: LoadedModel) -> None:
    """Energy within the head box against the box's share of the picture: the map must beat chance."""
    import xml.etree.ElementTree as ElementTree

    better = total = 0
    photos = sorted((pets / "images").glob("*_1*.jpg"))[::16]
    for result in camkit.explain_many(imagenet, photos):
        xml = pets / "annotations" / "xmls" / f"{Path(result.photo.source).stem}.xml"
        box = [float(e.text) for e in ElementTree.parse(xml).find(".//bndbox")]  # type: ignore[arg-type, union-attr]
        left, top, right, bottom = result.model.preprocess.box(*result.photo.image.size)
        x = (torch.arange(7) + 0.5) / 7 * (right - left) + left
        y = (torch.arange(7) + 0.5) / 7 * (bottom - top) + top
        inside = ((x > box[0]) & (x < box[2]))[None, :] & ((y > box[1]) & (y < box[3]))[:, None]
        energy = result.map.clamp(min=0)
        total += 1
        better += float((energy * inside).sum() / energy.sum()) > float(inside.float().mean())
    assert total > 10 and better / total > 0.75
