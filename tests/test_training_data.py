"""What a user's own data look like: tables of labels, their own split, several labels, bad luck."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import runner

import camkit
from camkit.cli import cli
from camkit.errors import CamkitError, ImageError, UsageError
from camkit.testing.trainers import toy_photos
from camkit.training import dataset, objective

PNG = b"\x89PNG\r\n\x1a\n"


def photos(folder: Path, *names: str) -> Path:
    """A picture of its own for each name."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name), number, 3)).save(path)
    return folder


def table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def labelled(data: Any, **given: Any) -> dict[str, Any]:
    """The labels by the names of the photographs."""
    found = dataset.read(data, **given)
    return {found.name(i): found.label(i) for i in range(len(found.paths))}


# --- tables ---------------------------------------------------------------------------------------

CATS = {"1.png": "cat", "2.png": "dog"}
TAGS = {"1.png": ("cat", "indoors"), "2.png": ("dog",)}
TABLES = {
    "header": ("name,label\n1.png,cat\n2.png,dog\n", CATS),
    "other order and a column more": ("label,id,filename\ncat,7,1.png\ndog,8,2.png\n", CATS),
    "no header": ("1.png,cat\n2.png,dog\n", CATS),
    "no suffix, any title": ("id_code,diagnosis\n1,cat\n2,dog\n", CATS),
    "of pandas": (",file,label\n0,1.png,cat\n1,2.png,dog\n", CATS),
    "two words": ("file,breed\n1.png,great dane\n2.png,pug\n", {"1.png": "great dane", "2.png": "pug"}),
    "a path and capitals": ("file,label\n./1.PNG,cat\n2.png,dog\n", CATS),
    "of Excel": ("\ufefffile;label\r\n1.png;cat\r\n2.png;dog\r\n", CATS),
    "one column of ones": ("file,cat,dog\n1.png,1,0\n2.png,0,1\n", CATS),
    "columns of ones": (
        "file,cat,dog,indoors\n1.png,1,0,1\n2.png,0.0,1.0,0\n",
        TAGS,
    ),
    "none of the columns": ("file,cat,dog\n1.png,1,1\n2.png,0,0\n", {"1.png": ("cat", "dog"), "2.png": ()}),
    "semicolons": ("file,label\n1.png,cat;indoors\n2.png,dog\n", TAGS),
    "bars": ("file,label\n1.png,cat | indoors\n2.png,dog\n", TAGS),
    "commas in quotes": ('file,label\n1.png,"cat, indoors"\n2.png,dog\n', TAGS),
    "spaces in tags": ("image_name,tags\n1,cat indoors\n2,dog\n", TAGS),
    "numbers": ("Id,Target\n1.png,16 0\n2.png,7\n", {"1.png": ("0", "16"), "2.png": ("7",)}),
    "blank lines": ("file,label\n\n1.png,cat\n,\n2.png,dog\n", CATS),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(tmp_path: Path, case: str) -> None:
    text, expected = TABLES[case]
    photos(tmp_path, "1.png", "2.png")
    path = table(tmp_path / "mine.csv", text)
    assert labelled(path) == expected
    path.rename(tmp_path / "labels.csv")
    assert labelled(tmp_path) == expected


def test_tabs_and_utf_16(tmp_path: Path) -> None:
    photos(tmp_path, "1.png", "2.png")
    (tmp_path / "labels.tsv").write_bytes(
        "file\tlabel\n1.png\tKätzchen, klein\n2.png\tHund\n".encode("utf-16")
    )
    assert labelled(tmp_path, labels="one") == {"1.png": "Kätzchen, klein", "2.png": "Hund"}


@pytest.mark.parametrize("folder", ["images", "train", "train_images", "a/b"])
def test_photographs_in_a_folder_beside_the_table(tmp_path: Path, folder: str) -> None:
    photos(tmp_path, f"{folder}/1.png", f"{folder}/2.png", "test/1.png", "__MACOSX/2.png")
    table(tmp_path / "train.csv", "id,breed\n1,pug\n2,boxer\n")
    assert labelled(tmp_path) == {f"{folder}/1.png": "pug", f"{folder}/2.png": "boxer"}


def test_photographs_elsewhere(tmp_path: Path) -> None:
    photos(tmp_path, "pictures/1.png", "pictures/2.png")
    path = table(tmp_path / "tables" / "a.csv", f"f,l\n../pictures/1.png,a\n{tmp_path}/pictures/2.png,b\n")
    assert labelled(path) == {"1.png": "a", "2.png": "b"}


def test_the_split_of_a_table(tmp_path: Path) -> None:
    photos(tmp_path, *(f"train/{i}.png" for i in range(5)))
    rows = ("0,a x,False", "1,b,False", "2,a,True", "3,x,True")
    table(tmp_path / "train.csv", "fname,labels,is_valid\n" + "\n".join(rows))
    data = dataset.read(tmp_path)
    assert data.several and data.held_out == {2, 3} and data.split(0.5, 7, 3) == ([0, 1], [2, 3])
    table(tmp_path / "train.csv", "fname,label,split\n0,a,train\n1,b,train\n2,a,val\n3,b,test\n")
    data = dataset.read(tmp_path)
    assert data.held_out == {2} and data.left_out == {"test": 1} and len(data.paths) == 3


def test_two_tables(tmp_path: Path) -> None:
    photos(tmp_path, *(f"{i}.png" for i in range(3)))
    table(tmp_path / "train.csv", "file,label\n0.png,a\n1.png,b\n")
    table(tmp_path / "val.csv", "file,label\n2.png,b\n")
    assert dataset.read(tmp_path).held_out == {2}


def test_which_column_and_how_many_labels_can_be_said(tmp_path: Path) -> None:
    photos(tmp_path, "1.png", "2.png")
    table(tmp_path / "labels.csv", "image_id,dx,age\n1,a b,40\n2,c,50\n")
    assert labelled(tmp_path, label_column="dx") == {"1.png": "a b", "2.png": "c"}
    assert labelled(tmp_path, label_column="dx", labels="several")["1.png"] == ("a", "b")
    table(tmp_path / "labels.csv", "file,label\n1.png,cat\n1.png,indoors\n2.png,dog\n")
    assert labelled(tmp_path, labels="several") == TAGS


BAD = {
    "empty": ("", "labels.csv is empty"),
    "only a header": ("file,label\n", "line 1: the table has no line below its header"),
    "one column": ("file\n1.png\n", "line 1 has 1 column, not 2"),
    "uneven": ("file,label\n1.png,cat\n2.png,dog,indoors\n", "labels.csv line 3 has 3 columns, not 2"),
    "no label": ("file,label\n1.png,\n2.png,dog\n", "labels.csv line 2 has no label"),
    "two labels": (
        "file,label\n1.png,cat\n1.png,dog\n",
        "line 3: 1.png is 'dog', but 'cat' in labels.csv line 2",
    ),
    "a quote": ('file,label\n1.png,"cat\n2.png,dog\n', "labels.csv line 3: unexpected end of data"),
    "not there": ("file,label\n8.png,cat\n9.png,dog\n", "line 2: there is no photograph '8.png'"),
    "one not there": (
        "file,label\n1.png,cat\n2.png,dog\n9.png,dog\n",
        "line 4: there is no photograph '9.png'",
    ),
    "which": (
        "file,age,weight\n1.png,3,4\n2.png,5,6\n",
        "which column holds the labels (age, weight): say",
    ),
    "one class": ("file,label\n1.png,cat\n2.png,cat\n", "are of one class, 'cat'"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_table_is_one_line_with_exit_code_2(tmp_path: Path, case: str) -> None:
    text, message = BAD[case]
    photos(tmp_path, "1.png", "2.png")
    table(tmp_path / "labels.csv", text)
    done = run("train", tmp_path, *QUICK, "--on-error", "fail", "--out", tmp_path / "out")
    assert done.exit_code == 2 and message in done.stderr and done.stderr.count("\n") == 1, done.output


def test_tables_that_are_none(tmp_path: Path) -> None:
    photos(tmp_path, "a/1.png", "b/1.png")
    path = table(tmp_path / "labels.csv", "file,label\n1.png,cat\n")
    with pytest.raises(UsageError, match=r"line 2: '1.png' may be a/1.png and b/1.png"):
        dataset.read(tmp_path)
    path.write_bytes(b"file,label\na/1.png,caf\xe9\n")
    with pytest.raises(UsageError, match=r"labels.csv line 2 is no UTF-8"):
        dataset.read(tmp_path)
    with pytest.raises(UsageError, match=r"no folder of photographs and no table \(.csv or .tsv\)"):
        dataset.read(tmp_path / "a" / "1.png")
    path.unlink()
    with pytest.raises(UsageError, match=r"no column 'dog'|holds no table"):
        dataset.read(tmp_path, label_column="dog")
    table(path, "file,label\na/1.png,cat\nb/1.png,dog\n")
    with pytest.raises(UsageError, match=r"no column 'lable'; did you mean 'label'"):
        dataset.read(tmp_path, label_column="lable")


# --- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "valid"), [("train", "valid"), ("Train", "val"), ("training", "validation")]
)
def test_the_users_own_split(tmp_path: Path, train: str, valid: str) -> None:
    names = [f"{train}/a/1.png", f"{train}/b/1.png", f"{valid}/b/2.png", "test/a/1.png", "test/3.png"]
    data = dataset.read(photos(tmp_path, *names))
    assert data.classes == ("a", "b") and {data.name(i) for i in data.held_out or ()} == {
        f"{valid}/b/2.png"
    }
    assert data.left_out == {"test": 2}


def test_a_class_that_is_only_held_out(tmp_path: Path) -> None:
    data = dataset.read(photos(tmp_path, "train/a/1.png", "train/b/1.png", "valid/c/2.png"))
    with pytest.raises(UsageError, match=r"no photograph to train on \(c\): add some, or take it out"):
        dataset.check_classes(data, data.split()[0])


def test_train_alone_is_split(tmp_path: Path) -> None:
    data = dataset.read(photos(tmp_path, "train/a/1.png", "train/b/1.png", "test/1.png"))
    assert data.held_out is None and len(data.paths) == 2


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (("cat/siamese/1.png", "dog/pug/1.png"), ("pug", "siamese")),
        (
            ("cat/black/1.png", "dog/black/1.png", "dog/white/1.png"),
            ("cat/black", "dog/black", "dog/white"),
        ),
        (("a/images/1.png", "b/images/1.png"), ("a", "b")),  # Tiny ImageNet
        (("all/a/1.png", "all/b/1.png"), ("a", "b")),
        (("all/a/1.png", "all/b/deep/1.png"), ("a", "b")),
        (("bus/1.png", "train/1.png"), ("bus", "train")),
    ],
)
def test_levels_of_folders(tmp_path: Path, names: tuple[str, ...], classes: tuple[str, ...]) -> None:
    assert dataset.read(photos(tmp_path, *names)).classes == classes


def test_hidden_files_are_left_out(tmp_path: Path) -> None:
    photos(tmp_path, "a/1.png", "b/1.png", "__MACOSX/a/1.png", ".thumbs/1.png")
    for name in ("a/._1.png", "b/.DS_Store", "__MACOSX/a/._1.png"):
        (tmp_path / name).write_bytes(b"\0\5\26\7")
    data = dataset.read(tmp_path)
    assert [data.name(i) for i in range(2)] == ["a/1.png", "b/1.png"] and data.left_out == {"hidden": 4}


def test_unreadable_photographs_are_skipped_if_asked(tmp_path: Path) -> None:
    photos(tmp_path, "a/1.png", "a/2.png", "b/1.png", "b/2.png")
    (tmp_path / "a" / "2.png").write_bytes(PNG)
    with pytest.raises(ImageError, match="1 of 4 photographs are unusable"):
        dataset.read(tmp_path)
    data = dataset.read(tmp_path, on_error="skip")
    assert len(data.paths) == 3 and [name for name, _ in data.skipped] == ["a/2.png"]


# --- the split, and what is said of it ------------------------------------------------------------


def made(labels: list[Any], classes: int = 3) -> dataset.Dataset:
    names = tuple("abcdef"[:classes])
    several = any(isinstance(label, tuple) for label in labels)
    paths = tuple(Path(f"{i}") for i in range(len(labels)))
    return dataset.Dataset(Path(), paths, tuple(labels), names, several=several)


def test_each_fold_has_its_share_of_each_class() -> None:
    data = made([0] * 50 + [1] * 20 + [2] * 5)
    for fold in range(5):
        _, valid = data.split(0.2, 3, fold, "stratified")
        assert data.count(valid) == {0: 10, 1: 4, 2: 1}
    assert data.split(0.2, 3, 0, "stratified") == data.split(0.2, 3, 0, "stratified")
    assert data.split(0.2, 4, 0, "stratified") != data.split(0.2, 3, 0, "stratified")


def test_rare_labels_of_several_are_spread() -> None:
    data = made([(0,)] * 40 + [(0, 1)] * 10 + [()] * 10, classes=2)
    _, valid = data.split(0.2, 0, 0, "stratified")
    assert len(valid) == 12 and data.count(valid)[1] == 2 and data.count(valid)[0] == 10


def test_all_that_is_found_is_said(tmp_path: Path) -> None:
    names = [f"train/{c}/{i}.png" for c in "ab" for i in range(6)]
    photos(tmp_path, *names, "train/c/1.png", "valid/a/1.png", "test/1.png")
    (tmp_path / "valid" / "b").mkdir()
    (tmp_path / "valid" / "b" / "1.png").write_bytes((tmp_path / names[0]).read_bytes())
    (tmp_path / "train" / "a" / "9.png").write_bytes(PNG)
    data = dataset.read(tmp_path, on_error="skip")
    told = dataset.facts(data, data.split()[1], {})["told"]
    assert told[0] == (
        "13 photographs to train on, 2 held out, 3 classes from the sub-folders: a 7, b 7, c 1 "
        "(as the user split them)"
    )
    assert told[1:4] == [
        "few photographs to train on, fewer than 5: c 1",
        "no photograph is held out, so nothing will be known, of c",
        "copies of other photographs: 1 (valid/b/1.png of train/a/0.png), 1 with another label; 1 held out "
        "of which a copy is trained on",
    ]
    assert told[4] == "left alone: 1 test" and told[5].startswith("skipped 1 that cannot be used: ")


def test_every_photograph_that_is_held_out_and_trained_on_is_counted(tmp_path: Path) -> None:
    """Whichever of the copies comes first."""
    for name in ("train/b/9.png", "train/b/8.png", "train/a/1.png", "valid/a/2.png", "valid/a/3.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (len(name) if "b" in name else 90, int(name[-5]) * ("b" in name), 0)).save(
            tmp_path / name
        )
    data = dataset.read(tmp_path)
    told = dataset.facts(data, data.split()[1], {})["told"]
    assert any(line.endswith("2 held out of which a copy is trained on") for line in told), told


# --- losses and figures ---------------------------------------------------------------------------


def test_balanced_weights() -> None:
    data = made([0] * 6 + [1] * 2 + [2])
    weights = objective.objective(data, range(9), "balanced").weights
    assert weights is not None and weights.tolist() == [0.5, 1.5, 3.0]
    data = made([(0, 1)] * 2 + [(0,)] * 6, classes=2)
    weights = objective.objective(data, range(8), "balanced").weights
    assert weights is not None and weights.tolist() == [0.125, 3.0]


def test_figures_of_several_labels_by_hand() -> None:
    scores = torch.tensor([[3.0, -1.0], [2.0, 1.0], [1.0, 1.0], [-1.0, -2.0]])
    truth = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    found = objective.Objective(several=True).figures(scores, truth)
    assert objective.average_precisions(scores, truth).tolist() == pytest.approx([5 / 6, 0.5])
    assert found["mean_average_precision"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx((4 / 5 + 2 / 3) / 2) and found["label_accuracy"] == 0.75
    assert found["valid_loss"] == pytest.approx(
        float(torch.nn.functional.binary_cross_entropy_with_logits(scores, truth))
    )
    nothing = objective.Objective(several=True).figures(scores, truth * 0)
    assert nothing["mean_average_precision"] == 0 and nothing["f1"] == 0


# --- trainings ------------------------------------------------------------------------------------

QUICK = ("--trainer", "torch", "--arch", "timm:test_resnet", "--weights", "none", "--device", "cpu")
RECIPE = "batch_size = 8\n[[stages]]\nepochs = 2\nlr = 0.02\nbody_lr = 0.02\n"


def run(*arguments: Any) -> Any:
    return runner().invoke(cli, [*map(str, arguments)])


def trained(data: Path, out: Path, given: Any = None, **changes: Any) -> camkit.TrainResult:
    """A training of an epoch, with changes to its recipe, and no report."""
    changes = {"batch_size": 4, "stages": [{"epochs": 1, "lr": 0.02}]} | changes
    asked = {"trainer": "torch", "arch": "timm:test_resnet", "weights": "none", "device": "cpu"}
    return camkit.train(data, out=out, changes=changes, **asked | (given or {}))  # type: ignore[arg-type]


def tagged(folder: Path, count: int = 30) -> Path:
    """Pictures with red, green, both or neither, and a table of these labels."""
    draw = np.random.default_rng(0)
    lines = ["file,tags"]
    for number in range(count):
        pixels = draw.integers(0, 60, (48, 48, 3), dtype=np.uint8)
        here = [bool(number & 1), bool(number & 2)]
        for channel in (0, 1):
            pixels[..., channel] += 180 * here[channel]
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / f"{number:02}.png")
        lines.append(
            f"{number:02},{' '.join(n for n, there in zip(('red', 'green'), here, strict=True) if there)}"
        )
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


def test_several_labels_from_table_to_report(tmp_path: Path) -> None:
    data, out = tagged(tmp_path / "data"), tmp_path / "out"
    recipe = table(tmp_path / "quick.toml", RECIPE.replace("epochs = 2", "epochs = 5"))
    done = run("train", data, *QUICK, "--recipe", recipe, "--class-weights", "balanced", "--out", out)
    assert done.exit_code == 0, done.output
    assert "24 photographs to train on, 6 held out, 2 classes from labels.csv, column tags" in done.stderr
    assert "mean average precision" in done.stderr and "mean average precision" in done.stdout
    facts = json.loads((out / "bundle" / "camkit.json").read_text())
    assert facts["scores"] == "sigmoid" and set(facts["data"]["classes"]) == {"green", "red"}
    assert facts["recipe"]["class_weights"] == "balanced" and facts["data"]["labels"]["several"]
    assert set(facts["metrics"]) == {"mean_average_precision", "f1", "label_accuracy", "valid_loss"}
    assert facts["metrics"]["mean_average_precision"] > 0.9
    rows = list(csv.DictReader((out / "classes.csv").open()))
    assert [row["class"] for row in rows] == ["green", "red"]
    assert all(float(row["average_precision"]) > 0.9 and int(row["trained_on"]) > 5 for row in rows)
    assert not (out / "confusion.png").exists() and (out / "worst.png").is_file()
    written = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    again = run("train", "report", out)
    assert again.exit_code == 0 and again.stdout == done.stdout, again.output
    assert written == {path.name: path.read_bytes() for path in out.glob("*.csv")}
    model = camkit.load_model(out / "bundle", device="cpu")
    assert model.scores == "sigmoid" and camkit.explain(model, data / "images" / "00.png").map.ndim == 2
    asked = ("train", data, *QUICK, "--recipe", recipe, "--resume", "--out", out)
    shown = run(*asked, "--class-weights", "balanced")
    assert shown.exit_code == 0 and "nothing to do" in shown.stderr
    assert "with another recipe" in run(*asked).stderr


class Killed(BaseException):
    """As a signal would end the process."""


def test_several_labels_go_on_after_a_break(tmp_path: Path) -> None:
    data = tagged(tmp_path / "data", 12)

    def training(out: str, **given: Any) -> camkit.TrainResult:
        return trained(data, tmp_path / out, given, valid=0.3, stages=[{"epochs": 2, "lr": 0.02}])

    def stop(_: float, text: str) -> None:
        if text.startswith("epoch 1/"):
            raise Killed

    whole = training("whole")
    with pytest.raises(Killed):
        training("broken", progress=stop)
    text = (data / "labels.csv").read_text()
    (data / "labels.csv").write_text(text.replace("01,red", "01,green"))
    with pytest.raises(UsageError, match="a training with another data"):
        training("broken", resume=True)
    (data / "labels.csv").write_text(text)
    resumed = training("broken", resume=True)
    assert resumed.history == whole.history and resumed.told == whole.told and len(whole.validation) == 3


def test_what_was_skipped_is_listed_and_gives_exit_code_3(tmp_path: Path) -> None:
    data, out = toy_photos(tmp_path / "data", per_class=4), tmp_path / "out"
    (data / "red" / "red_9.png").write_bytes(PNG)
    recipe = table(tmp_path / "quick.toml", RECIPE)
    refused = run("train", data, *QUICK, "--recipe", recipe, "--on-error", "fail", "--out", out)
    assert refused.exit_code == 1 and not (out / "bundle").exists()
    done = run("train", data, *QUICK, "--recipe", recipe, "--out", out)
    assert done.exit_code == 3 and "skipped 1 that cannot be used" in done.stderr, done.output
    facts = json.loads((out / "bundle" / "camkit.json").read_text())["data"]
    assert facts["skipped"][0][0] == "red/red_9.png" and facts["split"] == "stratified, seed 2"
    rows = list(csv.DictReader((out / "classes.csv").open()))
    assert [int(row["trained_on"]) + int(row["held_out"]) for row in rows] == [4, 4, 4]


def test_two_levels_of_folders_end_in_classes_that_can_be_asked_for(tmp_path: Path) -> None:
    data = toy_photos(tmp_path / "toys", per_class=4)
    for species, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "data" / species).mkdir(parents=True)
        (data / colour).rename(tmp_path / "data" / species / "plain")
    (data / "green").rename(tmp_path / "data" / "dog" / "spotted")
    result = trained(tmp_path / "data", tmp_path / "out", valid=0.5)
    assert "6 held out, 3 classes from the path of 2 levels of folders" in result.told[0]
    photo = tmp_path / "data" / "cat" / "plain" / "red_0.png"
    asked = ("--model", result.bundle, "--class", "dog/plain", "--out", tmp_path / "maps")
    shown = run("explain", photo, *asked)
    assert shown.exit_code == 0, shown.output


def test_the_split_can_be_asked_for(tmp_path: Path) -> None:
    data = toy_photos(tmp_path / "data", per_class=5)
    held_out = {}
    for split in ("stratified", "random"):
        result = trained(data, tmp_path / split, valid=0.4, split=split)
        assert f"({split}, seed 2)" in result.told[0]
        names = json.loads((result.bundle / "camkit.json").read_text())["split"]["valid"]
        held_out[split] = Counter(name.partition("/")[0] for name in names)
    assert held_out["stratified"] == {"blue": 2, "green": 2, "red": 2}
    assert held_out["random"].total() == 6


def test_a_preview_of_a_table(tmp_path: Path) -> None:
    done = run("train", tagged(tmp_path / "data", 4) / "labels.csv", *QUICK, "--preview", "--out", tmp_path)
    assert done.exit_code == 0 and (tmp_path / "preview.png").is_file(), done.output


def test_a_class_that_the_split_leaves_without_photographs(tmp_path: Path) -> None:
    data = dataset.read(photos(tmp_path, "a/1.png", "b/1.png"))
    with pytest.raises(CamkitError, match="no photograph to train on"):
        dataset.check_classes(data, data.split(0.5)[0])
