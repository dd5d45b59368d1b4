"""Checks of explainers. Each docstring says what is demanded, and which real failure prompted it."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.explainer import Explainer, Query, Sweep
from camkit.core.call_types import Answer, Call
from camkit.core.run_explainer import run
from camkit.core.targets import target_selector
from camkit.errors import OptionError, TargetError
from camkit.registry import discovery, loading, options
from camkit.testing.kit import (
    CLASSES,
    LAYER,
    Subject,
    equal,
    hand_model,
    model_in_training,
    raises,
    reference_inputs,
    reference_model,
    untouched,
)


def answer_of(
    subject: Subject,
    method: str,
    targets: Any,
    model: nn.Module,
    inputs: Tensor,
    layer: str = LAYER,
    *,
    layout: str | None = None,
    explainer: Explainer | None = None,
) -> Answer:
    """What the host answers to a user's call, with a new instance unless `explainer` is given."""
    return run(
        *(explainer or subject.make(), subject.name, model, inputs, [layer], [method]),
        target_selector(targets, len(inputs)),
        call=Call(layout=layout),
    )


def maps_of(subject: Subject, method: str, *arguments: Any, **keywords: Any) -> Tensor:
    """The maps `[B, h, w]` of `answer_of`."""
    return next(iter(answer_of(subject, method, *arguments, **keywords).maps.values()))[:, 0]


def check_registration(subject: Subject) -> None:
    """The entry point leads to this class, from the expected package, with a summary and methods."""
    entry = discovery.get(subject.kind, subject.name)
    assert loading.load(entry) is subject.plugin, f"{subject.name} is another class: {entry.value}"
    if subject.dist:
        assert entry.dist == subject.dist, f"{subject.name} comes from {entry.dist}, not {subject.dist}"
    summary = subject.plugin.summary
    assert "\n" not in summary and 0 < len(summary) <= 120, "summary must be one line of 1-120 characters"


def check_declarations(subject: Subject) -> None:
    """`methods` are distinct; `dtypes`, `class_agnostic` and the like name only what exists."""
    methods = subject.plugin.methods
    assert methods and len(set(methods)) == len(methods), f"methods {methods} must be distinct names"
    for field in ("class_agnostic", "layerless", "unsigned", "needs_attention"):
        unknown = set(getattr(subject.plugin, field)) - set(methods)
        assert not unknown, f"{field} names {unknown}, which are not methods"
    for name in subject.plugin.dtypes:
        assert isinstance(getattr(torch, name, None), torch.dtype), f"{name} is not a torch dtype"
    assert "float32" in subject.plugin.dtypes, "float32 must be supported"


def check_options(subject: Subject) -> None:
    """`Options` is a frozen dataclass; every field has a default and a help; unknown ones are refused."""
    cls: Any = subject.plugin.Options
    assert dataclasses.is_dataclass(cls), "Options must be a dataclass"
    parameters: Any = getattr(cls, "__dataclass_params__")  # noqa: B009  unknown to type checkers
    assert parameters.frozen, "Options must be frozen"
    for item in dataclasses.fields(cls):
        assert item.default is not dataclasses.MISSING, f"option {item.name} needs a default"
        assert item.metadata.get("help"), f"option {item.name} needs a help text (camkit.option)"
    subject.make()
    for wrong in ({"no-such-option": "1"}, {"": "1"}):
        with raises(OptionError, f"the option {wrong}"):
            options.read_options(subject.plugin.Options, wrong, owner=subject.name)


def check_output(subject: Subject) -> None:
    """Maps are `[B, h, w]`, at least float32, finite, on the inputs' device and detached.

    What is declared `unsigned` has no negative value, what is `layerless` the same map at another layer.
    """
    model, inputs = reference_model(), reference_inputs()
    for method in subject.methods:
        query = Query(model, inputs, torch.tensor([0, 1, 2]), LAYER, method)
        maps = subject.make().maps(query)
        assert isinstance(maps, Tensor), f"{method} returns {type(maps).__name__}"
        assert maps.ndim == 3 and len(maps) == 3, f"{method} returns {list(maps.shape)}, not [B, h, w]"
        assert maps.dtype in (torch.float32, torch.float64), f"{method} returns {maps.dtype}"
        assert maps.device == inputs.device, f"{method} returns a map on {maps.device}"
        assert torch.isfinite(maps).all(), f"{method} returns NaN or infinite values"
        assert not maps.requires_grad, f"{method} returns a map with a graph: detach it"
        if method in subject.plugin.unsigned:
            assert not (maps < 0).any(), f"{method} is declared unsigned, but has negative values"
        if method in subject.plugin.layerless:
            other = subject.make().maps(dataclasses.replace(query, layer="2"))
            assert torch.equal(maps, other), f"{method} is declared layerless, but depends on the layer"


def check_by_hand(subject: Subject) -> None:
    """`gradcam` is the raw, signed `sum_k a_k A_k`: several libraries return it rectified or scaled."""
    _check_by_hand(subject, inplace=False)


def check_by_hand_before_inplace_relu(subject: Subject) -> None:
    """A ReLU that overwrites the layer's output (VGG, DenseNet) must not change `gradcam`.

    Here pytorch-grad-cam and torchcam are wrong by up to 90 % of the peak.
    """
    _check_by_hand(subject, inplace=True)


def _check_by_hand(subject: Subject, *, inplace: bool) -> None:
    if "gradcam" not in subject.plugin.methods:
        return
    image = torch.tensor([[[[4.0, 1.0], [2.0, 3.0]], [[1.0, 5.0], [-2.0, 3.0]]]])
    red, green = image[0]
    # With a ReLU behind the layer, gradients are zero where values are negative: 1 of 4 for green.
    share = 0.75 if inplace else 1.0
    expected = [(2 * red - share * green) / 4, (-red + 0.5 * share * green) / 4]
    for target in (0, 1):
        maps = maps_of(subject, "gradcam", target, hand_model(inplace=inplace), image)
        equal(maps[0], expected[target], f"gradcam of class {target} on a network solved by hand")


def check_targets(subject: Subject) -> None:
    """int, list, tensor and `None` (the predicted class) mean what they say; a wrong one is refused.

    Given one target for three images, another library silently leaves two maps blank.
    """
    model, inputs = reference_model(), reference_inputs()
    method = subject.methods[0]
    expected = maps_of(subject, method, [2, 2, 2], model, inputs)
    equal(maps_of(subject, method, 2, model, inputs), expected, "an int target")
    equal(maps_of(subject, method, torch.tensor([2, 2, 2]), model, inputs), expected, "a tensor of targets")
    with torch.no_grad():
        predicted = model(inputs).argmax(1)
    equal(
        maps_of(subject, method, None, model, inputs),
        maps_of(subject, method, predicted, model, inputs),
        "no target (the predicted class)",
    )
    for wrong in (CLASSES, -1, [0, 1], [0, 1, 99], 1.5, "a", True, torch.zeros(3)):
        with raises(TargetError, f"the target {wrong!r}"):
            maps_of(subject, method, wrong, model, inputs)
    for method in subject.methods:
        for wrong in (CLASSES, -1):
            with raises(TargetError, f"the target {wrong} under {method}"):
                maps_of(subject, method, wrong, model, inputs)


def check_classes_differ(subject: Subject) -> None:
    """Each image gets the map of its own target; methods that ignore it say so.

    A method whose maps are the same for all classes belongs in `class_agnostic`.
    """
    model, inputs = reference_model(), reference_inputs(2)
    for method in subject.methods:
        a = maps_of(subject, method, [0, 1], model, inputs)
        b = maps_of(subject, method, [1, 0], model, inputs)
        same = torch.equal(a, b)
        declared = method in subject.plugin.class_agnostic
        assert same == declared, (
            f"{method} gives {'the same map' if same else 'different maps'} for different classes, "
            f"but is {'' if declared else 'not '}declared class_agnostic"
        )


def check_determinism(subject: Subject) -> None:
    """Two calls give the same map, and the global random generators are untouched."""
    model, inputs = reference_model(), reference_inputs(2)
    for method in subject.methods:
        query = Query(model, inputs, torch.tensor([0, 3]), LAYER, method)
        first = subject.make().maps(query)
        with torch.random.fork_rng([]):
            torch.rand(3)  # the global generator is elsewhere than before the first call
            with untouched(model, inputs, f"by {method}"):
                second = subject.make().maps(query)
        assert torch.equal(first, second), f"{method} gives another map on the second call"


def check_batch(subject: Subject) -> None:
    """A batch gives the same maps as its images one by one, in any order."""
    model, inputs, targets = reference_model(), reference_inputs(), [0, 3, 1]
    for method in subject.methods:
        together = maps_of(subject, method, targets, model, inputs)
        for i, target in enumerate(targets):
            alone = maps_of(subject, method, target, model, inputs[i : i + 1])
            equal(together[i : i + 1], alone, f"{method}, image {i} of a batch and alone", 1e-4)
        order = torch.tensor([2, 0, 1])
        moved = maps_of(subject, method, torch.tensor(targets)[order], model, inputs[order])
        equal(moved, together[order], f"{method}, the batch in another order", 1e-4)


def check_class_maps(subject: Subject) -> None:
    """The maps of all classes at once equal the maps of each class alone."""
    model, inputs = reference_model(), reference_inputs(2)
    for method in subject.methods:
        sweep = Sweep(
            model, inputs, (LAYER,), (method,), lambda s: torch.arange(CLASSES).expand(len(s), -1)
        )
        together = subject.make().many(sweep)[method, LAYER]
        for c in range(CLASSES):
            equal(together[:, c], maps_of(subject, method, c, model, inputs), f"{method}, class {c}", 1e-4)


def check_no_trace(subject: Subject) -> None:
    """Modes, `.grad`, `requires_grad`, buffers, hooks, inputs and random states are left as they were.

    pytorch-grad-cam leaves the model in `eval()` and its hooks behind; torchcam wipes `.grad`.
    """
    inputs = reference_inputs(2)
    for method in subject.methods:
        model = model_in_training()
        with untouched(model, inputs, f"by {method}"):
            subject.make().maps(Query(model, inputs, torch.tensor([0, 3]), LAYER, method))


def check_no_trace_after_error(subject: Subject) -> None:
    """The same when the forward raises, below or above the target layer; the error is passed on."""
    inputs = reference_inputs(2)
    for method in subject.methods:
        for where in (0, 4, 8):
            model = model_in_training()
            model[where].register_forward_pre_hook(_explode)
            with (
                untouched(model, inputs, f"by {method} when the forward raises"),
                raises(_Explosion, f"an error in the forward under {method}"),
            ):
                subject.make().maps(Query(model, inputs, torch.tensor([0, 3]), LAYER, method))


def check_no_trace_after_wrong_target(subject: Subject) -> None:
    """The same when the target turns out to be wrong halfway through."""
    inputs = reference_inputs(2)
    for method in subject.methods:
        model = model_in_training()
        with (
            untouched(model, inputs, f"by {method} when the target is wrong"),
            raises(TargetError, "a target out of range"),
        ):
            sweep = Sweep(model, inputs, (LAYER,), (method,), _refuse)
            subject.make().many(sweep)


class _Explosion(RuntimeError):
    pass


def _explode(*_: Any) -> None:
    raise _Explosion("the forward failed")


def _refuse(_: Tensor) -> Tensor:
    raise TargetError("no such class")


def check_gradient_modes(subject: Subject) -> None:
    """It works under a caller's `no_grad` or `inference_mode`, where most libraries raise."""
    model, inputs = reference_model(), reference_inputs(2)
    for method in subject.methods:
        expected = maps_of(subject, method, [0, 3], model, inputs)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                maps = maps_of(subject, method, [0, 3], model, inputs * 1)
            equal(maps, expected, f"{method} under {mode.__name__}")


def check_frozen(subject: Subject) -> None:
    """A model without trainable parameters has the same maps; pytorch-grad-cam raises."""
    inputs = reference_inputs(2)
    for method in subject.methods:
        expected = maps_of(subject, method, [0, 3], reference_model(), inputs)
        frozen = reference_model().requires_grad_(False)
        equal(maps_of(subject, method, [0, 3], frozen, inputs), expected, f"{method} on a frozen model")


def check_train_mode(subject: Subject) -> None:
    """In train mode the maps are those of eval mode, and the model stays in train mode."""
    inputs = reference_inputs(2)
    for method in subject.methods:
        expected = maps_of(subject, method, [0, 3], reference_model(), inputs)
        model = reference_model().train()
        equal(
            maps_of(subject, method, [0, 3], model, inputs), expected, f"{method} on a model in train mode"
        )
        assert all(m.training for m in model.modules()), f"{method} leaves the model in eval mode"


def check_channels_last(subject: Subject) -> None:
    """The memory format does not change the maps."""
    inputs = reference_inputs(2)
    for method in subject.methods:
        expected = maps_of(subject, method, [0, 3], reference_model(), inputs)
        model = reference_model().to(memory_format=torch.channels_last)
        maps = maps_of(subject, method, [0, 3], model, inputs.to(memory_format=torch.channels_last))
        equal(maps, expected, f"{method} in channels-last", 1e-4)


def check_bfloat16(subject: Subject) -> None:
    """If bfloat16 is declared, it works, and `gradcam` and `finercam` stay close to their float32 maps.

    If scores are rounded, `finercam` may compare the target with the wrong classes.
    """
    if "bfloat16" not in subject.plugin.dtypes:
        return
    inputs = reference_inputs(2)
    for method in subject.methods:
        maps = maps_of(subject, method, [0, 3], reference_model().bfloat16(), inputs.bfloat16())
        assert maps.dtype == torch.float32, f"{method} returns {maps.dtype} in bfloat16"
        assert torch.isfinite(maps).all(), f"{method} returns NaN or infinite values in bfloat16"
        if method in ("gradcam", "finercam"):
            equal(maps, maps_of(subject, method, [0, 3], reference_model(), inputs), method, 0.1)


def check_memory(subject: Subject) -> None:
    """Nothing keeps the model alive: growing memory is the most frequent complaint in issue trackers."""
    references = {}
    for method in subject.methods:
        model = reference_model()
        maps_of(subject, method, 0, model, reference_inputs(1))
        references[method] = weakref.ref(model)
        del model
    gc.collect()
    for method, reference in references.items():
        assert reference() is None, f"{method} keeps the model alive"


def check_threads(subject: Subject) -> None:
    """Two threads can use two models, and one model if the class declares `thread_safe`."""
    shared = reference_model(seed=1)
    pairs = [[reference_model(seed=1), reference_model(seed=2)]]
    pairs += [[shared, shared]] if subject.plugin.thread_safe else []
    method = subject.methods[0]
    images = torch.split(reference_inputs(12), 1)
    for models in pairs:
        expected = [[maps_of(subject, method, 1, m, x) for x in images] for m in models]
        results: list[list[Tensor | BaseException]] = [[], []]

        def work(k: int, models: Sequence[nn.Module] = models, results: Any = results) -> None:
            for x in images:
                try:
                    results[k].append(maps_of(subject, method, 1, models[k], x))
                except Exception as error:
                    results[k].append(error)

        threads = [threading.Thread(target=work, args=(k,)) for k in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for k in (0, 1):
            for got, want in zip(results[k], expected[k], strict=True):
                assert isinstance(got, Tensor), f"a thread raised {got!r}"
                equal(got, want, f"{method} in two threads")
