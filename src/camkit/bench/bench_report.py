"""Markdown and one self-contained HTML page from a document: nothing is measured or fetched here."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from camkit.bench import bench_json, statistics
from camkit.bench.bench_json import NOTHING, headers, headline, mean, span
from camkit.bench.page_formats import HTML, MARKDOWN, Picture, Section, render
from camkit.bench.results import GAIN, Agreement, Document, SceneFacts, Score
from camkit.bench.significance import ALIKE, BETTER, BETTER_WORDS, Curves, better
from camkit.bench.typed_json import mapped, to_json
from camkit.drawing import charts
from camkit.errors import ESCAPES, CamkitError, warn
from camkit.files import inside, write_whole
from camkit.images import decoding

if TYPE_CHECKING:
    from PIL.Image import Image

LEFT_OUT = "Pictures that are left out"
MAX_MATRIX = 40  # names: a picture with the numbers of more of them is too large to be read
CURVES = {  # with what happens along the way
    "deletion": "share of the pixels set to zero, the most relevant first",
    "insertion": "share of the pixels put into a blurred image, the most relevant first",
    GAIN: "share of the pixels removed",
}


def write(document: Document, folder: Path) -> list[Path]:
    """`report.md` and `report.html` in `folder`, where the pictures of examples may lie, too.

    A `CamkitWarning` tells of each picture that is left out.
    """
    sections = list(contents(document, folder))
    for picture in (text for section in sections if section.title == LEFT_OUT for text in section.words):
        warn(f"left out of the report: {picture}")
    return [write_whole(folder / name, render(name, sections)) for name in (MARKDOWN, HTML)]


def contents(document: Document, folder: Path) -> Iterator[Section]:
    """The report, section by section; what was not measured is left out."""
    document = mapped(document, _visible)
    yield Section("camkit bench", tuple(_introduction(document)), headers(document), headline(document))
    if rows := list(_latency(document)):
        pictures = _encoded(_distributions(document))
        yield Section("Latency and memory", [TIMING_WORDS], LATENCY, rows, pictures)
    if found := _tradeoff(document):
        yield Section("Speed against faithfulness", [FRONT_WORDS], pictures=_encoded([found]))
    if rows := better(document):
        yield Section("Better than maps that know nothing?", [BETTER_WORDS], BETTER, rows)
    if rows := list(_parity(document)):
        yield Section("Parity", [PARITY_WORDS], ("BACKEND", "METHOD", "DIFFERENCE"), rows)
    cases, rows = bench_json.hard_table(document)
    if rows:
        yield Section("Parity in hard cases", [HARD_WORDS], cases, rows)
    for name, agreement in document.agreement.items():
        if agreement.measures:
            pictures = _encoded(_matrices(agreement, name))
            words = [MATRIX_WORDS, *bench_json.null_lines(document, name)]
            words += [] if pictures else [f"They are not drawn: there are more than {MAX_MATRIX} maps."]
            yield Section(f"Agreement: {name}", words, pictures=pictures)
    for scene in document.scenes:
        columns, rows = _scores(document, scene.name)
        if len(columns) > 2:
            words = [_scene(scene), *_metric_lines(document, columns[2:])]
            pictures = _encoded(_bands(document, scene.name))
            yield Section(f"Scores: {scene.name}", words, columns, rows, pictures)
    examples, left_out = _examples(document, folder)
    if examples:
        yield Section("Where explainers disagree most", pictures=examples)
    if left_out:
        yield Section(LEFT_OUT, left_out)
    yield Section("Environment", headers=("FACT", "VALUE"), rows=list(_environment(document)))
    yield Section("Again", code=document.command)


TIMING_WORDS = (
    "Each process has a median of its rounds; shown is their geometric mean with its 95 % interval over "
    "processes (Student's t), of a single process the median with that over rounds, which says nothing of "
    "how processes differ. Ratios are paired: both calls of the same round. A percentile is left out below "
    "64 (p90) or 662 (p99) samples. The verdict is a claim only where the interval of X REFERENCE excludes "
    "1; these intervals are wide enough for all verdicts to be right at once with 95 % (Holm); with one "
    "process there is none. Cold is the first call of that row and batch size, before anything else of it "
    "has run; compiling is what it took beyond a usual call where torch's compiler ran in it, imports and "
    "checks included, less what a cache on disk spared. Both, and memory, are those of the first process. "
    "Resident memory is a lower bound."
)
FRONT_WORDS = "On the line are those that no other beats in both."
MATRIX_WORDS = (
    "Means over the images, at the maps' own resolution; empty where resolutions differ or a map is "
    "constant."
)
PARITY_WORDS = "Largest absolute difference of the raw maps from the reference, relative to its peak."
HARD_WORDS = (
    "The same on tiny networks, from the first backend's maps on the plain twin in float32. An in-place "
    "ReLU behind the layer, frozen weights, bfloat16 (where rounding alone comes to 0.05) and tokens are "
    "no reason for another map."
)


def _introduction(document: Document) -> Iterator[str]:
    settings, machine = document.settings, document.environment
    yield (
        f"Model {settings.model}, layer {settings.layer}, {settings.dtype} on {machine.device_name}, "
        f"threads: {machine.threads}."
    )
    yield from map(_scene, document.scenes)
    if line := bench_json.busy(document.load, machine.cores):
        yield f"Note: {line}."
    yield TABLE_WORDS


TABLE_WORDS = (
    "MS, X FORWARD and PEAK MIB are those of the smallest batch. AGREE is the rank correlation with the "
    "reference, GAIN the symmetric relevance gain, POINTING and ENERGY the pointing games, GRID that of "
    "mosaics, where chance is 0.25; metrics of other packages have columns of their own. A mean has its "
    "95 % interval over the images. Agreement is not correctness; controls know nothing of the model, so "
    "what they reach is worth nothing."
)


def _scene(scene: SceneFacts) -> str:
    truth = f", truth for {scene.with_truth}" if scene.with_truth else ", without truth"
    chance = f", which covers {scene.truth_share:.0%}: the level of chance" if scene.truth_share else ""
    remark = f" {scene.remark}." if scene.remark else ""
    return f"{scene.name}: {scene.images} images{truth}{chance}.{remark}"


LATENCY = (
    *("BACKEND", "METHOD", "BATCH", "MS", "X FORWARD", "X REFERENCE", "VERDICT", "P90", "P99"),
    *("COLD MS", "COMPILING MS", "IMAGES/S", "MEMORY MIB", "PROCESSES", "ROUNDS"),
)


def _latency(document: Document) -> Iterator[list[str]]:
    for row in document.rows:
        for record in row.latency:
            memory = [f"{kind} {size / 2**20:.1f}" for kind, size in record.memory.items()]
            yield [
                *(row.backend, row.method, str(record.batch)),
                span(record.seconds, 1000),
                *(span(ratio) if ratio else NOTHING for ratio in (record.ratio, record.against)),
                record.against.verdict if record.against else NOTHING,
                *map(_ms, (record.p90, record.p99, record.cold, record.compile)),
                f"{record.images_per_second:.1f}",
                ", ".join(memory) or "not readable here",
                str(len(record.samples.by_process())),
                str(len(record.samples.host)),
            ]


def _ms(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{1000 * seconds:.1f}"


def _distributions(document: Document) -> Iterator[tuple[str, Image]]:
    by_batch: dict[int, dict[str, list[float]]] = {}
    for row in document.rows:
        for record in row.latency:
            if samples := [1000 * seconds for seconds in record.samples.host]:
                by_batch.setdefault(record.batch, {})[row.key] = samples
    for batch, by_row in by_batch.items():
        label = f"ms from call to result, batch of {batch}"
        yield label, charts.distributions(by_row, label)


def _tradeoff(document: Document) -> tuple[str, Image] | None:
    points = {}
    for row in document.rows:
        best, gain = row.best, row.score(GAIN)
        if row.kind == "explainer" and best and gain and gain.mean is not None:
            points[row.key] = (1000 / best.images_per_second, gain.mean)
    if not points:
        return None
    names = list(points)
    front = [names[i] for i in statistics.pareto(list(points.values()))]
    labels = ("ms per image, at the best batch size", "symmetric relevance gain")
    return "speed against faithfulness", charts.tradeoff(points, front, labels)


def _parity(document: Document) -> Iterator[list[str]]:
    for row in document.rows:
        if row.parity is not None:
            yield [row.backend, row.method, f"{row.parity:.1e}"]


def _matrices(agreement: Agreement, scene: str) -> Iterator[tuple[str, Image]]:
    if len(agreement.names) > MAX_MATRIX:
        return
    for name in ("spearman", "ssim"):
        if measure := agreement.measures.get(name):
            low, _, high = measure.null
            null = "" if low is None or high is None else f"; random maps {low:.2f} to {high:.2f}"
            title = f"{name}, {scene}{null}"
            yield title, charts.matrix(agreement.names, measure.mean, title)


def _scores(document: Document, scene: str) -> tuple[list[str], list[list[str]]]:
    measured = [(row, row.scores[scene]) for row in document.rows if row.scores.get(scene)]
    metrics = [name for name in document.metrics if any(name in scores for _, scores in measured)]
    rows = [
        [row.backend, row.method, *(_cell(scores.get(name)) for name in metrics)]
        for row, scores in measured
    ]
    return ["BACKEND", "METHOD", *metrics], rows


def _cell(score: Score | None) -> str:
    passed = score.passed if score and score.mean is not None else None
    return mean(score, interval=True) + {True: " pass", False: " FAIL", None: ""}[passed]


def _metric_lines(document: Document, names: Iterable[str]) -> Iterator[str]:
    for name in names:
        metric = document.metrics[name]
        passed = "" if metric.limit is None else f", passed if {metric.direction} than {metric.limit:g}"
        title = f"{name} ({metric.category})" if metric.category else name
        yield f"{title}: {metric.summary}; {metric.direction} is better{passed}. {metric.paper}"


def _bands(document: Document, scene: str) -> Iterator[tuple[str, Image]]:
    for metric, along in CURVES.items():
        lines = {}
        for row in document.rows:
            score = row.scores.get(scene, {}).get(metric)
            curves = score.curves if score and score.curves else []
            if defined := [curve for curve in curves if None not in curve]:
                lines[row.key] = np.array(defined)
        if lines:
            yield f"{metric}, {scene}", charts.bands(_apart(lines), (along, metric))


def _apart(lines: Mapping[str, Curves]) -> dict[str, Curves]:
    """Without those that would lie upon another, which tells how many they are."""
    same: dict[str, list[str]] = {}
    for name, curves in lines.items():
        for first in same:
            if lines[first].shape == curves.shape and np.allclose(lines[first], curves, atol=ALIKE):
                same[first].append(name)
                break
        else:
            same[name] = []
    return {
        f"{first} and {len(others)} alike" if others else first: lines[first]
        for first, others in same.items()
    }


def _examples(document: Document, folder: Path) -> tuple[list[tuple[str, Picture]], list[str]]:
    """The pictures of examples, made anew, and a line for each that is left out."""
    found, left_out = list[tuple[str, Picture]](), list[str]()
    for example in document.examples:
        # The document may come from anybody: nothing outside of the folder is read.
        name = f"{bench_json.EXAMPLES}/{example.file}"
        try:
            found.append((example.title, _png(decoding.load_png(inside(folder, name)))))
        except CamkitError as error:
            left_out.append(str(error))
    return found, left_out


def _encoded(pictures: Iterable[tuple[str, Image]]) -> list[tuple[str, Picture]]:
    """Pictures as PNG, one after the other: what is drawn takes a hundred times the memory."""
    return [(text, _png(image)) for text, image in pictures]


def _png(image: Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _visible(value: Any) -> Any:
    """A text in which nothing is hidden: no controls, no marks of direction or without width."""
    return value.translate(ESCAPES) if isinstance(value, str) else value


def _environment(document: Document) -> Iterator[list[str]]:
    parts = {"": document.environment, "settings": document.settings, "conditions": document.conditions}
    for prefix, part in parts.items():
        yield from _flat(prefix, part)
    yield ["created", document.created or ""]


def _flat(name: str, value: Any) -> Iterator[list[str]]:
    value = to_json(value) if is_dataclass(value) else value
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name} {key}".strip(), item)
    elif value not in (None, [], ""):
        yield [name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)]
