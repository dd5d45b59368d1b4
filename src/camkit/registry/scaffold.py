"""`camkit plugin new`: a package of one's own whose tests pass at once."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template

import camkit
from camkit.errors import UsageError
from camkit.files import write_whole
from camkit.registry import discovery
from camkit.registry.discovery import Kind

# Where each template goes. `$module` and `$name` are filled in here as in the texts.
TARGETS = {
    "common/pyproject.toml": "pyproject.toml",
    "common/ci.yml": ".github/workflows/ci.yml",
    "{kind}/README.md": "README.md",
    "{kind}/plugin.py": "src/$module/__init__.py",
    "{kind}/test_plugin.py": "tests/test_$module.py",
}
SUMMARIES: dict[Kind, str] = {
    "explainer": "The explainer $name: HiResCAM as a start",
    "metric": "The metric $name: mass on the object as a start",
    "model": "The model source $name: one tiny model as a start",
    "trainer": "The trainer $name: a tiny network as a start",
    "engine": "The engine $name: one part after the other as a start",
}


def new_plugin(name: str, kind: Kind, parent: Path) -> Path:
    """Write the package `camkit-NAME` into `parent`; its folder.

    Raises `UsageError` for a name that is invalid or taken, and for a folder that exists.
    """
    if not discovery.NAME.fullmatch(name) or not name.strip("-") or not name[0].isalpha():
        raise UsageError(
            f"{name!r} is no name for a plugin: small letters, digits and dashes, a letter first"
        )
    taken = [found for found in discovery.find(kind) if found.name == name]
    if taken:
        raise UsageError(f"the {kind} {name!r} exists already, in {taken[0].dist}: choose another name")
    folder = parent / f"camkit-{name}"
    if folder.exists():
        raise UsageError(f"{folder} exists already: choose another name, or remove it")
    values = {
        "name": name,
        "dist": f"camkit-{name}",
        "module": f"camkit_{name.replace('-', '_')}",
        "class_name": "".join(part.capitalize() for part in name.split("-")),
        "group": discovery.GROUPS[kind],
        "camkit": camkit.__version__,
    }
    values["summary"] = Template(SUMMARIES[kind]).substitute(values)
    templates = files("camkit.registry") / "templates"
    for source, target in TARGETS.items():
        text = (templates / f"{source.format(kind=kind)}.in").read_text(encoding="utf-8")
        path = folder / Template(target).substitute(values)
        write_whole(path, Template(text).substitute(values))
    return folder
