"""`camkit explain`: pictures, raw maps and a manifest of where a model looked."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, current_thread, main_thread
from typing import TYPE_CHECKING, Any

import click

from camkit.cli import early_checks, engine, inline, targets
from camkit.cli.console import Report, progress
from camkit.cli.engine import engine_options
from camkit.cli.hints import about
from camkit.cli.model_options import MODEL, facts, model_options
from camkit.cli.parameters import (
    BATCH_SIZE,
    DEVICE,
    DTYPE,
    PARTLY,
    PATTERN,
    PLACE,
    PRECISION,
    CommandBeside,
    choice,
    look_options,
    pop_style,
    repeatable,
)
from camkit.cli.result_folder import merge, write_page
from camkit.cli.targets import target_options
from camkit.cli.terminal import say
from camkit.core.device_names import check_device_name, usable_cores
from camkit.errors import UsageError
from camkit.images.addresses import is_address
from camkit.images.shard import Shard
from camkit.registry import extras, options

if TYPE_CHECKING:
    from camkit.cli.inline import Show
    from camkit.drawing.style import Style
    from camkit.explaining.request import ExplainRequest
    from camkit.explaining.runner import Run
    from camkit.images.listing import Listing
    from camkit.images.workers import Processes

OF_ENGINE = ("engine", *engine.PLACES, "part_size")
OUTPUT = ("as_json", "quiet", "verbose")
_DEFAULT = click.core.ParameterSource.DEFAULT


@click.command(cls=CommandBeside, beside=merge)
@click.argument("images", nargs=-1, type=PATTERN)
@click.option("--model", default="pets", show_default=True, metavar="SPEC", help=MODEL)
@repeatable(
    *("--backend", "backends"),
    metavar="NAME",
    default="native",
    help="Which explainer; repeat it for a comparison side by side.",
)
@repeatable("--method", "methods", metavar="NAME", default="gradcam", help="What to compute; repeatable.")
@target_options
@repeatable(
    *("--layer", "layers"),
    metavar="NAME",
    default="auto",
    help="auto, all, layer4, layer4.-1, layer4[-1] or a glob; repeatable.",
)
@click.option(
    "--layout",
    type=click.Choice(["channels-first", "channels-last", "tokens", "tokens-first"]),
    help="How to read the output of the layer, where an error asks for it.",
)
@repeatable(
    *("-o", "--option", "options"),
    metavar="KEY=VALUE",
    help="An option of the backend, such as fast=true (`camkit plugin show native`); repeatable.",
)
@look_options
@DEVICE
@DTYPE
@PRECISION
@click.option(
    "--batch-size",
    type=BATCH_SIZE,
    default=16,
    show_default=True,
    help="Photographs in one forward.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=0, max=64),
    default=min(16, usable_cores()),
    show_default="the cores, at most 16",
    help="Processes that read photographs ahead of the model; 0 reads them without limits.",
)
@click.option(
    "--out",
    type=PLACE,
    default="camkit-out",
    show_default=True,
    help="Folder for pictures, raw maps and manifest.jsonl; s3://..., gs://..., az://... gets tables.",
)
@choice(
    "--format",
    ["png", "npz", "parquet"],
    "png: overlays and .npy; npz, parquet: raw maps alone (`camkit render` draws them).",
)
@click.option(
    "--truth",
    metavar="PATH",
    help="Where the objects are: annotations as of the pets, a folder of masks or a COCO json. The page "
    "then orders by the share of the evidence on them.",
)
@click.option("--open", "open_picture", is_flag=True, help="Open the picture or sheet when all is done.")
@click.option(
    "--inline",
    is_flag=True,
    help="Show each picture or sheet in the terminal (kitty's protocol or sixel; camkit[terminal]).",
)
@click.option(
    "--from",
    "listed",
    metavar="FILE|-",
    help="In place of IMAGES: a path or address a line, a CSV or Parquet table with a column of them.",
)
@click.option("--column", metavar="NAME", help="The column of --from, where it is not found.")
@click.option(
    "--engine",
    metavar="NAME",
    default="local",
    show_default=True,
    help="Where it is computed; ray: on a cluster (camkit-ray), into tables.",
)
@engine_options
@click.option(
    "--part-size",
    type=click.IntRange(1, 65_536),
    default=256,
    show_default=True,
    help="Of an engine: photographs in one table, about.",
)
@click.option("--resume", is_flag=True, help="Do only what --out does not hold already.")
@click.option(
    "--shard",
    metavar="I/N",
    default="1/1",
    show_default=True,
    help="The I-th of N parts of the photographs; `camkit explain merge` joins them.",
)
@choice(
    "--on-error", ["skip", "fail"], "Go on without a photograph that cannot be explained, or stop at it."
)
@click.option("--json", "as_json", is_flag=True, help="Print manifest lines instead of the table.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also what is run, how, and how fast.")
@model_options
def explain(images: tuple[str, ...], **values: Any) -> None:
    """Draw where a model looked in IMAGES: files, folders, globs, or addresses such as s3://...

    Without IMAGES it explains the bundled photograph of a cat. For every image, backend, method and
    class it writes IMAGE.BACKEND.METHOD.CLASS.png, the raw map beside it as .npy, and a line in
    manifest.jsonl; several backends, methods or classes also give one sheet of them for each image.
    Another model, layer, option or look is part of the name, and what an earlier run wrote is kept.
    Folders are kept: the results of photos/a/cat.jpg lie in a/ below --out.

    \b
    camkit explain cat.jpg
    camkit explain photos/ --class top:3 --out maps
    camkit explain cat.jpg --model weights.pth --classes cat,dog
    camkit explain cat.jpg --model imagenet --class tabby --look spotlight
    camkit explain cat.jpg --method gradcam --method activations -o reduction=mean
    camkit explain street.jpg --model torchvision:fasterrcnn_resnet50_fpn --box all
    camkit explain photos/ --format parquet --resume
    camkit explain s3://photos/2026 --engine ray --out s3://maps/2026
    camkit explain merge shard-1 shard-2 --out maps     joins the folders of several runs
    """
    context = click.get_current_context()
    given = {name for name in values if context.get_parameter_source(name) is not _DEFAULT}
    of_pictures = {"image_format", "open_picture", "inline", *values}
    style = pop_style(values)
    of_pictures -= values.keys() - {"image_format", "open_picture", "inline"}
    begun = time.monotonic()
    asked = {name: values.pop(name) for name in OF_ENGINE}
    asked |= {name: values[name] for name in ("format", "out", "workers")}
    listed, column = values.pop("listed"), values.pop("column")
    tables = asked["engine"] != "local" or is_address(values["out"])
    if tables:
        engine.check(asked, given, sorted(given & of_pictures))
        values["format"] = "parquet"
    elif lost := sorted(given.intersection(OF_ENGINE) - {"engine"}):
        raise UsageError(f"{engine.options_of(lost)} is for an engine: add --engine ray")
    if column and not listed:
        raise UsageError("--column is of the table that --from names: there is none")
    _check(images, values, style, tables=tables, listed=listed)
    # Threads that a model on the CPU keeps waiting leave their cores to the processes that read, and to the
    # threads that write: 3 to 4 % of a run. It counts if torch has not been imported yet.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from camkit.images.listing import Listing

    without = "" if is_address(values["out"]) else str(values["out"])
    listing = Listing.of(images, listed, column, shard=values["shard"], without=without)
    if tables:
        _to_tables(images, values, style, listing, asked)
    else:
        _here(images, values, style, listing, begun)


def _to_tables(
    images: tuple[str, ...], values: dict[str, Any], style: Style, listing: Listing, asked: dict[str, Any]
) -> None:
    """Let an engine do it, part by part."""
    from camkit.explaining.request import ExplainRequest

    output = {name: values.pop(name) for name in OUTPUT}
    out = str(values.pop("out"))
    for name in ("inline", "open_picture", "workers"):
        values.pop(name)
    with about(values["model"], trust_pickle=values["trust_pickle"]):
        engine.run(ExplainRequest(images, style=style, **values), listing, out, asked, output)


def _here(
    images: tuple[str, ...], values: dict[str, Any], style: Style, listing: Listing, begun: float
) -> None:
    """Explain in this process, with others that read; begun: when the command was."""
    show = None
    if values.pop("inline"):
        extras.require("terminal", "--inline")
        show = inline.viewer()

    from camkit.images import workers

    output = {name: values.pop(name) for name in OUTPUT}
    count, open_picture = values.pop("workers"), values.pop("open_picture")
    with (
        about(values["model"], trust_pickle=values["trust_pickle"]),
        workers.processes(count) as pool,  # they start while torch is imported
    ):
        from camkit.explaining.request import ExplainRequest

        request = ExplainRequest(images, style=style, listing=listing, **values)
        report = _run(request, pool, count, show=show, **output)
    is_any = report.photos + report.skipped > 0
    page = write_page(values["out"], is_new=report.photos > 0) if is_any else None
    report.end(values["out"], time.monotonic() - begun, page=page)
    if open_picture and report.picture and click.launch(str(report.picture)):
        say(f"Warning: nothing here opens pictures; it is {report.picture}", err=True)
    if report.failed:
        some = report.done or report.skipped
        raise SystemExit(PARTLY if some and values["on_error"] == "skip" else 1)


def _check(
    images: tuple[str, ...], values: dict[str, Any], style: Style, *, tables: bool, listed: str | None
) -> None:
    """Whatever can be known before torch is imported; values: texts become what they mean."""
    values["shard"] = Shard.parse(values["shard"])
    _check_pictures(values, style)
    values["options"] = options.parse_assignments(values["options"])
    early_checks.explainers(values["backends"], values["methods"], values["options"])
    early_checks.model(values["model"])
    values["facts"] = facts(values)
    targets.check(values)
    check_device_name(values["device"])
    if not tables:
        early_checks.results_folder(values["out"])
    early_checks.there(values["truth"])
    early_checks.photographs(images, listed)
    if values["format"] == "parquet":
        extras.require("parquet", "--format parquet")


def _check_pictures(values: dict[str, Any], style: Style) -> None:
    """Raise `UsageError` for what is asked of pictures where there are none, or not yet."""
    asked = {"--scale run": style.scale == "run", "--open": values["open_picture"]}
    asked |= {"--inline": values["inline"]}
    for option in (option for option, is_given in asked.items() if is_given and values["format"] != "png"):
        raise UsageError(
            f"--format {values['format']} draws none of the pictures of {option}: leave it out"
        )
    if values["inline"] and values["as_json"]:
        raise UsageError("--inline and --json both write on stdout: leave one out")
    if style.scale == "run" and values["shard"].count > 1:
        raise UsageError(
            "--scale run needs all maps, and a shard has a part: leave it out here, and when all is done "
            "use `camkit render DIR --scale run`"
        )


def _run(
    request: ExplainRequest, pool: Processes | None, workers: int, *, show: Show | None, **output: bool
) -> Report:
    """Explain, and report; output: what of it; show: shows a picture in the terminal."""
    from camkit.explaining.runner import Run

    run = Run(request, pool, lambda text: None if output["quiet"] else say(f"Note: {text}", err=True))
    report = Report(run.work, show=show, **output)
    report.begin(run.work, run.id, request.batch_size, workers if pool else 0)
    if not run.is_any:
        report.nothing("no photograph belongs to this shard")
        return report
    report.names = run.output.names
    with _interrupts() as interrupted:
        try:
            with progress(run, report, request.out) as done:
                for written in run.written(interrupted):
                    done(written)
            report.skipped, report.shares = run.skipped, run.stages.shares()
            if request.style.scale == "run":
                _draw(request, run, pool, report, interrupted)
        except KeyboardInterrupt:
            finished = run.output.finished
            page = write_page(request.out, is_new=True, complete=False) if finished else None
            report.interrupted(request.out, finished, page=page)
            raise SystemExit(130) from None
    return report


def _draw(
    request: ExplainRequest, run: Run, pool: Processes | None, report: Report, interrupted: Event
) -> None:
    """Draw all maps of a run on one scale, which is known now; `KeyboardInterrupt` once it is set."""
    from camkit.explaining.redrawing import redraw

    for line, error in redraw(
        request.out,
        style=request.style,
        image_format=request.image_format,
        processes=pool,
        request=run.id,
    ):
        report.drawn(line, error, request.out)
        if interrupted.is_set():
            raise KeyboardInterrupt


@contextmanager
def _interrupts() -> Iterator[Event]:
    """An event that Ctrl-C sets, so that nothing is cut short somewhere; the second time all ends."""
    interrupted = Event()

    def note(*_: Any) -> None:
        if interrupted.is_set():
            os._exit(130)
        interrupted.set()
        os.write(2, b"\nFinishing what was begun; press Ctrl-C again to stop at once\n")

    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
