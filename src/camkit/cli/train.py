"""`camkit train`: a classifier from a folder of photographs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from camkit.cli import early_checks
from camkit.cli.parameters import DEVICE, FOLDER, PARTLY, SEED, CommandBeside, choice, repeatable
from camkit.cli.terminal import say
from camkit.errors import CamkitError, UsageError, counted, printable
from camkit.registry import discovery, loading
from camkit.registry import options as registry_options

if TYPE_CHECKING:
    from camkit.contracts.trainer import TrainResult
    from camkit.training.result import Kept

ASKED = ("out", "recipe", "arch", "weights", "seed", "labels", "label_column", "on_error")
CHANGES = ("valid", "split", "class_weights")  # of a recipe


@click.command()
@click.argument("out", type=FOLDER, default="camkit-run")
@click.option("--images", type=FOLDER, metavar="DATA", help="Where the photographs lie now.")
@DEVICE
def report(out: Path, images: Path | None, device: str) -> None:
    """Make the report of the finished training in OUT again.

    The tables and curves come from what the training has kept; the confusion matrix and the photographs
    judged worst need the photographs that were held out, as they were.
    """
    from camkit.training import dataset
    from camkit.training import result as results

    kept = results.read(out, images and dataset.photographs(images))
    if not _report(kept, out, device):
        raise SystemExit(PARTLY)


@click.command(cls=CommandBeside, beside=report)
@click.argument("data", default="pets")
@click.option(
    "--trainer", default="fastai", show_default=True, metavar="NAME", help="`camkit plugin list` shows all."
)
@click.option(
    "--recipe",
    metavar="NAME|FILE",
    help="One of the trainer's (fastai: lesson6; torch: default, pets-small), or a TOML file.",
)
@click.option("--show-recipe", is_flag=True, help="Print the recipe, for a copy of your own, and stop.")
@click.option(
    "--arch", default="resnet34", show_default=True, help="A name of torchvision or timm, or imagenet."
)
@click.option(
    "--weights",
    default="default",
    show_default=True,
    metavar="default|none|FILE",
    help="What it starts from: trained on ImageNet, random, or a file.",
)
@repeatable(
    *("-o", "--option", "options"),
    metavar="KEY=VALUE",
    help="An option of the trainer: `camkit plugin show fastai` lists them.",
)
@click.option(
    "--out",
    type=FOLDER,
    default="camkit-run",
    show_default=True,
    help="Folder for the bundle and the report.",
)
@SEED
@DEVICE
@choice(
    "--precision",
    ["float32", "bfloat16", "float16"],
    "Type of the arithmetic; weights stay float32. On a CPU only the trainer torch has the latter two.",
)
@click.option(
    "--valid",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Held out of photographs that are not split yet; the recipe's: 0.2.",
)
@click.option(
    "--split",
    type=click.Choice(["stratified", "random"]),
    help="The same share of each class, or of all; the recipe's: stratified, but lesson6 is random.",
)
@click.option(
    "--class-weights",
    type=click.Choice(["none", "balanced"]),
    help="Whether classes with few photographs count as much as those with many; the recipe's: none.",
)
@click.option(
    "--labels",
    type=click.Choice(["auto", "one", "several"]),
    default="auto",
    show_default=True,
    help="On each photograph of a table; auto is what the table looks like.",
)
@click.option("--label-column", metavar="NAME", help="Of a table with more than one that may be meant.")
@click.option(
    "--on-error",
    type=click.Choice(["skip", "fail"]),
    default="skip",
    show_default=True,
    help="Go on without photographs that cannot be read, or stop at them.",
)
@click.option(
    "--resume", is_flag=True, help="Go on from the last finished epoch in --out, or make what is missing."
)
@click.option("--preview", is_flag=True, help="Draw a photograph as augmentation changes it, and stop.")
def train(data: str, **values: Any) -> None:
    """Train a classifier on DATA, photographs with labels, and report on it.

    DATA is a folder: one sub-folder for each class (species/breed/1.jpg are two levels), or files named
    after it (great_pyrenees_12.jpg); or that in train/ and valid/, a test/ is left alone; or with a table
    labels.csv or train.csv of file names and labels, or columns of zeros and ones. Or DATA is such a table.
    With several labels on a photograph each is learnt by itself. `pets`, the default, fetches the
    Oxford-IIIT Pet data, and with nothing else said, this is fast.ai's lesson 6. Into --out it writes the
    trained model as a folder `bundle`, tables and curves of the training, the confusion matrix, and the
    photographs judged worst, each with its Grad-CAM.

    \b
    camkit train
    camkit train photos/ --arch resnet34 --out run
    camkit train labels.csv --valid 0.3 --class-weights balanced
    camkit explain cat.jpg --model run/bundle
    camkit train photos/ --show-recipe > mine.toml
    camkit train photos/ --recipe mine.toml --out run2
    camkit train report run      makes the report again
    """
    name: str = values["trainer"]
    options = registry_options.parse_assignments(values["options"])
    from camkit.training.result import BUNDLE

    out: Path = values["out"]
    finished = values["resume"] and (out / BUNDLE).is_dir()
    if not finished:  # which needs no data any more
        early_checks.training(name, data, values)

    from camkit.training import train_model

    if values["show_recipe"]:
        _show_recipe(name, values["recipe"])
        return
    asked: dict[str, Any] = {key: values[key] for key in ASKED}
    asked["changes"] = {key: values[key] for key in CHANGES if values[key] is not None}
    if values["preview"]:
        say(train_model.preview(data, trainer=name, **asked | options))
        return

    from camkit.training.run_folder import is_main

    if finished:
        _complete(out, data, values, {"trainer": name, "options": options, **asked})
        return
    with _progress() as progress, _interrupts(out):
        result = train_model.train(
            data,
            trainer=name,
            device=values["device"],
            precision=values["precision"],
            resume=values["resume"],
            progress=progress,
            **asked | options,
        )
    if is_main():  # of several processes that trained together one reports
        _report(result, out, values["device"])
    if result.skipped:
        raise SystemExit(PARTLY)


def _show_recipe(trainer: str, name: str | None) -> None:
    """Print a recipe, by default the trainer's first."""
    from camkit.training import recipe as recipes

    kind = loading.load(discovery.get("trainer", trainer))
    name = name or next(iter(kind.recipes), None)
    if name is None:
        raise UsageError(f"{trainer} brings no recipes")
    say(recipes.text(kind, name), nl=False)


def _complete(out: Path, data: str, values: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    """Make what is missing in a folder that holds a bundle."""
    from camkit.training import dataset, run_folder, train_model, training_report
    from camkit.training import result as results

    if not run_folder.is_main():
        return
    run_folder.clear(out)
    # A trainer that keeps no result leaves nothing to make a report of.
    kept = results.read(out) if (out / results.NAME).exists() else None
    if kept is not None:
        train_model.check_finished(data, kept, precision=values["precision"], **asked)
    if kept is None or all(path.is_file() for path in training_report.due(kept.result, out)):
        say(f"nothing to do: {out} is finished", err=True)
        say(f"bundle: {out / results.BUNDLE}")
        return
    if kept.gone() and Path(data).exists():
        kept = results.read(out, dataset.photographs(data))
    if not _report(kept, out, values["device"]):
        raise SystemExit(PARTLY)


def _report(done: TrainResult | Kept, out: Path, device: str) -> bool:
    """Write and tell the report of a result; `False` if it has to do without the photographs."""
    from camkit.images.finding import display
    from camkit.training import training_report
    from camkit.training.result import Kept

    result, gone = (done.result, done.gone()) if isinstance(done, Kept) else (done, [])
    if gone:
        result = replace(result, validation=())
    try:
        with _interrupts(out):
            verdicts, written = training_report.write(result, out, device=device)
    except CamkitError as error:
        again = f"the trained model is in {result.bundle}, `camkit train report {out}` tries it again"
        raise CamkitError(f"there is no report: {error} ({again})") from error
    for line in verdicts.lines() if verdicts else ():
        say(line)
    for line in result.told:
        say(f"data: {line}")
    say(f"bundle: {result.bundle}")
    say(f"report: {', '.join(str(path) for path in written)}", err=True)
    if gone:
        many = counted(len(gone), "held-out photograph")
        say(
            f"Without confusion matrix and worst photographs: {many} not there, or not as they were "
            f"({display(gone[0])}); `camkit train report {out} --images DATA` says where they lie now",
            err=True,
        )
    return not gone


@contextmanager
def _interrupts(out: Path) -> Iterator[None]:
    """Ctrl-C says how to go on."""
    from camkit.training.result import BUNDLE, CHECKPOINT

    try:
        yield
    except KeyboardInterrupt:
        if (out / BUNDLE).is_dir():
            kept = f"the trained model is in {out / BUNDLE}, `camkit train report {out}` makes the report"
        else:
            kept = "go on with --resume" if (out / CHECKPOINT).exists() else "no epoch was finished"
        say(f"\nInterrupted: {kept}", err=True)
        raise SystemExit(130) from None


@contextmanager
def _progress() -> Iterator[Callable[[float, str], None]]:
    """A bar with the time left on a terminal, else a line for each epoch; both on stderr."""
    shown: set[str] = set()
    if not sys.stderr.isatty():

        def tell(_: float, text: str) -> None:
            if text not in shown:
                say(text, err=True)
            shown.add(text)

        yield tell
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=1.0)

        def show(fraction: float, text: str) -> None:
            if text not in shown:
                bar.console.print(printable(text), highlight=False, markup=False, emoji=False)
            shown.add(text)
            bar.update(task, completed=fraction)

        yield show
