"""Files of weights as people have them: what they are is found, what is assumed is said."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from tests.conftest import runner
from torch import Tensor, nn
from torchvision import transforms

import camkit
from camkit.cli import cli
from camkit.errors import CamkitError, MapError, ModelError, UsageError
from camkit.images import decoding
from camkit.images.preprocess import Preprocess
from camkit.models import heads, labels, signatures
from camkit.models.checkpoint import read_checkpoint
from camkit.models.facts import ModelFacts

# What is assumed of the models is told; here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")

PETS = ("cat", "dog", "newt")


def tv(name: str = "resnet18", classes: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)


@pytest.fixture(scope="module")
def resnet() -> Any:
    return tv().eval()


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def scores(model: camkit.LoadedModel, size: int = 64) -> Tensor:
    channels = model.preprocess.channels
    with torch.no_grad():
        result: Tensor = model.module(torch.ones(1, channels, size, size))
    return result


def expected(module: nn.Module, size: int = 64, channels: int = 3) -> Tensor:
    with torch.no_grad():
        result: Tensor = module.eval()(torch.ones(1, channels, size, size))
    return result


class Settings(dict[str, Any]):
    """Stands for a class of a library that is not installed, and holds items."""


# Others stand in docs/your-model.md, and are tried with it.
CONTAINERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "two prefixes": lambda state: {f"net.module.{k}": v for k, v in state.items()},
    "two containers": lambda state: {"state_dict": {"model": state}},
    "settings of another class": lambda state: {"state_dict": state, "hyper_parameters": Settings(lr=1)},
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_a_container_is_unwrapped(kind: str, resnet: Any, tmp_path: Path) -> None:
    path = saved(CONTAINERS[kind](resnet.state_dict()), tmp_path / "best.pth")
    model = camkit.load_model(path, device="cpu")
    assert model.architecture is not None
    assert model.architecture["name"] == "resnet18"
    assert model.architecture["num_classes"] == 3
    torch.testing.assert_close(scores(model), expected(resnet))


def mlp(inputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3)
    )


HEADS: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(512, 3),
    "no bias": lambda: nn.Linear(512, 3, bias=False),
    "one in a Sequential": lambda: nn.Sequential(nn.Linear(512, 3)),
    "Dropout, Linear": lambda: nn.Sequential(nn.Dropout(), nn.Linear(512, 3)),
    "two": lambda: nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 3)),
    "two without anything between": lambda: nn.Sequential(nn.Linear(512, 16), nn.Linear(16, 3)),
    "BatchNorm first": lambda: nn.Sequential(nn.BatchNorm1d(512), nn.Dropout(), nn.Linear(512, 3)),
    "LayerNorm": lambda: nn.Sequential(nn.LayerNorm(512), nn.Linear(512, 3)),
    "MLP": lambda: mlp(512),
}


@pytest.mark.parametrize("kind", HEADS)
def test_a_head_is_built_again(kind: str, tmp_path: Path) -> None:
    module = tv()
    torch.manual_seed(1)
    module.fc = HEADS[kind]()
    for part in module.fc.modules():
        if isinstance(part, nn.BatchNorm1d):
            nn.init.normal_(part.running_mean)
    path = saved(module.state_dict(), tmp_path / "my.pth")
    model = camkit.load_model(path, device="cpu")
    torch.testing.assert_close(scores(model), expected(module))
    if kind not in ("Linear",):
        assert "head fc" in model.notes["architecture"]
    assert ("ReLU in the head is assumed" in model.note) == (kind in ("two", "MLP"))
    # and out of a bundle
    bundle = camkit.save_bundle(model, tmp_path / "bundle")
    torch.testing.assert_close(scores(camkit.load_model(bundle, device="cpu")), expected(module))


class Wrapped(nn.Module):
    """A network that is used as a body, with its head beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = tv()
        self.backbone.fc = nn.Identity()
        self.head = nn.Sequential(nn.Dropout(), nn.Linear(512, 3))

    def forward(self, images: Tensor) -> Tensor:
        made: Tensor = self.head(self.backbone(images))
        return made


def test_a_head_beside_the_body(tmp_path: Path) -> None:
    module = Wrapped()
    model = camkit.load_model(saved(module.state_dict(), tmp_path / "m.pth"), device="cpu")
    torch.testing.assert_close(scores(model), expected(module))


STRANGE: dict[str, Callable[[], dict[str, Tensor]]] = {
    "another network beside": lambda: {
        **{f"backbone.{k}": v for k, v in tv().state_dict().items()},
        "out.weight": torch.ones(2, 3),
    },
    "a norm behind it": lambda: {
        **{f"backbone.{k}": v for k, v in tv().state_dict().items()},
        **{f"norm.{k}": v for k, v in nn.BatchNorm1d(3).state_dict().items()},
    },
    "what is subtracted before": lambda: {
        **{f"backbone.{k}": v for k, v in tv().state_dict().items()},
        "mean": torch.ones(3),
    },
    "a layer that is called as a metric": lambda: {
        **{f"backbone.{k}": v for k, v in tv().state_dict().items()},
        "f1.weight": torch.ones(3, 3),
    },
    "named parts": lambda: {
        **{k: v for k, v in tv().state_dict().items() if not k.startswith("fc")},
        "fc.first.weight": torch.ones(4, 512),
        "fc.second.weight": torch.ones(3, 4),
    },
    "an attention between": lambda: {
        **{f"b.{k}": v for k, v in tv().state_dict().items() if not k.startswith("fc")},
        "attention.qkv.weight": torch.ones(3, 512),
        "head.weight": torch.ones(3, 512),
    },
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_tensors_do_not_tell_is_refused_with_the_way_out(kind: str, tmp_path: Path) -> None:
    path = saved(STRANGE[kind](), tmp_path / "my.pth")
    with pytest.raises(ModelError, match=r"my\.pth.*FILE\.py:FUNCTION"):
        camkit.load_model(path, device="cpu")


def test_one_channel(tmp_path: Path) -> None:
    module = tv()
    module.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    model = camkit.load_model(saved(module.state_dict(), tmp_path / "grey.pth"), device="cpu")
    assert model.preprocess.channels == 1
    torch.testing.assert_close(scores(model), expected(module, channels=1))
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8))
    view = model.preprocess.view(photo.convert("L"))
    assert torch.equal(model.preprocess(photo.convert("L")), model.preprocess.tensor(view))
    result = camkit.explain(model, photo)
    assert result.map.shape == (7, 7)
    assert result.overlay().mode == "RGB"
    bundle = camkit.save_bundle(model, tmp_path / "bundle")
    again = camkit.load_model(bundle, device="cpu")
    assert again.preprocess == model.preprocess
    torch.testing.assert_close(scores(again), expected(module, channels=1))


def test_helper_heads_may_be_there_or_not(tmp_path: Path) -> None:
    for helpers in (False, True):
        module = tv("googlenet", aux_logits=helpers, init_weights=False)
        model = camkit.load_model(saved(module.state_dict(), tmp_path / "g.pth"), device="cpu")
        torch.testing.assert_close(scores(model), expected(module))
        assert "transform_input" in model.note


def test_a_vision_transformer_for_other_photographs(tmp_path: Path) -> None:
    module = timm.create_model("vit_tiny_patch16_224", img_size=96, num_classes=3)
    model = camkit.load_model(saved(module.state_dict(), tmp_path / "v.pth"), device="cpu")
    assert model.preprocess.size == (96, 96)
    torch.testing.assert_close(scores(model, 96), expected(module, 96))


def test_architectures_that_compute_different_things_are_named(tmp_path: Path) -> None:
    state = timm.create_model("tf_efficientnet_b0", num_classes=3).state_dict()
    with pytest.raises(ModelError, match=r"timm:efficientnet_b0.*timm:tf_efficientnet_b0.*--arch"):
        camkit.load_model(saved(state, tmp_path / "best.pth"), device="cpu")
    by_name = camkit.load_model(saved(state, tmp_path / "tf_efficientnet_b0-best.pth"), device="cpu")
    said = camkit.load_model(tmp_path / "best.pth", arch="timm:tf_efficientnet_b0", device="cpu")
    by_file = saved({"arch": "tf_efficientnet_b0", "state_dict": state}, tmp_path / "c.pth")
    for model in (by_name, said, camkit.load_model(by_file, device="cpu")):
        assert model.architecture is not None
        assert model.architecture["name"] == "tf_efficientnet_b0"


def test_a_variant_with_the_same_tensors_is_told(resnet: Any, tmp_path: Path) -> None:
    model = camkit.load_model(saved(resnet.state_dict(), tmp_path / "m.pth"), device="cpu")
    assert "timm:resnetblur18" in model.notes["variant"]


def test_a_bare_architecture_of_both_libraries_is_refused(resnet: Any, tmp_path: Path) -> None:
    path = saved(resnet.state_dict(), tmp_path / "m.pth")
    with pytest.raises(UsageError, match=r"torchvision:resnet18 or timm:resnet18"):
        camkit.load_model(path, arch="resnet18", device="cpu")
    with pytest.raises(CamkitError, match="resnet99"):
        camkit.load_model(path, arch="resnet99", device="cpu")
    with pytest.raises(ModelError, match=r"m\.pth.*vgg11"):
        camkit.load_model(path, arch="torchvision:vgg11", device="cpu")
    with pytest.raises(UsageError, match="pets"):
        camkit.load_model("pets", arch="timm:resnet18", device="cpu")


NAMED: dict[str, Any] = {
    "class_names": list(PETS),
    "classes": list(PETS),
    "class_to_idx": {"newt": 2, "cat": 0, "dog": 1},
    "idx_to_class": {0: "cat", 1: "dog", 2: "newt"},
    "id2label": {"0": "cat", "1": "dog", "2": "newt"},
    "hyper_parameters": {"lr": 0.1, "class_names": list(PETS)},
    "args": argparse.Namespace(classes=list(PETS)),
}


@pytest.mark.parametrize("key", NAMED)
def test_the_file_names_its_classes(key: str, resnet: Any, tmp_path: Path) -> None:
    path = saved({"state_dict": resnet.state_dict(), key: NAMED[key]}, tmp_path / "m.pth")
    model = camkit.load_model(path, device="cpu")
    assert model.classes == PETS
    assert "named in its" in model.notes["classes"]


def test_classes_that_stand_there_in_two_orders_are_told(resnet: Any, tmp_path: Path) -> None:
    state = {"state_dict": resnet.state_dict(), "classes": list(PETS)}
    other = {name: len(PETS) - 1 - index for index, name in enumerate(PETS)}
    same = {name: index for index, name in enumerate(PETS)}
    for table, said in ((other, "its class_to_idx has them in another order: --classes"), (same, "")):
        path = saved({**state, "class_to_idx": table}, tmp_path / "m.pth")
        model = camkit.load_model(path, device="cpu")
        assert model.classes == PETS and model.notes["classes"].endswith(said or "named in its classes")


def test_the_head_of_a_safetensors_file_names_its_classes(resnet: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(resnet.state_dict(), path, metadata={"class_names": json.dumps(PETS)})
    assert camkit.load_model(path, device="cpu").classes == PETS


BESIDE = {
    "classes.txt": "cat\ndog\nnewt\n",
    "labels.json": '{"cat": 0, "newt": 2, "dog": 1}',
    "config.json": '{"model_type": "x", "id2label": {"0": "cat", "1": "dog", "2": "newt"}}',
    "classes.csv": "index,name\n1,dog\n0,cat\n2,newt\n",
    "labels.csv": "1,dog\n0,cat\n2,newt\n",
    "labels.txt": "cat, dog, newt\n",
    "class_names.txt": "dog: 1\ncat: 0\nnewt: 2\n",
    "label_map.txt": "2\tdog\n1\tcat\n3\tnewt\n",
}


@pytest.mark.parametrize("name", BESIDE)
def test_a_file_beside_it_names_its_classes(name: str, resnet: Any, tmp_path: Path) -> None:
    path = saved(resnet.state_dict(), tmp_path / "m.pth")
    (tmp_path / name).write_text(BESIDE[name])
    model = camkit.load_model(path, device="cpu")
    assert model.classes == PETS
    assert name in model.notes["classes"]
    (tmp_path / name).write_text("grade 1\ngrade 0\n" if name.endswith("txt") else '["cat", "dog"]')
    model = camkit.load_model(path, device="cpu")
    assert model.classes == labels.numbered(3)


def test_names_in_every_form(tmp_path: Path) -> None:
    for name, text in BESIDE.items():
        (tmp_path / name).write_text(text)
        assert labels.parse(str(tmp_path / name)) == PETS
    for text in (
        "3,newt\n1,cat\n2,dog\n",
        "label,name\n3,newt\n1,cat\n2,dog\n",
        "class,name\n2,newt\n0,cat\n1,dog\n",
        "name,id\nnewt,31\ncat,7\ndog,8\n",
    ):
        (tmp_path / "table.csv").write_text(text)
        assert labels.parse(str(tmp_path / "table.csv")) == PETS, text
    for text, names in {
        "class,count\nnewt,2\ncat,1\n": ("newt", "cat"),  # which numbers no class
        "malignant,2\nbenign,1\n": ("malignant", "benign"),
        "index,0\nlabel,1\nname,2\n": ("index", "label", "name"),
    }.items():
        (tmp_path / "table.csv").write_text(text)
        assert labels.parse(str(tmp_path / "table.csv")) == names, text
    (tmp_path / "blank.csv").write_text("0,cat\n1,\n2,newt\n")
    with pytest.raises(ModelError, match="no name"):
        labels.parse(str(tmp_path / "blank.csv"))
    (tmp_path / "digits.csv").write_text("index,name\n1,9\n0,8\n")
    assert labels.parse(str(tmp_path / "digits.csv")) == ("8", "9")
    (tmp_path / "data.yaml").write_text("path: ../pets\nnc: 3\nnames:\n  0: cat\n  1: dog\n  2: newt\n")
    assert labels.parse(str(tmp_path / "data.yaml")) == PETS
    (tmp_path / "data.yaml").write_text("names: [cat, ")
    with pytest.raises(ModelError, match=r"data\.yaml cannot be read"):
        labels.parse(str(tmp_path / "data.yaml"))
    (tmp_path / "printed.txt").write_text("{'dog': 1, 'cat': 0, 'newt': 2}")
    assert labels.parse(str(tmp_path / "printed.txt")) == PETS
    (tmp_path / "one.txt").write_text("grade 1\n")
    assert labels.parse(str(tmp_path / "one.txt")) == ("grade 1",)
    (tmp_path / "flow.yaml").write_text("{names: [cat, dog, newt]}")
    assert labels.parse(str(tmp_path / "flow.yaml")) == PETS
    for odd in ("0: cat\n0: dog\n1: newt\n", "2: cat\n3: dog\n", "0: cat\n1: cat\n", "['cat', "):
        (tmp_path / "odd.txt").write_text(odd)
        with pytest.raises(ModelError, match=r"odd\.txt"):
            labels.parse(str(tmp_path / "odd.txt"))
    (tmp_path / "grades.txt").write_text("grade 1\ngrade 0\n")  # names, which no number orders
    assert labels.parse(str(tmp_path / "grades.txt")) == ("grade 1", "grade 0")
    assert labels.parse("cat, dog,newt") == PETS
    for folder in (*PETS, ".git"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    assert labels.parse(str(tmp_path / "data")) == PETS
    for wrong in ("cat,cat", "nowhere.txt", "a,\x1b[31m", ""):
        with pytest.raises(ModelError):
            labels.parse(wrong)


HALVES, QUARTERS = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SAID: dict[str, dict[str, Any]] = {
    "numbers": {"hyper_parameters": {"img_size": 96, "mean": [0.5] * 3, "std": [0.25] * 3}},
    "tensors and a shape": {
        **{"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.25), "input_size": (3, 96, 96)},
    },
    "a namespace": {"args": argparse.Namespace(img_size=[96, 96], mean=HALVES, std=QUARTERS)},
}


@pytest.mark.parametrize("kind", SAID)
def test_the_file_says_what_the_model_is_shown(kind: str, resnet: Any, tmp_path: Path) -> None:
    path = saved({"state_dict": resnet.state_dict(), **SAID[kind]}, tmp_path / "m.pth")
    model = camkit.load_model(path, device="cpu")
    shown = model.preprocess
    assert (shown.size, shown.resize, shown.mean, shown.std) == ((96, 96), 109, HALVES, QUARTERS)
    assert model.notes["mean"] == "its mean is 0.5,0.5,0.5" and "96 x 96" in model.notes["size"]
    assert model.notes["shown"].startswith("assumed: cut out of 109 (")
    said = camkit.load_model(path, device="cpu", mean=(0.1, 0.1, 0.1))
    assert said.preprocess.mean == (0.1, 0.1, 0.1) and "mean" not in said.notes
    assert (said.preprocess.std, said.preprocess.size) == (QUARTERS, (96, 96))


VIT = {
    **{"image_processor_type": "ViTImageProcessor", "size": {"height": 96, "width": 96}, "resample": 3},
    **{"image_mean": HALVES, "image_std": QUARTERS, "do_center_crop": None, "rescale_factor": 1 / 255},
}


def test_a_processor_beside_the_file_says_what_the_model_is_shown(resnet: Any, tmp_path: Path) -> None:
    path = saved(resnet.state_dict(), tmp_path / "m.pth")
    beside = tmp_path / "preprocessor_config.json"
    beside.write_text(json.dumps(VIT))
    model = camkit.load_model(path, device="cpu")
    shown = Preprocess((96, 96), None, "squash", "bicubic", HALVES, QUARTERS, rounding="transformers")
    assert model.preprocess == shown and "shown" not in model.notes
    assert "preprocessor_config.json" in model.notes["processor"]
    odd: dict[str, dict[str, Any]] = {
        "do_flip_channel_order": {"do_flip_channel_order": True},
        "rescale_factor": {"rescale_factor": 1},
        "does not resize": {"do_resize": False},
        "any proportions": {"size": {"shortest_edge": 96}},
        "its size is": {"size": {"shortest_edge": 96, "longest_edge": 128}},
        "KeyError: 'crop_size'": {"do_center_crop": True},
        "KeyError: 7": {"resample": 7},
        "TypeError": {"image_mean": None},
        "infinity": {"size": {"height": float("inf"), "width": 96}},
        "4,194,304": {"size": {"height": 4096, "width": 4096}},
        "do_center_crop": {"image_processor_type": "CLIPImageProcessor", "do_center_crop": ...},
        "its kind is OddImageProcessor": {"image_processor_type": "OddImageProcessor"},
        "its size 96": {"size": 96},
        "positive": {"image_std": [0.0] * 3},
    }
    for text, change in odd.items():
        table = {key: value for key, value in (VIT | change).items() if value is not ...}
        beside.write_text(json.dumps(table))
        model = camkit.load_model(path, device="cpu")
        assert model.preprocess == Preprocess(resize=256), text
        assert "is not taken" in model.notes["processor"] and text in model.notes["processor"]
        assert "mean 0.485" in model.notes["shown"]
    beside.write_text('{"crop_size": ')
    assert "not taken" in camkit.load_model(path, device="cpu").notes["processor"]
    beside.write_text(json.dumps(VIT | {"do_normalize": False}))
    assert camkit.load_model(path, device="cpu").preprocess.mean == (0.0,) * 3


TAKEN: dict[str, tuple[dict[str, Any], Any]] = {
    "of bytes": ({"mean": [127.5] * 3, "std": [63.75] * 3}, (HALVES, QUARTERS)),
    "of bytes, nothing divided": (
        {"mean": [127.5] * 3, "std": [1, 1, 1]},
        (HALVES, pytest.approx((1 / 255,) * 3)),
    ),
    "one for all": ({"img_size": 96, "mean": 0.5, "std": 0.25}, (HALVES, QUARTERS)),
    "a list of one": ({"norm_mean": [0.5], "norm_std": [0.25]}, (HALVES, QUARTERS)),
    "a text": ({"mean": "0.5,0.5,0.5", "std": "[0.25, 0.25, 0.25]"}, (HALVES, QUARTERS)),
    "in tables": ({"config": {"data": {"mean": HALVES, "std": QUARTERS}}}, (HALVES, QUARTERS)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_mean_and_std_in_every_form(kind: str, resnet: Any, tmp_path: Path) -> None:
    said, expected = TAKEN[kind]
    path = saved({"state_dict": resnet.state_dict(), **said}, tmp_path / "m.pth")
    model = camkit.load_model(path, device="cpu")
    assert (model.preprocess.mean, model.preprocess.std) == expected
    assert "mean" not in model.notes["shown"]


def test_the_margin_and_the_filter_of_a_checkpoint(resnet: Any, tmp_path: Path) -> None:
    said = {"img_size": 192, "crop_pct": 0.9, "interpolation": "bicubic"}
    path = saved(
        {"state_dict": resnet.state_dict(), "args": argparse.Namespace(**said)}, tmp_path / "m.pth"
    )
    model = camkit.load_model(path, device="cpu")
    shown = model.preprocess
    assert (shown.size, shown.resize, shown.interpolation) == ((192, 192), 213, "bicubic")
    assert {"size", "resize", "interpolation"} <= model.notes.keys()
    path = saved({"state_dict": resnet.state_dict(), "img_size": 192, "resize": 200}, tmp_path / "m.pth")
    assert camkit.load_model(path, device="cpu").preprocess.resize == 200
    args = argparse.Namespace(img_size=None, crop_pct=1.0, interpolation="")  # as timm's training has them
    path = saved({"state_dict": resnet.state_dict(), "args": args}, tmp_path / "m.pth")
    shown = camkit.load_model(path, device="cpu").preprocess
    assert (shown.size, shown.resize, shown.interpolation) == ((224, 224), 224, "bilinear")


@pytest.mark.parametrize(
    "said",
    [
        {"mean": [300.0] * 3, "std": [-1.0] * 3, "img_size": 5000},
        {"mean": [0.5] * 2, "std": [0.0] * 3, "img_size": "large"},
        {"mean": [float("nan")] * 3, "std": [0.5] * 4, "img_size": (1, 2, 3, 4)},
        {"mean": [True] * 3, "std": "half", "img_size": {"height": 96}},
        {"mean": 0.93, "top": {"std": 0.1}},
        {"folds": {"mean": 0.93, "std": 0.02}},  # of an accuracy
        {"mean": "1" + "0" * 400, "std": [1e400] * 3, "interpolation": ["bilinear"], "img_size": 10**400},
    ],
)
def test_what_cannot_be_meant_is_not_taken_and_told(
    said: dict[str, Any], resnet: Any, tmp_path: Path
) -> None:
    path = saved({"state_dict": resnet.state_dict(), **said}, tmp_path / "m.pth")
    model = camkit.load_model(path, device="cpu")
    assert (model.preprocess.size, model.preprocess.mean) == ((224, 224), Preprocess().mean)
    assert "mean 0.485" in model.notes["shown"]
    told = model.notes.get("not taken", "")
    assert ("--mean" in told) == ("std" in said or "folds" in said) and told.count("--mean") <= 1


def test_four_channels_need_nothing_more_if_the_file_says_it(tmp_path: Path) -> None:
    module = tv()
    module.conv1 = nn.Conv2d(4, 64, 7, 2, 3, bias=False)
    path = saved({"model": module.state_dict(), "mean": [0.5] * 4, "std": [0.2] * 4}, tmp_path / "m.pth")
    assert camkit.load_model(path, device="cpu").preprocess.mean == (0.5,) * 4
    path = saved({"model": module.state_dict(), "mean": [0.5] * 4, "img_size": 96}, tmp_path / "m.pth")
    with pytest.raises(ModelError, match="--mean and --std"):
        camkit.load_model(path, device="cpu")


def test_the_size_of_positions_is_not_another_one(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=3).state_dict()
    path = saved({"state_dict": state, "img_size": 96, "mean": [0.1] * 3}, tmp_path / "m.pth")
    shown = camkit.load_model(path, device="cpu").preprocess
    assert (shown.size, shown.mean) == ((160, 160), (0.1, 0.1, 0.1))


def test_it_is_told_how_a_twin_prepares_photographs(resnet: Any, tmp_path: Path) -> None:
    model = camkit.load_model(saved(resnet.state_dict(), tmp_path / "m.pth"), device="cpu")
    assert "(or timm:resnet18, which is shown 224 x 224 out of 235, bicubic: --arch)" in model.note


STAND_INS = {
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
    "a page": (b"\xef\xbb\xbf\n<!DOCTYPE html><html><body>Not found</body></html>", "download it again"),
}


@pytest.mark.parametrize("kind", STAND_INS)
@pytest.mark.parametrize("name", ["m.pth", "m.safetensors", "m.pkl", "p.jpg"])
def test_what_only_stands_for_a_file_is_told(kind: str, name: str, tmp_path: Path) -> None:
    data, way = STAND_INS[kind]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CamkitError, match=way):
        if name.endswith("jpg"):
            decoding.load(tmp_path / name)
        else:
            camkit.load_model(tmp_path / name, device="cpu", trust_pickle=name.endswith("pkl"))


def test_weights_that_are_no_numbers_are_named(resnet: Any, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in resnet.state_dict().items()}
    state["layer3.0.conv1.weight"][3, 2, 1, 1] = float("nan")  # the fault of a single value
    model = camkit.load_model(saved(state, tmp_path / "m.pth"), device="cpu", classes=PETS)
    with pytest.raises(ModelError, match=r"NaN or infinite: layer3"):
        camkit.save_bundle(model, tmp_path / "bundle")
    assert "NaN or infinite in layer3.0.conv1" in run("model", "show", str(tmp_path / "m.pth")).stdout
    with pytest.raises(MapError, match=r"layer3\.0\.conv1\.weight \(1 of 294,912 values\)"):
        camkit.explain(model, np.zeros((64, 64, 3), np.uint8))


def test_two_networks_in_one_file_are_not_chosen_between(tmp_path: Path) -> None:
    (tmp_path / "own_net_of_camkit.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Sequential):\n    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    state = nn.Sequential(nn.Conv2d(3, 2, 3)).state_dict()
    spec = f"{tmp_path / 'own_net_of_camkit.py'}:Net@"
    both = {f"{who}.{name}": t for who in ("student", "teacher") for name, t in state.items()}
    with pytest.raises(ModelError, match=r"2 such networks \(student\., teacher\.\)"):
        camkit.load_model(spec + str(saved(both, tmp_path / "m.pth")), device="cpu")
    plain = {**{f"ema.{name}": torch.zeros_like(t) for name, t in state.items()}, **state}
    with pytest.raises(ModelError, match="2 unexpected"):
        camkit.load_model(spec + str(saved(plain, tmp_path / "p.pth")), device="cpu")


def test_a_file_without_its_head_is_told(resnet: Any, tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in resnet.state_dict().items() if not name.startswith("fc")}
    with pytest.raises(ModelError, match=r"has no head \(fc is not there\)"):
        camkit.load_model(saved(state, tmp_path / "m.pth"), device="cpu")


OTHERS = {
    "graph.onnx": "ONNX",
    "program.pt2": "exported program",
    "net.h5": "Keras",
    "engine.engine": "TensorRT",
}


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_kinds_are_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"\0" * 64)
    with pytest.raises(ModelError, match=OTHERS[name]):
        camkit.load_model(tmp_path / name, device="cpu")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "m.pt")
    with pytest.raises(ModelError, match="TorchScript"):
        camkit.load_model(tmp_path / "m.pt", device="cpu")


def test_a_whole_model_needs_trust(resnet: Any, tmp_path: Path) -> None:
    path = saved({"model": resnet, "epoch": 1}, tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"ResNet.*state_dict\(\).*--trust-pickle"):
        camkit.load_model(path, device="cpu")
    for spec in (str(path), f"torchvision:resnet18@{path}"):
        model = camkit.load_model(spec, device="cpu", trust_pickle=True, classes=PETS)
        assert model.classes == PETS
        torch.testing.assert_close(scores(model), expected(resnet))


class Bomb:
    """Runs code when it is unpickled, were that allowed."""

    def __reduce__(self) -> Any:
        return exec, ("import pathlib; pathlib.Path('hit').touch()",)


def test_an_object_beside_the_weights_runs_no_code(
    resnet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = saved({"state_dict": resnet.state_dict(), "args": Bomb()}, tmp_path / "m.pth")
    with pytest.raises(ModelError, match=r"exec.*refused"):
        read_checkpoint(path)
    assert not (tmp_path / "hit").exists()


def test_facts_change_what_the_model_is_shown(resnet: Any, tmp_path: Path) -> None:
    path = saved(resnet.state_dict(), tmp_path / "m.pth")
    model = camkit.load_model(
        path,
        device="cpu",
        arch="torchvision:resnet18",
        classes=PETS,
        size=(160, 160),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        scores="sigmoid",
    )
    assert model.preprocess.size == (160, 160)
    assert model.preprocess.resize == 182  # the share of 224 in 256
    assert (model.classes, model.scores) == (PETS, "sigmoid")
    assert model.notes.keys() == {"architecture", "shown"}
    assert model.notes["shown"] == "assumed: cut out of 182 (--resize, or preprocess=)"
    half = (0.5,) * 3
    sure = camkit.load_model(
        path, device="cpu", arch="torchvision:resnet18", fit="squash", size=160, mean=half, std=half
    )
    assert "shown" not in sure.notes
    assert (sure.preprocess.resize, sure.preprocess.fit) == (None, "squash")
    image = Image.effect_noise((90, 70), 90).convert("RGB")
    inputs = sure.preprocess.batch([sure.preprocess.view(image)])
    usual = transforms.Compose(
        [transforms.Resize((160, 160)), transforms.ToTensor(), transforms.Normalize(half, half)]
    )
    torch.testing.assert_close(inputs[0], usual(image), rtol=0, atol=1e-6)
    with pytest.raises(
        ModelError, match=r"values in \[0, 1\], not 123.675,116.28,103.53: divide .* by 255"
    ):
        camkit.load_model(path, device="cpu", mean=(123.675, 116.28, 103.53), std=(58.4, 57.1, 57.4))
    with pytest.raises(ModelError, match=r"3 channels: .* three numbers each, such as 0\.5,0\.5,0\.5"):
        camkit.load_model(path, device="cpu", mean=(0.5,), std=(0.5,))
    with pytest.raises(ModelError, match="3 channels, not of 2"):
        camkit.load_model(path, device="cpu", channels=2)
    with pytest.raises(ModelError, match=r"2 classes.*3 outputs"):
        camkit.load_model(path, device="cpu", classes=("a", "b"))


def test_a_new_mean_leaves_the_rest_as_it_is() -> None:
    model = camkit.load_model("pets", device="cpu")
    model = replace(model, preprocess=replace(model.preprocess, resize=None, presize=(300, 300)))
    other = ModelFacts(mean=(0.5,) * 3).apply(model)
    assert other.preprocess == replace(model.preprocess, mean=(0.5,) * 3)
    assert ModelFacts(size=(160, 160)).apply(model).preprocess.presize is None


def test_a_size_that_is_no_square_keeps_the_margin_on_both_sides() -> None:
    pets = camkit.load_model("pets", device="cpu")
    shown = ModelFacts(size=(112, 224)).apply(replace(pets, preprocess=Preprocess(resize=256))).preprocess
    assert shown.resize == (128, 256)
    for size in ((200, 300), (300, 200), (90, 400)):  # none has black edges
        assert np.asarray(shown.view(Image.new("RGB", size, "white"))).min() == 255


def test_what_several_weights_and_scores_are_taken_for(resnet: Any, tmp_path: Path) -> None:
    average = {name: torch.zeros_like(t) for name, t in resnet.state_dict().items()}
    path = saved({"ema": average, "model": resnet.state_dict()}, tmp_path / "m.pth")
    model = camkit.load_model(path, device="cpu")
    assert "'ema', not of model" in model.note
    assert "--scores" in model.note
    assert "--scores" not in camkit.load_model(path, device="cpu", scores="sigmoid").note


def test_a_stranger_s_head_is_checked() -> None:
    for wrong in (
        3,
        [],
        [["Linear", 2]],
        [["Linear", 2, 10**9, True]],
        [["exec", 1]],
        [["Linear", "2", 3, True]],
    ):
        with pytest.raises(ModelError):
            heads.build_head(wrong)


# --- the table ------------------------------------------------------------------------------------


SAMPLE = [
    *("torchvision:alexnet", "torchvision:densenet121", "torchvision:mobilenet_v3_small"),
    *("torchvision:squeezenet1_1", "torchvision:vgg11", "torchvision:swin_t", "torchvision:convnext_tiny"),
    *("timm:vit_tiny_patch16_224", "timm:convnext_atto", "timm:mobilenetv3_small_050", "timm:levit_128s"),
    *("timm:test_resnet", "timm:test_vit", "timm:regnetx_002", "timm:xcit_nano_12_p16_224"),
]


@pytest.mark.parametrize("name", SAMPLE)
def test_the_table_of_architectures_is_that_of_the_libraries(name: str) -> None:
    from tests.signatures import row, shown

    known = next(one for one in signatures.table() if one.name == name)
    made = row(name)
    assert made is not None
    assert (made.body, made.head, made.heads) == (known.body, known.head, known.heads)
    if known.shown:
        assert known.shown == shown(name)


# --- from the command line --------------------------------------------------------------------------


def run(*words: str) -> Any:
    return runner().invoke(cli, words)


def test_explain_says_what_it_found_and_assumed(resnet: Any, tmp_path: Path) -> None:
    path = saved(resnet.state_dict(), tmp_path / "m.pth")
    Image.new("RGB", (90, 80), "red").save(tmp_path / "p.png")
    out = tmp_path / "out"
    told = run(
        *("explain", str(tmp_path / "p.png"), "--model", str(path), "--classes", "cat,dog,newt"),
        *("--size", "96", "--class", "newt", "--out", str(out), "--workers", "0"),
    )
    assert told.exit_code == 0, told.output
    assert "torchvision:resnet18" in told.stderr
    assert "assumed: cut out of 109, mean" in told.stderr
    line = json.loads((out / "manifest.jsonl").read_text().splitlines()[0])
    assert line["class_name"] == "newt"
    assert line["preprocessing"]["size"] == [96, 96]
    wrong = run(
        "explain", str(tmp_path / "p.png"), "--model", str(path), "--size", "big", "--out", str(out)
    )
    assert wrong.exit_code == 2
    assert "big" in wrong.stderr


def test_show_and_bundle(resnet: Any, tmp_path: Path) -> None:
    path = saved(resnet.state_dict(), tmp_path / "m.pth")
    told = run("model", "show", str(path), "--json")
    assert json.loads(told.stdout)["architecture"].startswith("torchvision:resnet18")
    made = run("model", "bundle", str(path), "--classes", "cat,dog,newt", "--out", str(tmp_path / "b"))
    assert made.exit_code == 0, made.output
    assert camkit.load_model(tmp_path / "b", device="cpu").classes == PETS


FUNCTIONS = """
import torch, torchvision

def build():
    return torchvision.models.resnet18(num_classes=3)

def fails():
    return [][1]

def small():
    layers = torch.nn.Conv2d(3, 4, 8, 8), torch.nn.Flatten(), torch.nn.Linear(4 * 8 * 8, 3)
    return torch.nn.Sequential(*layers)

def needs(classes):
    return None

def lost():
    return torch.load("nowhere.pth")

class Table(torch.nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x.mean((2, 3))), "more": x}

def table():
    return Table(3, 2)

number = 3
"""


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_network_of_camkit.py").write_text(FUNCTIONS)
    for spec in ("my_network_of_camkit.py:build", "my_network_of_camkit:build"):
        model = camkit.load_model(spec, device="cpu")
        assert model.classes == labels.numbered(3)
        assert "assumed" in model.note
    refused = {
        "my_network_of_camkit.py:fails": "line 8",
        "my_network_of_camkit.py:number": "int",
        "my_network_of_camkit.py:bild": "build",
        "my_network_of_camkit.py": r"which function.*my_network_of_camkit\.py:build",
        "my_network_of_camkit.py:lost": r"nowhere\.pth",
        "my_network_of_camkit.py:needs": r"without arguments that makes it: my_network_of_camkit\.py:FUNC",
        "my_network_of_camkit.py:table": r"a dict \(logits, more\).*output='logits'",
        "nowhere.py:build": r"nowhere\.py",
        "my_network_of_camkit.py:build@nowhere.pth": r"no.*nowhere\.pth",
    }
    for spec, text in refused.items():
        with pytest.raises(ModelError, match=text):
            camkit.load_model(spec, device="cpu")


def test_a_function_whose_network_takes_one_size_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its outputs are counted with photographs of the size that is said."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_network_of_camkit.py").write_text(FUNCTIONS)
    spec = "small_network_of_camkit.py:small"
    assert camkit.load_model(spec, size=64, device="cpu").classes == labels.numbered(3)
    with pytest.raises(ModelError, match="size="):
        camkit.load_model(spec, device="cpu")


def test_what_does_not_fit_an_architecture_is_named(resnet: Any, tmp_path: Path) -> None:
    state = resnet.state_dict()
    path = saved(state, tmp_path / "m.pth")
    with pytest.raises(
        ModelError, match=r"holds \d+ of the \d+ tensors of torchvision:vgg11: features\.0\.weight is not"
    ):
        camkit.load_model(path, device="cpu", arch="torchvision:vgg11")
    lacking = {name: tensor for name, tensor in state.items() if name != "layer1.0.conv1.weight"}
    with pytest.raises(ModelError, match=r"1 missing \(layer1\.0\.conv1\.weight\)"):
        camkit.load_model(saved(lacking, tmp_path / "l.pth"), device="cpu", arch="torchvision:resnet18")
    more = {**state, "layer1.0.gate": torch.ones(3)}
    with pytest.raises(ModelError, match=r"1 unexpected \(layer1\.0\.gate\)"):
        camkit.load_model(saved(more, tmp_path / "x.pth"), device="cpu", arch="torchvision:resnet18")


def test_one_output_has_one_name(tmp_path: Path) -> None:
    path = saved(torchvision.models.resnet18(num_classes=1).state_dict(), tmp_path / "binary.pth")
    with pytest.raises(ModelError, match="1 output, whose probability is that of one class: name this one"):
        camkit.load_model(path, device="cpu", classes=("cat", "dog"))


def test_a_std_of_bytes_beside_a_mean_of_fractions_is_refused() -> None:
    with pytest.raises(ModelError, match=r"std is of values in \[0, 1\], not 58,57,57"):
        camkit.load_model("imagenet", mean=(0.485, 0.456, 0.406), std=(58, 57, 57))
    assert camkit.load_model("imagenet", std=(2, 2, 2)).preprocess.std == (2, 2, 2)
