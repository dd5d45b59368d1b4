"""Checks of commands."""

from __future__ import annotations

import io
from contextlib import redirect_stdout

from camkit.registry import discovery, loading
from camkit.testing.kit import Subject


def check_registration(subject: Subject) -> None:
    """The entry point leads to this command."""
    assert loading.load(discovery.get("command", subject.name)) is subject.plugin


def check_help(subject: Subject) -> None:
    """`--help` says what the command does and exits without an error."""
    command, text = subject.plugin, io.StringIO()
    with redirect_stdout(text):
        command.main(["--help"], prog_name=f"camkit {subject.name}", standalone_mode=False)
    assert command.help, "the command's function needs a docstring, which becomes the help"
    assert command.get_short_help_str(30) in text.getvalue(), "its first line is not in the help"


def check_errors(subject: Subject) -> None:
    """An unknown option is refused before anything is done."""
    try:
        subject.plugin.main(["--no-such-option"], prog_name="camkit", standalone_mode=False)
    except Exception as error:
        assert type(error).__name__ == "NoSuchOption", f"it raises {type(error).__name__}"
    else:
        raise AssertionError("it accepts an unknown option")
