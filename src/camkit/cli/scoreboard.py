"""`camkit bench scoreboard`: methods x models x photographs; a command that goes on where it stopped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from camkit.cli import early_checks
from camkit.cli.parameters import (
    DEVICE,
    DTYPE,
    FOLDER,
    LAYER,
    PARTLY,
    PRECISION,
    SEED,
    TRUST,
    option_of,
    split_names,
)
from camkit.cli.targets import check, target_options
from camkit.cli.terminal import say, say_json, say_table
from camkit.core.device_names import check_device_name
from camkit.errors import CamkitError, counted
from camkit.registry import options

if TYPE_CHECKING:
    from camkit.bench.scoreboard_table import Board


@click.command(
    epilog="Exit codes: 0 all measured, 1 failed, 2 wrong usage, 3 some cells failed or are left, "
    "130 interrupted."
)
@click.argument("images", metavar="PHOTOS...", nargs=-1, required=True)
@click.option(
    "--model",
    "models",
    default=("pets",),
    show_default="pets",
    multiple=True,
    metavar="SPEC",
    help="As of `camkit explain`; repeatable.",
)
@target_options
@click.option(
    "--backend",
    "backends",
    multiple=True,
    metavar="NAME",
    default=("native",),
    show_default="native",
    help="Which explainer; repeatable. The first gives the controls their size.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    metavar="NAME",
    show_default="those of native that look at a layer and take few forwards",
    help="What to compute; repeatable.",
)
@LAYER
@option_of("the backends", "masks=500")
@click.option("--truth", metavar="PATH", help="Where the objects are, as of `camkit bench`.")
@click.option(
    "--metrics",
    "groups",
    callback=split_names,
    default="",
    show_default="all",
    help="Of cost, localisation (needs --truth), gridpg, faithfulness, sanity.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1, max=1000),
    default=1000,
    show_default=True,
    help="Photographs for cost, localisation and gridpg, evenly spread.",
)
@click.option(
    "--faithfulness",
    type=click.IntRange(min=1, max=1000),
    default=60,
    show_default=True,
    help="Photographs for faithfulness and sanity.",
)
@click.option(
    "--black-box",
    type=click.IntRange(min=1, max=1000),
    show_default="20",
    help="Photographs for methods of hundreds of forwards, such as rise. Given without --method, rise, "
    "sobol and hsic take part.",
)
@click.option(
    "--batch-size",
    "batch",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="Photographs of one timed call.",
)
@DEVICE
@DTYPE
@PRECISION
@SEED
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    help="Begin no cell after so long; 0: only show what has been measured.",
)
@click.option(
    "--out",
    type=FOLDER,
    default="camkit-scoreboard",
    show_default=True,
    help="Folder for the cells, scoreboard.json, index.html and scoreboard.md.",
)
@click.option("--json", "as_json", is_flag=True, help="The document on stdout, not the table.")
@TRUST
def scoreboard(out: Path, as_json: bool, minutes: float | None, **settings: Any) -> None:
    """Compare methods on models: faithfulness, localisation, GridPG, sanity, cost, beside controls.

    It may take hours. Each method on each model is measured cell by cell, and a cell that is done is a file
    in --out: after Ctrl-C, a kill or an error, the same command goes on with the rest.

    \b
    camkit bench scoreboard photos/ --model pets --model imagenet --truth annotations/ --out board
    camkit bench scoreboard photos/ --black-box 20 -o masks=500 --out board
    """
    settings["options"] = options.parse_assignments(settings["options"])
    early_checks.explainers(settings["backends"], settings["methods"], settings["options"])
    for spec in settings["models"]:
        early_checks.model(spec)
    check(settings)
    check_device_name(settings["device"])
    early_checks.there(settings["truth"])
    early_checks.writable(out)
    early_checks.photographs(settings["images"])

    from camkit.bench import scoreboard as measuring
    from camkit.bench import scoreboard_page
    from camkit.bench.metric_choice import chosen
    from camkit.bench.scoreboard_plan import BoardRequest, command
    from camkit.bench.scoreboard_table import board, failures

    request = BoardRequest(**settings)
    metrics = chosen(request.of_model(request.models[0])).classes
    try:
        outcome = measuring.run(request, out, lambda text: say(text, err=True), minutes)
    except KeyboardInterrupt:
        say("\nInterrupted: what is done is kept, the same command goes on", err=True)
        raise SystemExit(130) from None
    if outcome.others:
        say(
            f"{counted(outcome.others, 'finished cell')} in {out} of other methods, models, photographs or "
            "versions: kept, and not shown, as this command does not ask for them",
            err=True,
        )
    if not outcome.done:
        first = next(iter(outcome.failed.values()), "no cell is measured yet")
        raise CamkitError(f"there is nothing to show: {first}")
    failed, left = failures(outcome.failed), len(outcome.left)
    made = board(outcome.done, metrics, request.seed, command=command(request), failed=failed, left=left)
    scoreboard_page.write(made, out)
    _print(made, out, as_json=as_json)
    if outcome.failed or outcome.left:
        raise SystemExit(PARTLY)


def _print(made: Board, out: Path, *, as_json: bool) -> None:
    """The tables and the words of a scoreboard, and where it is."""
    from camkit.bench import scoreboard_page

    if as_json:
        say_json((out / scoreboard_page.JSON).read_text("utf-8"))
    else:
        for model in dict.fromkeys(line.model for line in made.lines):
            say(f"{model}", bold=True)
            say_table(*scoreboard_page.table([line for line in made.lines if line.model == model]))
            say()
        say_table(scoreboard_page.SUMMARY_HEADERS, scoreboard_page.summary_rows(made))
        for words in (scoreboard_page.headline(made), *scoreboard_page.words(made)):
            say(f"\n{words}")
    for words in scoreboard_page.missing(made):
        say(words, err=True)
    say(f"scoreboard.json, index.html and scoreboard.md are in {out}", err=True)
