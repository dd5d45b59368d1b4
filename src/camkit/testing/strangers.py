"""Checks of explainers on the models that people bring: tiles, tokens, electrodes, half precision.

Each docstring says what a user would get otherwise: a wrong map, and no warning. Any method but `gradcam`
may refuse with a `CamkitError` instead.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.explainer import Query
from camkit.errors import CamkitError, LayerError
from camkit.testing.explainers import answer_of, maps_of
from camkit.testing.kit import CLASSES, LAYER, Subject, equal, raises, reference_inputs, reference_model


def maps_or_refusal(subject: Subject, method: str, *arguments: Any, **keywords: Any) -> Tensor | None:
    """`maps_of`, or `None` if the method refuses, which `gradcam` may not."""
    try:
        return maps_of(subject, method, *arguments, **keywords)
    except CamkitError:
        if method == "gradcam":
            raise
        return None


# --- what a layer returns -------------------------------------------------------------------------


def check_rows(subject: Subject) -> None:
    """A layer whose rows are not the images is a `LayerError`: images would get each other's maps.

    Windows, tiles, frames and pairs add rows; some transformers put tokens first.
    """
    inputs = reference_inputs(2)
    for method in filter(lambda method: _looks_at_the_layer(subject, method), subject.methods):
        for what, model in {"tiles": tiles_model(), "tokens first": tokens_model(first=True)}.items():
            with raises(LayerError, f"a layer of {what} under {method}"):
                maps_of(subject, method, [0, 3], model, inputs, "2")


def _looks_at_the_layer(subject: Subject, method: str) -> bool:
    """Whether the maps depend on the layer at all: some methods explain the input."""
    model, inputs = reference_model(), reference_inputs(2)
    one, other = (maps_of(subject, method, [0, 3], model, inputs, layer) for layer in (LAYER, "2"))
    return not torch.equal(one, other)


def check_layouts(subject: Subject) -> None:
    """Electrodes by time, tokens and channels-last give the layer's grid, and the exact `gradcam`.

    Guessing by proportions takes channels for positions, and the user sees a meaningless map.
    """
    for case in CASES:
        model, inputs = case.model(), case.inputs
        expected = by_definition(model, inputs, case.read)
        for method in subject.methods:
            maps = maps_or_refusal(subject, method, 1, model, inputs, "2")
            if maps is None or method in subject.plugin.layerless:
                continue
            shapes = (expected.shape, inputs[:, 0].shape)
            assert maps.shape in shapes, f"{method}, {case.name}: {list(maps.shape)}, not {list(shapes[0])}"
            if method == "gradcam":
                equal(maps, expected, f"gradcam of {case.name}", 1e-4)


def check_layout_given(subject: Subject) -> None:
    """`layout=` is heeded: tokens first, which only the user knows, give the same maps as images first."""
    inputs = reference_inputs(2)
    for method in subject.methods:
        expected = maps_or_refusal(subject, method, [0, 3], tokens_model(), inputs, "2")
        model = tokens_model(first=True)
        maps = maps_or_refusal(subject, method, [0, 3], model, inputs, "2", layout="tokens-first")
        if expected is not None and maps is not None:
            equal(maps, expected, f"{method} with layout='tokens-first'", 1e-4)


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """What the function returns."""
        return self.function(x)


def tiles_model() -> nn.Sequential:
    """From `[B, 3, 16, 16]` to scores by the mean over four tiles; layer `2` returns `[4 B, 6, 8, 8]`."""

    def tiles(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        parts = x.reshape(batch, channels, 2, height // 2, 2, width // 2)
        return parts.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)

    return _seeded(
        lambda: [
            *(Lambda(tiles), nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
            Lambda(lambda scores: scores.reshape(-1, 4, CLASSES).mean(1)),
        ]
    )


def tokens_model(*, first: bool = False) -> nn.Sequential:
    """From `[B, 3, 16, 16]` to scores; layer `2` returns a class token and 4 x 4 others, `[B, 17, 8]`.

    first: tokens come first, `[17, B, 8]`.
    """

    def tokens(x: Tensor) -> Tensor:
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(1, keepdim=True), x], 1)
        return x.transpose(0, 1) if first else x

    return _seeded(
        lambda: [
            *(nn.Conv2d(3, 8, 4, stride=4), Lambda(tokens), nn.LayerNorm(8), nn.ReLU()),
            *(nn.Linear(8, 8), nn.ReLU()),
            *(Lambda(lambda x: x.mean(0 if first else 1)), nn.Linear(8, CLASSES)),
        ]
    )


def electrodes_model() -> nn.Sequential:
    """From `[B, 1, 12, 40]`, electrodes by time, to scores; layer `2` returns `[B, 10, 12, 10]`."""
    return _seeded(
        lambda: [
            *(nn.Conv2d(1, 10, (1, 5), padding=(0, 2)), nn.AvgPool2d((1, 4)), nn.ReLU()),
            *(nn.Conv2d(10, 8, (12, 1)), nn.ReLU(), nn.Flatten(), nn.Linear(80, CLASSES)),
        ]
    )


def channels_last_model() -> nn.Sequential:
    """From `[B, 3, 16, 16]` to scores; layer `2` returns `[B, 8, 8, 6]`."""
    return _seeded(
        lambda: [
            *(nn.Conv2d(3, 6, 3, stride=2, padding=1), Lambda(lambda x: x.permute(0, 2, 3, 1))),
            *(nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()),
            *(Lambda(lambda x: x.mean((1, 2))), nn.Linear(6, CLASSES)),
        ]
    )


def _seeded(layers: Callable[[], list[nn.Module]]) -> nn.Sequential:
    """A seeded model in eval mode; its norms scale and shift, lest the mean over channels be zero."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(*layers()).eval()
        for norm in (part for part in model if isinstance(part, nn.LayerNorm | nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.uniform_(norm.bias, -0.5, 0.5)
    return model


@dataclass(frozen=True)
class Case:
    """A network, and how to `read` the output of its layer `2` as `[B, C, h, w]`."""

    name: str
    model: Callable[[], nn.Sequential]
    read: Callable[[Tensor], Tensor]
    inputs: Tensor


CASES = (
    Case(
        "electrodes",
        electrodes_model,
        lambda x: x,
        reference_inputs(6).reshape(-1)[:960].view(2, 1, 12, 40),
    ),
    Case("channels last", channels_last_model, lambda x: x.permute(0, 3, 1, 2), reference_inputs(2)),
    Case(
        "tokens",
        tokens_model,
        lambda x: x[:, 1:].transpose(1, 2).reshape(len(x), -1, 4, 4),
        reference_inputs(2),
    ),
)


def by_definition(model: nn.Sequential, inputs: Tensor, read: Callable[[Tensor], Tensor]) -> Tensor:
    """Grad-CAM of class 1 at layer `2`, `sum_k a_k A_k`: the network is cut in two behind that layer."""
    leaf = model[:3](inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[3:](leaf)[:, 1].sum(), leaf)
    return (read(gradient).mean((2, 3), keepdim=True) * read(leaf.detach())).sum(1)


# --- what a forward does --------------------------------------------------------------------------


def check_hooks_of_others(subject: Subject) -> None:
    """What the model's own hook stores of the layer, as in a U-Net, counts towards the gradient.

    A hook that runs after that one loses the path: fastai's `DynamicUnet` was wrong by 0.9 of the peak.
    """
    inputs = reference_inputs(2)
    for method in subject.methods:
        expected = maps_or_refusal(subject, method, [0, 3], SkipConnection(by_hook=False), inputs, "body")
        maps = maps_or_refusal(subject, method, [0, 3], SkipConnection(by_hook=True), inputs, "body")
        if expected is not None and maps is not None:
            equal(maps, expected, f"{method} where a hook stores the layer's output", 1e-4)


class SkipConnection(nn.Module):
    """A classifier with a path around its middle; a hook may store the output of `body` for it."""

    def __init__(self, *, by_hook: bool) -> None:
        super().__init__()
        self.body, self.middle, self.relu, self.head = _seeded(
            lambda: [
                nn.Conv2d(3, 6, 3, stride=2, padding=1),
                nn.Sequential(nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU()),
                nn.ReLU(),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, CLASSES)),
            ]
        )
        self.stored: list[Tensor] = []
        if by_hook:
            stored = self.stored
            self.body.register_forward_hook(lambda _, __, output: stored.append(output))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        x = self.body(x)
        skip = self.stored.pop() if self.stored else x
        return self.head(self.middle(x) + 2 * self.relu(-skip))  # type: ignore[no-any-return]


def check_no_grad_body(subject: Subject) -> None:
    """A body that runs under `no_grad`, as frozen ones do, changes no map; none comes out blank."""
    inputs = reference_inputs(2)
    for method in subject.methods:
        for layer in ("body.0", "above.0"):  # within it and behind it
            expected = maps_or_refusal(subject, method, [0, 3], FrozenBody(no_grad=False), inputs, layer)
            maps = maps_or_refusal(subject, method, [0, 3], FrozenBody(no_grad=True), inputs, layer)
            if expected is not None and maps is not None:
                equal(maps, expected, f"{method} at {layer} where the body runs under no_grad")


class FrozenBody(nn.Module):
    """A classifier whose body may run without gradients and has no bias, which some methods use."""

    def __init__(self, *, no_grad: bool) -> None:
        super().__init__()
        self._no_grad = no_grad
        self.body, self.above = _seeded(
            lambda: [
                nn.Sequential(nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False), nn.ReLU()),
                nn.Sequential(
                    *(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()),
                    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)),
                ),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        with torch.no_grad() if self._no_grad else nullcontext():
            x = self.body(x)
        return self.above(x)  # type: ignore[no-any-return]


def check_current_weights(subject: Subject) -> None:
    """Maps follow the current weights: nothing may be cached that a write makes wrong.

    Writes through `.data` or a numpy view raise no version, and BatchNorm's statistics are not parameters.
    """
    inputs = reference_inputs(2)
    for method in subject.methods:
        explainer, model = subject.make(), reference_model()
        maps_of(subject, method, [0, 3], model, inputs, explainer=explainer)
        for what, write in WRITES.items():
            write(model)
            maps = maps_of(subject, method, [0, 3], model, inputs, explainer=explainer)
            fresh = maps_of(subject, method, [0, 3], copy.deepcopy(model), inputs)
            equal(maps, fresh, f"{method} after a write through {what}")


def _write_data(model: nn.Module) -> None:
    model.get_parameter("0.weight").data[0, 0, 0, 0] += 2


def _write_statistics(model: nn.Module) -> None:
    model.get_buffer("3.running_var").data[0] *= 9


def _write_view(model: nn.Module) -> None:
    model.get_parameter("2.bias").detach().numpy()[0] += 1


WRITES: dict[str, Callable[[nn.Module], None]] = {
    ".data": _write_data,
    "the statistics of BatchNorm": _write_statistics,
    "a numpy view": _write_view,
}


def check_float16(subject: Subject) -> None:
    """If float16 is declared, `gradcam` of a large map is right, though its gradients are tiny.

    A mean over 256 x 256 positions gives gradients of 1e-7, which float16 rounds coarsely or to zero.
    """
    if "float16" not in subject.plugin.dtypes or "gradcam" not in subject.plugin.methods:
        return
    model = large_map_model()
    inputs = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(7))
    expected = maps_of(subject, "gradcam", 1, model, inputs)
    maps = maps_of(subject, "gradcam", 1, model.half(), inputs.half())
    equal(maps, expected, "gradcam of a large map in float16", 2e-2)


def large_map_model() -> nn.Sequential:
    """From images of any size to scores, by the mean of a map of that size; small weights above."""
    model = _seeded(
        lambda: [nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)]
    )
    with torch.no_grad():
        model[3].get_parameter("weight").mul_(0.05)
    return model


# --- scores and costs -----------------------------------------------------------------------------


def check_scores(subject: Subject) -> None:
    """The scores returned with a map are the model's own, row by row: users read them as probabilities."""
    model, inputs = reference_model(), reference_inputs()
    with torch.no_grad():
        expected = model(inputs)
    for method in subject.methods:
        answer = answer_of(subject, method, [0, 3, 1], model, inputs)
        equal(answer.scores, expected, f"the scores from {method}")


def check_forwards(subject: Subject) -> None:
    """Known targets cost no extra forward: `Query.seen` gets the scores that `maps` computes anyway.

    In a large model each forward counts, and a backend that needs one too many loses every comparison.
    """
    inputs, targets = reference_inputs(2), torch.tensor([0, 3])
    for method in subject.methods:
        model = ForwardCounter(inputs)
        subject.make().maps(Query(model, inputs, targets, "model.0", method))
        needed = len(model.intact) + (True not in model.intact)  # the host needs the scores
        model.intact.clear()
        maps_of(subject, method, targets, model, inputs, "model.0")
        assert len(model.intact) <= needed, f"{method} takes {len(model.intact)} forwards, not {needed}"


class ForwardCounter(nn.Module):
    """The reference model. intact: for each forward, whether it ran on `inputs` unchanged."""

    def __init__(self, inputs: Tensor) -> None:
        super().__init__()
        self.model, self.inputs = reference_model(), inputs
        self.intact: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        self.intact.append(torch.equal(x, self.inputs))
        return self.model(x)  # type: ignore[no-any-return]
