"""What the report on a document says and shows; nothing is measured or fetched here."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from camkit.bench import bench_json, scene_words, statistics
from camkit.bench.bench_json import NOTHING, headers, headline, mean, span
from camkit.bench.conclusion import conclusion
from camkit.bench.page_formats import HTML, MARKDOWN, Map, Photograph, Picture, Report, Section, render
from camkit.bench.request import AGAIN
from camkit.bench.results import GAIN, Agreement, Document, SceneFacts, Score, ShownMap
from camkit.bench.significance import ALIKE, BETTER, BETTER_WORDS, Curves, better
from camkit.bench.typed_json import mapped, to_json
from camkit.drawing import looks
from camkit.drawing.caption import BLANK
from camkit.drawing.evidence import Scale
from camkit.drawing.style import Style
from camkit.drawing.thumbnail import thumbnail
from camkit.errors import ESCAPES, CamkitError, warn
from camkit.files import inside, write_whole
from camkit.images import decoding
from camkit.pages.charts import STEPS, Cell, Chart, Matrix, Strips, chart, scatter, strips

if TYPE_CHECKING:
    from PIL.Image import Image

LEFT_OUT = "Pictures that are left out"
MAX_MATRIX = 40  # names; a larger table of numbers cannot be read
SIDE = 320  # pixels of a photograph
LEGEND_STEPS = 16
CURVES = {  # metrics with curves, and what the curves run along
    "deletion": "share of the pixels set to zero, the most relevant first",
    "insertion": "share of the pixels put into a blurred image, the most relevant first",
    GAIN: "share of the pixels removed",
}


def write(document: Document, folder: Path) -> list[Path]:
    """`report.md` and `report.html` in `folder`, where the pictures of examples may be, too.

    A `CamkitWarning` tells of each picture that is left out.
    """
    made = report(document, folder)
    for picture in (
        text for section in made.sections if section.title == LEFT_OUT for text in section.words
    ):
        warn(f"left out of the report: {picture}")
    return [write_whole(folder / name, render(name, made)) for name in (MARKDOWN, HTML)]


def report(document: Document, folder: Path) -> Report:
    """All of a report; what was not measured is left out."""
    document = mapped(document, _visible)
    album = _Album(folder)
    found = conclusion(document)
    photographs = list(_photographs(document, album))
    return Report(
        found.headline,
        found.words,
        found.missing,
        [*_sections(document), *_pictures(document, album)],
        photographs,
        MAPS_WORDS,
        _legend() if photographs else (),
    )


def _sections(document: Document) -> Iterator[Section]:
    words = list(_introduction(document))
    yield Section("All in one table", words, headers(document), headline(document), [TABLE_WORDS])
    if rows := list(_latency(document)):
        drawn = _distributions(document)
        yield Section("Latency and memory", (), LATENCY, rows, [TIMING_WORDS], drawn)
    if found := _tradeoff(document):
        yield Section("Speed against faithfulness", [FRONT_WORDS], drawings=[found])
    if rows := better(document):
        yield Section("Better than maps that know nothing?", (), BETTER, rows, [BETTER_WORDS])
    if rows := list(_parity(document)):
        yield Section("Parity", [PARITY_WORDS], ("BACKEND", "METHOD", "DIFFERENCE"), rows)
    cases, rows = bench_json.hard_table(document)
    if rows:
        yield Section("Parity in hard cases", [HARD_WORDS], cases, rows)
    for name, agreement in document.agreement.items():
        if agreement.measures:
            matrices = list(_matrices(agreement, name))
            words = [MATRIX_WORDS, *bench_json.null_lines(document, name)]
            words += [] if matrices else [f"They are not drawn: there are more than {MAX_MATRIX} maps."]
            yield Section(f"Agreement: {name}", words, drawings=matrices)
    for scene in document.scenes:
        columns, rows = _scores(document, scene.name)
        if len(columns) > 2:
            details = list(_metric_lines(document, columns[2:]))
            curves = list(_bands(document, scene.name))
            yield Section(f"Scores: {scene.name}", [_scene(scene)], columns, rows, details, curves)


def _pictures(document: Document, album: _Album) -> Iterator[Section]:
    """The rest: pictures of disagreement, what could not be shown, the environment and the command."""
    examples = list(_examples(document, album))
    if examples:
        yield Section("Where explainers disagree most", pictures=examples)
    if album.left_out:
        yield Section(LEFT_OUT, album.left_out)
    yield Section("Environment", headers=("FACT", "VALUE"), rows=list(_environment(document)))
    yield Section("Again", [AGAIN], code=document.command)


MAPS_WORDS = (
    "What the model saw, with the maps of what is named beside it. Yellow is what speaks for that, blue "
    "what speaks against it; where a map says nothing, the photograph stays as it is. Maps of one method "
    "share the scale of its reference, so their strength can be compared, too; below each is the value of "
    "the strongest colour."
)
TIMING_WORDS = (
    "Each process has a median of its rounds; the table has their geometric mean and its 95 % interval "
    "over processes (Student's t), or the median of a single process and its interval over rounds, which "
    "does not show how processes differ. Ratios are paired: both calls of the same round. A percentile is "
    "left out below 64 (p90) or 662 (p99) samples. The verdict is a claim only where the interval of X "
    "REFERENCE excludes 1; these intervals are wide enough for all verdicts to be right at once with 95 % "
    "(Holm); one process allows none. Cold is the first call of that row and batch size, before anything "
    "else of it has run; compiling is its extra time over a usual call if torch's compiler ran in it, "
    "imports and checks included, less what a cache on disk saved. Both, and memory, are those of the "
    "first process. Resident memory is a lower bound."
)
FRONT_WORDS = "A line and another colour mark the explainers that no other beats in both."
MATRIX_WORDS = (
    "Means over the images, at the maps' own resolution; empty where resolutions differ or a map is "
    "constant."
)
PARITY_WORDS = "Largest absolute difference of the raw maps from the reference, relative to its peak."
HARD_WORDS = (
    "The same on tiny networks, against the first backend's maps on the plain twin in float32. An in-place "
    "ReLU behind the layer, frozen weights, bfloat16 (where rounding alone comes to 0.05) and tokens "
    "should not change a map."
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


TABLE_WORDS = (
    "MS, X FORWARD and PEAK MIB are those of the smallest batch. AGREE is the rank correlation with the "
    "reference, GAIN the symmetric relevance gain, POINTING and ENERGY the pointing games, GRID that of "
    "mosaics, where chance is 0.25; metrics of other packages have columns of their own. A mean has its "
    "95 % interval over the images; those of one photograph or mosaic count as one. Agreement is not "
    "correctness. Four controls know nothing of the "
    "model, so what they reach is worth nothing: random is noise, centre a bump in the middle, uniform one "
    "everywhere, edges an edge detector. The control blurred is a map under a 3 x 3 box: where it scores "
    "as well, the metric does not see such detail."
)


def _scene(scene: SceneFacts) -> str:
    named = f" {names}." if (names := scene_words.names(scene)) else ""
    # What is left out is told with all that was not measured.
    remark = f" {scene.remark}." if scene.remark and not scene_words.left_out(scene) else ""
    return f"{scene.name}: {scene_words.things(scene)}, {scene_words.truth(scene)}.{named}{remark}"


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


def _distributions(document: Document) -> list[Strips]:
    by_batch: dict[int, dict[str, list[float]]] = {}
    for row in document.rows:
        for record in row.latency:
            if samples := [1000 * seconds for seconds in record.samples.host]:
                by_batch.setdefault(record.batch, {})[row.key] = samples
    return [
        strips(f"ms from call to result, batch of {batch}", by_row) for batch, by_row in by_batch.items()
    ]


def _tradeoff(document: Document) -> Chart | None:
    points = {}
    for row in document.rows:
        best, gain = row.best, row.score(GAIN)
        if row.kind == "explainer" and best and gain and gain.mean is not None:
            points[row.key] = (1000 / best.images_per_second, gain.mean)
    if not points:
        return None
    names = list(points)
    front = [names[i] for i in statistics.pareto(list(points.values()))]
    return scatter("Symmetric relevance gain", "ms per image, at the best batch size", points, front)


def _parity(document: Document) -> Iterator[list[str]]:
    for row in document.rows:
        if row.parity is not None:
            yield [row.backend, row.method, f"{row.parity:.1e}"]


def _matrices(agreement: Agreement, scene: str) -> Iterator[Matrix]:
    if len(agreement.names) > MAX_MATRIX:
        return
    for name in ("spearman", "ssim"):
        if measure := agreement.measures.get(name):
            low, _, high = measure.null
            null = "" if low is None or high is None else f"; random maps {low:.2f} to {high:.2f}"
            cells = [[_correlation(value) for value in values] for values in measure.mean]
            yield Matrix(f"{name}, {scene}{null}", agreement.names, cells)


def _correlation(value: float | None) -> Cell:
    if value is None:
        return Cell("", 0, True)
    return Cell(f"{value:.2f}", min(STEPS, math.ceil(STEPS * abs(value))), value > 0)


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


def _bands(document: Document, scene: str) -> Iterator[Chart]:
    """The mean curves of each row, with a band between the quartiles."""
    for metric, along in CURVES.items():
        lines = {}
        for row in document.rows:
            score = row.scores.get(scene, {}).get(metric)
            curves = score.curves if score and score.curves else []
            if defined := [curve for curve in curves if None not in curve]:
                lines[row.key] = np.array(defined)
        means, bands = {}, {}
        for name, drawn in _apart(lines).items():
            shares = np.linspace(0, 1, drawn.shape[1]).tolist()
            low, high = np.quantile(drawn, [0.25, 0.75], axis=0).tolist()
            means[name] = list(zip(shares, drawn.mean(0).tolist(), strict=True))
            bands[name] = list(zip(shares, low, high, strict=True))
        if found := chart(f"{metric}, {scene}", along, means, bands, axis="share"):
            yield found


def _apart(lines: Mapping[str, Curves]) -> dict[str, Curves]:
    """Without curves that would lie upon another, whose name tells how many there are."""
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


class _Album:
    """The pictures of a folder, encoded anew; left_out: a line for each that could not be shown."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.left_out: list[str] = []

    def picture(self, file: str) -> Image | None:
        # The document may come from anybody: nothing outside the folder is read.
        try:
            return decoding.load_png(inside(self._folder, f"{bench_json.EXAMPLES}/{file}"))
        except CamkitError as error:
            self.left_out.append(str(error))
            return None


def _examples(document: Document, album: _Album) -> Iterator[tuple[str, Picture]]:
    for example in document.examples:
        if image := album.picture(example.file):
            yield example.title, _png(image)


def _photographs(document: Document, album: _Album) -> Iterator[Photograph]:
    for shown in document.shown:
        if not (image := album.picture(shown.file)):
            continue
        likely = "" if shown.probability is None else f" {shown.probability:.1%}"
        maps = [_map(one, album) for one in shown.maps]
        yield Photograph(shown.title, [f"{shown.class_name}{likely}"], thumbnail(image, side=SIDE), maps)


def _map(shown: ShownMap, album: _Album) -> Map:
    """A map, with the value of its strongest colour and any remark."""
    image = album.picture(shown.file) if shown.file else None
    lines = [] if shown.full is None else [f"up to {shown.full:.3g}"]
    return Map(
        shown.row,
        [*lines, *([shown.remark] if shown.remark else [])],
        thumbnail(image, side=SIDE) if image else None,
    )


def _legend() -> list[str]:
    """The colours of maps on the grey of a colour bar."""
    scale, style = Scale(-1, 1), Style()
    cover = looks.opacity(scale, style)[:, None] / 255
    colours = (BLANK * (1 - cover) + looks.table(scale, style) * cover).round().astype(np.uint8)
    return [f"#{colour.tobytes().hex()}" for colour in colours[:: len(colours) // LEGEND_STEPS]]


def _png(image: Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _visible(value: Any) -> Any:
    """A text without hidden characters: controls, marks of direction, or of zero width."""
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
