"""What is above the layer, compiled with the gradient and the maps: right, or not used."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import SmallNet
from tests.test_compiled import assert_close_to_peak, compiler
from torch import Tensor, nn

import camkit
from camkit.errors import TargetError
from camkit.native import compiled


@pytest.fixture(autouse=True)
def _compiles() -> None:
    if reason := compiler():
        pytest.skip(reason)


@pytest.fixture
def x(batch: Tensor) -> Tensor:
    """As many images as are explained as a whole on a CPU."""
    return batch[: compiled.ROWS_ON_CPU]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often the maps of fast mode were computed step by step."""
    taken: list[int] = []
    original = compiled.forward

    def forward(*arguments: Any) -> Any:
        taken.append(1)
        return original(*arguments)

    monkeypatch.setattr(compiled, "forward", forward)
    return taken


def test_what_is_served_as_a_whole(small_net: nn.Module, x: Tensor, steps: list[int]) -> None:
    for options in ({"targets": [4, 1]}, {"targets": None}, {"targets": 2, "reduction": "mean"}):
        quick = camkit.maps(small_net, x, layer="act", fast=True, **options)
        assert_close_to_peak(quick, camkit.maps(small_net, x, layer="act", **options))
        assert not quick.requires_grad
    assert not steps
    for options in ({"method": "eigengradcam"}, {"layer": ["act", "body"]}, {"targets": lambda y: y[:, 1]}):
        asked: dict[str, Any] = {"targets": 1, "layer": ["act"]} | options
        quick, plain = (camkit.maps_by(small_net, x, fast=fast, **asked) for fast in (True, False))
        for key, wanted in plain.items():
            assert_close_to_peak(quick[key], wanted)
    assert_close_to_peak(
        camkit.class_maps(small_net, x, layer="act", fast=True),
        camkit.class_maps(small_net, x, layer="act"),
    )
    assert len(steps) == 4


def test_weights_of_the_head_that_change(small_net: Any, x: Tensor, steps: list[int]) -> None:
    for _ in range(2):
        quick = camkit.maps(small_net, x, 1, layer="act", fast=True)
        assert_close_to_peak(quick, camkit.maps(small_net, x, 1, layer="act"))
        small_net.fc.weight.data[1] *= torch.linspace(-1, 1, 8)
    assert not steps


def test_nan_and_classes_that_do_not_exist(small_net: nn.Module, x: Tensor, steps: list[int]) -> None:
    strange = x.clone()
    strange[1, 0, 3, 3] = math.nan
    for targets in ([1, 1], None):
        maps = camkit.maps(small_net, strange, targets, layer="act", fast=True)
        assert maps.flatten(1).isnan().any(1).tolist() == [False, True]
    for wrong in ([0, 5], [0, -1]):
        with pytest.raises(TargetError, match="there is no class"):
            camkit.maps(small_net, x, wrong, layer="act", fast=True)
    assert not steps


def test_of_equal_scores_the_first_is_explained(small_net: Any, x: Tensor, steps: list[int]) -> None:
    with torch.no_grad():  # classes 1 and 3 are the same, and the highest
        small_net.fc.weight[3] = small_net.fc.weight[1]
        small_net.fc.bias[:] = torch.tensor([0.0, 9.0, 0.0, 9.0, 0.0])
    quick = camkit.maps(small_net, x, layer="act", fast=True)
    assert_close_to_peak(quick, camkit.maps(small_net, x, 1, layer="act"))
    assert not steps


class Ending(nn.Module):
    """The scores of `SmallNet`, and what a function makes of them."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.end = SmallNet(), Function(function)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.end(self.net(x))
        return scores


class Function(nn.Module):
    """A function as a part of a network, into which tracing does not look."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def decided(scores: Tensor) -> Tensor:
    return scores * 2 if scores[0, 0] > scores[0, 1] else -scores


def selected(scores: Tensor) -> Tensor:
    return scores * (scores[scores > 0].numel() + 1)


def drawn(scores: Tensor) -> Tensor:
    return nn.functional.dropout(scores, 1e-12, training=True)


def through_numpy(scores: Tensor) -> Tensor:
    return scores * float(scores.detach().numpy().sum())


@pytest.mark.parametrize("function", [decided, selected, drawn, through_numpy])
def test_heads_that_are_run_step_by_step(
    function: Callable[[Tensor], Tensor], x: Tensor, steps: list[int]
) -> None:
    model = Ending(function).eval()
    for scale in (1, -1, 3):
        quick = camkit.maps(model, x * scale, [1, 0], layer="net.act", fast=True)
        assert_close_to_peak(quick, camkit.maps(model, x * scale, [1, 0], layer="net.act"))
    assert len(steps) == 3


def test_a_large_head_is_not_compiled_on_a_cpu(
    small_net: nn.Module, x: Tensor, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "STEPS", 10)
    quick = camkit.maps(small_net, x, 1, layer="act", fast=True)
    assert_close_to_peak(quick, camkit.maps(small_net, x, 1, layer="act"))
    assert steps


def test_what_is_compiled_is_compared_with_its_steps(
    small_net: nn.Module, x: Tensor, steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(graph: Any, examples: Any, **options: Any) -> Any:
        code = right(graph, examples, **options)
        if options:  # the body
            return code
        return lambda *inputs: [values * 1.1 for values in code(*inputs)]

    right = compiled.Code
    monkeypatch.setattr(compiled, "Code", wrong)
    quick = camkit.maps(small_net, x, 1, layer="act", fast=True)
    assert_close_to_peak(quick, camkit.maps(small_net, x, 1, layer="act"))
    assert steps


def test_it_goes_with_the_model(x: Tensor, steps: list[int]) -> None:
    model: Any = SmallNet().eval()
    camkit.maps(model, x, 1, layer="act", fast=True)
    assert not steps
    parameters = [weakref.ref(parameter) for parameter in model.parameters()]
    del model
    gc.collect()
    gc.collect()
    assert not any(parameter() is not None for parameter in parameters)
