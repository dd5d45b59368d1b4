"""Bundles: what is written comes back, and a stranger's folder does no harm."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.contracts.model import LoadedModel
from camkit.errors import LayerError, ModelError
from camkit.images.decoding import sample
from camkit.images.preprocess import Preprocess
from camkit.models.bundle import PETS
from camkit.training import recipe as recipes
from camkit.training.torch_trainer import TorchTrainer
from camkit.training.training_report import judge

CLASSES = ("Maine Coon", "Mäuschen 猫", 'the "best" / dog\'s', "", "Maine Coon")
PREPROCESS = Preprocess(
    size=(64, 48),
    resize=80,
    fit="squash",
    interpolation="bicubic",
    mean=(0.1, 1 / 3, 0.3),
    std=(0.5, 0.25, 0.7),
)
ARCHITECTURE = {"source": "timm", "name": "test_resnet", "num_classes": len(CLASSES)}


def _network(architecture: dict[str, Any]) -> LoadedModel:
    source = camkit.registry.loading.make("model", architecture["source"])
    module = source.build(architecture).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return LoadedModel(
        module,
        CLASSES,
        PREPROCESS,
        name="net",
        default_layer="layer3",
        architecture=architecture,
    )


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return _network(ARCHITECTURE)


@pytest.fixture(scope="module")
def original(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return camkit.save_bundle(model, tmp_path_factory.mktemp("bundles") / "net")


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    folder = tmp_path / "net"
    folder.mkdir()
    for path in original.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def scores(module: nn.Module) -> Tensor:
    with torch.no_grad():
        return module(torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(4)))


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "camkit.json").read_text("utf-8"))


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refusal(folder: Path) -> str:
    """The message of the one-line `ModelError` that the folder gives."""
    with pytest.raises(ModelError) as caught:
        camkit.load_model(folder, device="cpu")
    message = str(caught.value)
    assert "\n" not in message and message.isprintable()
    assert str(folder) in message
    assert len(message) < len(str(folder)) + 500
    return message


# --- there and back -------------------------------------------------------------------------------


def test_everything_comes_back(model: LoadedModel, original: Path) -> None:
    again = camkit.load_model(original, device="cpu")
    assert torch.equal(scores(again.module), scores(model.module))
    assert (again.classes, again.preprocess, again.default_layer) == (CLASSES, PREPROCESS, "layer3")
    assert (again.architecture, again.sha256, again.name) == (ARCHITECTURE, model.sha256, "net")
    assert not any(part.training for part in again.module.modules())


def test_a_bundle_of_a_bundle_is_the_same(original: Path, tmp_path: Path) -> None:
    again = camkit.save_bundle(camkit.load_model(original, device="cpu"), tmp_path / "again")
    for name in files(original):
        assert (again / name).read_bytes() == (original / name).read_bytes()


def test_the_folder_holds_two_files_and_no_pickle(model: LoadedModel, original: Path) -> None:
    assert files(original) == ["camkit.json", "model.safetensors"]
    assert config(original) == {
        "format": 1,
        "architecture": ARCHITECTURE,
        "classes": list(CLASSES),
        "preprocessing": json.loads(json.dumps(PREPROCESS.to_dict())),
        "default_layer": "layer3",
    }
    assert set(load_file(original / "model.safetensors")) == set(model.module.state_dict())


def test_facts_are_kept_and_do_not_matter_to_loading(model: LoadedModel, tmp_path: Path) -> None:
    facts = {"metrics": {"error_rate": 0.06}, "recipe": ["a", None, True], "licence": "CC0 猫", "epochs": 4}
    folder = camkit.save_bundle(model, tmp_path / "net", **facts)
    assert facts.items() <= config(folder).items()
    assert camkit.load_model(folder, device="cpu").sha256 == model.sha256


def test_what_no_bundle_can_hold_is_told_with_the_way_out(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from torch import nn\n\n\ndef build():\n"
        "    parts = nn.Conv2d(3, 4, 5), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 2)\n"
        "    return nn.Sequential(*parts)\n"
    )
    torch.save(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),
        "whole.pth",
    )
    for spec in ("mine.py:build", "whole.pth"):
        done = runner().invoke(cli, ["model", "bundle", spec, "--out", "out", "--trust-pickle"])
        assert done.exit_code == 1 and "which code of its own builds; use it as it is" in done.stderr
        assert not Path("out").exists()
    own = camkit.load_model(original, device="cpu", preprocess=lambda image: torch.zeros(3, 32, 32))
    with pytest.raises(
        ModelError, match=r"shown by a function of its owner, .*<lambda>, which no file holds"
    ):
        camkit.save_bundle(own, "out")


def test_models_of_torchvision_come_back(tmp_path: Path) -> None:
    model = _network({"source": "torchvision", "name": "squeezenet1_1", "num_classes": len(CLASSES)})
    again = camkit.load_model(camkit.save_bundle(model, tmp_path / "net"), device="cpu")
    assert torch.equal(scores(again.module), scores(model.module))
    assert again.architecture == model.architecture


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_on_the_disk_become_float32(bundle: Path, dtype: torch.dtype) -> None:
    path = bundle / "model.safetensors"
    # Copies: what was loaded may be mapped from the file that is written over.
    state = {n: t.to(dtype) if t.is_floating_point() else t.clone() for n, t in load_file(path).items()}
    save_file(state, path)
    again = camkit.load_model(bundle, device="cpu")
    assert {p.dtype for p in again.module.parameters()} == {torch.float32}
    own = again.module.state_dict()
    assert all(torch.equal(own[name], tensor.to(own[name].dtype)) for name, tensor in state.items())


def test_a_model_in_half_precision_is_written_as_it_is(model: LoadedModel, tmp_path: Path) -> None:
    half = replace(model, module=copy.deepcopy(model.module).half())
    folder = camkit.save_bundle(half, tmp_path / "net")
    size = (folder / "model.safetensors").stat().st_size
    assert size < 0.6 * 4 * sum(p.numel() for p in model.module.parameters())
    assert camkit.load_model(folder, device="cpu").dtype == torch.float32


def test_half_as_large_on_the_disk_and_float32_again(
    model: LoadedModel, original: Path, tmp_path: Path
) -> None:
    folder = camkit.save_bundle(model, tmp_path / "net", half=True)
    small, large = ((f / "model.safetensors").stat().st_size for f in (folder, original))
    assert small < 0.6 * large
    again = camkit.load_model(folder, device="cpu")
    assert again.dtype == torch.float32
    own = again.module.state_dict()
    for name, tensor in model.module.state_dict().items():
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(own[name], expected)
    assert model.dtype == torch.float32  # the model at hand is left as it is


def test_tied_weights(model: LoadedModel, tmp_path: Path) -> None:
    module = copy.deepcopy(model.module)
    first, second, *_ = (
        b for b in module.modules() if isinstance(b, nn.BatchNorm2d) and b.num_features == 32
    )
    second.weight = first.weight
    # A view that is not contiguous, as channels-last weights are.
    module.to(memory_format=torch.channels_last)
    folder = camkit.save_bundle(replace(model, module=module), tmp_path / "net")
    again = camkit.load_model(folder, device="cpu")
    torch.testing.assert_close(scores(again.module), scores(module))


def test_a_bundle_is_explained_on_the_command_line(original: Path, tmp_path: Path) -> None:
    command = ["explain", str(sample()), "--model", str(original), "--device", "cpu"]
    result = runner().invoke(cli, [*command, "--out", str(tmp_path), "--json"])
    assert result.exit_code == 0
    line = json.loads(result.stdout)
    assert (line["model"], line["layer"]) == ("net", "layer3")
    assert line["model_sha256"] == camkit.load_model(original).sha256
    assert line["class_name"] in CLASSES
    assert line["preprocessing"] == config(original)["preprocessing"]


def test_a_damaged_bundle_on_the_command_line(bundle: Path) -> None:
    (bundle / "model.safetensors").unlink()
    result = runner().invoke(cli, ["explain", str(sample()), "--model", str(bundle)])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"Error: {bundle} ") and result.stderr.count("\n") == 1
    assert "model.safetensors is missing" in result.stderr


def test_a_default_layer_that_is_not_there_is_told_when_it_is_needed(bundle: Path) -> None:
    edit(bundle, default_layer="layr3")
    model = camkit.load_model(bundle, device="cpu")
    photo = Image.fromarray(np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(LayerError, match=r"'layr3'.*'layer3'"):
        camkit.explain(model, photo)
    assert camkit.explain(model, photo, layer="layer3").layer == "layer3"


def test_a_default_layer_may_be_left_out(bundle: Path) -> None:
    edit(bundle, default_layer=None)
    assert camkit.load_model(bundle, device="cpu").default_layer == "auto"


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["empty", "new", "a/b"])
def test_an_empty_folder_is_filled_and_those_above_are_made(
    model: LoadedModel, tmp_path: Path, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    target = tmp_path / name
    assert camkit.save_bundle(model, str(target)) == target
    assert files(target) == ["camkit.json", "model.safetensors"]
    assert len(files(target.parent)) == (2 if name == "new" else 1)  # no draft is left


def _a_file(target: Path) -> None:
    target.write_text("keep me")


def _a_full_folder(target: Path) -> None:
    target.mkdir()
    (target / "mine").write_text("keep me")


def _a_dangling_link(target: Path) -> None:
    target.symlink_to("nowhere")


@pytest.mark.parametrize("make", [_a_file, _a_full_folder, _a_dangling_link])
def test_what_is_there_is_kept(model: LoadedModel, tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "net")
    with pytest.raises(ModelError, match=r"net .*not an empty folder"):
        camkit.save_bundle(model, tmp_path / "net")
    assert files(tmp_path) == ["net"]
    if make is not _a_dangling_link:
        kept = tmp_path / "net" / "mine" if make is _a_full_folder else tmp_path / "net"
        assert kept.read_text() == "keep me"


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


def _circle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


UNWRITABLE: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an architecture that is no JSON": ({"architecture": ARCHITECTURE | {"x": {1}}}, {}, "JSON"),
    "an architecture without a source": ({"architecture": {"name": "test_resnet"}}, {}, "source"),
    "a fact that is no JSON": ({}, {"metrics": torch.ones(1)}, "JSON.*Tensor"),
    "keys that are no JSON": ({}, {"metrics": {(1, 2): 3}}, "JSON"),
    "a fact in itself": ({}, {"metrics": _circle()}, "JSON"),
    "a fact too deep": ({}, {"metrics": _deep()}, "JSON"),
    "a fact too large": ({}, {"history": "x" * 2**24}, "16 MiB"),
    "facts that are the model's": ({}, {"classes": [], "format": 2}, r"\['classes', 'format'\]"),
    "a class too few": ({"classes": CLASSES[1:]}, {}, "4 classes.* 5"),
    "a class that breaks lines": ({"classes": ("a\nb", *CLASSES[1:])}, {}, r"'a\\nb'"),
    "a layer that is a module": ({"default_layer": nn.Identity()}, {}, "JSON"),
}


@pytest.mark.parametrize("case", UNWRITABLE)
def test_what_could_not_be_loaded_is_not_written(model: LoadedModel, tmp_path: Path, case: str) -> None:
    changes, facts, message = UNWRITABLE[case]
    with pytest.raises(ModelError, match=message):
        camkit.save_bundle(replace(model, **changes), tmp_path / "net", **facts)
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["file/net", "x" * 300, "a\0b"])
def test_targets_that_cannot_be(model: LoadedModel, tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("keep me")
    with pytest.raises(ModelError, match="cannot be written"):
        camkit.save_bundle(model, tmp_path / name)
    assert files(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_to(model: LoadedModel, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ModelError, match="PermissionError"):
        camkit.save_bundle(model, tmp_path / "net")


@pytest.mark.parametrize(
    "step", ["safetensors.torch.save", "pathlib.Path.write_text", "pathlib.Path.replace"]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, error: BaseException
) -> None:
    def fail(*arguments: Any, **_: Any) -> None:
        for path in arguments:
            if isinstance(path, Path) and not path.exists():
                path.touch()
        raise error

    monkeypatch.setattr(step, fail)
    with pytest.raises((ModelError, KeyboardInterrupt), match=r"^$|net .*No space left on device"):
        camkit.save_bundle(model, tmp_path / "net")
    monkeypatch.undo()
    assert [name for name in files(tmp_path) if name != "net"] == []
    assert not (tmp_path / "net" / "camkit.json").exists()


# --- a stranger's folder --------------------------------------------------------------------------


def edit(folder: Path, **changes: Any) -> None:
    """Set keys of camkit.json; `None` removes one."""
    changed = {key: value for key, value in (config(folder) | changes).items() if value is not None}
    (folder / "camkit.json").write_text(json.dumps(changed))


def text(content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / "camkit.json").write_bytes(data) and None


def keys(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, **changes)


def architecture(**changes: Any) -> Callable[[Path], None]:
    changed = {key: value for key, value in (ARCHITECTURE | changes).items() if value is not None}
    return keys(architecture=changed)


def preprocessing(**changes: Any) -> Callable[[Path], None]:
    return keys(preprocessing=PREPROCESS.to_dict() | changes)


def _large(folder: Path) -> None:
    with (folder / "camkit.json").open("r+b") as file:
        file.truncate(20 * 2**20)


def _deep_architecture(folder: Path) -> None:
    edit(folder, architecture=ARCHITECTURE | {"num_classes": "@"})
    path = folder / "camkit.json"
    path.write_text(path.read_text().replace('"@"', "[" * 500 + "]" * 500))


CONFIGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty": (text(""), "JSON"),
    "no JSON": (text("{'format': 1}"), "JSON"),
    "cut off": (text('{"format": 1, "arch'), "JSON"),
    "not UTF-8": (text(b'{"format": "\xff"}'), "JSON"),
    "UTF-16": (text('{"format": 1}'.encode("utf-16")), "JSON"),
    "a pickle": (text(pickle.dumps({"format": 1})), "JSON"),
    "deeply nested": (text("[" * 100_000 + "]" * 100_000), "JSON"),
    "a number of a million digits": (text('{"format": ' + "9" * 10**6 + "}"), "JSON"),
    "too large": (_large, "16 MiB"),
    "a list": (text("[1, 2]"), "format None"),
    "a text": (text('"format"'), "format None"),
    "no format": (keys(format=None), "format None.* 1"),
    "a later format": (keys(format=2), "format 2.* 1"),
    "the format as a text": (keys(format="1"), "format '1'"),
    "a very long format": (keys(format="9" * 10**6), "format '999"),
    "no architecture": (keys(architecture=None), "no architecture with a source"),
    "an architecture that is a name": (keys(architecture="resnet18"), "no architecture with a source"),
    "no source": (architecture(source=None), "no architecture with a source"),
    "a source that is no name": (architecture(source=["timm"]), "no architecture with a source"),
    "an unknown source": (architecture(source="fastai-nowhere"), "needs the model source 'fastai-nowhere'"),
    "a misspelt source": (architecture(source="tim"), "'tim': .*did you mean 'timm'"),
    "itself as the source": (architecture(source="bundle"), "BundleSource does not build"),
    "itself by its full name": (architecture(source="camkit:bundle"), "BundleSource does not build"),
    "a source that builds nothing": (architecture(source="pets"), "PetsSource does not build"),
    "no network": (architecture(name=None), "architecture needs a name"),
    "an unknown network": (architecture(name="test_resnett"), "no classifier 'test_resnett'; did you mean"),
    "a network of the hub": (
        architecture(name="hf-hub:timm/resnet18"),
        "no classifier 'hf-hub:timm",
    ),
    "a network of this machine": (architecture(name="local-dir:/"), "no classifier 'local-dir:/'"),
    "a network that is no name": (architecture(name={"a": 1}), "architecture needs a name"),
    "a very long network": (architecture(name="x" * 10**6), "no classifier 'xxx"),
    "a network with breaks": (architecture(name="a\n\x1b[31mb\n"), r"no classifier 'a\\n\\x1b\[31mb"),
    "no number of classes": (architecture(num_classes=None), "architecture needs a name and 1 to 100000"),
    "another number of classes": (architecture(num_classes=6), "5 classes are named, .* has 6"),
    "a huge number of classes": (architecture(num_classes=10**12), "5 classes are named"),
    "a number that is a text": (architecture(num_classes="5"), "has '5'"),
    "a number with a point": (architecture(num_classes=5.0), "1 to 100000"),
    "a deep number of classes": (_deep_architecture, r"\[\[\["),
    "a huge number with as many names": (
        keys(architecture=ARCHITECTURE | {"num_classes": 10**6}, classes=[""] * 10**6),
        "1 to 100000 num_classes",
    ),
    "no class at all": (keys(architecture=ARCHITECTURE | {"num_classes": 0}, classes=[]), "1 to 100000"),
    "no classes": (keys(classes=None), "list of class names"),
    "classes in one text": (keys(classes="abcde"), "list of class names"),
    "classes by number": (keys(classes={"0": "a"}), "list of class names"),
    "classes that are no texts": (keys(classes=["a", "b", 3, "d", "e"]), "list of class names"),
    "a class that clears the screen": (keys(classes=["\x1b[2J", *"bcde"]), r"class '\\x1b\[2J' cannot"),
    "a class with a break": (keys(classes=["a\nb", *"bcde"]), r"'a\\nb'"),
    "a class with half a sign": (keys(classes=["\ud800", *"bcde"]), r"class '\\ud800' cannot"),
    "a class with a control of ISO 8859": (keys(classes=["\x9b", *"bcde"]), r"class '\\x9b' cannot"),
    "a class too few": (keys(classes=list("abcd")), "4 classes.* 5"),
    "no preprocessing": (keys(preprocessing=None), "no table 'preprocessing'"),
    "preprocessing in a list": (keys(preprocessing=[224]), "no table 'preprocessing'"),
    "an unknown key": (preprocessing(sizes=[1, 2]), "sizes"),
    "no size": (preprocessing(size=None), "preprocessing"),
    "one size": (preprocessing(size=[224]), r"\[224\]"),
    "a size of nothing": (preprocessing(size=[0, 224]), "between 1 and 8192"),
    "a negative size": (preprocessing(size=[-1, 224]), "between 1 and 8192"),
    "a huge size": (preprocessing(size=[10**9, 224]), "between 1 and 8192"),
    "a size with a point": (preprocessing(size=[224.5, 224]), "preprocessing"),
    "a size in words": (preprocessing(size=["224", "224"]), "preprocessing"),
    "a resize that is too small": (preprocessing(resize=10), "resize=10"),
    "a huge resize": (preprocessing(resize=10**9), "resize=1000000000"),
    "a resize in words": (preprocessing(resize="256"), "preprocessing"),
    "an unknown fit": (preprocessing(fit="stretch"), "stretch"),
    "a fit that is a list": (preprocessing(fit=["crop"]), "crop"),
    "an unknown interpolation": (preprocessing(interpolation="box"), "box"),
    "two means": (preprocessing(mean=[0.5, 0.5]), "a value for each channel"),
    "a mean of no number": (preprocessing(mean=[0.5, 0.5, float("nan")]), "finite"),
    "a mean without bounds": (preprocessing(mean=[0.5, 0.5, float("inf")]), "finite"),
    "a mean beyond floats": (preprocessing(mean=[0.5, 0.5, 10**400]), "preprocessing"),
    "a mean in words": (preprocessing(mean=["half"] * 3), "preprocessing"),
    "a mean that is one number": (preprocessing(mean=0.5), "preprocessing"),
    "a deviation of zero": (preprocessing(std=[0.5, 0.5, 0.0]), "std positive"),
    "a negative deviation": (preprocessing(std=[0.5, 0.5, -1.0]), "std positive"),
    "a deviation that is nested": (preprocessing(std=[[0.5]] * 3), "preprocessing"),
    "a layer that is a number": (keys(default_layer=4), "default_layer 4 "),
    "layers in a list": (keys(default_layer=["layer4"]), "is no name"),
    "a switch that vision transformers have": (
        architecture(source="torchvision", name="vit_b_16", image_size=10**9),
        "image_size 1000000000 of vit_b_16",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_bad_configuration_is_one_line_that_names_the_file(bundle: Path, case: str) -> None:
    damage, expected = CONFIGS[case]
    damage(bundle)
    message = refusal(bundle)
    assert message.startswith(f"{bundle / 'camkit.json'}: ")
    assert re.search(expected, message)


def test_an_architecture_that_its_source_trips_over(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trip(*_: Any) -> None:
        raise KeyError("cut\nin two")

    monkeypatch.setattr("camkit.models.timm.TimmSource.build", trip)
    assert "camkit.json: KeyError" in refusal(bundle)


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path)

    return damage


def raw(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return damage


def _remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def _folder(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def _leads_out(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(f"../{name}")

    return damage


def _leads_around(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return damage


class Harm:
    """Unpickled, it makes the folder `harmed` in the working directory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harmed",)


def _pickled(folder: Path) -> None:
    torch.save({"fc.weight": Harm()}, folder / "model.safetensors")


FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no configuration": (_remove("camkit.json"), r"camkit\.json .*missing"),
    "no weights": (_remove("model.safetensors"), r"model\.safetensors .*missing"),
    "a folder as configuration": (_folder("camkit.json"), r"camkit\.json is missing"),
    "a folder as weights": (_folder("model.safetensors"), r"model\.safetensors .*missing"),
    "a configuration elsewhere": (_leads_out("camkit.json"), r"camkit\.json .*leads out"),
    "weights elsewhere": (_leads_out("model.safetensors"), r"model\.safetensors .*leads out"),
    "a configuration that is its own link": (_leads_around("camkit.json"), r"camkit\.json is missing"),
    "empty weights": (raw(lambda data: b""), r"model\.safetensors is empty"),
    "truncated weights": (raw(lambda data: data[:-100]), r"model\.safetensors cannot be read as weights"),
    "half a header": (raw(lambda data: data[:100]), r"model\.safetensors cannot be read as weights"),
    "more than the weights": (raw(lambda data: data + b"x"), r"model\.safetensors cannot be read"),
    "a pickle": (_pickled, r"model\.safetensors cannot be read as weights"),
    "a bare pickle": (raw(lambda data: pickle.dumps(Harm())), r"model\.safetensors cannot be read"),
    "no tensors": (weights(lambda state: {}), "does not hold a state dict"),
    "a tensor too few": (
        weights(lambda state: {n: t for n, t in state.items() if n != "fc.bias"}),
        r"1 missing \(fc\.bias\)",
    ),
    "a tensor too many": (
        weights(lambda state: {**state, "evil": torch.ones(1)}),
        r"1 unexpected \(evil\)",
    ),
    "weights of another number of classes": (
        weights(lambda state: {**state, "fc.bias": torch.ones(6)}),
        r"1 of another shape \(fc\.bias is \[6\], expected \[5\]\)",
    ),
    "a weight that is a number": (
        weights(lambda state: {**state, "fc.bias": torch.tensor(1.0)}),
        r"is \[\]",
    ),
}


@pytest.mark.parametrize("case", FILES)
def test_bad_files_are_one_line_that_names_them(
    bundle: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, expected = FILES[case]
    damage(bundle)
    monkeypatch.chdir(bundle)
    assert re.search(expected, refusal(bundle))
    assert "harmed" not in files(bundle)


def test_the_pickle_of_the_test_would_do_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Harm()))
    assert files(tmp_path) == ["harmed"]


def test_pickles_beside_the_weights_are_left_alone(
    bundle: Path, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(bundle)
    for name in ("model.pth", "model.pkl", "pytorch_model.bin", "camkit.pkl"):
        torch.save(Harm(), bundle / name)
    assert camkit.load_model(bundle, device="cpu").sha256 == model.sha256
    (bundle / "model.safetensors").unlink()
    for trust in (False, True):
        with pytest.raises(ModelError, match=r"model\.safetensors .*missing"):
            camkit.load_model(bundle, trust_pickle=trust)
    assert "harmed" not in files(bundle)


def test_links_within_the_folder_and_to_it_are_followed(bundle: Path, model: LoadedModel) -> None:
    (bundle / "model.safetensors").rename(bundle / "v1.safetensors")
    (bundle / "model.safetensors").symlink_to("v1.safetensors")
    link = bundle.parent / "current"
    link.symlink_to(bundle)
    again = camkit.load_model(link, device="cpu")
    assert (again.sha256, again.name) == (model.sha256, "net")


# --- the bundled model ----------------------------------------------------------------------------


def test_the_bundled_model_knows_37_breeds() -> None:
    model = camkit.load_model(device="cpu")
    assert model.name == "pets" and len(model.classes) == 37
    result = camkit.explain(model, sample())
    assert result.predicted_name in ("Abyssinian", "Bengal") and result.map.shape == (7, 7)


def test_the_bundled_model_is_small_and_has_a_card_that_agrees() -> None:
    facts = config(PETS)
    assert sum(path.stat().st_size for path in PETS.iterdir()) < 12e6
    card = (PETS / "README.md").read_text(encoding="utf-8")
    assert f"| {facts['metrics']['error_rate']:.1%} |".replace("%", " %") in card
    assert facts["recipe"] == recipes.table(TorchTrainer(None), "pets-small") | {"class_weights": "none"}
    assert facts["data"]["licence"] == "CC BY-SA 4.0"


def test_the_bundled_model_errs_as_often_as_its_card_says(pets: Path) -> None:
    names = config(PETS)["split"]["valid"]
    photos = [(pets / "images" / name, name.rpartition("_")[0]) for name in names]
    verdicts = judge(camkit.load_model("pets", device="cpu"), photos)
    assert len(photos) == 74 and int((verdicts.predicted != verdicts.labels).sum()) == 8


def test_the_bundled_model_takes_no_reference() -> None:
    with pytest.raises(ModelError, match=r"pets .*no reference"):
        camkit.load_model("pets:other")


@pytest.mark.parametrize("change", ["activation", "eps", "pool"])
def test_a_model_that_was_changed_after_it_was_loaded_is_refused(tmp_path: Path, change: str) -> None:
    """Its architecture is that of the library, which would be built again."""
    model = camkit.load_model("torchvision:resnet18@none", device="cpu")
    net: Any = model.module
    if change == "activation":
        net.layer4[1].relu = nn.SiLU()
    elif change == "pool":
        net.avgpool = nn.AdaptiveMaxPool2d(1)
    else:
        net.bn1.eps = 0.5
    with pytest.raises(ModelError, match="it was changed after it was loaded"):
        camkit.save_bundle(model, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
