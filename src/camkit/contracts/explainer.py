"""What an explainer is: it computes raw attribution maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from camkit.contracts.options import API_VERSION, NoOptions
from camkit.errors import UsageError, closest

if TYPE_CHECKING:
    from torch import Tensor, nn


def _ignored(*_: Any) -> None:
    """Does nothing: nobody listens."""


@dataclass(frozen=True)
class Query:
    """One request to an explainer.

    module: from inputs to scores `[B, n_classes]`, in eval mode; the host restores the mode of every
        submodule afterwards. What a user's `output` and target function make of a model is part of it.
    inputs: float `[B, C, H, W]` on the device of the module; see `Explainer.dimensions`.
    targets: int64 `[B]` on the same device, the class index to explain for each input; already checked
        against the model.
    layer: dotted name of the target layer in `module` ("" is `module` itself).
    method: one of the explainer's `methods`.
    extras: further inputs, `[B, ...]` each: `module(inputs, *extras)`; see `Explainer.several_inputs`.
    layout: how the user says the output of the layer is to be read (`camkit.core.layout.KINDS`), or `None`.
    seen: to be called with the scores of a forward of `inputs`, where an explainer makes one anyway, before
        the targets are looked up in them: it refuses a class that is not there, and saves the host a
        forward. `camkit.StandIn` does it.
    remark: to be called with the images concerned (bool `[B]`, which may be none: asking would wait for the
        device) and what is to be said of their maps, such as "is only rounding noise". The host tells the
        user.
    """

    module: nn.Module
    inputs: Tensor
    targets: Tensor
    layer: str
    method: str
    extras: tuple[Tensor, ...] = ()
    layout: str | None = None
    seen: Callable[[Tensor], object] = _ignored
    remark: Callable[[Tensor, str], None] = _ignored

    @property
    def layer_module(self) -> nn.Module:
        """The target layer itself."""
        return self.module.get_submodule(self.layer)


@dataclass(frozen=True)
class Sweep:
    """Several methods, layers and classes over one batch, so that an explainer may share the forward.

    choose: from the model's scores `[B, n_classes]` to the class indices to explain, int64 `[B, T]`. It
        checks scores and indices and raises `TargetError` or `ModelError`; the host keeps the scores.
        Of targets that lie on the device already the error may come after the maps, to spare a wait.
    targets: what `choose` will say, where it is given and needs no scores, else `None`; on the host, or
        wherever the caller has them.
    predicted: whether it will say the class with the highest score of each input.
    seen: as in `Query`: it looks at all targets at once, and waits for the device.
    remark: as in `Query`, to be called with the method and the layer before the images.
    frozen: the caller promises that the model does not change between calls, for those who keep something.
    The other fields are as in `Query`.
    """

    module: nn.Module
    inputs: Tensor
    layers: tuple[str, ...]
    methods: tuple[str, ...]
    choose: Callable[[Tensor], Tensor]
    extras: tuple[Tensor, ...] = ()
    targets: Tensor | None = None
    layout: str | None = None
    remark: Callable[[str, str, Tensor, str], None] = _ignored
    frozen: bool = False
    seen: Callable[[Tensor], object] = _ignored
    predicted: bool = False

    def queries(self, method: str, layer: str, targets: Tensor) -> Iterator[Query]:
        """One query for each column of `targets`, int64 `[B, T]`, wherever these are."""
        for column in targets.to(self.inputs.device).unbind(1):
            yield Query(
                *(self.module, self.inputs, column.contiguous(), layer, method, self.extras),
                layout=self.layout,
                seen=self.seen,
                remark=partial(self.remark, method, layer),
            )


class Explainer(ABC):
    """Computes raw attribution maps. Registered under `camkit.explainers`; the name is the backend.

    Maps are raw: signed, neither rectified nor scaled nor upsampled. An explainer leaves no trace:
    modes, `.grad`, `requires_grad`, buffers, hooks, RNG state and inputs are as before, also after an
    exception, and it works under `no_grad`, `inference_mode` and on frozen models.

    dtypes: of inputs and model that it works in. class_agnostic: methods whose map is the same for every
    class. layerless: methods that look at no layer, or choose theirs: the map is the same whichever is
    asked for. unsigned: methods whose values say how much, but neither for nor against. needs_attention:
    methods that refuse a model without attention weights. contrasting: methods that hold a class against
    the others, which boxes of a detector are none of. notes: what a user should know about a method.
    thread_safe: several threads may use one model. dimensions: of the positions of inputs and maps that it
    takes: 1 for signals `[B, C, L]`, 2 for images, 3 for volumes. several_inputs: it passes `extras` on.
    The host refuses what is not declared.
    """

    api_version: ClassVar[int] = API_VERSION
    summary: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    class_agnostic: ClassVar[tuple[str, ...]] = ()
    layerless: ClassVar[tuple[str, ...]] = ()
    unsigned: ClassVar[tuple[str, ...]] = ()
    needs_attention: ClassVar[tuple[str, ...]] = ()
    contrasting: ClassVar[tuple[str, ...]] = ()
    notes: ClassVar[Mapping[str, str]] = {}
    thread_safe: ClassVar[bool] = False
    dimensions: ClassVar[tuple[int, ...]] = (2,)
    several_inputs: ClassVar[bool] = False
    Options: ClassVar[type] = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def maps(self, query: Query) -> Tensor:
        """Raw maps `[B, h, w]`, at least float32, on the inputs' device, without a graph."""

    def many(self, sweep: Sweep) -> dict[tuple[str, str], Tensor]:
        """Raw maps `[B, T, h, w]` keyed by `(method, layer)`; by default one `maps` call for each.

        Targets that are given cost no forward.
        """
        import torch

        targets = sweep.targets
        if targets is None:
            with torch.no_grad():
                targets = sweep.choose(sweep.module(sweep.inputs, *sweep.extras))
        return {
            (method, layer): torch.stack(
                [self.maps(query) for query in sweep.queries(method, layer, targets)], dim=1
            )
            for method in sweep.methods
            for layer in sweep.layers
        }


def unknown_method(method: str, owner: str, known: Sequence[str]) -> UsageError:
    """The error for a method that an explainer does not have."""
    have = "have" if " and " in owner else "has"
    return UsageError(
        f"{owner} {have} no method {method!r}{closest(method, known)} (methods: {', '.join(known)})"
    )
