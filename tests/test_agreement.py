"""How far maps agree."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import nn

import camkit
from camkit.agreement import compare, figures
from camkit.api import LoadedModel
from camkit.explanation import Explanation


def test_figures_by_hand() -> None:
    a = torch.tensor([[1.0, 2.0], [3.0, -4.0]])
    assert figures(a, a) == (pytest.approx(1.0), 0.0)
    assert figures(a, -a) == (pytest.approx(-1.0), pytest.approx(2.0))
    assert figures(a, 2 * a + 1) == (pytest.approx(1.0), pytest.approx(1.0))  # same ranks, other values
    swapped = torch.tensor([[2.0, 1.0], [3.0, -4.0]])  # two neighbours in rank exchanged: 1 - 6 * 2 / 60
    assert figures(a, swapped) == (pytest.approx(0.8), pytest.approx(0.25))


def test_a_constant_map_has_no_ranks() -> None:
    rank, difference = figures(torch.ones(2, 2), torch.eye(2))
    assert math.isnan(rank) and difference == pytest.approx(1.0)
    assert figures(torch.zeros(2, 2), torch.ones(2, 2))[1] == pytest.approx(1.0)


@pytest.fixture
def explanation() -> Explanation:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    loaded = LoadedModel(model, ("a", "b"), camkit.Preprocess(size=(8, 8)), "tiny")
    return camkit.explain(loaded, Image.new("RGB", (8, 8), "red"), target="a")


def test_only_what_can_be_compared_is_compared(explanation: Explanation) -> None:
    other = replace(explanation, backend="other")
    [pair] = compare([explanation, other])
    assert (pair.first, pair.second, pair.method, pair.class_name) == ("native", "other", "gradcam", "a")
    assert compare([explanation, replace(other, method="layercam")]) == []
    assert compare([explanation, replace(other, class_index=1)]) == []
    assert compare([explanation, replace(other, map=torch.zeros(9, 9))]) == []
    assert compare([explanation, explanation]) == []
    assert len(compare([explanation, other, replace(explanation, backend="third")])) == 3
