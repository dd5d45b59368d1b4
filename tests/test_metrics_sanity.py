"""Random weights change a map that depends on the model, and nothing of them is left afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import camkit
from camkit.metrics.sanity import cascading, independent, layers_with_weights, random_logit

Scene = tuple[nn.Sequential, Tensor, Tensor, Tensor]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


@pytest.fixture
def scene() -> Scene:
    model, inputs, targets = network(), torch.randn(6, 3, 12, 12), torch.arange(6) % 5
    return model, inputs, gradcam(model, inputs, targets), targets


def gradcam(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    maps = camkit.maps(model, inputs, targets, layer="4")
    assert isinstance(maps, Tensor)
    return maps


def test_an_explainer_that_looks_at_the_model_changes(scene: Scene) -> None:
    model, inputs, maps, targets = scene
    names, curve = cascading(model, lambda x, t: gradcam(model, x, t), inputs, maps, targets)
    assert names == ("7", "3", "1", "0") and curve.shape == (6, 4)
    assert float(curve[:, -1].mean()) < 0.5 and (curve >= 0).all()
    names, curve = independent(model, lambda x, t: gradcam(model, x, t), inputs, maps, targets)
    assert names == ("7", "3", "1", "0") and float(curve[:, 0].mean()) < 0.9


def test_one_that_does_not_stays_the_same(scene: Scene) -> None:
    model, inputs, maps, targets = scene
    for test in (cascading, independent):
        _, curve = test(model, lambda x, t: maps, inputs, maps, targets)
        assert torch.allclose(curve, torch.ones_like(curve))


def test_cascading_adds_up_and_independent_does_not(scene: Scene) -> None:
    """Which layers are changed when the explainer is asked."""
    model, inputs, maps, targets = scene
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def changed(x: Tensor, t: Tensor) -> Tensor:
        now = model.state_dict()
        seen.append({name.split(".")[0] for name, old in before.items() if not torch.equal(now[name], old)})
        return maps

    seen: list[set[str]] = []
    cascading(model, changed, inputs, maps, targets)
    assert seen == [{"7"}, {"7", "3"}, {"7", "3", "1"}, {"7", "3", "1", "0"}]
    seen.clear()
    independent(model, changed, inputs, maps, targets)
    assert seen == [{"7"}, {"3"}, {"1"}, {"0"}]


def test_stages_are_spread_and_end_below(scene: Scene) -> None:
    model, inputs, maps, targets = scene
    assert layers_with_weights(model) == ["0", "1", "3", "7"]
    for stages, expected in ((1, ("0",)), (2, ("3", "0")), (9, ("7", "3", "1", "0"))):
        names, curve = cascading(model, lambda x, t: maps, inputs, maps, targets, stages=stages)
        assert names == expected and curve.shape == (6, len(expected))


@pytest.mark.parametrize("test", [cascading, independent])
@pytest.mark.parametrize("fails_at", [None, 1, 3])
def test_the_model_is_restored_to_the_bit(scene: Scene, test: object, fails_at: int | None) -> None:
    model, inputs, maps, targets = scene
    model[0].weight.data[0, 0, 0, 0] = torch.nan
    model[3].weight.requires_grad_(False)
    before = {name: (value.clone(), value.data_ptr()) for name, value in model.state_dict().items()}
    random, calls = torch.get_rng_state(), []

    def explain(x: Tensor, t: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == fails_at:
            raise KeyboardInterrupt
        return maps

    try:
        test(model, explain, inputs, maps, targets)  # type: ignore[operator]
        assert fails_at is None
    except KeyboardInterrupt:
        assert fails_at is not None
    for name, value in model.state_dict().items():
        old, place = before[name]
        assert value.numpy().tobytes() == old.numpy().tobytes() and value.data_ptr() == place
    assert not model[3].weight.requires_grad and torch.equal(random, torch.get_rng_state())


def test_the_seed_decides(scene: Scene) -> None:
    model, inputs, maps, targets = scene

    def curve(seed: int) -> Tensor:
        return cascading(model, lambda x, t: gradcam(model, x, t), inputs, maps, targets, seed=seed)[1]

    assert torch.equal(curve(1), curve(1)) and not torch.equal(curve(1), curve(2))


def test_another_class_gets_another_map(scene: Scene) -> None:
    model, inputs, maps, targets = scene
    asked = []

    def explain(x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return gradcam(model, x, t)

    similar = random_logit(model, explain, inputs, maps, targets)
    assert (asked[0] != targets).all() and (asked[0] < 5).all() and float(similar.mean()) < 0.95
    assert torch.allclose(random_logit(model, lambda x, t: maps, inputs, maps, targets), torch.ones(6))
    one_class = nn.Sequential(nn.Flatten(), nn.LazyLinear(1))
    assert random_logit(one_class, explain, inputs, maps, targets).isnan().all() and len(asked) == 1


def test_a_map_that_says_nothing_is_not_compared(scene: Scene) -> None:
    model, inputs, maps, targets = scene
    maps[0], maps[1, 0, 0] = 0.0, torch.nan
    _, curve = cascading(model, lambda x, t: maps, inputs, maps, targets)
    assert curve.isnan().all(1).tolist() == [True, True] + [False] * 4
    _, curve = cascading(model, lambda x, t: torch.zeros_like(maps), inputs, maps, targets)
    assert curve.isnan().all()


def test_a_model_without_weights_has_no_curve() -> None:
    model, maps = nn.Sequential(nn.Flatten()), torch.rand(2, 3, 3)
    names, curve = cascading(model, lambda x, t: maps, torch.rand(2, 3, 4, 4), maps, torch.zeros(2).long())
    assert names == () and curve.shape == (2, 0)
