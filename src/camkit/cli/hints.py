"""Commands in error messages, completed with the model that was in use."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager

from camkit.errors import CamkitError


@contextmanager
def about(spec: str, *, trust_pickle: bool = False) -> Iterator[None]:
    """An error that passes through names the model `spec` in its hints: `camkit model layers SPEC`."""
    model = f"{shlex.quote(spec)} --trust-pickle" if trust_pickle else shlex.quote(spec)
    try:
        yield
    except CamkitError as error:
        text = super(CamkitError, error).__str__()
        error.args = (
            re.sub(r"`camkit model (classes|layers)`", lambda m: f"`camkit model {m[1]} {model}`", text),
        )
        raise
