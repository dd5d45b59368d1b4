"""What a `bench.json` must hold, as a table, and the first place in which a document differs from it.

A document may come from anybody. Whatever a report or a comparison reads of it has its kind and its limits
here, so that what goes wrong afterwards is no damage.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from camkit.errors import printable

MAX_ROWS = 200  # each is a line in every table, and in pictures
MAX_IMAGES = 1000  # of a scene: intervals take memory for each
MAX_BATCHES = 64  # each has a picture
MAX_VALUES = 10**6  # scores of images, of all rows together
MAX_DEPTH = 16
_BIG = sys.float_info.max


class Shape(ABC):
    """What a value has to be; `faults` says of it what is wrong, behind the place of the value."""

    kind: str

    @abstractmethod
    def faults(self, value: Any) -> Iterator[str]:
        """Whatever is wrong, one by one."""

    def is_missing(self) -> Iterator[str]:
        """What is wrong if there is no value."""
        yield f" is missing or no {self.kind}"


@dataclass(frozen=True)
class Text(Shape):
    """A text of at most so many characters."""

    most: int
    kind = "str"

    def faults(self, value: Any) -> Iterator[str]:
        """As of any shape."""
        if not isinstance(value, str):
            yield from self.is_missing()
        elif len(value) > self.most:
            yield f" is a text of {len(value):,} characters, more than {self.most:,}"


@dataclass(frozen=True)
class Number(Shape):
    """A finite number between two others."""

    low: float = -_BIG
    high: float = _BIG
    whole: bool = False
    kind = "number"

    def faults(self, value: Any) -> Iterator[str]:
        """As of any shape."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            yield from self.is_missing()
        elif not self.low <= value <= self.high:
            yield f" is {str(value)[:20]}, not between {self.low:g} and {self.high:g}"


class Flag(Shape):
    """True or false."""

    kind = "bool"

    def faults(self, value: Any) -> Iterator[str]:
        """As of any shape."""
        if not isinstance(value, bool):
            yield from self.is_missing()


@dataclass(frozen=True)
class Many(Shape):
    """A list of at most so many."""

    each: Shape
    most: int
    kind = "list"

    def faults(self, value: Any) -> Iterator[str]:
        """As of any shape."""
        if not isinstance(value, list):
            yield from self.is_missing()
        elif len(value) > self.most:
            yield f" is a list of {len(value):,}, more than {self.most:,}"
        else:
            for index, item in enumerate(value):
                for fault in self.each.faults(item):
                    yield f"[{index}]{fault}"


@dataclass(frozen=True)
class Named(Shape):
    """A table of at most so many with names of any kind."""

    each: Shape
    most: int
    kind = "dict"

    def faults(self, value: Any) -> Iterator[str]:
        """As of any shape."""
        if not isinstance(value, dict):
            yield from self.is_missing()
        elif len(value) > self.most:
            yield f" has {len(value):,} entries, more than {self.most:,}"
        else:
            for name, item in value.items():
                for fault in (*NAME.faults(name), *self.each.faults(item)):
                    yield f".{printable(name[:40])}{fault}"


@dataclass(frozen=True)
class Record(Shape):
    """A table with these entries, and others that have the shape `rest`; or nothing, where `or_empty`."""

    fields: Mapping[str, Shape]
    rest: Shape | None = None
    or_empty: bool = False
    kind = "dict"

    def faults(self, value: Any) -> Iterator[str]:
        """As of any shape."""
        if not isinstance(value, dict):
            yield from self.is_missing()
            return
        if self.or_empty and not value:
            return
        for key, shape in self.fields.items():
            for fault in shape.faults(value[key]) if key in value else shape.is_missing():
                yield f".{key}{fault}"
        if self.rest:
            others = {key: item for key, item in value.items() if key not in self.fields}
            yield from Named(self.rest, 1000).faults(others)


@dataclass(frozen=True)
class Maybe(Shape):
    """A value or null; it may also be missing, where documents of old do not have it."""

    shape: Shape
    missing: bool = False

    def faults(self, value: Any) -> Iterator[str]:
        """As of any shape."""
        return iter(()) if value is None else self.shape.faults(value)

    def is_missing(self) -> Iterator[str]:
        """As of any shape."""
        return iter(()) if self.missing else self.shape.is_missing()


@dataclass(frozen=True)
class Free(Shape):
    """Anything of at most so many parts, with texts of so many characters in all."""

    most: int
    characters: int
    kind = "value"

    def faults(self, value: Any) -> Iterator[str]:
        """As of any shape."""
        characters = 0
        for count, (_, part) in enumerate(_parts(value), 1):
            characters += len(part) if isinstance(part, str) else 0
            if count > self.most or characters > self.characters:
                yield f" has more than {self.most:,} parts or {self.characters:,} characters"
                return


NAME, LINE, TEXT = Text(200), Text(2000), Text(10**6)
NUMBER, FREE = Number(), Free(5000, 10**5)
TIME = Number(1e-9, 1e9)
VALUE = Number(-1e30, 1e30)
INTERVAL = {"low": Maybe(NUMBER), "high": Maybe(NUMBER)}
ESTIMATE = Record({"median": NUMBER, **INTERVAL})
VALUES = Many(Maybe(VALUE), MAX_IMAGES)
RECORD = Record(
    {
        "batch": Number(1, 10**9, whole=True),
        "seconds": ESTIMATE,
        "ratio": Maybe(ESTIMATE),
        "against": Maybe(Record({**ESTIMATE.fields, "verdict": NAME})),
        "images_per_second": Number(1e-9, 1e15),
        **{key: Maybe(NUMBER, missing=True) for key in ("p90", "p99", "cold", "compile")},
        "memory": Named(NUMBER, 16),
        "samples": Record(
            {
                "host": Many(TIME, MAX_VALUES),
                "process": Maybe(Many(Number(0, 10**6, whole=True), MAX_VALUES), missing=True),
            }
        ),
    }
)
SCORE = Record(
    {
        "mean": Maybe(VALUE),
        **INTERVAL,
        "passed": Maybe(Flag()),
        "values": VALUES,
        "curves": Maybe(Many(VALUES, MAX_IMAGES), missing=True),
    }
)
ROW = Record(
    {
        **dict.fromkeys(("kind", "backend", "method"), NAME),
        "parity": Maybe(NUMBER),
        "latency": Many(RECORD, MAX_BATCHES),
        "scores": Named(Named(SCORE, 100), 4),
        "notes": Many(LINE, 1000),
    }
)
SCENE = Record(
    {
        "name": NAME,
        **{key: Number(0, 10**9, whole=True) for key in ("images", "with_truth")},
        "truth_share": Maybe(NUMBER, missing=True),
        "remark": Maybe(LINE, missing=True),
    }
)
METRIC = Record(
    {
        **dict.fromkeys(("direction", "summary", "paper"), LINE),
        "limit": Maybe(NUMBER),
        **{key: Maybe(NAME, missing=True) for key in ("category", "dist")},
    }
)
MEASURE = Record(
    {"mean": Many(Many(Maybe(VALUE), MAX_ROWS), MAX_ROWS), "null": Many(Maybe(NUMBER), 3)},
)
AGREEMENT = Record(
    {
        "names": Many(Text(401), MAX_ROWS),
        "size": Many(Number(1, 10**6, whole=True), 2),
        "measures": Record({"spearman": MEASURE, "ssim": MEASURE}, rest=MEASURE),
    },
    or_empty=True,
)
HARD_CASE = Record(
    {
        **dict.fromkeys(("backend", "method", "case"), NAME),
        "difference": Maybe(NUMBER),
        "error": Maybe(LINE),
        "equal": Maybe(Flag()),
    }
)
LOAD = Maybe(Record({"load": Maybe(NUMBER, missing=True)}, rest=FREE), missing=True)
DOCUMENT = Record(
    {
        "command": TEXT,
        "created": Maybe(LINE, missing=True),
        "settings": Record(dict.fromkeys(("model", "layer", "dtype"), LINE), rest=FREE),
        "environment": Record({"cores": Maybe(NUMBER, missing=True)}, rest=FREE),
        "conditions": Record({"before": LOAD}, rest=FREE),
        "scenes": Many(SCENE, 4),
        "metrics": Named(METRIC, 100),
        "rows": Many(ROW, MAX_ROWS),
        "agreement": Named(AGREEMENT, 4),
        "hard_cases": Maybe(Many(HARD_CASE, 10_000), missing=True),
        "examples": Many(Record({"file": LINE, "title": LINE}), 8),
    }
)


def fault(document: Mapping[str, Any]) -> str | None:
    """The first thing that is wrong with a document, in one line that begins with its place."""
    if any(depth > MAX_DEPTH for depth, _ in _parts(document)):
        return f"it is nested more than {MAX_DEPTH} deep"
    found = next(DOCUMENT.faults(document), None) or next(_unfitting(document), None)
    return found and found.removeprefix(".")


def _parts(value: Any) -> Iterator[tuple[int, Any]]:
    """Each part of a value, and how deep it lies."""
    waiting = [(0, value)]
    while waiting:
        depth, item = waiting.pop()
        yield depth, item
        inner = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting += [(depth + 1, one) for one in inner]


def _unfitting(document: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong between parts that are well for themselves."""
    records = [record for row in document["rows"] for record in row["latency"]]
    if (count := len({record["batch"] for record in records})) > MAX_BATCHES:
        yield f"it has {count:,} batch sizes, more than {MAX_BATCHES}"
    for samples in (record["samples"] for record in records):
        if len(samples.get("process") or samples["host"]) != len(samples["host"]):
            yield "samples of one record differ in number"
    scores = [
        score for row in document["rows"] for found in row["scores"].values() for score in found.values()
    ]
    if (count := sum(len(score["values"]) for score in scores)) > MAX_VALUES:
        yield f"it has {count:,} scores, more than {MAX_VALUES:,}"
    if any(len({len(curve) for curve in score.get("curves") or ()}) > 1 for score in scores):
        yield "curves of one score differ in length"
    for scene, found in document["agreement"].items():
        for name, measure in found.get("measures", {}).items():
            widths = {len(measure["mean"]), *map(len, measure["mean"])}
            square = bool(found["names"]) and widths == {len(found["names"])}
            if not square or len(measure["null"]) != 3 or len(found["size"]) != 2:
                yield f"agreement.{printable(scene)}.measures.{printable(name)} is no square with its names"
