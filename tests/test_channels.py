"""Photographs of other channels than three: of satellites, of cameras that see depth."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.errors import CamkitWarning, ImageError, ModelError, UsageError
from camkit.images import decoding, finding
from camkit.images.preprocess import Preprocess

# What is assumed of the models is told; here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")

MEAN, STD = (0.1, 0.2, 0.3, 0.4), (0.5, 0.6, 0.7, 0.8)
FOUR = Preprocess(size=(32, 32), resize=40, mean=MEAN, std=STD)


class Net(nn.Module):
    """A small network for photographs of `channels`."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(channels, 8, 3, 2)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.fc(self.conv(images).relu().mean((2, 3)))
        return made


def pixels(channels: int = 4, height: int = 50, width: int = 60) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def state_dict(folder: Path, channels: int = 4) -> Path:
    """A network of torchvision with another stem."""
    from torchvision.models import get_model

    torch.manual_seed(0)
    module = get_model("shufflenet_v2_x0_5", weights=None, num_classes=3)
    module.conv1[0] = nn.Conv2d(channels, 24, 3, 2, 1, bias=False)
    torch.save(module.eval().state_dict(), folder / "w.pth")
    return folder / "w.pth"


# --- what the model sees --------------------------------------------------------------------------


def test_each_channel_is_shown_as_a_grey_photograph_is() -> None:
    """Resized and cropped by itself, with its own mean: by Pillow, a channel at a time."""
    values = pixels(6)
    shown = Preprocess(size=(32, 32), resize=40, mean=(0.5,) * 6, std=(0.25,) * 6)
    found = shown(decoding.load(values, 6).image)
    grey = Preprocess(size=(32, 32), resize=40, mean=(0.5,), std=(0.25,))
    for channel in range(6):
        alone = grey(Image.fromarray(values[:, :, channel]).convert("RGB"))
        torch.testing.assert_close(found[channel], alone[0])


@pytest.mark.parametrize("fit", ["crop", "squash", "pad", "crop-first", "none"])
def test_the_first_three_channels_are_those_of_a_photograph(fit: Any) -> None:
    values = pixels(4)
    facts: dict[str, Any] = {"size": (32, 40), "fit": fit, "padding": "reflection"}
    four = Preprocess(**facts, mean=MEAN, std=STD)(decoding.load(values, 4).image)
    three = Preprocess(**facts, mean=MEAN[:3], std=STD[:3])(Image.fromarray(values[:, :, :3]))
    torch.testing.assert_close(four[:3], three)


@pytest.mark.parametrize("fit", ["crop", "pad"])
def test_fractions_keep_their_precision(fit: Any) -> None:
    values = (np.linspace(0, 1, 64 * 64 * 5) ** 3).reshape(64, 64, 5).astype(np.float32)
    shown = Preprocess(size=(64, 64), fit=fit, padding="border", mean=(0.0,) * 5, std=(1.0,) * 5)
    found = shown(decoding.load(values, 5).image)
    torch.testing.assert_close(found, torch.from_numpy(values).permute(2, 0, 1), atol=1e-6, rtol=0)
    smaller = Preprocess(size=(16, 16), interpolation="bicubic", mean=(0.0,) * 5, std=(1.0,) * 5)
    made = smaller(decoding.load((values > 0.5).astype(np.float64), 5).image)
    assert made.min() >= 0 and made.max() <= 1


def test_bytes_and_fractions_in_one_batch() -> None:
    values = pixels()
    views = [FOUR.view(decoding.load(one, 4).image) for one in (values, values / 255)]
    first, second = FOUR.batch(views)
    torch.testing.assert_close(first, second, atol=0.02, rtol=0)  # bytes are rounded where they are resized


def save(values: NDArray[Any], path: Path, **options: Any) -> Path:
    Image.fromarray(values).save(path, **options)
    return path


FORMS: dict[str, Callable[[Path], Any]] = {
    "an array": lambda folder: pixels(),
    "a tensor": lambda folder: torch.from_numpy(pixels()).permute(2, 0, 1),
    "a picture": lambda folder: Image.fromarray(pixels()),
    "a PNG": lambda folder: save(pixels(), folder / "a.png"),
    "a TIFF": lambda folder: save(pixels(), folder / "a.tif"),
    "a WebP": lambda folder: save(pixels(), folder / "a.webp", lossless=True, exact=True),
    "a compressed TIFF": lambda folder: save(pixels(), folder / "a.tif", compression="tiff_lzw"),
    "an array in a file": lambda folder: (np.save(folder / "a.npy", pixels()), folder / "a.npy")[1],
    "the bytes of a file": lambda folder: save(pixels(), folder / "a.png").read_bytes(),
    "an open file": lambda folder: io.BytesIO(save(pixels(), folder / "a.png").read_bytes()),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_photograph_is_the_same(form: str, tmp_path: Path) -> None:
    model = camkit.LoadedModel(Net().eval(), ("a", "b", "c"), FOUR, "net")
    expected = FOUR(decoding.load(pixels(), 4).image)
    result = camkit.explain(model, FORMS[form](tmp_path), target="b", layer="conv")
    torch.testing.assert_close(FOUR(result.photo.image), expected)
    assert result.map.abs().max() > 0
    drawn = Image.fromarray(pixels()[:, :, :3])
    seen = Preprocess(size=(32, 32), resize=40).view(drawn)
    assert np.array_equal(np.asarray(result.overlay(look="lesson", alpha=0)), np.asarray(seen))
    whole = result.overlay(alpha=0, caption=False, size=max(drawn.size))
    assert whole.size == drawn.size and np.array_equal(np.asarray(whole)[25, 30], pixels()[25, 30, :3])
    assert "pictures show the first 3 of 4 channels" in result.caption()


def test_transparency_is_laid_on_white_for_a_model_of_three_channels() -> None:
    values = np.zeros((9, 9, 4), np.uint8)
    assert np.asarray(decoding.load(values).image).min() == 255
    assert np.asarray(decoding.load(values, 4).image.info["channels"]).max() == 0


def test_two_channels() -> None:
    shown = Preprocess(size=(32, 32), mean=(0.5, 0.5), std=(0.2, 0.2))
    model = camkit.LoadedModel(Net(2).eval(), ("a", "b", "c"), shown, "net")
    values = pixels(2, 32, 32)
    result = camkit.explain(model, values, layer="conv")
    assert np.array_equal(np.asarray(result.overlay(look="lesson", alpha=0)), values[:, :, [0, 0, 0]])
    assert "pictures show the first of 2 channels" in result.caption()


def test_photographs_read_by_processes(tmp_path: Path) -> None:
    model = camkit.LoadedModel(Net().eval(), ("a", "b", "c"), FOUR, "net")
    paths = [save(pixels(), tmp_path / f"{i}.png") for i in range(2)]
    alone = camkit.explain(model, pixels(), layer="conv")
    for result in camkit.explain_many(model, paths, layer="conv", workers=1):
        torch.testing.assert_close(result.map, alone.map)


@pytest.mark.parametrize("pattern", ["*.npy", "**/*.npy", "a.npy"])
def test_arrays_are_found_by_a_glob_and_not_in_a_folder(pattern: str, tmp_path: Path) -> None:
    """Where maps of camkit's may lie."""
    np.save(tmp_path / "a.npy", pixels())
    save(pixels(3), tmp_path / "b.png")
    assert [path.name for path in finding.expand([tmp_path / pattern])] == ["a.npy"]
    assert [path.name for path in finding.expand([tmp_path])] == ["b.png"]
    assert [path.name for path in finding.expand([tmp_path / "*"])] == ["b.png"]


# --- what is refused ------------------------------------------------------------------------------


def png(values: NDArray[Any], mode: str | None = None) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values, mode).save(file, "PNG")
    return file.getvalue()


def tiff(extra: int, bits: int = 8) -> bytes:
    """Four channels, of which the last is what `extra` says, and Pillow does not write."""
    import struct

    height = width = 8
    data = np.full((height, width, 4), 7, np.uint8 if bits == 8 else "<u2").tobytes()
    tags = [
        (256, 3, width), (257, 3, height), (258, 3, [bits] * 4), (259, 3, 1), (262, 3, 2), (273, 4, 0),
        (277, 3, 4), (278, 3, height), (279, 4, len(data)), (338, 3, extra),
    ]  # fmt: skip
    end = 8 + 2 + 12 * len(tags) + 4
    body = struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        if isinstance(value, list):
            body += struct.pack("<HHII", tag, kind, len(value), end)
        elif tag == 273:
            body += struct.pack("<HHII", tag, kind, 1, end + 8)
        else:
            body += struct.pack(
                "<HHIHH" if kind == 3 else "<HHII", *(tag, kind, 1, value), *[0] * (kind == 3)
            )
    return b"II*\0" + struct.pack("<I", 8) + body + bytes(4) + struct.pack("<4H", *[bits] * 4) + data


REFUSED: dict[str, tuple[Any, str]] = {
    "a photograph": (png(pixels(3)), r"has 3 channels, but the model takes 4: give an array \[H, W, 4\]"),
    "a grey one": (png(pixels(1)[:, :, 0]), "has 1 channel, but the model takes 4"),
    "16 bits": (tiff(2, 16), r"does not read as they are \(RGBA;16"),
    "no transparency": (tiff(0), r"does not read as they are \(RGBX\)"),
    "multiplied transparency": (tiff(1), r"does not read as they are \(RGBa\)"),
    "an array of five": (pixels(5), r"is \[50, 60, 5\], but the model takes 4 channels"),
    "an array of channels first": (pixels().transpose(2, 0, 1), r"is \[4, 50, 60\], but the model takes 4"),
    "a flat array": (pixels()[0], r"is \[60, 4\], but the model takes 4"),
    "an empty array": (pixels()[:0], r"is \[0, 60, 4\], but"),
    "a strip": (pixels(4, 1, 99), "no photograph"),
    "counts": (pixels().astype(np.int64) + 1, "has values of int64 from 1 to 256"),
    # Dark ones would pass for bytes.
    "16 bits in an array": (pixels().astype(np.uint16), "has values of uint16: give bytes"),
    "metres": (pixels().astype(np.float32), r"has fractions from 0 to 255, not in \[0, 1\]"),
    "no numbers": (np.full((9, 9, 4), np.nan), "has fractions from nan to nan"),
    "complex": (np.zeros((9, 9, 4), complex), "has values of complex128"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_other_channels_is_refused_in_one_line(case: str) -> None:
    source, message = REFUSED[case]
    with pytest.raises(ImageError, match=message) as caught:
        decoding.load(source, 4)
    assert "\n" not in str(caught.value)


def test_an_array_in_a_file_is_refused_by_the_name_of_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "dark.npy", np.zeros((9, 9, 3), np.uint16))
    with pytest.raises(ImageError, match=r"dark\.npy has values of uint16"):
        decoding.load(tmp_path / "dark.npy")


def test_the_tiff_of_this_test_is_one_that_pillow_reads() -> None:
    assert decoding.load(tiff(2), 4).image.info["channels"].tolist() == np.full((8, 8, 4), 7).tolist()


class Harm:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('it ran')",)


def test_an_array_in_a_file_runs_nothing_and_is_what_it_claims(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.array([Harm()], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match="cannot be decoded"):
        decoding.load(path)
    np.save(path, pixels())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError, match="cannot be decoded"):
        decoding.load(path, 4)
    head = b"\x93NUMPY\1\0v\0{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 99999999, 4), }"
    path.write_bytes(head.ljust(127) + b"\n")
    with pytest.raises(ImageError):
        decoding.load(path, 4)
    np.save(path, pixels(3))
    assert np.array_equal(np.asarray(decoding.load(path).image), pixels(3))


# --- what is said of a model ----------------------------------------------------------------------


def test_mean_and_std_are_never_made_up(tmp_path: Path) -> None:
    path = state_dict(tmp_path)
    for said in ({}, {"channels": 4}, {"mean": MEAN}, {"std": STD}):
        with pytest.raises(ModelError, match=r"4 channels, of which nobody knows mean and std: say --mean"):
            camkit.load_model(path, device="cpu", **said)  # type: ignore[arg-type]
    model = camkit.load_model(path, device="cpu", mean=MEAN, std=STD)
    assert (model.preprocess.mean, model.preprocess.std) == (MEAN, STD)
    assert "224 x 224" in model.note and "pictures show the first 3 of 4 channels" in model.note
    assert camkit.explain(model, pixels()).map.abs().max() > 0
    again = camkit.load_model(camkit.save_bundle(model, tmp_path / "bundle"), device="cpu")
    assert again.preprocess == model.preprocess and again.sha256 == model.sha256


def test_the_channels_of_the_weights_are_those_of_the_photographs(tmp_path: Path) -> None:
    path = state_dict(tmp_path)
    for said in ({"channels": 3}, {"channels": 1}, {"mean": MEAN[:3], "std": STD[:3]}):
        with pytest.raises(ModelError, match="takes photographs of 4 channels, not of"):
            camkit.load_model(path, device="cpu", **said)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="4 channels, but std has 3 numbers"):
        camkit.load_model(path, device="cpu", mean=MEAN, std=STD[:3])
    with pytest.raises(ModelError, match="of 3 channels, not of 4"):
        camkit.load_model("pets", device="cpu", channels=4, mean=MEAN, std=STD)
    for wrong in (0, 5000):
        with pytest.raises(ModelError, match="1 to 1024 channels"):
            camkit.load_model(path, device="cpu", channels=wrong)


def test_a_module_of_ones_own() -> None:
    with pytest.raises(ModelError, match="Net takes photographs of 4 channels, of which nobody knows"):
        camkit.load_model(Net())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamkitWarning)
        model = camkit.load_model(Net(), mean=MEAN, std=STD, size=(32, 32))
        assert len(model.classes) == 3
        assert camkit.explain(model, pixels(), layer="conv").map.shape == (15, 15)
    function = camkit.load_model(Net(), preprocess=lambda image: torch.zeros(4, 32, 32))
    assert function.preprocess.channels == 4 and function.preprocess.photo_channels == 3
    camkit.explain(function, pixels(3), layer="conv")


class Focus(nn.Module):
    """Lays pixels out in channels before its first convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(12)

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.net(nn.functional.pixel_unshuffle(images, 2))
        return made


def test_a_first_convolution_need_not_see_the_photograph() -> None:
    assert camkit.load_model(Focus()).preprocess.channels == 3


def test_timm_s_own_object_of_four_channels() -> None:
    import timm

    module = timm.create_model("test_resnet", in_chans=4, num_classes=3)
    with pytest.raises(ModelError, match="4 channels, of which nobody knows"):
        camkit.load_model(module)
    model = camkit.load_model(module, mean=MEAN, std=STD)
    assert model.preprocess.size == (160, 160)
    grey = camkit.load_model(timm.create_model("test_resnet", in_chans=1, num_classes=3))
    assert grey.preprocess.channels == 1 and "mean 0.449" in grey.note


def test_what_learn_save_wrote_for_four_channels(tmp_path: Path) -> None:
    made = camkit.load_model("fastai:resnet18@none", device="cpu").module
    made[0][0] = nn.Conv2d(4, 64, 7, 2, 3, bias=False)  # type: ignore[index,operator]
    torch.save(made.state_dict(), tmp_path / "w.pth")
    spec = f"fastai:resnet18@{tmp_path / 'w.pth'}"
    with pytest.raises(ModelError, match="4 channels, of which nobody knows"):
        camkit.load_model(spec, device="cpu")
    model = camkit.load_model(spec, device="cpu", mean=MEAN, std=STD)
    images = torch.rand(1, 4, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(model.module(images), made.eval()(images))


def test_a_view_of_many_channels_takes_no_more_memory_than_others() -> None:
    table = {"size": [2048, 2048], "mean": [0.5] * 4, "std": [0.5] * 4}
    with pytest.raises(ModelError, match="pixels"):
        Preprocess.from_dict(table)
    assert Preprocess.from_dict({**table, "size": [1024, 2048]}).channels == 4


# --- from the command line ------------------------------------------------------------------------


def test_explain_verify_and_render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state_dict(tmp_path)
    (tmp_path / "photos").mkdir()
    np.save(tmp_path / "photos" / "a.npy", pixels())
    save(pixels(), tmp_path / "photos" / "b.png")
    save(pixels(3), tmp_path / "photos" / "c.png")
    numbers = ["--mean", "0.1,0.2,0.3,0.4", "--std", "0.5,0.6,0.7,0.8", "--size", "64"]
    call = ["explain", "photos", "photos/*.npy", "--model", "w.pth", "--workers", "0", "--channels", "4"]
    refused = runner().invoke(cli, call)
    assert refused.exit_code == 1 and "say --mean and --std, 4 numbers each" in refused.stderr
    assert not (tmp_path / "camkit-out").exists()
    done = runner().invoke(cli, [*call, *numbers])
    assert done.exit_code == 3, done.output  # c.png has three channels
    assert done.stderr.count("pictures show the first 3 of 4 channels") == 1
    lines = [json.loads(line) for line in Path("camkit-out/manifest.jsonl").read_text().splitlines()]
    told = {Path(line["name"]).name: line["error"] for line in lines}
    assert told["a.npy"] is told["b.png"] is None and "has 3 channels" in told["c.png"]
    maps = [np.load(Path("camkit-out") / line["map_file"]) for line in lines if line["status"] == "ok"]
    assert len(maps) == 2 and np.allclose(maps[0], maps[1], atol=1e-6)
    verified = runner().invoke(cli, ["verify", "camkit-out"])
    assert verified.exit_code == 0 and "2 recomputed maps" in verified.stdout, verified.output
    drawn = runner().invoke(cli, ["render", "camkit-out", "--cmap", "viridis"])
    assert drawn.exit_code == 0, drawn.output


HIDDEN = """
import torch
from torch import nn


class Hidden(nn.Module):
    # Takes one channel, which no convolution of its own tells.
    def __init__(self):
        super().__init__()
        self.stem = nn.Parameter(torch.randn(4, 1, 3, 3))
        self.conv, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 2)

    def forward(self, x):
        x = nn.functional.conv2d(x, self.stem)
        return self.head(self.conv(x).relu().mean((2, 3)))


def build():
    return Hidden()
"""


def test_the_line_that_refuses_other_channels_says_how_to_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hidden_one.py").write_text(HIDDEN)
    photo = pixels(3)
    known = camkit.load_model("hidden_one.py:build", channels=1, size=32, device="cpu")
    assert len(known.classes) == 2 and camkit.explain(known, photo).map.shape == (28, 28)
    with pytest.raises(ModelError, match=r"hidden_one.py:build cannot take .* channels="):
        camkit.load_model("hidden_one.py:build", device="cpu")
    module = known.module
    with pytest.raises(ModelError, match=r"224 x 224 and 3 channels \(say size=, channels= or"):
        camkit.explain(module, photo)
    assert len(camkit.load_model(module, channels=1).classes) == 2
    named = camkit.load_model(module, classes=["a", "b"], mean=MEAN[:3], std=STD[:3])
    with pytest.raises(UsageError, match=r"1 for the model and 3 .* channels=1 to camkit.load_model"):
        camkit.explain(named, photo)
