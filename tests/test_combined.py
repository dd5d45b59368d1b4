"""Maps from many layers together: against slow transcriptions, and what they cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tests.conftest import runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.core import layer_formulas
from camkit.errors import CamkitWarning, UsageError

CONVOLUTIONS, STAGES = (0, 3, 6, 10), (2, 5, 11)


@pytest.fixture
def model() -> nn.Sequential:
    """Four convolutions with maps of three resolutions, one that runs twice, one of a single position."""
    torch.manual_seed(0)
    twice = nn.Conv2d(8, 8, 1)
    body = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *(nn.Conv2d(6, 8, 3, 2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, 2, padding=1), twice, nn.GELU(), twice, nn.Conv2d(8, 8, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 16, 1), nn.Tanh(), nn.Flatten(), nn.Linear(16, 5)),
    )
    return body.double().eval()


def outputs(
    model: nn.Sequential, x: Tensor, target: int, layers: tuple[int, ...]
) -> list[tuple[Tensor, Tensor]]:
    """What layers return for one image `[1, C, h, w]`, and the gradients of a score there."""
    x, kept = x.clone().requires_grad_(), []
    for index, part in enumerate(model):
        x = part(x)
        kept += [x] if index in layers else []
    gradients = torch.autograd.grad(x[0, target], kept)
    return [(a[0].detach(), g[0]) for a, g in zip(kept, gradients, strict=True)]


def scaled(map: Tensor) -> Tensor:
    positive = map.clamp(min=0)
    low, high = positive.min(), positive.max()
    return (positive - low) / (high - low) if high > low else torch.zeros_like(map)


def large(map: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(map[None, None], size, mode="bilinear")[0, 0]


def winsorcam(model: nn.Sequential, x: Tensor, target: int, percentile: float) -> Tensor:
    """Wall et al. written out, layer by layer."""
    maps, importance = [], []
    for a, g in outputs(model, x, target, CONVOLUTIONS):
        weights = [float(channel.mean()) for channel in g]
        maps.append(large(scaled(sum(w * k for w, k in zip(weights, a, strict=True))), x.shape[2:]))
        importance.append(max(0.0, sum(weights) / len(weights)))
    if not any(importance):
        return torch.zeros_like(maps[0])
    counting = torch.tensor([v for v in importance if v > 0], dtype=torch.float64)
    bound = float(torch.quantile(counting, percentile / 100))
    clipped = [min(v, bound) for v in importance]
    low, high = min(c for c in clipped if c > 0), max(clipped)
    total = torch.zeros_like(maps[0])
    for map, value in zip(maps, clipped, strict=True):
        if value > 0:
            total += map * (0.1 + 0.9 * (value - low) / (high - low) if high > low else 1.0)
    return total


def refinecam(model: nn.Sequential, x: Tensor, target: int, _: float) -> Tensor:
    """Domeniconi et al. written out: Grad-CAM++ of each resolution, multiplied."""
    total = torch.ones(x.shape[2:], dtype=torch.float64)
    for a, g in outputs(model, x, target, STAGES):
        map = torch.zeros_like(a[0])
        for k, s in zip(a, g, strict=True):
            alpha = torch.where(s == 0, 0.0, s**2 / (2 * s**2 + s**3 * k.sum()))
            map += (alpha * s.clamp(min=0)).sum() * k
        total *= large(scaled(map), x.shape[2:])
    return total


@pytest.mark.filterwarnings("ignore:.*is zero everywhere")
@pytest.mark.parametrize(
    ("method", "percentile"), [("winsorcam", 90), ("winsorcam", 30), ("winsorcam", 0), ("refinecam", 90)]
)
def test_the_paper_written_out(method: str, percentile: float, model: nn.Sequential, batch: Tensor) -> None:
    paper = {"winsorcam": winsorcam, "refinecam": refinecam}[method]
    maps = camkit.class_maps(model, batch.double(), method=method, percentile=percentile)
    assert maps.shape == (3, 5, 16, 12) and maps.dtype == torch.float64 and maps.ge(0).all()
    peaks = []
    for b in range(3):
        for c in range(5):
            expected = paper(model, batch[b : b + 1].double(), c, percentile)
            assert (maps[b, c] - expected).abs().max() <= 1e-5 * expected.max()
            peaks.append(float(expected.max()))
    assert sum(peak > 0 for peak in peaks) >= 6


def test_importance_is_clipped_and_scaled() -> None:
    values = torch.tensor(
        [[0.0, 1.0, 2.0, 3.0, 100.0], [0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 7.0, 0.0, 7.0, 7.0]]
    )
    found = layer_formulas.winsorised(values.t(), 50).t()  # the median of 1, 2, 3 and 100 is 2.5
    expected = [[0, 0.1, 0.7, 1, 1], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1]]
    torch.testing.assert_close(found, torch.tensor(expected))


class Returns(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.body(x),)


@pytest.mark.filterwarnings("ignore:.*is zero everywhere")
def test_both_share_a_forward_and_a_backward(model: nn.Sequential, batch: Tensor) -> None:
    x, methods = batch.double(), ["winsorcam", "refinecam"]
    before = camkit.maps_by(model, x, 1, method=methods)
    wrapped, call = Returns(model), {"method": methods, "output": 0}

    def score(scores: Tensor) -> Tensor:
        return scores[:, 1]

    for _ in range(2):  # the first call finds the layers
        forwards, backwards = list[int](), list[int]()
        hooks = [
            model[0].register_forward_hook(lambda *_, seen=forwards: seen.append(1)),
            model[16].register_full_backward_hook(lambda *_, seen=backwards: seen.append(1)),
        ]
        again = camkit.maps_by(wrapped, x, score, **call)
        for hook in hooks:
            hook.remove()
    assert len(forwards) == len(backwards) == 1
    for (method, _), maps in again.items():
        torch.testing.assert_close(maps, next(m for (n, _), m in before.items() if n == method))


def test_models_without_several_layers(batch: Tensor) -> None:
    one = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    with pytest.raises(
        UsageError, match=r"winsorcam combines all convolutions of a model, of which .* 1 with"
    ):
        camkit.maps(one, batch, 0, method="winsorcam")
    with pytest.raises(UsageError, match="refinecam combines all resolutions or blocks"):
        camkit.maps(one, batch, 0, method="refinecam")


def test_a_map_of_zeros_is_told(model: nn.Sequential, batch: Tensor) -> None:
    with pytest.warns(
        CamkitWarning, match="winsorcam is zero everywhere: no layer .* positive mean gradient"
    ):
        maps = camkit.maps(model, batch.double(), lambda s: s[:, 0] * 0, method="winsorcam")
    assert maps.eq(0).all()


def test_results_name_no_layer(tmp_path: Path) -> None:
    arguments = ["--method", "winsorcam", "--method", "refinecam", "--out", str(tmp_path)]
    result = runner().invoke(cli, ["explain", *arguments])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in (tmp_path / "manifest.jsonl").read_text().splitlines()]
    assert [(line["method"], line["layer"]) for line in lines] == [("winsorcam", ""), ("refinecam", "")]


@pytest.mark.filterwarnings("ignore:.*is zero everywhere")
def test_an_importance_that_is_only_rounding_is_none() -> None:
    """A norm over channels makes the mean gradient before it 0: its sign in float32 is chance."""
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3, 2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    model = nn.Sequential(*parts, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs = torch.randn(6, 3, 32, 32)
    single = camkit.class_maps(model.eval(), inputs, method="winsorcam")
    double = camkit.class_maps(model.double(), inputs.double(), method="winsorcam")
    peaks = double.amax((2, 3))
    assert (single - double).abs().amax((2, 3)).div(peaks)[peaks > 0].max() < 1e-4
    gradients = torch.tensor([1.0, -1.0, 1.0, -1.0 + 3e-7]).reshape(1, 1, 4, 1, 1)
    of_noise, of_value = (
        layer_formulas.winsorcam([torch.rand(1, 4, 1, 2)], [g.expand(1, 1, 4, 1, 2)], (1, 2), 90)
        for g in (gradients, gradients + 1e-3)
    )
    assert not of_noise.any() and of_value.any()
