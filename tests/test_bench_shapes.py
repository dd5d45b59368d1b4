"""The data set that ships: what is drawn is what counts, and a small model learns it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import camkit
from camkit.bench import shapes
from camkit.contracts.model import LoadedModel
from camkit.metrics.controls import CONTROLS
from camkit.metrics.faithfulness import symmetric_relevance_gain
from camkit.metrics.localisation import energy_pointing_game, pointing_game
from camkit.metrics.sanity import cascading


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return shapes.train(seed=0)


def test_images_are_drawn_from_the_seed_and_the_classes_are_even() -> None:
    before = torch.get_rng_state()
    drawn = shapes.draw(40, seed=4)
    assert drawn.inputs.shape == (40, 3, 64, 64) and drawn.truth.dtype == torch.bool
    assert drawn.targets.bincount().tolist() == [10] * 4
    assert torch.equal(drawn.inputs, shapes.draw(40, seed=4).inputs)
    assert not torch.equal(drawn.inputs, shapes.draw(40, seed=5).inputs)
    assert torch.equal(before, torch.get_rng_state())


def test_every_shape_is_whole_and_not_where_the_bar_is() -> None:
    drawn = shapes.draw(200, seed=1)
    pixels = drawn.inputs * shapes.STD + shapes.MEAN
    assert pixels.min() >= 0 and pixels.max() <= 1.1
    area = drawn.truth.float().mean((1, 2))
    assert area.min() > 0.02 and area.max() < 0.12
    border = torch.ones(64, 64, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    assert not (drawn.truth & border).any()
    bright = pixels.mean(1) > 0.68  # shapes and bars; the background is darker
    assert (bright & ~drawn.truth).flatten(1).any(1).float().mean() > 0.9
    left = drawn.truth[:, :, :32].flatten(1).any(1)
    right = drawn.truth[:, :, 32:].flatten(1).any(1)
    assert (left ^ right).all() and 60 < int(left.sum()) < 140


def test_the_hole_of_a_ring_is_evidence_but_not_painted() -> None:
    drawn = shapes.draw(4, seed=0)
    ring, disc = drawn.truth[1].float(), drawn.truth[0].float()
    assert float(ring.sum()) / float((ring.amax(0).sum() / 2) ** 2) == pytest.approx(torch.pi, rel=0.1)
    assert float(disc.sum()) / float((disc.amax(0).sum() / 2) ** 2) == pytest.approx(torch.pi, rel=0.1)


@pytest.mark.slow
def test_a_small_model_learns_them_and_its_maps_are_true(model: LoadedModel) -> None:
    test = shapes.draw(64, seed=77)
    with torch.no_grad():
        right = model.module(test.inputs).argmax(1) == test.targets
    assert model.classes == shapes.CLASSES and float(right.float().mean()) > 0.9

    def explain(x: Tensor, t: Tensor) -> Tensor:
        maps = camkit.maps(model.module, x, t, layer=model.default_layer)
        assert isinstance(maps, Tensor)
        return maps

    maps = explain(test.inputs, test.targets)
    chance = float(test.truth.float().mean())
    assert float(energy_pointing_game(maps, test.truth).nanmean()) > 3 * chance
    edges = CONTROLS["edges"](test.inputs, maps, 0)
    assert float(pointing_game(maps, test.truth, 3).nanmean()) > 0.7
    assert float(pointing_game(edges, test.truth, 3).nanmean()) < 0.7  # the bar stands out as much
    few = (test.inputs[:16], maps[:16], test.targets[:16])
    gain = float(symmetric_relevance_gain(model.module, *few).nanmean())
    random = CONTROLS["random"](few[0], few[1], 0)
    assert gain > 0.1 > float(symmetric_relevance_gain(model.module, few[0], random, few[2]).nanmean())
    _, curve = cascading(model.module, explain, few[0], few[1], few[2])
    assert float(curve[:, -1].nanmean()) < 0.5


def test_training_is_seeded_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second = (shapes.train(seed=3, steps=2, batch=8) for _ in range(2))
    assert first.sha256 == second.sha256 and torch.equal(before, torch.get_rng_state())
    assert not first.module.training and first.name == "shapes"
    with torch.inference_mode():
        assert shapes.train(seed=3, steps=2, batch=8).sha256 == first.sha256
