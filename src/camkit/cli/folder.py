"""`camkit explain merge`, `camkit verify`, `camkit render`: what finished folders are good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from camkit.cli import early
from camkit.cli.terminal import say
from camkit.errors import UsageError
from camkit.style import Style

FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=FOLDER, metavar="FOLDER...")
@click.option("--out", type=FOLDER, required=True, help="The folder that gets everything.")
def merge(folders: tuple[Path, ...], out: Path) -> None:
    """Join FOLDERs that runs of `camkit explain` wrote, such as those with --shard, in --out.

    Every result is copied once, whichever folders hold it. Nothing is overwritten: two different files
    of one name are an error.
    """
    early.results(*folders)
    early.writable(out)

    from camkit import collect

    added = collect.merge(folders, out)
    say(f"{added} results of {len(folders)} folders are in {out}")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--images", type=click.Path(path_type=Path), help="Where the photographs lie now.")
@click.option("--model", "spec", metavar="SPEC", help="The model, if it lies elsewhere now.")
@click.option(
    "--sample", type=click.IntRange(min=0), default=8, show_default=True, help="Maps to compute again."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the choice of these maps.")
def verify(folder: Path, images: Path | None, spec: str | None, sample: int, seed: int) -> None:
    """Check whether what `camkit explain` wrote into FOLDER still holds.

    Hashes of all maps, pictures and photographs are compared with the manifest, and a sample of the maps
    is computed again. The exit code is 1 if anything is missing or differs.
    """
    early.results(folder)
    early.there(images)
    if spec is not None:
        early.model(spec)

    from camkit import reading

    with reading.processes(1) as pool:  # it starts while torch is imported
        from camkit import collect

        found = collect.verify(
            folder, photographs=images, sample=sample, seed=seed, spec=spec, processes=pool
        )
    for finding in found.findings:
        say(f"{finding.file}: {finding.reason}")
    say(
        f"{found.lines} results: {found.maps} maps, {found.pictures} pictures and the photographs of "
        f"{found.photographs} hold; {found.anew} maps made anew differ by at most "
        f"{found.difference:.1e} of the peak"
    )
    if not found.lines:
        raise UsageError(f"{folder} holds no results")
    if found.findings:
        say(f"Does not hold: {len(found.findings)} findings", err=True)
        raise SystemExit(1)
    say("Everything holds", err=True)


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--images", type=click.Path(path_type=Path), help="Where the photographs lie now.")
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
def render(folder: Path, images: Path | None, view: Any, **look: Any) -> None:
    """Draw the maps in FOLDER anew, or those that --format npz or parquet left undrawn.

    No model is needed. The pictures lie beside the maps, and the manifest tells of them. Those of another
    look are kept: what differs from the default is part of the name.
    """
    if look["counterfactual"] and look["relu"]:
        raise UsageError("--counterfactual and --relu exclude each other: choose one")
    style = Style(**look)
    early.results(folder)
    early.there(images)

    from camkit import reading

    done = failed = 0
    with reading.processes(1) as pool:  # it starts while torch is imported
        from camkit import collect
        from camkit.naming import Names

        names = Names(folder)
        for line, error in collect.redraw(
            folder, style=style, view=view, photographs=images, names=names, processes=pool
        ):
            if error is None:
                done += 1
                say(picture := folder / line["overlay_file"])
                for warning in line["warnings"]:
                    say(f"Warning: {picture}: {warning}", err=True)
            else:
                failed += 1
                say(f"Error: {error}", err=True)
    if not done + failed:
        raise UsageError(f"{folder} holds no results")
    if told := names.told():
        say(told, err=True)
    if failed:
        say(f"{done} pictures drawn, {failed} failed", err=True)
        raise SystemExit(3 if done else 1)
