"""Faithfulness: by hand, against torchcam and captum, and on networks that are blind to a region."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import lil_matrix
from scipy.sparse.linalg import spsolve
from torch import Tensor, nn

from camkit.metrics.faithfulness import (
    area,
    blurred,
    deletion,
    deletion_curve,
    gain_curve,
    insertion,
    insertion_curve,
    road,
    symmetric_relevance_gain,
)
from camkit.metrics.faithfulness_masks import average_drop, increase
from camkit.metrics.faithfulness_noise import infidelity, max_sensitivity
from camkit.metrics.imputation import impute
from camkit.metrics.map_tools import positions, resized

RANKED = [deletion, insertion, symmetric_relevance_gain, road]
MASKED = [average_drop, increase]


class Sum(nn.Module):
    """The target's score is the weighted sum of the first channel; the other class has none."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """Scores `[B, 2]`."""
        total = (x[:, 0] * self.weights).sum((1, 2))
        return torch.stack([total, torch.zeros_like(total)], dim=1)


def problem(count: int = 3, size: int = 12) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A network with weights here and there, images, its true contributions, and the target 0."""
    g = torch.Generator().manual_seed(3)
    weights = torch.rand(size, size, generator=g) * (torch.rand(size, size, generator=g) < 0.2)
    inputs = torch.rand(count, 3, size, size, generator=g)
    return Sum(weights), inputs, inputs[:, 0] * weights, torch.zeros(count, dtype=torch.int64)


# --- curves ---------------------------------------------------------------------------------------


def test_a_deletion_curve_by_hand() -> None:
    """Contributions 3, 2, 1, 0 leave in the order that the map says."""
    f, x = Sum(torch.ones(2, 2)), torch.tensor([[[[3.0, 2.0], [1.0, 0.0]]]])
    targets, map = torch.tensor([0]), torch.tensor([[[8.0, 4.0], [2.0, 1.0]]])
    most = deletion_curve(f, x, map, targets, steps=4, logits=True)
    least = deletion_curve(f, x, map, targets, steps=4, logits=True, first="least")
    assert most.tolist() == [[6, 3, 1, 0, 0]] and least.tolist() == [[6, 6, 5, 3, 0]]
    assert area(most).tolist() == [(3 + 3 + 1 + 0 + 0 - 0) / 4]
    gain = symmetric_relevance_gain(f, x, map, targets, steps=4, logits=True)
    assert gain.tolist() == [17 / 4 - 7 / 4]
    blank = insertion_curve(f, x, map, targets, steps=4, logits=True, baseline=torch.zeros_like(x))
    assert blank.tolist() == [[0, 3, 5, 6, 6]]
    probability = deletion_curve(f, x, map, targets, steps=1)
    assert probability.tolist() == [pytest.approx([torch.tensor(6.0).sigmoid().item(), 0.5])]


def test_equal_pixels_go_in_reading_order_and_both_ends_meet() -> None:
    assert positions(torch.tensor([[[1.0, 5.0], [1.0, 1.0]]])).tolist() == [[1, 0, 2, 3]]
    f, x, _, targets = problem(1)
    mostly_zero = torch.zeros(1, 12, 12)
    mostly_zero[0, 0, 0] = 1.0
    forward = deletion_curve(f, x, mostly_zero, targets, steps=6)
    backward = insertion_curve(f, x, mostly_zero, targets, steps=6, baseline=torch.zeros_like(x))
    assert not torch.allclose(forward[:, 1], forward[:, -1])  # one step does not remove all that is zero
    assert torch.equal(forward[:, [0, -1]], backward[:, [-1, 0]])


@pytest.mark.parametrize("metric", [deletion, insertion, symmetric_relevance_gain])
def test_the_true_contributions_beat_all_else(metric: Callable[..., Tensor]) -> None:
    f, x, oracle, targets = problem()
    sign = -1 if metric is deletion else 1
    settings: dict[str, Any] = {"baseline": torch.zeros_like(x), "logits": True}
    best = sign * metric(f, x, oracle, targets, **settings)
    for other in (-oracle, torch.rand(3, 12, 12), oracle.flip(1)):
        assert (best > sign * metric(f, x, other, targets, **settings)).all()


def test_the_gain_of_a_random_map_is_nothing() -> None:
    f, x, oracle, targets = problem(1)
    random = torch.rand(200, 12, 12)
    copies = x.expand(200, -1, -1, -1)
    gains = symmetric_relevance_gain(f, copies, random, targets.expand(200), steps=6, logits=True)
    best = symmetric_relevance_gain(f, x, oracle, targets, steps=6, logits=True)
    assert abs(float(gains.mean())) < 0.03 * float(best) and float(gains.max()) < float(best)


def test_where_the_model_cannot_look_nothing_is_gained() -> None:
    """Impossible evidence: the score does not depend on the lower half."""
    weights = torch.ones(12, 12)
    weights[6:] = 0.0
    f, x, targets = Sum(weights), torch.zeros(2, 3, 12, 12), torch.zeros(2, dtype=torch.int64)
    x[:, :, 1:5, 3:7], x[:, :, 7:11, 3:7] = 1.0, 1.0  # the same square in both halves
    below, above = torch.rand(2, 12, 12), torch.rand(2, 12, 12)
    below[:, :6], above[:, 6:] = 0.0, 0.0
    # The half that matters goes last, so the first half of the curve is flat.
    curve = deletion_curve(f, x, below, targets, steps=4, logits=True)
    assert torch.allclose(curve[:, 0], curve[:, 2])
    for metric in (symmetric_relevance_gain, road):
        assert (metric(f, x, below, targets, logits=True) < -0.5).all()
        assert (metric(f, x, above, targets, logits=True) > 0.5).all()


def test_curves_do_not_depend_on_the_chunk_or_on_the_batch() -> None:
    f, x, oracle, targets = problem(5)
    for metric in (*RANKED, *MASKED, infidelity):
        together = metric(f, x, oracle, targets)
        assert torch.allclose(together, metric(f, x, oracle, targets, chunk=7), atol=1e-5)
        alone = torch.cat([metric(f, x[i : i + 1], oracle[i : i + 1], targets[:1]) for i in range(5)])
        assert torch.allclose(together, alone, atol=1e-5), metric.__name__


def test_the_model_never_sees_more_than_a_chunk() -> None:
    f, x, oracle, targets = problem(5)
    sizes = []

    def counted(inputs: Tensor) -> Tensor:
        sizes.append(len(inputs))
        assert not torch.is_grad_enabled()
        return f(inputs)

    deletion(counted, x, oracle, targets, steps=10, chunk=8)
    assert max(sizes) == 8 and sum(sizes) == 5 * 11


def test_the_blur_keeps_what_is_even_and_smooths_what_is_not() -> None:
    even = torch.full((1, 2, 9, 9), 3.0)
    assert torch.allclose(blurred(even), even)
    x = torch.randn(1, 1, 40, 40)
    assert blurred(x).std() < 0.3 * x.std() and float(blurred(x).mean()) == pytest.approx(
        float(x.mean()), abs=0.1
    )


# --- as others have it ----------------------------------------------------------------------------


class Fixed:
    """What torchcam's metrics ask of an extractor, with a map that is given."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *_: Any, **__: Any) -> list[Tensor]:
        """The map."""
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        """The one there is."""
        return cams[0]

    def _hooks_off(self) -> Any:
        return torch.no_grad()


def network(classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, classes)).eval()


def scene() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    return network(), 3 * torch.randn(3, 3, 12, 12), torch.rand(3, 4, 4), torch.tensor([0, 3, 1])


def test_deletion_and_insertion_as_torchcam_has_them() -> None:
    metrics = pytest.importorskip("torchcam.metrics")
    f, x, maps, targets = scene()
    kwargs = {"logits_fn": partial(torch.softmax, dim=-1), "steps": 12}
    theirs = metrics.DeletionInsertionMetric(Fixed(f, maps), **kwargs)
    theirs.update(x, targets.tolist())
    ours = deletion(f, x, maps, targets, steps=12)
    assert float(ours.mean()) == pytest.approx(theirs.summary()["deletion_auc"], abs=1e-6)
    theirs = metrics.DeletionInsertionMetric(Fixed(f, maps), baseline=blurred, **kwargs)
    theirs.update(x, targets.tolist())
    ours = insertion(f, x, maps, targets, steps=12)
    assert float(ours.mean()) == pytest.approx(theirs.summary()["insertion_auc"], abs=1e-6)


def test_drop_and_increase_as_torchcam_has_them() -> None:
    metrics = pytest.importorskip("torchcam.metrics")
    f, x, maps, targets = scene()
    maps = maps - 0.3
    low, high = maps.clamp(min=0).amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    normalised = (maps.clamp(min=0) - low) / (high - low)  # which torchcam's extractors do
    theirs = metrics.ClassificationMetric(Fixed(f, normalised), partial(torch.softmax, dim=-1))
    theirs.update(x, targets.tolist())
    summary = theirs.summary()
    assert float(average_drop(f, x, maps, targets).mean()) == pytest.approx(summary["avg_drop"], abs=1e-5)
    assert float(increase(f, x, maps, targets).mean()) == pytest.approx(summary["conf_increase"])
    assert summary["avg_drop"] > 0


def test_infidelity_as_captum_has_it() -> None:
    """Its inputs are the presence of each pixel, so that its perturbation is the square."""
    captum = pytest.importorskip("captum.metrics")
    f, x, maps, targets = scene()
    side, samples = 3, 64
    corners = torch.rand(samples, 2, generator=torch.Generator().manual_seed(5))
    squares = torch.zeros(samples, 1, 12, 12)
    for square, corner in zip(squares, corners, strict=True):
        top, left = (int(c * (12 - side + 1)) for c in corner)
        square[0, top : top + side, left : left + side] = 1.0

    def present(mask: Tensor, pixels: Tensor) -> Tensor:
        return f(pixels * mask).softmax(1)

    def remove(mask: Tensor) -> tuple[Tensor, Tensor]:
        square = squares.repeat(len(mask) // samples, 1, 1, 1)
        return square, mask - square

    expected = captum.infidelity(
        present,
        remove,
        torch.ones(3, 1, 12, 12),
        resized(maps, (12, 12))[:, None],
        additional_forward_args=(x,),
        target=targets,
        n_perturb_samples=samples,
        normalize=True,
    )
    ours = infidelity(f, x, maps, targets, samples=samples, side=side / 12, seed=5)
    told = resized(maps, (12, 12)).flatten(1) @ squares.flatten(1).T
    drops = present(torch.ones(3, 1, 12, 12), x).gather(1, targets[:, None]) - torch.stack(
        [present(1 - s, x).gather(1, targets[:, None])[:, 0] for s in squares], dim=1
    )
    suits = (told * drops).mean(1) > 0  # captum's factor may be negative: then a wrong map is a right one
    assert suits.any() and torch.allclose(ours[suits], expected[suits], rtol=1e-4)
    assert torch.allclose(ours[~suits], (drops**2).mean(1)[~suits], rtol=1e-4)


def test_a_linear_model_keeps_its_word() -> None:
    f, x, oracle, targets = problem()
    assert infidelity(f, x, oracle, targets, logits=True).abs().max() < 1e-9
    assert torch.allclose(
        infidelity(f, x, oracle, targets), infidelity(f, x, 50 * oracle, targets), rtol=1e-4
    )
    assert (infidelity(f, x, -oracle, targets) > 10 * infidelity(f, x, oracle, targets)).all()


def test_sensitivity_as_captum_has_it() -> None:
    captum = pytest.importorskip("captum.metrics")
    f, x, _, targets = scene()

    def explain(inputs: Tensor, target: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = inputs.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(f(leaf).gather(1, target[:, None]).sum(), leaf)
        return (gradient * leaf).sum(1).detach()

    noise = 0.02 * (2 * torch.rand(10, 3, 12, 12, generator=torch.Generator().manual_seed(4)) - 1)
    expected = captum.sensitivity_max(
        lambda inputs, target: (explain(inputs[0] if isinstance(inputs, tuple) else inputs, target),),
        x,
        lambda inputs: inputs + noise.repeat(3, 1, 1, 1),
        target=targets,
    )
    ours = max_sensitivity(explain, x, explain(x, targets), targets, seed=4)
    assert torch.allclose(ours, expected, rtol=1e-4) and (ours > 0).all()
    assert (
        max_sensitivity(lambda x, t: torch.ones(3, 2, 2), x, torch.ones(3, 2, 2), targets).tolist()
        == [0] * 3
    )


# --- ROAD -----------------------------------------------------------------------------------------


def solved_directly(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The paper's linear system, one equation after the other, and scipy's solver."""
    channels, height, width = image.shape
    missing = [(y, x) for y in range(height) for x in range(width) if not known[y, x]]
    number = {place: i for i, place in enumerate(missing)}
    matrix, right = lil_matrix((len(missing), len(missing))), np.zeros((len(missing), channels))
    for i, (y, x) in enumerate(missing):
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                weight = 1 / 12 if dy and dx else 1 / 6
                there = (y + dy, x + dx)
                if (dy, dx) == (0, 0) or not (0 <= there[0] < height and 0 <= there[1] < width):
                    continue
                matrix[i, i] += weight
                if there in number:
                    matrix[i, number[there]] -= weight
                else:
                    right[i] += weight * image[:, there[0], there[1]]
    filled = image.copy()
    for (y, x), values in zip(
        missing, spsolve(matrix.tocsc(), right).reshape(len(missing), -1), strict=True
    ):
        filled[:, y, x] = values
    return filled


@pytest.mark.parametrize("size", [(32, 32), (21, 45), (1, 9), (64, 50)])
@pytest.mark.parametrize("kind", ["random", "blobs", "one pixel left"])
def test_filling_in_equals_the_direct_solution(size: tuple[int, int], kind: str) -> None:
    g = torch.Generator().manual_seed(1)
    inputs = 2 * torch.randn(3, 2, *size, generator=g)
    coarse = torch.randn(3, 3, 3, generator=g)
    ranks = positions(torch.rand(3, *size, generator=g) if kind == "random" else resized(coarse, size))
    left = 1 if kind == "one pixel left" else round(0.3 * ranks.shape[1])
    known = ranks.view(3, *size) < left
    filled = impute(inputs, known)
    for found, image, mask in zip(filled, inputs, known, strict=True):
        expected = solved_directly(image.double().numpy(), mask.numpy())
        assert np.abs(found.numpy() - expected).max() < 1e-3
        assert torch.equal(found[:, mask], image[:, mask])


def test_a_large_hole_takes_no_more_steps_than_a_small_one() -> None:
    """Plain conjugate gradients take hundreds of them."""
    inputs = torch.randn(1, 1, 150, 150, generator=torch.Generator().manual_seed(1))
    known = torch.ones(1, 150, 150, dtype=torch.bool)
    known[0, 4:-4, 4:-4] = False
    few, many = (impute(inputs, known, tolerance=1e-7, limit=limit) for limit in (12, 500))
    assert float((few - many).abs().max()) < 1e-3


def test_an_image_of_which_nothing_is_known_cannot_be_filled_in() -> None:
    known = torch.tensor([False, True])[:, None, None].expand(2, 8, 8)
    filled = impute(torch.rand(2, 3, 8, 8), known)
    assert filled[0].isnan().all() and filled[1].isfinite().all()


def test_the_gain_is_the_difference_of_both_orders_and_asks_for_their_common_ends_once() -> None:
    f, x, _, targets = problem()
    maps, seen = torch.rand(3, 12, 12, generator=torch.Generator().manual_seed(0)), []

    def counted(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        return f(inputs)

    for steps in (1, 5):
        seen.clear()
        curve = gain_curve(counted, x, maps, targets, steps=steps, chunk=4)
        assert sum(seen) == 3 * 2 * steps
        least, most = (deletion_curve(f, x, maps, targets, first=o, steps=steps) for o in ("least", "most"))
        assert curve.numpy() == pytest.approx((least - most).numpy(), abs=1e-6)


def test_road_is_seeded_and_leaves_the_global_generator_alone() -> None:
    f, x, oracle, targets = problem()
    before = torch.get_rng_state()
    first = road(f, x, oracle, targets, seed=1)
    assert torch.equal(first, road(f, x, oracle, targets, seed=1))
    assert not torch.equal(first, road(f, x, oracle, targets, seed=2))
    assert torch.equal(before, torch.get_rng_state())
    silent = road(f, x, oracle, targets, noise=0.0, seed=1)
    assert torch.equal(silent, road(f, x, oracle, targets, noise=0.0, seed=2))


def test_road_as_pytorch_grad_cam_has_it() -> None:
    """Where no two pixels are equal; elsewhere its percentiles remove another number of them."""
    theirs = pytest.importorskip("pytorch_grad_cam.metrics.road")
    f, x, _, targets = scene()
    maps = torch.rand(3, 12, 12)
    scores = {}
    for name, kind in (("most", theirs.ROADMostRelevantFirst), ("least", theirs.ROADLeastRelevantFirst)):
        metric = kind(percentile=50)
        metric.perturbation.imputer.noise = 0.0
        pick = [lambda output, t=int(t): output.softmax(0)[t] for t in targets]
        scores[name] = metric(x, maps.numpy(), pick, f)
    ours = road(f, x, maps, targets, fractions=[0.5], noise=0.0)
    assert ours.numpy() == pytest.approx((scores["least"] - scores["most"]) / 2, abs=1e-4)


# --- what is not defined --------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*RANKED, *MASKED, infidelity])
def test_a_map_that_says_nothing_is_not_scored(metric: Callable[..., Tensor]) -> None:
    f, x, oracle, targets = problem(5)
    expected = metric(f, x, oracle, targets)
    maps = oracle.clone()
    maps[0], maps[1, 0, 0], maps[2, 0, 0] = 0.0, torch.nan, torch.inf
    maps[3] = 0.5 if metric is not infidelity else 0.0  # for which an even map has a meaning
    found = metric(f, x, maps, targets)
    assert found.isnan().tolist() == [True] * 4 + [False]
    assert torch.allclose(found[4], expected[4])


@pytest.mark.parametrize("metric", MASKED)
def test_a_mask_of_nothing_positive_is_not_scored(metric: Callable[..., Tensor]) -> None:
    f, x, oracle, targets = problem()
    assert metric(f, x, -oracle - 0.1, targets).isnan().all()


@pytest.mark.parametrize("metric", [*RANKED, *MASKED, infidelity])
def test_inputs_in_half_precision_keep_their_type_for_the_model(metric: Callable[..., Tensor]) -> None:
    f, x, oracle, targets = problem()

    def strict(inputs: Tensor) -> Tensor:
        assert inputs.dtype == torch.bfloat16
        return f(inputs.float()).to(torch.bfloat16)

    found = metric(strict, x.to(torch.bfloat16), oracle, targets)
    assert found.dtype == torch.float32
    assert torch.allclose(found, metric(f, x, oracle, targets), atol=0.05)
