"""Files of `learn.export()`: what camkit shows and says is what `learn.predict` does."""

# Annotations are no texts here: fastai reads those of transforms.
import json
import pickle
import sys
import types
import warnings
import zipfile
from collections import ChainMap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.contracts.scores import probabilities
from camkit.errors import CamkitWarning, ModelError
from camkit.images import decoding
from camkit.images.decoding import sample
from camkit.images.preprocess import Preprocess
from camkit.models.fastai_architecture import cut, default_layer, usual_view
from camkit.testing.trainers import toy_photos

# What is assumed of the models is told; here it is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*(assumed|its loss):camkit.errors.CamkitWarning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastai.vision import all as fastai

STATS = fastai.Normalize.from_stats(*fastai.imagenet_stats, cuda=False)


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_photos(tmp_path_factory.mktemp("data") / "toys", per_class=4)


NOISE = [(151, 97), (83, 131), (64, 64), (45, 37), (199, 41)]  # width and height
CATS = [
    (451, 300),
    (300, 451),
    (301, 203),
    (203, 301),
    (300, 300),
    (224, 224),
    (225, 223),
    (97, 131),
    (48, 48),
]
CATS += [(49, 47), (17, 23), (31, 12), (255, 64), (61, 257), (90, 91)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty of odd sizes, in several formats and colours; in the noise every shift by a pixel shows."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    noise = [Image.fromarray(generator.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in NOISE]
    cat = decoding.load(sample()).image
    modes = ["RGB", "L", "P", "CMYK", "RGB"]
    cats = [cat.resize(size).convert(modes[i % 5]) for i, size in enumerate(CATS)]
    suffixes = {"P": ".png", "CMYK": ".jpg"}
    for i, image in enumerate([*noise, *cats]):
        suffix = suffixes.get(image.mode, ".png" if i % 2 else ".jpg")
        image.save(folder / f"{i:02}{suffix}", **({"quality": 98} if suffix == ".jpg" else {}))
    return sorted(folder.iterdir())


def network(outputs: int = 3, *ending: nn.Module, channels: int = 3) -> nn.Sequential:
    """A few pixels decide over its scores."""
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(channels, 8, 5, stride=3), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, outputs), *ending),
    )
    net[1][2].weight.data *= 8
    return net


def exported(
    toys: Path, folder: Path, module: nn.Module, item: Any = None, batch: Any = None, **facts: Any
) -> tuple[Any, camkit.LoadedModel]:
    """A learner, and what camkit makes of its export."""
    item = item or fastai.Resize(48)
    made = fastai.ImageDataLoaders.from_folder(
        toys, valid_pct=0.3, item_tfms=item, batch_tfms=batch, num_workers=0, bs=4
    )
    learner = fastai.Learner(made, module, **facts)
    return learner, loaded(learner, folder)


def loaded(learner: Any, folder: Path) -> camkit.LoadedModel:
    learner.path = folder
    learner.export("learner.pkl")
    return camkit.load_model(f"fastai:{folder / 'learner.pkl'}", device="cpu", trust_pickle=True)


def said(learner: Any, path: Path) -> Tensor:
    with learner.no_bar():
        return learner.predict(path)[2].as_subclass(Tensor)


def shown(learner: Any, paths: list[Path]) -> tuple[Tensor, Tensor]:
    """What fastai shows of photographs, `[B, C, H, W]`, and the probabilities of `learn.predict`."""
    batch = learner.dls.test_dl(paths, num_workers=0, bs=len(paths))
    with learner.no_bar():
        return batch.one_batch()[0].as_subclass(Tensor), learner.get_preds(dl=batch)[0].as_subclass(Tensor)


RESIZE, PAD, RANDOM = fastai.Resize, fastai.ResizeMethod.Pad, fastai.RandomResizedCrop
WAYS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "crop": (lambda: RESIZE(48), lambda: [STATS]),
    "crop to another shape": (lambda: RESIZE((48, 61)), lambda: [STATS]),
    "crop by another filter": (lambda: RESIZE(48, resamples=(3, 0)), lambda: None),
    "squish": (lambda: RESIZE((48, 40), method="squish"), lambda: [STATS]),
    "pad with a reflection": (lambda: RESIZE(48, method=PAD), lambda: [STATS]),
    "pad with zeros": (lambda: RESIZE((40, 48), method=PAD, pad_mode="zeros"), lambda: [STATS]),
    "pad with the border": (lambda: RESIZE(48, method=PAD, pad_mode="border"), lambda: [STATS]),
    "random resized crop": (lambda: RANDOM(48, min_scale=0.3), lambda: [STATS]),
    "one of another shape": (lambda: RANDOM((48, 72), val_xtra=0.3), lambda: [STATS]),
    "one without a margin": (lambda: RANDOM(48, val_xtra=0), lambda: None),
    "the middle": (lambda: fastai.CropPad(47), lambda: [STATS]),
    "the middle, mirrored beyond": (lambda: fastai.CropPad(60, pad_mode="reflection"), lambda: [STATS]),
    "a random crop": (lambda: [RESIZE(61), fastai.RandomCrop((48, 40))], lambda: [STATS]),
    "augmented": (lambda: [RESIZE(48), fastai.FlipItem()], lambda: [*fastai.aug_transforms(), STATS]),
    "presized": (lambda: RESIZE(92), lambda: [*fastai.aug_transforms(size=40), STATS]),
    "presized a little": (lambda: RANDOM(64), lambda: fastai.aug_transforms(size=(48, 40))),
    "presized padding": (lambda: RESIZE(92, method=PAD), lambda: [*fastai.aug_transforms(size=64), STATS]),
    "cropped in the batch": (
        lambda: RESIZE((60, 90)),
        lambda: [fastai.RandomResizedCropGPU((40, 40)), STATS],
    ),
    "squish by another filter": (lambda: RESIZE(40, method="squish", resamples=(1, 0)), lambda: None),
    "presized to another shape": (
        lambda: RESIZE((90, 60)),
        lambda: [*fastai.aug_transforms(size=(45, 30), min_scale=0.75), STATS],
    ),
    "other statistics": (
        lambda: RESIZE(48),
        lambda: [fastai.Normalize.from_stats([0.5, 0.4, 0.3], [0.1, 0.2, 0.3], cuda=False)],
    ),
    "statistics of a batch": (lambda: RESIZE(48), lambda: [fastai.Normalize()]),
    "a part of the batch": (
        lambda: RESIZE(64),
        lambda: [fastai.RandomResizedCropGPU((40, 40), valid_scale=0.8), STATS],
    ),
}


ROUNDED = ("augmented", *(name for name in WAYS if "presized" in name or "batch" in name))


@pytest.mark.parametrize("way", WAYS)
def test_photographs_are_shown_as_fastai_shows_them(
    toys: Path, photos: list[Path], tmp_path: Path, way: str
) -> None:
    item, batch = (make() for make in WAYS[way])
    learner, model = exported(toys, tmp_path, network(), item, batch)
    assert (model.scores, model.note) == ("softmax", "")
    found = torch.stack([model.preprocess(decoding.load(path).image) for path in photos])
    expected, likely = shown(learner, photos)
    # Without augmentation nothing is computed twice; the identity that it ends in is rounded.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 if way in ROUNDED else 0)
    with torch.no_grad():
        torch.testing.assert_close(model.module(found).softmax(1), likely, rtol=0, atol=1e-4)
    explained = camkit.explain(model, photos[0], target=1)
    assert explained.probability == pytest.approx(float(said(learner, photos[0])[1]), abs=1e-4)
    again = Preprocess.from_dict(json.loads(json.dumps(model.preprocess.to_dict())))
    assert again == model.preprocess


def test_the_box_of_padding_and_crops_lies_where_the_pixels_come_from() -> None:
    pad = Preprocess(size=(10, 20), fit="pad")
    assert pad.box(40, 80) == (-60, 0, 100, 80)
    crop = Preprocess(size=(10, 20), fit="crop-first")
    assert crop.box(40, 80) == (0, 30, 40, 50)
    margin = Preprocess(size=(10, 10), fit="crop-first", resize=(20, 20))
    assert margin.box(40, 80) == (10, 30, 30, 50)
    middle = Preprocess(size=(10, 20), fit="none")
    assert middle.box(41, 7) == (10, -2, 30, 8)
    random = Preprocess(size=(10, 20), fit="squash", resize=(20, 40))
    assert random.box(40, 80) == (10, 20, 30, 60)
    assert Preprocess(size=(5, 5), fit="pad", presize=(10, 20)).box(40, 80) == pad.box(40, 80)


# --- what the scores are --------------------------------------------------------------------------

LOSSES = {
    "softmax": fastai.CrossEntropyLossFlat(),
    "smoothed": fastai.LabelSmoothingCrossEntropyFlat(),
    "focal": fastai.FocalLossFlat(),
    "plain": nn.CrossEntropyLoss(),
    "sigmoid": fastai.BCEWithLogitsLossFlat(),
    "probabilities": fastai.BCELossFlat(),
    "none": fastai.MSELossFlat(),
    "plain none": nn.L1Loss(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_tells_what_the_scores_are(
    toys: Path, photos: list[Path], tmp_path: Path, name: str
) -> None:
    ending = [nn.Sigmoid()] if name == "probabilities" else []
    learner, model = exported(toys, tmp_path, network(3, *ending), loss_func=LOSSES[name])
    kind = name.rpartition(" ")[2]
    assert model.scores == (kind if kind in ("sigmoid", "probabilities", "none") else "softmax")
    result = camkit.explain(model, photos[0], target=2)
    told = result.logit if kind == "none" else result.probability
    expected = said(learner, photos[0]) if name != "plain" else said(learner, photos[0]).softmax(0)
    assert told == pytest.approx(float(expected[2]), abs=1e-4)


def test_several_labels(toys: Path, photos: list[Path], tmp_path: Path) -> None:
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.MultiCategoryBlock),
        get_items=fastai.get_image_files,
        get_y=labels,
        item_tfms=fastai.Resize(48),
    )
    learner = fastai.Learner(block.dataloaders(toys, num_workers=0, bs=4), network(4))
    model = loaded(learner, tmp_path)
    assert model.scores == "sigmoid" and model.classes == ("blue", "green", "image", "red")
    for path in photos:
        names, _, likely = learner.predict(path)
        result = camkit.explain(model, path)
        assert sorted(result.predicted) == sorted(names)
        assert result.probability == pytest.approx(float(likely.max()), abs=1e-4)


def labels(path: Path) -> list:  # type: ignore[type-arg]
    """The folder, and one label that all have."""
    return [path.parent.name, "image"]


def test_a_regression_has_no_classes(toys: Path, photos: list[Path], tmp_path: Path) -> None:
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.RegressionBlock),
        get_items=fastai.get_image_files,
        get_y=length,
        item_tfms=fastai.Resize(48),
    )
    learner = fastai.Learner(block.dataloaders(toys, num_workers=0, bs=4), network(1))
    model = loaded(learner, tmp_path)
    assert (model.scores, model.classes) == ("none", ("output_0",))
    result = camkit.explain(model, photos[0])
    assert result.probability is None
    assert result.logit == pytest.approx(float(learner.predict(photos[0])[2]), abs=1e-4)


def length(path: Path) -> float:
    return float(len(path.name))


# --- networks -------------------------------------------------------------------------------------


def few(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *layers)


class Own(nn.Module):
    """A head of which a file of `learn.save` tells nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(96, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        return self.last(x.mean((2, 3)))


TIMM, XRESNET = "test_resnet", fastai.xresnet18
# A network, options of `vision_learner`, and what is said of a file of `learn.save`; "" if it is read.
NETWORKS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "torchvision": (fastai.models.squeezenet1_1, {}, ""),
    "timm": (TIMM, {}, ""),
    "a transformer": ("test_vit", {}, ""),
    "xresnet": (XRESNET, {}, r"learn\.export"),
    "one way of pooling": (TIMM, {"concat_pool": False}, ""),
    "two hidden layers": (TIMM, {"lin_ftrs": [24, 16]}, ""),
    "without BatchNorm in front": (TIMM, {"first_bn": False}, ""),
    "dropout last": (TIMM, {"lin_first": True}, ""),
    "BatchNorm behind": (TIMM, {"bn_final": True}, ""),
    "an own head": (TIMM, {"custom_head": few(nn.Linear(96, 3))}, ""),
    "an own class for it": (TIMM, {"custom_head": Own()}, "does not tell|do not tell"),
    "an own splitter": (TIMM, {"splitter": fastai.params}, ""),
    "another activation": (
        TIMM,
        {"custom_head": few(nn.Linear(96, 9), nn.GELU(), nn.Linear(9, 3))},
        "ReLU",
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(toys: Path, photos: list[Path], tmp_path: Path, name: str) -> None:
    arch, facts, unsaved = NETWORKS[name]
    size = 160 if arch == "test_vit" else 64
    data = fastai.ImageDataLoaders.from_folder(
        toys, valid_pct=0.3, item_tfms=RESIZE(size), num_workers=0, bs=4
    )
    learner = fastai.vision_learner(data, arch, pretrained=False, path=tmp_path, **facts)
    expected = shown(learner, photos)[1]
    assert expected.std(0).max() > 1e-3  # else the photographs make no difference
    check(camkit.load_model(learner, device="cpu"), photos, expected)
    check(loaded(learner, tmp_path), photos, expected)
    file = learner.save("saved")
    if unsaved == "ReLU":
        assert "the ReLU in the head is assumed" in camkit.load_model(file, device="cpu").note
    elif unsaved:
        with pytest.raises(ModelError, match=unsaved):
            camkit.load_model(file, device="cpu")
    else:
        made = camkit.load_model(file, device="cpu", size=(size, size), scores="softmax")
        inputs = torch.rand(2, 3, size, size)
        with torch.no_grad():
            torch.testing.assert_close(made.module(inputs), learner.model(inputs), rtol=0, atol=1e-5)


def check(model: camkit.LoadedModel, photos: list[Path], expected: Tensor) -> None:
    """The probabilities of `learn.predict`."""
    found = torch.stack([model.preprocess(decoding.load(path).image) for path in photos])
    with torch.no_grad():
        likely = probabilities(model.module.eval()(found), model.scores)
    torch.testing.assert_close(likely, expected, rtol=0, atol=1e-4)
    explained = camkit.explain(model, photos[0], target=0)
    assert explained.probability == pytest.approx(float(expected[0, 0]), abs=1e-4)


def test_a_body_that_was_cut_elsewhere(toys: Path, photos: list[Path], tmp_path: Path) -> None:
    body = fastai.create_vision_model(fastai.models.resnet18, 3, pretrained=False, cut=-5)
    learner, model = exported(toys, tmp_path, body)
    check(model, photos, shown(learner, photos)[1])
    file = learner.save("saved")
    for spec in (str(file), f"fastai:resnet18@{file}"):
        with pytest.raises(ModelError, match=r"learn\.export"):
            camkit.load_model(spec, device="cpu")


LABELS: dict[str, tuple[Any, Any, str]] = {
    "masks": (
        fastai.MaskBlock(codes=["a", "b"]),
        lambda _: np.zeros((48, 48), np.uint8),
        "predicts pictures",
    ),
    "two": (
        (fastai.CategoryBlock, fastai.RegressionBlock),
        [fastai.parent_label, length],
        "2 things at once",
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_learners_that_are_no_classifiers(toys: Path, name: str) -> None:
    labels, called, message = LABELS[name]
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, *(labels if isinstance(labels, tuple) else [labels])),
        n_inp=1,
        get_items=fastai.get_image_files,
        get_y=called,
        item_tfms=RESIZE(48),
    )
    learner = fastai.Learner(
        block.dataloaders(toys, num_workers=0, bs=4), network(), loss_func=nn.MSELoss()
    )
    with pytest.raises(ModelError, match=message):
        camkit.load_model(learner, device="cpu")


def test_one_channel(toys: Path, photos: list[Path], tmp_path: Path) -> None:
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock(cls=fastai.PILImageBW), fastai.CategoryBlock),
        get_items=fastai.get_image_files,
        get_y=fastai.parent_label,
        item_tfms=fastai.Resize(48, method="pad"),
    )
    data = block.dataloaders(toys, num_workers=0, bs=4)
    learner = fastai.vision_learner(data, TIMM, pretrained=False, n_in=1)
    model = loaded(learner, tmp_path)
    assert model.preprocess.channels == 1
    check(model, photos, shown(learner, photos)[1])
    saved = camkit.load_model(
        learner.save("saved"), device="cpu", size=(48, 48), fit="pad", scores="softmax"
    )
    assert (saved.preprocess.mean, saved.preprocess.std) == ((0.0,), (1.0,))
    grey = fastai.DataBlock(
        blocks=(fastai.ImageBlock(cls=fastai.PILImageBW), fastai.CategoryBlock),
        get_items=fastai.get_image_files,
        get_y=fastai.parent_label,
        item_tfms=fastai.Resize(48),
        batch_tfms=STATS,  # makes three channels of one
    ).dataloaders(toys, num_workers=0, bs=4)
    learner = fastai.Learner(grey, network())
    check(loaded(learner, tmp_path), photos, shown(learner, photos)[1])


# --- what `vision_learner` shows by itself --------------------------------------------------------


def normalised(data: Any) -> list[float]:
    """Mean and standard deviation by which fastai normalises."""
    found = [step for step in data.after_batch if isinstance(step, fastai.Normalize)]
    if not found:
        return [0.0] * 3 + [1.0] * 3
    return [*found[0].mean.flatten().tolist(), *found[0].std.flatten().tolist()]


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_saved_networks_are_shown_what_fastai_shows_them(toys: Path, source: str) -> None:
    from fastai.vision import learner as vision

    names = ["resnet50", "resnext50_32x4d", "vgg16", "vgg16_bn", "densenet161", "convnext_tiny", "alexnet"]
    for name in names if source == "torchvision" else ["test_vit", "test_resnet", "vit_tiny_patch16_384"]:
        data = fastai.ImageDataLoaders.from_folder(
            toys, valid_pct=0.3, item_tfms=RESIZE(48), num_workers=0, bs=4
        )
        body: Any = nn.Identity()
        if source == "torchvision":
            meta = vision.model_meta.get(getattr(fastai.models, name), vision._default_meta)
            vision._add_norm(data, meta, pretrained=True)
        else:
            body = cut("timm", timm.create_model(name))
            vision._timm_norm(data, body.model.default_cfg, pretrained=True)
        found = usual_view(body, {"backbone": {"source": source, "name": name}})
        assert [*found.mean, *found.std] == pytest.approx(normalised(data), abs=1e-6), name
        assert (found.fit, found.resize) == ("crop-first", None), name  # as `Resize` does
        assert found.size == ({"test_vit": 160, "vit_tiny_patch16_384": 384}.get(name, 224),) * 2


def test_saved_networks_are_shown_what_the_usual_resize_shows(toys: Path, photos: list[Path]) -> None:
    data = fastai.ImageDataLoaders.from_folder(
        toys, valid_pct=0.3, item_tfms=RESIZE(224), batch_tfms=[STATS], num_workers=0, bs=4
    )
    batch = data.test_dl(photos, num_workers=0, bs=len(photos)).one_batch()[0].as_subclass(Tensor)
    usual = usual_view(nn.Identity(), {"backbone": {"source": "torchvision", "name": "resnet18"}})
    views = [usual.view(decoding.load(path).image) for path in photos]
    torch.testing.assert_close(usual.batch(views), batch, atol=1e-5, rtol=0)


# --- classes --------------------------------------------------------------------------------------

COLOURS = ["red", "green", "blue"]
VOCABS: dict[str, tuple[Any, Callable[[str], Any]]] = {
    "numbers": (fastai.CategoryBlock, lambda name: {"red": 3, "blue": 10, "green": 2}[name]),
    "fractions": (fastai.CategoryBlock, lambda name: COLOURS.index(name) / 2),
    "yes and no": (fastai.CategoryBlock, lambda name: name == "red"),
    "odd characters": (
        fastai.CategoryBlock,
        lambda name: {"red": "ré d/,|", "blue": " ", "green": "a\nb"}[name],
    ),
    "in the user's order": (fastai.CategoryBlock(vocab=COLOURS, sort=False), str),
    "with one that is missing": (fastai.CategoryBlock(add_na=True), str),
}


@pytest.mark.parametrize("name", VOCABS)
def test_classes_are_called_as_fastai_calls_them(
    toys: Path, photos: list[Path], tmp_path: Path, name: str
) -> None:
    labels, called = VOCABS[name]
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, labels),
        get_items=fastai.get_image_files,
        get_y=lambda path: called(path.parent.name),
        item_tfms=RESIZE(48),
    )
    data = block.dataloaders(toys, num_workers=0, bs=4)
    learner = fastai.Learner(data, network(len(data.vocab)))
    model = loaded(learner, tmp_path)
    assert model.classes == tuple(map(str, data.vocab))
    with learner.no_bar():
        assert camkit.explain(model, photos[0]).predicted_name == str(learner.predict(photos[0])[0])


# --- pickles of other machines and notebooks ------------------------------------------------------


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that is there when the learner is exported, and gone when it is read."""
    module = types.ModuleType("a_notebook")
    code = (
        "from torch import nn\n"
        "def label(path): return path.parent.name\n"
        "class Loss(nn.CrossEntropyLoss): pass\n"
        "class Net(nn.Sequential): pass\n"
    )
    exec(code, vars(module))
    monkeypatch.setitem(sys.modules, "a_notebook", module)
    return module


def of_notebook(toys: Path, notebook: Any, module: nn.Module, **facts: Any) -> Any:
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock),
        get_items=fastai.get_image_files,
        get_y=notebook.label,
        item_tfms=RESIZE(48),
    )
    return fastai.Learner(block.dataloaders(toys, num_workers=0, bs=4), module, **facts)


def test_label_functions_and_losses_need_not_be_there(
    toys: Path, photos: list[Path], tmp_path: Path, notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = of_notebook(toys, notebook, network())
    expected = shown(learner, photos)[1]
    learner.loss_func = notebook.Loss()
    learner.path = tmp_path
    learner.export("learner.pkl")
    monkeypatch.delitem(sys.modules, "a_notebook")
    model = camkit.load_model(tmp_path / "learner.pkl", device="cpu", trust_pickle=True)
    assert model.classes == ("blue", "green", "red") and "Loss" in model.note
    check(model, photos, expected)


def test_a_network_must_be_there(
    toys: Path, tmp_path: Path, notebook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = of_notebook(toys, notebook, nn.Sequential(notebook.Net(*network())))
    learner.path = tmp_path
    learner.export("learner.pkl")
    monkeypatch.delitem(sys.modules, "a_notebook")
    with pytest.raises(ModelError, match=r"learner\.pkl needs a_notebook\.Net .*cannot be imported"):
        camkit.load_model(tmp_path / "learner.pkl", device="cpu", trust_pickle=True)


def test_paths_of_windows(toys: Path, photos: list[Path], tmp_path: Path) -> None:
    learner, _ = exported(toys, tmp_path, network())
    with zipfile.ZipFile(tmp_path / "learner.pkl") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "windows.pkl", "w") as archive:
        for name, data in members.items():
            if name.endswith("data.pkl"):
                assert b"PosixPath\n" in data
                data = data.replace(b"PosixPath\n", b"WindowsPath\n")
            archive.writestr(name, data)
    model = camkit.load_model(tmp_path / "windows.pkl", device="cpu", trust_pickle=True)
    check(model, photos, shown(learner, photos)[1])


def test_functions_of_another_python(
    toys: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cloudpickle writes functions of a notebook as bytecode, which another Python may not take."""
    block = fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock),
        get_items=fastai.get_image_files,
        get_y=lambda path: path.parent.name,
        item_tfms=RESIZE(48),
    )
    learner = fastai.Learner(block.dataloaders(toys, num_workers=0, bs=4), network())
    table = cloudpickle.Pickler.dispatch_table
    make, facts = table[types.CodeType]((lambda: None).__code__)
    with pytest.raises(TypeError):  # the last two may be left out, the one before not
        make(*facts[:-3])
    reduced = table[types.CodeType]
    older = {types.CodeType: lambda code: (make, reduced(code)[1][:-3])}
    monkeypatch.setattr(cloudpickle.Pickler, "dispatch_table", ChainMap(older, table))
    model = loaded(learner, tmp_path)
    check(model, photos, shown(learner, photos)[1])


def test_a_file_of_fastai_1_is_named(tmp_path: Path) -> None:
    torch.save({"model": network(), "loss_func": nn.MSELoss(), "cls": dict}, tmp_path / "one.pkl")
    with pytest.raises(ModelError, match="fastai 1"):
        camkit.load_model(f"fastai:{tmp_path / 'one.pkl'}", device="cpu", trust_pickle=True)


def test_what_is_no_learner_is_named(tmp_path: Path) -> None:
    (tmp_path / "no.pkl").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match=r"no\.pkl"):
        camkit.load_model(tmp_path / "no.pkl", device="cpu", trust_pickle=True)


# --- refused --------------------------------------------------------------------------------------


class Invert(fastai.Transform):
    """A transform that camkit cannot know."""

    order = 20

    def encodes(self, x: fastai.TensorImage) -> Any:
        """The negative."""
        return 1 - x


class Zoomed(fastai.Resize):
    """One that calls itself a `Resize`."""

    def encodes(self, x: fastai.Image.Image) -> Any:
        """Twice as near."""
        return super().encodes(x.crop((0, 0, x.width // 2, x.height // 2)))


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "an own one": (RESIZE(48), [Invert()], "Invert"),
    "one that varies": ([fastai.RatioResize(48), fastai.CropPad(40)], None, "RatioResize"),
    "two sizes": ([RESIZE(64), RANDOM(48)], None, "RandomResizedCrop"),
    "corners": (RESIZE(64), fastai.aug_transforms(size=48, align_corners=False), "align_corners=False"),
    "a filter": (RESIZE(48, resamples=(4, 0)), None, "Pillow's filter 4"),
    "one in disguise": (Zoomed(48), None, "in another way"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_transforms_that_camkit_does_not_know(toys: Path, tmp_path: Path, case: str) -> None:
    item, batch, message = REFUSED[case]
    with pytest.raises(ModelError, match=message) as caught:
        exported(toys, tmp_path, network(), item, batch)
    assert "learner.pkl" in str(caught.value) and "\n" not in str(caught.value)


def test_photographs_that_are_not_resized_are_said(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "toys" / name).mkdir(parents=True)
        for i in range(4):
            Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "toys" / name / f"{i}.png")
    with pytest.warns(CamkitWarning, match="size"):
        exported(tmp_path / "toys", tmp_path, network(2), fastai.FlipItem())


# --- the layer ------------------------------------------------------------------------------------


def test_only_a_body_under_a_head_is_the_layer(toys: Path, photos: list[Path], tmp_path: Path) -> None:
    _, model = exported(toys, tmp_path, network())
    assert model.default_layer == "0"
    theirs = fastai.create_vision_model(fastai.models.resnet18, 3, pretrained=False)
    assert default_layer(theirs) == "0"
    stem = fastai.xresnet18(n_out=3)
    assert default_layer(stem) == "auto"
    assert default_layer(nn.Sequential(*network()[0], *network()[1])) == "auto"
    _, model = exported(toys, tmp_path, stem)
    result = camkit.explain(model, photos[0])
    assert result.layer != "0" and result.map.shape == (2, 2)  # of 48 pixels, below the pooling


def test_an_export_goes_into_a_bundle(toys: Path, photos: list[Path], tmp_path: Path) -> None:
    """Which needs neither fastai nor trust in a pickle."""
    facts = {"valid_pct": 0.3, "num_workers": 0, "bs": 4}
    data = fastai.ImageDataLoaders.from_folder(toys, item_tfms=RESIZE(48), **facts)
    learner = fastai.vision_learner(data, "test_resnet", pretrained=False)
    model = loaded(learner, tmp_path)
    done = CliRunner().invoke(
        cli,
        [
            *("model", "bundle", str(tmp_path / "learner.pkl"), "--trust-pickle"),
            *("--out", str(tmp_path / "toys")),
        ],
    )
    assert done.exit_code == 0, done.output
    again = camkit.load_model(tmp_path / "toys", device="cpu")
    for photo in photos[:3]:
        ours, theirs = camkit.explain(again, photo), camkit.explain(model, photo)
        assert ours.class_name == theirs.class_name and ours.probability == theirs.probability
        assert torch.equal(ours.map, theirs.map)
