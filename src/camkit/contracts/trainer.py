"""What a trainer is: it trains a classifier and writes a bundle."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from camkit.contracts.options import API_VERSION, NoOptions
from camkit.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class TrainRequest:
    """What `camkit.train` asks of a trainer.

    data: a folder of photographs, a table of labels, or the name of a data set that the trainer fetches.
    out: the folder that the bundle and everything else is written to, and nothing outside it.
    recipe: the parsed table (TOML), one of the trainer's `recipes` or the user's own.
    arch: what to train, such as `resnet34`; weights: what it starts from: `default` (pretrained), `none`
        or a file.
    precision: of the arithmetic; weights stay float32.
    resume: go on from the last finished epoch in `out`.
    progress: called with a fraction in [0, 1] and a line of text.
    on_error: whether to go on without photographs that cannot be read, or to stop at them.
    labels, label_column: what a table of labels holds, where it does not look so.
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
    on_error: Literal["skip", "fail"] = "fail"
    labels: Literal["auto", "one", "several"] = "auto"
    label_column: str | None = None


@dataclass(frozen=True)
class TrainResult:
    """What came of it.

    bundle: the folder of the trained model.
    metrics: final figures by name, as fractions, for example `{"error_rate": 0.058}`.
    history: one record for each epoch; steps: `loss` and `lr` of each step of the optimiser.
    validation: the photographs that were held out, with their class, or the tuple of their several labels;
        camkit reports on them.
    trained_on: how many photographs there were of each class. told: lines on the data.
    skipped: how many photographs could not be used.
    """

    bundle: Path
    metrics: Mapping[str, float]
    history: tuple[Mapping[str, float], ...] = ()
    steps: tuple[Mapping[str, float], ...] = ()
    validation: tuple[tuple[Path, str | tuple[str, ...]], ...] = ()
    trained_on: Mapping[str, float] = dataclasses.field(default_factory=dict)
    told: tuple[str, ...] = ()
    skipped: int = 0


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
