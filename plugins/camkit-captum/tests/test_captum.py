"""The captum backend: conformance, answers by hand, slow references, and models that captum gets wrong."""

from __future__ import annotations

import copy
import random
import threading
import warnings
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from camkit_captum import METHODS, Captum, CaptumOptions
from torch import Tensor, nn

import camkit
from camkit.errors import LayerError, ModelError, OptionError, UsageError
from camkit.testing import explainer_checks

QUICK = {"steps": 4, "samples": 3, "window": 4}
AT_LAYER = ("gradcam", "layer-activation", "layer-integrated-gradients")
TUNNELLED = [name for name, method in METHODS.items() if method.noise == "tunnel"]


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    torch.set_num_threads(1)  # quicker than two on networks this small
    torch.manual_seed(0)
    yield


@explainer_checks("captum", dist="camkit-captum", options=QUICK)
def test_conformance(check: Callable[[], None]) -> None:
    check()


def maps(
    model: nn.Module, x: Tensor, targets: Any, method: str, layer: str = "auto", **options: Any
) -> Tensor:
    return camkit.maps(model, x, targets, backend="captum", method=method, layer=layer, **options)


def assert_close_to_peak(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


class Net(nn.Module):
    """One ReLU module that runs three times, once on an input that a second path uses too."""

    def __init__(self, relu: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.norm, self.fc = nn.BatchNorm2d(6), nn.Linear(6, 5)
        self.relu = relu or nn.ReLU()
        self.stem.weight.data *= 10  # beyond six
        nn.init.normal_(self.norm.running_mean, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.body(self.relu(self.stem(x))))
        x = x + self.relu(x)
        return self.fc(self.relu(x).mean((2, 3)))


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture
def x() -> Tensor:
    """Three images of 16 x 12 pixels."""
    return torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(1))


# --- every method ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", Captum.methods)
def test_maps_are_finite_and_as_large_as_the_layer_or_the_image(
    net: nn.Module, x: Tensor, method: str
) -> None:
    result = maps(net, x, [4, 0, 2], method, "body", steps=4, samples=3)
    assert result.shape == ((3, 8, 6) if method in AT_LAYER else (3, 16, 12))
    assert result.dtype == torch.float32 and result.isfinite().all() and result.any()


def test_every_method_has_a_note() -> None:
    assert set(Captum.notes) == set(Captum.methods)
    assert all(
        "summed" in Captum.notes[m] for m in ("saliency", "input-x-gradient", "integrated-gradients")
    )


@pytest.mark.parametrize("method", Captum.methods)
def test_captum_says_nothing(net: nn.Module, x: Tensor, method: str) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        maps(net, x, 1, method, "body", batch_size=1, steps=3, samples=3, window=4)
    assert [str(w.message) for w in caught] == []


# --- as the native backend ------------------------------------------------------------------------


def vit() -> tuple[nn.Module, str]:
    model = timm.models.VisionTransformer(
        img_size=(32, 48), patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=5
    )
    return model, "blocks.-1.norm1"


def swin() -> tuple[nn.Module, str]:
    model = torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [1, 2], [4, 4], num_classes=5)
    return model, "features"


def vgg() -> tuple[nn.Module, str]:
    first = (nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    second = (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32, 5)), "5"  # before an in-place ReLU


def densenet() -> tuple[nn.Module, str]:
    model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5)
    return model, "features"  # in front of F.relu(..., inplace=True)


AWKWARD = [vit, swin, vgg, densenet]


@pytest.mark.parametrize("make", AWKWARD)
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("pair", [("gradcam", "gradcam"), ("layer-activation", "activations")])
def test_layer_maps_equal_those_of_native(
    make: Callable[[], tuple[nn.Module, str]], frozen: bool, pair: tuple[str, str]
) -> None:
    model, layer = make()
    model.eval().requires_grad_(not frozen)
    images = torch.randn(2, 3, 32, 48)
    expected = camkit.maps(model, images, [4, 1], layer=layer, method=pair[1])
    assert_close_to_peak(maps(model, images, [4, 1], pair[0], layer), expected)
    assert (expected < 0).any()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradcam_equals_native_where_nothing_is_recorded(net: nn.Module, x: Tensor, mode: Any) -> None:
    with mode():
        assert_close_to_peak(
            maps(net, x * 1, torch.tensor([4, 0, 2]), "gradcam", "body"),
            camkit.maps(net, x * 1, torch.tensor([4, 0, 2]), layer="body"),
        )


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
def test_gradcam_equals_native_in_every_type(net: nn.Module, x: Tensor, dtype: str) -> None:
    expected = camkit.maps(net, x, 1, layer="body", dtype=dtype)
    result = maps(net, x, 1, "gradcam", "body", dtype=dtype)
    assert result.dtype == expected.dtype
    assert_close_to_peak(result, expected, 1e-5 if dtype == "float64" else 1e-3)


@pytest.mark.parametrize("make", AWKWARD)
def test_layer_integrated_gradients_add_up(make: Callable[[], tuple[nn.Module, str]]) -> None:
    """In front of in-place operations too. In a ViT the class token is not part of the map."""
    model, layer = make()
    model.eval()
    image = torch.randn(1, 3, 32, 48)
    result = maps(model, image, 3, "layer-integrated-gradients", layer, steps=64)
    assert result.shape == camkit.maps(model, image, 3, layer=layer).shape
    if make is not vit:
        change = (model(image) - model(torch.zeros_like(image)))[0, 3]
        assert result.sum() == pytest.approx(change.item(), rel=0.02, abs=1e-4)


# --- by hand: a linear model ----------------------------------------------------------------------


def linear() -> tuple[nn.Module, Tensor, Tensor]:
    """A model whose score of class c is `(weight[c] * image).sum()`, with its weight and two images."""
    model = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3 * 4 * 6, 2))
    return model, model[2].weight.detach().reshape(2, 3, 4, 6), torch.randn(2, 3, 4, 6)


def test_gradients_of_a_linear_model_are_its_weights() -> None:
    model, weight, images = linear()
    expected = weight[[1, 0]]
    torch.testing.assert_close(maps(model, images, [1, 0], "saliency", "0"), expected.abs().sum(1))
    signed = maps(model, images, [1, 0], "saliency", "0", absolute=False)
    torch.testing.assert_close(signed, expected.sum(1))
    product = maps(model, images, [1, 0], "input-x-gradient", "0")
    torch.testing.assert_close(product, (expected * images).sum(1))


@pytest.mark.parametrize("method", ["integrated-gradients", "deeplift", "gradient-shap"])
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_of_a_linear_model_every_pixel_has_weight_times_difference(method: str, baseline: str) -> None:
    model, weight, images = linear()
    b = images.mean((2, 3), keepdim=True) if baseline == "mean" else 0
    expected = (weight[[1, 0]] * (images - b)).sum(1)
    result = maps(model, images, [1, 0], method, "0", baseline=baseline, stdev=0.0, steps=5)
    torch.testing.assert_close(result, expected)


def test_occlusion_of_a_linear_model_is_what_the_window_held() -> None:
    model, weight, images = linear()
    held = (weight[1] * images).sum(1)
    blocks = F.avg_pool2d(held, 2) * 4
    apart = maps(model, images, 1, "occlusion", "0", window=2, stride=2)
    torch.testing.assert_close(apart, blocks.repeat_interleave(2, 1).repeat_interleave(2, 2))
    # Where windows overlap, a pixel has the mean over those that hide it.
    sums = F.avg_pool2d(held[:, None], 2, stride=1) * 4
    counts = F.conv_transpose2d(torch.ones_like(sums), torch.ones(1, 1, 2, 2))
    means = (F.conv_transpose2d(sums, torch.ones(1, 1, 2, 2)) / counts)[:, 0]
    torch.testing.assert_close(maps(model, images, 1, "occlusion", "0", window=2, stride=1), means)


def test_occlusion_looks_into_a_seventh_of_the_image_if_not_told(net: nn.Module) -> None:
    image = torch.randn(1, 3, 28, 28)
    told = maps(net, image, 0, "occlusion", window=4, stride=2)
    assert torch.equal(maps(net, image, 0, "occlusion"), told)


def test_noise_does_not_matter_to_the_gradient_of_a_linear_model() -> None:
    model, weight, images = linear()
    mean = maps(model, images, 1, "saliency", "0", noise_tunnel="smoothgrad", absolute=False)
    torch.testing.assert_close(mean, weight[[1, 1]].sum(1))
    square = maps(model, images, 1, "saliency", "0", noise_tunnel="smoothgrad-sq")
    torch.testing.assert_close(square, weight[[1, 1]].pow(2).sum(1))
    assert maps(model, images, 1, "saliency", "0", noise_tunnel="vargrad").abs().max() < 1e-6


# --- by a slow reference: rules for ReLUs ---------------------------------------------------------


class Guided(torch.autograd.Function):
    """Springenberg et al. 2015: only positive gradients go back through positive inputs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.top = top
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad.clamp(min=0) * ((x > 0) & (x < ctx.top)), None


class GuidedRelu(nn.Module):
    def __init__(self, top: float) -> None:
        super().__init__()
        self.top = top

    def forward(self, x: Tensor) -> Tensor:
        return Guided.apply(x, self.top)  # type: ignore[no-any-return]


class Rescale(torch.autograd.Function):
    """Shrikumar et al. 2017: the multiplier of a ReLU is the change of its output by that of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, reference: Tensor, top: float) -> Tensor:
        out = x.clamp(0, top)
        ctx.save_for_backward((out - reference.clamp(0, top)) / (x - reference))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.saved_tensors[0], None, None


class RescaleRelu(nn.Module):
    """Remembers its inputs in a forward of the baseline, and uses them one by one in the next."""

    def __init__(self, top: float) -> None:
        super().__init__()
        self.top, self.kept, self.learning = top, [], True

    def forward(self, x: Tensor) -> Tensor:
        if self.learning:
            self.kept.append(x.detach())
            return x.clamp(0, self.top)
        return Rescale.apply(x, self.kept.pop(0), self.top)  # type: ignore[no-any-return]


def top_of(relu: nn.Module) -> float:
    return 6.0 if isinstance(relu, nn.ReLU6) else float("inf")


class OneRelu(nn.Module):
    """One ReLU module that runs twice, on inputs that nobody else uses."""

    def __init__(self, relu: nn.Module) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.relu, self.fc = relu, nn.Linear(6, 5)
        self.stem.weight.data *= 10  # beyond six

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        return self.fc(self.relu(x + self.body(x)).mean((2, 3)))


# torch itself has no gradient for an in-place ReLU on an input that is used again, as in `Net`.
RELUS = [
    (Net, nn.ReLU()),
    (Net, nn.ReLU6()),
    (OneRelu, nn.ReLU(inplace=True)),
    (OneRelu, nn.ReLU6(inplace=True)),
]


def with_relu(model: nn.Module, relu: nn.Module) -> nn.Module:
    """A copy of `model` with another activation."""
    other = copy.deepcopy(model)
    other.relu = relu
    return other


@pytest.mark.parametrize(("kind", "relu"), RELUS, ids=str)
def test_guided_backprop_with_a_relu_that_runs_again_and_shares_its_input(
    relu: nn.Module, kind: Any, x: Tensor
) -> None:
    model = kind(relu).eval()
    inputs = x.clone().requires_grad_()
    scores = with_relu(model, GuidedRelu(top_of(relu)))(inputs)
    (expected,) = torch.autograd.grad(scores[[0, 1, 2], [4, 0, 2]].sum(), inputs)
    assert_close_to_peak(maps(model, x, [4, 0, 2], "guided-backprop"), expected.sum(1))


@pytest.mark.parametrize(("kind", "relu"), RELUS, ids=str)
def test_deeplift_with_a_relu_that_runs_again_and_shares_its_input(
    relu: nn.Module, kind: Any, x: Tensor
) -> None:
    model = kind(relu).double().eval()
    inputs = x.double().requires_grad_()
    rule = RescaleRelu(top_of(relu))
    reference = with_relu(model, rule)
    reference(torch.zeros_like(inputs))
    rule.learning = False
    (multiplier,) = torch.autograd.grad(reference(inputs)[[0, 1, 2], [4, 0, 2]].sum(), inputs)
    expected = (multiplier * inputs).sum(1).detach()
    assert_close_to_peak(maps(model, x.double(), [4, 0, 2], "deeplift"), expected)


@pytest.mark.parametrize(
    "pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2), nn.MaxPool2d(3, (2, 1), (1, 0), ceil_mode=True)]
)
def test_deeplift_adds_up_behind_max_pooling(pool: nn.Module, x: Tensor) -> None:
    """captum alone ignores its rule for a pool right behind a ReLU, and loses windows that overlap."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), pool),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), pool, nn.Flatten(), nn.LazyLinear(5)),
    ).eval()
    model(x)
    result = maps(model, x, 2, "deeplift", "0")
    change = (model(x) - model(torch.zeros_like(x)))[:, 2]
    torch.testing.assert_close(result.sum((1, 2)), change.detach(), rtol=1e-4, atol=1e-5)


def test_guided_gradcam_is_guided_backprop_weighted_with_the_rectified_gradcam(
    net: nn.Module, x: Tensor
) -> None:
    cam = camkit.maps(net, x, 1, layer="body").clamp(min=0)[:, None]
    weight = F.interpolate(cam, x.shape[-2:], mode="bilinear")[:, 0]
    expected = maps(net, x, 1, "guided-backprop") * weight
    assert_close_to_peak(maps(net, x, 1, "guided-gradcam", "body"), expected)


@pytest.mark.parametrize("method", ["guided-backprop", "guided-gradcam", "deeplift"])
def test_relu_functions_are_refused(method: str, x: Tensor) -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.fc = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.relu(F.relu(self.conv(x)) - torch.relu(self.conv(-x))).mean((2, 3)))

    with pytest.raises(UsageError, match=rf"{method} .*nn.ReLU.*\(2 times\)"):
        maps(Functional(), x, 0, method, "relu")


@pytest.mark.parametrize("method", ["guided-backprop", "guided-gradcam"])
def test_guided_methods_refuse_a_model_without_relu(method: str, x: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UsageError, match=f"{method} .*ReLU.*none"):
        maps(model, x, 0, method, "0")


def test_deeplift_refuses_layers_that_it_has_no_rule_for(x: Tensor) -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GELU()),
        *(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
    )
    with pytest.raises(UsageError, match=r"Sequential.*integrated-gradients"):
        maps(model, x, 0, "deeplift", "0")


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TUNNELLED)
def test_noise_is_seeded_and_each_image_has_its_own(net: nn.Module, x: Tensor, method: str) -> None:
    options: dict[str, Any] = {"noise_tunnel": "smoothgrad", "samples": 3, "steps": 3, "layer": "body"}
    together = maps(net, x, [4, 0, 2], method, **options)
    assert torch.equal(together, maps(net, x, [4, 0, 2], method, **options))
    assert not torch.equal(together, maps(net, x, [4, 0, 2], method, **options, seed=1))
    alone = [maps(net, x[i : i + 1], t, method, **options) for i, t in enumerate([4, 0, 2])]
    assert torch.equal(together, torch.cat(alone))


def test_gradient_shap_depends_on_its_seed(net: nn.Module, x: Tensor) -> None:
    first, second = (maps(net, x, 1, "gradient-shap", seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("tunnel", ["none", "vargrad"])
@pytest.mark.parametrize("method", ["saliency", "deeplift", "integrated-gradients"])
def test_generators_are_where_they_were(net: nn.Module, x: Tensor, method: str, tunnel: str) -> None:
    def states() -> list[Any]:
        return [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()]

    before = states()
    maps(net, x, 1, method, noise_tunnel=tunnel, samples=2, steps=2)
    maps(net, x, 1, "gradient-shap", samples=2)
    assert states() == before


def test_generators_are_where_they_were_after_an_error(net: nn.Module, x: Tensor) -> None:
    net.fc.register_forward_pre_hook(explode)
    before = torch.get_rng_state(), str(np.random.get_state())
    with pytest.raises(RuntimeError, match="the forward failed"):
        maps(net, x, 1, "gradient-shap")
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == str(np.random.get_state())


def explode(*_: Any) -> None:
    raise RuntimeError("the forward failed")


@pytest.mark.parametrize("method", ["layer-activation", "gradient-shap", "occlusion"])
def test_noise_tunnel_says_which_methods_it_goes_with(net: nn.Module, x: Tensor, method: str) -> None:
    with pytest.raises(OptionError, match=f"with {method}, .*with gradcam"):
        maps(net, x, 0, method, "body", noise_tunnel="smoothgrad")


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method", ["integrated-gradients", "layer-integrated-gradients", "occlusion", "deeplift"]
)
def test_the_batch_size_does_not_change_the_map(net: nn.Module, x: Tensor, method: str) -> None:
    one, many = (maps(net, x, 1, method, "body", batch_size=size, steps=6) for size in (1, 64))
    assert_close_to_peak(one, many)


def test_more_steps_add_up_better(net: nn.Module, x: Tensor) -> None:
    change = (net(x) - net(torch.zeros_like(x)))[:, 1].detach()
    gaps = [
        (maps(net, x, 1, "integrated-gradients", steps=n).sum((1, 2)) - change).abs().sum()
        for n in (2, 200)
    ]
    assert gaps[1] < 0.1 * gaps[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 13}, r"window=13.*16x12 pixels"),
        ({"window": 2, "stride": 3}, r"window=2 .*stride=3"),
        ({"window": 0}, "window .*at least 1"),
        ({"steps": "many"}, "steps .*int.*'many'"),
        ({"baseline": "black"}, r"zero\|mean.*'black'"),
        ({"stdev": -0.1}, "stdev .*at least 0"),
        ({"noise_tunel": "none"}, "'noise_tunel'.*'noise_tunnel'"),
    ],
)
def test_wrong_options(net: nn.Module, x: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        maps(net, x, 0, "occlusion", "body", **options)


# --- models ---------------------------------------------------------------------------------------


def attributes(model: nn.Module) -> list[Any]:
    return [(name, sorted(vars(part)), part.training) for name, part in model.named_modules()]


@pytest.mark.parametrize("method", Captum.methods)
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_on_the_modules(x: Tensor, method: str, fails: bool) -> None:
    """captum's DeepLIFT leaves tensors on the modules of branches that the score does not use."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    calls = iter(range(1000))
    if fails:  # not in the forward that the host or the backend look with, but in the last
        model[3].register_forward_hook(lambda *_: explode() if next(calls) == 2 else None)
    before = attributes(model)
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    try:
        maps(model.train(), x, 1, method, "0", **QUICK)
    except RuntimeError as error:
        assert fails and str(error) == "the forward failed"
    assert attributes(model) == [(name, keys, True) for name, keys, _ in before]
    assert hooks == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    assert model[1].inplace and all(p.grad is None and p.requires_grad for p in model.parameters())


def test_an_image_that_needs_a_gradient_stays_as_it_is(net: nn.Module, x: Tensor) -> None:
    inputs = x.clone().requires_grad_()
    for method in ("saliency", "deeplift"):
        assert not maps(net, inputs, 1, method).requires_grad
    assert inputs.requires_grad and inputs.grad is None and torch.equal(inputs.detach(), x)


def test_a_model_that_begins_in_place(x: Tensor) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    explainer, targets = Captum(CaptumOptions(steps=4)), torch.tensor([1, 1, 1])
    before = x.clone()
    for method in ("saliency", "integrated-gradients", "deeplift", "guided-backprop"):
        assert explainer.maps(camkit.Query(model, x, targets, "1", method)).any()
    assert torch.equal(x, before)


def test_a_patched_forward_is_followed(net: nn.Module, x: Tensor) -> None:
    def doubled(self: nn.Module, x: Tensor) -> Tensor:
        return 2 * type(self).forward(self, x)

    expected = {m: 2 * maps(net, x, 1, m, "body") for m in ("gradcam", "guided-backprop")}
    net.forward = MethodType(doubled, net)
    for method, value in expected.items():
        assert_close_to_peak(maps(net, x, 1, method, "body"), value)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # deprecated, but in use
@pytest.mark.parametrize("method", ["gradcam", "saliency"])
def test_a_traced_model_is_refused(net: nn.Module, x: Tensor, method: str) -> None:
    traced = torch.jit.trace(net, x, check_trace=False)
    with pytest.raises(ModelError, match=r"traced.*original module"):
        maps(traced, x, 1, method, "body")


def test_two_threads_on_one_model(net: nn.Module) -> None:
    images = torch.randn(8, 1, 3, 12, 12)
    jobs = [(method, image) for image in images for method in ("gradcam", "guided-backprop", "deeplift")]
    expected = [maps(net, image, 1, method, "body") for method, image in jobs]
    got: dict[int, Tensor] = {}

    def work(start: int) -> None:
        for i in range(start, len(jobs), 2):
            method, image = jobs[i]
            got[i] = maps(net, image, 1, method, "body")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[i], value) for i, value in enumerate(expected))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.layer])
def test_layers_without_a_single_map(net: nn.Module, x: Tensor, method: str) -> None:
    net.idle = nn.Conv2d(3, 3, 1)
    for layer, message in (
        ("relu", "more than once"),
        ("idle", "not run"),
        ("fc", "not a feature map"),
    ):
        with pytest.raises(LayerError, match=message):
            maps(net, x, 0, method, layer)


def test_scores_that_do_not_depend_on_the_layer_or_the_image(x: Tensor) -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scores = nn.Conv2d(3, 3, 3), nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x)
            return self.scores.expand(len(x), 2)

    with pytest.raises(LayerError, match="depend on the target layer"):
        maps(Blind(), x, 0, "gradcam", "conv")
    for frozen in (False, True):
        with pytest.raises(LayerError, match=r"depend on .* the inputs"):
            maps(Blind().requires_grad_(not frozen), x, 0, "saliency", "conv")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", Captum.methods)
def test_on_a_gpu_as_on_the_cpu(net: nn.Module, x: Tensor, method: str) -> None:
    expected = maps(net, x, 1, method, "body", stdev=0.0, **QUICK)
    state = torch.cuda.get_rng_state()
    result = maps(net.cuda(), x.cuda(), 1, method, "body", stdev=0.0, **QUICK)
    assert result.device.type == "cuda" and torch.equal(state, torch.cuda.get_rng_state())
    assert_close_to_peak(result.cpu(), expected, 1e-3)
