"""`camkit train`: a classifier from a folder of photographs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from camkit.cli import early_checks
from camkit.cli.parameters import DEVICE, FOLDER, PARTLY, CommandBeside, choice, repeatable
from camkit.cli.terminal import say
from camkit.errors import CamkitError, UsageError, counted, printable
from camkit.registry import discovery, loading
from camkit.registry import options as registry_options

if TYPE_CHECKING:
    from camkit.contracts.trainer import TrainResult
    from camkit.training.result import Kept


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
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@DEVICE
@choice(
    "--precision",
    ["float32", "bfloat16", "float16"],
    "Type of the arithmetic; weights stay float32. On a CPU only the trainer torch has the latter two.",
)
@click.option(
    "--resume", is_flag=True, help="Go on from the last finished epoch in --out, or make what is missing."
)
@click.option("--preview", is_flag=True, help="Draw a photograph as augmentation changes it, and stop.")
def train(data: str, **values: Any) -> None:
    """Train a classifier on DATA, a folder of photographs, and report on it.

    DATA holds one sub-folder for each class, or files named after it (great_pyrenees_12.jpg), or is the
    Oxford-IIIT Pet data (images/ and annotations/); `pets`, the default, fetches those. With nothing else
    said, this is fast.ai's lesson 6. Into --out it writes the trained model as a folder
    `bundle`, tables and curves of the training, the confusion matrix, and the photographs judged worst,
    each with its Grad-CAM.

    \b
    camkit train
    camkit train photos/ --arch resnet34 --out run
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

    from camkit.training import recipe as recipes
    from camkit.training import train_model

    if values["show_recipe"]:
        kind = loading.load(discovery.get("trainer", name))
        recipe = values["recipe"] or next(iter(kind.recipes), None)
        if recipe is None:
            raise UsageError(f"{name} brings no recipes")
        say(recipes.text(kind, recipe), nl=False)
        return
    asked: dict[str, Any] = {key: values[key] for key in ("out", "recipe", "arch", "weights", "seed")}
    asked |= options
    if values["preview"]:
        say(train_model.preview(data, trainer=name, **asked))
        return

    from camkit.training.run_folder import is_main

    if finished:
        _complete(out, data, values["device"])
        return
    with _progress() as progress, _interrupts(out):
        result = train_model.train(
            data,
            trainer=name,
            device=values["device"],
            precision=values["precision"],
            resume=values["resume"],
            progress=progress,
            **asked,
        )
    if is_main():  # of several processes that trained together one reports
        _report(result, out, values["device"])


def _complete(out: Path, data: str, device: str) -> None:
    """Make what is missing in a folder that holds a bundle."""
    from camkit.training import dataset, run_folder, training_report
    from camkit.training import result as results

    if not run_folder.is_main():
        return
    run_folder.clear(out)
    # A trainer that keeps no result leaves nothing to make a report of.
    kept = results.read(out) if (out / results.NAME).exists() else None
    if kept is None or all(path.is_file() for path in training_report.due(kept.result, out)):
        say(f"nothing to do: {out} is finished", err=True)
        say(f"bundle: {out / results.BUNDLE}")
        return
    if kept.gone() and Path(data).is_dir():
        kept = results.read(out, dataset.photographs(data))
    if not _report(kept, out, device):
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
    for line in training_report.lines(verdicts) if verdicts else ():
        say(line)
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
