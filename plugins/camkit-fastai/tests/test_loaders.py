"""The loaders and data sets of a fastai training, given to camkit as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fastai.vision.all import (
    CrossEntropyLossFlat,
    ImageDataLoaders,
    Learner,
    Normalize,
    Resize,
    imagenet_stats,
)
from PIL import Image
from torch import nn

import camkit
from camkit.errors import ImageError, UsageError

CLASSES = ("cat", "dog", "newt")


@pytest.fixture
def learner(tmp_path: Path) -> Any:
    generator = np.random.default_rng(0)
    for index in range(9):
        folder = tmp_path / CLASSES[index % 3]
        folder.mkdir(exist_ok=True)
        pixels = generator.integers(0, 256, (30 + index, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    loaders = ImageDataLoaders.from_folder(
        tmp_path,
        valid_pct=0.5,
        seed=0,
        bs=3,
        num_workers=0,
        item_tfms=Resize(32),
        batch_tfms=[Normalize.from_stats(*imagenet_stats, cuda=False)],
        device=torch.device("cpu"),
    )
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    )
    return Learner(loaders, network, loss_func=CrossEntropyLossFlat())


def test_batches_rows_and_files_of_fastai_give_the_same(learner: Any) -> None:
    model, loaders = camkit.load_model(learner), learner.dls
    labels = [Path(file).parent.name for file in loaders.valid.items]
    batches = list(camkit.explain_many(model, loaders.valid, prepared=True, targets="labels"))
    rows = list(camkit.explain_many(model, loaders.valid_ds, targets="labels"))
    files = list(camkit.explain_many(model, loaders.valid.items, targets=labels))
    assert len(batches) == len(rows) == len(files) == 4
    for batch, row, file in zip(batches, rows, files, strict=True):
        torch.testing.assert_close(batch.map, file.map, atol=1e-6, rtol=1e-4)
        assert torch.equal(row.map, file.map) and type(batch.map) is torch.Tensor
        assert batch.class_name == row.class_name == file.class_name
        pictures = [np.asarray(one.overlay(look="lesson", alpha=0)).astype(int) for one in (batch, file)]
        assert np.abs(pictures[0] - pictures[1]).max() <= 1
    one = camkit.explain(model, loaders.valid_ds[2], target="dog")
    assert torch.equal(one.map, camkit.explain(model, loaders.valid.items[2], target="dog").map)
    # A Learner as it is, and a function of its scores.
    rather = camkit.explain(learner, loaders.valid_ds[2], target=lambda scores: scores[:, 1] - scores[:, 0])
    cat = camkit.explain(learner, loaders.valid_ds[2], target="cat")
    torch.testing.assert_close(rather.map, one.map - cat.map)


def test_batches_of_fastai_are_not_normalised_twice(learner: Any) -> None:
    with pytest.raises(ImageError, match="prepared=True"):
        list(camkit.explain_many(learner, learner.dls.valid))
    with pytest.raises(UsageError, match=r"dls\.valid"):
        list(camkit.explain_many(learner, learner.dls))
