"""A sample of `python -m tests.fuzz`, and what its cases once found."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from tests import fuzz
from tests.fuzz import TARGETS, Outcome, Target, results

import camkit
from camkit.core.layers import find
from camkit.core.targets import class_selector
from camkit.drawing.style import Style
from camkit.errors import CamkitError, LayerError, ModelError, TargetError, UsageError
from camkit.explaining import manifest
from camkit.explaining.merging import merge
from camkit.explaining.redrawing import redraw
from camkit.explaining.verification import verify
from camkit.images import finding as images
from camkit.images.preprocess import Preprocess
from camkit.metrics import ground_truth
from camkit.models.weights import built_for
from camkit.registry import loading
from camkit.training import recipe

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="this system has no alarm clock")

CASES = 40  # for a target whose share is 1


@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_is_accepted_or_refused_with_a_reason(name: str, tmp_path: Path) -> None:
    outcome = fuzz.fuzz(name, tmp_path, cases=round(CASES * TARGETS[name].share))
    assert not outcome.failures, outcome.row()
    assert outcome.refused


# --- that it would find something -------------------------------------------------------------------


def _raise(error: BaseException) -> Callable[[Path], fuzz.Case]:
    def case(random: Random) -> None:
        raise error

    return lambda box: case


def _wait(box: Path) -> fuzz.Case:
    def case(random: Random) -> None:
        try:
            while True:
                pass
        except Exception:  # as readers of files have it
            pass

    return case


def _write(box: Path) -> fuzz.Case:
    return lambda random: np.save(box.parent / "outside" / "new.npy", random.random())


def _overwrite(box: Path) -> fuzz.Case:
    return lambda random: np.save(box.parent / "outside" / "secret.npy", random.random())


FAULTS = {
    "an exception of another kind": (_raise(KeyError("name")), "KeyError('name')"),
    "a refusal of the wrong kind": (_raise(ModelError("no")), "ModelError('no')"),
    "an exit": (_raise(SystemExit(3)), "SystemExit(3)"),
    "a loop": (_wait, "longer than 0.2 s"),
    "a new file elsewhere": (_write, "changed files outside"),
    "another file elsewhere": (_overwrite, "changed files outside"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_can_be_had_again(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, expected = FAULTS[fault]
    monkeypatch.setitem(TARGETS, "mine", Target(make, (UsageError,), seconds=0.2))
    outcome = fuzz.fuzz("mine", tmp_path, cases=2, seed=5, first=7)
    assert outcome.failed == 2
    (number, reason), *_ = outcome.failures.values()
    assert number == 7 and expected in reason
    assert "--target mine --seed 5 --first 7 --cases 1" in outcome.row()


def test_a_case_depends_on_nothing_but_seed_and_number(tmp_path: Path) -> None:
    def inputs(seed: int, first: int) -> list[bytes]:
        return [fuzz.odd_bytes(Random(f"{seed} images {n}"), bytes(range(99))) for n in (first, first + 1)]

    assert inputs(0, 3)[1:] == inputs(0, 4)[:1]
    assert inputs(0, 3) != inputs(1, 3)
    assert Outcome("images", 1).row().split()[:2] == ["images", "0"]


# --- what was found -----------------------------------------------------------------------------------


def test_numbers_of_thousands_of_digits() -> None:
    many = "9" * 5000
    for text in (many, f"top:{many}"):
        with pytest.raises(TargetError):
            class_selector([text], ("a", "b"))
    with pytest.raises(LayerError):
        find(torch.nn.Sequential(torch.nn.ReLU()), f"-{many}")


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 5000 + "]" * 5000])
def test_a_recipe_that_its_parser_trips_over_is_no_toml(tmp_path: Path, value: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"batch_size = {value}\n")
    with pytest.raises(UsageError, match="TOML"):
        recipe.table(loading.make("trainer", "torch"), path)


def test_a_coordinate_beyond_floats_is_no_coordinate(tmp_path: Path) -> None:
    path = tmp_path / "coco.json"
    annotation = {"image_id": 1, "bbox": [10**400, 1, 2, 3]}
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation]}))
    with pytest.raises(UsageError, match=r"a\.jpg"):
        ground_truth.read(path)(Path("a.jpg"), (48, 40))


def test_control_characters_and_half_signs_of_strangers_do_not_reach_the_terminal() -> None:
    assert str(CamkitError("a\x1b[2J\udcff\x9b\nb")) == "a\\x1b[2J\\udcff\\x9b\nb"
    assert images.display("a\ud800\udcff\n") == "a\\ud800\\xff\\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of results in every format."""
    return results(tmp_path_factory.mktemp("made"))


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of pictures and maps to damage."""
    return Path(shutil.copytree(made["png"], tmp_path / "folder"))


@pytest.fixture
def tables(made: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of maps in one table to damage."""
    return Path(shutil.copytree(made["parquet"], tmp_path / "folder"))


def change(folder: Path, **changes: Any) -> None:
    """Set fields of every line, also to what `as_json` would refuse."""
    path = folder / manifest.NAME
    lines = [json.loads(line) | changes for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


NO_LINES = {
    "a number that JSON does not have": {"probability": float("nan")},
    "half a sign in a name": {"name": "\ud800"},
    "an escape in a layer": {"layer": "\x1b[2J"},
    "a map of no values": {"map_shape": [0, 3]},
    "a map of yes by yes": {"map_shape": [True, True]},
    "the manifest as a map": {"map_file": "manifest.jsonl"},
    "the manifest as a picture": {"overlay_file": "manifest.jsonl"},
    "a type that is a list": {"dtype": ["float32"]},
    "a model that is a number": {"model_spec": 0.5},
}


@pytest.mark.parametrize("case", NO_LINES)
def test_what_camkit_never_writes_is_no_line_of_a_manifest(folder: Path, case: str) -> None:
    assert manifest.latest(folder)
    change(folder, **NO_LINES[case])
    assert manifest.latest(folder) == []


UNSOUND = {
    "an unknown type": ({"dtype": "float32x"}, "there is no type 'float32x'"),
    "an option that is an argument": ({"options": {"target": 1}}, "no option 'target'"),
    "processes": ({"options": {"workers": 10**6}}, "no option 'workers'"),
    "options that are a list": ({"options": []}, "damaged"),
    "a class that is not there": ({"class_index": 10**30}, "no class"),
    "a model that is not there": ({"model_spec": "nowhere"}, "no model 'nowhere'"),
}


@pytest.mark.parametrize("case", UNSOUND)
def test_a_line_that_cannot_be_computed_again_is_a_finding(folder: Path, case: str) -> None:
    changes, expected = UNSOUND[case]
    change(folder, **changes)
    found = verify(folder, sample=1).findings
    assert len(found) == 1 and expected in found[0].reason


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", ["map_file", "overlay_file"])
def test_a_fifo_among_the_results_is_not_waited_for(folder: Path, tmp_path: Path, name: str) -> None:
    path = folder / manifest.latest(folder)[0][name]
    path.unlink()
    os.mkfifo(path)
    with fuzz.time_limit(20):
        assert path.name in {finding.file for finding in verify(folder, sample=0).findings}
        (found,) = merge([folder], tmp_path / "out").findings
        assert path.name in found.file and "not a regular file" in found.reason


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_manifest_that_never_ends_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / manifest.NAME
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        path.unlink()
        make(path)
        with fuzz.time_limit(20), pytest.raises(CamkitError, match=r"not a regular file|leads out of"):
            verify(folder)


def test_a_manifest_that_is_a_link_out_of_its_folder_is_not_written_to(
    folder: Path, tmp_path: Path
) -> None:
    path, elsewhere = folder / manifest.NAME, tmp_path / "elsewhere.jsonl"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    with pytest.raises(CamkitError, match="leads out of"):
        list(redraw(folder, style=Style()))
    assert elsewhere.read_bytes() == before


@pytest.mark.parametrize("name", ["../new.png", "/tmp/new.png", "a/../../new.png", "link/new.png"])
def test_pictures_and_copies_stay_inside(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    change(folder, overlay_file=name)
    before = fuzz.listing(tmp_path)
    (found,) = merge([folder], tmp_path / "out").findings
    assert "refused" in found.reason
    for line, error in redraw(folder, style=Style()):  # where a picture lies is told by its map
        assert error is None and line["overlay_file"] == f"{line['map_file'].removesuffix('.npy')}.png"
    ours = (f"{tmp_path}{os.sep}out", str(folder / manifest.NAME))
    kept, before = (
        [entry for entry in found if not entry[0].startswith(ours)]
        for found in (fuzz.listing(tmp_path), before)
    )
    assert kept == before


def test_a_photograph_that_would_become_far_too_large_is_refused(folder: Path, tmp_path: Path) -> None:
    huge = Preprocess(size=(8192, 8192), resize=16384).to_dict()
    change(folder, preprocessing=huge)
    with fuzz.time_limit(20):
        errors = [str(error) for _, error in redraw(folder, style=Style())]
    assert errors and all("more than 4,194,304 pixels" in error for error in errors)


# --- hostile models -----------------------------------------------------------------------------------


GIANTS = {
    "a huge network": {"source": "timm", "name": "vit_giant_patch14_dinov2", "num_classes": 3},
    "a huge network of torchvision": {"source": "torchvision", "name": "regnet_y_128gf", "num_classes": 3},
    "a huge body": {
        "source": "fastai",
        "backbone": {"source": "timm", "name": "convnext_xxlarge"},
        "num_classes": 3,
    },
    "many classes": {"source": "torchvision", "name": "vgg11", "num_classes": 100_000},
    "a huge photograph": {
        "source": "torchvision",
        "name": "vit_b_16",
        "num_classes": 3,
        "image_size": 8192,
    },
}


@pytest.fixture
def net(tmp_path: Path) -> Path:
    return fuzz.bundle(tmp_path / "net")


def configure(net: Path, **changes: Any) -> None:
    path = net / "camkit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("case", GIANTS)
def test_a_network_far_larger_than_its_weights_takes_no_memory(net: Path, case: str) -> None:
    architecture = GIANTS[case]
    configure(net, architecture=architecture, classes=["a"] * architecture["num_classes"])
    before = fuzz.peak()
    with pytest.raises(ModelError, match=r"far larger|1 to 2048 pixels"):
        camkit.load_model(net, device="cpu")
    assert fuzz.peak() - before < 600


def test_a_bundle_that_wants_to_see_too_much_is_refused(net: Path) -> None:
    configure(net, preprocessing={"size": [8192, 8192]})
    with pytest.raises(ModelError, match=r"\(8192, 8192\) .*4,194,304 pixels"):
        camkit.load_model(net, device="cpu")


def test_a_file_that_holds_far_more_than_the_network_is_not_read(net: Path) -> None:
    path = net / "model.safetensors"
    size = 2**30  # a hole in the file, which takes no room on the disk
    header = json.dumps({"fc.weight": {"dtype": "F32", "shape": [size], "data_offsets": [0, 4 * size]}})
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())
    with path.open("r+b") as file:
        file.truncate(8 + len(header) + 4 * size)
    with pytest.raises(ModelError, match="far more"):
        camkit.load_model(net, device="cpu")


def test_the_limit_of_a_network_counts_its_parameters_and_ends_with_the_block() -> None:
    with pytest.raises(ModelError, match="far larger"), built_for(0):
        torch.nn.Linear(2**14, 2**14)
    with built_for(2**27):
        torch.nn.Linear(2**14, 2**14, device="meta")
    torch.nn.Linear(2**14, 2**14, device="meta")
