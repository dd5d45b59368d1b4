"""Finding plugins and reading their options.

Found and loaded are two things. `find` reads package metadata only, so it is quick, never runs a
stranger's code and gives the same list every time; `load` imports the one plugin that is used.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import re
import sys
import types
import typing
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from camkit.errors import (
    AmbiguousPlugin,
    BrokenPlugin,
    CamkitError,
    CamkitWarning,
    OptionError,
    PluginNotFound,
    closest,
)

if TYPE_CHECKING:
    from importlib.metadata import Distribution  # it takes a third of the time of `--help`

Kind = Literal["explainer", "metric", "trainer", "model"]

# Plugins of our own that come as separate packages: an error can say which one.
OURS = {
    ("trainer", "fastai"),
    ("explainer", "captum"),
    ("explainer", "pytorch-grad-cam"),
    ("explainer", "torchcam"),
}

GROUPS: dict[Kind, str] = {
    "explainer": "camkit.explainers",
    "metric": "camkit.metrics",
    "trainer": "camkit.trainers",
    "model": "camkit.models",
}
BASES: dict[Kind, str] = {
    "explainer": "Explainer",
    "metric": "Metric",
    "trainer": "Trainer",
    "model": "ModelSource",
}
# What a plugin says about itself.
ATTRIBUTES: dict[Kind, dict[str, type]] = {
    "explainer": {"summary": str, "methods": tuple},
    "metric": {"summary": str, "direction": str, "range": tuple, "category": str},
    "trainer": {"summary": str},
    "model": {"summary": str},
}
HOST = "camkit"
NAME = re.compile(r"[a-z0-9-]+")
# A line of Requires-Dist as far as it matters here: `camkit[extra] (>=1,<2); marker`, `camkit @ URL`.
REQUIREMENT = re.compile(
    r"(?P<name>[\w.-]+)\s*(\[.*?\])?\s*\(?(?P<versions>[^;)@]*?)\)?\s*(@[^;]*)?(;(?P<marker>.*))?"
)


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
    if all(f.problem for f in matches):  # perhaps it was installed or mended a moment ago, from a notebook
        _scan.cache_clear()
        importlib.invalidate_caches()
        matches = _named(kind, name)
    usable = [f for f in matches if not f.problem]
    if len(usable) == 1:
        return usable[0]
    if usable:
        offers = " or ".join(f.full_name for f in usable)
        raise AmbiguousPlugin(f"{kind} {name!r} is offered by several packages: use {offers}")
    if matches:
        broken = matches[0]
        raise BrokenPlugin(f"{kind} {name!r} from {broken.dist} cannot be used: {broken.problem}")
    known = [f.name for f in find(kind) if not f.problem]
    hint = closest(name, known) or f"; installed: {', '.join(known) or 'none'}"
    shown = "`camkit plugin list` shows all"
    if "CAMKIT_PLUGINS" in os.environ:
        shown = "the variable CAMKIT_PLUGINS restricts what may be used"
    package = f"pip install camkit-{name}" if (kind, name) in OURS else ""
    shown = package or shown
    raise PluginNotFound(f"there is no {kind} {name!r}{hint} ({shown})")


def _named(kind: Kind, name: str) -> list[Found]:
    return [f for f in find(kind) if name in (f.name, f.full_name)]


@cache
def load(found: Found) -> type[Any]:
    """Import a plugin's class and hold it against its contract; `BrokenPlugin` says what is wrong."""
    from camkit import api  # not needed to list plugins, and listing should be instant

    module_name, _, attribute = found.value.partition(":")
    where = f"{found.kind} {found.name!r} from {found.dist} {found.version}"
    try:
        plugin: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            plugin = getattr(plugin, part)
    # A plugin may raise anything on import, SystemExit included; it must not take the host down.
    except (Exception, SystemExit) as error:
        raise BrokenPlugin(f"{where} cannot be imported: {_reason(error)}") from error
    base: type = getattr(api, BASES[found.kind])
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise BrokenPlugin(f"{where}: {found.value} is not a subclass of camkit.{base.__name__}")
    kind: Any = plugin
    if missing := sorted(getattr(plugin, "__abstractmethods__", ())):
        raise BrokenPlugin(f"{where}: {found.value} does not define {', '.join(missing)}")
    if kind.api_version != api.API_VERSION:
        newer = isinstance(kind.api_version, int) and kind.api_version > api.API_VERSION
        raise BrokenPlugin(
            f"{where} speaks plugin API {kind.api_version}, this camkit {api.API_VERSION}: "
            f"upgrade {HOST if newer else found.dist}"
        )
    for attribute, wanted in ATTRIBUTES[found.kind].items():
        if not (value := getattr(plugin, attribute, None)):
            raise BrokenPlugin(f"{where}: {found.value} does not define {attribute}")
        if not isinstance(value, wanted):  # ("gradcam") is no tuple
            raise BrokenPlugin(f"{where}: {attribute} is {value!r}, not a {wanted.__name__}")
    options: Any = getattr(plugin, "Options", api.NoOptions)
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        raise BrokenPlugin(f"{where}: Options of {found.value} is no dataclass")
    try:
        read_options(options, {}, owner=found.name)
    except Exception as error:  # a field without a default, an annotation that names nothing
        reason = _reason(error)
        raise BrokenPlugin(f"{where}: Options of {found.value} has no usable defaults: {reason}") from error
    return plugin


def make(kind: Kind, name: str, options: Mapping[str, Any] | None = None) -> Any:
    """The plugin `name` with its options: an instance, ready to use."""
    plugin = load(get(kind, name))
    if kind == "model":
        return start(kind, name, plugin)
    return start(kind, name, plugin, read_options(plugin.Options, options or {}, owner=name))


def start(kind: Kind, name: str, plugin: type[Any], *arguments: Any) -> Any:
    """An instance of a plugin's class; whatever its constructor raises is a `BrokenPlugin`."""
    try:
        return plugin(*arguments)
    except CamkitError:
        raise
    except Exception as error:
        raise BrokenPlugin(f"{kind} {name!r} does not start: {_reason(error)}") from error


def summary(found: Found) -> str:
    """The plugin's own one-line summary, read from its source without running it; "" if it has none.

    Importing every plugin for a list would run strangers' code and take as long as importing torch.
    """
    module, _, cls = found.value.partition(":")
    package, *rest = module.split(".")
    spec = PathFinder.find_spec(package)
    folders = [Path(folder) for folder in (spec and spec.submodule_search_locations) or ()]
    files = [folder.joinpath(*rest, "__init__.py") for folder in folders]
    files += [folder.joinpath(*rest).with_suffix(".py") for folder in folders if rest]
    files += [Path(spec.origin)] if spec and spec.origin and not rest else []
    source = next((file for file in files if file.is_file()), None)
    for line in _class_body(source, cls) if source and cls else ():
        match line:
            case (
                ast.Assign(targets=[ast.Name(id="summary")], value=ast.Constant(value=str(text)))
                | ast.AnnAssign(target=ast.Name(id="summary"), value=ast.Constant(value=str(text)))
            ):
                return text
    return ""


def _class_body(source: Path, cls: str) -> list[ast.stmt]:
    """The statements of a class before its methods; only they are parsed, for a module takes long."""
    block = rf"^class {re.escape(cls)}\b.*?(?=^[^\s)#]|^    (?:def|async|@)|\Z)"
    try:
        text = re.search(block, source.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        node = ast.parse(text[0]).body[0] if text else None
    except (OSError, SyntaxError, ValueError):
        return []
    return node.body if isinstance(node, ast.ClassDef) else []


# --- discovery ------------------------------------------------------------------------------------


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
            text = f"the package metadata in {where} cannot be read ({_reason(error)}): reinstall it"
            warnings.warn(CamkitWarning(text), stacklevel=2)
    return [_unshadowed(item, found) for item in found]


def _offers(name: str, dist: Distribution) -> list[Found]:
    kinds = {group: kind for kind, group in GROUPS.items()}
    items = [
        Found(kinds[entry.group], entry.name, entry.value, name, dist.version or "?")
        for entry in dist.entry_points
        if entry.group in kinds
    ]
    return [replace(item, problem=_problem(item, dist)) for item in items]


def _selection(value: str | None) -> set[str] | None:
    """CAMKIT_PLUGINS: unset allows all; otherwise the distributions named, with commas."""
    if value is None:
        return None
    return {_normalised(part) for part in value.split(",") if part.strip()}


def _problem(found: Found, dist: Distribution) -> str | None:
    """What is wrong as far as the metadata tells."""
    if not NAME.fullmatch(found.name):
        return f"the name {found.name!r} is not of the form [a-z0-9-]+"
    if not re.fullmatch(r"[\w.]+:[\w.]+", found.value):
        return f"the entry point {found.value!r} is not of the form module:Class"
    if found.dist == HOST:
        return None
    requirements = filter(None, map(REQUIREMENT.fullmatch, dist.requires or ()))
    ours = [r for r in requirements if _normalised(r["name"]) == HOST and _applies(r["marker"])]
    return next(filter(None, (_misfit(r["versions"], found.dist) for r in ours)), None)


def _applies(marker: str | None) -> bool:
    """Whether a requirement with this marker counts here; that of an extra does not."""
    if not marker:
        return True
    from packaging.markers import Marker

    return Marker(marker).evaluate({"extra": ""})


def _misfit(versions: str, dist: str) -> str | None:
    """Whether this camkit is among the `versions` that a plugin asks for; if not, whom to upgrade."""
    from importlib.metadata import version

    from packaging.version import Version

    here = version(HOST)
    lower = re.fullmatch(r">=\s*([\d.]*\d)", versions)
    if lower and Version(here) >= Version(lower[1]):
        return None  # what nearly everyone writes; the next import takes longer than all the rest of a list

    from packaging.specifiers import SpecifierSet

    try:
        unmet = [one for one in SpecifierSet(versions) if not one.contains(here, prereleases=True)]
        newer = [Version(one.version.removesuffix(".*")) > Version(here) for one in unmet]
    except ValueError:
        return f"its requirement camkit{versions} cannot be read"
    if not unmet:
        return None
    side = HOST if any(newer) or any(one.operator == ">" for one in unmet) else dist
    return f"it needs camkit{versions}, this is {here}: upgrade {side}"


def _unshadowed(item: Found, found: list[Found]) -> Found:
    """Built-in names belong to camkit."""
    if item.dist == HOST or item.problem:
        return item
    if any(f.dist == HOST and (f.kind, f.name) == (item.kind, item.name) for f in found):
        return replace(item, problem=f"the name {item.name!r} is built into camkit; choose another")
    return item


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0]


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).strip().lower()


# --- options --------------------------------------------------------------------------------------


def read_options(cls: type, values: Mapping[str, Any], *, owner: str) -> Any:
    """An instance of the `Options` dataclass `cls` from texts (command line) or values (Python).

    Raises `OptionError` for an unknown key (with the closest known), a wrong type, a value out of
    range or not among the choices, and for values that the class itself refuses with a `ValueError`.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = _hints(cls)
    parsed: dict[str, Any] = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in fields:
            known = ", ".join(fields) or "it has none"
            hint = closest(name, fields) or f" (options: {known})"
            raise OptionError(f"{owner} has no option {key!r}{hint}")
        parsed[name] = _value(value, hints[name], fields[name].metadata, f"option {key} of {owner}")
    try:
        return cls(**parsed)
    except ValueError as error:  # from the plugin's own `__post_init__`
        raise OptionError(f"options of {owner}: {error}") from error


@cache
def _hints(cls: type) -> dict[str, Any]:
    """Kept, because it takes as long as everything else around a small model."""
    return typing.get_type_hints(cls)


def share_options(owners: Mapping[str, type], values: Mapping[str, Any]) -> dict[str, Any]:
    """For each owner its `Options`, with those of `values` that it has; one of the owners must."""
    names = {owner: {field.name for field in dataclasses.fields(cls)} for owner, cls in owners.items()}
    shared = {}
    for owner, cls in owners.items():
        others = set().union(*(known for other, known in names.items() if other != owner)) - names[owner]
        own = {key: value for key, value in values.items() if key.replace("-", "_") not in others}
        shared[owner] = read_options(cls, own, owner=owner)
    return shared


def parse_assignments(texts: tuple[str, ...]) -> dict[str, str]:
    """`KEY=VALUE` texts of the command line as a table."""
    table: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not (key.strip() and equals):
            raise OptionError(f"option {text!r} is not of the form KEY=VALUE, such as fast=true")
        table[key.strip()] = value.strip()
    return table


def type_name(hint: Any) -> str:
    """A type as `camkit plugin show` and error messages name it."""
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(part) for part in typing.get_args(hint))
    if hint is bool:
        return "true|false"
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))


def _value(value: Any, hint: Any, metadata: Mapping[str, Any], where: str) -> Any:
    try:
        parsed = _convert(value, hint)
    except (TypeError, ValueError):
        raise OptionError(f"{where} must be {type_name(hint)}, not {value!r}") from None
    choices, low, high = (metadata.get(key) for key in ("choices", "min", "max"))
    if choices and parsed not in choices:
        raise OptionError(f"{where} must be one of {', '.join(map(str, choices))}, not {value!r}")
    if isinstance(parsed, int | float) and (
        (low is not None and not parsed >= low) or (high is not None and not parsed <= high)
    ):
        span = f"at least {low}" if high is None else f"at most {high}"
        span = f"between {low} and {high}" if None not in (low, high) else span
        raise OptionError(f"{where} must be {span}, not {value!r}")
    return parsed


_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True)
_BOOLEANS |= dict.fromkeys(("false", "no", "off", "0"), False)


def _convert(value: Any, hint: Any) -> Any:
    """`value` as the type `hint`; texts are parsed, other values must already fit."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for part in sorted(typing.get_args(hint), key=lambda part: part is not type(None)):
            try:
                return _convert(value, part)
            except (TypeError, ValueError):
                continue
        raise ValueError
    if typing.get_origin(hint) is Literal:
        by_text = {str(choice): choice for choice in typing.get_args(hint)}
        if str(value) in by_text:
            return by_text[str(value)]
        raise ValueError
    if hint is type(None):
        if value is None or value == "none":
            return None
        raise ValueError
    if isinstance(value, str) and hint is bool:
        if value.lower() in _BOOLEANS:
            return _BOOLEANS[value.lower()]
        raise ValueError
    if isinstance(value, str) and hint in (int, float, str):
        return hint(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise TypeError
