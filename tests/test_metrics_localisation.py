"""Localisation, complexity and controls, by hand on tiny maps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from camkit.errors import UsageError
from camkit.metrics import localisation
from camkit.metrics.complexity import entropy, gini
from camkit.metrics.controls import CONTROLS, OF_MAPS
from camkit.metrics.localisation import (
    PointingGame,
    energy_pointing_game,
    iou,
    mosaic,
    mosaics,
    place,
    pointing_game,
    relevance_rank,
)

MAP = torch.tensor([[[4.0, 1.0, 0.0], [2.0, -9.0, 3.0]]])
TRUTH = torch.tensor([[[True, True, False], [False, False, True]]])


@pytest.mark.parametrize(
    ("metric", "map", "expected"),
    [
        (energy_pointing_game, MAP, 8 / 10),
        (energy_pointing_game, torch.ones_like(MAP), 3 / 6),  # a uniform map: chance
        (relevance_rank, MAP, 2 / 3),  # of 4, 3, 2
        (
            relevance_rank,
            torch.tensor([[[5.0, 0, 0], [0, 0, 0]]]),
            (1 + 2 / 5 * 2) / 3,
        ),  # ties in proportion
        (iou, MAP, 3 / 4),  # 4, 3, 2 and 1 are at least 0.8
        (lambda m, t: iou(m, t, 0.7), MAP, 2 / 3),
        (lambda m, t: pointing_game(m, t, 0), MAP, 1.0),
        (lambda m, t: pointing_game(m, t, 0), -MAP, 0.0),
        (lambda m, t: pointing_game(m, t, 1), -MAP, 1.0),
        (lambda m, t: pointing_game(m, t, 0), MAP.clamp(max=2), 2 / 3),  # of three equal maxima
    ],
)
def test_scores_by_hand(metric: Callable[..., Tensor], map: Tensor, expected: float) -> None:
    assert metric(map, TRUTH).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("metric", [pointing_game, energy_pointing_game, relevance_rank, iou])
def test_nothing_to_find_or_nothing_said_is_not_a_hit(metric: Callable[..., Tensor]) -> None:
    maps, truth = MAP.repeat(5, 1, 1), TRUTH.repeat(5, 1, 1)
    truth[0], maps[1], maps[2, 0, 0], maps[3] = False, 0.0, torch.nan, -torch.inf
    assert metric(maps, truth).isnan().tolist() == [True, True, True, True, False]
    if metric is not energy_pointing_game:  # which knows what chance is
        assert metric(torch.ones(1, 2, 3), TRUTH).isnan().all()
    negative = -1 - torch.rand(1, 2, 3)
    assert metric(negative, TRUTH).isnan().all() == (metric in (energy_pointing_game, iou))


@pytest.mark.parametrize(("row", "column", "hit"), [(0, 15, 1), (0, 16, 0), (9, 12, 1), (11, 11, 0)])
def test_the_tolerance_is_a_disc_of_fifteen_pixels(row: int, column: int, hit: int) -> None:
    truth = torch.zeros(1, 40, 40, dtype=torch.bool)
    truth[0, 0, 0] = True
    map = torch.zeros(1, 40, 40)
    map[0, row, column] = 1.0
    assert pointing_game(map, truth).tolist() == [hit]


@pytest.mark.parametrize("size", [56, 224, 448])
def test_the_metric_allows_as_large_a_part_of_every_size(size: int) -> None:
    """15 of 224 pixels; on 56 they would make most of it a hit."""
    truth, near, beyond = torch.zeros(1, size, size, dtype=torch.bool), *torch.zeros(2, 1, size, size)
    truth[0, 0, 0] = True
    allowed = round(15 * size / 224)
    near[0, 0, allowed] = beyond[0, 0, allowed + 1] = 1.0
    found = [float(PointingGame.function(m, truth, 15)) for m in (near, beyond)]
    assert found == [1.0, 0.0]


def test_coarse_maps_are_compared_where_they_are_drawn() -> None:
    truth = torch.zeros(1, 64, 64, dtype=torch.bool)
    truth[0, :32, :32] = True
    coarse = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    drawn = torch.nn.functional.interpolate(coarse[None], size=(64, 64), mode="bilinear")[0]
    for metric in (energy_pointing_game, relevance_rank, iou):
        assert torch.equal(metric(coarse, truth), metric(drawn, truth))
    assert float(relevance_rank(coarse, truth)) > 0.9 and float(pointing_game(coarse, truth, 0)) == 1.0


# --- mosaics --------------------------------------------------------------------------------------


def colours(x: Tensor) -> Tensor:
    """Scores: how much there is of each of four channels."""
    return 100 * x.mean((2, 3))


def test_a_mosaic_is_read_like_a_page() -> None:
    tiles = torch.arange(4.0)[:, None, None, None].expand(4, 2, 1, 2)
    assert mosaic(tiles, 2)[0].tolist() == [[0, 0, 1, 1], [2, 2, 3, 3]]


def test_mosaics_hold_sure_images_of_different_classes_and_score_by_their_cells() -> None:
    inputs = torch.eye(4).repeat(3, 1)[:, :, None, None].expand(12, 4, 4, 6).clone()
    inputs[0] = 0.25  # the model cannot tell
    made = mosaics(colours, inputs, n=2, count=9)
    assert made.inputs.shape == (8, 4, 8, 12) and made.truth.shape == (
        8,
        8,
        12,
    )  # two mosaics: class 0 is out
    assert sorted(made.targets[:4].tolist()) == [0, 1, 2, 3]
    own = made.inputs.gather(1, made.targets[:, None, None, None].expand(-1, 1, 8, 12))[:, 0]
    assert torch.equal(own > 0, made.truth)  # the class's own channel is there and only there
    assert energy_pointing_game(own, made.truth).tolist() == [1.0] * 8
    assert energy_pointing_game(torch.ones_like(own), made.truth).tolist() == [0.25] * 8
    again = mosaics(colours, inputs, n=2, count=9)
    assert torch.equal(made.inputs, again.inputs)
    assert len(mosaics(colours, inputs, n=2, count=1).targets) == 4
    assert place(colours(made.inputs), made.targets).tolist() == [0] * 8
    with pytest.raises(UsageError, match=r" 9 .*99%.* 4"):
        mosaics(colours, inputs, n=3)


def test_place_counts_the_classes_above() -> None:
    assert place(torch.tensor([[3.0, 1.0, 2.0]]).repeat(3, 1), torch.arange(3)).tolist() == [0, 2, 1]


# --- complexity -------------------------------------------------------------------------------------


def test_complexity_by_hand_and_as_scipy_has_it() -> None:
    one = torch.tensor([[[0.0, -7.0], [0.0, 0.0]]])
    even = torch.full((1, 2, 2), -3.0)
    assert gini(one).tolist() == [0.75] and gini(even).tolist() == [0.0]
    assert entropy(one).tolist() == [0.0] and entropy(even).tolist() == pytest.approx([1.0])
    values = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    flat = values.flatten(1).double().numpy()
    assert entropy(values).numpy() == pytest.approx(stats.entropy(flat, axis=1) / np.log(20), abs=1e-6)
    pairs = np.abs(flat[:, :, None] - flat[:, None]).mean((1, 2)) / (
        2 * flat.mean(1)
    )  # its other definition
    assert gini(values).numpy() == pytest.approx(pairs, abs=1e-6)


@pytest.mark.parametrize("metric", [gini, entropy])
@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_complexity_of_nothing_is_not_defined(metric: Callable[..., Tensor], value: float) -> None:
    assert metric(torch.full((1, 3, 3), value)).isnan().all()


# --- controls -------------------------------------------------------------------------------------


def test_controls_are_like_the_maps_and_know_nothing_of_the_model() -> None:
    inputs, maps = torch.rand(2, 3, 20, 30), torch.rand(2, 4, 6, dtype=torch.float64)
    for name, control in CONTROLS.items():
        made = control(inputs, maps, 1)
        assert made.shape == maps.shape and made.dtype == maps.dtype and made.isfinite().all(), name
        assert torch.equal(made, control(inputs, maps, 1))
    assert not torch.equal(CONTROLS["random"](inputs, maps, 1), CONTROLS["random"](inputs, maps, 2))
    assert torch.equal(CONTROLS["uniform"](inputs, maps, 0), torch.ones_like(maps))


@pytest.mark.parametrize("name", [name for name in CONTROLS if name not in OF_MAPS])
def test_other_controls_do_not_look_at_the_values_of_maps(name: str) -> None:
    inputs, first, second = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 4), torch.randn(2, 4, 4)
    assert torch.equal(CONTROLS[name](inputs, first, 0), CONTROLS[name](inputs, second, 0))


def test_a_random_map_belongs_to_its_image_whatever_the_batch() -> None:
    inputs, maps = torch.randn(5, 3, 16, 16), torch.zeros(5, 4, 4)
    found = CONTROLS["random"](inputs, maps, 0)
    assert torch.equal(found[3:], CONTROLS["random"](inputs[3:], maps[3:], 0))
    assert len({tuple(values.flatten().tolist()) for values in found}) == 5
    assert not torch.equal(found, CONTROLS["random"](inputs, maps, 1))


def test_controls_show_what_they_are_called() -> None:
    inputs = torch.zeros(1, 3, 20, 20)
    inputs[..., 10:] = 1.0
    edges = CONTROLS["edges"](inputs, torch.zeros(1, 5, 5), 0)
    assert edges[0, 0].nonzero()[:, 0].tolist() == [2] and edges[0].std(0).max() == 0  # one vertical edge
    centre = CONTROLS["centre"](inputs, torch.zeros(1, 5, 7), 0)[0]
    assert int(centre.argmax()) == 17 and torch.allclose(centre, centre.flip(0, 1))
    peak = torch.zeros(1, 5, 5)
    peak[0, 2, 2] = 9.0
    assert CONTROLS["blurred"](inputs, peak, 0)[0, 1:4, 1:4].tolist() == [[1.0] * 3] * 3


def test_the_cells_of_a_mosaic_cover_it_once() -> None:
    assert torch.equal(localisation.cells(3, (2, 4)).sum(0), torch.ones(6, 12, dtype=torch.int64))
