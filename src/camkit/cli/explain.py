"""`camkit explain`: pictures, raw maps and a manifest of where a model looked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from camkit import plugins
from camkit.errors import UsageError

if TYPE_CHECKING:
    from camkit.explanation import Explanation, Failure, Plan
    from camkit.output import Output


@click.command()
@click.argument("images", nargs=-1, type=click.Path(path_type=str))
@click.option(
    "--model",
    "spec",
    default="pets",
    show_default=True,
    metavar="SPEC",
    help="pets, imagenet, torchvision:NAME[@WEIGHTS], timm:NAME[@FILE] or a bundle folder.",
)
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    default=("native",),
    show_default="native",
    help="Which explainer; repeat it for a comparison side by side.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    default=("gradcam",),
    show_default="gradcam",
    help="What to compute; repeatable.",
)
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="CLASS",
    default=("pred",),
    show_default="pred",
    help="pred, top:K, all, a class NAME or INDEX; repeatable.",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME",
    default=("auto",),
    show_default="auto",
    help="auto, layer4, layer4.-1, layer4[-1] or a glob; repeatable.",
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the backend, such as reduction=mean; repeatable.",
)
@click.option("--counterfactual", is_flag=True, help="Draw what speaks against the class.")
@click.option("--relu", is_flag=True, help="Draw only what speaks for it, as the Grad-CAM paper does.")
@click.option("--alpha", default=0.6, show_default=True, help="Opacity of the heat, 0 to 1.")
@click.option("--cmap", default="magma", show_default=True, help="A matplotlib colour map.")
@click.option(
    "--view",
    type=click.Choice(["model", "original"]),
    default="model",
    show_default=True,
    help="Draw on what the model saw, or on the whole photograph.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Type of weights and activations.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Photographs in one forward.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="camkit-out",
    show_default=True,
    help="Folder for pictures, raw maps and manifest.jsonl.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="Go on without a photograph that cannot be explained, or stop at it.",
)
@click.option("--json", "as_json", is_flag=True, help="Manifest lines on stdout, not the table.")
@click.option("--trust-pickle", is_flag=True, help="Let a model source load pickles. They run code.")
def explain(images: tuple[str, ...], **given: Any) -> None:
    """Draw where a model looked in IMAGES: files, folders or globs.

    Without IMAGES it explains the bundled photograph of a cat. For every image, backend, method and
    class it writes IMAGE.BACKEND.METHOD.CLASS.png, the raw map beside it as .npy, and a line in
    manifest.jsonl; several backends or methods also give one side-by-side sheet for each image.

    \b
    camkit explain cat.jpg
    camkit explain photos/ --class top:3 --out maps
    camkit explain cat.jpg --model imagenet --class tabby --view original
    camkit explain cat.jpg --method gradcam --method activations -o reduction=mean
    """
    if given["counterfactual"] and given["relu"]:
        raise UsageError("--counterfactual and --relu exclude each other: choose one")
    backends: tuple[str, ...] = given["backends"]
    options = plugins.parse_assignments(given["options"])
    for backend in backends:  # a misspelt name is told before torch is imported
        plugins.get("explainer", backend)

    from camkit import explanation
    from camkit.images import expand, sample
    from camkit.models import load_model
    from camkit.output import Output
    from camkit.render import Style

    # Before the model is loaded, so that what is misspelt or broken is told at once.
    for made in explanation.make_backends(backends, given["methods"], options):
        if lacking := [m for m in dict.fromkeys(given["methods"]) if m not in made.methods]:
            click.echo(f"Note: {made.name} has no {', '.join(lacking)}", err=True)
    style = Style(given["relu"], given["counterfactual"], given["alpha"], given["cmap"])
    paths = list(expand(images)) if images else [sample()]
    model = load_model(
        given["spec"],
        device=given["device"],
        dtype=given["dtype"],
        trust_pickle=given["trust_pickle"],
    )
    work = explanation.plan(
        model,
        classes=given["classes"],
        backends=backends,
        methods=given["methods"],
        layer=given["layers"],
        options=options,
    )
    view: Literal["model", "original"] = given["view"]
    several = len(work.layers) > 1
    stream = explanation.stream(work, paths, batch_size=given["batch_size"])
    results = _progress(stream, len(paths))
    # What is wrong with a layer or with the model shows in the first batch, before anything is written.
    results = chain([next(results)], results)
    output = Output(given["out"], style=style, view=view, several_layers=several)
    report = Report(work, as_json=given["as_json"])
    failed = done = 0
    for _, group in groupby(results, key=lambda result: result.position):
        good, bad = _write(output, report, list(group))
        failed, done = failed + bad, done + good
        if bad and given["on_error"] == "fail":
            break
    report.end(output.folder, done, failed)
    if failed:
        raise SystemExit(3 if done and given["on_error"] == "skip" else 1)


def _write(output: Output, report: Report, results: list[Explanation | Failure]) -> tuple[int, int]:
    """Write what there is of one photograph; how many results are good and bad."""
    from camkit.explanation import Explanation

    good = [result for result in results if isinstance(result, Explanation)]
    if good:
        report.photo(good[0])
    for result in results:
        report.result(result, output.write(result), output.folder)
    sheet = output.write_sheet(good) if good else None
    if sheet:
        report.sheet(sheet, good)
    return len(good), len(results) - len(good)


class Report:
    """Tells what was done: a table or manifest lines on stdout, everything else on stderr."""

    def __init__(self, work: Plan, *, as_json: bool) -> None:
        self._as_json = as_json
        self._warned: set[str] = set()
        self._widths = (
            24,
            6,
            max(7, *(len(backend.name) for backend in work.backends)),
            max(6, *(len(method) for backend in work.backends for method in backend.methods)),
            max(5, *(len(layer) for layer in work.layers)),
        )
        if not as_json:
            header = self._line("CLASS", "PROB.", "BACKEND", "METHOD", "LAYER", "PICTURE")
            click.echo(click.style(header, bold=True))

    def photo(self, first: Explanation) -> None:
        """The photograph and its most probable classes."""
        self._warned.clear()
        if not self._as_json:
            top = ", ".join(f"{name} {p:.1%}" for name, p in first.top[:3])
            click.echo(f"{first.photo.source}: {top}")

    def result(self, result: Explanation | Failure, line: dict[str, Any], folder: Path) -> None:
        """One map, or why there is none."""
        from camkit.explanation import Failure
        from camkit.output import as_json

        if self._as_json:
            click.echo(as_json(line))
        for warning in line["warnings"]:
            if warning not in self._warned:
                click.echo(f"Warning: {warning}", err=True)
                self._warned.add(warning)
        if isinstance(result, Failure):
            click.echo(f"Error: {result.error}", err=True)
        elif not self._as_json:
            probability = f"{result.probability:.1%}"
            where = str(folder / line["overlay_file"])
            cells = (
                result.class_name,
                probability,
                result.backend,
                result.method,
                result.layer,
                where,
            )
            click.echo(self._line(*cells))

    def sheet(self, path: Path, results: Sequence[Explanation]) -> None:
        """The side-by-side sheet, and how far the backends agree."""
        if self._as_json:
            return
        click.echo(f"  side by side: {path}")
        for line in _agreement(results):
            click.echo(f"  {line}")

    def end(self, folder: Path, done: int, failed: int) -> None:
        """How much was done, and where everything is."""
        if failed:
            click.echo(f"{done} maps done, {failed} failed", err=True)
        if done:
            click.echo(f"Raw maps and manifest.jsonl are in {folder}", err=True)

    def _line(self, *cells: str) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=False)]
        return "  " + "  ".join([*padded, cells[-1]])


def _agreement(results: Sequence[Explanation]) -> Iterator[str]:
    """A line for each pair of backends and each method: the worst over the classes."""
    if len({result.backend for result in results}) < 2:
        return
    from camkit.metrics.agreement import compare

    by_pair: dict[tuple[str, ...], list[Any]] = {}
    for one in compare(results):
        by_pair.setdefault((one.first, one.second, one.method, one.layer), []).append(one)
    for (first, second, method, layer), group in by_pair.items():
        worst = f" (the worst of {len(group)})" if len(group) > 1 else ""
        rank = min(one.spearman for one in group)
        difference = max(one.difference for one in group)
        yield (
            f"{method} at {layer}, {first} and {second}: rank correlation {rank:.3f}, "
            f"largest difference {difference:.1e} of the peak{worst}"
        )


def _progress(results: Iterable[Explanation | Failure], count: int) -> Iterator[Explanation | Failure]:
    """A bar on stderr with rate and time left, for several photographs on a terminal."""
    if count < 2 or not sys.stderr.isatty():
        yield from results
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("explaining", total=count)
        for result in results:
            bar.update(task, completed=result.position + 1)
            bar.stop()  # it is erased while results are printed, so that no line runs into it
            yield result
            bar.start()
