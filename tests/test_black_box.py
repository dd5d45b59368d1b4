"""Black box: against slow transcriptions of the papers, and the interval that ends the masks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.core import mask_formulas
from camkit.errors import OptionError
from camkit.explaining import repeating
from camkit.native import black_box
from camkit.native.black_box import DESIGNS
from camkit.native.method_table import BLACK_BOX, NativeOptions

SEED = 3


def scores_of(model: nn.Module, x: Tensor, target: int) -> Callable[[Tensor], Tensor]:
    """From a mask to the score of the target."""

    def score(mask: Tensor) -> Tensor:
        with torch.no_grad():
            return model(x * mask)[0, target]

    return score


def rise(model: nn.Module, x: Tensor, target: int, masks: int, cells: int, centred: bool) -> Tensor:
    """Petsiuk et al. written out, mask by mask: a grid enlarged as a whole, a window of it cut out."""
    height, width = x.shape[2:]
    steps = -(-height // cells), -(-width // cells)
    generator = torch.Generator().manual_seed(SEED)
    grids = torch.rand(masks, cells, cells, generator=generator) < 0.5
    down, right = (torch.randint(step, (masks,), generator=generator) for step in steps)
    made = []
    for grid, i, j in zip(grids, down.tolist(), right.tolist(), strict=True):
        size = (cells + 1) * steps[0], (cells + 1) * steps[1]
        large = F.interpolate(grid[None, None].to(x), size, mode="bilinear")[0, 0]
        made.append(large[i : i + height, j : j + width])
    found = [scores_of(model, x, target)(mask) for mask in made]
    mean = sum(found) / masks if centred else 0.0
    return sum((f - mean) * mask for f, mask in zip(found, made, strict=True)) / (masks * 0.5)


def sobol(model: nn.Module, x: Tensor, target: int, masks: int, cells: int) -> Tensor:
    """Fel et al. written out, cell by cell, with Jansen's estimator."""
    count = cells**2
    points = torch.quasirandom.SobolEngine(2 * count, scramble=True, seed=SEED).draw(masks // (count + 1))
    own, other = points[:, :count], points[:, count:]
    score = scores_of(model, x, target)

    def f(values: Tensor) -> Tensor:
        return score(F.interpolate(values.reshape(1, 1, cells, cells).to(x), x.shape[2:])[0, 0])

    before = torch.stack([f(a) for a in own])
    index = []
    for i in range(count):
        swapped = own.clone()
        swapped[:, i] = other[:, i]
        after = torch.stack([f(c) for c in swapped])
        index.append(((before - after) ** 2).mean() / 2 / before.var())
    return torch.stack(index).reshape(cells, cells)


def hsic(model: nn.Module, x: Tensor, target: int, masks: int, cells: int) -> Tensor:
    """Novello et al. written out: `tr(K H L H) / (n - 1)^2` for each cell."""
    generator = torch.Generator().manual_seed(SEED)
    grids = (torch.rand(masks, cells, cells, generator=generator) < 0.5).to(x)
    score = scores_of(model, x, target)
    y = torch.stack([score(F.interpolate(grid[None, None], x.shape[2:])[0, 0]) for grid in grids])
    width = (y[:, None] - y).abs()[np.tril_indices(masks, -1)].median()
    kernel = torch.exp(-((y[:, None] - y) ** 2) / (2 * width**2))
    centre = torch.eye(masks).to(x) - 1 / masks
    index = []
    for cell in grids.flatten(1).t():
        same = (cell[:, None] == cell).to(x)
        index.append(torch.trace(same @ centre @ kernel @ centre) / (masks - 1) ** 2)
    return torch.stack(index).reshape(cells, cells)


@pytest.mark.parametrize(
    ("method", "paper", "options"),
    [
        ("rise", rise, {"centred": True}),
        ("rise", rise, {"centred": False}),
        ("sobol", sobol, {}),
        ("hsic", hsic, {}),
    ],
)
def test_the_paper_written_out(
    method: str, paper: Callable[..., Tensor], options: dict[str, Any], small_net: nn.Module, batch: Tensor
) -> None:
    model, x = small_net.double(), batch.double()[..., :11]  # which 3 cells do not divide
    call: dict[str, Any] = {"masks": 60, "cells": 3, "seed": SEED, "tolerance": 0, **options}
    maps = camkit.class_maps(model, x, method=method, batch_size=7, **call)
    assert maps.dtype == torch.float64
    for b in range(3):
        for c in (0, 4):
            expected = paper(model, x[b : b + 1], c, 60, 3, **options)
            assert maps[b, c].shape == expected.shape
            assert (maps[b, c] - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- the interval ---------------------------------------------------------------------------------


def linear(masks: Tensor, weights: Tensor) -> Tensor:
    """Scores `[n, T]` that are sums over masked pixels, whose maps are known."""
    return masks.flatten(1) @ weights


@pytest.mark.parametrize(("method", "masks"), [("rise", 600), ("sobol", 60 * 17), ("hsic", 600)])
def test_the_interval_holds_what_it_promises(method: str, masks: int) -> None:
    """Over 40 seeds the 95 % intervals hold the values of far more masks about as often as they say."""
    weights, like = torch.randn(64, 1), torch.zeros(1, 1, 8, 8)
    found = []
    for seed in range(41):
        count = masks * (1 if seed else 20 if method != "hsic" else 8)
        design = DESIGNS[method](NativeOptions(masks=count, cells=4, seed=seed), like)
        rows = torch.arange(design.samples * design.masks_each)
        found.append(design.estimate(linear(design.masks(rows), weights)))
    truth = found[0][0]
    inside = [((v - truth).abs() <= mask_formulas.Z * e).float().mean() for v, e in found[1:]]
    assert 0.88 <= float(torch.stack(inside).mean()) <= 0.99


@pytest.mark.parametrize("method", BLACK_BOX)
def test_masks_end_when_the_interval_is_small(
    method: str, small_net: nn.Module, batch: Tensor, recwarn: pytest.WarningsRecorder
) -> None:
    rows: list[int] = []
    small_net.register_forward_hook(lambda m, i, output: rows.append(len(output)))
    call: dict[str, Any] = {"layer": "act", "method": method, "cells": 3, "masks": 3000}
    camkit.maps(small_net, batch[:1], 1, **call, tolerance=0.6)
    few, quiet = sum(rows), not recwarn.list
    rows.clear()
    camkit.maps(small_net, batch[:1], 1, **call, tolerance=0.001)
    assert quiet and few < 1000 < sum(rows)
    (warning,) = recwarn.list
    assert "more than tolerance=0.001" in str(warning.message) and "at layer" not in str(warning.message)
    recwarn.clear()
    camkit.maps(small_net, batch[:1], 1, **call | {"masks": 40}, tolerance=0)
    assert not recwarn.list  # nothing was promised


def test_a_class_does_not_depend_on_those_beside_it(small_net: nn.Module, batch: Tensor) -> None:
    call: dict[str, Any] = {"layer": "act", "method": "rise", "masks": 1500, "tolerance": 0.25}
    every = camkit.class_maps(small_net, batch[:1], **call)
    for c in range(5):
        torch.testing.assert_close(every[:, c], camkit.maps(small_net, batch[:1], c, **call))


def test_the_map_of_a_model_that_ignores_its_input_is_zero(batch: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    nn.init.zeros_(model[3].weight)
    for method in BLACK_BOX:
        with pytest.warns(camkit.errors.CamkitWarning, match=f"{method} is zero everywhere: the score"):
            maps = camkit.maps(model, batch, 0, layer="0", method=method, masks=300)
        assert maps.eq(0).all()


# --- no layer -------------------------------------------------------------------------------------


class NoLayer(nn.Module):
    """No module of it runs: nothing can be hooked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x[..., :4, :4].mean((2, 3)) @ self.weight.t()


def test_a_model_without_layers_is_explained(batch: Tensor) -> None:
    maps = camkit.maps(NoLayer(), batch, 0, method="rise", masks=400, cells=4, tolerance=0)
    inside, outside = maps[..., :4, :4].abs().mean(), maps[..., 8:, 8:].abs().mean()
    assert inside > 3 * outside
    with pytest.raises(camkit.errors.LayerError):
        camkit.maps_by(NoLayer(), batch, 0, method=["rise", "gradcam"], masks=32)


@pytest.mark.parametrize("size", [(16,), (8, 12), (6, 6, 8)], ids=["signals", "images", "volumes"])
def test_signals_and_volumes(size: tuple[int, ...]) -> None:
    space = tuple(range(2, 2 + len(size)))
    weights = torch.zeros(size)
    weights[(slice(0, 3),) * len(size)] = 1.0

    class Corner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * weights).sum(space)

    x = torch.ones(1, 2, *size)
    for method in BLACK_BOX:
        maps = camkit.maps(Corner(), x, 1, method=method, cells=2, masks=400, tolerance=0)
        assert maps.shape == ((1, *size) if method == "rise" else (1, *[2] * len(size)))
        assert maps[0].flatten().argmax() == 0 or maps[0][(slice(0, 3),) * len(size)].max() == maps.max()


def test_what_sobol_cannot_do(batch: Tensor) -> None:
    with pytest.raises(OptionError, match=r"at least 200 masks for 49 cells.*not 100"):
        camkit.maps(NoLayer(), batch, 0, method="sobol", masks=100)
    with pytest.raises(OptionError, match="at most 10600 cells, not 32768"):
        camkit.maps(nn.Flatten(), torch.zeros(1, 1, 32, 32, 32), 0, method="sobol", cells=32)


def test_results_name_no_layer(tmp_path: Path) -> None:
    arguments = ["--method", "hsic", "--method", "gradcam", "--layer", "bn2", "--layer", "blocks.5"]
    options = ["-o", "masks=16", "-o", "tolerance=0", "--class", "Birman", "--out", str(tmp_path)]
    result = runner().invoke(cli, ["explain", *arguments, *options])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [line["layer"] for line in lines if line["method"] == "gradcam"] == ["bn2", "blocks.5"]
    (line,) = (line for line in lines if line["method"] == "hsic")
    assert line["layer"] == "" and "bn2" not in line["map_file"]
    assert "--layer" not in repeating.command([line])
    result = runner().invoke(cli, ["verify", str(tmp_path)])
    assert result.exit_code == 0, result.output


def test_a_look_after_each_growth_by_half() -> None:
    like = torch.zeros(1, 3, 8, 8)
    for tolerance, expected in ((0.1, [256, 384, 576, 864, 1000]), (0.0, [1000])):
        design = DESIGNS["rise"](NativeOptions(masks=1000, tolerance=tolerance), like)
        assert list(black_box.looks(design)) == expected
