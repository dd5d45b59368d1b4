"""`camkit model`: what can be loaded, and what is inside."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING

import click

from camkit.cli import early_checks
from camkit.cli.parameters import TRUST
from camkit.cli.terminal import say, say_table
from camkit.errors import LayerError, UsageError, closest
from camkit.registry import discovery, loading

if TYPE_CHECKING:
    from torch import Tensor

    from camkit.contracts.model import LoadedModel
    from camkit.core.layers import LayerRecord


@click.group()
def model() -> None:
    """Models: which there are, their classes, their layers, their summary."""


@model.command("list")
@click.argument("pattern", required=False)
def list_(pattern: str | None) -> None:
    """Model sources; with a PATTERN such as 'torchvision:res*' or 'timm:vit_tiny*' their models."""
    if pattern is None:
        found = discovery.find("model")
        rows = [(f.name, f.dist, f.problem or discovery.summary(f)) for f in found]
        say_table(("SOURCE", "PACKAGE", "WHAT IT LOADS"), rows)
        say("\nA model is SOURCE:NAME, or a bundle folder; the default is pets.")
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
@TRUST
@click.option("--all", "everything", is_flag=True, help="Also layers that cannot carry a map.")
def layers(spec: str, trust_pickle: bool, everything: bool) -> None:
    """The layers of a model with their output shapes; '*' marks the one that 'auto' means."""
    early_checks.model(spec)
    loaded, example, records = _traced(spec, trust_pickle)
    from camkit.core.layer_lookup import resolve_layers

    try:
        auto = resolve_layers(loaded.module, loaded.default_layer, example)[0]
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
@TRUST
def classes(spec: str, trust_pickle: bool) -> None:
    """The classes of a model with their indices, in the order of its outputs."""
    early_checks.model(spec)

    from camkit.models.loading import load_model

    for index, name in enumerate(load_model(spec, device="cpu", trust_pickle=trust_pickle).classes):
        say(f"{index:5}  {name}")


@model.command()
@click.argument("spec", default="pets")
@TRUST
def summary(spec: str, trust_pickle: bool) -> None:
    """Layer types, output shapes and parameters of a model, with the totals."""
    early_checks.model(spec)

    from camkit.core.layers import parameter_totals

    loaded, _, records = _traced(spec, trust_pickle)
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


def _traced(spec: str, trust_pickle: bool) -> tuple[LoadedModel, Tensor, list[LayerRecord]]:
    """The model, noise that fits it, and what a forward of that shows of its layers."""
    from camkit.core.layers import example_inputs, trace
    from camkit.models.loading import load_model

    loaded = load_model(spec, device="cpu", trust_pickle=trust_pickle)
    example = example_inputs(loaded.preprocess.size, next(loaded.module.parameters()))
    return loaded, example, trace(loaded.module, example)


def _shapes(record: LayerRecord) -> str:
    shapes = [str(list(shape)) if shape else "no tensor" for shape in record.shapes]
    return shapes[0] if len(shapes) == 1 else f"{shapes[0]} (ran {len(shapes)} times)"


def _grid(record: LayerRecord) -> str:
    return f"{record.grid[0]} x {record.grid[1]}" if record.grid else "-"
