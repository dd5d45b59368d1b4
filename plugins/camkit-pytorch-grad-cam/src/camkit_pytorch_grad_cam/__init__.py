"""pytorch-grad-cam as a backend of camkit: the formulas are the library's, the bookkeeping is not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pytorch_grad_cam.utils.model_targets import FinerWeightedTarget
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from camkit.errors import UsageError
from camkit.plugin import Explainer, Query, StandIn
from camkit_pytorch_grad_cam.fullgrad import fullgrad
from camkit_pytorch_grad_cam.methods import METHODS, SCORES, GradCamOptions, adapted

# What the library averages over with `aug_smooth`: axes to mirror and contrasts.
VIEWS = [(axes, contrast) for axes in ([], [-1]) for contrast in (0.9, 1.0, 1.1)]


class PytorchGradCam(Explainer):
    """Features and gradients come from a stand-in for the model, maps from the library's classes."""

    summary = "Every class activation method of pytorch-grad-cam, as raw maps"
    methods = tuple(METHODS)
    dtypes = ("float32", "float64", "bfloat16", "float16")
    class_agnostic = tuple(name for name, method in METHODS.items() if method.agnostic)
    notes: ClassVar[Mapping[str, str]] = {name: method.note for name, method in METHODS.items()}
    thread_safe = True
    Options: ClassVar[type] = GradCamOptions

    def maps(self, query: Query) -> Tensor:
        """Maps `[B, h, w]`, before the library would rectify, scale and enlarge them: see `notes`."""
        size = 1 if METHODS[query.method].alone else len(query.inputs)
        batches = zip(torch.split(query.inputs, size), torch.split(query.targets, size), strict=True)
        compute = _smooth if self.options.aug_smooth else _raw
        with torch.inference_mode(False), torch.enable_grad():
            parts = [compute(_part(query, x, t), self.options) for x, t in batches]
        return torch.cat(parts).to(query.inputs.device)


def _part(query: Query, inputs: Tensor, targets: Tensor) -> Query:
    """The query for some of its images; their scores are not all that the host waits for."""
    seen = query.seen if len(inputs) == len(query.inputs) else lambda _: None
    return replace(query, inputs=inputs, targets=targets, seen=seen)


def _smooth(query: Query, options: GradCamOptions) -> Tensor:
    """The mean of the raw maps of all views; the library averages its pictures, each scaled by itself."""
    views = (
        replace(query, inputs=query.inputs.flip(axes) * contrast, seen=lambda _: None)
        for axes, contrast in VIEWS
    )
    maps = [_raw(view, options).flip(axes) for view, (axes, _) in zip(views, VIEWS, strict=True)]
    return torch.stack(maps).mean(0)


def _raw(query: Query, options: GradCamOptions) -> Tensor:
    """What the library's class for the method computes, `[B, h, w]` on the CPU."""
    if query.method == "fullgrad":
        return fullgrad(query, lambda scores: _total(query, options, scores), options.eigen_smooth)
    method, model = METHODS[query.method], StandIn(query)
    cam = adapted(method.cam)(model, [], **method.arguments(options))  # type: ignore[arg-type]  # a class is hashable
    cam.batch_size = options.batch_size  # scorecam looks for it; its constructor does not take it
    with (
        _twice_differentiable() if method.twice else nullcontext(),
        torch.set_grad_enabled(cam.uses_gradients),
    ):
        scores = model(query.inputs)
    features, slopes = model.features, torch.zeros_like(model.features)
    if cam.uses_gradients:
        total = _total(query, options, scores)
        (slopes,) = torch.autograd.grad(total, features, create_graph=method.twice)
    if query.method == "hirescam":
        model.doubt(slopes)
    evidence: tuple[Any, Any] = (_array(features), _array(slopes))
    if method.twice:  # a zero keeps slopes connected that do not depend on the features
        evidence = (features, slopes + 0 * features)
    targets = _score_functions(query, options, scores)
    with _seeded(options.seed) if method.draws else nullcontext():
        maps = cam.get_cam_image(query.inputs, model.layer, targets, *evidence, options.eigen_smooth)
    result = torch.from_numpy(maps).to(features.dtype)
    # Some methods of the library take NaN for zero, others raise.
    result[~(_sound(features) & _sound(slopes))] = torch.nan
    return result


def _score_functions(
    query: Query, options: GradCamOptions, scores: Tensor
) -> list[Callable[[Tensor], Tensor]]:
    """For each image the library's function from its scores `[n_classes]` to the one to be explained."""
    targets = query.targets.tolist()
    if query.method != "finercam":
        return [SCORES[options.score](target) for target in targets]
    if scores.shape[1] < 2:
        raise UsageError("finercam holds a class against others, but this model has one class only")
    distances = (scores - scores.gather(1, query.targets[:, None])).abs()
    distances = distances.scatter(1, query.targets[:, None], -1.0)  # the class itself comes first
    similar = distances.argsort(1)[:, 1 : options.comparisons + 1].tolist()
    return [
        FinerWeightedTarget(target, others, options.alpha)
        for target, others in zip(targets, similar, strict=True)
    ]


def _total(query: Query, options: GradCamOptions, scores: Tensor) -> Tensor:
    """The explained scores of all images in one number, to be differentiated."""
    functions = _score_functions(query, options, scores)
    return torch.stack([f(row) for f, row in zip(functions, scores, strict=True)]).sum()


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().nan_to_num(0, 0, 0).cpu().numpy()


def _sound(tensor: Tensor) -> Tensor:
    """`[B]` on the CPU: which images have finite values only."""
    return tensor.detach().isfinite().flatten(1).all(1).cpu()


_GLOBALS = threading.Lock()  # for what the library leaves no way around: state of the whole process


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Library and scikit-learn draw from numpy's global generator: seeded inside, as before afterwards."""
    with _GLOBALS:
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(state)


@contextmanager
def _twice_differentiable() -> Iterator[None]:
    """Fused attention has no second derivative; the plain one has."""
    with _GLOBALS, sdpa_kernel(SDPBackend.MATH):
        yield
