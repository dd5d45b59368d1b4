"""`camkit plugin`: what is installed."""

from __future__ import annotations

import json
from typing import Any

import click

from camkit import plugins
from camkit.cli import tables


@click.group()
def plugin() -> None:
    """Explainers, trainers and model sources that are installed."""


@plugin.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on each line.")
def list_(as_json: bool) -> None:
    """Every plugin with its kind, package and status. Reads metadata only: nothing is imported."""
    found = plugins.find()
    if as_json:
        for item in found:
            record: dict[str, Any] = {
                "kind": item.kind,
                "name": item.name,
                "distribution": item.dist,
                "version": item.version,
                "status": item.status,
                "problem": item.problem,
            }
            click.echo(json.dumps(record))
        return
    rows = [(f.kind, f.name, f"{f.dist} {f.version}", f.status) for f in found]
    tables.show(("KIND", "NAME", "PACKAGE", "STATUS"), rows)
    for item in found:
        if item.problem:
            click.echo(f"{item.kind} {item.name!r} of {item.dist} is left out: {item.problem}", err=True)
        elif item.ambiguous:
            click.echo(
                f"{item.kind} {item.name!r} is offered more than once: write {item.full_name}",
                err=True,
            )
