"""Pages from templates: style, script and data are inside, and a policy forbids everything else.

A page may show what a stranger has written: texts are escaped, data is inert JSON, and no script runs but
the one whose hash the policy names.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from camkit.errors import CamkitError
from camkit.files import read_regular

NAME = "index.html"  # of the page of a folder
STYLE, SCRIPT = "page.css", "page.js"
MARK = b'<meta name="generator" content="camkit">'  # of a page that may be replaced
# `file:` is how some browsers call 'self' of a page from the disk.
POLICY = (
    "default-src 'none'; img-src 'self' file: data:; style-src '{style}'; script-src '{script}'; "
    "base-uri 'none'; form-action 'none'"
)


def render(template: str, **values: Any) -> Iterator[str]:
    """The text of a page (`.html`, escaped) or of Markdown (`.md`), piece by piece: it may be large.

    values: what the template shows; a filter `json` makes data for the script of a value.
    """
    return _templates().get_template(template).generate(**values)


def check_ours(path: Path) -> None:
    """Raise `CamkitError` if there is a file of that name which is not a page of camkit.

    A link is no file: it is replaced, as everywhere, and what it leads to stays.
    """
    if path.is_symlink():
        return
    try:
        start = read_regular(path, 2**30)[:1000]
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        start = b""
    if MARK not in start:
        raise CamkitError(f"{path} is not a page of camkit and is kept: rename it")


def as_data(value: Any) -> str:
    """A value as JSON that can stand in a `<script type="application/json">`, whatever is in its texts.

    ASCII, so that no sign ends a line of a script, and without `<`, so that nothing ends the element.
    """
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


@cache
def _templates() -> Environment:
    loader = PackageLoader("camkit.pages")
    templates = Environment(
        loader=loader,
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    style, script = (loader.get_source(templates, name)[0] for name in (STYLE, SCRIPT))
    templates.globals |= {
        "style": Markup(style),
        "script": Markup(script),
        "policy": POLICY.format(style=_hash(style), script=_hash(script)),
    }
    templates.filters |= {
        "json": lambda value: Markup(as_data(value)),
        "text": _markdown,
        "base64": lambda data: base64.b64encode(data).decode("ascii"),
    }
    return templates


def _hash(text: str) -> str:
    """What a policy calls the text of an element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _markdown(text: str) -> str:
    """A text that means nothing to Markdown, on one line."""
    escaped = _ACTIVE.sub(r"\\\g<0>", html.escape(" ".join(text.split()), quote=False))
    return _BEGINS.sub(r"\1\\\2", escaped)


_ACTIVE = re.compile(r"[\\`*_\[\]|~]")
_BEGINS = re.compile(r"^(\d*)([#+=.)-])")  # a heading, a line or a list, where a text begins with it
