"""What to measure, and how much that may cost."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Any

from camkit.bench.timing import Rounds
from camkit.core.device_names import Precision
from camkit.explaining.repeating import said_words
from camkit.models.facts import ModelFacts

LATENCY = "latency"  # what is measured besides the categories of metrics
AGREEMENT = "agreement"
# Metrics of camkit that a quick run leaves out: those that are not in the headline table.
LEFT_OUT = frozenset(
    (
        *("pearson", "ssim", "overlap", "jaccard", "deletion", "insertion", "road", "average-drop"),
        *("increase", "infidelity", "max-sensitivity", "relevance-rank", "iou", "sanity-independent"),
        *("random-logit", "entropy"),
    )
)


@dataclass(frozen=True)
class Effort:
    """What a run may cost.

    rounds: of timing for each batch size, in each of the processes. batch_sizes: on a CPU, on a GPU.
    images: photographs to explain. shapes: drawn images. mosaics: of 2 x 2 images each.
    left_out: metrics that run only if they are named; options: of metrics.
    """

    rounds: Rounds
    processes: int
    batch_sizes: tuple[tuple[int, ...], tuple[int, ...]]
    images: int
    shapes: int
    mosaics: int
    left_out: frozenset[str] = frozenset()
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


FULL = Effort(
    Rounds(warmup=1, least=3, seconds=1),
    3,
    ((1, 8), (1, 8, 32)),
    images=16,
    shapes=16,
    mosaics=8,
    options={"symmetric-relevance-gain": {"steps": 10}, "infidelity": {"samples": 16}},
)
QUICK = Effort(
    Rounds(warmup=1, least=3, seconds=1),
    1,
    ((1, 4), (1, 8)),
    images=4,
    shapes=16,
    mosaics=0,
    left_out=LEFT_OUT,
    options={"symmetric-relevance-gain": {"steps": 10}, "sanity-cascading": {"stages": 3}},
)


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    facts: what belongs to the model, where it does not say it itself. classes to targets: what is
    explained, called as the options of `camkit explain`. backends: none means every installed one.
    images: files, folders or globs; none is the bundled photograph. truth: annotations of them (see
    `camkit.metrics.ground_truth`); without, localisation is measured on drawn shapes. metrics:
    `latency`, categories, or names of metric plugins; none means all. rounds: of timing for each batch size
    in each process; `None` lets time decide. processes: how many to time in, one after the other; 1 is this
    one. limit: of photographs, evenly spread. quick: leave out `LEFT_OUT` and more.
    """

    model: str = "pets"
    facts: ModelFacts = field(default_factory=ModelFacts)
    classes: tuple[str, ...] = ("pred",)
    boxes: tuple[str, ...] = ()
    at: tuple[tuple[float, float], ...] = ()
    min_score: float | None = None
    texts: tuple[str, ...] = ()
    like: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("gradcam",)
    layer: str = "auto"
    options: Mapping[str, str] = field(default_factory=dict)
    images: tuple[str, ...] = ()
    truth: str | None = None
    device: str = "auto"
    dtype: str = "float32"
    precision: Precision = "ieee"
    batch_sizes: tuple[int, ...] = ()
    metrics: tuple[str, ...] = ()
    rounds: int | None = None
    processes: int | None = None
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

    @property
    def process_count(self) -> int:
        """The processes that measure."""
        return self.processes or self.effort.processes

    @property
    def photographs(self) -> int:
        """How many photographs to explain, at most."""
        return self.limit or self.effort.images

    def wants(self, what: str) -> bool:
        """Whether latency, or a category of metrics, is asked for."""
        return not self.metrics or what in self.metrics

    def measures(self, categories: Mapping[str, str]) -> tuple[str, ...]:
        """The requested metrics among those with `categories`; names take precedence over categories."""
        if not self.metrics:
            return tuple(name for name in categories if name not in self.effort.left_out)
        names: list[str] = []
        for asked in self.metrics:
            group = [name for name, category in categories.items() if category == asked]
            names += [asked] if asked in categories else (n for n in group if n not in self.effort.left_out)
        return tuple(dict.fromkeys(names))


# The option of each field; `JOINED` ones have commas between their values, others are repeated.
OPTIONS = {
    **{
        "model": "--model",
        "classes": "--class",
        "boxes": "--box",
        "at": "--at",
        "min_score": "--min-score",
    },
    **{"texts": "--text", "like": "--like", "targets": "--target"},
    **{"backends": "--backend", "methods": "--method", "layer": "--layer"},
    **{"options": "--option", "images": "--images", "truth": "--truth", "device": "--device"},
    **{"dtype": "--dtype", "precision": "--precision"},
    **{"batch_sizes": "--batch-size", "metrics": "--metrics", "rounds": "--rounds"},
    **{"processes": "--processes", "limit": "--limit", "seed": "--seed", "quick": "--quick"},
    "trust_pickle": "--trust-pickle",
}
JOINED = ("batch_sizes", "metrics", "groups")


# What is said beside a command.
AGAIN = (
    "Of absolute paths only the last part is shown, and no --out: give them as they are on your machine."
)


def command(request: BenchRequest) -> str:
    """The command that repeats a request. Of absolute paths only the last part is shown."""
    words = option_words(request, BenchRequest(), OPTIONS)
    return shlex.join(["camkit", "bench", *words, *said_words(request.facts.told())])


def option_words(request: Any, usual: Any, options: Mapping[str, str]) -> list[str]:
    """What differs from the usual, as words of a command; options: by the name of the field."""
    words = []
    for name, option in options.items():
        value = getattr(request, name)
        if value == getattr(usual, name):
            continue
        if value is True:
            words.append(option)
            continue
        if isinstance(value, Mapping):
            value = tuple(f"{key}={item}" for key, item in value.items())
        values = value if isinstance(value, tuple) else (value,)
        texts = [",".join(map(str, values))] if name in JOINED else map(_text, values)
        for text in texts:
            words += [option, shown(text)]
    return words


def _text(value: Any) -> str:
    """A value; a place as the command takes it."""
    return ",".join(f"{number:g}" for number in value) if isinstance(value, tuple) else str(value)


def shown(text: str) -> str:
    """A value of a command; of an absolute path only the last part."""
    return PurePath(text).name if PurePath(text).is_absolute() else text
