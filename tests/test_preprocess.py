"""Preprocessing equals the libraries' own, and `box` says truly what the model sees."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config
from torchvision import transforms
from torchvision.models import ResNet34_Weights
from torchvision.transforms.v2 import InterpolationMode, functional

from camkit.errors import ImageError, ModelError
from camkit.images.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

# Width and height: landscape, portrait, smaller than the crop, square, exactly the crop, a strip.
SIZES = [(301, 200), (213, 334), (97, 131), (130, 61), (259, 259), (224, 224), (12, 401)]


def photo(width: int, height: int) -> Image.Image:
    """Noise, in which every pixel of a shift or another filter shows."""
    generator = np.random.default_rng(width * height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def of_timm(config: dict[str, Any]) -> Preprocess:
    """The same preprocessing as a data configuration of timm."""
    size = config["input_size"][1:]
    return Preprocess(
        size=tuple(size),
        resize=math.floor(min(size) / config["crop_pct"]),
        fit="squash" if config["crop_mode"] == "squash" else "crop",
        interpolation=config["interpolation"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def assert_same(preprocess: Preprocess, transform: Any) -> None:
    """Equal to float rounding on every size of photograph."""
    for size in SIZES:
        found, expected = preprocess(photo(*size)), transform(photo(*size))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6, msg=lambda m, s=size: f"{s}: {m}")


# --- against the libraries ------------------------------------------------------------------------


def test_the_default_with_a_margin_is_torchvisions_transform() -> None:
    assert_same(Preprocess(resize=256), ResNet34_Weights.DEFAULT.transforms())


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
def test_every_interpolation_is_torchvisions(interpolation: Any) -> None:
    chain = [
        transforms.Resize(72, transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop((64, 51)),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    preprocess = Preprocess(size=(64, 51), resize=72, interpolation=interpolation)
    assert_same(preprocess, transforms.Compose(chain))


def test_a_model_of_timm_with_a_centre_crop() -> None:
    config = resolve_model_data_config(timm.create_model("tf_efficientnet_lite0", pretrained=False))
    assert config["crop_mode"] == "center"
    assert_same(of_timm(config), create_transform(**config))


@pytest.mark.parametrize(
    "name",
    [
        "convnext_tiny.in12k_ft_in1k_384",  # the whole photograph
        "dm_nfnet_f0.dm_in1k",  # with a margin of a tenth
        "vit_base_patch16_sapiens2.fb",  # not square
    ],
)
def test_models_of_timm_that_squash(name: str) -> None:
    pretrained = timm.get_pretrained_cfg(name)
    if pretrained is None:
        pytest.skip(f"this timm has no {name}")
    config = resolve_data_config(pretrained_cfg=pretrained.to_dict())
    assert config["crop_mode"] == "squash"
    assert_same(of_timm(config), create_transform(**config))


@pytest.mark.parametrize("filter", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [(301, 203), (45, 37), (97, 331)])
def test_bytes_are_resized_as_torch_resizes_them(size: tuple[int, int], filter: str) -> None:
    """As image processors of transformers do: to the bit, where torch has its kernel for bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    bytes_ = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
    most = 0 if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") else 1
    for height, width in ((64, 64), (224, 191), (size[1], 60), (37, size[0])):
        preprocess = Preprocess(
            size=(height, width), fit="squash", interpolation=filter, rounding="transformers"
        )
        found = np.asarray(preprocess.view(Image.fromarray(pixels)))
        mode = InterpolationMode("nearest-exact" if filter == "nearest" else filter)
        try:
            expected = functional.resize(bytes_, [height, width], mode, antialias=True)
        except NotImplementedError:
            pytest.skip(f"this torchvision has no {filter} for tensors")
        assert np.abs(found.astype(int) - expected.permute(1, 2, 0).numpy()).max() <= most


def test_crops_of_transformers_are_rounded_down() -> None:
    assert Preprocess(size=(4, 4), resize=4).box(11, 4) == (4, 0, 8, 4)
    assert Preprocess(size=(4, 4), resize=4, rounding="transformers").box(11, 4) == (3, 0, 7, 4)
    small = Preprocess(size=(6, 6), fit="none", rounding="transformers")
    assert small.box(3, 11) == (-1, 2, 5, 8)


# --- by hand --------------------------------------------------------------------------------------


def test_values_are_scaled_and_normalised() -> None:
    preprocess = Preprocess(size=(2, 3), mean=(0.2, 0.0, 0.5), std=(1.0, 0.5, 0.25))
    found = preprocess(Image.new("RGB", (6, 4), (51, 255, 0)))
    assert (found.dtype, found.shape) == (torch.float32, (3, 2, 3))
    expected = torch.tensor([0.0, 2.0, -2.0])[:, None, None].expand(3, 2, 3)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("fit", "resize"),
    [
        *(("crop", None), ("crop", 70), ("squash", None), ("squash", 70), ("squash", (64, 90))),
        *(("crop-first", None), ("crop-first", (80, 70)), ("pad", None), ("pad", (80, 70)), ("none", None)),
    ],
)
def test_the_view_has_the_size_of_the_model(size: tuple[int, int], fit: Any, resize: Any) -> None:
    preprocess = Preprocess(size=(64, 48), resize=resize, fit=fit)
    view = preprocess.view(photo(*size))
    assert view.size == (48, 64)
    assert torch.equal(preprocess.tensor(view), preprocess(photo(*size)))


BOXES = {
    "a crop from the middle": ({"size": (2, 2), "resize": 4}, (8, 4), (3, 1, 5, 3)),
    "the same at half the scale": ({"size": (2, 2), "resize": 4}, (16, 8), (6, 2, 10, 6)),
    "a portrait": ({"size": (2, 2), "resize": 4}, (4, 8), (1, 3, 3, 5)),
    "no margin": ({"size": (4, 4)}, (12, 6), (3, 0, 9, 6)),
    "no margin, another shape": ({"size": (4, 8)}, (8, 8), (0, 2, 8, 6)),
    "squashed": ({"size": (4, 8), "fit": "squash"}, (100, 30), (0, 0, 100, 30)),
    "squashed with a margin": (
        {"size": (8, 8), "resize": 10, "fit": "squash"},
        (20, 40),
        (2, 4, 18, 36),
    ),
    "squashed with a margin, another shape": (
        {"size": (8, 16), "resize": 10, "fit": "squash"},
        (20, 10),
        (2, 1, 18, 9),
    ),
    "half a pixel is rounded to an even one": ({"size": (3, 3), "resize": 4}, (4, 4), (0, 0, 3, 3)),
    "one and a half as well": ({"size": (3, 3), "resize": 6}, (6, 6), (2, 2, 5, 5)),
    "padded at both sides": ({"size": (4, 8), "resize": 4}, (5, 5), (-2.5, 0, 7.5, 5)),
    "padded by an odd number": ({"size": (4, 7), "resize": 4}, (4, 4), (-1, 0, 6, 4)),
    "cut first": ({"size": (4, 4), "fit": "crop-first"}, (11, 6), (2, 0, 8, 6)),
    "cut first, in whole pixels": ({"size": (4, 6), "fit": "crop-first"}, (7, 8), (0, 2, 7, 6)),
    "cut first, with a margin": (
        {"size": (2, 2), "resize": (4, 4), "fit": "crop-first"},
        (12, 6),
        (4.5, 1.5, 7.5, 4.5),
    ),
    "padded to a square": ({"size": (4, 4), "fit": "pad"}, (11, 6), (0, -2, 11, 9)),
    "the middle as it is": ({"size": (4, 5), "fit": "none"}, (10, 3), (2, -1, 7, 3)),
    "squashed to a size": ({"size": (4, 4), "resize": (8, 6), "fit": "squash"}, (12, 8), (2, 2, 10, 6)),
    "resampled afterwards": (
        {"size": (3, 3), "presize": (4, 4), "resize": 8},
        (16, 8),
        (6, 2, 10, 6),
    ),
    "crop": ({"size": (4, 4), "resize": 8}, (2, 2), (0.5, 0.5, 1.5, 1.5)),
}


@pytest.mark.parametrize("case", BOXES)
def test_the_box_by_hand(case: str) -> None:
    config, size, expected = BOXES[case]
    assert Preprocess(**config).box(*size) == pytest.approx(expected)


def gradient(width: int, height: int) -> Image.Image:
    """Red is the column plus ten, green the row plus ten; blue is full, so that padding shows."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x + 10, y + 10, np.full_like(x, 255)], axis=2).astype(np.uint8))


@pytest.mark.parametrize("seed", range(40))
def test_the_box_predicts_where_every_pixel_of_the_view_comes_from(seed: int) -> None:
    draw = np.random.default_rng(seed)
    height, width = draw.integers(9, 33, 2).tolist()
    preprocess = Preprocess(
        size=(height, width),
        resize=None if seed % 4 == 0 else min(height, width) + int(draw.integers(0, 9)),
        fit="squash" if seed % 4 == 1 else "crop",
        **PLAIN,
    )
    image = gradient(*draw.integers(60, 240, 2).tolist())
    left, top, right, bottom = preprocess.box(*image.size)
    view = np.asarray(preprocess.view(image)).astype(float)
    x = left + (np.arange(width) + 0.5) / width * (right - left)
    y = top + (np.arange(height) + 0.5) / height * (bottom - top)

    inside = ((x > 0) & (x < image.width))[None, :] & ((y > 0) & (y < image.height))[:, None]
    assert np.array_equal(view[..., 2] > 0, inside)  # what lies beyond the photograph is black
    # Near the border the filter of a downscale leans inwards, so only the rest is compared.
    for found, place, length in (
        (view[..., 0], x[None, :], image.width),
        (view[..., 1], y[:, None], image.height),
    ):
        reach = 2 * max((right - left) / width, (bottom - top) / height)
        sure = inside & (place > reach) & (place < length - reach)
        assert sure.any()
        assert np.abs(found - (place + 10 - 0.5))[sure].max() <= 0.75


@pytest.mark.parametrize("fit", ["crop-first", "pad", "none"])
@pytest.mark.parametrize("seed", range(6))
def test_the_box_of_what_is_cut_or_added_first(seed: int, fit: Any) -> None:
    draw = np.random.default_rng(seed)
    height, width = draw.integers(20, 40, 2).tolist()
    resize = None if fit == "none" or seed % 2 else (height + 3, width + 8)
    preprocess = Preprocess(size=(height, width), resize=resize, fit=fit, **PLAIN)
    image = gradient(*draw.integers(25, 240, 2).tolist())
    left, top, right, bottom = preprocess.box(*image.size)
    view = np.asarray(preprocess.view(image)).astype(float)
    step = (right - left) / width, (bottom - top) / height
    x = (left + (np.arange(width) + 0.5) * step[0])[None, :]
    y = (top + (np.arange(height) + 0.5) * step[1])[:, None]
    assert step[0] == pytest.approx(step[1], rel=0.1)  # whole pixels, but nothing is squashed
    # A step from all borders no filter mixes inside and outside.
    within = (x > step[0]) & (x < image.width - step[0]) & (y > step[1]) & (y < image.height - step[1])
    beyond = (x < -step[0]) | (x > image.width + step[0]) | (y < -step[1]) | (y > image.height + step[1])
    assert within.any() and (view[within][:, 2] == 255).all() and (view[beyond] == 0).all()
    for found, place, wide in ((view[..., 0], x, step[0]), (view[..., 1], y, step[1])):
        assert np.abs(found - (place + 10 - 0.5))[within].max() <= 0.5 + wide / 2


# --- as plain data --------------------------------------------------------------------------------

CONFIGS = [
    Preprocess(),
    Preprocess(size=(352, 288), resize=400, interpolation="bicubic"),
    Preprocess(fit="squash", mean=(0.5, 0.4, 0.3), std=(0.1, 1 / 3, 1e-3)),
    Preprocess(fit="squash", resize=(256, 240), presize=(240, 230)),
    Preprocess(fit="pad", padding="reflection"),
    Preprocess(resize=256, rounding="transformers"),
]


@pytest.mark.parametrize("preprocess", CONFIGS)
def test_it_survives_json(preprocess: Preprocess) -> None:
    text = json.dumps(preprocess.to_dict())
    again = Preprocess.from_dict(json.loads(text))
    assert again == preprocess
    assert hash(again) == hash(preprocess)  # tuples, not lists
    assert json.dumps(again.to_dict()) == text


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
def test_what_padding_adds_is_numpys(padding: Any) -> None:
    image = gradient(9, 4)
    mode: Any = {"zeros": "constant", "border": "edge", "reflection": "reflect"}[padding]
    view = Preprocess(size=(14, 13), fit="none", padding=padding).view(image)
    expected = np.pad(np.asarray(image), ((5, 5), (2, 2), (0, 0)), mode)  # farther than its height
    assert np.array_equal(np.asarray(view), expected)
    square = Preprocess(size=(9, 9), fit="pad", padding=padding)
    assert np.array_equal(
        np.asarray(square.view(image)), np.pad(np.asarray(image), ((2, 3), (0, 0), (0, 0)), mode)
    )


def test_padding_a_strip_is_told_before_it_takes_the_memory() -> None:
    with pytest.raises(ImageError, match="60000 x 60000"):
        Preprocess(size=(8, 8), fit="pad").view(Image.new("L", (60_000, 1200)))


def test_views_are_resampled_corner_on_corner() -> None:
    image = Image.new("RGB", (3, 3))
    image.putdata([(0, 0, 0), (51, 0, 0), (102, 0, 0)] * 3)
    preprocess = Preprocess(size=(2, 5), presize=(3, 3), **PLAIN)
    assert preprocess.view(image).size == (3, 3)
    expected = torch.tensor([[0.0, 0.1, 0.2, 0.3, 0.4]]).expand(2, 5)
    torch.testing.assert_close(preprocess(image)[0], expected)


def test_what_older_versions_do_not_know_is_left_out_where_it_says_nothing() -> None:
    assert list(Preprocess().to_dict()) == ["size", "resize", "fit", "interpolation", "mean", "std"]
    assert Preprocess(fit="pad", padding="border").to_dict()["padding"] == "border"


def test_missing_keys_take_their_defaults() -> None:
    assert Preprocess.from_dict({}) == Preprocess()
    assert Preprocess.from_dict({"resize": 256}) == Preprocess(resize=256)


BAD = {
    "an unknown key": ({"sise": [224, 224]}, "['sise']"),
    "one number as size": ({"size": 224}, "cannot be read"),
    "three numbers as size": ({"size": [3, 224, 224]}, "[height, width]"),
    "no numbers as size": ({"size": []}, "[height, width]"),
    "a fraction as size": ({"size": [224.5, 224]}, "cannot be read"),
    "text as size": ({"size": "44"}, "cannot be read"),
    "null as size": ({"size": None}, "cannot be read"),
    "a size of zero": ({"size": [0, 224]}, "between 1 and 8192"),
    "a negative size": ({"size": [224, -1]}, "between 1 and 8192"),
    "an enormous size": ({"size": [224, 10**9]}, "between 1 and 8192"),
    "a resize below the crop": ({"size": [224, 224], "resize": 223}, "crop"),
    "an enormous resize": ({"resize": 10**9}, "absurd"),
    "one length for what is cut first": ({"resize": 256, "fit": "pad"}, "fit=pad"),
    "a resize of what is not resized": ({"resize": [256, 256], "fit": "none"}, "fit=none"),
    "a resize below the crop in one direction": (
        {"resize": [256, 9], "fit": "pad"},
        "crop",
    ),
    "three lengths": ({"resize": [256, 256, 3], "fit": "pad"}, "[height, width]"),
    "another padding": ({"padding": "wrap"}, "unknown padding 'wrap'"),
    "another rounding": ({"rounding": "up"}, "unknown rounding 'up'"),
    "text as grey": ({"grey": "no"}, "grey is true or false"),
    "a number as grey": ({"grey": 1}, "grey is true or false"),
    "four grey channels": ({"grey": True, "mean": [0.5] * 4, "std": [1] * 4}, "false for 4 channels"),
    "null as padding": ({"padding": None}, "unknown padding None"),
    "an enormous presize": ({"presize": [10**9, 9]}, "between 1 and 8192"),
    "one number as presize": ({"presize": 224}, "cannot be read"),
    "a fraction as resize": ({"resize": 256.5}, "cannot be read"),
    "text as resize": ({"resize": "256"}, "cannot be read"),
    "another fit": ({"fit": "cover"}, "unknown fit 'cover'"),
    "null as fit": ({"fit": None}, "unknown fit None"),
    "another interpolation": ({"interpolation": "cubic"}, "interpolation 'cubic'"),
    "a list as interpolation": ({"interpolation": ["bilinear"]}, "interpolation ['bilinear']"),
    "one mean": ({"mean": [0.5]}, "a value for each channel"),
    "four deviations": ({"std": [1, 1, 1, 1]}, "a value for each channel"),
    "a deviation of zero": ({"std": [1, 0, 1]}, "std positive"),
    "a deviation that is no number": ({"std": [1, math.nan, 1]}, "std positive"),
    "an infinite deviation": ({"std": [1, math.inf, 1]}, "must be finite"),
    "a mean that is no number": ({"mean": [0, math.nan, 0]}, "must be finite"),
    "text as mean": ({"mean": ["a", "b", "c"]}, "cannot be read"),
    "a mean beyond all floats": ({"mean": [10**400, 0, 0]}, "cannot be read"),
    "null as mean": ({"mean": None}, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_odd_data_is_a_model_error_that_says_what(case: str) -> None:
    data, expected = BAD[case]
    with pytest.raises(ModelError) as caught:
        Preprocess.from_dict(data)
    assert expected in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_values_given_in_python_are_checked_as_well() -> None:
    with pytest.raises(ModelError, match="crop"):
        Preprocess(size=(224, 224), resize=100)
    with pytest.raises(ModelError, match="a value for each channel"):
        Preprocess(mean=(0.5,))


def test_without_a_margin_a_square_is_cut_as_torchvision_cuts_it() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (335, 500, 3), dtype=np.uint8)
    for image in (Image.fromarray(noise), Image.fromarray(noise).rotate(90, expand=True)):
        theirs = transforms.Compose([transforms.Resize(224), transforms.CenterCrop(224)])(image)
        ours = Preprocess(size=(224, 224)).view(image)
        assert np.array_equal(np.asarray(ours), np.asarray(theirs))
