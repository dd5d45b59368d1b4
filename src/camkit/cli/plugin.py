"""`camkit plugin`: what is installed, whether it works, and how to write one."""

from __future__ import annotations

import dataclasses
import json
import typing
from pathlib import Path
from typing import Any

import click

from camkit.cli.parameters import choice, repeatable
from camkit.cli.terminal import say, say_json, say_table
from camkit.errors import BrokenPlugin, UsageError
from camkit.registry import discovery, loading
from camkit.registry import options as registry_options
from camkit.registry.discovery import Found, Kind

KINDS = tuple(discovery.GROUPS)
MADE = tuple(kind for kind in KINDS if kind != "command")  # by `camkit plugin new`


@click.group()
def plugin() -> None:
    """Explainers, metrics, trainers, models, engines, commands: what is installed; write one."""


@plugin.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on each line.")
def list_(as_json: bool) -> None:
    """Every plugin with its kind, package and status.

    Nothing is imported: names come from package metadata, summaries from the source text.
    """
    found = discovery.find()
    if as_json:
        for f in found:
            record: dict[str, str | None] = {
                "name": f.name,
                "kind": f.kind,
                "distribution": f.dist,
                "version": f.version,
            }
            record |= {"status": f.status, "problem": f.problem, "summary": discovery.summary(f)}
            say_json(json.dumps(record))
        return
    rows = [(f.name, f.kind, f"{f.dist} {f.version}", f.status, discovery.summary(f)) for f in found]
    say_table(("NAME", "KIND", "PACKAGE", "STATUS", "SUMMARY"), rows)
    for item in found:
        if trouble := _trouble(item):
            say(f"{item.kind} {item.name!r} of {item.dist}: {trouble}", err=True)


@plugin.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), help="Only the plugin of this kind.")
def show(name: str, kind: Kind | None) -> None:
    """Methods and options of the plugin NAME, and where it comes from; of every kind that has one."""
    kinds: list[Kind] = [kind] if kind else _kinds(name)
    for number, one in enumerate(kinds or KINDS[:1]):
        if number:
            say()
        _show(discovery.get(one, name))


def _show(found: Found) -> None:
    cls: Any = loading.load(found)
    say(f"{found.name}: {cls.get_short_help_str(100) if found.kind == 'command' else cls.summary}")
    say(f"{found.kind} from {found.dist} {found.version}, {found.value}")
    if found.kind == "explainer":
        say(f"Types: {', '.join(cls.dtypes)}\n")
        agnostic = dict.fromkeys(cls.class_agnostic, "the same map for every class")
        layerless = dict.fromkeys(cls.layerless, "takes no layer")
        told = (agnostic, layerless, cls.notes)
        notes = {m: [one[m] for one in told if m in one] for m in cls.methods}
        say_table(("METHOD", "NOTES"), [(method, "; ".join(texts)) for method, texts in notes.items()])
    if found.kind == "metric":
        low, high = cls.range
        needs = f", needs {' and '.join(cls.needs)}" if cls.needs else ""
        say(f"{cls.direction.capitalize()} is better, {low:g} to {high:g}{needs}.")
        say(f"Category: {cls.category}.")
        if cls.paper:
            say(f"Defined in {cls.paper}.")
    if found.kind not in ("model", "command"):
        say()
        _show_options(cls.Options)


def _show_options(options: type[Any]) -> None:
    hints = typing.get_type_hints(options)
    rows = []
    for item in dataclasses.fields(options):
        kind = registry_options.type_name(hints[item.name])
        if choices := item.metadata.get("choices"):
            kind = "|".join(map(str, choices))
        rows.append((item.name, kind, str(item.default), item.metadata.get("help", "")))
    if rows:
        say_table(("OPTION", "TYPE", "DEFAULT", "HELP"), rows)
    else:
        say("It has no options.")


@plugin.command()
def doctor() -> None:
    """Load every plugin; say what is wrong and how to fix it. Exit code 1 if anything is."""
    wrong = 0
    for item in discovery.find():
        trouble = _trouble(item)
        if not trouble:
            try:
                loading.load(item)
            except BrokenPlugin as error:
                again = f"pip install --upgrade --force-reinstall {item.dist}"
                trouble = f"{error}\n  fix: {again}, or pip uninstall {item.dist}"
        say(f"{'FAIL' if trouble else 'ok  '}  {item.kind} {item.name} ({item.dist} {item.version})")
        if trouble:
            wrong += 1
            say(f"  {trouble}")
    plural = "" if wrong == 1 else "s"
    say(f"{wrong} plugin{plural} cannot be used." if wrong else "Everything loads.")
    if wrong:
        raise SystemExit(1)


@plugin.command()
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), help="If several kinds have a plugin of that name.")
@click.option("--reference", default="", help="Of a model source: a model that loads offline.")
@repeatable("-o", "--option", "options", metavar="KEY=VALUE", help="An option of the plugin; repeatable.")
def check(name: str, kind: Kind | None, reference: str, options: tuple[str, ...]) -> None:
    """Hold the plugin NAME against everything that camkit demands of its kind."""
    found = _named(name, kind)
    values = registry_options.parse_assignments(options)

    from camkit import testing

    subject = testing.Subject(found.kind, name, loading.load(found), values, reference)
    failed = 0
    for one in testing.CHECKS[found.kind]:
        outcome = testing.run_check(one, subject)
        good = outcome.status == "passed"
        failed += not good
        say(f"{'ok  ' if good else 'FAIL'}  {outcome.check.removeprefix('check_')}: {outcome.demand}")
        if not good:
            say(f"      {outcome.reason}")
    say(f"{name}: {f'{failed} checks fail' if failed else 'all checks pass'}.")
    if failed:
        raise SystemExit(1)


@plugin.command()
@click.argument("name")
@choice("--kind", MADE, "What NAME will be.")
@click.option(
    "--into",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    default=".",
    help="The folder in which camkit-NAME is made; here by default.",
)
def new(name: str, kind: Kind, into: Path) -> None:
    """Write a package camkit-NAME with a working plugin, whose tests pass at once."""
    from camkit.registry.scaffold import new_plugin

    folder = new_plugin(name, kind, into)
    say(f"Wrote {folder}. Next:\n")
    say(f"  cd {folder}\n  pip install -e '.[test]'\n  pytest")


def _named(name: str, kind: Kind | None) -> Found:
    """The plugin of that name, whichever kind it is."""
    kinds = [kind] if kind else _kinds(name)
    if len(kinds) > 1:
        raise UsageError(
            f"{name!r} is the name of several kinds of plugin: add --kind {' or '.join(kinds)}"
        )
    return discovery.get(kinds[0] if kinds else "explainer", name)


def _kinds(name: str) -> list[Kind]:
    """The kinds that have a plugin of that name."""
    return [k for k in KINDS if any(name in (f.name, f.full_name) for f in discovery.find(k))]


def _trouble(item: Found) -> str | None:
    """What the metadata alone tell."""
    if item.ambiguous:
        return (
            f"the name is offered more than once: write {item.full_name}, or uninstall one of the packages"
        )
    return item.problem
