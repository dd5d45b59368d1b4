"""`camkit bench published`: benchmarks of papers, with their figures beside the ones found here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from camkit.cli import early_checks
from camkit.cli.model_options import facts, model_options
from camkit.cli.parameters import DEVICE, PATH, option_of
from camkit.cli.terminal import say, say_json, say_table
from camkit.core.device_names import check_device_name
from camkit.errors import UsageError, closest
from camkit.registry import options

if TYPE_CHECKING:
    from camkit.bench.published import Found


@click.command(epilog="Exit codes: 0 measured, 1 failed, 2 wrong usage, 130 interrupted.")
@click.argument("name", required=False)
@click.argument("folder", type=PATH, required=False)
@click.option(
    "--model",
    metavar="SPEC",
    help="The file of the published weights; but for voc07-pointing also as of `camkit explain`.",
)
@click.option("--backend", default="", metavar="NAME", show_default="the paper's", help="Which explainer.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    show_default="the paper's",
    help="What to compute; repeatable, but for funnybirds.",
)
@click.option(
    "--layer", default="auto", show_default="the paper's", metavar="NAME", help="The target layer."
)
@option_of("the backend", "steps=20")
@click.option(
    "--limit", type=click.IntRange(min=1), help="Only the first photographs: a trial, not the figure."
)
@DEVICE
@click.option("--json", "as_json", is_flag=True, help="The figures as JSON, not the table.")
@model_options
def published(name: str | None, folder: Path | None, as_json: bool, **settings: Any) -> None:
    """Measure what a paper published, on its data, and show both figures side by side.

    Without arguments it lists the benchmarks and what each needs; camkit downloads nothing. Other methods
    and backends are measured by the same rules, without a published figure. This was tested on small data
    of the same form; on the real data nobody has run it yet.

    \b
    camkit bench published
    camkit bench published funnybirds FunnyBirds/ --model resnet50_final_0_checkpoint_best.pth.tar
    camkit bench published voc07-pointing VOCdevkit/ --model resnet50_voc-9ca920d6.pth.tar
    camkit bench published voc07-pointing VOCdevkit/ --model resnet50_voc-9ca920d6.pth.tar --method layercam
    """
    from camkit.bench.published import BENCHMARKS, run
    from camkit.bench.published_task import Task

    if name is None:
        for known, benchmark in BENCHMARKS.items():
            say(f"{known}: {benchmark.title}", bold=True)
            method = f"{benchmark.backend}, {' and '.join(benchmark.methods)}"
            say(f"  {benchmark.paper}\n  data: {benchmark.data}\n  model: {benchmark.model}\n  {method}")
        return
    if name not in BENCHMARKS:
        raise UsageError(
            f"there is no benchmark {name!r}{closest(name, BENCHMARKS)} (they are {', '.join(BENCHMARKS)})"
        )
    benchmark = BENCHMARKS[name]
    if folder is None or settings["model"] is None:
        missing = f"FOLDER ({benchmark.data})" if folder is None else f"--model ({benchmark.model})"
        raise UsageError(f"{name} needs {missing}")
    if name == "funnybirds" and len(settings["methods"]) > 1:
        raise UsageError("funnybirds measures one method at a time: give one --method")
    values = options.parse_assignments(settings.pop("options"))
    backend = settings["backend"] or benchmark.backend
    early_checks.explainers([backend], settings["methods"] or benchmark.methods, values)
    check_device_name(settings["device"])
    early_checks.there(folder)
    told = facts(settings).said()
    spec = settings.pop("model")
    task = Task(
        folder, spec, options=values, facts=told, progress=lambda text: say(text, err=True), **settings
    )
    _print(run(name, task), name, task, as_json=as_json)


def _print(found: Found, name: str, task: Any, *, as_json: bool) -> None:
    import dataclasses
    import json

    rows, remarks = found
    if task.limit is not None:
        remarks = [*remarks, f"only the first {task.limit} photographs: not the published figure's"]
    if as_json:
        figures = [dataclasses.asdict(row) for row in rows]
        say_json(json.dumps({"benchmark": name, "figures": figures, "remarks": remarks}, indent=1))
        return
    say_table(
        ("FIGURE", "HERE", "PUBLISHED", "COUNTED"),
        [(row.name, _number(row.value), _number(row.published), str(row.count)) for row in rows],
    )
    for remark in remarks:
        say(remark, err=True)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
