"""The backend: equal to native and to the library itself, on models where the bare library fails."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_grad_cam as library
import timm
import torch
import torchvision
from camkit_pytorch_grad_cam import PytorchGradCam
from pytorch_grad_cam.base_cam import BaseCAM
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import camkit
from camkit.errors import LayerError, OptionError, UsageError
from camkit.testing import explainer_checks

BACKEND = "pytorch-grad-cam"
METHODS = PytorchGradCam.methods
CLASSES = 5
STEEP = 1e6  # makes gradients large


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    torch.set_num_threads(1)  # quicker than two on networks this small
    torch.manual_seed(0)
    yield


@explainer_checks(BACKEND, dist="camkit-pytorch-grad-cam")
def test_conformance(check: Callable[[], None]) -> None:
    check()


# --- models and helpers ---------------------------------------------------------------------------


def cnn() -> nn.Sequential:
    """A plain CNN; layer `5` is a ReLU whose output is `[B, 8, H/2, W/2]`; the same weights every time."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, CLASSES),
    )
    model[1].running_mean += 0.1
    return model.eval()


def vgg() -> nn.Module:
    """VGG's body: each ReLU overwrites the output of the convolution before it."""
    body = torchvision.models.vgg.make_layers([8, "M", 8, 8, "M", 12, 12])
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, CLASSES)).eval()


def densenet() -> nn.Module:
    """Its forward overwrites what `features` returns with its ReLU."""
    return torchvision.models.DenseNet(4, (2, 2), 8, num_classes=CLASSES).eval()


def vit() -> nn.Module:
    return timm.create_model("test_vit", img_size=64, num_classes=CLASSES).eval()


def images(batch: int = 2, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def maps(model: nn.Module, inputs: Tensor, targets: Any = 1, layer: str = "5", **kw: Any) -> Tensor:
    result = camkit.maps(model, inputs, targets, layer=layer, backend=BACKEND, **kw)
    assert isinstance(result, Tensor)
    return result


def close(actual: Tensor, expected: Tensor, relative: float = 1e-5) -> None:
    """Equal up to `relative` times the peak of `expected`, which must not be blank."""
    peak = float(expected.abs().max())
    assert peak > 0
    torch.testing.assert_close(actual, expected, rtol=0, atol=relative * peak)


# --- every method ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_shape_of_every_method(method: str) -> None:
    result = maps(cnn(), images(2, 16, 12), [0, 3], method=method)
    assert result.shape == ((2, 16, 12) if method == "fullgrad" else (2, 8, 6))
    assert result.dtype == torch.float32 and result.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_tokens(method: str) -> None:
    """Upstream: AxisError without a reshape_transform, and no second derivative of fused attention."""
    result = maps(vit(), images(), [0, 3], "blocks.-1.norm1", method=method)
    assert result.shape == ((2, 64, 64) if method == "fullgrad" else (2, 4, 4))
    assert result.isfinite().all() and len(result.unique()) > 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_in_every_type(method: str, dtype: torch.dtype) -> None:
    """Upstream: numpy has no bfloat16 and raises TypeError."""
    expected = maps(cnn(), images(2, 16, 16), [0, 3], method=method)
    result = maps(cnn().to(dtype), images(2, 16, 16).to(dtype), [0, 3], method=method)
    assert result.dtype in (torch.float32, torch.float64) and result.isfinite().all()
    if dtype == torch.float64:
        close(result, expected.double(), 1e-3)


def test_every_class_method_of_the_library_is_offered() -> None:
    shipped = {
        name for name, cls in vars(library).items() if isinstance(cls, type) and issubclass(cls, BaseCAM)
    }
    # For segmentation: its targets are no classes of an image.
    spelled = {"GradCAMElementWise": "gradcam-elementwise", "GradCAMPlusPlus": "gradcam++"}
    names = {spelled.get(name, name.lower().replace("_", "")) for name in shipped - {"SegEigenCAM"}}
    assert names | {"finercam"} == set(METHODS)


# --- gradcam is native's --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "layer"),
    [(cnn, "5"), (vgg, "0.6"), (vgg, "0"), (densenet, "features"), (vit, "blocks.-1.norm1")],
    ids=["cnn", "vgg-conv", "vgg-body", "densenet", "vit"],
)
def test_gradcam_equals_native(build: Callable[[], nn.Module], layer: str) -> None:
    """Upstream: behind the layer an in-place ReLU makes maps wrong, frozen models raise, so do
    `no_grad`, `inference_mode` and bfloat16."""
    model, inputs, targets = build(), images(), [1, 3]
    expected = camkit.maps(model, inputs, targets, layer=layer)
    close(maps(model, inputs, targets, layer), expected)
    with torch.no_grad():
        close(maps(model, inputs, targets, layer), expected)
    with torch.inference_mode():
        close(maps(model, inputs * 1, targets, layer), expected)
    model.requires_grad_(False)
    close(maps(model, inputs, targets, layer), expected)
    half = model.bfloat16()
    close(
        maps(half, inputs.bfloat16(), targets, layer),
        camkit.maps(half, inputs.bfloat16(), targets, layer=layer),
    )


@pytest.mark.parametrize(
    ("build", "layer"),
    [(cnn, "5"), (vgg, "0.6"), (densenet, "features"), (vit, "blocks.-1.norm1")],
    ids=["cnn", "vgg-conv", "densenet", "vit"],
)
@pytest.mark.parametrize(
    "method",
    [
        "hirescam",
        "gradcam-elementwise",
        "layercam",
        "gradcam++",
        "xgradcam",
        "eigengradcam",
        "eigencam",
        "shapleycam",
    ],
)
def test_other_methods_equal_native(method: str, build: Callable[[], nn.Module], layer: str) -> None:
    """The library adds constants to two denominators, and native does not: 1e-6 to the squared gradients
    in gradcam++, so here scores are steep in the features; 1e-7 to the sum of a channel in xgradcam, which
    is larger by far unless the channel is blank. In float64 only the definitions count."""
    model, inputs, targets = build().double(), images().double(), [1, 3]
    model.register_forward_hook(lambda _, __, scores: STEEP * scores)
    result = maps(model, inputs, targets, layer, method=method)
    expected = camkit.maps(model, inputs, targets, layer=layer, method=method)
    assert isinstance(expected, Tensor)
    if method.startswith(
        "eigen"
    ):  # a component has no sign of its own, and the two choose it by other rules
        flipped = ((result * expected).sum((1, 2)) < 0)[:, None, None]
        result = torch.where(flipped, -result, result)
    close(result, expected)


def test_ablationcam_is_native_over_the_score() -> None:
    """The paper divides by the score; native leaves that out, for a negative score turns the map over."""
    model, inputs, targets = cnn(), images(), [1, 3]
    scores = model(inputs).detach().gather(1, torch.tensor(targets)[:, None])[..., None]
    result = maps(model, inputs, targets, method="ablationcam") * scores
    close(result, camkit.maps(model, inputs, targets, layer="5", method="ablationcam"), 1e-4)


def test_ablationcam_of_the_library_is_wrong_where_features_can_be_negative() -> None:
    """It ablates with the minimum less 1e7 there, and the paper with zero. Where no ReLU makes up for it,
    the weights are those of 1e7."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    expected = camkit.maps(model.eval(), images(), 1, layer="0", method="ablationcam")
    assert maps(model, images(), 1, "0", method="ablationcam").abs().max() > 1e5 * expected.abs().max()


def test_scorecam_equals_native_where_nothing_is_enlarged() -> None:
    """Elsewhere the library aligns the corners when it enlarges, and the masks differ between pixels."""
    model, inputs, targets = cnn(), images(), [1, 3]
    expected = camkit.maps(model, inputs, targets, layer="2", method="scorecam")
    close(maps(model, inputs, targets, "2", method="scorecam"), expected, 1e-4)


def test_finercam_equals_native_for_one_comparison() -> None:
    """The library weighs several by their probabilities, and differentiates the weights too: that is not
    the difference to the mean score of the paper."""
    model, inputs, targets = cnn(), images(), [1, 3]

    def both(**options: Any) -> tuple[Tensor, Any]:
        found = maps(model, inputs, targets, method="finercam", **options)
        return found, camkit.maps(model, inputs, targets, layer="5", method="finercam", **options)

    close(*both(alpha=0.6, comparisons=1), 1e-4)
    result, expected = both(alpha=0.6, comparisons=3)
    assert (result - expected).abs().max() > 0.01 * expected.abs().max()


def test_channels_last_outputs() -> None:
    """Upstream: needs a reshape_transform for Swin, or explains rows of the image as channels."""

    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.norm = nn.Conv2d(3, 10, 4, 4), nn.LayerNorm(10)
            self.head = nn.Linear(10, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.body(x).permute(0, 2, 3, 1))
            return self.head((x**2).mean((1, 2)))

    model = Swapped().eval()
    result = maps(model, images(2, 32, 24), layer="norm")
    assert result.shape == (2, 8, 6)
    close(result, camkit.maps(model, images(2, 32, 24), 1, layer="norm"))


# --- the library itself ---------------------------------------------------------------------------

CLASSES_OF = {
    "gradcam": library.GradCAM,
    "hirescam": library.HiResCAM,
    "gradcam-elementwise": library.GradCAMElementWise,
    "gradcam++": library.GradCAMPlusPlus,
    "xgradcam": library.XGradCAM,
    "layercam": library.LayerCAM,
    "eigencam": library.EigenCAM,
    "eigengradcam": library.EigenGradCAM,
    "ablationcam": library.AblationCAM,
    "scorecam": library.ScoreCAM,
    "kpcacam": library.KPCA_CAM,
    "fem": library.FEM,
    "shapleycam": library.ShapleyCAM,
}


def as_picture(raw: Tensor, size: tuple[int, int]) -> np.ndarray:
    """What the library makes of a raw map: rectified, scaled, enlarged to (width, height), scaled."""
    return scale_cam_image(scale_cam_image(np.maximum(raw.numpy(), 0), size))


def same_pictures(
    raw: Tensor, expected: np.ndarray, draw: Callable[[Tensor], np.ndarray], component: bool = False
) -> None:
    """Image by image. The library draws a principal component with either sign, as the machine's linear
    algebra has it, so there the nearer one counts."""
    for one, picture in zip(raw.split(1), expected, strict=True):
        drawn = [draw(sign * one)[0] for sign in ((1, -1) if component else (1,))]
        nearest = min(drawn, key=lambda d: np.abs(d - picture).max())
        np.testing.assert_allclose(nearest, picture, atol=1e-4)


@pytest.mark.parametrize("smooth", [False, True], ids=["sum", "eigen_smooth"])
@pytest.mark.parametrize("method", CLASSES_OF)
def test_pictures_equal_the_library(method: str, smooth: bool) -> None:
    model, inputs, targets = cnn(), images(2, 16, 12), [1, 3]
    other = copy.deepcopy(model)
    cam = CLASSES_OF[method](other, [other[5]])
    expected = cam(inputs, [ClassifierOutputTarget(t) for t in targets], eigen_smooth=smooth)
    raw = maps(model, inputs, targets, method=method, eigen_smooth=smooth)
    component = smooth or method in ("eigencam", "eigengradcam")
    same_pictures(raw, expected, lambda r: as_picture(r, (12, 16)), component)


@pytest.mark.parametrize("method", ["gradcam", "layercam", "eigengradcam", "scorecam"])
def test_pictures_of_tokens_equal_the_library(method: str) -> None:
    model, inputs = vit(), images(1)
    other = copy.deepcopy(model)
    prefix = model.num_prefix_tokens

    def reshape(tokens: Tensor) -> Tensor:
        return tokens[:, prefix:].reshape(len(tokens), 4, 4, -1).permute(0, 3, 1, 2)

    cam = CLASSES_OF[method](other, [other.blocks[-1].norm1], reshape_transform=reshape)
    expected = cam(inputs, [ClassifierOutputTarget(2)])
    raw = maps(model, inputs, 2, "blocks.-1.norm1", method=method)
    same_pictures(raw, expected, lambda r: as_picture(r, (64, 64)), method == "eigengradcam")


def test_finercam_equals_the_library() -> None:
    model, inputs = cnn(), images(2, 16, 12)
    other = copy.deepcopy(model)
    expected = library.FinerCAM(other, [other[5]])(inputs, target_idx=2)
    np.testing.assert_allclose(
        as_picture(maps(model, inputs, 2, method="finercam"), (12, 16)), expected, atol=1e-4
    )


@pytest.mark.parametrize("smooth", [False, True], ids=["sum", "eigen_smooth"])
def test_fullgrad_equals_the_library(smooth: bool) -> None:
    """It has no raw map, but the scaling of the sum is left out."""
    model, inputs = cnn(), images(2, 24, 16)
    cam = library.FullGrad(copy.deepcopy(model), [])
    expected = cam(inputs, [ClassifierOutputTarget(t) for t in (1, 3)], eigen_smooth=smooth)
    raw = maps(model, inputs, [1, 3], method="fullgrad", eigen_smooth=smooth)
    same_pictures(raw, expected, lambda r: scale_cam_image(r.numpy()), smooth)


def test_fullgrad_matches_biases_and_gradients_by_layer() -> None:
    """Upstream: biases come in the order of the modules, gradients in that of the forward, so this
    model, whose layers are defined the other way round, raises or gets wrong maps."""

    class Model(nn.Sequential):
        def __init__(self, backwards: bool) -> None:
            parts = {"first": nn.Conv2d(3, 4, 3), "second": nn.Conv2d(4, 6, 3), "fc": nn.Linear(6, CLASSES)}
            super().__init__()
            for name in reversed(parts) if backwards else parts:
                self.add_module(name, parts[name])

        def forward(self, x: Tensor) -> Tensor:
            x = self.second(torch.relu(self.first(x)))
            return self.fc(torch.nn.functional.relu_(x).mean((2, 3)))

    model, other = Model(False).eval(), Model(True).eval()
    other.load_state_dict(model.state_dict())
    inputs = images(1, 16, 16)
    close(
        maps(other, inputs, layer="second", method="fullgrad"),
        maps(model, inputs, layer="second", method="fullgrad"),
    )


def test_randomcam_has_the_librarys_weights() -> None:
    model, inputs = cnn(), images(2, 16, 12)
    raw = maps(model, inputs, method="randomcam", seed=3)
    weights = np.random.RandomState(3).uniform(-1, 1, size=8)
    features = model[:6](inputs).detach()
    close(raw, (torch.tensor(weights)[:, None, None] * features).sum(1).float())
    assert not torch.equal(raw, maps(model, inputs, method="randomcam", seed=4))


# --- formulas with answers known by hand ----------------------------------------------------------


class SquaredMean(nn.Module):
    """Scores are the squared means of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) ** 2


def test_shapleycam_by_hand() -> None:
    """For a quadratic score half of the gradient is taken off again: half of Grad-CAM."""
    model, inputs = nn.Sequential(nn.Identity(), SquaredMean()), images(2, 6, 6)
    mean = inputs[:, 1].mean((1, 2), keepdim=True)
    close(maps(model, inputs, layer="0", method="shapleycam"), mean / 36 * inputs[:, 1])


@pytest.mark.parametrize("frozen", [False, True])
def test_shapleycam_of_a_linear_head_is_gradcam(frozen: bool) -> None:
    """Upstream: with a frozen head there is no second derivative, and autograd raises."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES))
    model.eval().requires_grad_(not frozen)
    inputs = images(2, 12, 12)
    close(maps(model, inputs, layer="0", method="shapleycam"), maps(model, inputs, layer="0"))


def test_ablationcam_by_hand() -> None:
    """Behind a ReLU and before a linear head: the share of the score that each channel carries."""
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2, bias=False))
    model[3].weight.data = torch.tensor([[1.0, 2.0, -1.0], [0.0, 1.0, 1.0]])
    features = images(2, 4, 4).relu()
    carried = model[3].weight[0, :, None, None] * features.mean((2, 3), keepdim=True)
    expected = (carried / carried.sum(1, keepdim=True) * features).sum(1).detach()
    close(maps(model, images(2, 4, 4), 0, "0", method="ablationcam"), expected)


# --- options --------------------------------------------------------------------------------------


def test_score_softmax_explains_the_probability() -> None:
    model, inputs = cnn(), images(2, 16, 12)
    with_softmax = nn.Sequential(*model, nn.Softmax(1)).eval()
    close(maps(model, inputs, score="softmax"), maps(with_softmax, inputs))


def test_score_rest_adds_the_log_probability() -> None:
    model, inputs = cnn(), images(2, 16, 12)
    log_softmax = nn.Sequential(*model, nn.LogSoftmax(1)).eval()
    expected = maps(model, inputs) + maps(log_softmax, inputs)
    close(maps(model, inputs, score="rest"), expected)


def test_aug_smooth_is_the_mean_over_the_librarys_views() -> None:
    model, inputs = cnn(), images(2, 16, 12)
    views = BaseCAM(cnn(), []).tta_transforms
    each = [v.deaugment_mask(maps(model, v.augment_image(inputs))[:, None])[:, 0] for v in views]
    assert len(each) == 6
    close(maps(model, inputs, aug_smooth=True), torch.stack(each).mean(0))


@pytest.mark.parametrize("method", ["scorecam", "ablationcam"])
def test_batch_size_changes_nothing_but_the_forwards(method: str) -> None:
    model, sizes = cnn(), []
    expected = maps(model, images(2, 16, 12), [1, 3], method=method)
    model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    close(maps(model, images(2, 16, 12), [1, 3], method=method, batch_size=3), expected)
    assert set(sizes[2:]) <= {1, 2, 3} and 3 in sizes and sizes.count(3) >= 4


def test_linear_kernel_is_eigencam() -> None:
    """The principal component of the linear kernel is that of the features, up to its sign."""
    model, inputs = cnn(), images(1, 16, 12)
    linear = maps(model, inputs, method="kpcacam", kernel="linear")
    close(linear.abs(), maps(model, inputs, method="eigencam").abs(), 1e-4)
    assert not torch.allclose(linear, maps(model, inputs, method="kpcacam", kernel="rbf", gamma=0.1))


def test_fem_counts_what_is_above_k_deviations() -> None:
    model, inputs = cnn(), images(1, 16, 12)
    features = model[:6](inputs).detach()
    deviation = features.std((2, 3), correction=0, keepdim=True)
    active = features > features.mean((2, 3), keepdim=True) + 0.5 * deviation
    expected = (active.float().mean((2, 3), keepdim=True) * features).sum(1)
    close(maps(model, inputs, method="fem", k=0.5), expected)


def test_finercam_without_comparison_is_gradcam() -> None:
    model, inputs = cnn(), images(2, 16, 12)
    close(maps(model, inputs, method="finercam", alpha=0.0), maps(model, inputs), 1e-4)


def test_finercam_compares_with_the_nearest_score() -> None:
    """With one comparison: gradcam of the class minus that of the class whose score is nearest."""
    model, inputs = cnn(), images(1, 16, 12)
    scores = model(inputs).detach()[0]
    distances = (scores - scores[1]).abs()
    distances[1] = torch.inf
    expected = maps(model, inputs, 1) - maps(model, inputs, int(distances.argmin()))
    close(maps(model, inputs, 1, method="finercam", comparisons=1), expected, 1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size .*at least 1"),
        ({"score": "probability"}, "logit"),
        ({"kernel": "cubic"}, "sigmoid"),
        ({"seed": -1}, "seed .*between 0"),
        ({"aug_smooth": "perhaps"}, r"true\|false"),
        ({"eigen": True}, "eigen_smooth"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        maps(cnn(), images(1, 16, 12), **options)


# --- batches and classes --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "options", [{"aug_smooth": True}, {"eigen_smooth": True}], ids=lambda o: next(iter(o))
)
def test_a_batch_is_its_images(method: str, options: dict[str, bool]) -> None:
    """Upstream: randomcam draws other weights for each image; one target leaves other maps blank."""
    model, inputs = cnn(), images(3, 16, 24)
    together = maps(model, inputs, [0, 3, 1], method=method, **options)
    alone = [maps(model, inputs[i : i + 1], t, method=method, **options) for i, t in enumerate([0, 3, 1])]
    close(together, torch.cat(alone), 1e-4)


@pytest.mark.parametrize("method", ["gradcam", "finercam", "eigencam"])
def test_class_maps_equal_single_maps(method: str) -> None:
    model, inputs = cnn(), images(2, 16, 12)
    every = camkit.class_maps(model, inputs, layer="5", backend=BACKEND, method=method)
    assert isinstance(every, Tensor) and every.shape == (2, CLASSES, 8, 6)
    for c in range(CLASSES):
        close(every[:, c], maps(model, inputs, c, method=method))


@pytest.mark.parametrize("method", METHODS)
def test_nan_stays_nan(method: str) -> None:
    """Upstream: the eigen methods take NaN for zero, so a broken model gets a plausible map."""
    inputs = images(2, 16, 12)
    clean = maps(cnn(), inputs, [1, 3], method=method)
    inputs[0, 0, 5, 5] = torch.nan
    result = maps(cnn(), inputs, [1, 3], method=method)
    assert result[0].isnan().any()
    close(result[1], clean[1], 1e-4)


# --- no trace -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_printed(method: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Upstream: progress bars of ablationcam and scorecam, warnings of hirescam and fullgrad, and
    complaints of its destructors."""
    maps(cnn(), images(2, 16, 12), method=method, eigen_smooth=method == "hirescam")
    maps(vit(), images(1), layer="blocks.-1.norm1", method=method, eigen_smooth=method == "hirescam")
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""


def test_the_library_keeps_its_progress_bars(capfd: pytest.CaptureFixture[str]) -> None:
    """Silence is for this backend only: others in the process see the library as it is."""
    model = cnn()
    maps(model, images(1, 16, 12), method="scorecam")
    library.ScoreCAM(model, [model[5]])(images(1, 16, 12), [ClassifierOutputTarget(1)])
    assert "it/s" in capfd.readouterr().err


@pytest.mark.parametrize("method", ["kpcacam", "randomcam"])
def test_global_generators_are_untouched(method: str) -> None:
    """Upstream: both draw from numpy's global generator, kpcacam from 200 positions on."""
    model, inputs = cnn(), images(1, 40, 40)
    before = np.random.get_state(legacy=False), random.getstate(), torch.get_rng_state()
    first = maps(model, inputs, method=method)
    after = np.random.get_state(legacy=False), random.getstate(), torch.get_rng_state()
    assert str(before) == str(after)
    np.random.seed(99)
    assert torch.equal(first, maps(model, inputs, method=method))


@pytest.mark.parametrize("method", ["ablationcam", "scorecam", "shapleycam", "fullgrad"])
@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_in_any_forward_leaves_the_model_whole(method: str, failing: int) -> None:
    """Upstream: after an error ablationcam's layer stays in the model, hooks and eval mode in all."""
    model, count = cnn(), [0]

    def fail(*_: Any) -> None:
        count[0] += 1
        if count[0] > failing:
            raise ZeroDivisionError

    hook = model[7].register_forward_pre_hook(fail)
    model[5].train()
    parts = list(model.modules())
    flags = torch.backends.cuda.flash_sdp_enabled()
    query = camkit.Query(model, images(1, 16, 12), torch.tensor([1]), "5", method, layout="channels-first")
    options = PytorchGradCam.Options(batch_size=2, aug_smooth=True)
    with pytest.raises(ZeroDivisionError):
        PytorchGradCam(options).maps(query)
    hook.remove()
    assert list(model.modules()) == parts
    assert model[5].training and not model[7].training
    assert torch.backends.cuda.flash_sdp_enabled() == flags
    hooks = [d for m in parts for name, d in vars(m).items() if "hook" in name and d]
    assert hooks == []
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_gradients_of_a_training_survive() -> None:
    """Upstream: `zero_grad` wipes them, `backward` adds its own."""
    model, inputs = cnn(), images(2, 16, 12).requires_grad_()
    model(inputs).square().sum().backward()
    before = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    expected = inputs.grad.clone()
    for method in METHODS:
        maps(model, inputs, method=method)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))
    assert torch.equal(inputs.grad, expected)


@pytest.mark.parametrize("method", ["gradcam", "ablationcam", "fullgrad", "kpcacam"])
def test_threads_share_a_model(method: str) -> None:
    """Upstream: hooks see the forwards of other threads, and ablationcam swaps a layer of the model."""
    model = cnn()
    inputs = images(8, 40, 40).split(1)
    expected = [maps(model, x, method=method) for x in inputs]
    results: dict[tuple[int, int], Tensor] = {}

    def work(thread: int) -> None:
        for i, x in enumerate(inputs):
            results[thread, i] = maps(model, x, method=method)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 * len(inputs)
    for (_, i), result in results.items():
        close(result, expected[i])


# --- errors ---------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body(x)).mean((2, 3))


def test_a_layer_that_does_not_run_once() -> None:
    """Upstream: an IndexError that its `__exit__` swallows, or the map of the first run."""
    with pytest.raises(LayerError, match=r"'body' .*more than once"):
        maps(Twice(), images(1, 8, 8), layer="body")
    with pytest.raises(LayerError, match=r"'other' .*not run"):
        maps(Twice(), images(1, 8, 8), layer="other")


def test_a_layer_without_a_map() -> None:
    with pytest.raises(LayerError, match="not a feature map"):
        maps(cnn(), images(1, 16, 12), layer="10")


def test_scores_that_do_not_depend_on_the_layer() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Detached(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(LayerError, match="differentiable"):
        maps(model, images(1, 16, 12), layer="0")
    with pytest.raises(LayerError, match="differentiable"):
        maps(model, images(1, 16, 12), layer="0", method="fullgrad")
    assert maps(model, images(1, 16, 12), layer="0", method="eigencam").isfinite().all()


def test_finercam_needs_classes_to_compare() -> None:
    model = nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UsageError, match="one class only"):
        maps(model, images(1, 16, 12), 0, layer="0", method="finercam")


def test_other_errors_of_the_model_come_through() -> None:
    with pytest.raises(UsageError, match="3 for the model and 4"):
        maps(cnn(), torch.zeros(1, 4, 16, 16))
