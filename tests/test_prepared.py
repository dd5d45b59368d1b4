"""Tensors that were prepared elsewhere, labels that come with them, and what is told of both."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import SmallNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

import camkit
from camkit.contracts.model import LoadedModel
from camkit.errors import CamkitWarning, ImageError, TargetError, UsageError
from camkit.images.preprocess import Preprocess

CLASSES = ("cat", "dog", "newt")
SHOWN = Preprocess(size=(24, 24), fit="squash")
NORMALISED = transforms.Compose(
    [transforms.Resize((24, 24)), transforms.ToTensor(), transforms.Normalize(SHOWN.mean, SHOWN.std)]
)


@pytest.fixture
def model() -> LoadedModel:
    return LoadedModel(SmallNet(3).eval(), CLASSES, SHOWN, "small")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photographs in folders of their classes."""
    root, generator = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index, name in enumerate(("newt", "cat", "dog", "newt", "cat")):
        (root / name).mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


def noise(*shape: int) -> Tensor:
    """Values as normalised photographs have them."""
    return torch.rand(*shape) * 3 - 1.5


def photographs(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.png"), key=lambda path: (path.parent.name, path.name))


class Paths(Dataset[Any]):
    """Rows of an image, its label and its path, of a data set that does not end by itself."""

    def __init__(self, folder: ImageFolder) -> None:
        self.folder = folder

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, index: int) -> Any:
        index %= len(self)
        return *self.folder[index], self.folder.samples[index][0]


def test_prepared_tensors_give_the_maps_and_pictures_of_their_photographs(
    model: LoadedModel, folder: Path
) -> None:
    rows = ImageFolder(str(folder), transform=NORMALISED)
    expected = [camkit.explain(model, path) for path in photographs(folder)]
    batch = torch.stack([row[0] for row in rows])
    many: dict[str, Any] = {
        "ImageFolder": rows,
        "DataLoader": DataLoader(rows, batch_size=2),
        "Tensor": batch,
        "list": [(image, 0) for image in batch],
        "Subset": Subset(rows, range(5)),
        "TensorDataset": TensorDataset(batch, torch.zeros(5)),
    }
    for kind, images in many.items():
        found = list(camkit.explain_many(model, images, prepared=True, batch_size=3))
        assert [one.photo.source for one in found] == [f"{kind}[{i}]" for i in range(5)]
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.map, other.map)
            shown, original = (
                np.asarray(r.overlay(look="lesson", alpha=0)).astype(int) for r in (one, other)
            )
            assert np.abs(shown - original).max() <= 1
            assert one.warnings == () and one.class_name == other.class_name
    one = camkit.explain(model, rows[3], prepared=True, target="dog")
    assert torch.equal(one.map, camkit.explain(model, batch[3][None], prepared=True, target="dog").map)
    assert one.photo.source == "image"
    # There is no whole photograph: what the model saw is drawn, enlarged, as it is small.
    assert one.overlay(caption=False).size == tuple(10 * side for side in one.photo.image.size)


def test_a_loader_is_left_alone(model: LoadedModel) -> None:
    """What it gives may be used on: tensors are not changed, and results do not change with them."""
    batch = noise(2, 3, 24, 24).requires_grad_()
    first, _ = camkit.explain_many(model, batch, prepared=True)
    kept, before = first.photo.image.info["tensor"].clone(), batch.detach().clone()
    assert torch.equal(batch, before) and batch.grad is None
    with torch.no_grad():
        batch.zero_()
    assert torch.equal(first.photo.image.info["tensor"], kept)


def test_tensors_that_are_normalised_are_never_normalised_again(model: LoadedModel) -> None:
    dark, light = torch.full((3, 24, 24), 0.5), torch.full((3, 24, 24), 1.5)
    seen = []
    with pytest.raises(ImageError, match=r"1\.5.*prepared=True"):
        # Not even the first one of the batch, whose values alone do not tell.
        seen += camkit.explain_many(
            model, DataLoader(torch.stack([dark, light]), batch_size=2), batch_size=1
        )
    assert not seen
    with pytest.raises(ImageError, match=r"list\[1\].*prepared=True"):
        list(camkit.explain_many(model, [dark, light]))


def textured(low: float, high: float) -> Tensor:
    return torch.linspace(low, high, 3 * 24 * 24).reshape(3, 24, 24)


ODD = {
    "not normalised": (textured(0, 1), "not normalised"),
    "other mean and std": (textured(-1, 1), r"mean 0\.5 and std 0\.5"),
    "bytes": (textured(0, 255), "normalised with others"),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_do_not_look_prepared_for_this_model(kind: str, model: LoadedModel) -> None:
    tensor, text = ODD[kind]
    with pytest.warns(CamkitWarning, match=text) as told:
        results = list(camkit.explain_many(model, [tensor, tensor], prepared=True))
    assert len(told) == 1 and told[0].filename == __file__
    assert all(text.replace("\\", "") in one.warnings[0] for one in results)
    expected = camkit.maps(model.module, tensor[None])
    torch.testing.assert_close(results[0].map, expected[0])
    assert np.ptp(np.asarray(results[0].overlay(alpha=0))) > 30  # something is to be seen


def test_usual_tensors_are_not_doubted(model: LoadedModel) -> None:
    for low, high in ((-2.1, 2.6), (-1.5, 0.9), (0.2, 0.7)):
        assert camkit.explain(model, textured(low, high), prepared=True).warnings == ()


class Digits(nn.Module):
    """For grey photographs of 28 x 28 and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * 26 * 26, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def test_of_prepared_tensors_nothing_is_assumed() -> None:
    """Neither their size nor mean and std: no warning, and it works where the usual size would not."""
    module, batch = Digits().eval(), noise(2, 1, 28, 28)
    for one, expected in zip(
        camkit.explain_many(module, batch, prepared=True),
        camkit.maps(module, batch),
        strict=True,
    ):
        torch.testing.assert_close(one.map, expected)
        assert one.class_name.startswith("class_") and one.overlay(look="lesson").size == (28, 28)
    five = nn.Sequential(
        nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    assert camkit.explain(five.eval(), noise(5, 20, 24), prepared=True).map.shape == (18, 22)


NOT_PREPARED: dict[str, tuple[Any, str]] = {
    "a picture": (Image.new("RGB", (9, 9)), r"\[C, H, W\], not Image"),
    "bytes": (torch.zeros(3, 9, 9, dtype=torch.uint8), r"torch.uint8 \[3, 9, 9\]"),
    "an array": (np.zeros((9, 9, 3)), r"ndarray of float64 \[9, 9, 3\]"),
    "a NaN": (torch.full((3, 24, 24), torch.nan), "NaN"),
}


@pytest.mark.parametrize("kind", NOT_PREPARED)
def test_what_is_no_prepared_tensor(kind: str, model: LoadedModel) -> None:
    image, text = NOT_PREPARED[kind]
    with pytest.raises(ImageError, match=text):
        camkit.explain(model, image, prepared=True)


def test_several_sizes_and_none(model: LoadedModel) -> None:
    small, large = noise(3, 24, 24), noise(3, 32, 32)
    with pytest.raises(camkit.CamkitError, match="batch_size=1"):
        list(camkit.explain_many(model, [small, large], prepared=True))
    with pytest.raises(ImageError, match=r"list\[1\] has 1 channels, and those before it 3"):
        list(camkit.explain_many(model, [small, small[:1]], prepared=True))
    shapes = [
        one.map.shape for one in camkit.explain_many(model, [small, large], prepared=True, batch_size=1)
    ]
    assert shapes == [(12, 12), (16, 16)]
    assert list(camkit.explain_many(model, [], prepared=True)) == []
    with pytest.raises(ImageError, match="prepared tensors"):
        camkit.explain(camkit.explain(model, small, prepared=True).model, Image.new("RGB", (9, 9)))
    with pytest.raises(UsageError, match="not 2"):
        camkit.explain(model, torch.stack([small, small]), prepared=True)


# --- labels of rows -------------------------------------------------------------------------------


def named(results: Iterator[camkit.Explanation]) -> list[str]:
    return [one.class_name for one in results]


def test_labels_are_targets_by_the_names_of_the_data_set(model: LoadedModel, folder: Path) -> None:
    rows = ImageFolder(str(folder), transform=NORMALISED)
    expected = ["cat", "cat", "dog", "newt", "newt"]
    # The classes of the model are in another order than those of the folder.
    other = LoadedModel(model.module, ("newt", "dog", "cat"), SHOWN, "other")
    for one in (model, other):
        for images in (rows, DataLoader(rows, batch_size=2), DataLoader(Subset(rows, range(5)))):
            assert named(camkit.explain_many(one, images, targets="labels", prepared=True)) == expected
    plain = ImageFolder(str(folder))
    assert named(camkit.explain_many(other, plain, targets="labels")) == expected
    columns = DataLoader(plain, batch_size=2, collate_fn=lambda rows: tuple(zip(*rows, strict=True)))
    assert named(camkit.explain_many(other, columns, targets="labels")) == expected


def test_rows_with_paths_are_called_by_them(model: LoadedModel, folder: Path) -> None:
    rows = Paths(ImageFolder(str(folder), transform=NORMALISED))
    for images in (rows, DataLoader(rows, batch_size=2)):
        found = list(camkit.explain_many(model, images, targets="labels", prepared=True))
        assert [one.photo.source for one in found] == list(map(str, photographs(folder)))
        assert [one.photo.name for one in found] == [path.name for path in photographs(folder)]
        assert [one.class_name for one in found] == [path.parent.name for path in photographs(folder)]


def test_classes_of_other_names(model: LoadedModel, folder: Path) -> None:
    rows = ImageFolder(str(folder), transform=NORMALISED)
    synsets = LoadedModel(model.module, ("n01", "n02", "n03"), SHOWN, "synsets")
    with pytest.warns(CamkitWarning, match=r"cat, dog, newt.*n01, n02, n03.*order"):
        found = named(camkit.explain_many(synsets, rows, targets="labels", prepared=True))
    assert found == ["n01", "n01", "n02", "n03", "n03"]
    unnamed = LoadedModel(model.module, ("class_0", "class_1", "class_2"), SHOWN, "unnamed")
    assert named(camkit.explain_many(unnamed, rows, targets="labels", prepared=True))[2:4] == [
        "class_1",
        "class_2",
    ]
    partly = LoadedModel(model.module, ("dog", "x", "y"), SHOWN, "partly")  # where order would be wrong
    more = LoadedModel(SmallNet(4).eval(), ("a", "b", "c", "d"), SHOWN, "more")
    for one in (partly, more):
        with pytest.raises(TargetError, match=r"3 classes \(cat, dog, newt\).*classes="):
            list(camkit.explain_many(one, rows, targets="labels", prepared=True))


def test_labels_that_are_no_class(model: LoadedModel) -> None:
    image = noise(3, 24, 24)
    for row, text in (
        ((image, torch.tensor([0, 1, 1])), r"Tensor \[3\]"),
        ((image, 0.5), "0.5"),
        ((image, 3), "no class 3"),
        ((image, -1), "no class -1"),
        ((image,), "no label"),
        (image, "no label"),
    ):
        with pytest.raises(UsageError, match=text):
            list(camkit.explain_many(model, [row], targets="labels", prepared=True))
    with pytest.raises(UsageError, match="'label'"):
        list(camkit.explain_many(model, [(image, 1)], targets="label", prepared=True))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="3 images and 2 labels"):
        rows = [(torch.zeros(3, 3, 24, 24), torch.tensor([0, 1]))]
        list(camkit.explain_many(model, rows, targets="labels"))


def test_a_number_is_an_index_and_a_text_a_name(model: LoadedModel) -> None:
    """Of classes that are called as numbers, as those of digits and flowers."""
    digits = LoadedModel(model.module, ("1", "2", "0"), SHOWN, "digits")
    image = noise(3, 24, 24)
    for target, name in ((0, "1"), ("0", "0"), (np.int64(1), "2"), (torch.tensor(2), "0")):
        for call in ({"target": target}, {"target": [target]}, {"targets": [target]}):
            found: Any = camkit.explain_many(digits, [image], prepared=True, **call)  # type: ignore[arg-type]
            assert named(found) == [name]
