"""What a metric is: it scores maps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from camkit.contracts.options import API_VERSION, NoOptions
from camkit.contracts.scores import ScoreKind

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class MapBatch:
    """Maps of one explainer and what they explain: everything that a metric may look at.

    maps: raw, float `[B, h, w]`, float32 at least.
    module: from inputs to scores `[B, n_classes]`; the host sees to eval mode and to the random state.
    inputs: float `[B, C, H, W]`; targets: int64 `[B]`, as in `Query`; all on one device.
    truth: bool `[B, H, W]`, where the evidence is; nowhere true if it is not known for an image.
    reference: maps `[B, h, w]` of another explainer, to compare with.
    explain: from other inputs and targets to the maps of the same explainer for the same module.
    seed: the random seed.
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
    """The scores of a batch.

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
