"""What a benchmark found, as `bench.json` holds it: the fields are its keys, in its order.

A document may come from anybody. Whatever a report or a comparison reads has its type and its limits here,
and `read` checks that its parts fit together: what goes wrong afterwards is a fault of camkit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

from camkit.bench.statistics import Estimate
from camkit.bench.typed_json import Fault, Most, Parts, Range, from_json, parts
from camkit.errors import printable

SCHEMA = 1
FORWARD = ("bare", "forward")
OF_CLASSES = "photographs"  # the scene of photographs that are explained for classes
BOXES, SEGMENTS = PLACES = ("boxes", "segments")  # the scenes of what a model finds, and where
SHAPES = "shapes"  # the scene of drawn ones, explained for a network of their own
MOSAICS = "mosaics"  # the scene of the grid pointing game, whose score is `ENERGY`
ENERGY = "energy-pointing-game"
GAIN = "symmetric-relevance-gain"
SANITY = ("sanity-cascading", "sanity-independent", "random-logit")

# How far maps of one method may differ and count as equal, relative to their peak.
EQUAL = {"float64": 1e-5, "float32": 1e-3, "bfloat16": 5e-2, "float16": 1e-2}
ALIKE = 0.999  # rank correlation from which two maps differ only by rounding

MAX_ROWS = 200  # each is a line in every table, and in pictures
MAX_IMAGES = 1000  # of a scene: intervals take memory for each
MAX_BATCHES = 64  # each has a picture
MAX_SHOWN = 24  # maps of a photograph that are shown side by side
MAX_VALUES = 10**6  # scores of images, of all rows together
MAX_DEPTH = 16

Name = Annotated[str, Most(200)]
Line = Annotated[str, Most(2000)]
Names = Annotated[list[Line], Most(MAX_IMAGES)]
Count = Annotated[int, Range(0, 1e9)]
Size = Annotated[int, Range(1, 1e6)]
Seconds = Annotated[float, Range(1e-9, 1e9)]
Value = Annotated[float, Range(-1e30, 1e30)]
Values = Annotated[list[Value | None], Most(MAX_IMAGES)]
Fact = Annotated[Any, Parts(5000, 10**5)]
Facts = Annotated[dict[str, Fact], Most(1000)]


@dataclass
class Median:
    """A median, or the mean of those of several processes, with its 95 % interval if it has one."""

    median: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, estimate: Estimate, **more: Any) -> Self:
        """From an estimate."""
        return cls(estimate.middle, estimate.low, estimate.high, **more)


@dataclass
class Against(Median):
    """The ratio to the reference, and the verdict."""

    verdict: Name


@dataclass(kw_only=True)
class Samples:
    """Seconds of each round, and the process it ran in; `device` and `enqueue` are those of a GPU."""

    process: Annotated[list[Annotated[int, Range(0, 1e6)]], Most(MAX_VALUES)] | None = None
    host: Annotated[list[Seconds], Most(MAX_VALUES)]
    device: Annotated[list[float | None], Most(MAX_VALUES)] | None = None
    enqueue: Annotated[list[float | None], Most(MAX_VALUES)] | None = None

    def by_process(self) -> dict[int, list[float]]:
        """Seconds from call to result of the rounds of each process; older documents have only one."""
        found: dict[int, list[float]] = {}
        for process, seconds in zip(self.process or [0] * len(self.host), self.host, strict=True):
            found.setdefault(process, []).append(seconds)
        return found


@dataclass(kw_only=True)
class LatencyRecord:
    """What calls took at one batch size, in seconds and bytes; see `latency.latency_record`."""

    batch: Annotated[int, Range(1, 1e9)]
    seconds: Median
    p90: float | None = None
    p99: float | None = None
    images_per_second: Annotated[float, Range(1e-9, 1e15)]
    ratio: Median | None
    against: Against | None
    cold: float | None = None
    compile: float | None = None
    launch_bound: bool | None = None
    memory: Annotated[dict[str, float], Most(16)]
    samples: Samples


@dataclass(kw_only=True)
class Score:
    """A metric's score of a row on one scene: `values` of each image, and their mean with its interval.

    Of several values of a photograph, their mean counts as one. defined: how many images have a value.
    passed: of a test. curves and steps: as `camkit.Scores` has them.
    """

    mean: Value | None
    low: float | None
    high: float | None
    defined: int | None = None
    passed: bool | None
    values: Values
    curves: Annotated[list[Values], Most(MAX_IMAGES)] | None = None
    steps: Names | None = None


@dataclass
class Row:
    """One line of the tables. `kind`: forward, explainer or control. `scores`: by scene and metric."""

    kind: Name
    backend: Name
    method: Name
    version: Line = field(default="", kw_only=True)
    parity: float | None = field(kw_only=True)
    latency: Annotated[list[LatencyRecord], Most(MAX_BATCHES)] = field(kw_only=True)
    scores: Annotated[dict[str, Annotated[dict[str, Score], Most(100)]], Most(4)] = field(kw_only=True)
    notes: Annotated[list[Line], Most(1000)] = field(kw_only=True)
    failed: bool = field(default=False, kw_only=True)

    @property
    def key(self) -> str:
        """Backend and method, as tables and pictures name it."""
        return f"{self.backend} {self.method}"

    @property
    def first(self) -> LatencyRecord | None:
        """The latency of the smallest batch."""
        return self.latency[0] if self.latency else None

    @property
    def best(self) -> LatencyRecord | None:
        """The latency of the batch size with the highest throughput."""
        return max(self.latency, key=lambda record: record.images_per_second, default=None)

    @property
    def peak(self) -> float | None:
        """The most memory that the smallest batch takes, in bytes: allocated, or resident on a CPU."""
        memory = self.first.memory if self.first else {}
        return memory.get("allocated", memory.get("resident"))

    def score(self, metric: str) -> Score | None:
        """A metric, of the first scene that has it."""
        return next((scores[metric] for scores in self.scores.values() if metric in scores), None)

    @property
    def grid(self) -> Score | None:
        """The score of the grid pointing game."""
        return self.scores.get(MOSAICS, {}).get(ENERGY)

    @property
    def sane(self) -> bool | None:
        """Whether all tests that ran are passed; `None` if none ran."""
        verdicts = [score.passed for score in map(self.score, SANITY) if score and score.passed is not None]
        return all(verdicts) if verdicts else None


@dataclass(kw_only=True)
class Settings:
    """What was asked for, and the model and layer that this meant."""

    model: Line
    model_sha256: Line | None = None
    layer: Line
    size: Annotated[list[Size], Most(8)] | None = None
    dtype: Line
    options: Facts = field(default_factory=dict)
    backends: Names | None = None
    methods: Names | None = None
    metrics: Fact = None
    processes: Count | None = None
    seed: Annotated[int, Range(0)] | None = None
    quick: bool | None = None


@dataclass(kw_only=True)
class Environment:
    """The machine and its libraries; `rest` has all the facts, whatever they are."""

    device_name: Fact = None
    threads: Fact = None
    cores: float | None = None
    rest: Facts


@dataclass(kw_only=True)
class MachineState:
    """What changes during a run; `rest` has all the facts."""

    load: float | None = None
    rest: Facts


@dataclass
class Conditions:
    """The state of the machine before and after."""

    before: MachineState | None = None
    after: MachineState | None = None


@dataclass(kw_only=True)
class SceneFacts:
    """The images of a scene, and for how many of them the truth is known.

    names: of what is explained. photographs: the number of that, or of the mosaic, of each image;
    none: each is its own.
    """

    name: Name
    model: Line = ""
    layer: Line = ""
    images: Count
    titles: Names = field(default_factory=list)
    names: Names = field(default_factory=list)
    photographs: Annotated[list[Count], Most(MAX_IMAGES)] = field(default_factory=list)
    with_truth: Count
    truth_share: float | None = None
    remark: Line | None = None
    failures: Names = field(default_factory=list)

    @property
    def independent(self) -> int:
        """How many images do not depend on each other, as those of one photograph do."""
        return len(set(self.photographs)) or self.images


@dataclass(kw_only=True)
class MetricFacts:
    """What a metric says about itself."""

    category: Name | None = None
    dist: Name | None = None
    summary: Line
    direction: Line
    range: Annotated[list[float | None], Most(2)] | None = None
    limit: float | None
    paper: Line


@dataclass
class Measure:
    """Means over the images for every pair of maps; quantiles (2.5, 50, 97.5 %) of random maps."""

    mean: Annotated[list[Annotated[list[Value | None], Most(MAX_ROWS)]], Most(MAX_ROWS)]
    null: Annotated[list[float | None], Most(3)]


@dataclass
class Agreement:
    """How far the maps of one scene agree, at `size` (height, width); empty if that was not measured."""

    names: Annotated[list[Annotated[str, Most(401)]], Most(MAX_ROWS)] = field(default_factory=list)
    size: Annotated[list[Size], Most(2)] = field(default_factory=list)
    measures: Annotated[dict[str, Measure], Most(100)] = field(default_factory=dict)


@dataclass
class HardCase:
    """One backend's maps in a case in which libraries differ; see `camkit.bench.parity_cases`."""

    method: Name
    case: Name
    backend: Name
    difference: float | None
    error: Line | None
    equal: bool | None


@dataclass
class Example:
    """A picture of an image on which two explainers disagree."""

    file: Line
    title: Line
    pair: Names = field(default_factory=list)
    spearman: float | None = None


@dataclass(kw_only=True)
class ShownMap:
    """A map of one row on a photograph: its picture, if it could be drawn, and any remark.

    full: the value of the strongest colour; low, high: the extremes of the map.
    """

    row: Annotated[str, Most(401)]
    file: Line | None = None
    full: float | None = None
    low: float | None = None
    high: float | None = None
    remark: Line = ""


@dataclass(kw_only=True)
class ShownPhotograph:
    """A photograph, as the model saw it, with the class that is explained, and maps of all explainers."""

    title: Line
    class_name: Line
    probability: float | None = None
    file: Line
    maps: Annotated[list[ShownMap], Most(MAX_SHOWN)]


@dataclass(kw_only=True)
class Document:
    """A whole benchmark."""

    schema: int = SCHEMA
    created: Line | None = None
    command: Annotated[str, Most(10**6)]
    settings: Settings
    environment: Environment
    conditions: Conditions
    scenes: Annotated[list[SceneFacts], Most(4)]
    metrics: Annotated[dict[str, MetricFacts], Most(100)]
    rows: Annotated[list[Row], Most(MAX_ROWS)]
    agreement: Annotated[dict[str, Agreement], Most(4)]
    hard_cases: Annotated[list[HardCase], Most(10_000)] | None = None
    examples: Annotated[list[Example], Most(8)]
    shown: Annotated[list[ShownPhotograph], Most(8)] = field(default_factory=list)

    @property
    def load(self) -> float | None:
        """The machine's load before the run."""
        return self.conditions.before.load if self.conditions.before else None


def read(value: Any) -> Document:
    """A document from what JSON holds; `Fault` for the first thing that is wrong, with its place."""
    if any(depth > MAX_DEPTH for depth, _ in parts(value)):
        raise Fault(f"it is nested more than {MAX_DEPTH} deep")
    try:
        document = from_json(Document, value)
    except Fault as fault:
        raise Fault(str(fault).removeprefix(".")) from None
    for contradiction in _contradictions(document):
        raise Fault(contradiction)
    return document


def _contradictions(document: Document) -> Iterator[str]:
    """What is wrong between parts that are valid on their own."""
    records = [record for row in document.rows for record in row.latency]
    if (count := len({record.batch for record in records})) > MAX_BATCHES:
        yield f"it has {count:,} batch sizes, more than {MAX_BATCHES}"
    for samples in (record.samples for record in records):
        if len(samples.process or samples.host) != len(samples.host):
            yield "samples of one record differ in number"
    yield from _contradictions_of_scores(document)
    for scene, agreement in document.agreement.items():
        for name, measure in agreement.measures.items():
            widths = {len(measure.mean), *map(len, measure.mean)}
            square = bool(agreement.names) and widths == {len(agreement.names)}
            if not square or len(measure.null) != 3 or len(agreement.size) != 2:
                yield f"agreement.{printable(scene)}.measures.{printable(name)} is no square with its names"


def _contradictions_of_scores(document: Document) -> Iterator[str]:
    by_place: dict[tuple[str, str], list[Score]] = {}
    for row in document.rows:
        for scene, found in row.scores.items():
            for metric, score in found.items():
                by_place.setdefault((scene, metric), []).append(score)
    if (count := sum(len(score.values) for scores in by_place.values() for score in scores)) > MAX_VALUES:
        yield f"it has {count:,} scores, more than {MAX_VALUES:,}"
    photographs = {scene.name: len(scene.photographs) for scene in document.scenes if scene.photographs}
    for (scene, metric), scores in by_place.items():
        if len({len(score.values) for score in scores}) > 1:
            yield f"rows have different numbers of {printable(metric)} of the {printable(scene)}"
        if photographs.get(scene, len(scores[0].values)) != len(scores[0].values):
            yield f"{printable(metric)} of the {printable(scene)} are not of its photographs"
        if any(len({len(curve) for curve in score.curves or ()}) > 1 for score in scores):
            yield "curves of one score differ in length"
