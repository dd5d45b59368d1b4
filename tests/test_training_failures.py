"""Training against bad luck and hostile folders: kills, full disks, names, links, files of strangers."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from tests.conftest import runner

import camkit
from camkit import files
from camkit.cli import cli
from camkit.errors import CamkitError, ImageError, MapError, ModelError, UsageError
from camkit.models import bundle
from camkit.testing.trainers import toy_photos
from camkit.training import dataset, recipe, result, training_report
from camkit.training.torch_trainer import TorchTrainer

RECIPE: dict[str, Any] = {"batch_size": 4, "stages": [{"epochs": 2, "lr": 0.02, "body_lr": 0.02}]}
TOML = "batch_size = 4\n[[stages]]\nepochs = 2\nlr = 0.02\nbody_lr = 0.02\n"
WHOLE = [*training_report.FILES, result.BUNDLE, result.NAME]
DRAFT = f".{socket.gethostname()}-999999999-0123456789abcdef.partial"  # of a process that is no more

unix = pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_photos(tmp_path_factory.mktemp("data") / "toys", per_class=4)


@pytest.fixture
def quick(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "quick.toml").write_text(TOML)
    arch = "--trainer torch --arch timm:test_resnet --weights none --device cpu"
    return (*arch.split(), "--recipe", str(tmp_path / "quick.toml"))


@pytest.fixture(scope="module")
def finished(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with bundle and result, and no report yet."""
    return train(toys, tmp_path_factory.mktemp("finished")).bundle.parent


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


def train(data: Path, out: Path, **given: Any) -> camkit.TrainResult:
    asked = {"arch": "timm:test_resnet", "recipe": RECIPE, "weights": "none", "device": "cpu"} | given
    return camkit.train(data, trainer="torch", out=out, **asked)


def run(*arguments: Any) -> Any:
    return runner().invoke(cli, [*map(str, arguments)])


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and text.endswith("\n") and text.startswith("Error: ")


# --- kill -9 ----------------------------------------------------------------------------------------

# Everything that is written is brought to the disk by `os.fsync`, a file first and then its name. Killed
# there, a training leaves a draft, or a file whose successor is missing. Children are forked, so that
# torch is imported once.
KILLS = '''
import hashlib, json, os, signal, sys, traceback
from pathlib import Path

import matplotlib.backends.backend_agg, matplotlib.figure, timm, torch
from camkit.training import train_model, training_report
from camkit.cli import cli

torch.set_num_threads(1)
home, arguments = Path(sys.argv[1]), sys.argv[2:]
sync = os.fsync

def child(name, last, *more):
    """The status of a training that is killed when it brings something to the disk for the last-th time."""
    process = os.fork()
    if process:
        return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    count = 0

    def fsync(descriptor):
        nonlocal count
        count += 1
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(descriptor)

    os.fsync, code = fsync, 70
    try:
        cli.main([*arguments, "--out", str(home / name), *more])
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    (home / f"{name}.count").write_text(str(count))
    os._exit(code or 0)

def state(name):
    files = [path for path in (home / name).rglob("*") if path.is_file()]
    return {str(f.relative_to(home / name)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}

told = {"whole": child("whole", 0), "files": state("whole"), "points": {}}
total = int((home / "whole.count").read_text())
for last in (1, 3, 4, 5, 7, 10, total):
    killed, left = child(f"at-{last}", last), sorted(state(f"at-{last}"))
    resumed = child(f"at-{last}", 0, "--resume")
    differing = dict(state(f"at-{last}").items() ^ told["files"].items())
    told["points"][last] = [killed, left, resumed, sorted(differing)]
print(json.dumps(told))
'''


@unix
def test_killed_wherever_it_writes_a_training_resumes_to_the_same_files(
    toys: Path, tmp_path: Path, quick: tuple[str, ...]
) -> None:
    command = [sys.executable, "-c", KILLS, tmp_path, "train", toys, *quick]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["whole"] == 0, done.stderr
    bundled = [f"{result.BUNDLE}/{name}" for name in (bundle.CONFIG, bundle.WEIGHTS)]
    assert sorted(told["files"]) == sorted([*training_report.FILES, result.NAME, *bundled])
    for last, (killed, left, resumed, differing) in told["points"].items():
        assert killed == -signal.SIGKILL, last
        assert (resumed, differing) == (0, []), (last, left, done.stderr)
        if bundled[0] in left:
            assert set(bundled) <= set(left) and result.NAME in left
    everything = [left for _, left, *_ in told["points"].values()]
    assert any("checkpoint.pt" in left and bundled[0] in left for left in everything)
    assert any(name.endswith(".partial") for left in everything for name in left)


@unix
def test_resume_makes_what_is_missing_behind_the_bundle(
    toys: Path, out: Path, quick: tuple[str, ...]
) -> None:
    (out / "checkpoint.pt").write_bytes(b"of the killed training")
    (out / DRAFT).write_bytes(b"half")
    resumed = run("train", toys, *quick, "--resume", "--out", out)
    assert resumed.exit_code == 0, resumed.output
    assert f"bundle: {out / 'bundle'}" in resumed.stdout and listing(out) == sorted(WHOLE)
    before = (out / "worst.png").stat().st_mtime_ns
    again = run("train", toys, *quick, "--resume", "--out", out)
    assert again.stdout == f"bundle: {out / 'bundle'}\n" and "nothing to do" in again.stderr
    assert (out / "worst.png").stat().st_mtime_ns == before


def test_a_folder_of_a_trainer_that_keeps_no_result_is_finished(out: Path, quick: tuple[str, ...]) -> None:
    (out / result.NAME).unlink()
    resumed = run("train", "nowhere", *quick, "--resume", "--out", out)
    assert resumed.exit_code == 0 and "nothing to do" in resumed.stderr


# --- full disks -------------------------------------------------------------------------------------


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file gets larger than `size` bytes."""
    import resource  # which Windows does not have

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Killed(BaseException):
    """As a signal would end the process."""


def after_the_first_epoch(_: float, text: str) -> None:
    if text.startswith("epoch 1/"):
        raise Killed


@unix
def test_a_full_disk_leaves_the_last_checkpoint(toys: Path, tmp_path: Path, finished: Path) -> None:
    with pytest.raises(Killed):
        train(toys, tmp_path, progress=after_the_first_epoch)
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    with full_disk(len(whole) // 2), pytest.raises(CamkitError, match=r"checkpoint\.pt: File too large$"):
        train(toys, tmp_path, resume=True)
    assert listing(tmp_path) == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_bytes() == whole
    resumed = train(toys, tmp_path, resume=True)
    assert listing(tmp_path) == ["bundle", "result.json"]
    hashes = [
        camkit.load_model(path, device="cpu").sha256 for path in (resumed.bundle, finished / "bundle")
    ]
    assert hashes[0] == hashes[1]


@unix
@pytest.mark.parametrize("step", ["camkit.training.run_folder.save_bundle", "camkit.training.result.write"])
def test_a_disk_that_is_full_at_the_end_costs_nothing(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    module, _, name = step.rpartition(".")
    write = getattr(sys.modules[module], name)

    def failing(*arguments: Any, **facts: Any) -> Any:
        with full_disk(100):
            return write(*arguments, **facts)

    monkeypatch.setattr(step, failing)
    with pytest.raises(CamkitError, match="File too large"):
        train(toys, tmp_path)
    assert set(listing(tmp_path)) - {"result.json"} == {"checkpoint.pt"}
    monkeypatch.undo()
    assert train(toys, tmp_path, resume=True).metrics and listing(tmp_path) == ["bundle", "result.json"]


# --- what would fail at the end is told at the beginning ---------------------------------------------


def photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path, "PNG")


@unix
@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"caf\xe9", r"caf\xe9"),
        (b"a\nb", r"a\nb"),
        (b"a\x1b[31mb", r"a\x1b[31mb"),
        ("a\x9bb".encode(), r"a\x9bb"),
    ],
)
def test_classes_that_cannot_be_printed_are_refused(tmp_path: Path, name: bytes, shown: str) -> None:
    for folder in (os.fsdecode(name), "cat"):
        photo(tmp_path / "data" / folder / "1.png")
    with pytest.raises(UsageError) as told:
        train(tmp_path / "data", tmp_path / "out")
    assert f"({shown})" in str(told.value) and "\n" not in str(told.value)
    assert not (tmp_path / "out").exists()


@unix
def test_photographs_may_be_called_anything(tmp_path: Path, quick: tuple[str, ...]) -> None:
    data = toy_photos(tmp_path / "data", per_class=2)
    (data / "red").rename(data / "[bold]r\u202ed$x$")
    for number, path in enumerate(sorted(data.rglob("*.png"))):
        path.rename(path.parent / os.fsdecode(b"caf\xe9\n\x1b[31m %d.png" % number))
    done = run("train", data, *quick, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert listing(tmp_path / "out") == sorted(WHOLE)
    assert "[bold]r\\u202ed$x$" in done.stderr and "\u202e" not in done.output
    assert result.read(tmp_path / "out").gone() == []


def test_facts_that_no_bundle_holds_are_told_before_training(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle, "MAX_CONFIG", 2**20 + 500)
    said: list[str] = []
    with pytest.raises(ModelError, match="larger than 0 MiB"):
        train(toys, tmp_path, progress=lambda _, text: said.append(text))
    assert not said and listing(tmp_path) == []


def test_a_training_that_diverges_is_told(toys: Path, tmp_path: Path) -> None:
    stages = [{"epochs": 1, "lr": 1e-3}, {"epochs": 2, "lr": 1e30, "body_lr": 1e30}]
    with pytest.raises(CamkitError, match=r"epoch [23] is (nan|inf): .*diverged"):
        train(toys, tmp_path, recipe={"batch_size": 4, "stages": stages})
    assert listing(tmp_path) == ["checkpoint.pt"]


@unix
def test_a_photograph_that_vanishes_is_one_line(toys: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(toys, tmp_path / "data"))

    def vanish(_: float, text: str) -> None:
        if text.startswith("epoch 1/"):
            for path in data.rglob("*.png"):
                path.unlink()

    with pytest.raises(ImageError) as told:
        train(data, tmp_path / "out", progress=vanish, workers=1)
    assert "\n" not in str(told.value) and str(told.value).endswith(
        "cannot be read: No such file or directory"
    )
    assert listing(tmp_path / "out") == ["checkpoint.pt"]


def test_a_link_in_the_place_of_the_bundle_is_told_at_once(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="trained model already"):
        train(toys, tmp_path)


# --- links and drafts -------------------------------------------------------------------------------


@unix
def test_planted_links_are_not_followed(toys: Path, tmp_path: Path, quick: tuple[str, ...]) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "out"
    victim.write_text("keep me")
    folder.mkdir()
    planted = [".checkpoint.pt.partial", ".bundle.partial", ".history.csv.partial"]
    for name in (*planted, result.NAME, *training_report.FILES):
        (folder / name).symlink_to(victim)
    done = run("train", toys, *quick, "--out", folder)
    assert done.exit_code == 0, done.output
    assert victim.read_text() == "keep me"
    assert all((folder / name).is_symlink() == (name in planted) for name in (*planted, *WHOLE))


@unix
def test_drafts_of_a_killed_training_are_swept(toys: Path, tmp_path: Path) -> None:
    alive = DRAFT.replace("999999999", str(os.getpid()))
    below = tmp_path / "below"
    below.mkdir()
    for path in (tmp_path / DRAFT, tmp_path / alive, below / DRAFT):
        path.write_bytes(b"half")
    train(toys, tmp_path)
    assert listing(tmp_path) == sorted(["bundle", "result.json", "below", alive])
    assert listing(below) == [DRAFT]  # no training writes there


def test_a_picture_is_saved_whole_and_through_no_link(tmp_path: Path) -> None:
    model = camkit.load_model("timm:test_resnet@none", device="cpu")
    explained = camkit.explain(model, Image.new("RGB", (64, 64), "red"), target=0)
    (tmp_path / "victim").write_text("keep me")
    (tmp_path / "map.JPG").symlink_to(tmp_path / "victim")
    explained.save(tmp_path / "map.JPG")
    assert Image.open(tmp_path / "map.JPG").format == "JPEG"
    assert (tmp_path / "victim").read_text() == "keep me" and len(listing(tmp_path)) == 2
    with pytest.raises(UsageError, match=r"suffix"):
        explained.save(tmp_path / "map.what")


# --- checkpoints of strangers -----------------------------------------------------------------------


class Harm:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("harm",))


def _torn(path: Path, _: dict[str, Any]) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _other(**changes: Any) -> Any:
    return lambda path, state: torch.save({**state, **changes}, path)


def _fifo(path: Path, _: dict[str, Any]) -> None:
    path.unlink()
    os.mkfifo(path)


CHECKPOINTS = {
    "code": (_other(loop=Harm()), "posix.mkdir"),
    "torn": (_torn, "damaged"),
    "text": (lambda path, _: path.write_text("no archive"), "damaged"),
    "a list": (lambda path, _: torch.save([1, 2], path), "damaged"),
    "no epoch": (_other(epoch="1"), "damaged"),
    "other epochs": (_other(epoch=2), "damaged"),
    "history": (_other(history=[{"train_loss": "low"}]), "damaged"),
    "no parts": (_other(loop=[]), "does not fit"),
    "other parts": (_other(loop=[{}, {}, {}, {}]), "does not fit"),
    "FIFO": (_fifo, "regular file"),
}


@unix
@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_that_is_refused_is_one_line(
    toys: Path, tmp_path: Path, unfinished: Path, case: str
) -> None:
    path = Path(shutil.copytree(unfinished, tmp_path / "out")) / "checkpoint.pt"
    damage, message = CHECKPOINTS[case]
    damage(path, torch.load(path, weights_only=True))
    with pytest.raises(CamkitError) as told:
        train(toys, path.parent, resume=True)
    text = str(told.value)
    assert text.startswith(f"{path} ") and message in text and "\n" not in text
    assert "remove it" in text and text.endswith("--out")
    assert not Path("harm").exists()


@pytest.fixture(scope="module")
def unfinished(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unfinished")
    with pytest.raises(Killed):
        train(toys, out, progress=after_the_first_epoch)
    return out


@unix
@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "large"])
def test_a_recipe_is_a_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "recipe.toml"
    {
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "large": lambda: (path.touch(), os.truncate(path, 2**40)),
    }[kind]()
    with pytest.raises(UsageError, match=r"recipe\.toml'.*: it is "):
        recipe.table(TorchTrainer(None), path)


# --- the report, anew -------------------------------------------------------------------------------


def test_the_report_is_made_anew_wherever_the_photographs_lie(
    toys: Path, out: Path, tmp_path: Path
) -> None:
    done = run("train", "report", out)
    assert done.exit_code == 0 and listing(out) == sorted(WHOLE), done.output
    assert "held-out photographs" in done.stdout and f"bundle: {out / 'bundle'}" in done.stdout
    first = {name: (out / name).read_bytes() for name in training_report.FILES}
    moved = Path(shutil.copytree(toys, tmp_path / "moved"))
    facts = json.loads((out / result.NAME).read_text())
    (out / result.NAME).write_text(json.dumps({**facts, "root": "/nowhere"}))
    for name in training_report.FILES:
        (out / name).unlink()

    tables = run("train", "report", out)
    assert tables.exit_code == 3 and "--images DATA` says where" in tables.stderr
    assert listing(out) == sorted(
        ["bundle", "curves.png", "history.csv", "index.html", "result.json", "steps.csv"]
    )
    assert "no held-out photographs to judge" in (out / "index.html").read_text("utf-8")
    assert "error" not in tables.stdout and f"bundle: {out / 'bundle'}" in tables.stdout

    there = run("train", "report", out, "--images", moved)
    assert there.exit_code == 0, there.output
    assert {name: (out / name).read_bytes() for name in training_report.FILES} == first

    name = facts["photos"][0][0]
    Image.new("RGB", (8, 8)).save(moved / name)
    changed = run("train", "report", out, "--images", moved)
    assert changed.exit_code == 3 and name in changed.stderr


def test_resume_looks_for_moved_photographs_in_the_data(
    toys: Path, out: Path, quick: tuple[str, ...]
) -> None:
    facts = json.loads((out / result.NAME).read_text())
    (out / result.NAME).write_text(json.dumps({**facts, "root": "/nowhere"}))
    assert run("train", "nowhere", *quick, "--resume", "--out", out).exit_code == 3
    assert run("train", toys, *quick, "--resume", "--out", out).exit_code == 0
    assert listing(out) == sorted(WHOLE)


def test_a_folder_called_report_is_trained_on(
    toys: Path, tmp_path: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(toys, tmp_path / "report"))
    monkeypatch.chdir(tmp_path)
    done = run("train", f"./{data.name}", *quick, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output


DAMAGED: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "cannot be read"),
    "deep": ("[" * 100_000, "cannot be read"),
    "long number": ('{"format": ' + "1" * 5000 + "}", "cannot be read"),
    "a list": ("[]", "another format"),
    "another format": ({"format": 2}, "another format"),
    "no history": ({"history": None}, "damaged"),
    "history": ({"history": 5}, "damaged"),
    "a text": ({"history": [{"train_loss": "low"}]}, "'low'"),
    "a truth": ({"metrics": {"error_rate": True}}, "True is no number"),
    "a huge number": ({"steps": [{"lr": 10**400}]}, "is no number"),
    "names": ({"metrics": [[1, 2.0]]}, "1 is no text"),
    "above": ({"photos": [["../secret.png", "red", None]]}, "no photograph below a folder"),
    "elsewhere": ({"photos": [["/etc/passwd", "red", None]]}, "no photograph below a folder"),
    "photos": ({"photos": [["a.png", "red"]]}, "damaged"),
    "root": ({"root": 5}, "5 is no text"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_result_is_one_line(out: Path, case: str) -> None:
    changes, message = DAMAGED[case]
    path = out / result.NAME
    text = changes if isinstance(changes, str) else json.dumps(json.loads(path.read_text()) | changes)
    path.write_text(text)
    done = run("train", "report", out)
    assert done.exit_code == 2 and one_line(done.stderr), done.output
    assert message in done.stderr and str(path) in done.stderr
    assert listing(out) == ["bundle", "result.json"]


@unix
@pytest.mark.parametrize("kind", ["fifo", "device", "large", "missing", "no bundle"])
def test_a_result_that_is_no_file_of_ours(out: Path, kind: str) -> None:
    path = out / result.NAME
    if kind != "no bundle":
        path.unlink()
    {
        "fifo": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "large": lambda: (path.touch(), os.truncate(path, 2**40)),
        "missing": lambda: None,
        "no bundle": lambda: shutil.rmtree(out / "bundle"),
    }[kind]()
    done = run("train", "report", out)
    assert done.exit_code == 2 and one_line(done.stderr), done.output


def test_photographs_of_other_classes_are_one_line(out: Path) -> None:
    path = out / result.NAME
    facts = json.loads(path.read_text())
    facts["photos"] = [[name, "dog", digest] for name, _, digest in facts["photos"]]
    path.write_text(json.dumps(facts))
    done = run("train", "report", out)
    assert done.exit_code == 1 and one_line(done.stderr) and "has no class 'dog'" in done.stderr


def test_a_report_that_fails_says_that_the_model_is_there(
    toys: Path, tmp_path: Path, quick: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    folder, error = tmp_path / "out", Exception()
    monkeypatch.setattr(training_report, "worst", fail)
    error = MapError("the map is NaN")
    failed = run("train", toys, *quick, "--out", folder)
    again = f"the trained model is in {folder / 'bundle'}, `camkit train report {folder}`"
    assert failed.exit_code == 1 and "the map is NaN" in failed.stderr and again in failed.stderr
    error = KeyboardInterrupt()  # type: ignore[assignment]
    interrupted = run("train", "report", folder)
    assert interrupted.exit_code == 130 and f"Interrupted: {again}" in interrupted.stderr
    monkeypatch.undo()
    assert run("train", toys, *quick, "--resume", "--out", folder).exit_code == 0
    assert listing(folder) == sorted(WHOLE)


# --- tables and pictures ----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["=1+1", "+a", "-cmd", "@SUM(A1)", "＝1", '=A1,"b"'])
def test_a_spreadsheet_computes_nothing(text: str) -> None:
    rows = list(csv.reader(io.StringIO(training_report.table([{text: text, "n": -2}]), newline="")))
    assert rows == [[f"'{text}", "n"], [f"'{text}", "-2"]]


def test_control_characters_and_halves_of_signs_are_escaped_in_tables() -> None:
    text = training_report.table([{"a": "\t=1\r\n", "b": "caf\udce9"}])
    assert text == "a,b\n\\t=1\\r\\n,caf\\udce9\n"


@pytest.mark.parametrize("text", ["-1", "+4.5", "1e-3", "great pyrenees", "a=b", "", "-0,5"])
def test_numbers_and_plain_texts_stay_as_they_are(text: str) -> None:
    rows = list(csv.reader(io.StringIO(training_report.table([{"a": text, "b": -0.5}]), newline="")))
    assert rows == [["a", "b"], [text, "-0.5"]]


def test_tables_have_a_column_for_everything() -> None:
    assert training_report.table([{"a": 1}, {"b": 2.5, "a": 3}]) == "a,b\n1,\n3,2.5\n"
    assert training_report.table([], ["actual", "count"]) == "actual,count\n"


def test_of_many_classes_those_are_drawn_that_are_mistaken() -> None:
    names = tuple(f"class {i}" for i in range(50_000))
    labels = torch.tensor([7, 7, 9, 41_000])
    said = torch.zeros(4, 50_000)
    said[range(4), [7, 40_000, 9, 7]] = 1.0
    verdicts = training_report.Verdicts(SimpleNamespace(classes=names), (Path("x"),) * 4, labels, said)  # type: ignore[arg-type]
    counts, shown = verdicts.confusion(most=3)
    assert shown == ["class 7", "class 40000", "class 41000"]
    assert counts.tolist() == [[1, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_the_photographs_of_a_data_set(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert dataset.photographs(tmp_path) == tmp_path
    (tmp_path / "annotations").mkdir()
    assert dataset.photographs(tmp_path) == tmp_path / "images"


def test_the_error_behind_an_error() -> None:
    full = OSError(28, "No space left on device")
    try:
        try:
            raise full
        except OSError:
            raise RuntimeError("unexpected pos 64 vs 0")  # noqa: B904  as torch does
    except RuntimeError as error:
        assert files.cause(error) is full
    assert isinstance(files.cause(ValueError()), ValueError)
