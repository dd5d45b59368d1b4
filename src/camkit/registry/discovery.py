"""Finding plugins and reading their options.

Found and loaded are two things. `find` reads package metadata only, so it is quick, never runs a
stranger's code and gives the same list every time; `load` imports the one plugin that is used.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from camkit.errors import (
    AmbiguousPlugin,
    BrokenPlugin,
    PluginNotFound,
    closest,
    typed_reason,
    warn,
)

if TYPE_CHECKING:
    from importlib.metadata import Distribution  # it takes a third of the time of `--help`

    from packaging.version import Version

Kind = Literal["explainer", "metric", "trainer", "model", "engine", "command"]

# Plugins of our own that come as separate packages: an error can say which one.
OURS = {
    ("trainer", "fastai"): "camkit-fastai",
    ("explainer", "captum"): "camkit-captum",
    ("explainer", "pytorch-grad-cam"): "camkit-pytorch-grad-cam",
    ("explainer", "torchcam"): "camkit-torchcam",
    ("explainer", "zennit"): "camkit-zennit",
    ("command", "explore"): "camkit-explorer",
    ("engine", "ray"): "camkit-ray",
}

GROUPS: dict[Kind, str] = {
    "explainer": "camkit.explainers",
    "metric": "camkit.metrics",
    "trainer": "camkit.trainers",
    "model": "camkit.models",
    "engine": "camkit.engines",
    "command": "camkit.commands",
}
# Commands of camkit's own, which nobody else may be called.
COMMANDS = ("bench", "explain", "model", "plugin", "render", "show", "train", "verify")
HOST = "camkit"
# Where the body of a class ends, or its first method begins.
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_BODY_END = re.compile(r"^(?:[^\s)#]|    (?:def|async|@))", re.MULTILINE)
NAME = re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True)
class Found:
    """A plugin as its package announces it. `problem` is why it cannot be used, if it cannot.

    `ambiguous`: the name is offered by several packages, so only `dist:name` picks one.
    """

    kind: Kind
    name: str
    value: str
    dist: str
    version: str
    problem: str | None = None
    ambiguous: bool = False

    @property
    def full_name(self) -> str:
        """The name that is never ambiguous."""
        return f"{self.dist}:{self.name}"

    @property
    def status(self) -> str:
        """One of `ok`, `ambiguous`, `broken`."""
        return "broken" if self.problem else "ambiguous" if self.ambiguous else "ok"


def find(kind: Kind | None = None) -> list[Found]:
    """Every plugin that installed packages announce, sorted by kind, name and distribution."""
    found = _scan(os.environ.get("CAMKIT_PLUGINS"), tuple(sys.path))
    return [f for f in found if kind in (None, f.kind)]


def get(kind: Kind, name: str) -> Found:
    """The one plugin that `name` (or `dist:name`) means.

    Raises `PluginNotFound`, `AmbiguousPlugin` or `BrokenPlugin`.
    """
    matches = _named(kind, name)
    if all(f.problem for f in matches):  # perhaps it was just installed or repaired, from a notebook
        _scan.cache_clear()
        _spec.cache_clear()
        importlib.invalidate_caches()
        matches = _named(kind, name)
    working = [f for f in matches if not f.problem]
    if len(working) == 1:
        return working[0]
    if working:
        offers = " or ".join(f.full_name for f in working)
        raise AmbiguousPlugin(f"{kind} {name!r} is offered by several packages: use {offers}")
    if matches:
        broken = matches[0]
        raise BrokenPlugin(f"{kind} {name!r} from {broken.dist} cannot be used: {broken.problem}")
    known = [f.name for f in find(kind) if not f.problem]
    hint = closest(name, known) or f"; installed: {', '.join(known) or 'none'}"
    hint = "" if kind == "command" else hint  # camkit's own are no plugins
    way_out = "`camkit plugin list` shows all"
    if (kind, name) in OURS:
        way_out = f"pip install {OURS[kind, name]}"
    elif "CAMKIT_PLUGINS" in os.environ:
        way_out = "the variable CAMKIT_PLUGINS restricts what may be used"
    raise PluginNotFound(f"there is no {kind} {name!r}{hint} ({way_out})")


def names(kind: Kind) -> list[str]:
    """The names by which the plugins of a kind can be used, camkit's own first."""
    usable = [found for found in find(kind) if not found.problem]
    usable.sort(key=lambda found: found.dist != HOST)
    return [found.full_name if found.ambiguous else found.name for found in usable]


def _named(kind: Kind, name: str) -> list[Found]:
    return [f for f in find(kind) if name in (f.name, f.full_name)]


def summary(found: Found) -> str:
    """The plugin's own one-line summary, read from its source without running it; "" if it has none.

    Importing every plugin for a list would run strangers' code and take as long as importing torch.
    """
    module, _, cls = found.value.partition(":")
    package, *rest = module.split(".")
    spec = _spec(package, tuple(sys.path))
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [folder.joinpath(*rest, "__init__.py") for folder in folders]
    files += [folder.joinpath(*rest).with_suffix(".py") for folder in folders if rest]
    files += [Path(spec.origin)] if spec and spec.origin and not rest else []
    source = next((file for file in files if file.is_file()), None)
    if found.kind == "command":
        return _first_line_of(source, cls) if source else ""
    for line in _class_body(source, cls) if source and cls else ():
        match line:
            case (
                ast.Assign(targets=[ast.Name(id="summary")], value=ast.Constant(value=str(text)))
                | ast.AnnAssign(target=ast.Name(id="summary"), value=ast.Constant(value=str(text)))
            ):
                return text
    return ""


@cache
def _spec(package: str, path: tuple[str, ...]) -> ModuleSpec | None:
    """Where a package is; many plugins share one, and each folder of `path` is looked into."""
    return PathFinder.find_spec(package)


def _first_line_of(source: Path, function: str) -> str:
    """The first line of a function's docstring."""
    try:
        nodes = ast.parse(source.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return ""
    texts = [ast.get_docstring(n) for n in nodes if isinstance(n, ast.FunctionDef) and n.name == function]
    return (texts[0] or "").partition("\n")[0] if texts else ""


def _class_body(source: Path, cls: str) -> list[ast.stmt]:
    """The statements of a class before its methods; only they are parsed, for a module takes long."""
    try:
        text = source.read_text(encoding="utf-8")
        begin = next((found for found in _CLASS.finditer(text) if found[1] == cls), None)
        end = begin and _BODY_END.search(text, begin.end())
        node = ast.parse(text[begin.start() : end.start() if end else None]).body[0] if begin else None
    except (OSError, SyntaxError, ValueError):
        return []
    return node.body if isinstance(node, ast.ClassDef) else []


@cache
def _scan(restriction: str | None, path: tuple[str, ...]) -> list[Found]:
    """All announcements, sorted and marked; walking every package takes as long as a small forward."""
    kinds = list(GROUPS)
    found = sorted(_announced(_selection(restriction)), key=lambda f: (kinds.index(f.kind), f.name, f.dist))
    claims = Counter((f.kind, f.name) for f in found if not f.problem)
    return [replace(f, ambiguous=claims[f.kind, f.name] > 1 and not f.problem) for f in found]


def _announced(selected: set[str] | None) -> list[Found]:
    from importlib.metadata import distributions

    seen: set[str] = set()
    found: list[Found] = []
    for dist in distributions():
        try:
            # Read this text first: parsing the metadata of every package would take most of the time.
            if "camkit." not in (dist.read_text("entry_points.txt") or ""):
                continue
            if not dist.name:
                raise ValueError("it names no package")
            name = _normalised(dist.name)
            if name in seen:  # the first on sys.path is the one that gets imported
                continue
            seen.add(name)
            if name == HOST or selected is None or name in selected:
                found += _offers(name, dist)
        # One damaged package must not take the others down.
        except Exception as error:
            where = getattr(dist, "_path", dist.locate_file(""))
            text = f"the package metadata in {where} cannot be read ({typed_reason(error)}): reinstall it"
            warn(text)
    return [_unshadowed(item, found) for item in found]


def _offers(name: str, dist: Distribution) -> list[Found]:
    kinds = {group: kind for kind, group in GROUPS.items()}
    version = dist.version or "?"  # each time it is asked for, the metadata are parsed
    requires = dist.requires or []
    items = [
        Found(kinds[entry.group], entry.name, entry.value, name, version)
        for entry in dist.entry_points
        if entry.group in kinds
    ]
    return [replace(item, problem=_problem(item, requires)) for item in items]


def _selection(value: str | None) -> set[str] | None:
    """CAMKIT_PLUGINS: unset allows all; otherwise the distributions named, with commas."""
    if value is None:
        return None
    return {_normalised(part) for part in value.split(",") if part.strip()}


def _problem(found: Found, requires: Sequence[str]) -> str | None:
    """What is wrong as far as the metadata tells."""
    if not NAME.fullmatch(found.name):
        return f"the name {found.name!r} is not of the form [a-z0-9-]+"
    if not re.fullmatch(r"[\w.]+:[\w.]+", found.value):
        return f"the entry point {found.value!r} is not of the form module:Class"
    if found.dist == HOST:
        return None
    return next(filter(None, (_misfit(text, found.dist) for text in requires)), None)


def _misfit(requirement: str, dist: str) -> str | None:
    """Why this camkit is not the one that a line of Requires-Dist asks for, and which side to upgrade."""
    if not re.match(rf"{HOST}(?![\w.-])", requirement, re.IGNORECASE):
        return None
    from packaging.version import Version

    here = _own_version()
    lower = re.fullmatch(rf"{HOST}\s*>=\s*([\d.]*\d)", requirement)
    if lower and here >= Version(lower[1]):
        return None  # what nearly everyone writes; the next import takes longer than all the rest of a list

    from packaging.requirements import InvalidRequirement, Requirement

    try:
        wanted = Requirement(requirement)
    except InvalidRequirement:
        return f"its requirement {requirement} cannot be read"
    unmet = [one for one in wanted.specifier if not one.contains(here, prereleases=True)]
    if not unmet or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
        return None
    newer = any(one.operator == ">" or Version(one.version.removesuffix(".*")) > here for one in unmet)
    return f"it needs {HOST}{wanted.specifier}, this is {here}: upgrade {HOST if newer else dist}"


@cache
def _own_version() -> Version:
    from importlib.metadata import version

    from packaging.version import Version

    return Version(version(HOST))  # for which the metadata are parsed


def _unshadowed(item: Found, found: list[Found]) -> Found:
    """Built-in names belong to camkit."""
    if item.dist == HOST or item.problem:
        return item
    ours = any(f.dist == HOST and (f.kind, f.name) == (item.kind, item.name) for f in found)
    if ours or (item.kind == "command" and item.name in COMMANDS):
        return replace(item, problem=f"the name {item.name!r} is built into camkit; choose another")
    return item


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()
