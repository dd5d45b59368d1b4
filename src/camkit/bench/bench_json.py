"""`bench.json`: the one source of all tables and reports, and the figures that are read from it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from camkit.bench.schema import DOCUMENT, fault
from camkit.bench.statistics import Estimate
from camkit.errors import UsageError, reason
from camkit.files import read_regular, write_whole
from camkit.registry.discovery import HOST

SCHEMA = 1
NAME = "bench.json"
EXAMPLES = "examples"
MOSAICS = "mosaics"  # the scene of the grid pointing game, whose score is `ENERGY`
ENERGY = "energy-pointing-game"
GAIN = "symmetric-relevance-gain"
FORWARD = ("bare", "forward")
BUSY = 0.75  # of the cores at work before the run has begun
MAX_BYTES = 16 * 2**20  # some eighty times what a bench without options writes
MAX_NESTED = 500_000  # lists and tables, of which an empty one takes thirty times its two signs
KEYS = tuple(DOCUMENT.fields)

HEADERS = (
    *(
        "BACKEND",
        "METHOD",
        "MS",
        "X FORWARD",
        "IMAGES/S",
        "PEAK MIB",
        "AGREE",
        "GAIN",
        "POINTING",
        "ENERGY",
        "GRID",
    ),
    *("SANITY", "NOTES"),
)
LAST = 2  # of these come behind the metrics of other packages
# Columns of scores, by the metric they show.
SHOWN = ("spearman", GAIN, "pointing-game", ENERGY)
SANITY = ("sanity-cascading", "sanity-independent", "random-logit")
NOTHING = "-"


def plain(value: Any) -> Any:
    """As JSON holds it: numbers to seven digits, and `null` for what is not finite."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    return value


def estimate(value: Estimate, middle: str = "median") -> dict[str, float | None]:
    """An estimate as the document holds it."""
    return {middle: value.middle, "low": value.low, "high": value.high}


def as_json(document: Mapping[str, Any]) -> str:
    """One line of valid UTF-8, without NaN."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def write(folder: Path, document: Mapping[str, Any]) -> Path:
    """`bench.json` in `folder`."""
    return write_whole(folder / NAME, as_json(document))


def read(source: Path) -> dict[str, Any]:
    """The document in a folder, or in a file; `UsageError` if there is none, or it is damaged.

    It may come from anybody: `schema` says what it may hold.
    """
    path = source / NAME if os.path.isdir(source) else source  # noqa: PTH112  is_dir raises if it is too long
    try:
        data = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {reason(error)}") from None
    if data.count(b"[") + data.count(b"{") > MAX_NESTED:
        raise UsageError(f"{path} is damaged: it has more than {MAX_NESTED:,} lists and tables")
    try:
        document = json.loads(data, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {reason(error)}") from None
    if not isinstance(document, dict) or "schema" not in document:
        raise UsageError(f"{path} was not written by camkit bench")
    if document["schema"] != SCHEMA:
        raise UsageError(f"{path} has schema {str(document['schema'])[:20]}, this camkit reads {SCHEMA}")
    if wrong := fault(document):
        raise UsageError(f"{path} is damaged: {wrong}")
    return document


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


@contextmanager
def damage(*sources: Path) -> Iterator[None]:
    """What goes wrong with documents whose parts are well: these contradict each other, or we err."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        told = f"{type(error).__name__}: {error}"[:200]
        where = " or ".join(map(str, sources))
        raise UsageError(
            f"{where} is damaged, or camkit has a fault ({told}); --debug shows where"
        ) from error


# --- figures ----------------------------------------------------------------------------------------


def score(row: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    """A metric of a row: of the first scene that has it."""
    found = (scores[metric] for scores in row["scores"].values() if metric in scores)
    return next(found, None)


def grid(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The score of the grid pointing game."""
    found: dict[str, Any] | None = row["scores"].get(MOSAICS, {}).get(ENERGY)
    return found


def best(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The latency record of the batch size with the highest throughput."""
    records: Sequence[dict[str, Any]] = row["latency"]
    return max(records, key=lambda record: record["images_per_second"]) if records else None


def by_process(samples: Mapping[str, Any]) -> dict[int, list[float]]:
    """Seconds from call to result of the rounds of each process; documents of old know of one process."""
    host: list[float] = samples["host"]
    found: dict[int, list[float]] = {}
    for process, seconds in zip(samples.get("process") or [0] * len(host), host, strict=True):
        found.setdefault(process, []).append(seconds)
    return found


def peak(row: Mapping[str, Any]) -> int | None:
    """The most memory that the smallest batch takes, in bytes: allocated, or resident on a CPU."""
    memory = row["latency"][0]["memory"] if row["latency"] else {}
    found: int | None = memory.get("allocated", memory.get("resident"))
    return found


def figures(row: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of a row by name, as `--fail-if` has them; a test is 1 if it is passed, 0 if not.

    ms, ratio, memory (MiB), cold and compile (ms) are those of the first batch size, throughput that of the
    best.
    """
    first = row["latency"][0] if row["latency"] else None
    top, bytes_ = best(row), peak(row)
    values: dict[str, float | None] = {
        "ms": 1000 * first["seconds"]["median"] if first else None,
        "ratio": first["ratio"]["median"] if first and first["ratio"] else None,
        "throughput": top["images_per_second"] if top else None,
        "memory": None if bytes_ is None else bytes_ / 2**20,
        "cold": _ms(first, "cold"),
        "compile": _ms(first, "compile"),
        "parity": row["parity"],
        "grid": (grid(row) or {}).get("mean"),
        "sanity": None if sane(row) is None else float(bool(sane(row))),
    }
    for scores in reversed(list(row["scores"].values())):  # the first scene has the last word
        values |= {name: found["mean"] for name, found in scores.items()}
    return values


def _ms(record: Mapping[str, Any] | None, key: str) -> float | None:
    seconds = record.get(key) if record else None
    return None if seconds is None else 1000 * seconds


def all_figures(document: Mapping[str, Any]) -> dict[str, float | None]:
    """The figures of all rows, as `BACKEND.METHOD.FIGURE`."""
    return {
        figure_name(row["backend"], row["method"], figure): value
        for row in document["rows"]
        for figure, value in figures(row).items()
    }


def figure_name(backend: str, method: str, figure: str) -> str:
    """What an expression calls a figure."""
    return ".".join(map(slug, (backend, method, figure)))


FIGURES = (
    *("ms", "ratio", "throughput", "memory", "cold", "compile"),
    *("parity", "grid", "sanity"),
)


def sane(row: Mapping[str, Any]) -> bool | None:
    """Whether the tests are passed that were made; `None` if none was."""
    verdicts = [found["passed"] for name in SANITY if (found := score(row, name))]
    verdicts = [verdict for verdict in verdicts if verdict is not None]
    return all(verdicts) if verdicts else None


def slug(name: str) -> str:
    """A name as an expression can hold it: `grad-cam` is `grad_cam`, `gradcam++` is `gradcampp`."""
    return re.sub(r"\W", "_", name.replace("+", "p"))


def null_lines(document: Mapping[str, Any], scene: str | None = None) -> list[str]:
    """What independent random maps come to in each measure of agreement: the middle 95 %.

    scene: by default the first, of which only the measure in the headline table is told.
    """
    name = scene or document["scenes"][0]["name"]
    agreement = document["agreement"].get(name) or {"measures": {}}
    lines = []
    for measure, found in agreement["measures"].items():
        low, _, high = found["null"]
        if None not in (low, high) and (scene or measure == SHOWN[0]):
            height, width = agreement["size"]
            span = f"{low:.2f} to {high:.2f}"
            lines.append(f"{measure} of independent random maps of {height} x {width}, 95 %: {span}")
    return lines


# --- the headline table -----------------------------------------------------------------------------


def headers(document: Mapping[str, Any]) -> list[str]:
    """Those of the headline table; a column for each metric of another package."""
    return [*HEADERS[:-LAST], *map(str.upper, _foreign(document)), *HEADERS[-LAST:]]


def headline(document: Mapping[str, Any]) -> list[list[str]]:
    """The cells below `headers`, a line for each row."""
    foreign = _foreign(document)
    return [_line(row, foreign) for row in document["rows"]]


def _foreign(document: Mapping[str, Any]) -> list[str]:
    return [name for name, metric in document["metrics"].items() if metric.get("dist", HOST) != HOST]


def _line(row: Mapping[str, Any], foreign: Sequence[str]) -> list[str]:
    first, top, values = (row["latency"] or [None])[0], best(row), figures(row)
    ms = ratio = speed = NOTHING
    if first and top:
        ms = span(first["seconds"], 1000)
        ratio = span(first["ratio"]) if first["ratio"] else "1"
        speed = f"{_short(top['images_per_second'])} at {top['batch']}"
    shown = [*(_mean(score(row, name), interval=name == GAIN) for name in SHOWN), _mean(grid(row))]
    shown += [_shown(score(row, name)) for name in foreign]
    memory = NOTHING if values["memory"] is None else _short(values["memory"])
    return [row["backend"], row["method"], ms, ratio, speed, memory, *shown, _sanity(row), _notes(row)]


def hard_table(document: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the hard cases, a column for each; no rows if none was run."""
    records = document.get("hard_cases") or []
    cases = list(dict.fromkeys(record["case"] for record in records))
    lines: dict[tuple[str, str], dict[str, Any]] = {}
    for record in records:
        lines.setdefault((record["backend"], record["method"]), {})[record["case"]] = record
    rows = [
        [*key, *(_difference(found.get(case)) for case in cases), _errors(found)]
        for key, found in lines.items()
    ]
    return ["BACKEND", "METHOD", *(case.upper() for case in cases), "NOTES"], rows


def _difference(record: Mapping[str, Any] | None) -> str:
    if record is None:
        return NOTHING
    if record["difference"] is None:
        return "error" if record["error"] else NOTHING
    return f"{record['difference']:.1e}" + ("" if record["equal"] else " DIFFERS")


def _errors(found: Mapping[str, Mapping[str, Any]]) -> str:
    told = (f"{case}: {record['error']}" for case, record in found.items() if record["error"])
    return "; ".join(told) or NOTHING


def busy(document: Mapping[str, Any]) -> str | None:
    """A line to be told if other work kept the machine busy when the run began, otherwise `None`."""
    before = document["conditions"].get("before") or {}
    load, cores = before.get("load"), document["environment"].get("cores")
    if load is None or not cores or load < BUSY * cores:
        return None
    return f"the machine was busy when this began, load {load:.1f} on {cores} cores: distrust the times"


def _sanity(row: Mapping[str, Any]) -> str:
    failed = [name for name in SANITY if (found := score(row, name)) and found["passed"] is False]
    if failed:
        return "FAIL"
    return NOTHING if sane(row) is None else "pass"


def _notes(row: Mapping[str, Any]) -> str:
    return "; ".join(row["notes"]) or NOTHING


def span(value: Mapping[str, Any], scale: float = 1) -> str:
    """A median with its interval."""
    middle = _short(value["median"] * scale)
    if None in (value["low"], value["high"]):
        return middle
    return f"{middle} [{_short(value['low'] * scale)}, {_short(value['high'] * scale)}]"


def _mean(found: Mapping[str, Any] | None, interval: bool = False) -> str:
    if not found or found["mean"] is None:
        return NOTHING
    known = interval and None not in (found["low"], found["high"])
    return f"{found['mean']:.2f}" + (f" [{found['low']:.2f}, {found['high']:.2f}]" if known else "")


def _shown(found: Mapping[str, Any] | None) -> str:
    """A mean of any range."""
    return NOTHING if not found or found["mean"] is None else f"{found['mean']:.3g}"


def _short(value: float) -> str:
    """Three digits that matter."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
