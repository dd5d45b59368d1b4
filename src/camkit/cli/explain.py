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

from camkit.cli import early_checks
from camkit.cli.console import Report, progress
from camkit.cli.hints import about
from camkit.cli.parameters import FOLDER, PATTERN
from camkit.cli.result_folder import merge
from camkit.cli.terminal import say
from camkit.contracts.scores import KINDS
from camkit.drawing.style import Style
from camkit.errors import UsageError
from camkit.explaining.shard import Shard
from camkit.registry import extras, options

if TYPE_CHECKING:
    from camkit.explaining.request import ExplainRequest
    from camkit.images.workers import Processes


class Explain(click.Command):
    """`camkit explain IMAGES`, but `camkit explain merge FOLDERS`; a file of that name is ./merge."""

    def make_context(
        self, info_name: str | None, args: list[str], *rest: Any, **more: Any
    ) -> click.Context:
        """The context of the one or the other."""
        if args[:1] == ["merge"]:
            return merge.make_context(f"{info_name} merge", args[1:], *rest, **more)
        return super().make_context(info_name, args, *rest, **more)


@click.command(cls=Explain)
@click.argument("images", nargs=-1, type=PATTERN)
@click.option(
    "--model",
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
    "--layout",
    type=click.Choice(["channels-first", "channels-last", "tokens", "tokens-first"]),
    help="How the output of the layer is to be read, where an error asks for it.",
)
@click.option(
    "-o",
    "--option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the backend, such as fast=true (`camkit plugin show native`); repeatable.",
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
@click.option(
    "--scores",
    type=click.Choice(KINDS),
    help="What the model's outputs are; left out, as the model says or as they look.",
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
    "--workers",
    type=click.IntRange(min=0, max=64),
    default=max(1, min(8, (os.cpu_count() or 1) // 2)),
    show_default="half the cores",
    help="Processes that read photographs ahead of the model; 0 reads them without limits.",
)
@click.option(
    "--out",
    type=FOLDER,
    default="camkit-out",
    show_default=True,
    help="Folder for pictures, raw maps and manifest.jsonl.",
)
@click.option(
    "--format",
    type=click.Choice(["png", "npz", "parquet"]),
    default="png",
    show_default=True,
    help="png: overlays and .npy; npz, parquet: raw maps alone (`camkit render` draws them).",
)
@click.option("--resume", is_flag=True, help="Do only what --out does not hold already.")
@click.option(
    "--shard",
    metavar="I/N",
    default="1/1",
    show_default=True,
    help="The I-th of N parts of the photographs; `camkit explain merge` joins them.",
)
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="Go on without a photograph that cannot be explained, or stop at it.",
)
@click.option("--json", "as_json", is_flag=True, help="Manifest lines on stdout, not the table.")
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="Also what is run, how, and how fast.")
@click.option("--trust-pickle", is_flag=True, help="Let a model source load pickles. They run code.")
def explain(images: tuple[str, ...], **given: Any) -> None:
    """Draw where a model looked in IMAGES: files, folders or globs.

    Without IMAGES it explains the bundled photograph of a cat. For every image, backend, method and
    class it writes IMAGE.BACKEND.METHOD.CLASS.png, the raw map beside it as .npy, and a line in
    manifest.jsonl; several backends or methods also give one side-by-side sheet for each image.
    Another model, layer, option or look is part of the name, and what an earlier run wrote is kept.
    Folders are kept: the results of photos/a/cat.jpg lie in a/ below --out.

    \b
    camkit explain cat.jpg
    camkit explain photos/ --class top:3 --out maps
    camkit explain cat.jpg --model imagenet --class tabby --view original
    camkit explain cat.jpg --method gradcam --method activations -o reduction=mean
    camkit explain photos/ --format parquet --resume
    camkit explain merge shard-1 shard-2 --out maps     joins the folders of several runs
    """
    if given["counterfactual"] and given["relu"]:
        raise UsageError("--counterfactual and --relu exclude each other: choose one")
    begun = time.monotonic()
    given["shard"] = Shard.parse(given["shard"])
    given["options"] = options.parse_assignments(given["options"])
    early_checks.explainers(given["backends"], given["methods"], given["options"])
    given["style"] = Style(*(given.pop(name) for name in ("relu", "counterfactual", "alpha", "cmap")))
    early_checks.model(given["model"])
    early_checks.classes(given["model"], given["classes"])
    early_checks.device(given["device"])
    early_checks.results_folder(given["out"])
    early_checks.photographs(images)

    if given["format"] == "parquet":
        extras.require("parquet", "--format parquet")

    from camkit.images import workers

    told = {name: given.pop(name) for name in ("as_json", "quiet", "verbose")}
    count = given.pop("workers")
    with (
        about(given["model"], trust_pickle=given["trust_pickle"]),
        workers.processes(count) as pool,  # they start while torch is imported
    ):
        from camkit.explaining.request import ExplainRequest

        report = _run(ExplainRequest(images, **given), pool, count, **told)
    report.end(given["out"], time.monotonic() - begun)
    if report.failed:
        some = report.done or report.skipped
        raise SystemExit(3 if some and given["on_error"] == "skip" else 1)


def _run(request: ExplainRequest, pool: Processes | None, workers: int, **told: bool) -> Report:
    """Explain, and report; told: what of it."""
    from camkit.explaining.runner import Run

    run = Run(request, pool, lambda text: say(f"Note: {text}", err=True))
    report = Report(run.work, **told)
    report.begin(run.work, run.id, request.batch_size, workers if pool else 0)
    if not run.is_any:
        report.nothing("no photograph falls into this part")
        return report
    report.names = run.output.names
    try:
        with _interrupts() as interrupted, progress(run, report, request.out) as done:
            for written in run.written(interrupted):
                done(written)
    except KeyboardInterrupt:
        report.interrupted(request.out, run.output.finished)
        raise SystemExit(130) from None
    report.skipped = run.skipped
    return report


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
