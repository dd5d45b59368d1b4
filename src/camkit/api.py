"""The contracts: what a plugin implements and what the host hands to it.

`Explainer`, `Metric`, `Trainer` and `ModelSource` are the four kinds of plugin; the frozen dataclasses are
what travels between host and plugin, so fields can be added without breaking anybody. This module does not
import torch at run time: `camkit plugin list` reads it.

A minimal explainer:

    class Plain(Explainer):
        summary = "The channel mean of the input"
        methods = ("plain",)

        def maps(self, query: Query) -> Tensor:
            return query.inputs.mean(1)
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from camkit.errors import ModelError, UsageError
from camkit.preprocess import Preprocess
from camkit.scores import ScoreKind, checked

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor, nn

API_VERSION = 1


def option(
    default: Any,
    *,
    help: str,
    min: float | None = None,
    max: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A field of a plugin's `Options` dataclass, with what the host needs to parse and explain it."""
    metadata = {"help": help, "min": min, "max": max, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NoOptions:
    """The options of a plugin that has none."""


# --- explainers -----------------------------------------------------------------------------------


def _ignored(*_: Any) -> None:
    """What is told to nobody."""


@dataclass(frozen=True)
class Query:
    """One request to an explainer.

    module: from inputs to scores `[B, n_classes]`, in eval mode; the host restores the mode of every
        submodule afterwards. What a user's `output` and target function make of a model is part of it.
    inputs: float `[B, C, H, W]` on the device of the module; see `Explainer.dimensions`.
    targets: int64 `[B]`, the class index to explain for each input; already checked against the model.
    layer: dotted name of the target layer in `module` ("" is `module` itself).
    method: one of the explainer's `methods`.
    extras: further inputs, `[B, ...]` each: `module(inputs, *extras)`; see `Explainer.several_inputs`.
    layout: how the user says the output of the layer is to be read (`camkit.layout.KINDS`), or `None`.
    seen: to be called with the scores of a forward of `inputs`, where an explainer makes one anyway, before
        the targets are looked up in them: it refuses a class that is not there, and saves the host a
        forward. `camkit.StandIn` does it.
    remark: to be called with the images concerned (bool `[B]`) and what is to be said of their maps, such
        as "is only rounding noise". The host tells the user.
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
    targets: what `choose` will say, where it is given and needs no scores, else `None`.
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

    def queries(self, method: str, layer: str, targets: Tensor) -> Iterator[Query]:
        """One query for each column of `targets`, int64 `[B, T]`."""
        for column in targets.unbind(1):
            yield Query(
                *(self.module, self.inputs, column.contiguous(), layer, method, self.extras),
                layout=self.layout,
                seen=self.choose,
                remark=partial(self.remark, method, layer),
            )


class Explainer(ABC):
    """Computes raw attribution maps. Registered under `camkit.explainers`; the name is the backend.

    Maps are raw: signed, neither rectified nor scaled nor upsampled. An explainer leaves no trace:
    modes, `.grad`, `requires_grad`, buffers, hooks, RNG state and inputs are as before, also after an
    exception, and it works under `no_grad`, `inference_mode` and on frozen models.

    dtypes: of inputs and model that it works in. class_agnostic: methods whose map is the same for every
    class. notes: what a user should know about a method. thread_safe: several threads may use one model.
    dimensions: of the positions of inputs and maps that it takes: 1 for signals `[B, C, L]`, 2 for images,
    3 for volumes. several_inputs: it passes `extras` on. The host refuses what is not declared.
    """

    api_version: ClassVar[int] = API_VERSION
    summary: ClassVar[str]
    methods: ClassVar[tuple[str, ...]]
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    class_agnostic: ClassVar[tuple[str, ...]] = ()
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


# --- metrics --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MapBatch:
    """Maps of one explainer and what they explain: everything that a metric may look at.

    maps: raw, float `[B, h, w]`, float32 at least.
    module: from inputs to scores `[B, n_classes]`; the host sees to eval mode and to the random state.
    inputs: float `[B, C, H, W]`; targets: int64 `[B]`, as in `Query`; all on one device.
    truth: bool `[B, H, W]`, where the evidence is; nowhere true if it is not known for an image.
    reference: maps `[B, h, w]` of another explainer, to compare with.
    explain: from other inputs and targets to the maps of the same explainer for the same module.
    seed: of everything random.
    scores: what the outputs of `module` are, as in `LoadedModel`.
    """

    maps: Tensor
    module: nn.Module
    inputs: Tensor
    targets: Tensor
    truth: Tensor | None = None
    reference: Tensor | None = None
    explain: Callable[[Tensor, Tensor], Tensor] | None = None
    seed: int = 0
    scores: ScoreKind = "auto"


@dataclass(frozen=True)
class Scores:
    """What a metric says of a batch.

    values: float `[B]`; NaN where the metric is not defined: never a zero, never a hit.
    curves: `[B, S]`, if the values sum up a curve, and `steps`, the names of its S points.
    """

    values: Tensor
    curves: Tensor | None = None
    steps: tuple[str, ...] = ()


class Metric(ABC):
    """Scores maps. Registered under `camkit.metrics`.

    An image's score depends on that image, the seed and the options, not on the rest of its batch.

    direction: whether a higher or a lower value is better. range: lowest and highest possible value.
    needs: the optional fields of `MapBatch` without which there is no score.
    limit: of a test that is passed or failed: passed if the mean over the images is better than this.
    paper: where the definition is from. category: `agreement`, `faithfulness`, `localisation`, `sanity`,
    `complexity`, or a word of one's own: `camkit bench --metrics` takes it, and runs all of its metrics.
    """

    api_version: ClassVar[int] = API_VERSION
    summary: ClassVar[str]
    category: ClassVar[str] = "other"
    direction: ClassVar[Literal["higher", "lower"]]
    range: ClassVar[tuple[float, float]]
    needs: ClassVar[tuple[str, ...]] = ()
    limit: ClassVar[float | None] = None
    paper: ClassVar[str] = ""
    Options: ClassVar[type] = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def score(self, batch: MapBatch) -> Scores:
        """The scores of a batch, on the device of the maps."""


# --- models ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoadedModel:
    """A classifier together with what belongs to it.

    module: in eval mode, on the device it was loaded to.
    classes: names in the order of the model's outputs.
    default_layer: the layer specification that `layer="auto"` means for this model.
    architecture: what its source needs to build the module anew, JSON values only; `None` if it cannot
        be stored in a bundle. `architecture["source"]` is the name of the model source.
    scores: what the outputs are: `softmax`, `sigmoid`, `probabilities`, `none`, or `auto`, told from
        themselves; see `camkit.scores`.
    """

    module: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    name: str
    default_layer: str = "auto"
    architecture: Mapping[str, Any] | None = None
    scores: ScoreKind = "auto"

    def __post_init__(self) -> None:
        checked(self.scores)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._sample.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the floating-point parameters."""
        return self._sample.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LoadedModel:
        """The same model moved and cast, in place as `nn.Module.to` is."""
        self.sha256  # noqa: B018  a cast changes the bytes; the identity is that of the file
        self.module.to(device=device, dtype=dtype)
        return self

    @cached_property
    def sha256(self) -> str:
        """Identity of the weights: over names, types, shapes and bytes of the state dict, in order."""
        import hashlib

        import torch

        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            if not isinstance(tensor, torch.Tensor):  # extra state of a module may be anything
                continue
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            flat = tensor.detach().contiguous().cpu().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def _sample(self) -> Tensor:
        for parameter in self.module.parameters():
            if parameter.is_floating_point():
                return parameter
        raise ModelError(f"model {self.name!r} has no floating-point parameters")


class ModelSource(ABC):
    """Loads models. Registered under `camkit.models`; the name is the scheme before the colon."""

    api_version: ClassVar[int] = API_VERSION
    summary: ClassVar[str]

    @abstractmethod
    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The model that `reference`, the text behind the scheme, names.

        trust: the user allowed pickles with `--trust-pickle`; without it nothing is ever unpickled.
        Raises `ModelError` if there is no such model, it cannot be read, or weights do not fit.
        """

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """The module of a bundle, weights left as they come; `architecture` is from a stranger's file.

        Raises `ModelError` for an architecture that this source does not know.
        """
        raise ModelError(f"{type(self).__name__} does not build modules for bundles")

    def names(self) -> Iterable[str]:
        """The references it knows, for `camkit model list`."""
        return ()


# --- trainers -------------------------------------------------------------------------------------

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TrainRequest:
    """What `camkit.train` asks of a trainer.

    data: a folder of photographs, or the name of a data set that the trainer fetches.
    out: the folder that the bundle and everything else is written to, and nothing outside it.
    recipe: the parsed table (TOML), one of the trainer's `recipes` or the user's own.
    arch: what to train, such as `resnet34`; weights: what it starts from: `default` (pretrained), `none`
        or a file.
    precision: of the arithmetic; weights stay float32.
    resume: go on from the last finished epoch in `out`.
    progress: called with a fraction in [0, 1] and a line of text.
    """

    data: str
    out: Path
    recipe: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    arch: str = "resnet34"
    weights: str = "default"
    seed: int = 0
    device: str = "auto"
    precision: Precision = "float32"
    resume: bool = False
    progress: Callable[[float, str], None] | None = None


@dataclass(frozen=True)
class TrainResult:
    """What came of it.

    bundle: the folder of the trained model.
    metrics: final figures by name, as fractions, for example `{"error_rate": 0.058}`.
    history: one record for each epoch; steps: `loss` and `lr` of each step of the optimiser.
    validation: the photographs that were held out, with their class; camkit reports on them.
    """

    bundle: Path
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    steps: tuple[Mapping[str, float], ...] = ()
    validation: tuple[tuple[Path, str], ...] = ()


class Trainer(ABC):
    """Trains a classifier and writes a bundle. Registered under `camkit.trainers`.

    recipes: TOML files by name; the first is the default. The host parses them.
    """

    api_version: ClassVar[int] = API_VERSION
    summary: ClassVar[str]
    recipes: ClassVar[Mapping[str, Path]] = {}
    Options: ClassVar[type] = NoOptions

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def train(self, request: TrainRequest) -> TrainResult:
        """Write a bundle into `request.out`, or raise a `CamkitError` and leave none."""

    def preview(self, request: TrainRequest, photo: Image) -> Mapping[str, Sequence[Image]]:
        """What augmentation makes of `photo`, by the name of each way of doing it."""
        raise UsageError(f"{type(self).__name__} has no preview of its augmentation")
