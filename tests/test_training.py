"""Training: data, recipes, the trainer `torch`, resuming, and the report."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import runner

import camkit
from camkit.cli import cli
from camkit.errors import CamkitError, ImageError, ModelError, UsageError
from camkit.testing import trainer_checks
from camkit.testing.trainers import TOY_CLASSES, toy_photos
from camkit.training import dataset, finetune, training_report
from camkit.training import recipe as recipes
from camkit.training.batches import Shuffled
from camkit.training.torch_trainer import Recipe, Stage, TorchTrainer

RECIPE: dict[str, Any] = {
    "batch_size": 8,
    "stages": [{"epochs": 2, "lr": 0.02, "body_lr": 0.02}, {"epochs": 1, "lr": 0.01, "body_lr": 0.01}],
}
ASKED: dict[str, Any] = {"arch": "timm:test_resnet", "recipe": RECIPE, "weights": "none"}


@trainer_checks("torch", dist="camkit", request=ASKED)
def test_conformance(check: Callable[[], None]) -> None:
    check()


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_photos(tmp_path_factory.mktemp("data") / "toys")


def train(data: Path, out: Path, **given: Any) -> camkit.TrainResult:
    return camkit.train(data, trainer="torch", out=out, device="cpu", **ASKED | given)


# --- data -----------------------------------------------------------------------------------------


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), 3, 3)).save(path)
    return folder


@pytest.mark.parametrize(
    "names",
    [
        ("b/1.jpg", "a/deep/2.jpg", "a/1.jpg"),
        ("b_1.jpg", "a_2.jpg", "a_10.jpg"),
        ("images/b_1.jpg", "images/a_2.jpg", "images/a_10.jpg", "annotations/trimaps/a_2.png"),
    ],
)
def test_each_layout_is_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    data = dataset.read(photos(tmp_path, *names))
    assert data.classes == ("a", "b") and data.labels == (0, 0, 1)
    assert [data.name(i) for i in range(3)] == sorted(n.removeprefix("images/") for n in names[:3])


def test_labels_may_hold_digits_and_underscores(tmp_path: Path) -> None:
    data = dataset.read(photos(tmp_path, "great_pyrenees_12.jpg", "type_2_cat_7.PNG"))
    assert data.classes == ("great_pyrenees", "type_2_cat")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "no image found"),
        (("a/1.jpg", "a/2.jpg"), "one class, 'a'"),
        (("a_1.jpg", "cat.jpg", "dog.jpg"), "2 of 3 photographs.*cat.jpg, dog.jpg"),
        (("a/1.jpg", "b_1.jpg"), "have no label"),
        (("train/a/1.jpg", "valid/a/2.jpg"), "one class, 'a'"),
        (("test/a/1.jpg", "valid/a/2.jpg"), "holds test, valid and no folder train"),
    ],
)
def test_data_that_cannot_be_used(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataset.read(photos(tmp_path, *names))


def test_damaged_files_are_named(tmp_path: Path) -> None:
    photos(tmp_path, *(f"a_{i}.png" for i in range(6)), "b_1.png")
    for i in range(4):
        (tmp_path / f"a_{i}.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"4 of 7 (?s:.*)a_0\.png(?s:.*)a_2\.png(?s:.*); \.\.\."):
        dataset.read(tmp_path)


def test_a_missing_folder() -> None:
    with pytest.raises(UsageError, match="'nowhere'"):
        dataset.read("nowhere")


def test_the_split_is_the_lessons_and_folds_are_disjoint(tmp_path: Path) -> None:
    data = dataset.Dataset(tmp_path, tuple(Path(f"{i}") for i in range(23)), (0,) * 23, ("a",))
    folds = [data.split(0.2, 2, fold) for fold in range(5)]
    lesson = np.random.RandomState(2).permutation(23)[: int(0.2 * 23)].tolist()
    assert folds[0][1] == lesson
    assert all(sorted(a + b) == list(range(23)) for a, b in folds)
    assert len({i for _, valid in folds for i in valid}) == 20
    with pytest.raises(UsageError, match="fold 5"):
        data.split(0.2, 2, 5)


def test_a_class_without_training_photographs_is_told(tmp_path: Path) -> None:
    data = dataset.Dataset(tmp_path, (Path("1"), Path("2")), (0, 1), ("a", "b"))
    with pytest.raises(CamkitError, match=r"\(b\)"):
        dataset.check_classes(data, [0])


# --- starting points ------------------------------------------------------------------------------


def test_a_new_head_keeps_every_other_weight() -> None:
    base = finetune.pretrained("timm:test_resnet", "none", torch.device("cpu"))
    model, head = finetune.with_new_head(base, ("a", "b"), seed=1)
    old, new = base.module.state_dict(), model.module.state_dict()
    assert head == {"fc.weight", "fc.bias"} and model.classes == ("a", "b")
    assert all(torch.equal(old[name], new[name]) for name in new if name not in head)
    again, _ = finetune.with_new_head(base, ("a", "b"), seed=1)
    other, _ = finetune.with_new_head(base, ("a", "b"), seed=2)
    assert torch.equal(again.module.state_dict()["fc.weight"], new["fc.weight"])
    assert not torch.equal(other.module.state_dict()["fc.weight"], new["fc.weight"])


@pytest.mark.parametrize(
    ("arch", "name"),
    [("resnet18", "torchvision:resnet18@none"), ("test_vit", "timm:test_vit@none")],
)
def test_bare_names(arch: str, name: str) -> None:
    assert finetune.pretrained(arch, "none", torch.device("cpu")).name == name


@pytest.mark.parametrize(
    ("arch", "weights", "message"),
    [("resnet43", "none", "resnet43"), ("imagenet", "none", "own weights")],
)
def test_starting_points_that_do_not_exist(arch: str, weights: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        finetune.pretrained(arch, weights, torch.device("cpu"))


# --- recipes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(TorchTrainer.recipes))
def test_the_recipes_hold_what_the_trainer_knows(name: str) -> None:
    table = recipes.table(TorchTrainer(None), name)
    plan, stages = recipes.read(table, Recipe, Stage)
    assert stages and plan.fold == 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("defalt", "'defalt'.*'default'"),
        ({"batchsize": 3}, "'batchsize'.*'batch_size'"),
        ({"stages": [{"epochs": 0}]}, "epochs of a stage .*at least 1"),
        ({"stages": []}, "no stages"),
        ({"stages": [{"lr": 0.0}]}, "lr of a stage .*at least"),
        ({"valid": 0.0}, "fold 0 of 0%"),
    ],
)
def test_recipes_that_are_refused(toys: Path, tmp_path: Path, recipe: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        train(toys, tmp_path / "out", recipe=recipe)
    assert not (tmp_path / "out" / "bundle").exists()


def test_a_recipe_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("batch_size = 4\n[[stages]]\nepochs = 1\n")
    table = recipes.table(TorchTrainer(None), tmp_path / "mine.toml")
    assert table == {"batch_size": 4, "stages": [{"epochs": 1}]}
    (tmp_path / "mine.toml").write_text("batch_size = = 4")
    with pytest.raises(UsageError, match="TOML"):
        recipes.table(TorchTrainer(None), tmp_path / "mine.toml")


# --- runs -----------------------------------------------------------------------------------------


class Killed(BaseException):
    """As a signal would end the process."""


def killed_after(epochs: int) -> Callable[[float, str], None]:
    def progress(fraction: float, text: str) -> None:
        if text.startswith(f"epoch {epochs}/"):
            raise Killed

    return progress


@pytest.fixture(scope="module")
def whole(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> camkit.TrainResult:
    """An undisturbed training."""
    return train(toys, tmp_path_factory.mktemp("whole"))


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    toys: Path, tmp_path: Path, whole: camkit.TrainResult, epochs: int
) -> None:
    with pytest.raises(Killed):
        train(toys, tmp_path / "out", progress=killed_after(epochs))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint.pt"]
    resumed = train(toys, tmp_path / "out", resume=True)
    assert resumed.history == whole.history and resumed.steps == whole.steps
    hashes = [camkit.load_model(result.bundle, device="cpu").sha256 for result in (whole, resumed)]
    assert hashes[0] == hashes[1]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["bundle", "result.json"]


def test_folders_that_are_taken(toys: Path, tmp_path: Path, whole: camkit.TrainResult) -> None:
    with pytest.raises(Killed):
        train(toys, tmp_path, progress=killed_after(1))
    with pytest.raises(UsageError, match=r"unfinished training.*--resume"):
        train(toys, tmp_path)
    with pytest.raises(UsageError, match="another seed"):
        train(toys, tmp_path, resume=True, seed=1)
    with pytest.raises(UsageError, match="trained model already"):
        train(toys, whole.bundle.parent, resume=True)


@pytest.mark.parametrize("changed", ["a photograph", "the weights"])
def test_a_training_on_other_contents_is_another(toys: Path, tmp_path: Path, changed: str) -> None:
    data, start = tmp_path / "data", tmp_path / "start.pth"
    shutil.copytree(toys, data)
    module = camkit.load_model("timm:test_resnet@none", device="cpu").module
    torch.save(module.state_dict(), start)
    with pytest.raises(Killed):
        train(data, tmp_path / "out", progress=killed_after(1), weights=str(start))
    if changed == "the weights":
        with torch.no_grad():
            next(module.parameters()).add_(0.01)
        torch.save(module.state_dict(), start)
    else:
        photo = min(data.rglob("*.png"))
        Image.open(photo).rotate(180).save(photo)
    with pytest.raises(UsageError, match=r"with another content of its (weights|photographs): choose"):
        train(data, tmp_path / "out", resume=True, weights=str(start))


def test_a_damaged_checkpoint_runs_no_code(toys: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(toys, tmp_path, progress=killed_after(1))
    path = tmp_path / "checkpoint.pt"
    torch.save({"identity": Evil()}, path)
    with pytest.raises(CamkitError, match=r"could run code.*remove"):
        train(toys, tmp_path, resume=True)
    assert not Path("evil").exists()


class Evil:
    def __reduce__(self) -> Any:
        return (Path("evil").write_text, ("x",))


def test_a_body_at_rest_stays_as_it_is(toys: Path, tmp_path: Path) -> None:
    recipe = {"batch_size": 8, "stages": [{"epochs": 1, "lr": 0.1, "body_lr": 0.0}]}
    result = train(toys, tmp_path / "out", recipe=recipe)
    base = finetune.pretrained("timm:test_resnet", "none", torch.device("cpu")).module.state_dict()
    new = camkit.load_model(result.bundle, device="cpu").module.state_dict()
    assert [name for name in base if not torch.equal(base[name], new[name])] == ["fc.weight", "fc.bias"]


def test_the_global_generator_is_left_alone(toys: Path, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(toys, tmp_path / "out", recipe={"batch_size": 8})
    assert torch.equal(torch.get_rng_state(), before)


def test_the_bundle_says_what_an_auditor_asks(whole: camkit.TrainResult) -> None:
    result = whole
    facts = json.loads((result.bundle / "camkit.json").read_text())
    assert facts["metrics"] == result.metrics and facts["seed"] == 0
    assert facts["recipe"] == {**asdict(Recipe(batch_size=8)), "stages": RECIPE["stages"]}
    assert facts["trainer"] == "torch" and facts["versions"]["camkit"] == camkit.__version__
    assert len(facts["split"]["train"]) == 20 and len(facts["split"]["valid"]) == 4
    assert {f"{path.parent.name}/{path.name}" for path, _ in result.validation} == set(
        facts["split"]["valid"]
    )
    assert [step["lr"] > 0 for step in result.steps] == [True] * len(result.steps)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_keeps_the_weights_in_float32(toys: Path, tmp_path: Path, precision: Any) -> None:
    recipe = {"batch_size": 8, "stages": [{"epochs": 2, "lr": 0.02, "body_lr": 0.02}]}
    result = train(toys, tmp_path / "out", precision=precision, recipe=recipe)
    assert camkit.load_model(result.bundle, device="cpu").dtype == torch.float32
    assert json.loads((result.bundle / "camkit.json").read_text())["precision"] == precision
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_one_process_of_several_writes(toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result = train(toys, tmp_path / "out")
    assert len(result.history) == 3 and not list((tmp_path / "out").iterdir())


def test_a_process_that_is_killed_leaves_nothing_half_written(toys: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch, which nothing in the process can see coming."""
    out = tmp_path / "run"
    recipe = tmp_path / "long.toml"
    recipe.write_text("batch_size = 8\n[[stages]]\nepochs = 40\nlr = 0.01\nbody_lr = 0.01\n")
    command = [sys.executable, "-m", "camkit", "train", toys, *QUICK, "--recipe", recipe, "--out", out]
    with subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                break
        process.kill()
    assert [p.name for p in out.iterdir() if not p.name.startswith(".")] == ["checkpoint.pt"]
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    assert 2 <= state["epoch"] < 40 and len(state["history"]) == state["epoch"]


# --- the report -----------------------------------------------------------------------------------


def test_the_report_counts_what_the_bundle_says(tmp_path: Path, whole: camkit.TrainResult) -> None:
    result = whole
    verdicts, written = training_report.write(result, tmp_path / "out", device="cpu")
    assert verdicts is not None and verdicts.error_rate == result.metrics["error_rate"]
    assert [p.name for p in written if p.suffix == ".png"] == ["curves.png", "confusion.png", "worst.png"]
    assert written[-1].name == "index.html"
    for path in written:
        if path.suffix == ".png":
            assert min(Image.open(path).size) > 100
    rows = list(csv.DictReader((tmp_path / "out" / "history.csv").open()))
    assert [float(row["train_loss"]) for row in rows] == [e["train_loss"] for e in result.history]


def test_verdicts_by_hand(tmp_path: Path) -> None:
    model = finetune.pretrained("timm:test_resnet", "none", torch.device("cpu"))
    model, _ = finetune.with_new_head(model, TOY_CLASSES, seed=0)
    said = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    verdicts = training_report.Verdicts(model, (Path("x"),) * 4, torch.tensor([0, 1, 1, 1]), said)
    assert verdicts.error_rate == 0.5
    assert verdicts.confusion()[0].tolist() == [[1, 0, 0], [2, 1, 0], [0, 0, 0]]
    assert verdicts.confused() == [("green", "blue", 2)]
    torch.testing.assert_close(verdicts.losses, -torch.tensor([0.7, 0.3, 0.8, 0.4]).log())
    assert list(verdicts.lines()) == [
        "error 50.0%: 2 of 4 held-out photographs",
        "  green taken for blue: 2",
    ]


# --- the command ----------------------------------------------------------------------------------


QUICK = ("--trainer", "torch", "--arch", "test_resnet", "--weights", "none")


def run(*arguments: Any) -> Any:
    return runner().invoke(cli, [*map(str, arguments)])


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "quick.toml"
    path.write_text("batch_size = 8\n[[stages]]\nepochs = 2\nlr = 0.02\nbody_lr = 0.02\n")
    return path


def test_train_then_explain(toys: Path, tmp_path: Path, recipe_file: Path) -> None:
    out = tmp_path / "run"
    done = run("train", toys, *QUICK, "--recipe", recipe_file, "--out", out)
    assert done.exit_code == 0, done.output
    assert "held-out photographs" in done.stdout and f"bundle: {out / 'bundle'}" in done.stdout
    assert "epoch 2/2" in done.stderr
    explained = run(
        "explain", toys / "red", "--model", out / "bundle", "--class", "red", "--out", tmp_path / "maps"
    )
    assert explained.exit_code == 0, explained.output


def test_show_recipe_prints_a_recipe_that_can_be_used(tmp_path: Path) -> None:
    shown = run("train", "--trainer", "torch", "--show-recipe")
    assert shown.exit_code == 0
    assert shown.stdout == TorchTrainer.recipes["default"].read_text()


def test_preview_writes_one_picture(toys: Path, tmp_path: Path) -> None:
    done = run("train", toys, *QUICK, "--preview", "--out", tmp_path)
    assert done.exit_code == 0, done.output
    assert [p.name for p in tmp_path.iterdir()] == ["preview.png"]
    assert Image.open(tmp_path / "preview.png").width > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pets",), "no folder of photographs 'pets'; the trainer fastai can fetch it"),
        (("nowhere",), "no folder of photographs"),
        (("nowhere", "--trainer", "troch"), "did you mean 'torch'"),
        (("nowhere", "--recipe", "nothing"), "there is no recipe"),
        ((".", "-o", "wrkers=2"), "did you mean 'workers'"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    done = run("train", "--trainer", "torch", *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2 and message in done.stderr and not (tmp_path / "out" / "bundle").exists()
    assert "Traceback" not in done.output


def test_unwritable_out(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CamkitError, match="cannot write"):
        train(toys, tmp_path / "file" / "out")


@pytest.fixture
def again(whole: camkit.TrainResult, tmp_path: Path) -> tuple[str, ...]:
    """The options of the command that trains `whole`."""
    recipe = tmp_path / "recipe.toml"
    stages = "".join(
        "[[stages]]\n" + "".join(f"{key} = {value}\n" for key, value in stage.items())
        for stage in RECIPE["stages"]
    )
    recipe.write_text(f"batch_size = {RECIPE['batch_size']}\n{stages}")
    asked = ("--trainer", "torch", "--arch", ASKED["arch"], "--weights", "none", "--recipe", str(recipe))
    return (*asked, "--resume", "--out", str(whole.bundle.parent))


def test_a_finished_run_has_nothing_to_resume(
    whole: camkit.TrainResult, toys: Path, again: tuple[str, ...]
) -> None:
    training_report.write(whole, whole.bundle.parent, device="cpu")
    done = run("train", toys, *again)
    assert done.exit_code == 0 and done.stdout == f"bundle: {whole.bundle}\n", done.stderr
    assert run("train", "nowhere", *again).exit_code == 0, "which needs no photographs any more"


def test_a_finished_run_of_something_else_is_no_finished_run(
    whole: camkit.TrainResult, toys: Path, tmp_path: Path, again: tuple[str, ...]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(toys, other)
    for photo in other.rglob("*.png"):
        Image.open(photo).rotate(180).save(photo)
    for data, more, said in (
        (toys, ("--seed", "7"), "seed"),
        (toys, ("--arch", "timm:test_vit"), "architecture"),
        (toys, ("--valid", "0.3"), "recipe"),
        (other, (), "data"),
    ):
        done = run("train", data, *again, *more)
        assert done.exit_code == 2 and f"holds a training with another {said}" in done.stderr, done.stderr


def test_the_folder_of_a_run_is_its_bundle(whole: camkit.TrainResult) -> None:
    model = camkit.load_model(whole.bundle.parent, device="cpu")
    assert model.sha256 == camkit.load_model(whole.bundle, device="cpu").sha256


def test_the_model_does_not_depend_on_how_many_processes_read(
    toys: Path, whole: camkit.TrainResult, tmp_path: Path
) -> None:
    """And they stay for all epochs."""
    found = train(toys, tmp_path / "run", workers=2)
    assert found.history == whole.history and found.steps == whole.steps


def test_the_order_of_photographs_is_another_in_every_epoch_and_the_same_in_every_run() -> None:
    order = Shuffled(100, seed=3)
    first, order.epoch = list(order), 1
    second = list(order)
    assert sorted(first) == [*range(100)] and sorted(second) == [*range(100, 200)]
    assert [number - 100 for number in second] != first
    assert list(Shuffled(100, seed=3)) == first != list(Shuffled(100, seed=4))


def test_ctrl_c_says_how_to_go_on(
    toys: Path, tmp_path: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, progress: Callable[[float, str], None], **__: Any) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "checkpoint.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr("camkit.training.train_model.train", interrupted)
    done = run("train", toys, *QUICK, "--recipe", recipe_file, "--out", tmp_path / "run")
    assert done.exit_code == 130 and "--resume" in done.stderr


def test_real_pets_are_recognised(pets: Path) -> None:
    data = dataset.read(pets)
    assert len(data.classes) == 37 and data.classes[0] == "Abyssinian" and len(data.paths) == 370
