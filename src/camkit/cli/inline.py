"""Pictures between the lines of a terminal that can show them: by kitty's protocol, or as sixels."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from camkit.cli.terminal import say
from camkit.errors import typed_reason

COLUMNS = 80  # a picture is as wide at most, and as high as the screen

Show = Callable[[Path], None]


def viewer() -> Show | None:
    """What shows a picture on stdout; `None`, with a warning that says why, where that is impossible.

    It asks the terminal, which answers on stdin. Needs the extra `terminal`.
    """
    if why := _obstacle():
        say(f"Warning: --inline shows no pictures: {why}", err=True)
        return None
    return _show


def _obstacle() -> str | None:
    """Why nothing can be shown."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return "stdin and stdout are no terminal"
    if 0 in os.get_terminal_size(sys.stdout.fileno()):
        return "the terminal does not tell its size"
    try:
        from textual_image import renderable  # which asks the terminal when it is imported
    except Exception as error:  # of the terminal's driver
        return f"the terminal cannot be asked ({typed_reason(error)})"
    if renderable.Image not in (renderable.SixelImage, renderable.TGPImage):
        return "this terminal knows neither sixel nor kitty's protocol; --open opens one in a window"
    return None


def _show(picture: Path) -> None:
    from rich.console import Console
    from textual_image import renderable

    console = Console(file=sys.stdout)
    console.width = min(COLUMNS, console.width)
    try:
        console.print(renderable.Image(picture, width="auto", height="auto"))
    except Exception as error:  # a run does not fail of what a terminal, or its driver, makes of a picture
        say(f"Warning: {picture} cannot be shown: {typed_reason(error)}", err=True)
