"""`camkit explain`: pictures, raw maps and a manifest of where a model looked."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import TYPE_CHECKING, Any

import click

from camkit import plugins
from camkit.cli import early
from camkit.cli.folder import merge
from camkit.cli.hints import about
from camkit.cli.report import Report, progress
from camkit.cli.terminal import say
from camkit.errors import UsageError
from camkit.scores import KINDS
from camkit.style import Style

if TYPE_CHECKING:
    from camkit.images import Source
    from camkit.output import Output, Result
    from camkit.reading import Processes


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
    type=click.Path(path_type=Path, file_okay=False),
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
    callback=lambda _, __, text: _shard(text),
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
    options = plugins.parse_assignments(given["options"])
    early.explainers(given["backends"], given["methods"], options)
    style = Style(given["relu"], given["counterfactual"], given["alpha"], given["cmap"])
    early.model(given["spec"])
    early.writable(given["out"])
    early.photographs(images)

    from camkit import parquet, reading

    if given["format"] == "parquet":
        parquet.check()
    with (
        about(given["spec"], trust_pickle=given["trust_pickle"]),
        reading.processes(given["workers"]) as pool,  # they start while torch is imported
    ):
        report = _run(images, given, options, style, pool)
    report.end(given["out"], time.monotonic() - begun)
    if report.failed:
        some = report.done or report.skipped
        raise SystemExit(3 if some and given["on_error"] == "skip" else 1)


def _run(
    images: tuple[str, ...],
    given: dict[str, Any],
    options: dict[str, Any],
    style: Style,
    pool: Processes | None,
) -> Report:
    from camkit import explanation, reading
    from camkit.images import DRAWN, Source, find, sample
    from camkit.models import load_model
    from camkit.output import Output, request_id

    # Before the model is loaded, so that what is misspelt or broken is told at once.
    for made in explanation.make_backends(given["backends"], given["methods"], options):
        if lacking := [m for m in dict.fromkeys(given["methods"]) if m not in made.methods]:
            say(f"Note: {made.name} has no {', '.join(lacking)}", err=True)

    def sources() -> Iterator[Source]:
        found = find(images, without=given["out"]) if images else iter([Source(sample(), sample().name)])
        return (source for source in found if _is_in(given["shard"], source.name))

    is_any = any(True for _ in sources())  # before the model is loaded
    model = load_model(
        given["spec"],
        device=given["device"],
        dtype=given["dtype"],
        scores=given["scores"],
        trust_pickle=given["trust_pickle"],
    )
    work = explanation.plan(
        model,
        classes=given["classes"],
        backends=given["backends"],
        methods=given["methods"],
        layer=given["layers"],
        layout=given["layout"],
        options=options,
    )
    view, batch = given["view"], given["batch_size"]
    request = request_id(work, given["classes"], style=style, view=view, format=given["format"])
    report = Report(work, **{name: given[name] for name in ("as_json", "quiet", "verbose")})
    report.begin(work, request, batch, given["workers"] if pool else 0)
    if not is_any:
        report.nothing("no photograph falls into this part")
        return report
    output = Output(
        given["out"],
        style=style,
        view=view,
        name_layers=given["layers"] != ("auto",),
        format=given["format"],
        spec=given["spec"],
        request=request,
        resume=given["resume"],
    )
    report.names = output.names
    stream = explanation.stream(
        work,
        _missing(sources(), batch, output, report) if given["resume"] else sources(),
        batch_size=batch,
        read=partial(pool.read, ahead=2 * batch) if pool else reading.read,
        whole=view == "original" and given["format"] == "png",
        pixels=DRAWN,
    )
    groups: Iterator[list[Result]] = (
        list(group) for _, group in groupby(stream, key=lambda result: result.position)
    )
    if given["on_error"] == "fail":
        groups = _until_failure(groups)
    try:
        with _interrupts() as interrupted, progress(sources, report, given["out"]) as done:
            for written in output.write_all(_until_interrupt(groups, interrupted)):
                done(written)
    except KeyboardInterrupt:
        report.interrupted(given["out"], output.finished)
        raise SystemExit(130) from None
    return report


def _missing(sources: Iterator[Source], size: int, output: Output, report: Report) -> Iterator[Source]:
    """The sources without the batches of which everything is there.

    Batches stay as they were, because the last digits of a score depend on who shares its batch.
    """
    from camkit.errors import ImageError
    from camkit.images import digest
    from camkit.naming import output_name

    def is_there(source: Source) -> bool:
        try:
            return output.has(output_name(source.name), digest(source.path))
        except ImageError:
            return False

    while batch := list(islice(sources, size)):
        there = [is_there(source) for source in batch]
        report.skipped += sum(there)
        if not all(there):
            yield from batch


def _until_failure(groups: Iterable[list[Result]]) -> Iterator[list[Result]]:
    """The groups up to the first that holds a failure, with it."""
    from camkit.reading import Failure

    for group in groups:
        yield group
        if any(isinstance(result, Failure) for result in group):
            return


@contextmanager
def _interrupts() -> Iterator[Event]:
    """An event that Ctrl-C sets, so that nothing is cut short somewhere; the second time all ends."""
    interrupted = Event()

    def note(*_: Any) -> None:
        if interrupted.is_set():
            os._exit(130)
        interrupted.set()
        os.write(2, b"\nStopping behind what was begun; Ctrl-C again stops at once\n")

    if current_thread() is not main_thread() or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _until_interrupt(groups: Iterable[list[Result]], interrupted: Event) -> Iterator[list[Result]]:
    for group in groups:
        if interrupted.is_set():
            raise KeyboardInterrupt
        yield group


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= part <= count:
        raise UsageError(f"--shard is I/N with I from 1 to N, such as 2/4, not {text!r}")
    return part, count


def _is_in(shard: tuple[int, int], name: str) -> bool:
    """Whether a photograph belongs to a part: by its name alone, so nobody has to count."""
    part, count = shard
    if count == 1:
        return True
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") % count == part - 1
