"""Gradients of the input, added up: against slow transcriptions, captum, and what their sums promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.errors import CamkitWarning, OptionError
from camkit.explaining import repeating
from camkit.native.method_table import INPUT_GRADIENTS
from camkit.plugin import sample_image

SEED, COUNT, NOISE = 3, 9, 0.2


def gradient(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """Of one score with respect to one input `[1, C, h, w]`."""
    leaf = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(model(leaf)[0, target], leaf)
    return found


def integrated(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """Sundararajan et al. written out: the integral of the gradient along the path, times the input."""
    positions, weights = np.polynomial.legendre.leggauss(COUNT)
    total = torch.zeros_like(x)
    for position, weight in zip(positions, weights, strict=True):
        total += weight / 2 * gradient(model, x * (position + 1) / 2, target)
    return (total * x).sum((0, 1))


def smooth(model: nn.Module, x: Tensor, target: int) -> Tensor:
    """Smilkov et al. written out: the mean of gradients of copies with noise."""
    generator = torch.Generator().manual_seed(SEED)
    width = NOISE * float(x.max() - x.min())
    noisy = [x + width * torch.randn(x.shape[1:], generator=generator) for _ in range(COUNT)]
    return (sum(gradient(model, one, target) for one in noisy) / COUNT).sum((0, 1))


def expected(model: nn.Module, x: Tensor, target: int, stored: Tensor | None = None) -> Tensor:
    """Erion et al. written out: the mean over baselines of a gradient on the path, times the path."""
    generator = torch.Generator().manual_seed(SEED)
    if stored is None:
        colours = torch.randn(COUNT, x.shape[1], generator=generator).to(x)
        stored = colours[:, :, None, None].expand(-1, *x.shape[1:])
    places = torch.rand(COUNT, generator=generator) + torch.randperm(COUNT, generator=generator)
    total = torch.zeros_like(x)
    for i in range(COUNT):
        base = stored[i * len(stored) // COUNT][None]
        total += (x - base) * gradient(model, base + float(places[i]) / COUNT * (x - base), target)
    return total.sum((0, 1)) / COUNT


PAPERS = dict(zip(INPUT_GRADIENTS, (integrated, smooth, expected), strict=True))
CALL: dict[str, Any] = {"steps": COUNT, "samples": COUNT, "noise": NOISE, "seed": SEED}


@pytest.mark.parametrize("method", INPUT_GRADIENTS)
@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_the_paper_written_out(method: str, small_net: nn.Module, batch: Tensor) -> None:
    model, x = small_net.double(), batch.double()
    for size in (1, 4):  # of the chunks
        maps = camkit.class_maps(model, x, method=method, batch_size=size, **CALL)
        assert maps.dtype == torch.float64 and maps.shape == (3, 5, 16, 12)
        for b, c in ((0, 0), (2, 4)):
            paper = PAPERS[method](model, x[b : b + 1], c)
            assert (maps[b, c] - paper).abs().max() <= 1e-5 * paper.abs().max()


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_integrated_gradients_of_captum(small_net: nn.Module, batch: Tensor) -> None:
    pytest.importorskip("camkit_captum")
    call: dict[str, Any] = {"layer": "body", "method": "integrated-gradients", "steps": 20}
    model, x = small_net.double(), batch.double()
    maps = camkit.maps(model, x, [0, 4, 2], **call)
    theirs = camkit.maps(model, x, [0, 4, 2], backend="captum", **call)
    assert (maps - theirs).abs().max() <= 1e-5 * theirs.abs().max()


# --- the sum --------------------------------------------------------------------------------------


class Smooth(nn.Module):
    """Polynomials of the input, whose integrals are exact; the last class does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found = (self.conv(x) ** 3).mean((2, 3)) + 2
        return torch.cat([found, torch.zeros_like(found[:, :1])], 1)


def test_maps_add_up_to_the_change_of_the_score(
    batch: Tensor, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model, x = Smooth().double(), batch.double()
    np.save(tmp_path / "base.npy", np.random.default_rng(0).normal(size=(1, 3, 16, 12)))
    base = torch.from_numpy(np.load(tmp_path / "base.npy"))
    with torch.no_grad():
        scores, zero, other = model(x), model(torch.zeros_like(x)), model(base)
    maps = camkit.class_maps(model, x, method="integrated-gradients", steps=4)
    torch.testing.assert_close(maps.sum((2, 3)), scores - zero)
    call: dict[str, Any] = {"method": "expected-gradients", "baseline": str(tmp_path / "base.npy")}
    maps = camkit.class_maps(model, x, samples=300, **call)
    torch.testing.assert_close(maps.sum((2, 3)), scores - other, rtol=0.05, atol=0)
    assert not [warning for warning in recwarn if "inexact" in str(warning.message)]
    for method, count in (("integrated-gradients", {"steps": 1}), ("expected-gradients", {"samples": 1})):
        (more,) = count
        with pytest.warns(CamkitWarning, match=f"{method} is inexact: it adds up to .*: raise {more}"):
            camkit.maps(model, x[:1], 1, method=method, **count)


def test_smoothgrad_without_noise_is_the_gradient(small_net: nn.Module, batch: Tensor) -> None:
    maps = camkit.maps(small_net, batch, 1, method="smoothgrad", noise=0, samples=2)
    torch.testing.assert_close(maps[:1], gradient(small_net, batch[:1], 1).sum(1))


# --- baselines in a file ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 20])
@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_expected_gradients_from_a_file(
    count: int, small_net: nn.Module, batch: Tensor, tmp_path: Path
) -> None:
    stored = torch.randn(count, 3, 16, 12, dtype=torch.float64)
    np.save(tmp_path / "base.npy", stored.numpy())
    model, x = small_net.double(), batch.double()
    call: dict[str, Any] = {"method": "expected-gradients", "baseline": str(tmp_path / "base.npy"), **CALL}
    paper = expected(model, x[:1], 2, stored)
    assert (camkit.maps(model, x, 2, **call)[0] - paper).abs().max() <= 1e-5 * paper.abs().max()


def test_files_that_are_no_baselines(small_net: nn.Module, batch: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "base.npy"

    def refused(match: str, option: str = str(path)) -> None:
        with pytest.raises(OptionError, match=match):
            camkit.maps(small_net, batch, 0, method="expected-gradients", baseline=option)

    refused("cannot be read")
    refused("not a regular file", str(tmp_path))
    path.write_bytes(b"PK\x03\x04 an archive")
    refused(r"an array in a \.npy file")
    np.save(path, np.array([{}], object), allow_pickle=True)
    refused("object, not numbers")
    np.save(path, np.zeros((2, 3, 8, 8), np.float32))
    refused(r"\[2, 3, 8, 8\], for these inputs not \[n, 3, 16, 12\]")
    np.save(path, np.full((2, 3, 16, 12), np.nan, np.float32))
    refused("NaN or infinite")
    refused("not those of the digest 0123456789abcdef", f"{path}@0123456789abcdef")
    path.write_bytes(path.read_bytes()[:-1])
    refused("cut off")


# --- models and inputs ------------------------------------------------------------------------------


class Frozen(nn.Module):
    """Writes into its input, and runs its body without gradients."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        with torch.no_grad():
            x.mul_(1 if scale is None else scale[:, None, None, None])
            scores: Tensor = self.body(x)
        return scores


@pytest.mark.parametrize("method", INPUT_GRADIENTS)
@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
def test_odd_models_and_further_inputs(method: str, small_net: nn.Module, batch: Tensor) -> None:
    plain = camkit.maps(small_net, batch, 1, method=method, samples=3, steps=3)
    for extras in ((), (torch.tensor([1.0, 0.0, 1.0]),)):
        inputs = (batch.clone(), *extras)
        maps = camkit.maps(Frozen(small_net), inputs, 1, method=method, samples=3, steps=3)
        torch.testing.assert_close(maps[[0, 2]], plain[[0, 2]])
        assert maps[1].any() == (not extras)


@pytest.mark.parametrize("size", [(16,), (6, 6, 8)], ids=["signals", "volumes"])
@pytest.mark.parametrize("method", INPUT_GRADIENTS)
def test_signals_and_volumes(method: str, size: tuple[int, ...]) -> None:
    weights = torch.randn(size)

    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * weights).flatten(2).sum(2)

    x = torch.ones(1, 2, *size)
    maps = camkit.maps(Linear(), x, 1, method=method, samples=400)
    ratio = maps[0] / weights  # of every place the same
    assert maps.shape == (1, *size) and ratio.std() <= 1e-3 * ratio.mean().abs()


# --- the command line -------------------------------------------------------------------------------


def test_baselines_from_photographs(tmp_path: Path) -> None:
    photo, file, out = tmp_path / "a.jpg", tmp_path / "base.npy", tmp_path / "maps"
    photo.write_bytes(sample_image().read_bytes())
    result = runner().invoke(cli, ["model", "baseline", "pets", str(photo), "--out", str(file)])
    assert result.exit_code == 0, result.output
    assert f"{file}: 1 photograph" in result.output
    pets = camkit.load_model("pets", device="cpu")
    assert np.load(file).shape == (1, 3, *pets.preprocess.size)
    options = ["-o", f"baseline={file}", "-o", "samples=2", "--class", "Birman", "--out", str(out)]
    result = runner().invoke(cli, ["explain", "--method", "expected-gradients", *options])
    assert result.exit_code == 0, result.output
    (line,) = map(json.loads, (out / "manifest.jsonl").read_text().splitlines())
    assert line["layer"] == "" and line["map_shape"] == list(pets.preprocess.size)
    assert line["options"]["baseline"].startswith(f"{file}@")
    assert f"baseline={file}@" in repeating.command([line])
    assert runner().invoke(cli, ["verify", str(out)]).exit_code == 0
    np.save(file, np.load(file) + 1)
    result = runner().invoke(cli, ["verify", str(out)])
    assert result.exit_code == 1 and "not those of the digest" in result.output
    for wrong, text in (("base.npz", "suffix .npy"), ("x/base.npy", "no.jpg")):
        said = ["pets", str(tmp_path / "no.jpg"), "--out", str(tmp_path / wrong)]
        result = runner().invoke(cli, ["model", "baseline", *said])
        assert result.exit_code == 2 and text in result.output
