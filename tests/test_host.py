"""`maps` and `class_maps`: what they take and what they refuse."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import camkit
from camkit.api import Explainer, Query
from camkit.errors import LayerError, ModelError, OptionError, PluginNotFound, TargetError, UsageError
from camkit.host import run
from camkit.targets import class_chooser, class_index, given


@pytest.mark.parametrize("same", [2, [2, 2, 2], (2, 2, 2), np.array([2, 2, 2]), np.int64(2)])
def test_targets_in_every_form(small_net: nn.Module, batch: Tensor, same: Any) -> None:
    expected = camkit.maps(small_net, batch, torch.tensor([2, 2, 2]), layer="body")
    assert torch.equal(camkit.maps(small_net, batch, same, layer="body"), expected)


def test_no_target_is_the_predicted_class(small_net: nn.Module, batch: Tensor) -> None:
    predicted = small_net(batch).argmax(1)
    expected = camkit.maps(small_net, batch, predicted, layer="body")
    assert torch.equal(camkit.maps(small_net, batch, layer="body"), expected)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (5, "no class 5: the model has 5 classes, 0 to 4"),
        (-1, "no class -1"),
        ([0, 1, 7], "no class 7"),
        ([0, 1], r"\[2\] targets for 3 inputs"),  # a peer leaves the third map blank
        ([[0], [1], [2]], r"\[3, 1\] targets"),
        ([], "must be an int|targets for 3 inputs"),
        (1.0, "not 1.0"),
        ([0.0, 1.0, 2.0], "float"),
        ("tabby", "not 'tabby'"),
        (True, "not True"),
        (torch.tensor([True, False, True]), "torch.bool"),
        (["a", "b", "c"], "targets must be"),
        ({}, "targets must be"),
    ],
)
def test_wrong_targets(small_net: nn.Module, batch: Tensor, targets: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        camkit.maps(small_net, batch, targets, layer="body")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (torch.zeros(3, 16, 16), r"inputs\[None\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(0, 3, 16, 16), r"not \[0, 3, 16, 16\]"),
        (np.zeros((1, 3, 16, 16)), "ndarray"),
    ],
)
def test_wrong_inputs(small_net: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        camkit.maps(small_net, inputs, 0, layer="body")


def test_wrong_names(small_net: nn.Module, batch: Tensor) -> None:
    with pytest.raises(PluginNotFound, match="did you mean 'native'"):
        camkit.maps(small_net, batch, backend="nativ")
    with pytest.raises(UsageError, match="no method 'grad-cam'; did you mean 'gradcam'"):
        camkit.maps(small_net, batch, method="grad-cam")
    with pytest.raises(OptionError, match="no option 'reducton'; did you mean 'reduction'"):
        camkit.maps(small_net, batch, reducton="mean")
    with pytest.raises(OptionError, match=r"must be sum\|mean, not 'max'"):
        camkit.maps(small_net, batch, reduction="max")
    with pytest.raises(LayerError, match="did you mean 'body'"):
        camkit.maps(small_net, batch, layer="boddy")
    with pytest.raises(UsageError, match="several layers"):
        camkit.maps(small_net, batch, layer="body.*")
    with pytest.raises(ModelError, match="not function"):
        camkit.maps(lambda x: x, batch)  # type: ignore[arg-type, call-overload]
    with pytest.raises(ModelError, match="no type 'int8'"):
        camkit.maps(small_net, batch, dtype="int8")
    with pytest.raises(ModelError, match="no device 'gpu'"):
        camkit.maps(small_net, batch, device="gpu")


def test_lists_give_a_dict_keyed_by_method_and_full_name(small_net: nn.Module, batch: Tensor) -> None:
    many = camkit.maps(small_net, batch, 0, layer=["body.-1", small_net.stem], method=["gradcam"])
    assert isinstance(many, dict)
    assert list(many) == [("gradcam", "body.1"), ("gradcam", "stem")]
    every = camkit.class_maps(small_net, batch, layer=["body"])
    assert isinstance(every, dict) and every["gradcam", "body"].shape == (3, 5, 8, 6)


# --- explainers with the single method that a plugin must have -----------------------------------


class Plain(Explainer):
    """Returns the target as a constant map, so that one sees what the host handed over."""

    summary = "for the test"
    methods = ("plain",)

    def maps(self, query: Query) -> Tensor:
        assert query.targets.dtype == torch.int64 and query.targets.shape == (len(query.inputs),)
        assert not any(m.training for m in query.module.modules())
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        assert query.layer_module is query.module.get_submodule(query.layer)
        return query.targets.float()[:, None, None].expand(-1, 2, 2)


def test_the_default_sweep_asks_for_one_map_after_the_other(small_net: nn.Module, batch: Tensor) -> None:
    small_net.train()
    with torch.inference_mode():
        result = run(
            Plain({}),
            "plain",
            small_net,
            batch * 1,
            ["body"],
            ["plain"],
            lambda s: torch.tensor([[0, 3]] * 3),
        )
    assert result["plain", "body"][:, :, 0, 0].tolist() == [[0.0, 3.0]] * 3
    assert small_net.training


def test_a_type_that_the_explainer_does_not_declare(small_net: nn.Module, batch: Tensor) -> None:
    with pytest.raises(UsageError, match="plain works in float32, not in float64"):
        run(Plain({}), "plain", small_net, batch.double(), ["body"], ["plain"], given(0, 3))


# --- classes by name ------------------------------------------------------------------------------

CLASSES = ["tabby", "golden retriever", "crane", "crane", "7", "Maine_Coon"]


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tabby", 0),
        ("TABBY", 0),
        ("golden_retriever", 1),
        ("Golden-Retriever", 1),
        ("maine coon", 5),
        ("3", 3),
        ("7", 4),  # a class of that very name comes before the index
    ],
)
def test_class_names(name: str, index: int) -> None:
    assert class_index(name, CLASSES) == index


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("crane", "several classes are called 'crane': use the index 2 or 3"),
        ("tabbi", "did you mean 'tabby'"),
        ("6", "0 to 5"),
        ("99", "0 to 5"),
        ("-1", "no class '-1'"),
        ("", "no class ''"),
    ],
)
def test_wrong_class_names(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        class_index(name, CLASSES)


def test_class_specifications() -> None:
    scores = torch.tensor([[0.0, 5.0, 1.0, 2.0, 3.0, 4.0]])
    assert class_chooser(["pred", "top:3", "tabby", 2], CLASSES)(scores).tolist() == [[1, 1, 5, 4, 0, 2]]
    assert class_chooser(["all"], CLASSES)(scores).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert class_chooser(["top:99"], CLASSES)(scores).tolist() == [[1, 5, 4, 3, 2, 0]]
    for wrong in ("top:0", "top:", "top:x", "top:-1", "top:1.5"):
        with pytest.raises(TargetError, match="positive number"):
            class_chooser([wrong], CLASSES)
