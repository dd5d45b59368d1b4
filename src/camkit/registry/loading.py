"""Loading the one plugin that is used, and holding it against its contract."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from functools import cache
from typing import Any

from camkit.errors import BrokenPlugin, CamkitError, typed_reason
from camkit.registry.discovery import HOST, Found, Kind, get
from camkit.registry.options import read_options

# What a plugin says about itself.
ATTRIBUTES: dict[Kind, dict[str, type]] = {
    "explainer": {"summary": str, "methods": tuple},
    "metric": {"summary": str, "direction": str, "range": tuple, "category": str},
    "trainer": {"summary": str},
    "model": {"summary": str},
    "engine": {"summary": str},
    "command": {},
}


@cache
def load(found: Found) -> Any:
    """Import a plugin's class and hold it against its contract; `BrokenPlugin` says what is wrong.

    Of a command it is the `click.Command` itself.
    """
    # Not needed to list plugins, and listing should be instant.
    from camkit.contracts.engine import Engine
    from camkit.contracts.explainer import Explainer
    from camkit.contracts.metric import Metric
    from camkit.contracts.model import ModelSource
    from camkit.contracts.options import API_VERSION, NoOptions
    from camkit.contracts.trainer import Trainer

    bases: dict[str, type] = {
        "explainer": Explainer,
        "metric": Metric,
        "trainer": Trainer,
        "model": ModelSource,
        "engine": Engine,
    }
    module_name, _, attribute = found.value.partition(":")
    where = f"{found.kind} {found.name!r} from {found.dist} {found.version}"
    try:
        plugin: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            plugin = getattr(plugin, part)
    # A plugin may raise anything on import, SystemExit included; it must not take the host down.
    except (Exception, SystemExit) as error:
        raise BrokenPlugin(f"{where} cannot be imported: {typed_reason(error)}") from error
    if found.kind == "command":
        return _checked_command(plugin, where, found.value)
    base = bases[found.kind]
    if not (isinstance(plugin, type) and issubclass(plugin, base)):
        raise BrokenPlugin(f"{where}: {found.value} is not a subclass of camkit.{base.__name__}")
    kind: Any = plugin
    if missing := sorted(getattr(plugin, "__abstractmethods__", ())):
        raise BrokenPlugin(f"{where}: {found.value} does not define {', '.join(missing)}")
    if kind.api_version != API_VERSION:
        newer = isinstance(kind.api_version, int) and kind.api_version > API_VERSION
        raise BrokenPlugin(
            f"{where} speaks plugin API {kind.api_version}, this camkit {API_VERSION}: "
            f"upgrade {HOST if newer else found.dist}"
        )
    for attribute, wanted in ATTRIBUTES[found.kind].items():
        if not (value := getattr(plugin, attribute, None)):
            raise BrokenPlugin(f"{where}: {found.value} does not define {attribute}")
        if not isinstance(value, wanted):  # ("gradcam") is no tuple
            raise BrokenPlugin(f"{where}: {attribute} is {value!r}, not a {wanted.__name__}")
    options: Any = getattr(plugin, "Options", NoOptions)
    if not (isinstance(options, type) and dataclasses.is_dataclass(options)):
        raise BrokenPlugin(f"{where}: Options of {found.value} is no dataclass")
    try:
        read_options(options, {}, owner=found.name)
    except Exception as error:  # a field without a default, an annotation that names nothing
        reason = typed_reason(error)
        raise BrokenPlugin(f"{where}: Options of {found.value} has no usable defaults: {reason}") from error
    return plugin


def _checked_command(command: Any, where: str, value: str) -> Any:
    """A command is no class, but an object of click's."""
    import click

    if not isinstance(command, click.Command):
        raise BrokenPlugin(f"{where}: {value} is not a click.Command")
    return command


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
        raise BrokenPlugin(f"{kind} {name!r} does not start: {typed_reason(error)}") from error
