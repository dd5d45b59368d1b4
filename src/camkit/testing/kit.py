"""Building blocks of checks: the plugin under test, small models, comparisons, a snapshot of a model."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camkit.registry import options as plugins
from camkit.registry.discovery import Kind

CLASSES = 4


@dataclass(frozen=True)
class Subject:
    """The plugin under test.

    options: for every instance, for example to speed up a slow method.
    reference: for a model source, a model that loads offline.
    request: for a trainer, fields of `TrainRequest` such as a small `arch`.
    dist: the package that must provide the plugin.
    """

    kind: Kind
    name: str
    plugin: type[Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: str = ""
    request: Mapping[str, Any] = field(default_factory=dict)
    dist: str | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Those of an explainer that the reference model can have, which has no attention."""
        return tuple(m for m in self.plugin.methods if m not in self.plugin.needs_attention)

    def make(self) -> Any:
        """A new instance."""
        if self.kind == "model":
            return self.plugin()
        return self.plugin(plugins.read_options(self.plugin.Options, self.options, owner=self.name))


def reference_model(*, inplace: bool = False, seed: int = 0) -> nn.Sequential:
    """A small classifier, `[B, 3, 16, 16]` to four scores; the target layer is `0`, `[B, 6, 8, 8]`.

    With `inplace`, the ReLU right behind the target layer overwrites its input.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1),
            nn.ReLU(inplace=inplace),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, CLASSES),
        ).eval()


LAYER = "0"


def reference_inputs(batch: int = 3) -> Tensor:
    """Seeded images `[batch, 3, 16, 16]`."""
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(7))


def hand_model(*, inplace: bool = False) -> nn.Sequential:
    """A network whose Grad-CAM is known: twice the red channel minus the green one, or minus half of that.

    The target layer returns the image; with `inplace`, a ReLU right behind overwrites that.
    """
    head = nn.Linear(2, 2, bias=False)
    head.weight.data = torch.tensor([[2.0, -1.0], [-1.0, 0.5]])
    first = nn.Conv2d(2, 2, 1, bias=False)
    first.weight.data = torch.eye(2)[:, :, None, None].clone()
    middle = nn.ReLU(inplace=True) if inplace else nn.Identity()
    return nn.Sequential(first, middle, nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def equal(actual: Tensor, expected: Tensor, what: str, relative: float = 1e-5) -> None:
    """Assert that maps are equal within an error relative to the peak."""
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, not {list(expected.shape)}"
    peak = float(expected.abs().max())
    error = float((actual.cpu().double() - expected.cpu().double()).abs().max())
    assert error <= relative * peak + 1e-12, f"{what}: differ by {error:.3g}, peak {peak:.3g}"


@contextmanager
def raises(kind: type[BaseException], what: str) -> Iterator[None]:
    """Assert that the block raises `kind`; the kit works without pytest."""
    try:
        yield
    except kind:
        return
    except Exception as error:
        raise AssertionError(f"{what} must be refused with {kind.__name__}, not {error!r}") from error
    raise AssertionError(f"{what} must be refused with {kind.__name__}, but nothing was raised")


_HOOKS = tuple(name for name in vars(nn.Module()) if "hook" in name)


def _snapshot(model: nn.Module, inputs: Tensor) -> dict[str, Any]:
    """Everything that an explainer must leave alone."""
    return {
        "the mode of a module": {name: m.training for name, m in model.named_modules()},
        "requires_grad of a parameter": {n: p.requires_grad for n, p in model.named_parameters()},
        "the .grad of a parameter": {
            n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()
        },
        "a parameter or buffer": {n: t.clone() for n, t in model.state_dict().items()},
        "the hooks of a module": {
            f"{name}.{kind}": list(getattr(m, kind) or ())
            for name, m in model.named_modules()
            for kind in _HOOKS
        },
        "the modules themselves": [type(m).__name__ for m in model.modules()],
        "the inputs": (inputs.clone(), inputs.requires_grad, inputs.grad is None),
        "the global random state of torch": torch.get_rng_state(),
        "the global random state of numpy": np.random.get_state(legacy=False),
        "the global random state of python": random.getstate(),
        "the gradient mode": torch.is_grad_enabled(),
    }


def same(a: Any, b: Any) -> bool:
    """Whether two nested structures of tensors and values are exactly equal."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return bool(np.array_equal(a, b)) if isinstance(a, np.ndarray) else bool(a == b)


@contextmanager
def untouched(model: nn.Module, inputs: Tensor, when: str) -> Iterator[None]:
    """Assert that the block leaves no trace on the model, the inputs and the random states."""
    before = _snapshot(model, inputs)
    yield
    after = _snapshot(model, inputs)
    for what, value in before.items():
        assert same(value, after[what]), f"{what} is changed {when}"


def model_in_training() -> nn.Sequential:
    """A model in the middle of training: mixed modes, a gradient, a frozen layer, a hook of its own."""
    model = reference_model()
    model[4].training = True
    model[0].weight.requires_grad_(False)
    model[8].weight.grad = torch.ones(CLASSES, 8)
    model[2].register_forward_hook(_own_hook)
    return model


def _own_hook(*_: Any) -> None:
    """The user's own hook."""
