"""The formulas, by hand and against slow transcriptions of the papers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from camkit.core import formulas

# --- transcriptions: one class, one image, loops over channels and positions ----------------------


def gradcam(a: Tensor, g: Tensor) -> Tensor:
    return sum(g[k].mean() * a[k] for k in range(len(a)))


def gradcam_plus_plus(a: Tensor, g: Tensor) -> Tensor:
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        weight = torch.tensor(0.0)
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                alpha = g[k, i, j] ** 2 / (2 * g[k, i, j] ** 2 + a[k].sum() * g[k, i, j] ** 3)
                weight += alpha * max(g[k, i, j], torch.tensor(0.0))
        total += weight * a[k]
    return total


def xgradcam(a: Tensor, g: Tensor) -> Tensor:
    return sum((a[k] / a[k].sum() * g[k]).sum() * a[k] for k in range(len(a)))


def hirescam(a: Tensor, g: Tensor) -> Tensor:
    return sum(g[k] * a[k] for k in range(len(a)))


def gradcam_elementwise(a: Tensor, g: Tensor) -> Tensor:
    return sum(torch.relu(g[k] * a[k]) for k in range(len(a)))


def layercam(a: Tensor, g: Tensor) -> Tensor:
    return sum(torch.relu(g[k]) * a[k] for k in range(len(a)))


def component(values: Tensor) -> Tensor:
    """By numpy's singular value decomposition, as pytorch-grad-cam; up to its sign."""
    points = values.flatten(1).T.double().numpy()
    points = points - points.mean(0)
    _, _, axes = np.linalg.svd(points, full_matrices=False)
    return torch.from_numpy(points @ axes[0]).reshape(values.shape[1:]).float()


def ablationcam_affine(a: Tensor, g: Tensor) -> Tensor:
    """The score is affine with slopes `g`: what it loses when a channel becomes zero."""
    total = torch.zeros_like(a[0])
    for k in range(len(a)):
        without = a.clone()
        without[k] = 0
        total += ((g * a).sum() - (g * without).sum()) * a[k]
    return total


TRANSCRIPTIONS = {
    formulas.ablationcam_affine: ablationcam_affine,
    formulas.gradcam: gradcam,
    formulas.gradcam_plus_plus: gradcam_plus_plus,
    formulas.xgradcam: xgradcam,
    formulas.hirescam: hirescam,
    formulas.gradcam_elementwise: gradcam_elementwise,
    formulas.layercam: layercam,
}
Cam = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def features() -> Tensor:
    """Behind a ReLU, as the papers assume."""
    return torch.randn(2, 3, 4, 5).clamp(min=0) + 0.01


@pytest.fixture
def gradients() -> Tensor:
    return torch.randn(6, 2, 3, 4, 5)


@pytest.mark.parametrize("cam", TRANSCRIPTIONS, ids=lambda f: f.__name__)
def test_the_paper_written_out(cam: Cam, features: Tensor, gradients: Tensor) -> None:
    maps = cam(features, gradients)
    assert maps.shape == (2, 6, 4, 5)
    for b in range(2):
        for t in range(6):
            expected = TRANSCRIPTIONS[cam](features[b], gradients[t, b])
            torch.testing.assert_close(maps[b, t], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(4, 5), (2, 2)], ids=["more positions", "more channels"])
def test_components_are_those_of_a_singular_value_decomposition(size: tuple[int, int]) -> None:
    features, gradients = torch.randn(2, 8, *size), torch.randn(3, 2, 8, *size)
    assert formulas.eigencam(features).shape == (2, 1, *size)
    for b in range(2):
        expected = component(features[b])
        found = formulas.eigencam(features)[b, 0]
        torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-4, atol=1e-5)
        assert (found * (features[b].mean(0) - features[b].mean())).sum() >= 0  # the sign has a meaning
        for t in range(3):
            expected = component(gradients[t, b] * features[b])
            found = formulas.eigengradcam(features, gradients)[b, t]
            torch.testing.assert_close(found.abs(), expected.abs(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_sign_of_a_component_is_not_that_of_rounding(dtype: torch.dtype) -> None:
    """Behind a LayerNorm without weights of its own the mean over channels is zero at every position."""
    exact = torch.nn.functional.layer_norm(torch.randn(20, 6, 6, 192).double(), (192,)).movedim(-1, 1)
    wanted = formulas.eigencam(exact)
    assert bool((wanted.pow(3).sum((2, 3)) > 0).all())
    found = formulas.eigencam(exact.to(dtype)).double()
    along = (
        (found * wanted).flatten(1).sum(1) / found.flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    )
    assert bool((along > 0.9).all())


@pytest.mark.parametrize("cam", [*TRANSCRIPTIONS, formulas.eigengradcam], ids=lambda f: f.__name__)
def test_signals_and_volumes_are_images_of_other_proportions(
    cam: Cam, features: Tensor, gradients: Tensor
) -> None:
    expected = cam(features, gradients)
    signals = cam(features.flatten(2), gradients.flatten(3))
    torch.testing.assert_close(signals, expected.flatten(2))
    volumes = cam(features.unflatten(2, (2, 2)), gradients.unflatten(3, (2, 2)))
    torch.testing.assert_close(volumes, expected.unflatten(2, (2, 2)))


# --- other scores, and scores after a perturbation ------------------------------------------------


def test_finercam_takes_off_the_mean_of_the_nearest_scores() -> None:
    scores = torch.tensor([[5.0, 1.0, 4.0, 2.0], [0.0, 9.0, 8.0, 3.0]])
    targets = torch.tensor([[0, 3], [1, 1]])
    found = formulas.contrast(scores, targets, alpha=0.5, comparisons=2)
    for b in range(2):
        for t in range(2):
            target = int(targets[b, t])
            others = [c for c in range(4) if c != target]
            others.sort(key=lambda c: abs(float(scores[b, c] - scores[b, target])))
            similar = sum(float(scores[b, c]) for c in others[:2]) / 2
            assert found[b, t] == scores[b, target] - 0.5 * similar
    assert torch.equal(formulas.contrast(scores, targets, 0.0, 2), scores.gather(1, targets))
    rest = formulas.contrast(scores, targets, 1.0, 99)  # as many as there are
    assert rest[0, 0] == pytest.approx(5 - (1 + 4 + 2) / 3)


def test_finercam_never_compares_a_class_with_itself() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0]], requires_grad=True)  # all as near as can be
    contrast = formulas.contrast(scores, torch.tensor([[1]]), alpha=1.0, comparisons=2)
    (gradient,) = torch.autograd.grad(contrast.sum(), scores)
    assert gradient.tolist() == [[-0.5, 1.0, -0.5]]


def test_ablationcam_weighs_with_the_drop_of_the_score(features: Tensor) -> None:
    scores, ablated = torch.randn(2, 4), torch.randn(4, 2, 3)
    maps = formulas.ablationcam(features, scores, ablated)
    for b in range(2):
        for t in range(4):
            drops = [scores[b, t] - ablated[t, b, k] for k in range(3)]
            expected = sum(drop * channel for drop, channel in zip(drops, features[b], strict=True))
            torch.testing.assert_close(maps[b, t], expected)


def test_scorecam_weighs_with_the_softmax_over_channels(features: Tensor) -> None:
    masked = torch.randn(4, 2, 3)
    maps = formulas.scorecam(features, masked)
    for b in range(2):
        for t in range(4):
            powers = [masked[t, b, k].exp() for k in range(3)]
            expected = sum(
                power / sum(powers) * channel for power, channel in zip(powers, features[b], strict=True)
            )
            torch.testing.assert_close(maps[b, t], expected)
    baseline = torch.randn(4, 2, 1)  # of algorithm 1: it makes no difference
    torch.testing.assert_close(formulas.scorecam(features, masked - baseline), maps)


def test_masks_reach_from_zero_to_one() -> None:
    channels = torch.tensor([[[1.0, 3.0]], [[-2.0, -4.0]], [[5.0, 5.0]]])
    masks = formulas.masks(channels, (1, 4))
    expected = [[0.0, 0.25, 0.75, 1.0], [1.0, 0.75, 0.25, 0.0], [0.0] * 4]  # the last lets nothing through
    torch.testing.assert_close(masks[:, 0, 0], torch.tensor(expected))
    assert formulas.masks(torch.rand(2, 3), (6,)).shape == (2, 1, 6)
    assert formulas.masks(torch.rand(2, 3, 2, 2), (6, 4, 4)).shape == (2, 1, 6, 4, 4)


# --- by hand, and at the edges --------------------------------------------------------------------


def test_gradcam_of_a_map_computed_by_hand() -> None:
    features = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[1.0, 0.0], [0.0, 1.0]]]])
    # Means of the gradients: 0.5 for the first channel, -2 for the second.
    gradients = torch.tensor([[[[[0.0, 1.0], [0.0, 1.0]], [[-2.0, -2.0], [-2.0, -2.0]]]]])
    expected = torch.tensor([[[[0.5 - 2.0, 1.0], [1.5, 2.0 - 2.0]]]])
    torch.testing.assert_close(formulas.gradcam(features, gradients), expected)


def test_activations_are_the_mean_over_channels() -> None:
    features = torch.tensor([[[[1.0, 2.0]], [[3.0, -6.0]]]])
    torch.testing.assert_close(formulas.activations(features), torch.tensor([[[[2.0, -2.0]]]]))


@pytest.mark.parametrize("cam", [*TRANSCRIPTIONS, formulas.eigengradcam], ids=lambda f: f.__name__)
def test_dead_channels_and_zero_gradients_give_zeros(cam: Cam) -> None:
    """Denominators vanish here; a map of nothing is zero, not NaN."""
    maps = cam(torch.zeros(1, 2, 3, 3), torch.zeros(1, 1, 2, 3, 3))
    assert maps.eq(0).all()
    maps = cam(torch.zeros(1, 2, 3, 3), torch.randn(1, 1, 2, 3, 3))
    assert maps.eq(0).all()


@pytest.mark.parametrize("cam", [*TRANSCRIPTIONS, formulas.eigengradcam], ids=lambda f: f.__name__)
def test_nan_stays_with_its_image(cam: Cam, features: Tensor, gradients: Tensor) -> None:
    features[1, 0, 0, 0] = torch.nan
    maps = cam(features, gradients)
    assert maps[0].isfinite().all() and maps[1].isnan().any()


def test_nan_in_a_component_is_nan_everywhere(features: Tensor) -> None:
    features[1, 0, 0, 0] = torch.nan
    maps = formulas.eigencam(features)
    assert maps[0].isfinite().all() and maps[1].isnan().all()


@pytest.mark.parametrize("cam", [*TRANSCRIPTIONS, formulas.eigengradcam], ids=lambda f: f.__name__)
def test_half_precision_is_reduced_in_float32_and_double_stays_double(cam: Cam) -> None:
    features = torch.rand(1, 64, 2, 2, dtype=torch.bfloat16)
    gradients = torch.rand(1, 1, 64, 2, 2, dtype=torch.bfloat16)
    assert cam(features, gradients).dtype == torch.float32
    torch.testing.assert_close(cam(features, gradients), cam(features.float(), gradients.float()))
    assert cam(features.double(), gradients.double()).dtype == torch.float64


def test_long_sums_do_not_stick_in_half_precision() -> None:
    features = torch.full((1, 4096, 1, 2), 1.0, dtype=torch.bfloat16)
    assert (
        formulas.gradcam(features, torch.ones_like(features)[None]).eq(4096).all()
    )  # bfloat16 sticks at 256
