"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from camkit.drawing.style import Style
from camkit.errors import UsageError

PARTLY = 3  # the exit code where some inputs failed and the rest were done

F = TypeVar("F", bound=Callable[..., Any])


class FilePath(click.Path):
    """A path; an empty one, as of a variable that is not set, is refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path."""
        if value == "":
            what = (
                param.get_error_hint(ctx).strip("'") if param is not None and ctx is not None else "a path"
            )
            raise UsageError(f"{what} is empty: give a name")
        return super().convert(value, param, ctx)


PATH = FilePath(path_type=Path)
FOLDER = FilePath(path_type=Path, file_okay=False)
PATTERN = FilePath(path_type=str)
BATCH_SIZE = click.IntRange(1, 65_536)  # more fits into no memory


def repeatable(*names: str, metavar: str, help: str, default: str | None = None) -> Callable[[F], F]:
    """An option that may be given several times."""
    values = () if default is None else (default,)
    return click.option(
        *names, multiple=True, metavar=metavar, default=values, show_default=default or False, help=help
    )


def choice(name: str, values: Sequence[str], help: str) -> Callable[[F], F]:
    """An option with one of some values; the first is the default."""
    return click.option(name, type=click.Choice(values), default=values[0], show_default=True, help=help)


DEVICE = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
SEED = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed."
)  # what every generator takes
TRUST = click.option("--trust-pickle", is_flag=True, help="Let a model source load pickles. They run code.")

_LOOK = (
    click.option("--counterfactual", is_flag=True, help="Draw what speaks against the class."),
    click.option("--relu", is_flag=True, help="Draw only what speaks for it, as the Grad-CAM paper does."),
    click.option("--alpha", default=Style.alpha, show_default=True, help="Opacity of the heat, 0 to 1."),
    click.option("--cmap", default=Style.cmap, show_default=True, help="A matplotlib colour map."),
    choice("--view", ["model", "original"], "Draw on what the model saw, or on the whole photograph."),
)


def look_options(command: F) -> F:
    """Adds the options that say how a map is drawn: those of `pop_style`, and --view."""
    for option in reversed(_LOOK):
        command = option(command)
    return command


def pop_style(values: dict[str, Any]) -> Style:
    """Takes the style out of the values of a command; `UsageError` if they do not go together."""
    if values["counterfactual"] and values["relu"]:
        raise UsageError("--counterfactual and --relu exclude each other: choose one")
    return Style(*(values.pop(name) for name in ("relu", "counterfactual", "alpha", "cmap")))


class CommandBeside(click.Command):
    """A command that gives way to `beside` if that is named first; a file of that name is ./NAME."""

    def __init__(self, *args: Any, beside: click.Command, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beside = beside

    def make_context(
        self, info_name: str | None, args: list[str], *rest: Any, **more: Any
    ) -> click.Context:
        """The context of the one or the other."""
        if args[:1] == [self.beside.name]:
            return self.beside.make_context(f"{info_name} {args[0]}", args[1:], *rest, **more)
        return super().make_context(info_name, args, *rest, **more)
