"""`maps` and `class_maps`: what they take and what they refuse."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import camkit
from camkit.contracts.explainer import Explainer, Query, Sweep
from camkit.core.class_names import class_index
from camkit.core.run_explainer import run
from camkit.core.targets import class_selector, target_selector
from camkit.errors import (
    CamkitWarning,
    LayerError,
    ModelError,
    OptionError,
    PluginNotFound,
    TargetError,
    UsageError,
)
from camkit.native.method_table import AT_LAYER, BLACK_BOX, INPUT_GRADIENTS


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
        (5, "class 5: .*5 classes, 0 to 4"),
        (-1, "class -1"),
        ([0, 1, 7], "class 7"),
        ([0, 1], r"\[2\] for 3 inputs"),  # a peer leaves the third map blank
        ([[0], [1], [2]], r"\[3, 1\]"),
        ([], r"int|\[0\] for 3 inputs"),
        (1.0, "not 1.0"),
        ([0.0, 1.0, 2.0], "float"),
        ("tabby", "not 'tabby'"),
        (True, "not True"),
        (torch.tensor([True, False, True]), "torch.bool"),
        (["a", "b", "c"], "targets"),
        ({}, "targets"),
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
        (torch.zeros(0, 3, 16, 16), r"\[0, 3, 16, 16\]"),
        (np.zeros((1, 3, 16, 16)), "ndarray"),
    ],
)
def test_wrong_inputs(small_net: nn.Module, inputs: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        camkit.maps(small_net, inputs, 0, layer="body")


def test_wrong_names(small_net: nn.Module, batch: Tensor) -> None:
    with pytest.raises(PluginNotFound, match=r"'nativ'.*'native'"):
        camkit.maps(small_net, batch, backend="nativ")
    with pytest.raises(UsageError, match=r"'grad-cam'.*'gradcam'"):
        camkit.maps(small_net, batch, method="grad-cam")
    with pytest.raises(OptionError, match=r"'reducton'.*'reduction'"):
        camkit.maps(small_net, batch, reducton="mean")
    with pytest.raises(OptionError, match=r"sum\|mean.*'max'"):
        camkit.maps(small_net, batch, reduction="max")
    with pytest.raises(LayerError, match=r"'boddy'.*'body'"):
        camkit.maps(small_net, batch, layer="boddy")
    with pytest.raises(UsageError, match=r"'body\.\*'.*several"):
        camkit.maps(small_net, batch, layer="body.*")
    with pytest.raises(ModelError, match="not function"):
        camkit.maps(lambda x: x, batch)  # type: ignore[arg-type, call-overload]
    with pytest.raises(UsageError, match="'int8'"):
        camkit.maps(small_net, batch, dtype="int8")
    with pytest.raises(UsageError, match="'gpu'"):
        camkit.maps(small_net, batch, device="gpu")


def test_lists_give_a_dict_keyed_by_method_and_full_name(small_net: nn.Module, batch: Tensor) -> None:
    many = camkit.maps_by(small_net, batch, 0, layer=["body.-1", small_net.stem], method=["gradcam"])
    assert list(many) == [("gradcam", "body.1"), ("gradcam", "stem")]
    for call in (camkit.maps, camkit.class_maps):  # as 0.1 took them
        with pytest.warns(DeprecationWarning, match=r"camkit\.maps_by"):
            old: Any = call(small_net, batch, layer=["body"])
        assert list(old) == [("gradcam", "body")]


# --- other targets --------------------------------------------------------------------------------

METHODS = [
    m for m in (*AT_LAYER, *BLACK_BOX, *INPUT_GRADIENTS) if m != "finercam"
]  # which has nothing to compare with
FEW = {"masks": 200, "cells": 3, "tolerance": 0, "steps": 8, "samples": 8}  # of methods of many forwards


class Returns(nn.Module):
    """What `wrap` makes of the scores of a model."""

    def __init__(self, model: nn.Module, wrap: Any) -> None:
        super().__init__()
        self.model, self.wrap = model, wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.model(x))


@pytest.mark.filterwarnings("ignore:.*is inexact")
@pytest.mark.parametrize("method", METHODS)
def test_a_function_that_picks_a_score_is_that_target(
    method: str, small_net: nn.Module, batch: Tensor
) -> None:
    expected = camkit.maps(small_net, batch, 3, layer="body", method=method, **FEW)
    maps = camkit.maps(small_net, batch, lambda scores: scores[:, 3], layer="body", method=method, **FEW)
    torch.testing.assert_close(maps, expected)


REFERENCE = torch.tensor([[1.0, -2.0, 0.5, 0.0, 3.0]])


@pytest.mark.parametrize(
    "target",
    [
        lambda scores: scores[:, 1] - scores[:, 4],  # a difference of two classes
        lambda scores: scores[:, [0, 2]].sum(1),  # several labels at once
        lambda scores: torch.cosine_similarity(scores, REFERENCE),  # likeness to an embedding
        lambda scores: -((scores[:, 0] - 2.0) ** 2),  # a regression: near to a value
    ],
)
def test_target_functions_are_differentiated(target: Any, small_net: nn.Module, batch: Tensor) -> None:
    maps = camkit.maps(small_net, batch, target, layer="body")
    features = small_net.body(small_net.stem(batch)).detach().requires_grad_()
    scores = small_net.fc(small_net.pool(small_net.act(features)).flatten(1))
    (gradient,) = torch.autograd.grad(target(scores).sum(), features)
    expected = (gradient.mean((2, 3), keepdim=True) * features).sum(1).detach()
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("backend", ["captum", "pytorch-grad-cam", "torchcam"])
def test_target_functions_and_output_work_with_every_backend(
    backend: str, small_net: nn.Module, batch: Tensor
) -> None:
    pytest.importorskip(f"camkit_{backend.replace('-', '_')}")
    model = Returns(small_net, lambda scores: {"scores": scores}).eval()
    options: dict[str, Any] = {"layer": "model.body", "output": "scores"}
    expected = camkit.maps(model, batch, lambda s: s[:, 1] - s[:, 4], **options)
    maps = camkit.maps(model, batch, lambda s: s[:, 1] - s[:, 4], backend=backend, **options)
    torch.testing.assert_close(maps, expected)


def test_a_target_function_of_a_list_of_layers(small_net: nn.Module, batch: Tensor) -> None:
    many = camkit.maps_by(small_net, batch, lambda s: s[:, 1], layer=["stem", "body"], method=["gradcam"])
    assert list(many) == [("gradcam", "stem"), ("gradcam", "body")]
    assert not small_net.training and all(not m._forward_hooks for m in small_net.modules())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda scores: scores, r"\[3, 5\] for .*\[3, 5\]"),
        (lambda scores: scores.sum(), r"single number for .*\[3, 5\]"),
        (lambda scores: scores[0], r"\[5\] for .*\[3, 5\]"),
        (lambda scores: 1.0, r"float for .*\[B\]"),
    ],
)
def test_wrong_target_functions(small_net: nn.Module, batch: Tensor, target: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        camkit.maps(small_net, batch, target, layer="body")


def test_layers_have_the_names_that_the_user_gave(small_net: nn.Module, batch: Tensor) -> None:
    with pytest.raises(LayerError, match=r"'fc' .*not a feature map"):
        camkit.maps_by(small_net, batch, lambda scores: scores[:, 0], layer=["body", "fc"])


@pytest.mark.parametrize(("asked", "message"), [({"layer": []}, "no layer"), ({"method": []}, "no method")])
def test_nothing_is_no_question(small_net: nn.Module, batch: Tensor, asked: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        camkit.maps(small_net, batch, 1, **({"layer": "body"} | asked))


def test_the_module_of_a_loaded_model_is_wanted(batch: Tensor) -> None:
    pets = camkit.load_model("pets", device="cpu")
    with pytest.raises(ModelError, match=r"LoadedModel.*\.module"):
        camkit.maps(pets, batch)  # type: ignore[call-overload]


def test_a_target_function_without_a_gradient(small_net: nn.Module, batch: Tensor) -> None:
    with pytest.raises(LayerError, match="depend on the target layer"):
        camkit.maps(small_net, batch, lambda scores: scores.argmax(1).float(), layer="body")


# --- other outputs and inputs ---------------------------------------------------------------------


class Pair(NamedTuple):
    scores: Tensor
    extra: str


@pytest.mark.parametrize(
    ("wrap", "output"),
    [
        (lambda s: (None, s), 1),
        (lambda s: [s], 0),
        (lambda s: (None, s), -1),
        (lambda s: {"logits": s, "loss": None}, "logits"),
        (lambda s: Pair(s, ""), "scores"),
        (lambda s: {"deep": [s]}, lambda returned: returned["deep"][0]),
    ],
)
def test_output_takes_the_scores_out(wrap: Any, output: Any, small_net: nn.Module, batch: Tensor) -> None:
    model = Returns(small_net, wrap).eval()
    for method in ("gradcam", "scorecam"):
        expected = camkit.class_maps(small_net, batch, layer="body", method=method)
        every = camkit.class_maps(model, batch, layer="model.body", method=method, output=output)
        torch.testing.assert_close(every, expected)
    predicted = camkit.maps(model, batch, layer=small_net.body, output=output)
    torch.testing.assert_close(predicted, camkit.maps(small_net, batch, layer="body"))


@pytest.mark.parametrize(
    ("wrap", "output", "message"),
    [
        (lambda s: (s, s), None, r"tuple of 2.*output="),
        (lambda s: {"a": s, "b": s}, None, r"'a', 'b'.*output="),
        (lambda s: (s, s), 2, r"output=2 .*tuple of 2"),
        (lambda s: {"a": s}, "b", r"output='b' .*'a'"),
        (lambda s: s, 0, r"output=0 .*\[3, 5\]"),
        (lambda s: (s, s), "scores", r"output='scores' "),
    ],
)
def test_wrong_outputs(wrap: Any, output: Any, message: str, small_net: nn.Module, batch: Tensor) -> None:
    with pytest.raises(ModelError, match=message):
        camkit.maps(Returns(small_net, wrap).eval(), batch, 0, layer="model.body", output=output)


class Two(nn.Module):
    """An image and a few numbers about it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh())
        self.fc = nn.Linear(6 + 2, 4)

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.fc(torch.cat([self.body(image).mean((2, 3)) ** 2, numbers.float()], 1)) ** 2


@pytest.mark.filterwarnings("ignore:.*is inexact")
@pytest.mark.parametrize("method", [*AT_LAYER, *BLACK_BOX, *INPUT_GRADIENTS])
def test_several_inputs(method: str, batch: Tensor) -> None:
    """Each image goes with its numbers: as if they were a part of the model."""
    model, numbers = Two().eval(), torch.tensor([[0, 1], [2, 3], [4, 5]])

    class Fixed(nn.Module):
        def __init__(self, row: Tensor) -> None:
            super().__init__()
            self.model, self.row = model, row

        def forward(self, image: Tensor) -> Tensor:
            return self.model(image, self.row.expand(len(image), -1))

    maps = camkit.maps(model, (batch, numbers), [0, 1, 2], method=method, **FEW)
    for i in range(3):
        alone = camkit.maps(
            Fixed(numbers[i]).eval(), batch[i : i + 1], i, layer="model.body", method=method, **FEW
        )
        torch.testing.assert_close(maps[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def test_several_inputs_in_another_type(batch: Tensor) -> None:
    model, numbers = Two().eval(), torch.tensor([[0, 1], [2, 3], [4, 5]])
    model.fc.register_forward_pre_hook(lambda m, inputs: inputs[0].to(m.weight.dtype))
    expected = camkit.maps(model, [batch, numbers], 1, layer="body")
    maps = camkit.maps(model, [batch, numbers], 1, layer="body", dtype="float64")
    assert maps.dtype == torch.float64
    torch.testing.assert_close(maps.float(), expected)


@pytest.mark.parametrize(
    ("extra", "message"),
    [(torch.zeros(2, 2), r"\[3, ...\].*\[2, 2\]"), (1.0, "float")],
)
def test_wrong_further_inputs(extra: Any, message: str, batch: Tensor) -> None:
    with pytest.raises(UsageError, match=message):
        camkit.maps(Two().eval(), (batch, extra), 0, layer="body")


def network(dimensions: int) -> nn.Module:
    convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    body = nn.Sequential(convolution(2, 4, 3, stride=2, padding=1), nn.ReLU())
    return nn.Sequential(
        body, convolution(4, 6, 3, padding=1), nn.Tanh(), pool(1), nn.Flatten(), nn.Linear(6, 3)
    )


@pytest.mark.parametrize("size", [(16,), (8, 12), (8, 8, 12)], ids=["signals", "images", "volumes"])
def test_signals_and_volumes(size: tuple[int, ...]) -> None:
    model, x = network(len(size)).eval(), torch.randn(2, 2, *size)
    many = camkit.maps_by(model, x, 1, layer=["0", "auto"], method=list(AT_LAYER))
    assert {layer for _, layer in many} == {"0", "2"}
    assert {maps.shape for maps in many.values()} == {(2, *(side // 2 for side in size))}
    assert all(maps.isfinite().all() for maps in many.values())
    every = camkit.class_maps(model, x, layer="0")
    assert every.shape == (2, 3, *(side // 2 for side in size))
    features = model[0](x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[1:](features)[:, 1].sum(), features)
    space = tuple(range(2, 2 + len(size)))
    expected = (gradient.mean(space, keepdim=True) * features).sum(1).detach()
    torch.testing.assert_close(many["gradcam", "0"], expected)
    torch.testing.assert_close(every[:, 1], expected)


def test_explainers_are_not_given_what_they_do_not_take(small_net: nn.Module, batch: Tensor) -> None:
    def plain(inputs: Tensor, **more: Any) -> Any:
        return run(
            Plain({}), "plain", small_net, inputs, ["body"], ["plain"], target_selector(0, 3), **more
        )

    with pytest.raises(UsageError, match=r"plain .*\[B, C, H, W\], not \[3, 3, 16\]"):
        plain(batch[..., 0])
    with pytest.raises(UsageError, match=r"plain .*one input, not .*2"):
        plain(batch, extras=[torch.zeros(3)])


# --- layers that carry nothing --------------------------------------------------------------------


def vit() -> nn.Module:
    return timm.create_model("test_vit", img_size=(32, 48), num_classes=4).eval()


def test_a_layer_without_gradients_is_told_with_a_better_one() -> None:
    """Behind the last attention only the class token goes on."""
    model, x = vit(), torch.randn(2, 3, 32, 48)
    told = r"zero everywhere .*'blocks.5'.*'blocks.5.norm1'"
    with pytest.warns(CamkitWarning, match=told):
        maps = camkit.maps(model, x, 0, layer="blocks.-1")
    assert not maps.any()
    assert camkit.maps(model, x, 0, layer="blocks.5.norm1").any()  # and is silent


def test_a_model_without_gradients_is_told_without_a_better_layer(batch: Tensor) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    nn.init.zeros_(model[3].weight)
    with pytest.warns(CamkitWarning, match="no gradient arrives$"):
        camkit.maps(model, batch, 0)
    assert camkit.maps(model, batch, 0, method="activations").any()


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
    assert result.maps["plain", "body"][:, :, 0, 0].tolist() == [[0.0, 3.0]] * 3
    assert small_net.training


def test_a_type_that_the_explainer_does_not_declare(small_net: nn.Module, batch: Tensor) -> None:
    with pytest.raises(UsageError, match="plain works in float32, not in float64"):
        run(Plain({}), "plain", small_net, batch.double(), ["body"], ["plain"], target_selector(0, 3))


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
        ("crane", "'crane'.*2 or 3"),
        ("tabbi", "'tabbi': it has tabby, golden"),
        ("6", "0 to 5"),
        ("99", "0 to 5"),
        ("-1", "class '-1'"),
        ("", "class ''"),
    ],
)
def test_wrong_class_names(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message):
        class_index(name, CLASSES)


def test_class_specifications() -> None:
    scores = torch.tensor([[0.0, 5.0, 1.0, 2.0, 3.0, 4.0]])
    assert class_selector(["pred", "top:3", "tabby", 2], CLASSES)(scores).tolist() == [[1, 1, 5, 4, 0, 2]]
    assert class_selector(["all"], CLASSES)(scores).tolist() == [[0, 1, 2, 3, 4, 5]]
    assert class_selector(["top:99"], CLASSES)(scores).tolist() == [[1, 5, 4, 3, 2, 0]]
    for wrong in ("top:0", "top:", "top:x", "top:-1", "top:1.5"):
        with pytest.raises(TargetError, match="positive number"):
            class_selector([wrong], CLASSES)


class Stem(nn.Module):
    """Convolutions and a batch norm below tokens, as hybrid transformers have them, or above them."""

    def __init__(self, below: bool) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm2d(8)
        self.mix, self.last, self.head = nn.Linear(8, 8), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.below = below

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        x = self.norm(self.conv(x)) if self.below else self.conv(x)
        tokens = torch.tanh(self.mix(x.flatten(2).transpose(1, 2)))
        if self.below:
            return self.head(tokens.mean(1))
        x = self.norm(tokens.transpose(1, 2).reshape(x.shape))
        return self.head(torch.tanh(self.last(x)).mean((2, 3)))


@pytest.mark.parametrize("below", [True, False], ids=["below", "above"])
@pytest.mark.parametrize("method", ["gradcam", "hirescam", "smoothgrad"])
def test_one_image_with_a_batch_norm_beside_tokens_has_the_map_of_a_batch(method: str, below: bool) -> None:
    """Torch reads gradients or inputs of a batch norm in the wrong order where one image has tokens."""
    torch.manual_seed(0)
    net = Stem(below).eval()
    nn.init.uniform_(net.norm.weight, 0.5, 2)
    x = torch.randn(2, 3, 16, 16)
    about = {"layer": "conv", "method": method, "samples": 4}
    together = camkit.maps(net, x, 1, **about)
    alone = torch.cat([camkit.maps(net, x[i : i + 1], 1, **about, batch_size=1) for i in range(2)])
    assert (alone - together).abs().max() <= 1e-5 * together.abs().max()
    every = camkit.class_maps(net, x[:1], layer="conv")
    assert (every - camkit.class_maps(net, x, layer="conv")[:1]).abs().max() <= 1e-5 * every.abs().max()


def test_a_query_has_its_targets_where_its_inputs_are(small_net: nn.Module) -> None:
    """Callers leave them on the host, and `gather` on an accelerator refuses these."""
    inputs = torch.empty(2, 3, 16, 16, device="meta")
    sweep = Sweep(small_net, inputs, ("body",), ("gradcam",), lambda scores: scores)
    (first, _) = sweep.queries("gradcam", "body", torch.tensor([[0, 1], [3, 2]]))
    assert first.targets.device == inputs.device and first.targets.shape == (2,)
