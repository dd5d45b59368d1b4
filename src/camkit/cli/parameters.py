"""Arguments and options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from camkit.core.device_names import PRECISIONS, WAYS
from camkit.drawing.style import USUAL, Style
from camkit.errors import UsageError
from camkit.images.addresses import is_address

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


class PlacePath(FilePath):
    """A path as a `Path`, or an address of an object store as text."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path or the address."""
        return value if is_address(value) else super().convert(value, param, ctx)


PLACE = PlacePath(path_type=Path, file_okay=False)
SOURCE = PlacePath(path_type=Path)
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


DEVICE = click.option("--device", default="auto", show_default=True, help=f"{WAYS}.")
SEED = click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Random seed."
)  # what every generator takes
LAYER = click.option("--layer", default="auto", show_default=True, metavar="NAME", help="The target layer.")
DTYPE = choice("--dtype", ["float32", "bfloat16", "float16"], "Type of weights and activations.")
PRECISION = choice(
    "--precision", PRECISIONS, "How float32 is multiplied on CUDA devices; tf32 is quick and coarse."
)
TRUST = click.option("--trust-pickle", is_flag=True, help="Let a model source load pickles. They run code.")


def option_of(owner: str, example: str) -> Callable[[F], F]:
    """`-o KEY=VALUE`; owner: whose options they are."""
    text = f"An option of {owner}, such as {example}; repeatable."
    return repeatable("-o", "--option", "options", metavar="KEY=VALUE", help=text)


def split_names(_: click.Context, __: click.Parameter, text: str) -> tuple[str, ...]:
    """`latency,sanity` as names."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


LOOKS: tuple[str, ...] = tuple(USUAL)
_LOOK = (
    choice(
        "--look",
        LOOKS,
        "Colours where there is evidence, that of fast.ai's lesson 6, lines, or all else in the dark.",
    ),
    click.option("--counterfactual", is_flag=True, help="Draw what speaks against the class."),
    click.option("--relu", is_flag=True, help="Draw only what speaks for it, as the Grad-CAM paper does."),
    click.option(
        "--alpha", type=float, show_default="as the look has it", help="Opacity of the evidence, 0 to 1."
    ),
    click.option("--cmap", metavar="NAME", show_default="the look's own", help="A matplotlib colour map."),
    click.option(
        "--view",
        type=click.Choice(["original", "model"]),
        show_default="original; model with --look lesson",
        help="Draw on the whole photograph, or on what the model saw.",
    ),
    click.option(
        "--scale",
        metavar="image|run|VALUE",
        default="image",
        show_default=True,
        help="What has the strongest colour: the largest value of a map, of all maps, or this one.",
    ),
    click.option(
        "--image-size", type=int, metavar="N", help="Longest side of the photograph in the picture."
    ),
    click.option("--cells", is_flag=True, help="The cells of the map as they are, not smoothed."),
    click.option("--no-caption", is_flag=True, help="Only the picture, without what it shows below."),
    choice("--image-format", ["png", "jpeg", "webp"], "What pictures are written as."),
)


def look_options(command: F) -> F:
    """Adds the options that say how a map is drawn: those of `pop_style`, and --image-format."""
    for option in reversed(_LOOK):
        command = option(command)
    return command


def pop_style(values: dict[str, Any]) -> Style:
    """Takes the style out of the values of a command; `UsageError` if they do not go together."""
    if values["counterfactual"] and values["relu"]:
        raise UsageError("--counterfactual and --relu exclude each other: choose one")
    names = ("relu", "counterfactual", "alpha", "cmap", "look", "view", "scale", "cells")
    given = {name: values.pop(name) for name in names}
    given["size"] = values.pop("image_size")
    if given["scale"] not in ("image", "run"):
        try:
            given["scale"] = float(given["scale"])
        except ValueError:
            raise UsageError(f"--scale is image, run or a number, not {given['scale']!r}") from None
    return Style(**given, caption=False if values.pop("no_caption") else None)  # type: ignore[arg-type]


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
