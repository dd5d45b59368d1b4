"""Files of `learn.export()`: what camkit shows and says is what `learn.predict` does."""

# Annotations are no texts here: fastai reads those of transforms.
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import camkit
from camkit.errors import CamkitWarning, ModelError
from camkit.images.preprocess import Preprocess
from camkit.models.fastai_architecture import default_layer
from camkit.testing.trainers import toy_photos

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


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise of odd sizes, in which every shift by a pixel shows."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    paths = []
    for width, height in ((151, 97), (83, 131), (64, 64), (45, 37), (199, 41)):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path := folder / f"{width}.png")
        paths.append(path)
    return paths


def network(outputs: int = 3, *ending: nn.Module) -> nn.Sequential:
    """A few pixels decide over its scores."""
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 5, stride=3), nn.ReLU()),
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


def seen(learner: Any, path: Path) -> Tensor:
    return learner.dls.test_dl([path], num_workers=0).one_batch()[0].as_subclass(Tensor)[0]


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
    "a part of the batch": (
        lambda: RESIZE(64),
        lambda: [fastai.RandomResizedCropGPU((40, 40), valid_scale=0.8), STATS],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_photograph_is_shown_as_fastai_shows_it(
    toys: Path, photos: list[Path], tmp_path: Path, way: str
) -> None:
    item, batch = (make() for make in WAYS[way])
    learner, model = exported(toys, tmp_path, network(), item, batch)
    assert model.scores == "softmax"
    for path in photos:
        expected = seen(learner, path)
        found = model.preprocess(Image.open(path))
        # Without augmentation nothing is computed twice; the identity that it ends in is rounded.
        exact = way not in ("augmented", *(name for name in WAYS if "presized" in name or "batch" in name))
        torch.testing.assert_close(found, expected, rtol=0, atol=0 if exact else 1e-4)
        explained = camkit.explain(model, path, target=1)
        assert explained.probability == pytest.approx(float(said(learner, path)[1]), abs=1e-4)
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
