"""The torchcam backend: conformance, equal to native, slow references, models that torchcam gets wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from camkit_torchcam import METHODS
from torch import Tensor, nn
from torchcam.methods import FinerCAM

import camkit
from camkit.errors import LayerError
from camkit.testing import explainer_checks

CLASSES = 5
SAME_AS_NATIVE = ("gradcam", "xgradcam", "layercam")


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    torch.set_num_threads(1)  # quicker than two on networks this small
    torch.manual_seed(0)
    yield


@explainer_checks("torchcam", dist="camkit-torchcam")
def test_conformance(check: Callable[[], None]) -> None:
    check()


# --- models and helpers ---------------------------------------------------------------------------


def head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels, CLASSES)]


def cnn() -> nn.Module:
    """Layer `0` is signed, a curved function follows."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Softplus(), *head(8)).eval()


def vgg() -> nn.Module:
    """Behind layer `0` a ReLU overwrites its output."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(inplace=True), *head(8)).eval()


class Swapped(nn.Module):
    """Layer `0` returns `[B, h, w, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Linear(8, CLASSES)
        self.add_module("0", nn.LayerNorm(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule("0")(self.body(x).permute(0, 2, 3, 1))
        return self.fc((x**2).mean((1, 2)))


def images() -> Tensor:
    """Two images of 16 x 12 pixels."""
    return torch.randn(2, 3, 16, 12, generator=torch.Generator().manual_seed(1))


def maps(model: nn.Module, inputs: Tensor, method: str = "gradcam", layer: str = "0") -> Tensor:
    result = camkit.maps(model, inputs, [1, 3], layer=layer, backend="torchcam", method=method)
    assert isinstance(result, Tensor)
    return result


def native(model: nn.Module, inputs: Tensor, method: str = "gradcam", layer: str = "0") -> Tensor:
    result = camkit.maps(model, inputs, [1, 3], layer=layer, method=method)
    assert isinstance(result, Tensor)
    return result


def close(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Equal up to `relative` times the peak of `expected`, which must not be blank."""
    peak = float(expected.abs().max())
    assert peak > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * peak)


# --- equal to native ------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True], ids=["trainable", "frozen"])
@pytest.mark.parametrize("build", [cnn, vgg, lambda: Swapped().eval()], ids=["cnn", "vgg", "channels-last"])
@pytest.mark.parametrize("method", SAME_AS_NATIVE)
def test_maps_equal_native(method: str, build: Callable[[], nn.Module], frozen: bool) -> None:
    """Upstream: maps are rectified, wrong before an in-place ReLU, and a frozen model raises."""
    model, inputs = build().requires_grad_(not frozen), images()
    close(maps(model, inputs, method), native(model, inputs, method))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("method", SAME_AS_NATIVE)
def test_maps_equal_native_where_nothing_is_recorded(method: str, mode: Any) -> None:
    """Upstream: there is nothing to differentiate, and autograd raises."""
    model, inputs = vgg(), images()
    expected = native(model, inputs, method)
    with mode():
        close(maps(model, inputs * 1, method), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", SAME_AS_NATIVE)
def test_maps_equal_native_in_every_type(method: str, dtype: torch.dtype) -> None:
    model, inputs = vgg().to(dtype), images().to(dtype)
    result = maps(model, inputs, method)
    assert result.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    close(result, native(model, inputs, method))


@pytest.mark.parametrize("method", METHODS)
def test_tokens(method: str) -> None:
    """Upstream: tokens are taken for channels, unless a `reshape_transform` is given."""
    model, inputs = timm.create_model("test_vit", img_size=64, num_classes=CLASSES).eval(), images()
    inputs = F.interpolate(inputs, (64, 64))
    result = maps(model, inputs, method, "blocks.-1.norm1")
    assert result.shape == (2, 4, 4) and result.isfinite().all() and result.any()
    if method in SAME_AS_NATIVE:
        close(result, native(model, inputs, method, "blocks.-1.norm1"))


def test_scorecam_equals_native_where_nothing_is_enlarged() -> None:
    """Elsewhere torchcam scales the masks before it enlarges them, the paper afterwards."""
    model, inputs = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Softplus(), *head(8)).eval(), images()
    close(maps(model, inputs, "scorecam"), native(model, inputs, "scorecam"))


@pytest.mark.parametrize(("gamma", "comparisons"), [(0.6, 3), (1.0, 1)])
def test_native_finercam_is_torchcams(gamma: float, comparisons: int) -> None:
    """The backend does not offer it; its rectified map is what native gives where that is positive."""
    model, inputs = cnn(), images()
    with FinerCAM(copy.deepcopy(model), "0", gamma=gamma, num_references=comparisons) as cam:
        scores = cam.base_cam.model(inputs)
        expected = cam([1, 3], scores, normalized=False)[0]
    found = camkit.maps(
        model, inputs, [1, 3], layer="0", method="finercam", alpha=gamma, comparisons=comparisons
    )
    assert isinstance(found, Tensor)
    close(found.clamp(min=0), expected)


# --- slow references ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_rectified_maps_are_what_torchcam_gives_by_itself(method: str) -> None:
    model, inputs = cnn(), images()
    with METHODS[method](copy.deepcopy(model), "0") as cam:
        scores = cam.model(inputs)
        expected = cam([1, 3], scores, normalized=False)[0]
    raw = maps(model, inputs, method)
    assert (raw < 0).any()
    close(raw.clamp(min=0), expected)


def test_scorecam_by_a_slow_reference() -> None:
    """Wang et al. 2020, arXiv:1910.01279: a channel weighs as much as its mask raises the score."""
    model, inputs = cnn(), images()
    expected = []
    for image, target in zip(inputs, [1, 3], strict=True):
        features = model[0](image[None]).detach()[0]
        rises = []
        for channel in features:
            mask = (channel - channel.min()) / (channel.max() - channel.min())
            mask = F.interpolate(mask[None, None], image.shape[-2:], mode="bilinear")[0]
            rises.append((model((mask * image)[None]) - model(image[None])).detach()[0, target])
        expected.append((torch.stack(rises).softmax(0)[:, None, None] * features).sum(0))
    close(maps(model, inputs, "scorecam"), torch.stack(expected))


def test_gradcam_plus_plus_is_without_its_denominator() -> None:
    """As the note says; a torchcam that mends it fails here, and the note has to go."""
    model, inputs = cnn(), images()
    features = model[0](inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[1:](features)[[0, 1], [1, 3]].sum(), features)
    weights = gradient.clamp(min=0).pow(3).sum((2, 3), keepdim=True)
    close(maps(model, inputs, "gradcam++"), (weights * features).sum(1).detach())


# --- what is not finite ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_nan(method: str) -> None:
    """Upstream: `nansum` takes NaN for zero, so a broken model gets a plausible map."""
    model, inputs = cnn(), images()
    clean = maps(model, inputs, method)
    inputs[0, 0, 5, 5] = torch.nan
    result = maps(model, inputs, method)
    assert result[0].isnan().any()
    close(result[1], clean[1])


def test_a_gradient_that_is_not_finite_is_not_hidden() -> None:
    """The root has no slope at zero; scores and features are finite."""

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model, inputs = nn.Sequential(nn.ReLU(), Root(), *head(3)).eval(), images()
    inputs[1] = inputs[1].abs() + 0.1
    assert model(inputs).isfinite().all()
    result = maps(model, inputs)
    assert result[0].isnan().any() and result[1].isfinite().all()
    assert native(model, inputs)[0].isnan().any()


def test_a_dead_channel_has_no_weight_in_xgradcam() -> None:
    """Its weight is 0 / 0: what `nansum` is for."""
    model, inputs = nn.Sequential(nn.ReLU(), *cnn()).eval(), images()
    inputs[:, 1] = -1.0
    close(maps(model, inputs, "xgradcam"), native(model, inputs, "xgradcam"))


# --- layers without a map -------------------------------------------------------------------------


class Awkward(nn.Module):
    """`twice` runs twice, `never` does not run, `flat` returns no map."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.flat = nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 1), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(self.twice(self.twice(x)).mean((2, 3)))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("twice", "'twice' .*more than once"),
        ("never", "'never' .*not run"),
        ("flat", "not a feature map"),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_layers_without_a_single_map_are_refused(method: str, layer: str, message: str) -> None:
    """Upstream: of several runs the last is taken; and nothing stays behind on the model."""
    model = Awkward().eval()
    with pytest.raises(LayerError, match=message):
        maps(model, images(), method, layer)
    assert [d for m in model.modules() for name, d in vars(m).items() if "hook" in name and d] == []
