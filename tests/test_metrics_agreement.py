"""How far maps agree: by hand, and against scipy and scikit-image."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from PIL import Image
from scipy import stats
from skimage.metrics import structural_similarity
from torch import Tensor, nn

import camkit
from camkit.contracts.model import LoadedModel
from camkit.errors import UsageError
from camkit.explaining.comparison import compare
from camkit.explaining.explanation import Explanation
from camkit.metrics.agreement import (
    MEASURES,
    difference,
    jaccard,
    null,
    overlap,
    pearson,
    spearman,
    ssim,
)

A = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])
SWAPPED = torch.tensor([[[2.0, 1.0], [3.0, -4.0]]])  # two neighbours in rank exchanged: 1 - 6 * 2 / 60


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("measure", "other", "expected"),
    [
        (pearson, 2 * A + 1, 1.0),
        (pearson, -A, -1.0),
        (spearman, A**3, 1.0),
        (spearman, SWAPPED, 0.8),
        (difference, A, 0.0),
        (difference, -A, 2.0),
        (difference, SWAPPED, 0.25),
        (lambda a, b: overlap(a, b, 0.5), SWAPPED, 1 / 2),  # {3, 2} and {3, 2 elsewhere}
        (lambda a, b: jaccard(a, b, 0.5), SWAPPED, 1 / 3),
        (lambda a, b: overlap(a, b, 0.01), SWAPPED, 1.0),  # at least one position
    ],
)
def test_figures_by_hand(measure: Callable[..., Tensor], other: Tensor, expected: float) -> None:
    assert measure(A, other).tolist() == pytest.approx([expected])


@pytest.mark.parametrize("size", [(7, 7), (5, 9), (16, 12)])
def test_figures_as_others_have_them(size: tuple[int, int]) -> None:
    a, b = maps(4, *size), maps(4, *size, seed=1)
    a[0] = a[0].round()  # ties
    b[1] = b[1].clamp(min=0)
    window = min(7, *size)
    for i, (x, y) in enumerate(zip(a.double().numpy(), b.double().numpy(), strict=True)):
        x1, y1 = ((m - m.min()) / (m.max() - m.min()) for m in (x, y))
        assert float(pearson(a, b)[i]) == pytest.approx(
            stats.pearsonr(x.ravel(), y.ravel()).statistic, abs=1e-6
        )
        assert float(spearman(a, b)[i]) == pytest.approx(
            stats.spearmanr(x.ravel(), y.ravel()).statistic, abs=1e-6
        )
        expected = structural_similarity(x1, y1, data_range=1.0, win_size=window)
        assert float(ssim(a, b)[i]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)
def test_what_is_not_defined_is_nan_and_hurts_no_neighbour(measure: Callable[..., Tensor]) -> None:
    a, b = maps(5, 7, 7), maps(5, 7, 7, seed=1)
    expected = measure(a, b)
    a[0], b[1], a[2, 0, 0], b[3, 1, 1] = 1.0, 0.0, torch.nan, torch.inf
    found = measure(a, b)
    assert found.isnan().tolist() == [True, True, True, True, False]
    assert found[4] == expected[4]


def test_the_difference_from_a_zero_map_is_absolute() -> None:
    assert difference(torch.zeros(1, 2, 2), 3 * torch.ones(1, 2, 2)).tolist() == [3.0]
    assert difference(torch.ones(1, 2, 2), torch.full((1, 2, 2), torch.nan)).isnan().all()


def test_ssim_without_scikit_image_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UsageError, match=r"camkit\[bench\]"):
        ssim(maps(1, 4, 4), maps(1, 4, 4, seed=1))


def test_ssim_of_a_map_without_room_for_a_window_is_not_defined() -> None:
    assert ssim(maps(1, 2, 9), maps(1, 2, 9, seed=1)).isnan().all()


def test_equal_maps_agree_wholly_also_with_ties() -> None:
    rectified = maps(3, 7, 7).clamp(min=0.5)
    for measure in MEASURES.values():
        assert measure(rectified, rectified).tolist() == pytest.approx([1.0] * 3)


def test_the_null_is_what_chance_gives() -> None:
    """Independent ranks of N positions have a correlation of standard deviation 1 / sqrt(N - 1)."""
    found = null(spearman, (7, 7), pairs=2000)
    assert float(found.mean()) == pytest.approx(0.0, abs=0.01)
    assert float(found.std()) == pytest.approx(48**-0.5, rel=0.05)
    assert torch.equal(found, found.sort().values) and torch.equal(found, null(spearman, (7, 7), 2000))
    assert not torch.equal(found, null(spearman, (7, 7), 2000, seed=1))
    assert float(null(overlap, (10, 10)).mean()) == pytest.approx(0.2, abs=0.01)


@pytest.fixture
def explanation() -> Explanation:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loaded = LoadedModel(model, ("a", "b"), camkit.Preprocess(size=(8, 8)), "tiny")
    return camkit.explain(loaded, Image.new("RGB", (8, 8), "red"), target="a")


def test_only_what_can_be_compared_is_compared(explanation: Explanation) -> None:
    first, other = replace(explanation, map=A[0]), replace(explanation, backend="other", map=SWAPPED[0])
    [pair] = compare([first, other])
    assert (pair.first, pair.second, pair.method, pair.class_name) == ("native", "other", "gradcam", "a")
    assert (pair.spearman, pair.difference) == (pytest.approx(0.8), pytest.approx(0.25))
    assert compare([first, replace(other, method="layercam")]) == []
    assert compare([first, replace(other, class_index=1)]) == []
    assert compare([first, replace(other, map=torch.zeros(9, 9))]) == []
    assert compare([first, first]) == []
    assert len(compare([first, other, replace(first, backend="third")])) == 3
