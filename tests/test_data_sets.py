"""Rows of pandas, of Hugging Face's data sets, and models of Lightning, with the libraries themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.conftest import SmallNet
from torch import Tensor, nn
from torch.utils.data import DataLoader

import camkit
from camkit.contracts.model import LoadedModel
from camkit.errors import CamkitWarning, UsageError
from camkit.images.preprocess import Preprocess

CLASSES = ("cat", "dog", "newt")
SHOWN = Preprocess(size=(24, 24))
LABELS = ["newt", "cat", "dog", "newt"]


@pytest.fixture
def model() -> LoadedModel:
    return LoadedModel(SmallNet(3).eval(), CLASSES, SHOWN, "small")


@pytest.fixture
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in LABELS]


def scores(model: LoadedModel, images: Any, **call: Any) -> list[tuple[str, float]]:
    """The class that each image is explained for, and its score."""
    found = camkit.explain_many(model, images, **call)
    return [(one.class_name, pytest.approx(one.logit, abs=1e-5)) for one in found]


def test_tables_of_pandas(model: LoadedModel, pictures: list[Image.Image], tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    files = [str(tmp_path / f"{index}.png") for index in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        picture.save(file)
    table = pandas.DataFrame({"file": files, "label": LABELS})
    expected = scores(model, pictures, targets=LABELS)
    assert scores(model, table["file"], targets=table["label"]) == expected
    for rows in (table.iterrows(), table.itertuples(), table.to_dict("records")):
        assert scores(model, rows, targets="labels") == expected
    assert camkit.explain(model, table.iloc[1], target="cat").logit == expected[1][1]
    with pytest.raises(UsageError, match="file, label"):
        list(camkit.explain_many(model, table))


def test_data_sets_of_hugging_face(model: LoadedModel, pictures: list[Image.Image]) -> None:
    datasets = pytest.importorskip("datasets")
    names = ["newt", "cat", "dog"]  # in another order than the model's
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    content = {"image": pictures, "label": [names.index(label) for label in LABELS]}
    rows = datasets.Dataset.from_dict(content, features=features)
    expected = scores(model, pictures, targets=LABELS)
    tensors = rows.with_format("torch")
    forms = [
        *(rows, tensors, rows.with_format("numpy"), rows.to_iterable_dataset()),
        rows.cast_column("image", datasets.Image(decode=False)),
        DataLoader(tensors, batch_size=3),
    ]
    for form in forms:
        assert scores(model, form, targets="labels") == expected
    assert scores(model, rows["image"], targets=LABELS) == expected
    assert len(scores(model, rows[:3])) == len(scores(model, tensors.iter(2))) - 1 == 3
    assert camkit.explain(model, rows[1], target="cat").logit == expected[1][1]
    with pytest.raises(UsageError, match="train, test"):
        list(camkit.explain_many(model, {"train": rows, "test": rows}))


def test_a_module_of_lightning(pictures: list[Image.Image]) -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):  # type: ignore[name-defined,misc]
        def __init__(self, class_names: list[str]) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.net: nn.Module = SmallNet(3)

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images)  # type: ignore[no-any-return]

    module = Classifier(list(CLASSES)).eval()
    with pytest.warns(CamkitWarning, match="assumed: 224 x 224"):
        assert camkit.load_model(module).classes == CLASSES
    one = camkit.explain(module, pictures[0], preprocess=SHOWN, target="dog")
    other = camkit.explain(LoadedModel(module.net, CLASSES, SHOWN, "net"), pictures[0], target="dog")
    assert one.logit == other.logit and one.layer == f"net.{other.layer}"
