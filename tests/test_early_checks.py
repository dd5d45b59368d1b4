"""What is not there is told before torch is imported, with exit code 2."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from camkit.cli import early_checks
from camkit.metrics import complexity
from camkit.native.explainer import Native
from camkit.native.method_table import METHODS
from camkit.registry import discovery, loading

# Runs commands, one after the other, where torch finds no memory; none of them may need it.
SCRIPT = """
import contextlib, io, json, sys

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


def commands(folder: Path, *arguments: list[str], allowed: str = "") -> list[Told]:
    """What commands say in a folder, with plugins of camkit and `allowed`, and no torch."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(arguments),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "CAMKIT_PLUGINS": allowed},
    )
    assert done.returncode == 0, done.stderr
    return [Told(*one) for one in json.loads(done.stdout)]


# What a line says of a command: the value that is wrong, and the way out.
CASES = {
    # explain
    "explain nowhere.jpg": r"image 'nowhere.jpg'",
    "explain cat.png nowhere.jpg": r"image 'nowhere.jpg'",
    "explain photos/nowhere.jpg": r"image 'photos/nowhere.jpg'",
    "explain nowhere*.jpg": r"no image .*'nowhere\*.jpg'",
    "explain empty": r"no image .*'empty'",
    "explain cat.png --alpha 1.5": r"alpha .* between 0 and 1, not 1.5",
    "explain cat.png --alpha nan": r"alpha .* between 0 and 1, not nan",
    "explain cat.png --cmap magna": r"colour map 'magna'.*'magma'",
    "explain cat.png --backend nativ": r"explainer 'nativ'.*'native'",
    "explain cat.png --method gradcan": r"native .*'gradcan'.*'gradcam'",
    "explain cat.png -o reducton=sum": r"native .*'reducton'.*'reduction'",
    "explain cat.png -o fast=perhaps": r"fast of native .*true\|false.*'perhaps'",
    "explain cat.png --model imagent": r"model 'imagent'.*'imagenet'",
    "explain cat.png --model resnet34": r"'resnet34'.*torchvision:resnet34",
    "explain cat.png --model torchvison:resnet34": r"'torchvison:resnet34'.*'torchvision'",
    "explain cat.png --model runs/pets": "bundle folder 'runs/pets'",
    "explain cat.png --model empty": r"empty .*camkit.json",
    "explain cat.png --model bundle:nowhere": r"nowhere .*camkit.json",
    "explain cat.png --model timm:resnet18@w.pth": r"weights file 'w.pth'",
    "explain cat.png --model torchvision:resnet18@w.pth": r"weights file 'w.pth'",
    "explain cat.png --model fastai:resnet18@w": "weights file 'w'",
    "explain cat.png --model fastai:export.pkl --trust-pickle": r"file 'export.pkl'",
    "explain cat.png --class bengall": r"class 'bengall'.*'Bengal'",
    "explain cat.png --class 99": r"class 99: .*37 classes, 0 to 36",
    "explain cat.png --class top:0": r"class 'top:0': .*positive",
    "explain cat.png --model imagenet --class top:x": r"class 'top:x': .*positive",
    "explain cat.png --device cuda:x": r"device 'cuda:x': .*auto, cpu, cuda or cuda:N",
    "explain cat.png --out ''": "--out is empty",
    "explain ''": r"\[IMAGES\]\.\.\. is empty",
    "explain merge nowhere --out all": "file or folder 'nowhere'",
    "explain merge empty --out all": r"empty .*manifest.jsonl",
    # finished folders
    "verify nowhere": "file or folder 'nowhere'",
    "verify results --images nowhere": "file or folder 'nowhere'",
    "verify results --model imagent": "model 'imagent'",
    "verify nothing": r"nothing .*no results",
    "verify damaged": r"damaged .*manifest.jsonl, line 1: .*damaged",
    "verify pipe": r"pipe/manifest.jsonl .*not a regular file",
    "verify ''": "FOLDER is empty",
    "render nothing": r"nothing .*no results",
    "render nowhere": "file or folder 'nowhere'",
    "render results --images nowhere": "file or folder 'nowhere'",
    "render results --alpha -1": r"alpha .* between 0 and 1, not -1.0",
    "render results --cmap magna": "colour map 'magna'",
    # models
    "model layers imagent": "model 'imagent'",
    "model classes runs/pets": "bundle folder 'runs/pets'",
    "model summary timm:resnet18@w.pth": r"weights file 'w.pth'",
    # train
    "train photos --trainer torhc": r"trainer 'torhc'.*'torch'",
    "train nowhere --trainer torch": "folder of photographs 'nowhere'",
    "train pets --trainer torch": r"folder of photographs 'pets'.*fastai",
    "train photos --trainer torch --recipe pets-smal": r"recipe 'pets-smal'.*'pets-small'",
    "train photos --trainer torch --recipe mine.toml": r"recipe 'mine.toml'",
    "train photos --trainer torch --show-recipe --recipe x": "recipe 'x'",
    "train photos --trainer torch --weights w.pth": r"weights file 'w.pth'",
    "train photos --trainer torch --recipe broken.toml": r"recipe 'broken.toml' .*TOML",
    "train photos --trainer torch --out begun": r"begun .*unfinished.*--resume",
    "train photos --trainer torch --out trained": r"trained .*trained model",
    # bench
    "bench --device cuda:": "device 'cuda:'",
    "bench --images nowhere.jpg": r"image 'nowhere.jpg'",
    "bench --images empty": r"no image .*'empty'",
    "bench --truth nowhere": "file or folder 'nowhere'",
    "bench --metrics latancy": r"metric 'latancy'.*'latency'",
    "bench --metrics sanity,spearmen": r"metric 'spearmen'.*'spearman'",
    "bench --backend nativ": "explainer 'nativ'",
    "bench --method gradcan": r"native .*'gradcan'.*'gradcam'",
    "bench --model imagent": "model 'imagent'",
    "bench compare nowhere results": "file or folder 'nowhere'",
    "bench compare results nowhere": "file or folder 'nowhere'",
    "bench report nowhere": "file or folder 'nowhere'",
    "bench report empty": r"empty/bench.json .*No such file",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("early")
    for name in ("empty", "results", "photos", "nothing", "damaged", "pipe", "begun", "trained/bundle"):
        (made / name).mkdir(parents=True)
    line = {"schema": 2, "status": "error", "request": "r", "name": "a.png", "image": "a.png"}
    (made / "results" / "manifest.jsonl").write_text(json.dumps(line))
    (made / "nothing" / "manifest.jsonl").touch()
    (made / "damaged" / "manifest.jsonl").write_text(json.dumps(line)[:40])
    os.mkfifo(made / "pipe" / "manifest.jsonl")
    (made / "begun" / "checkpoint.pt").touch()
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
    assert re.search(CASES[case], found.stderr), found.stderr
    assert found.stderr.startswith("Error: ") and found.stderr.count("\n") == 1, found.stderr
    assert found.code == 2 and found.stdout == ""


def test_a_folder_that_cannot_be_written_is_told_without_torch(folder: Path) -> None:
    found = commands(
        folder,
        ["explain", "cat.png", "--out", "cat.png/out"],
        ["explain", "merge", "results", "--out", "cat.png/out"],
        ["bench", "--out", "cat.png/out"],
        ["train", "photos", "--trainer", "torch", "--out", "cat.png/out"],
    )
    for one in found:
        assert one.code == 1 and one.stderr.endswith("cat.png/out: Not a directory\n"), one.stderr
        assert one.stderr.startswith("Error: ") and one.stderr.count("\n") == 1
    (found,) = commands(folder, ["explain", "cat.png", "--out", "pipe"])
    assert found.code == 1 and re.fullmatch(r"Error: .*pipe/manifest\.jsonl.*regular file\n", found.stderr)


@pytest.mark.parametrize("name", ["auto", "cpu", "cuda:1", "mps", "xpu:0", "fake", "my_device:12"])
def test_devices_that_a_package_may_bring_are_left_to_torch(name: str) -> None:
    early_checks.device(name)


def test_a_recipe_that_a_trainer_of_another_package_does_not_bring(folder: Path) -> None:
    if not any(one.dist == "camkit-fastai" for one in discovery.find("trainer")):
        pytest.skip("camkit-fastai is not installed")
    recipe, data = commands(
        folder,
        ["train", "photos", "--recipe", "leson6"],
        ["train", "nowhere"],
        allowed="camkit-fastai",
    )
    assert recipe.code == 2 and "'leson6'" in recipe.stderr and "'lesson6'" in recipe.stderr
    assert data.code == 2 and "'nowhere'" in data.stderr


def test_too_little_memory_for_the_libraries_of_torch_is_told_in_our_words(folder: Path) -> None:
    """Whether camkit imports torch, or a plugin does."""
    for one in commands(
        folder,
        ["explain", "cat.png", "--workers", "0"],
        ["plugin", "show", "native"],
        ["model", "list", "timm:*"],
    ):
        assert one.code == 1
        assert re.fullmatch(r"Error: out of memory: .*torch.*`ulimit -v`.*\n", one.stderr), one.stderr


def test_what_is_known_early_is_what_there_is() -> None:
    assert set(METHODS) == set(Native.methods)
    own = [loading.load(one) for one in discovery.find("metric") if one.dist == discovery.HOST]
    assert own and {metric.category for metric in own} | {"latency"} == set(early_checks.CATEGORIES)
    assert complexity.Gini in own
