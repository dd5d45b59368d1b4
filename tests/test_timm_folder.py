"""Folders that timm wrote: scores, names and photographs are those of timm, and nothing of them runs."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from packaging.version import Version
from PIL import Image
from timm.data import create_transform, resolve_data_config
from timm.models import save_for_hf

import camkit
from camkit.errors import CamkitError
from camkit.models import specs, timm_folder

# What is assumed of the models is told; here it is meant.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning"),
    pytest.mark.skipif(
        Version(timm.__version__) < Version("1.0.31"),
        reason="older releases of timm write these folders otherwise, and read them with other faults",
    ),
]

NAMES = ["cat", "dog", "newt"]
SIZES = [(301, 203), (97, 131), (160, 160), (45, 230)]


def photographs() -> list[Image.Image]:
    """Noise, in which a shift by a pixel shows."""
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in SIZES]


def network(name: str = "test_resnet", **options: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 3, **options}).eval()


def written(folder: Path, module: Any, *, safe: bool = True, **config: Any) -> Path:
    """What timm writes for `module`; `config` changes its `config.json`; `None` takes something away."""
    save_for_hf(module, str(folder), model_config={"label_names": NAMES}, safe_serialization=safe)
    change(folder, **config)
    return folder


def change(folder: Path, **config: Any) -> None:
    path = folder / "config.json"
    table = {**json.loads(path.read_text()), **config}
    path.write_text(json.dumps({key: value for key, value in table.items() if value is not None}))


def shown(folder: Path, **facts: Any) -> None:
    """Other values of what timm calls `pretrained_cfg`."""
    table = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    change(folder, pretrained_cfg={key: v for key, v in {**table, **facts}.items() if v is not None})


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("timm") / "model", network())


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "model"))


def refusal(spec: object) -> str:
    with pytest.raises(CamkitError) as caught:
        camkit.load_model(str(spec), device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- as timm reads it -----------------------------------------------------------------------------

# What is written, and what is changed in it afterwards.
KINDS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "a convolutional network": (network, {}),
    "a vision transformer": (lambda: network("test_vit"), {}),
    "a vision transformer for another size": (lambda: network("test_vit", img_size=96), {}),
    "other arguments": (lambda: network("test_vit", depth=2, class_token=False, global_pool="avg"), {}),
    "a crop with a margin": (network, {"crop_pct": 0.7, "interpolation": "bicubic"}),
    "no margin": (network, {"crop_pct": 1.0}),
    "squashed": (network, {"crop_mode": "squash", "crop_pct": 0.8}),
    "no square": (network, {"input_size": [3, 64, 96], "crop_pct": 0.8}),
    "no square, squashed": (network, {"input_size": [3, 64, 96], "crop_pct": 0.8, "crop_mode": "squash"}),
    "another mean": (network, {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_scores_are_those_of_timm(kind: str, tmp_path: Path) -> None:
    make, facts = KINDS[kind]
    folder = written(tmp_path / "model", make())
    if facts:
        shown(folder, **facts)
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_data_config({}, model=theirs))
    model = camkit.load_model(f"timm:{folder}", device="cpu")
    assert model.classes == tuple(NAMES)
    for photo in photographs():
        with torch.no_grad():
            expected, found = theirs(transform(photo)[None]), model.module(model.preprocess(photo)[None])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    again = camkit.load_model(camkit.save_bundle(model, tmp_path / "bundle"), device="cpu")
    assert (again.preprocess, again.classes) == (model.preprocess, model.classes)
    assert again.sha256 == model.sha256


def test_weights_as_torch_saves_them(tmp_path: Path) -> None:
    module = network()
    folder = written(tmp_path / "model", module, safe=False)
    assert not (folder / "model.safetensors").exists()
    loaded = camkit.load_model(f"timm:{folder}", device="cpu")
    assert all(torch.equal(loaded.module.state_dict()[name], t) for name, t in module.state_dict().items())


def test_a_configuration_of_older_versions(folder: Path) -> None:
    table = json.loads((folder / "config.json").read_text())
    flat = {**table["pretrained_cfg"], "architecture": "test_resnet", "labels": NAMES}
    (folder / "config.json").write_text(json.dumps(flat))
    model = camkit.load_model(folder, device="cpu")
    assert (model.classes, model.preprocess.size) == (tuple(NAMES), (160, 160))


def test_names_of_older_versions_in_the_weights(tmp_path: Path) -> None:
    """Timm reads them with the filter of the family, and so does camkit."""
    module = network("test_convnext")
    folder = written(tmp_path / "model", module)
    old = {name.replace("head.fc.", "head."): tensor for name, tensor in module.state_dict().items()}
    old = {name.replace("head.norm.", "norm."): tensor for name, tensor in old.items()}
    old = {
        name.replace("stem.", "downsample_layers.0.").replace("mlp.fc1", "pwconv1"): t
        for name, t in old.items()
    }
    torch.save(old, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).state_dict()
    ours = camkit.load_model(folder, device="cpu").module.state_dict()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_folder_of_transformers_around_timm(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    facts = {"input_size": [3, 64, 64], "crop_pct": 0.8, "interpolation": "bicubic", "crop_mode": "center"}
    config = transformers.TimmWrapperConfig(
        architecture="test_resnet",
        id2label=dict(enumerate(NAMES)),
        problem_type="multi_label_classification",
        pretrained_cfg={**facts, "mean": [0.5] * 3, "std": [0.2] * 3},
    )
    theirs = transformers.TimmWrapperForImageClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    for spec in (f"timm:{tmp_path}", str(tmp_path)):
        model = camkit.load_model(spec, device="cpu")
        assert (model.name, model.classes, model.scores) == (f"timm:{tmp_path}", tuple(NAMES), "sigmoid")
        images = torch.rand(2, 3, *model.preprocess.size)
        with torch.no_grad():
            torch.testing.assert_close(model.module(images), theirs(images).logits, atol=1e-5, rtol=0)
        assert model.preprocess.resize == 80


# --- which folder is meant ------------------------------------------------------------------------


def test_a_folder_needs_no_scheme_and_names_come_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert specs.split("model") == ("timm", "./model")
    for spec in ("model", "./model", "timm:model", "timm:./model", f"timm:{folder}"):
        specs.check(spec)
        assert camkit.load_model(spec, device="cpu").classes == tuple(NAMES)
    folder.rename(folder.parent / "test_resnet")
    assert len(camkit.load_model("timm:test_resnet@none", device="cpu").classes) == 1000
    assert camkit.load_model("test_resnet", device="cpu").classes == tuple(NAMES)
    (folder.parent / "a@b").mkdir()
    assert "config.json is missing" in refusal(f"timm:{folder.parent}/a@b")


def test_an_architecture_is_of_a_file(folder: Path) -> None:
    with pytest.raises(CamkitError, match="belongs to a file of weights"):
        camkit.load_model(folder, arch="timm:resnet18")


# --- classes --------------------------------------------------------------------------------------

LABELS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "a list": ({"label_names": ["a", "b", "c"]}, ("a", "b", "c")),
    "a table": ({"label_names": {"2": "c", "0": "a", "1": "b"}}, ("a", "b", "c")),
    "a table with a gap": ({"label_names": {"0": "a", "2": "c"}}, ("a", "class_1", "c")),
    "the same name twice": ({"label_names": ["crane", "crane", "cat"]}, ("crane", "crane", "cat")),
    "descriptions of names": (
        {"label_names": ["a", "b", "c"], "label_descriptions": {"a": "the first letter"}},
        ("a", "b", "c"),
    ),
    "descriptions of identifiers": (
        {
            "label_names": ["n01440764", "n01443537", "n01484850"],
            "label_descriptions": {"n01440764": "tench", "n01443537": "goldfish"},
        },
        ("tench", "goldfish", "n01484850"),
    ),
    "none": ({"label_names": None}, ("class_0", "class_1", "class_2")),
}


@pytest.mark.parametrize("kind", LABELS)
def test_classes_are_called_as_the_folder_says(kind: str, folder: Path) -> None:
    config, expected = LABELS[kind]
    change(folder, **config)
    model = camkit.load_model(folder, device="cpu")
    assert model.classes == expected
    assert ("--classes" in model.note) == (kind == "none")


def test_names_beside_a_folder_that_has_none(folder: Path) -> None:
    change(folder, label_names=None)
    (folder / "classes.txt").write_text("x\ny\nz\n")
    model = camkit.load_model(folder, device="cpu")
    assert model.classes == ("x", "y", "z") and "named in classes.txt" in model.note


def test_imagenets_classes_are_taken_by_the_tag_alone(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_for_hf(network(num_classes=1000), str(folder), safe_serialization=True)
    model = camkit.load_model(folder, device="cpu")
    assert model.classes[0] == "tench" and "by the tag r160_in1k (--classes)" in model.note
    shown(folder, tag="mine")
    model = camkit.load_model(folder, device="cpu")
    assert model.classes[0] == "class_0" and "1000 classes without names" in model.note


def test_what_a_configuration_does_not_say_is_assumed_aloud(folder: Path) -> None:
    shown(folder, mean=None, input_size=None)
    note = camkit.load_model(folder, device="cpu").note
    assert "assumed: 224 x 224" in note and "mean 0.485,0.456,0.406, std 0.229,0.224,0.225" in note


# --- other channels -------------------------------------------------------------------------------


def test_one_channel(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", network(in_chans=1))
    assert camkit.load_model(folder, device="cpu").preprocess.mean == (0.5,)
    shown(folder, mean=[0.485, 0.456, 0.406])  # as older versions wrote it
    model = camkit.load_model(folder, device="cpu")
    assert model.preprocess.channels == 1 and "mean 0.449, std 0.226" in model.note


def test_a_mean_that_is_not_of_each_channel_has_to_be_said(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", network(in_chans=5))
    assert camkit.load_model(folder, device="cpu").preprocess.channels == 5
    shown(folder, mean=[0.5] * 3, std=[0.5] * 3)
    assert "5 channels, of which nobody knows mean and std: say --mean and --std" in refusal(folder)
    model = camkit.load_model(folder, device="cpu", mean=(0.1,) * 5, std=(0.2,) * 5)
    assert model.preprocess.mean == (0.1,) * 5


# --- what is refused ------------------------------------------------------------------------------


def text(content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(content)


def lost(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (text("{"), "config.json: it cannot be read as JSON"),
    "no table": (text("[1]"), "config.json: it names no architecture of timm"),
    "too deep": (text("[" * 100_000), "config.json: it cannot be read as JSON"),
    "too large": (
        lambda f: (f / "config.json").write_bytes(b" " * (specs.MAX_CONFIG + 1)),
        "it cannot be read as JSON",
    ),
    "no configuration": (lost("config.json"), "is no folder of timm: config.json is missing"),
    "no weights": (lost("model.safetensors"), "holds no weights: neither model.safetensors nor"),
    "damaged weights": (
        lambda f: (f / "model.safetensors").write_bytes(b"\0" * 99),
        "cannot be read as weights",
    ),
    "another architecture": (lambda f: change(f, architecture="test_vit"), "do not fit VisionTransformer"),
    "no architecture of timm": (
        lambda f: change(f, architecture="resnet999"),
        "timm has no classifier 'resnet999'",
    ),
    "a path as architecture": (
        lambda f: change(f, architecture="hf-hub:timm/resnet18"),
        "timm has no classifier",
    ),
    "too few names": (
        lambda f: change(f, label_names=["a"]),
        "label_names has 1 name, but the model 3 outputs",
    ),
    "too many names": (
        lambda f: change(f, label_names=list("abcd")),
        "label_names has 4 names, but the model 3",
    ),
    "a name beyond the outputs": (
        lambda f: change(f, label_names={"7": "a"}),
        "label_names has 1 name, but the model 3",
    ),
    "names that are numbers": (lambda f: change(f, label_names=[1, 2, 3]), "the class 1 is no name"),
    "a name with a line break": (lambda f: change(f, label_names=["a\n", "b", "c"]), "is no name"),
    "other outputs": (
        lambda f: change(f, num_classes=4, label_names=list("abcd")),
        "of another shape",
    ),
    "no outputs": (lambda f: change(f, num_classes=0), "no classes (num_classes is 0)"),
    "outputs that are no number": (
        lambda f: change(f, num_classes="3", label_names=None),
        "config.json: ",
    ),
    "an enormous network": (
        lambda f: change(f, num_classes=99_999, label_names=None, model_args={"stem_width": 8192}),
        "far larger than its weights",
    ),
    "an enormous photograph": (lambda f: shown(f, input_size=[3, 8192, 8192]), "pixels"),
    "a size that is none": (
        lambda f: shown(f, input_size="big"),
        "input_size is [channels, height, width]",
    ),
    "a mean that is none": (lambda f: shown(f, mean=["a", "b", "c"]), "config.json: "),
    "another filter": (lambda f: shown(f, interpolation="box"), "'box'"),
    "another crop": (lambda f: shown(f, crop_mode="border"), "crop mode 'border'"),
    "a file to open": (
        lambda f: change(f, model_args={"checkpoint_path": "/etc/passwd"}),
        "model_args has checkpoint_path, which is no argument of a network: refused",
    ),
    "weights to fetch": (lambda f: change(f, model_args={"pretrained": True}), "model_args has pretrained"),
    "features only": (lambda f: change(f, model_args={"features_only": True}), "features_only"),
    "an argument of no network": (lambda f: change(f, model_args={"colour": "red"}), "colour"),
    "arguments that are no table": (lambda f: change(f, model_args=[1]), "config.json: "),
    "another library": (
        text('{"model_type": "vit"}'),
        "names no architecture of timm; it is of transformers: --model hf:",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_damaged_is_one_line(case: str, folder: Path) -> None:
    damage, expected = BAD[case]
    damage(folder)
    message = refusal(f"timm:{folder}")
    assert expected in message and str(folder) in message


def test_a_bundle_is_checked_as_a_folder_is(folder: Path, tmp_path: Path) -> None:
    bundle = camkit.save_bundle(camkit.load_model(folder, device="cpu"), tmp_path / "bundle")
    table = json.loads((bundle / "camkit.json").read_text())
    for wrong in (
        {"model_args": {"checkpoint_path": "/etc/passwd"}},
        {"pretrained_cfg": {"input_size": 3}},
    ):
        text(json.dumps(table))(bundle)
        (bundle / "camkit.json").write_text(
            json.dumps({**table, "architecture": {**table["architecture"], **wrong}})
        )
        assert str(bundle / "camkit.json") in refusal(bundle)


class Harm:
    """A pickle that would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("form", ["pickle", "torch"])
def test_nothing_of_the_weights_runs(form: str, folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    harm = Harm(tmp_path / "harm")
    if form == "pickle":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(harm))
    else:
        torch.save({"fc.weight": harm}, folder / "pytorch_model.bin")
    assert str(folder) in refusal(folder)
    assert not (tmp_path / "harm").exists()


# --- the hub --------------------------------------------------------------------------------------


def test_a_name_of_the_hub_is_fetched_as_timm_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    asked = []

    def download(name: str, file: str, *, revision: str | None) -> str:
        asked.append((name, file, revision))
        if not (folder / file).exists():
            raise EntryNotFoundError(file)
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    (folder / "model.safetensors").unlink()
    torch.save(network().state_dict(), folder / "pytorch_model.bin")
    for prefix in ("hf-hub", "hf_hub"):
        model = camkit.load_model(f"timm:{prefix}:someone/model@v1", device="cpu")
        assert (model.classes, model.name) == (tuple(NAMES), f"timm:{prefix}:someone/model@v1")
    assert asked[:3] == [
        ("someone/model", name, "v1") for name in ("config.json", "model.safetensors", "pytorch_model.bin")
    ]
    (folder / "pytorch_model.bin").unlink()
    assert "holds no weights" in refusal("timm:hf-hub:someone/model")


@pytest.mark.parametrize("reference", ["", "model", "a/b/c", "a/b@", "../a"])
def test_what_is_no_name_of_the_hub(reference: str) -> None:
    assert "a name of the hub is OWNER/NAME" in refusal(f"timm:hf-hub:{reference}")


def test_a_hub_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = refusal("timm:hf-hub:someone/model")
    assert "timm:hf-hub:someone/model is not in the cache of the hub, and could not be fetched" in message


def test_the_weights_that_timm_prefers_are_taken() -> None:
    from timm.models import _hub

    assert _hub._PREFERRED_FILES[: len(specs.TIMM_WEIGHTS)] == specs.TIMM_WEIGHTS
    assert timm_folder.TIMM_WEIGHTS is specs.TIMM_WEIGHTS
