"""What to measure, and how much that may cost."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from camkit.bench.timing import Rounds

Groups = Mapping[str, tuple[str, ...]]

# The metric plugins of each group.
GROUPS: Groups = {
    "latency": (),
    "agreement": ("spearman", "pearson", "ssim", "overlap"),
    "faithfulness": (
        *("symmetric-relevance-gain", "deletion", "insertion", "road"),
        *("average-drop", "increase", "infidelity", "max-sensitivity"),
    ),
    "localisation": ("pointing-game", "energy-pointing-game", "relevance-rank", "iou"),
    "sanity": ("sanity-cascading", "sanity-independent", "random-logit"),
    "complexity": ("gini", "entropy"),
}
# Of a quick run: those of the headline table.
QUICK_GROUPS: Groups = {
    "latency": (),
    "agreement": ("spearman",),
    "faithfulness": ("symmetric-relevance-gain",),
    "localisation": ("pointing-game", "energy-pointing-game"),
    "sanity": ("sanity-cascading",),
    "complexity": ("gini",),
}


@dataclass(frozen=True)
class Effort:
    """What a run may cost.

    rounds: of timing for each batch size. batch_sizes: on a CPU, on a GPU. images: photographs that are
    looked at. shapes: drawn images. mosaics: of 2 x 2 images each. groups: metrics; options: theirs.
    """

    rounds: Rounds
    batch_sizes: tuple[tuple[int, ...], tuple[int, ...]]
    images: int
    shapes: int
    mosaics: int
    groups: Groups
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


FULL = Effort(Rounds(seconds=10), ((1, 8), (1, 8, 32)), images=16, shapes=24, mosaics=4, groups=GROUPS)
QUICK = Effort(
    Rounds(warmup=1, seconds=2),
    ((1, 4), (1, 8)),
    images=4,
    shapes=16,
    mosaics=0,
    groups=QUICK_GROUPS,
    options={"symmetric-relevance-gain": {"steps": 10}, "sanity-cascading": {"stages": 3}},
)


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    backends: none means every installed one. images: files, folders or globs; none is the bundled
    photograph. truth: annotations of them (see `camkit.metrics.truth`); without, localisation is measured
    on drawn shapes. metrics: groups, or names of metric plugins. rounds: of timing for each batch size;
    `None` lets time decide. limit: of photographs, evenly spread. What is left out is decided by `quick`.
    """

    model: str = "pets"
    backends: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("gradcam",)
    layer: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    truth: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    batch_sizes: tuple[int, ...] = ()
    metrics: tuple[str, ...] = tuple(GROUPS)
    rounds: int | None = None
    limit: int | None = None
    seed: int = 0
    quick: bool = False
    trust_pickle: bool = False

    @property
    def effort(self) -> Effort:
        """What may be spent."""
        return QUICK if self.quick else FULL

    @property
    def timing(self) -> Rounds:
        """The rounds of timing."""
        if self.rounds is None:
            return self.effort.rounds
        return replace(self.effort.rounds, least=self.rounds, most=self.rounds)

    def measures(self) -> tuple[str, ...]:
        """The metric plugins that the groups mean."""
        names: list[str] = []
        for name in self.metrics:
            names += self.effort.groups.get(name, (name,))
        return tuple(dict.fromkeys(names))


# The option of each field; those with a comma between their values, and those that are repeated.
OPTIONS = {
    **{"model": "--model", "backends": "--backend", "methods": "--method", "layer": "--layer"},
    **{"options": "--option", "images": "--images", "truth": "--truth", "device": "--device"},
    **{"dtype": "--dtype", "batch_sizes": "--batch-size", "metrics": "--metrics", "rounds": "--rounds"},
    **{"limit": "--limit", "seed": "--seed", "quick": "--quick", "trust_pickle": "--trust-pickle"},
}
JOINED = ("batch_sizes", "metrics")


def command(request: BenchRequest) -> str:
    """The command that repeats a request. Of absolute paths only the last part is told."""
    words = ["camkit", "bench"]
    for name, option in OPTIONS.items():
        value = getattr(request, name)
        if value == getattr(BenchRequest(), name):
            continue
        if value is True:
            words.append(option)
            continue
        if isinstance(value, Mapping):
            value = tuple(f"{key}={item}" for key, item in value.items())
        values = value if isinstance(value, tuple) else (value,)
        texts = [",".join(map(str, values))] if name in JOINED else map(str, values)
        for text in texts:
            words += [option, PurePath(text).name if PurePath(text).is_absolute() else text]
    return shlex.join(words)
