"""`camkit model`: what can be loaded, and what is inside."""

from __future__ import annotations

import fnmatch
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from camkit.cli import early_checks
from camkit.cli.model_options import facts, model_options
from camkit.cli.parameters import FOLDER, PATH, PATTERN
from camkit.cli.terminal import say, say_json, say_table
from camkit.errors import LayerError, UsageError, closest, counted
from camkit.registry import discovery, loading

if TYPE_CHECKING:
    from torch import Tensor

    from camkit.contracts.model import LoadedModel
    from camkit.core.layers import LayerRecord


@click.group()
def model() -> None:
    """Models: which there are, what is known of one, and bundles of your own."""


@model.command("list")
@click.argument("pattern", required=False)
def list_(pattern: str | None) -> None:
    """Model sources; with a PATTERN such as 'torchvision:res*' or 'timm:vit_tiny*' their models."""
    if pattern is None:
        found = discovery.find("model")
        rows = [(f.name, f.dist, f.problem or discovery.summary(f)) for f in found]
        say_table(("SOURCE", "PACKAGE", "WHAT IT LOADS"), rows)
        say("\nA model is SOURCE:NAME, a file of weights or a bundle folder; the default is pets.")
        return
    sources = [name for f in discovery.find("model") for name in (f.full_name, f.name)]
    scheme = next((s for s in sources if f"{pattern}:".startswith(f"{s}:")), pattern.partition(":")[0])
    if ":" not in pattern and scheme not in sources:
        raise UsageError(f"a pattern is SOURCE:NAME, such as 'torchvision:{pattern}' or 'timm:{pattern}'")
    names = pattern[len(scheme) + 1 :]
    known = list(loading.make("model", scheme).names())
    matches = [name for name in known if fnmatch.fnmatchcase(name, names or "*")]
    if not matches:
        reason = closest(names, known) if known else f": {scheme} does not list its models"
        raise UsageError(f"no model matches {pattern!r}{reason}")
    for name in matches:
        say(f"{scheme}:{name}")


@model.command()
@click.argument("spec", default="pets")
@model_options
@click.option("--json", "as_json", is_flag=True, help="The same as JSON.")
def show(spec: str, as_json: bool, **given: Any) -> None:
    """What is known of a model, and what is assumed: architecture, classes, what it is shown."""
    loaded = _loaded(spec, given, quiet=True)
    known = _known(loaded)
    if as_json:
        say_json(
            json.dumps({**known, "classes": list(loaded.classes), "notes": dict(loaded.notes)}, indent=1)
        )
        return
    for name, value in known.items():
        say(f"{name + ':':14} {value}")
    if loaded.note:
        say(f"\n{loaded.note}")


@model.command()
@click.argument("spec")
@model_options
@click.option("--out", type=FOLDER, required=True, help="A new folder for the bundle.")
@click.option("--half", is_flag=True, help="Weights in half precision: half the size.")
def bundle(spec: str, out: Path, half: bool, **given: Any) -> None:
    """Write a model with all that belongs to it into a folder that needs no options, and holds no code.

    \b
    camkit model bundle weights.pth --classes cat,dog --size 160 --out cats
    camkit explain photos/ --model cats
    """
    early_checks.writable(out)
    loaded = _loaded(spec, given)

    from camkit.models.bundle import save_bundle

    say(save_bundle(loaded, out, half=half, made_from=spec, notes=dict(loaded.notes)))


@model.command()
@click.argument("spec")
@click.argument("images", nargs=-1, required=True, type=PATTERN)
@model_options
@click.option("--out", type=PATH, required=True, help="The file, of the suffix .npy.")
@click.option("--count", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most.")
def baseline(spec: str, images: tuple[str, ...], out: Path, count: int, **given: Any) -> None:
    """Write photographs, as a model is shown them, into a file for expected gradients.

    \b
    camkit model baseline pets photos/ --out others.npy
    camkit explain cat.jpg --method expected-gradients -o baseline=others.npy
    """
    if out.suffix != ".npy":
        raise UsageError(f"--out is a file of the suffix .npy, not {out}")
    early_checks.photographs(images)
    early_checks.writable(out.parent)
    loaded = _loaded(spec, given)

    from camkit.explaining.baselines import write

    say(f"{out}: {counted(write(loaded, images, out, count), 'photograph')}")


@model.command()
@click.argument("spec", default="pets")
@model_options
@click.option("--all", "everything", is_flag=True, help="Also layers that cannot carry a map.")
def layers(spec: str, everything: bool, **given: Any) -> None:
    """The layers of a model with their output shapes; '*' marks the one that 'auto' means."""
    loaded, example, records = _traced(spec, given)
    from camkit.core.call_types import Call
    from camkit.core.layer_lookup import resolve_layers

    try:
        call = Call(output=loaded.output)
        auto = resolve_layers(loaded.module, loaded.default_layer, example, call=call)[0]
    except LayerError as error:  # the list shows what else there is
        say(f"Warning: {error}", err=True)
        auto = ""
    rows = [
        ("*" if r.name == auto else "", r.name, r.type, _shapes(r), _grid(r))
        for r in records
        if r.name and (everything or r.grid)
    ]
    say_table(("", "LAYER", "TYPE", "OUTPUT", "MAP"), rows)


@model.command()
@click.argument("spec", default="pets")
@model_options
def classes(spec: str, **given: Any) -> None:
    """The classes of a model with their indices, in the order of its outputs."""
    for index, name in enumerate(_loaded(spec, given).classes):
        say(f"{index:5}  {name}")


@model.command()
@click.argument("spec", default="pets")
@model_options
def summary(spec: str, **given: Any) -> None:
    """Layer types, output shapes and parameters of a model, with the totals."""
    loaded, _, records = _traced(spec, given)

    from camkit.core.layers import parameter_totals

    rows = [
        (r.type, _shapes(r), f"{r.parameters:,}", "yes" if r.trainable else "no")
        for r in records
        if r.leaf or r.parameters
    ]
    say_table(("TYPE", "OUTPUT", "PARAMETERS", "TRAINABLE"), rows)
    total, trainable = parameter_totals(loaded.module)
    say(f"\nTotal parameters: {total:,}")
    say(f"Trainable: {trainable:,}   frozen: {total - trainable:,}")
    prepared = ", ".join(f"{k}={v}" for k, v in loaded.preprocess.to_dict().items())
    say(f"Classes: {len(loaded.classes)}   scores: {loaded.scores}   preprocessing: {prepared}")


def _loaded(spec: str, given: dict[str, Any], *, quiet: bool = False) -> LoadedModel:
    """The model, with what the user says of it."""
    early_checks.model(spec)
    said = facts(given)

    from camkit.models.loading import load_quietly

    loaded = load_quietly(spec, device="cpu", **given, **said.said())
    if loaded.note and not quiet:
        say(f"Note: {loaded.note}", err=True)
    return loaded


def _known(loaded: LoadedModel) -> dict[str, Any]:
    """What `show` tells, by its name."""
    from camkit.models.weights import broken

    architecture = dict(loaded.architecture or {})
    where = broken(loaded.module)
    names = [architecture.pop(key, None) for key in ("source", "name")]
    built = ":".join(filter(None, names)) or type(loaded.module).__name__
    changed = {key: value for key, value in architecture.items() if key != "num_classes"}
    first = ", ".join(loaded.classes[:5]) + (", ..." if len(loaded.classes) > 5 else "")
    return {
        "model": loaded.name,
        "architecture": built + (f" {changed}" if changed else ""),
        "classes": f"{len(loaded.classes)}: {first}",
        "scores": loaded.scores,
        **{name: str(value) for name, value in loaded.preprocess.to_dict().items()},
        "parameters": f"{sum(p.numel() for p in loaded.module.parameters()):,}",
        "sha256": loaded.sha256,
        **({"weights": f"NaN or infinite in {where}"} if where else {}),
    }


def _traced(spec: str, given: dict[str, Any]) -> tuple[LoadedModel, Tensor, list[LayerRecord]]:
    """The model, noise that fits it, and what a forward of that shows of its layers."""
    loaded = _loaded(spec, given)

    from camkit.core.layers import example_inputs, trace

    shown = loaded.preprocess
    example = example_inputs(shown.size, next(loaded.module.parameters()), shown.channels)
    return loaded, example, trace(loaded.module, example)


def _shapes(record: LayerRecord) -> str:
    shapes = [str(list(shape)) if shape else "no tensor" for shape in record.shapes]
    return shapes[0] if len(shapes) == 1 else f"{shapes[0]} (ran {len(shapes)} times)"


def _grid(record: LayerRecord) -> str:
    return f"{record.grid[0]} x {record.grid[1]}" if record.grid else "-"
