"""`camkit bench`: how fast explainers are, how far they agree, whether their maps tell the truth."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from camkit.cli import early_checks
from camkit.cli.hints import about
from camkit.cli.model_options import facts, model_options
from camkit.cli.parameters import (
    BATCH_SIZE,
    DEVICE,
    DTYPE,
    FOLDER,
    LAYER,
    PATH,
    PRECISION,
    SEED,
    option_of,
    split_names,
)
from camkit.cli.published import published
from camkit.cli.scoreboard import scoreboard
from camkit.cli.targets import check, target_options
from camkit.cli.terminal import say, say_json, say_table
from camkit.core.device_names import check_device_name
from camkit.registry import extras, options

if TYPE_CHECKING:
    from camkit.bench.runner import Outcome


OWN_PICTURE = re.compile(r"(example|photograph)-\d+(-\d+)?\.png")


def _sizes(_: click.Context, __: click.Parameter, text: str | None) -> tuple[int, ...]:
    """`1,8,32` as numbers."""
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",")})) if text else ()
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form 1,8,32") from None
    return tuple(BATCH_SIZE.convert(size, None, None) for size in sizes)


@click.group(
    invoke_without_command=True,
    epilog="Exit codes: 0 all measured, 1 failed, slower, or a --fail-if holds, 2 wrong usage, 3 some "
    "cells or images failed, the rest was measured.",
)
@click.option("--model", default="pets", show_default=True, metavar="SPEC", help="As of `camkit explain`.")
@target_options
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    show_default="all installed",
    help="Which explainer; repeatable. native, otherwise the first, is the reference.",
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
@LAYER
@option_of("the backends", "fast=true")
@click.option(
    "--images",
    multiple=True,
    metavar="PATH",
    help="Photographs: files, folders or globs; repeatable. None: the bundled one.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=1000),
    show_default="16, quick 4",
    help="Photographs to look at, evenly spread.",
)
@click.option(
    "--truth",
    metavar="PATH",
    help="Where the objects are: annotations as of the pets, a folder of masks or a COCO json.",
)
@DEVICE
@DTYPE
@PRECISION
@click.option(
    "--batch-size",
    "batch_sizes",
    callback=_sizes,
    metavar="N,N,...",
    show_default="1,8, on a GPU 1,8,32",
    help="Batch sizes to time.",
)
@click.option(
    "--metrics",
    callback=split_names,
    default="",
    show_default="all",
    help="latency; categories: agreement, faithfulness, localisation, sanity, complexity, plugins' own; or "
    "names of metrics that `camkit plugin list` shows.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    help="Of timing in each process; 3 to 64 as time allows if none is given.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1, max=64),
    show_default="3, quick 1",
    help="To measure time in, one after the other; 1 is this one. How they differ is what compare needs.",
)
@SEED
@click.option("--quick", is_flag=True, help="Fewer rounds, images and metrics.")
@click.option(
    "--out",
    type=FOLDER,
    default="camkit-bench",
    show_default=True,
    help="Folder for bench.json, report.md and report.html.",
)
@click.option("--json", "as_json", is_flag=True, help="The document on stdout, not the table.")
@click.option(
    "--fail-if",
    multiple=True,
    metavar="EXPR",
    help="Exit with 1 if it holds, such as 'native.gradcam.ratio > 1.2'; repeatable.",
)
@model_options
def bench(out: Path, as_json: bool, fail_if: tuple[str, ...], **settings: Any) -> None:
    """Measure explainers: latency, memory, agreement, faithfulness, localisation, sanity.

    Without arguments it runs offline, on the bundled model and photograph; where the truth must be known,
    on shapes that it draws. Every file is there whole or not at all.

    \b
    camkit bench --quick
    camkit bench --images photos/ --truth masks/ --method gradcam --method layercam
    camkit bench --model torchvision:fasterrcnn_resnet50_fpn --box all --images photos/
    camkit bench --backend native --fail-if 'native.gradcam.ratio > 1.2'
    camkit bench compare before/ after/
    camkit bench report camkit-bench/
    camkit bench scoreboard photos/ --truth masks/ --out board
    camkit bench published
    """
    extras.require("bench", "camkit bench")
    if click.get_current_context().invoked_subcommand is not None:
        return
    settings["options"] = options.parse_assignments(settings["options"])
    early_checks.explainers(settings["backends"], settings["methods"], settings["options"])
    early_checks.metrics(settings["metrics"])
    early_checks.model(settings["model"])
    settings["facts"] = facts(settings)
    check(settings)
    check_device_name(settings["device"])
    early_checks.there(settings["truth"])
    early_checks.writable(out)
    if settings["images"]:
        early_checks.photographs(settings["images"])

    from camkit.bench import conditions

    fail_conditions = [conditions.parse(text) for text in fail_if]

    from camkit.bench import bench_json
    from camkit.bench.request import BenchRequest
    from camkit.bench.runner import figure_names, run

    request = BenchRequest(**settings)
    if fail_conditions:
        known = figure_names(request)
        for condition in fail_conditions:
            condition.check(known)
    with about(request.model, trust_pickle=request.trust_pickle):
        outcome = run(request, lambda text: say(text, err=True))
    _write(outcome, out)
    _print_results(outcome, out, as_json=as_json)
    values = bench_json.all_figures(outcome.document)
    held = [condition.with_figures(values) for condition in fail_conditions if condition.holds(values)]
    for text in held:
        say(f"Error: --fail-if holds: {text}", err=True)
    if held:
        raise SystemExit(1)
    if outcome.failures or any(row.failed for row in outcome.document.rows):
        raise SystemExit(3)


def _write(outcome: Outcome, out: Path) -> None:
    """The pictures, the document and the reports, without the pictures of a run before."""
    from camkit.bench import bench_json, bench_report
    from camkit.training.training_report import picture

    if (out / bench_json.NAME).exists():
        say(f"Note: the benchmark that was in {out} is replaced", err=True)
    for name, image in outcome.pictures.items():
        picture(out / bench_json.EXAMPLES / name, image)
    bench_json.write(out, outcome.document)
    bench_report.write(outcome.document, out)
    for path in (out / bench_json.EXAMPLES).glob("*-*.png"):
        if OWN_PICTURE.fullmatch(path.name) and path.name not in outcome.pictures:
            path.unlink()


def _print_results(outcome: Outcome, out: Path, *, as_json: bool) -> None:
    """The tables of a benchmark, what has to be said of it, and where it is."""
    from camkit.bench import bench_json, scene_words
    from camkit.bench.conclusion import conclusion

    if as_json:
        say_json(bench_json.as_json(outcome.document))
    else:
        say_table(bench_json.headers(outcome.document), bench_json.headline(outcome.document))
        cases, rows = bench_json.hard_table(outcome.document)
        if rows:
            say("\nLargest difference of raw maps from the first backend's, relative to their peak:")
            say_table(cases, rows)
        for words in conclusion(outcome.document).words:
            say(f"\n{words}")
    busy = bench_json.busy(outcome.document.load, outcome.document.environment.cores)
    explained = scene_words.lines(outcome.document.scenes)
    for line in (*explained, *bench_json.null_lines(outcome.document), busy):
        if line:
            say(line, err=True)
    for failure in outcome.failures:
        say(f"Error: {failure}", err=True)
    say(f"bench.json and report.html are in {out}", err=True)


bench.add_command(scoreboard)
bench.add_command(published)


@bench.command()
@click.argument("before", type=PATH)
@click.argument("after", type=PATH)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.05,
    show_default=True,
    help="A change that is surely less is SAME, one that is surely more FASTER or SLOWER.",
)
@click.option("--force", is_flag=True, help="Compare what was measured under different conditions.")
def compare(before: Path, after: Path, tolerance: float, force: bool) -> None:
    """Say SAME, FASTER, SLOWER or UNCLEAR of every row of two benchmarks, folders or files.

    Exit code 1 if a row is SLOWER. Explainers are compared by their multiple of the bare forward, process
    by process; the intervals are wide enough for all verdicts to be right at once with 95 %.
    """
    early_checks.there(before, after)

    from camkit.bench import bench_json
    from camkit.bench import compare as comparing

    documents = bench_json.read(before), bench_json.read(after)
    comparisons = comparing.compare(*documents, tolerance=tolerance, force=force)
    rows = []
    for one in comparisons:
        ratio = one.ratio
        span = "one process" if ratio.low is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
        rows.append((one.backend, one.method, str(one.batch), f"{ratio.middle:.3f}", span, one.verdict))
    say_table(("BACKEND", "METHOD", "BATCH", "NEW/OLD", "95 % (HOLM)", "VERDICT"), rows)
    for line in filter(None, [*comparing.unmatched(*documents), comparing.unknown_spread(*documents)]):
        say(line, err=True)
    if any(one.verdict == "SLOWER" for one in comparisons):
        raise SystemExit(1)


@bench.command()
@click.argument("source", type=PATH)
def report(source: Path) -> None:
    """Write report.md and report.html anew, beside the bench.json of SOURCE, a folder or file."""
    early_checks.there(source)

    from camkit.bench import bench_json

    document = bench_json.read(source)

    from camkit.bench import bench_report

    for path in bench_report.write(document, source if source.is_dir() else source.parent):
        say(path)
