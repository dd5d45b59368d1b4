"""The command line. Nothing here imports torch before a command needs it: `--help` is instant."""

from __future__ import annotations

import importlib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

import camkit
from camkit.cli.parameters import CommandBeside
from camkit.cli.terminal import say
from camkit.errors import ESCAPES, CamkitError, CamkitWarning, closest
from camkit.registry import discovery, loading

# What the system says of a library that it has no memory for.
NO_ROOM = ("failed to map segment", "cannot allocate memory", "Cannot allocate memory")
NO_LIBRARIES = "out of memory: there is too little for the libraries of torch; allow more (`ulimit -v`)"

# Camkit's own commands: the module here that each is in, and what `camkit --help` says of it.
COMMANDS = {
    "explain": ("explain", "Draw where a model looked in photographs"),
    "show": ("result_folder", "How a picture was made, and the command that makes it again"),
    "verify": ("result_folder", "Whether files and maps still are what they were"),
    "render": ("result_folder", "Draw the maps of a folder again, in another look"),
    "train": ("train", "Train a classifier on photographs with labels, and report on it"),
    "bench": ("bench", "Measure explainers: speed, memory, and whether they tell the truth"),
    "model": ("model", "Which models there are, what is known of one, bundles of them"),
    "plugin": ("plugin", "Which plugins are installed; check one, or begin your own"),
}


class Commands(click.Group):
    """A group that turns errors into one line and the documented exit code.

    A command is imported only when it is called, camkit's own as that of a plugin.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Camkit's own."""
        return list(COMMANDS)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What each of them does, without importing it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """One of camkit's own, or else of a plugin."""
        if name in COMMANDS:
            command = getattr(importlib.import_module(f"camkit.cli.{COMMANDS[name][0]}"), name)
        elif _is_plugin(name):
            command = loading.load(discovery.get("command", name))
        elif ctx.resilient_parsing or name.startswith("-"):
            return None
        else:
            known = [*COMMANDS, *(found.name for found in discovery.find("command"))]
            raise click.UsageError(f"No such command {name!r}{closest(name, known)}", ctx)
        _debug_too(click.Group(commands=[command]))
        return command  # type: ignore[no-any-return]

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the options that stand before the command."""
        with _short_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            with _short_usage_errors():
                return super().invoke(ctx)
        # Click's own, and a reader of our pipe that has gone away.
        except (click.exceptions.Exit, click.Abort, click.ClickException, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            say("\nInterrupted", err=True)
            ctx.exit(130)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            say(f"Error: {_message(error)}", err=True)
            ctx.exit(error.exit_code if isinstance(error, CamkitError) else 1)


def _is_plugin(name: str) -> bool:
    """Whether a command is that of a package, installed or not."""
    return ("command", name) in discovery.OURS or any(f.name == name for f in discovery.find("command"))


@contextmanager
def _short_usage_errors() -> Iterator[None]:
    """Two lines for what click finds wrong, which it would put below the usage."""
    try:
        yield
    except click.UsageError as error:
        if error.ctx is None or error.message == error.ctx.get_help():  # `camkit model` shows its help
            raise
        hint = f"Try '{error.ctx.command_path} --help' for help."
        raise click.UsageError(f"{error.format_message().translate(ESCAPES)}\n{hint}") from error


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error goes back to a library that found no room in memory."""
    while error is not None:
        if isinstance(error, ImportError | OSError) and any(text in str(error) for text in NO_ROOM):
            return True
        error = error.__cause__
    return False


def _message(error: Exception) -> str:
    """What a user should read about an error."""
    if isinstance(error, CamkitError) and not _lacks_memory(error):
        return str(error)
    of_torch = isinstance(error, RuntimeError) and "out of memory" in str(error)  # of several kinds
    if isinstance(error, MemoryError) or of_torch:
        return "out of memory: try a smaller --batch-size, or --device cpu"
    if _lacks_memory(error):
        return NO_LIBRARIES
    name, text = type(error).__name__, str(error).strip().partition("\n")[0]
    return f"unexpected {name}: {text[:300]} (--debug shows where)"


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all done, 1 failed, 2 wrong usage, 3 some inputs failed, the rest were done, "
    "130 interrupted.",
)
@click.version_option(camkit.__version__, message="camkit %(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback with an error.")
def cli(debug: bool) -> None:
    """Where did the model look, and can I believe the picture?

    \b
    camkit explain                     the bundled photograph, the default model
    camkit explain cat.jpg --class Bengal --class top:3
    camkit show picture.png            how it was made, and the command that makes it again
    camkit verify camkit-out           whether files and maps still are what they were
    camkit train photos/               a classifier of your own, with a report
    camkit bench --quick               how fast, and whether the maps tell the truth
    camkit model layers imagenet       which layers can carry a map
    camkit explore photos/             the same in the browser, to play with (pip install camkit-explorer)
    camkit plugin list                 which explainers, and further commands, are installed
    """
    warnings.showwarning = partial(_show_warning, set())
    # Without a home it warns that it made a temporary folder, which is as good.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)


def _debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    ctx.find_root().params["debug"] |= wanted


def _debug_too(group: click.Group) -> None:
    """Let every command take --debug, which one remembers when the command has failed."""
    for command in group.commands.values():
        if any(parameter.name == "debug" for parameter in command.params):
            continue
        help = "Show a traceback with an error."
        option = click.Option(["--debug"], is_flag=True, expose_value=False, callback=_debug, help=help)
        command.params.append(option)
        if isinstance(command, click.Group):
            _debug_too(command)
        if isinstance(command, CommandBeside):
            _debug_too(click.Group(commands=[command.beside]))


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the `camkit` command."""
    sys.excepthook = _show_traceback
    cli.main(args=args, prog_name="camkit")


def _show_traceback(*error: Any) -> None:
    """What --debug lets through, which may repeat strangers' texts."""
    say("".join(traceback.format_exception(*error)), err=True, nl=False)


def _show_warning(shown: set[str], message: Any, category: type[Warning], *_: Any, **__: Any) -> None:
    """One line on stderr, once; other libraries' warnings only with PYTHONWARNINGS or -W."""
    text = f"Warning: {message}"
    if (issubclass(category, CamkitWarning) or sys.warnoptions) and text not in shown:
        shown.add(text)
        say(text, err=True)
