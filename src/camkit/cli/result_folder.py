"""`camkit explain merge`, `camkit verify`, `camkit render`, `camkit show`: for what is finished."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from camkit.cli import early_checks, engine
from camkit.cli.engine import engine_options
from camkit.cli.parameters import PARTLY, PATH, PLACE, SOURCE, look_options, pop_style
from camkit.cli.terminal import say, say_json
from camkit.errors import CamkitError, UsageError, counted, typed_reason
from camkit.images.addresses import is_address

if TYPE_CHECKING:
    from camkit.drawing.style import Style
    from camkit.explaining.manifest import Finding

OUT = "--out is for results at an address; pictures of a folder lie beside its maps"


def write_page(folder: Path, *, is_new: bool = True, complete: bool = True) -> Path | None:
    """Write the page of a folder of results, and say where it is. That there is none is but a warning.

    is_new: whether something was added; without, a page that is not older than the manifest stays.
    complete: whether small pictures are made that are missing, as of an older folder, which takes time.
    """
    from camkit.explaining import run_page
    from camkit.pages.page import NAME

    try:
        is_due = is_new or not run_page.is_current(folder)
        remarks = run_page.write(folder, complete=complete) if is_due else []
    except Exception as error:  # whatever it is, the results are there
        why = error if isinstance(error, CamkitError) else typed_reason(error)
        say(f"Warning: no page was made: {why}", err=True)
        return None
    for remark in remarks:
        say(f"Warning: {remark}", err=True)
    return folder / NAME


@click.command()
@click.argument("folders", nargs=-1, required=True, type=PLACE, metavar="FOLDER...")
@click.option("--out", type=PLACE, required=True, help="The folder or address that gets everything.")
def merge(folders: tuple[Path | str, ...], out: Path | str) -> None:
    """Join FOLDERs that runs of `camkit explain` wrote, such as those with --shard, in --out.

    Every result is copied once, whichever folders hold it. Nothing is overwritten: two different files
    of one name are an error. What is damaged is left out and listed, and the exit code is 3. A FOLDER may
    be an address, such as s3://..., and hold tables alone.
    """
    early_checks.results(*folders)
    if not is_address(out):
        early_checks.results_folder(Path(out))

    from camkit.engines import gathering
    from camkit.explaining import merging
    from camkit.images import workers

    with workers.processes(1) as pool, ExitStack() as stack:
        found = [stack.enter_context(gathering.gathered(folder, pool)) for folder in folders]
        local = [one.folder for one in found]
        if not is_address(out):
            merged = merging.merge(local, Path(out), processes=pool)
        else:
            target = Path(stack.enter_context(TemporaryDirectory(prefix="camkit-")))
            merged = merging.merge(local, target, processes=pool)
            gathering.send(target, str(out))
    tables = [f"{folder}/{why}" for folder, one in zip(folders, found, strict=True) for why in one.damaged]
    findings = [*tables, *merged.findings]
    for finding in findings:
        say(f"Error: {finding}", err=True)
    say(
        f"{counted(merged.added, 'result')} of {counted(len(folders), 'folder')} "
        f"{'is' if merged.added == 1 else 'are'} in {out}"
    )
    if merged.added and not is_address(out):
        write_page(Path(out))
    if findings:
        raise SystemExit(PARTLY if merged.added else 1)


@click.command()
@click.argument("folder", type=PLACE)
@click.option("--images", type=SOURCE, help="Where the photographs lie now.")
@click.option("--model", "spec", metavar="SPEC", help="The model, if it lies elsewhere now.")
@click.option(
    "--sample", type=click.IntRange(min=0), default=8, show_default=True, help="Maps to compute again."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
def verify(folder: Path | str, images: Path | str | None, spec: str | None, sample: int, seed: int) -> None:
    """Check whether what `camkit explain` wrote into FOLDER still holds.

    Hashes of all maps, pictures and photographs are compared with the manifest, and a sample of the maps
    is computed again. The exit code is 1 if anything is missing, differs or cannot be checked. FOLDER may
    be an address, such as s3://...: of many tables a sample is fetched, at most as many as maps are
    computed again.
    """
    early_checks.results(folder)
    early_checks.there(None if is_address(images) else images)
    if spec is not None:
        early_checks.model(spec)

    from camkit.images import workers

    with workers.processes(1) as pool:  # it starts while torch is imported
        from camkit.engines import gathering
        from camkit.explaining import verification

        most = max(1, sample) if is_address(folder) else None
        with gathering.gathered(folder, pool, sample=most, seed=seed) as local:
            found = verification.verify(
                local.folder, photographs=images, sample=sample, seed=seed, spec=spec, processes=pool
            )
    if local.part:
        say(f"Note: looked at {local.part}", err=True)
    findings = [*local.damaged, *found.findings]
    for finding in findings:
        say(finding)
    if not found.lines and not findings:
        raise UsageError(f"{folder} holds no results")
    count = counted(found.recomputed, "recomputed map")
    verb = "differs" if found.recomputed == 1 else "differ"
    again = f"{count} {verb} by at most {found.difference:.1e} of the peak"
    say(
        f"{counted(found.lines, 'result')}: {counted(found.maps, 'map')}, "
        f"{counted(found.pictures, 'picture')} and {counted(found.photographs, 'photograph')} hold; "
        f"{again if found.recomputed else 'no map was recomputed'}"
    )
    for model, maps in found.unchecked.items():
        verb = "is" if maps == 1 else "are"
        say(
            f"{counted(maps, 'map')} of {model} {verb} not computed again: if you trust that model, which "
            "may be code, give it with --model"
        )
    if findings:
        say(f"Does not hold: {counted(len(findings), 'finding')}", err=True)
    elif found.unchecked:
        say("What was checked holds; not everything was", err=True)
    if findings or found.unchecked:
        raise SystemExit(1)
    say("Everything holds", err=True)


@click.command()
@click.argument("folder", type=PLACE)
@click.option("--images", type=SOURCE, help="Where the photographs lie now.")
@click.option(
    "--out",
    type=PLACE,
    help="Of an address: the folder that gets its maps and the pictures. Of an engine: where pictures go.",
)
@click.option(
    "--engine", metavar="NAME", help="Where tables are drawn: local, or ray on a cluster (camkit-ray)."
)
@engine_options
@look_options
def render(
    folder: Path | str, images: Path | str | None, out: Path | str | None, image_format: Any, **look: Any
) -> None:
    """Draw the maps in FOLDER again, or those that --format npz or parquet left undrawn.

    No model is needed. The pictures lie beside the maps, and the manifest tells of them. Those of another
    look are kept: what differs from the default is part of the name. FOLDER may be an address, such as
    s3://...: its maps are fetched into --out. With --engine the tables of an engine are drawn part by part,
    each where there is room for it; what --out holds already is left out.
    """
    given = {name: look.pop(name) for name in ("engine", *engine.PLACES)}
    style = pop_style(look)
    early_checks.results(folder)
    early_checks.there(None if is_address(images) else images)
    if given["engine"] is not None:
        _by_engine(folder, images, out, style, image_format, given)
        return
    _check_here(folder, out, given)

    from camkit.images import workers

    done = failed = 0
    findings: list[Finding] = []
    with workers.processes(1) as pool:  # it starts while torch is imported
        from camkit.engines import gathering, tables
        from camkit.explaining import redrawing
        from camkit.explaining.naming import Names

        place, folder = folder, Path(out or folder)
        findings += gathering.tell(place, folder, sorted(tables.there(str(place)).parts), pool)
        names = Names(folder)
        for line, error in redrawing.redraw(
            folder,
            style=style,
            image_format=image_format,
            photographs=images,
            names=names,
            processes=pool,
            findings=findings,
        ):
            if error is None:
                done += 1
                say(picture := folder / line["overlay_file"])
                for warning in line["warnings"]:
                    say(f"Warning: {picture}: {warning}", err=True)
            else:
                failed += 1
                say(f"Error: {error}", err=True)
    for finding in findings:
        failed += 1
        say(f"Error: {folder}/{finding}", err=True)
    if not done + failed:
        raise UsageError(f"{folder} holds no results")
    if conflicts := names.conflicts():
        say(conflicts, err=True)
    if done:
        write_page(folder)
    if failed:
        say(f"{counted(done, 'picture')} drawn, {failed} failed", err=True)
        raise SystemExit(PARTLY if done else 1)


def _check_here(folder: Path | str, out: Path | str | None, given: dict[str, Any]) -> None:
    """Raise `UsageError` for what only an engine takes, and for an --out where there is no need of one."""
    if lost := [name for name in engine.PLACES if given[name] is not None]:
        raise UsageError(f"{engine.options_of(lost)} is for an engine: add --engine ray")
    if is_address(folder) != (out is not None):
        raise UsageError(f"{folder} lies in an object store: add --out DIR" if out is None else OUT)
    if out is not None and is_address(out):
        raise UsageError(f"pictures go to {out} with an engine alone: add --engine local")


def _by_engine(
    folder: Path | str,
    images: Path | str | None,
    out: Path | str | None,
    style: Style,
    image_format: Any,
    given: dict[str, Any],
) -> None:
    """Let an engine draw the tables of a place."""
    if out is None:
        raise UsageError("an engine needs a place for its pictures: add --out, a folder or an address")
    options = engine.checked_options(given["engine"], given)

    from camkit.engines.rendering import RenderWork

    places = str(folder), str(out)
    shown = None if images is None else str(images)
    engine.render(RenderWork(*places, style, image_format, shown), given["engine"], options)


@click.command()
@click.argument("file", type=PATH)
@click.option("--json", "as_json", is_flag=True, help="Print what the picture carries, as JSON.")
def show(file: Path, as_json: bool) -> None:
    """Print how a picture of `camkit explain` was made, and the command that makes it again.

    Each picture carries its line of the manifest, wherever it is copied; a sheet those of all its maps.
    """
    early_checks.there(file)

    from camkit.explaining import embedding, repeating
    from camkit.explaining.manifest import as_json as json_of

    lines = embedding.read(file)
    if as_json:
        for line in lines:
            say_json(json_of({name: line[name] for name in embedding.KEPT}))
        return
    for line in lines:
        for name in embedding.KEPT:
            value = line[name]
            if value not in (None, [], {}):
                shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
                say(f"{name:<15}  {shown}")
        say()
    say(repeating.command(lines))
    if lacking := repeating.lacks(lines):
        say(lacking, err=True)
