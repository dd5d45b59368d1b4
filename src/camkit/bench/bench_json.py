"""`bench.json`: the one source of all tables and reports, and the figures that are read from it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from camkit.bench import results
from camkit.bench.results import ENERGY, GAIN, SCHEMA, Agreement, Document, HardCase, Median, Row, Score
from camkit.bench.typed_json import Fault, to_json
from camkit.errors import UsageError, reason
from camkit.files import read_regular, write_whole
from camkit.registry.discovery import HOST

NAME = "bench.json"
EXAMPLES = "examples"
BUSY = 0.75  # the share of the cores at work before the run began
MAX_BYTES = 16 * 2**20  # some eighty times what a bench without options writes
MAX_NESTED = 500_000  # lists and tables; an empty one takes thirty times its two characters

HEADERS = (
    *("BACKEND", "METHOD", "MS", "X FORWARD", "IMAGES/S", "PEAK MIB", "AGREE", "GAIN", "POINTING"),
    *("ENERGY", "GRID", "SANITY", "NOTES"),
)
LAST = 2  # so many of these come after the metrics of other packages
SHOWN = ("spearman", GAIN, "pointing-game", ENERGY)  # from AGREE to ENERGY
NOTHING = "-"


def as_json(document: Document) -> str:
    """One line of valid UTF-8, without NaN."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, default=to_json)
    return text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n"


def write(folder: Path, document: Document) -> Path:
    """`bench.json` in `folder`."""
    return write_whole(folder / NAME, as_json(document))


def read(source: Path) -> Document:
    """The document in a folder, or in a file; `UsageError` if there is none, or it is damaged.

    It may come from anybody: `results` says what it may hold.
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
    try:
        return results.read(document)
    except Fault as fault:
        raise UsageError(f"{path} is damaged: {fault}") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no number")


# --- figures ----------------------------------------------------------------------------------------


def figures(row: Row) -> dict[str, float | None]:
    """The figures of a row by name, as `--fail-if` uses them; a test is 1 if passed, 0 if not.

    ms, ratio, memory (MiB), cold and compile (ms) are those of the first batch size, throughput that of the
    best.
    """
    first, best, peak = row.first, row.best, row.peak
    values: dict[str, float | None] = {
        "ms": 1000 * first.seconds.median if first else None,
        "ratio": first.ratio.median if first and first.ratio else None,
        "throughput": best.images_per_second if best else None,
        "memory": None if peak is None else peak / 2**20,
        "cold": _ms(first.cold if first else None),
        "compile": _ms(first.compile if first else None),
        "parity": row.parity,
        "grid": row.grid.mean if row.grid else None,
        "sanity": None if row.sane is None else float(row.sane),
    }
    for scores in reversed(list(row.scores.values())):  # the first scene takes precedence
        values |= {metric: score.mean for metric, score in scores.items()}
    return values


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds


def all_figures(document: Document) -> dict[str, float | None]:
    """The figures of all rows, as `BACKEND.METHOD.FIGURE`."""
    return {
        figure_name(row.backend, row.method, figure): value
        for row in document.rows
        for figure, value in figures(row).items()
    }


def figure_name(backend: str, method: str, figure: str) -> str:
    """What an expression calls a figure."""
    return ".".join(map(slug, (backend, method, figure)))


FIGURES = ("ms", "ratio", "throughput", "memory", "cold", "compile", "parity", "grid", "sanity")


def slug(name: str) -> str:
    """A name as an expression can hold it: `grad-cam` is `grad_cam`, `gradcam++` is `gradcampp`."""
    return re.sub(r"\W", "_", name.replace("+", "p"))


def null_lines(document: Document, scene: str | None = None) -> list[str]:
    """The middle 95 % of each measure of agreement between independent random maps.

    scene: by default the first, with only the measure in the headline table.
    """
    agreement = document.agreement.get(scene or document.scenes[0].name, Agreement())
    lines = []
    for name, measure in agreement.measures.items():
        low, _, high = measure.null
        if low is not None and high is not None and (scene or name == SHOWN[0]):
            height, width = agreement.size
            span = f"{low:.2f} to {high:.2f}"
            lines.append(f"{name} of independent random maps of {height} x {width}, 95 %: {span}")
    return lines


def busy(load: float | None, cores: float | None) -> str | None:
    """A warning if other work kept the machine busy when the run began, otherwise `None`."""
    if load is None or not cores or load < BUSY * cores:
        return None
    return f"the machine was busy when this began, load {load:.1f} on {cores} cores: distrust the times"


# --- the headline table -----------------------------------------------------------------------------


def headers(document: Document) -> list[str]:
    """The headers of the headline table, with a column for each metric of another package."""
    return [*HEADERS[:-LAST], *map(str.upper, _foreign_metrics(document)), *HEADERS[-LAST:]]


def headline(document: Document) -> list[list[str]]:
    """The cells below `headers`, a line for each row."""
    foreign = _foreign_metrics(document)
    return [_headline_row(row, foreign) for row in document.rows]


def _foreign_metrics(document: Document) -> list[str]:
    return [name for name, metric in document.metrics.items() if metric.dist not in (None, HOST)]


def _headline_row(row: Row, foreign: Sequence[str]) -> list[str]:
    first, best, peak = row.first, row.best, row.peak
    ms = ratio = speed = NOTHING
    if first and best:
        ms = span(first.seconds, 1000)
        ratio = span(first.ratio) if first.ratio else "1"
        speed = f"{_three_digits(best.images_per_second)} at {best.batch}"
    return [
        *(row.backend, row.method, ms, ratio, speed),
        NOTHING if peak is None else _three_digits(peak / 2**20),
        *(mean(row.score(name), ".2f", interval=name == GAIN) for name in SHOWN),
        mean(row.grid, ".2f"),
        *(mean(row.score(name)) for name in foreign),
        {True: "pass", False: "FAIL", None: NOTHING}[row.sane],
        "; ".join(row.notes) or NOTHING,
    ]


def hard_table(document: Document) -> tuple[list[str], list[list[str]]]:
    """Headers and rows of the hard cases, a column for each; no rows if none was run."""
    records = document.hard_cases or []
    cases = list(dict.fromkeys(record.case for record in records))
    by_row: dict[tuple[str, str], dict[str, HardCase]] = {}
    for record in records:
        by_row.setdefault((record.backend, record.method), {})[record.case] = record
    rows = [
        [*key, *(_difference(found.get(case)) for case in cases), _errors(found.values())]
        for key, found in by_row.items()
    ]
    return ["BACKEND", "METHOD", *(case.upper() for case in cases), "NOTES"], rows


def _difference(record: HardCase | None) -> str:
    if record is None:
        return NOTHING
    if record.difference is None:
        return "error" if record.error else NOTHING
    return f"{record.difference:.1e}" + ("" if record.equal else " DIFFERS")


def _errors(records: Iterable[HardCase]) -> str:
    return "; ".join(f"{record.case}: {record.error}" for record in records if record.error) or NOTHING


def span(value: Median, scale: float = 1) -> str:
    """A median with its interval."""
    middle = _three_digits(value.median * scale)
    if value.low is None or value.high is None:
        return middle
    return f"{middle} [{_three_digits(value.low * scale)}, {_three_digits(value.high * scale)}]"


def mean(score: Score | None, form: str = ".3g", *, interval: bool = False) -> str:
    """The mean of a score, with its interval if there is one."""
    if not score or score.mean is None:
        return NOTHING
    known = interval and score.low is not None and score.high is not None
    return f"{score.mean:{form}}" + (f" [{score.low:.2f}, {score.high:.2f}]" if known else "")


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
