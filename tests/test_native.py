"""The native explainer: equal to the lesson and to slow references, on awkward models, without a trace."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from benchmarks.lesson import lesson_model
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import camkit
from camkit.errors import LayerError, ModelError, UsageError
from camkit.native import perturbation
from camkit.native.explainer import SUMLESS
from camkit.native.gradients import GRADIENT_BYTES, class_gradients, classes_at_once
from camkit.native.method_table import AT_LAYER


def lesson_hooks(model: nn.Sequential, x: Tensor, category: int) -> tuple[Tensor, Tensor]:
    """The lesson's own computation with plain hooks: the channel mean and Grad-CAM of one image."""
    stored: dict[str, Tensor] = {}

    def forward_hook(_: nn.Module, __: Any, output: Tensor) -> None:
        stored["acts"] = output.detach()

    def backward_hook(_: nn.Module, __: Any, grad_output: tuple[Tensor, ...]) -> None:
        stored["grad"] = grad_output[0].detach()

    handles = [
        model[0].register_forward_hook(forward_hook),
        model[0].register_full_backward_hook(backward_hook),
    ]
    try:
        predictions = model(x)
        predictions[0, category].backward()
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
    acts, grad = stored["acts"][0], stored["grad"][0]
    grad_chan = grad.mean(1).mean(1)
    return acts.mean(0), (acts * grad_chan[..., None, None]).mean(0)


def clone_reference(model: nn.Module, layer: nn.Module, x: Tensor, targets: list[int]) -> Tensor:
    """Grad-CAM from a clone hook and a backward through everything, one image at a time."""
    maps = []
    for image, target in zip(x, targets, strict=True):
        kept: list[Tensor] = []

        def keep(_: nn.Module, __: Any, output: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(output)
            return output.clone()

        handle = layer.register_forward_hook(keep)
        score = model(image[None].clone().requires_grad_())[0, target]
        (gradient,) = torch.autograd.grad(score, kept[0])
        handle.remove()
        maps.append((gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1)[0].detach())
    return torch.stack(maps)


def assert_close_to_peak(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


# --- equal to the lesson --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lesson() -> nn.Sequential:
    return lesson_model()


@pytest.mark.parametrize("category", [0, 17, 36])
def test_mean_reduction_is_the_lessons_number(lesson: nn.Sequential, category: int) -> None:
    images = torch.randn(2, 3, 96, 96)
    maps = camkit.maps(lesson, images, category, layer="0", reduction="mean")
    heat = camkit.maps(lesson, images, category, layer="0", method="activations")
    for index in range(2):
        acts, mult = lesson_hooks(lesson, images[index : index + 1], category)
        assert_close_to_peak(maps[index], mult)
        assert_close_to_peak(heat[index], acts)


def test_sum_is_the_lesson_times_channels(lesson: nn.Sequential) -> None:
    images = torch.randn(1, 3, 64, 64)
    summed = camkit.maps(lesson, images, 3, layer="0")
    assert_close_to_peak(summed, 512 * camkit.maps(lesson, images, 3, layer="0", reduction="mean"))


def test_auto_on_the_lessons_model_is_its_body(lesson: nn.Sequential) -> None:
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(camkit.maps(lesson, images, 1), camkit.maps(lesson, images, 1, layer=lesson[0]))


# --- by hand --------------------------------------------------------------------------------------


def test_one_channel_identity_network_by_hand() -> None:
    """Score of class c is weight_c times the mean: the gradient is weight_c / 4 at every position."""
    model = nn.Sequential(nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[3].weight.data = torch.tensor([[2.0], [-3.0]])
    image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    torch.testing.assert_close(camkit.maps(model, image, 0, layer="0"), image[:, 0] * 0.5)
    torch.testing.assert_close(camkit.maps(model, image, 1, layer="0"), image[:, 0] * -0.75)
    every = camkit.class_maps(model, image, layer="0")
    torch.testing.assert_close(every, torch.stack([image[:, 0] * 0.5, image[:, 0] * -0.75], 1))


def test_the_sign_survives(small_net: nn.Module, batch: Tensor) -> None:
    maps = camkit.class_maps(small_net, batch, layer="body")
    assert (maps < 0).any() and (maps > 0).any()


# --- grad-cam of other scores ---------------------------------------------------------------------


class Curved(nn.Module):
    """Above `body` the scores are curved: the Hessian is neither zero nor diagonal."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.mix, self.norm, self.fc = nn.Conv2d(4, 6, 3), nn.LayerNorm(6), nn.Linear(6, 5)

    def above(self, features: Tensor) -> Tensor:
        return self.fc(self.norm(torch.tanh(self.mix(features)).mean((2, 3)) ** 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.body(x))


def test_shapleycam_with_the_whole_hessian(batch: Tensor) -> None:
    """The paper's weights: the mean over positions of `gradient - Hessian features / 2`."""
    model = Curved().eval()
    features = model.body(batch).detach()
    maps = camkit.class_maps(model, batch, layer="body", method="shapleycam")
    assert isinstance(maps, Tensor)
    for b in range(3):
        for c in range(5):

            def score(flat: Tensor, c: int = c) -> Tensor:
                return model.above(flat.reshape(1, *features.shape[1:]))[0, c]

            flat = features[b].flatten()
            gradient = torch.autograd.functional.jacobian(score, flat)
            hessian = torch.autograd.functional.hessian(score, flat)
            value = (gradient - hessian @ flat / 2).reshape(features[b].shape)
            expected = sum(value[k].mean() * features[b, k] for k in range(4))
            torch.testing.assert_close(maps[b, c], expected, rtol=1e-4, atol=1e-6)
    plain = camkit.class_maps(model, batch, layer="body")
    assert (maps - plain).abs().max() > 0.1 * plain.abs().max()  # the Hessian counts here


def test_shapleycam_of_several_layers_has_the_hessian_of_each(batch: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), Curved()).eval()
    model[2].body = nn.Conv2d(4, 4, 3, stride=4, padding=1)
    many = camkit.maps_by(model, batch, 1, layer=["0", "2.body"], method=["shapleycam", "gradcam"])
    for (method, layer), maps in many.items():
        torch.testing.assert_close(maps, camkit.maps(model, batch, 1, layer=layer, method=method))


def test_shapleycam_through_attention() -> None:
    """Fused attention has no second derivative: it is put aside, and only here."""
    model, x = Tokens().eval(), torch.randn(2, 3, 16, 24)
    before = torch.backends.cuda.flash_sdp_enabled()
    maps = camkit.maps(model, x, 1, layer="norm", method="shapleycam")
    assert maps.isfinite().all() and not torch.allclose(maps, camkit.maps(model, x, 1, layer="norm"))
    assert torch.backends.cuda.flash_sdp_enabled() is before


def test_shapleycam_without_second_derivatives(batch: Tensor) -> None:
    class Insisting(nn.Module):
        """It attends by the kernel whose gradient torch cannot differentiate."""

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)[:, None].contiguous()
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(tokens, tokens, tokens)[:, 0].mean(1)

    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=4), Insisting(), nn.Linear(8, 2)).eval()
    assert camkit.maps(model, batch, 0, layer="0").isfinite().all()
    with pytest.raises(UsageError, match=r"shapleycam .*second derivatives"):
        camkit.maps(model, batch, 0, layer="0", method="shapleycam")


@pytest.mark.parametrize(("alpha", "comparisons"), [(0.6, 3), (1.0, 1), (0.0, 2)])
def test_finercam_is_gradcam_minus_that_of_the_nearest(
    small_net: nn.Module, batch: Tensor, alpha: float, comparisons: int
) -> None:
    every = camkit.class_maps(small_net, batch, layer="body")
    options = {"alpha": alpha, "comparisons": comparisons}
    finer = camkit.class_maps(small_net, batch, layer="body", method="finercam", **options)
    scores = small_net(batch).detach()
    for b in range(3):
        for c in range(5):
            others = [d for d in range(5) if d != c]
            nearest = sorted(others, key=lambda d: abs(float(scores[b, d] - scores[b, c])))[:comparisons]
            expected = every[b, c] - alpha * every[b, nearest].mean(0)
            torch.testing.assert_close(finer[b, c], expected, rtol=1e-4, atol=1e-6)


def test_finercam_needs_something_to_compare_with(batch: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(UsageError, match=r"finercam .*one score"):
        camkit.maps(model, batch, 0, layer="0", method="finercam")


# --- awkward models -------------------------------------------------------------------------------


def vgg() -> tuple[nn.Module, str]:
    model = torchvision.models.vgg11_bn(weights=None, num_classes=4)
    return model, "features.26"  # the BatchNorm before the last in-place ReLU


def densenet() -> tuple[nn.Module, str]:
    model = torchvision.models.DenseNet(8, (2, 2), 16, num_classes=4)
    return model, "features"  # followed by F.relu(..., inplace=True)


@pytest.mark.parametrize("make", [vgg, densenet])
@pytest.mark.parametrize("frozen", [False, True])
def test_inplace_relu_behind_the_layer(make: Callable[[], tuple[nn.Module, str]], frozen: bool) -> None:
    """pytorch-grad-cam and torchcam read the overwritten activations here: wrong by up to 90 %."""
    model, name = make()
    model.eval()
    x = torch.randn(2, 3, 64, 64)
    layer = model.get_submodule(name)
    expected = clone_reference(model, layer, x, [1, 3])
    model.requires_grad_(not frozen)
    assert_close_to_peak(camkit.maps(model, x, [1, 3], layer=name), expected)
    assert (expected != expected.clamp(min=0)).any()  # the trap is real: the layer has negative values


def test_frozen_model_and_frozen_body(small_net: nn.Module, batch: Tensor) -> None:
    expected = camkit.maps(small_net, batch, 2, layer="body")
    small_net.stem.requires_grad_(False)
    small_net.body.requires_grad_(False)
    assert torch.equal(camkit.maps(small_net, batch, 2, layer="body"), expected)
    small_net.requires_grad_(False)
    assert torch.equal(camkit.maps(small_net, batch, 2, layer="body"), expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_every_gradient_mode(small_net: nn.Module, batch: Tensor, mode: Any) -> None:
    expected = camkit.maps(small_net, batch, 2, layer="body")
    with mode():
        inputs = batch * 1.0  # in inference mode an inference tensor
        maps = camkit.maps(small_net, inputs, 2, layer="body")
        every = camkit.class_maps(small_net, inputs, layer="body")
    assert torch.equal(maps, expected)
    torch.testing.assert_close(every[:, 2], expected)
    assert not maps.requires_grad


def test_inside_a_recorded_computation_nothing_is_recorded(small_net: nn.Module, batch: Tensor) -> None:
    inputs = batch.requires_grad_()
    maps = camkit.maps(small_net, inputs, 2, layer="body")
    assert not maps.requires_grad and inputs.grad is None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_types_on_a_copy(small_net: nn.Module, batch: Tensor, dtype: str) -> None:
    expected = camkit.maps(small_net, batch, 2, layer="body")
    maps = camkit.maps(small_net, batch, 2, layer="body", dtype=dtype)
    tolerance = {"bfloat16": 0.05, "float16": 0.005, "float64": 1e-5}[dtype]
    assert maps.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert_close_to_peak(maps, expected.to(maps.dtype), tolerance)
    assert next(small_net.parameters()).dtype == torch.float32


def test_bfloat16_model(small_net: nn.Module, batch: Tensor) -> None:
    expected = camkit.maps(small_net, batch, 2, layer="body")
    maps = camkit.maps(small_net.bfloat16(), batch.bfloat16(), 2, layer="body")
    assert maps.dtype == torch.float32
    assert_close_to_peak(maps, expected, 0.05)


def test_both_memory_formats(small_net: nn.Module, batch: Tensor) -> None:
    expected = camkit.maps(small_net, batch, 2, layer="body")
    last = copy.deepcopy(small_net).to(memory_format=torch.channels_last)
    maps = camkit.maps(last, batch.to(memory_format=torch.channels_last), 2, layer="body")
    assert_close_to_peak(maps, expected)


def test_a_batch_is_its_images_one_by_one(small_net: nn.Module, batch: Tensor) -> None:
    together = camkit.maps(small_net, batch, [4, 0, 2], layer="body")
    alone = [camkit.maps(small_net, batch[i : i + 1], t, layer="body") for i, t in enumerate([4, 0, 2])]
    torch.testing.assert_close(together, torch.cat(alone))


# --- all classes, several layers and methods ------------------------------------------------------


def test_class_maps_are_the_single_maps(lesson: nn.Sequential) -> None:
    x = torch.randn(2, 3, 64, 64)
    every = camkit.class_maps(lesson, x, layer="0")
    assert every.shape == (2, 37, 2, 2)
    for c in (0, 20, 36):
        assert_close_to_peak(every[:, c], camkit.maps(lesson, x, c, layer="0"))


def test_class_maps_in_chunks(small_net: nn.Module, batch: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = camkit.class_maps(small_net, batch, layer="body")
    monkeypatch.setattr("camkit.native.gradients.GRADIENT_BYTES", 1)  # one class at a time
    torch.testing.assert_close(camkit.class_maps(small_net, batch, layer="body"), whole)


def flat(kind: Any, pool: Any, *head: nn.Module) -> nn.Module:
    """One layer, `0`, and behind it a pool and a head."""
    return nn.Sequential(kind(3, 8, 3), pool, nn.Flatten(), *head)


class Means(nn.Sequential):
    """The global mean in the forward itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self[1](self[0](x).mean((2, 3)))


POOLED = {  # a model with `n` classes, an input, and whether its maps have a closed form
    "global mean": (lambda n: flat(nn.Conv2d, nn.AdaptiveAvgPool2d(1), nn.Linear(8, n)), (9, 8), True),
    "in the forward": (lambda n: Means(nn.Conv2d(3, 8, 3), nn.Linear(8, n)), (9, 8), True),
    "several affine steps": (
        lambda n: flat(
            nn.Conv2d,
            nn.AdaptiveAvgPool2d(1),
            nn.BatchNorm1d(8),
            nn.Dropout(),
            nn.Linear(8, 4),
            nn.Linear(4, n),
        ),
        (9, 8),
        True,
    ),
    "signals": (lambda n: flat(nn.Conv1d, nn.AdaptiveAvgPool1d(1), nn.Linear(8, n)), (11,), True),
    "volumes": (lambda n: flat(nn.Conv3d, nn.AdaptiveAvgPool3d(1), nn.Linear(8, n)), (6, 5, 7), True),
    "a mean over windows": (
        lambda n: flat(nn.Conv2d, nn.AdaptiveAvgPool2d(2), nn.Linear(32, n)),
        (9, 8),
        False,
    ),
    "no mean": (lambda n: flat(nn.Conv2d, nn.Identity(), nn.Linear(8 * 42, n)), (9, 8), False),
    "borders": (
        lambda n: nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.Conv2d(8, n, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        (9, 8),
        False,
    ),
    "a maximum": (lambda n: flat(nn.Conv2d, nn.AdaptiveMaxPool2d(1), nn.Linear(8, n)), (9, 8), False),
    "not affine": (
        lambda n: flat(nn.Conv2d, nn.AdaptiveAvgPool2d(1), nn.Linear(8, n), nn.Softmax(1)),
        (9, 8),
        False,
    ),
}


@pytest.mark.parametrize(("make", "size", "closed"), POOLED.values(), ids=POOLED.keys())
def test_many_classes_behind_a_global_mean_are_those_of_autograd(
    make: Callable[[int], nn.Module], size: tuple[int, ...], closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model, x = make(7).double().eval(), torch.randn(2, 3, *size).double()
    features = model[0](x).detach()  # type: ignore[index]
    assert (perturbation.pooled(model, "0", features) is not None) is closed
    assert perturbation.pooled(model.float(), "0", features.bfloat16()) is None  # it could not be told
    model.double()
    methods = [m for m in AT_LAYER if m != "scorecam"]
    whole = {c: camkit.maps_by(model, x, c, layer=["0"], method=methods) for c in (0, 5)}
    monkeypatch.setattr("camkit.native.gradients.GRADIENT_BYTES", 3 * features.numel() * 8)
    for method in methods:
        every = camkit.class_maps(model, x, layer="0", method=method)
        for c, single in whole.items():
            torch.testing.assert_close(every[:, c], single[method, "0"])


class Unbatchable(torch.autograd.Function):
    """An operation without a rule for vmap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        if torch._C._functorch.is_batchedtensor(grad):
            raise RuntimeError("vmap is not supported here")
        return grad * 2


def test_class_maps_where_gradients_cannot_be_batched(small_net: nn.Module, batch: Tensor) -> None:
    expected = camkit.class_maps(small_net, batch, layer="body") * 2

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Unbatchable.apply(x)  # type: ignore[no-any-return]

    model = nn.Sequential(small_net, Odd())
    torch.testing.assert_close(camkit.class_maps(model, batch, layer="0.body"), expected)


def test_lists_of_layers_and_methods_share_one_forward(small_net: nn.Module, batch: Tensor) -> None:
    sizes: list[int] = []
    camkit.maps_by(small_net, batch, layer=["stem", "body", "body.0"])  # finds out how they are to be read
    handle = small_net.stem[0].register_forward_hook(lambda m, i, output: sizes.append(len(output)))
    layers, methods = ["stem", "body", "body.0"], [m for m in AT_LAYER if m != "scorecam"]
    many = camkit.maps_by(small_net, batch, [4, 0, 2], layer=layers, method=methods)
    handle.remove()
    assert sizes == [3]  # a masked input has to go through everything, so scorecam is not among them
    assert list(many) == [(m, layer) for m in methods for layer in layers]
    for (method, layer), maps in many.items():
        single = camkit.maps(small_net, batch, [4, 0, 2], layer=layer, method=method)
        torch.testing.assert_close(maps, single)


@pytest.mark.parametrize("method", [m for m in AT_LAYER if m not in SUMLESS])
def test_the_mean_is_the_sum_over_the_number_of_channels(
    method: str, small_net: nn.Module, batch: Tensor
) -> None:
    summed = camkit.maps(small_net, batch, 1, layer="body", method=method)
    mean = camkit.maps(small_net, batch, 1, layer="body", method=method, reduction="mean")
    torch.testing.assert_close(mean, summed / 8)


@pytest.mark.parametrize(
    ("shape", "chunk"),
    [
        ((1, 512, 7, 7), 167),  # ResNet-34 at 224, last layer: 6 chunks for 1000 classes
        ((32, 512, 7, 7), 5),
        ((32, 64, 56, 56), 1),  # its first layer; a single class may be more than the bound
        ((4, 197, 768), 6),  # ViT-B
    ],
)
def test_a_thousand_classes_are_differentiated_in_chunks(shape: tuple[int, ...], chunk: int) -> None:
    output = torch.empty(shape)
    assert classes_at_once([output]) == chunk
    elsewhere = torch.empty(shape, device="meta")  # stands for an accelerator, whose memory is larger
    assert classes_at_once([elsewhere]) >= 32 * chunk
    assert chunk == 1 or chunk * output.numel() * 4 <= GRADIENT_BYTES == 16 * 2**20
    assert classes_at_once([output, output]) == max(1, chunk // 2)  # two layers share the bound


# --- tokens and channels-last ---------------------------------------------------------------------


class Tokens(nn.Module):
    """A class token and a grid of patches, mixed once, as a ViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))
        return self.head(self.mix(tokens, tokens, tokens, need_weights=False)[0][:, 0])


def test_token_layer_of_a_non_square_image() -> None:
    model, x = Tokens().eval(), torch.randn(2, 3, 16, 24)
    maps = camkit.maps(model, x, 1, layer="norm")
    assert maps.shape == (2, 4, 6)
    kept: list[Tensor] = []
    handle = model.norm.register_forward_hook(lambda m, i, o: kept.append(o))
    score = model(x)[:, 1].sum()
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept[0])
    weights = gradient[:, 1:].mean(1, keepdim=True)
    expected = (weights * kept[0][:, 1:]).sum(2).reshape(2, 4, 6)
    torch.testing.assert_close(maps, expected.detach())


def test_channels_last_output_is_turned() -> None:
    class Last(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 2, 3, 1)

    class Back(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.permute(0, 3, 1, 2)

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    body = nn.Conv2d(3, 6, 3, stride=2, padding=1)
    model, x = nn.Sequential(body, Last(), Back(), head), torch.randn(2, 3, 16, 16)
    expected = camkit.maps(model, x, 1, layer="0")
    torch.testing.assert_close(camkit.maps(model, x, 1, layer="1"), expected)


# --- errors ---------------------------------------------------------------------------------------


class Reused(nn.Module):
    """A layer that runs twice, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.idle = nn.Conv2d(3, 3, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(self.conv(x)).mean((2, 3)))


def test_layer_that_runs_twice() -> None:
    with pytest.raises(LayerError, match=r"'conv' .*more than once"):
        camkit.maps(Reused(), torch.randn(1, 3, 8, 8), 0, layer="conv")


def test_layer_that_does_not_run() -> None:
    with pytest.raises(LayerError, match=r"'idle' .*not run"):
        camkit.maps(Reused(), torch.randn(1, 3, 8, 8), 0, layer="idle")


def test_traced_module_is_not_silently_empty(small_net: nn.Module, batch: Tensor) -> None:
    traced = torch.jit.trace(small_net, batch, check_trace=False)
    with pytest.raises(ModelError, match="traced"):
        camkit.maps(traced, batch, 0, layer="body")


def test_compiled_module_is_explained_through_its_original(small_net: nn.Module, batch: Tensor) -> None:
    expected = camkit.maps(small_net, batch, 0, layer="body")
    compiled = torch.compile(small_net, backend="eager")
    assert torch.equal(camkit.maps(compiled, batch, 0, layer="body"), expected)


@pytest.mark.parametrize(("layer", "message"), [("fc", "not a feature map"), ("pool", "single position")])
def test_layer_without_a_map(small_net: nn.Module, batch: Tensor, layer: str, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        camkit.maps(small_net, batch, 0, layer=layer)


def test_layer_that_returns_a_tuple() -> None:
    with pytest.raises(LayerError, match="tuple"):
        camkit.maps(Tokens(), torch.randn(1, 3, 16, 16), 0, layer="mix")


def test_scores_that_do_not_depend_on_the_layer() -> None:
    class Blind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.conv(x)
            return self.head(x.mean((2, 3)))

    with pytest.raises(LayerError, match="depend on the target layer"):
        camkit.maps(Blind(), torch.randn(1, 3, 8, 8), 0, layer="conv")


def test_model_that_returns_no_scores() -> None:
    conv = nn.Conv2d(3, 4, 3)
    with pytest.raises(ModelError, match=r"scores \[B, n_classes\]"):
        camkit.maps(nn.Sequential(conv), torch.randn(1, 3, 8, 8), 0, layer="0")


def test_nan_stays_nan(small_net: nn.Module, batch: Tensor) -> None:
    batch[1] = float("nan")
    maps = camkit.maps(small_net, batch, 0, layer="body")
    assert maps[1].isnan().all() and maps[0].isfinite().all() and maps[2].isfinite().all()


# --- without a trace ------------------------------------------------------------------------------


HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


def state_of(model: nn.Module) -> list[Any]:
    return [
        [(name, m.training) for name, m in model.named_modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()],
        [len(getattr(m, name)) for m in model.modules() for name in HOOKS if getattr(m, name) is not None],
        [t.clone() for t in model.state_dict().values()],
        torch.get_rng_state(),
        torch.is_grad_enabled(),
    ]


def assert_same(before: list[Any], after: list[Any]) -> None:
    for a, b in zip(before, after, strict=True):
        if isinstance(a, list):
            assert_same(a, b)
        elif isinstance(a, Tensor):
            assert torch.equal(a, b)
        else:
            assert a == b


@pytest.fixture
def lived_in(small_net: nn.Module) -> nn.Module:
    """A model in the middle of a training: mixed modes, gradients, a hook of its own."""
    small_net.train()
    small_net.drop.eval()
    small_net.stem[0].weight.requires_grad_(False)
    small_net.fc.weight.grad = torch.ones_like(small_net.fc.weight)
    small_net.body.register_forward_hook(lambda m, i, o: None)
    return small_net


def test_a_write_into_one_of_several_views_is_named(batch: Tensor) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.conv(x).chunk(2, 1)
            first.mul_(second.sigmoid())
            return self.head(first.mean((2, 3)))  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match="writes in place into one of the values that `chunk`"):
        camkit.maps(Gated().eval(), batch, 0, layer="conv")


def test_the_model_is_as_it_was(lived_in: nn.Module, batch: Tensor) -> None:
    before, inputs = state_of(lived_in), batch.clone()
    camkit.maps(lived_in, batch, layer="body")
    camkit.class_maps(lived_in, batch, layer="auto")
    assert_same(before, state_of(lived_in))
    assert torch.equal(batch, inputs) and not batch.requires_grad


def test_train_mode_gives_the_maps_of_eval_mode(small_net: nn.Module, batch: Tensor) -> None:
    expected = camkit.maps(small_net, batch, 1, layer="body")
    assert torch.equal(camkit.maps(small_net.train(), batch, 1, layer="body"), expected)


@pytest.mark.parametrize("where", ["stem", "fc"])
def test_the_model_is_as_it_was_after_an_error(lived_in: nn.Module, batch: Tensor, where: str) -> None:
    part = lived_in.get_submodule(where)

    def explode(*_: Any) -> None:
        raise RuntimeError("forward failed")

    handle = part.register_forward_pre_hook(explode)
    before = state_of(lived_in)
    with pytest.raises(RuntimeError, match="forward failed"):
        camkit.maps(lived_in, batch, 0, layer="body")
    with pytest.raises(RuntimeError, match="forward failed"):
        camkit.maps(lived_in, batch, 0, layer="auto")
    assert_same(before, state_of(lived_in))
    handle.remove()


def test_the_model_is_as_it_was_after_a_wrong_target(lived_in: nn.Module, batch: Tensor) -> None:
    before = state_of(lived_in)
    with pytest.raises(camkit.CamkitError):
        camkit.maps(lived_in, batch, 99, layer="body")
    assert_same(before, state_of(lived_in))


def test_a_model_that_draws_random_numbers_leaves_the_generator_alone(batch: Tensor) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean((2, 3)) + torch.rand(4)

    model, state = Noisy(), torch.get_rng_state()
    camkit.maps(model, batch, 0, layer="conv")
    assert torch.equal(torch.get_rng_state(), state)


def test_five_hundred_calls_leave_nothing_behind(small_net: nn.Module, batch: Tensor) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    camkit.maps(small_net, batch, layer="body")
    before = tensors()
    for _ in range(500):
        camkit.maps(small_net, batch, layer="body")
    assert tensors() <= before
    assert all(not m._forward_hooks for m in small_net.modules())


def test_the_model_can_be_freed(batch: Tensor) -> None:
    model = lesson_model()
    camkit.maps(model, torch.randn(1, 3, 64, 64), 0)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_two_threads_on_one_model(small_net: nn.Module) -> None:
    """pytorch-grad-cam mixes the threads' activations up: 15 of 50 maps wrong."""
    images = torch.randn(40, 1, 3, 16, 16)
    expected = [camkit.maps(small_net, x, 1, layer="body") for x in images]
    wrong: list[int] = []

    def work(indices: range) -> None:
        for i in indices:
            if not torch.equal(camkit.maps(small_net, images[i], 1, layer="body"), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(range(k, 40, 2),)) for k in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_class_gradients_yield_one_chunk_per_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    leaf = torch.randn(2, 3, requires_grad=True)
    scores = leaf.pow(2)
    targets = torch.arange(3).expand(2, -1)
    monkeypatch.setattr("camkit.native.gradients.GRADIENT_BYTES", 2 * leaf.numel() * 4)
    chunks = [g[0] for g in class_gradients(scores, targets, [leaf])]
    assert [len(chunk) for chunk in chunks] == [2, 1]
    expected = torch.diag_embed(2 * leaf.detach()).movedim(1, 0)
    torch.testing.assert_close(torch.cat(chunks), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_as_on_the_cpu(small_net: nn.Module, batch: Tensor) -> None:
    expected = camkit.maps(small_net, batch, 2, layer="body")
    maps = camkit.maps(small_net.cuda(), batch.cuda(), 2, layer="body")
    assert maps.device.type == "cuda"
    assert_close_to_peak(maps.cpu(), expected, 1e-4)
