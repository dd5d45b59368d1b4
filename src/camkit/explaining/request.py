"""What a run of `camkit explain` is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from camkit.core.device_names import Precision
from camkit.drawing.style import Style
from camkit.explaining.embedding import ImageFormat
from camkit.explaining.manifest_lines import Format
from camkit.images.listing import Listing
from camkit.images.shard import Shard
from camkit.models.facts import ModelFacts


@dataclass(frozen=True)
class ExplainRequest:
    """Photographs, the model, what is computed, how it is drawn, and where it goes.

    images: files, folders, globs or addresses; none is the bundled photograph. listing: photographs in
    place of `images` and `shard`. options: of the explainers, as texts or values. batch_size: photographs
    in one forward. on_error: go on without a photograph that cannot be
    explained, or stop at it. trust_pickle: let a model source load pickles, which run code.
    facts: what belongs to the model, where it does not say it itself. truth: annotations of where objects
    are, see `camkit.metrics.ground_truth`.
    texts: that photographs are compared with, in place of the classes of the model. targets: numbers made
    of all scores in place of `classes`, see `score_targets`; like: photographs to compare others with.
    The other fields are called as the options of the command.
    """

    images: tuple[str, ...] = ()
    model: str = "pets"
    backends: tuple[str, ...] = ("native",)
    methods: tuple[str, ...] = ("gradcam",)
    classes: tuple[str, ...] = ("pred",)
    texts: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    like: tuple[str, ...] = ()
    boxes: tuple[str, ...] = ()
    min_score: float | None = None
    at: tuple[tuple[float, float], ...] = ()
    layers: tuple[str, ...] = ("auto",)
    layout: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    style: Style = field(default_factory=Style)
    format: Format = "png"
    image_format: ImageFormat = "png"
    out: Path = Path("camkit-out")
    device: str = "auto"
    dtype: str = "float32"
    precision: Precision = "ieee"
    facts: ModelFacts = field(default_factory=ModelFacts)
    batch_size: int = 16
    resume: bool = False
    shard: Shard = field(default_factory=Shard)
    on_error: Literal["skip", "fail"] = "skip"
    trust_pickle: bool = False
    truth: str | None = None
    listing: Listing | None = None

    def of_plan(self) -> dict[str, Any]:
        """What is computed for every photograph, as arguments of `plan`."""
        names = "classes backends methods layout options precision boxes min_score at".split()
        return {name: getattr(self, name) for name in names} | {"layer": self.layers}
