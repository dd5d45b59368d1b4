"""Layouts: which dimension of a layer's output holds the channels, which the positions of a map.

An output may be channels-first `[B, C, h, w]` (or `[B, C, h w]`), channels-last `[B, h, w, C]` (Swin),
tokens `[B, N, C]` (ViT) or tokens-first `[N, B, C]`. For signals `[B, C, L]` a feature map is `[B, C, l]`,
for volumes `[B, C, D, H, W]` it is `[B, C, d, h, w]`.

What a shape means is decided by what the user says, by what the layer is (a convolution, a LayerNorm), by
which reading is possible at all, and finally by following the output to its neighbours (`axes`).
Proportions alone prove nothing: pooling may be anisotropic. If the question stays open, an error names the
way out.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.nn.modules import batchnorm, conv, instancenorm, pooling

from camkit.core import axes, token_order
from camkit.core.scored import own_name
from camkit.errors import LayerError, UsageError, closest, counted

Kind = Literal["channels-first", "channels-last", "tokens", "tokens-first"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# The positions of the inputs by their number of dimensions: signals, images, volumes.
SPACE = {1: "L", 2: "H, W", 3: "D, H, W"}

# How many positions padding may add to a map beyond the inputs. A larger dimension holds channels.
PADDING = 16

MAX_PREFIX = 8  # class and register tokens before the grid


@dataclass(frozen=True)
class Layout:
    """How a layer's output holds a map.

    grid: `(h, w)`. prefix: how many tokens come before it. flat: channels-first with the positions in one
    dimension, `[B, C, h w]`.
    """

    kind: Kind
    grid: tuple[int, ...]
    prefix: int = 0
    flat: bool = False

    @property
    def batch(self) -> int:
        """The dimension of the images."""
        return 1 if self.kind == "tokens-first" else 0

    def to_map(self, tensor: Tensor) -> Tensor:
        """`[..., B, C, h, w]` from an output, or a gradient, in this layout; a view."""
        if self.kind == "channels-first":
            return tensor.reshape(*tensor.shape[:-1], *self.grid) if self.flat else tensor
        if self.kind == "tokens-first":
            tensor = tensor.transpose(-3, -2)
        if self.kind in ("tokens", "tokens-first"):
            tensor = tensor[..., self.prefix :, :]
            tensor = tensor.reshape(*tensor.shape[:-2], *self.grid, tensor.shape[-1])
        return tensor.movedim(-1, -1 - len(self.grid))


class OpenLayout(LayerError):
    """The shape and the kind of a layer do not tell how to read its output; `settle` may find out."""

    def __init__(
        self, layer: str, module: nn.Module | None, shape: Sequence[int], readings: Iterable[Layout]
    ) -> None:
        self.layer, self.module = layer, module
        name = own_name(module, layer) if module is not None else layer
        possible = " or ".join(f"{layout.kind} with the grid {list(layout.grid)}" for layout in readings)
        super().__init__(
            f"the output {list(shape)} of layer {name!r} may be {possible}: say which with "
            f"layout= or --layout ({', '.join(KINDS)})"
        )


class OpenOrder(OpenLayout):
    """Nobody has looked yet whether the tokens beside those of the image are in front; `settle` does."""

    def __init__(self, layer: str, module: nn.Module | None, reading: Layout) -> None:
        super().__init__(layer, module, (), [])
        self.reading = reading


def layout(
    output: Any,
    inputs: Sequence[int],
    layer: str,
    *,
    module: nn.Module | None = None,
    kind: str | None = None,
) -> Layout:
    """The layout of the `output` of `layer`, for inputs of the shape `[B, C, H, W]`.

    module: the model; the type of its layer decides where a shape may be read in two ways. kind: the layout
    that the user named. Raises `LayerError` if the output is no map or its rows are not the inputs, and
    `OpenLayout` if it may be read in two ways.
    """
    name = own_name(module, layer) if module is not None else layer
    if not isinstance(output, Tensor):
        found = type(output).__name__
        raise LayerError(f"layer {name!r} returns a {found}, not a feature map; choose one inside it")
    shape = tuple(output.shape)
    if output.is_quantized:
        raise LayerError(
            f"layer {name!r} is quantised, so it has no gradient: explain the model before quantising it"
        )
    if kind not in (None, *KINDS):
        raise UsageError(f"a layout is {', '.join(KINDS)}, not {kind!r}{closest(str(kind), KINDS)}")
    if output.is_floating_point() and len(shape) > 2:
        _check_rows(shape, inputs[0], name, kind)
    part = module.get_submodule(layer) if module is not None else None
    readings = list(_readings(shape, inputs, module, kind)) if output.is_floating_point() else []
    if kind is not None:
        readings = [reading for reading in readings if reading.kind == kind]
    elif len(readings) > 1:
        readings = _likely(readings, shape, inputs, part)
    if not readings:
        start = f"the output {list(shape)} of layer {name!r} is not a feature map"
        if kind is not None:
            raise LayerError(f"{start} of the layout {kind}; leave the layout out, or name another")
        raise LayerError(
            f"{start} [B, C, {SPACE[len(inputs) - 2].lower()}]; choose an earlier layer "
            "(`camkit model layers` shows the shapes)"
        )
    if len(readings) > 1:
        raise OpenLayout(layer, module, shape, readings)
    if math.prod(readings[0].grid) == 1:
        raise LayerError(
            f"the output {list(shape)} of layer {name!r} has a single position, so there is no map; "
            "choose a layer before the pooling"
        )
    if kind is None and (doubt := _doubt(readings[0], inputs, module)):
        raise LayerError(
            f"the output {list(shape)} of layer {name!r} {doubt}: choose another layer, or say "
            f"layout={readings[0].kind!r} if it is a map nevertheless"
        )
    _check_order(readings[0], layer, module)
    return readings[0]


def _check_order(reading: Layout, layer: str, module: nn.Module | None) -> None:
    """`LayerError` where tokens lie behind those of the image, `OpenOrder` where that is not known yet."""
    if module is None or not reading.prefix or len(reading.grid) != 2:
        return
    if (behind := token_order.behind(module)) is None:
        raise OpenOrder(layer, module, reading)
    if behind:
        raise LayerError(
            f"the model has {counted(behind, 'token')} behind those of the image, and camkit reads models "
            "that have class tokens and registers in front of them"
        )


def token_layout(tokens: int, inputs: Sequence[int], module: nn.Module | None) -> Layout:
    """How so many tokens, `[B, N, C]`, lie over inputs of the shape `[B, C, H, W]`.

    Raises `LayerError` where they are no grid.
    """
    found = _token_grid(tokens, tuple(inputs[2:]), module)
    reading = Layout("tokens", *found) if found else None
    size = " x ".join(map(str, inputs[2:]))
    if reading is None or math.prod(reading.grid) == 1:
        raise LayerError(f"{tokens} tokens are no grid over inputs of {size} positions")
    if doubt := _doubt(reading, inputs, module):
        raise LayerError(f"the model {doubt}")
    _check_order(reading, "", module)
    return reading


layout_of = layout  # its public name: in the package `layout` is this module


def _doubt(reading: Layout, inputs: Sequence[int], module: nn.Module | None) -> str:
    """Why an output in a known layout may still be no map of the image; "" if nothing suggests that."""
    if len(reading.grid) != 2:
        return ""
    if reading.kind == "channels-last" and not _is_scaled(reading.grid, inputs[2:]):
        return f"has {' x '.join(map(str, reading.grid))} positions, like windows and the tokens in each"
    if reading.kind in ("tokens", "tokens-first"):
        if _may_be_prefix_alone(reading, module):
            return "has so few tokens that they may be only class and register tokens"
        if _is_unrolled(math.prod(reading.grid), module):
            return "has tokens that the model puts into another order than that of the image"
    return ""


def _is_scaled(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Whether one stride turns `size` into `grid`, give or take a position for padding or cropping."""
    smallest = max(s / (g + 1) for g, s in zip(grid, size, strict=True))
    largest = min(s / (g - 1) if g > 1 else math.inf for g, s in zip(grid, size, strict=True))
    return smallest <= largest


def _may_be_prefix_alone(reading: Layout, module: nn.Module | None) -> bool:
    """Whether there are only as many tokens as come before a grid, as behind PiT's last norm."""
    few = reading.prefix + math.prod(reading.grid) <= MAX_PREFIX
    known = reading.grid in _known_grids(module) or (reading.prefix and min(reading.grid) > 1)
    return few and not known


def _is_unrolled(tokens: int, module: nn.Module | None) -> bool:
    """Whether tokens are in Hiera's order, which suits its poolings and ends behind the last of them."""
    for part in module.modules() if module is not None else ():
        schedule, size = getattr(part, "schedule", None), getattr(part, "size", None)
        if type(part).__name__ == "Unroll" and schedule and size:
            return bool(tokens > math.prod(size) // math.prod(math.prod(stride) for stride in schedule))
    return False


def _check_rows(shape: Sequence[int], rows: int, name: str, kind: str | None) -> None:
    """Row i of an output must be that of image i: windows, tiles, frames and views are not images."""
    if shape[1 if kind == "tokens-first" else 0] == rows:
        return
    images = f"{rows} image{'s' * (rows > 1)}"
    if kind == "tokens-first":
        raise LayerError(
            f"the output {list(shape)} of layer {name!r} is not [tokens, images, channels] of {images}, so "
            "the layout tokens-first does not fit it: leave the layout out"
        )
    hint = ""
    if len(shape) == 3 and shape[1] == rows:
        hint = "; if it is [tokens, images, channels], say layout='tokens-first'"
    raise LayerError(
        f"layer {name!r} returns {shape[0]} row{'s' * (shape[0] > 1)} {list(shape)} for {images}, so its "
        "rows are not the images (but windows, tiles, frames, views or tokens); choose a layer with a row "
        f"for each image{hint}"
    )


# --- readings -------------------------------------------------------------------------------------


def _readings(
    shape: Sequence[int], inputs: Sequence[int], module: nn.Module | None, kind: str | None
) -> Iterator[Layout]:
    """Every layout in which an output of `shape` holds a map of the inputs."""
    size = tuple(inputs[2:])
    if len(shape) == len(inputs):
        yield Layout("channels-first", tuple(shape[2:]))
        if len(size) > 1 or kind == "channels-last":  # of signals these are tokens
            yield Layout("channels-last", tuple(shape[1:-1]))
    if len(shape) != 3:
        return
    orders: tuple[tuple[Kind, int, int], ...] = (("tokens", 0, 1), ("tokens-first", 1, 0))
    for order, rows, tokens in orders:
        grid = _token_grid(shape[tokens], size, module) if shape[rows] == inputs[0] else None
        if grid is not None:
            yield Layout(order, *grid)
    if len(size) > 1 and (flat := _grid(shape[2], size)):
        yield Layout("channels-first", flat, flat=True)


def _token_grid(
    tokens: int, size: tuple[int, ...], module: nn.Module | None
) -> tuple[tuple[int, ...], int] | None:
    """The grid of tokens, and how many come before it: as many as the model says, else the fewest that fit.

    The squares of 7 and 8 are further apart than any model has tokens before its grid.
    """
    known = _known(module, "num_prefix_tokens") if module is not None else None
    for prefix in (*([known] if isinstance(known, int) and known < tokens else []), *range(MAX_PREFIX + 1)):
        if len(size) == 1:
            return (tokens - prefix,), prefix
        if grid := _grid(tokens - prefix, size, module):
            return grid, prefix
    return None


def _known(module: nn.Module, name: str) -> Any:
    """An attribute of a timm model, which may be in a wrapper."""
    return next((getattr(part, name) for part in module.modules() if hasattr(part, name)), None)


def _grid(count: int, size: tuple[int, ...], module: nn.Module | None = None) -> tuple[int, ...] | None:
    """`(h, w)` for `count` positions in a row, in the proportions of the inputs to within a position.

    A patch grid that the model declares takes precedence, as with overlapping patches of spectrograms.
    """
    if len(size) != 2 or count < 1:
        return None
    if known := next((known for known in _known_grids(module) if math.prod(known) == count), None):
        return known
    height = max(1, round(math.sqrt(count * size[0] / size[1])))
    width, rest = divmod(count, height)
    near = abs(height - width * size[0] / size[1]) < 1 and abs(width - height * size[1] / size[0]) < 1
    return (height, width) if not rest and near else None


def _known_grids(module: nn.Module | None) -> Iterator[tuple[int, ...]]:
    """The patch grids that parts of a timm model declare."""
    for part in module.modules() if module is not None else ():
        known = getattr(part, "grid_size", None)
        if isinstance(known, tuple) and len(known) == 2:
            yield (int(known[0]), int(known[1]))


def _likely(
    readings: list[Layout], shape: Sequence[int], inputs: Sequence[int], layer: nn.Module | None
) -> list[Layout]:
    """The readings that fit the layer and the sizes."""
    dimensions = len(shape)
    if layer is not None and (found := _SETTLED.get(_last(layer), {}).get(dimensions)) is not None:
        if found == axes.TOKENS_FIRST:
            return [reading for reading in readings if reading.kind == "tokens-first"]
        readings = [reading for reading in readings if reading.kind != "tokens-first"]
        return [reading for reading in readings if _axis(reading, dimensions) == found]
    if layer is not None and (kind := _axis_of(_last(layer), dimensions)) is not None:
        return [reading for reading in readings if _axis(reading, dimensions) == kind]
    single = [reading for reading in readings if math.prod(reading.grid) == 1]
    return single or [reading for reading in readings if _possible(reading.grid, inputs[2:])] or readings


def _axis(reading: Layout, dimensions: int) -> int:
    """Where the channels are."""
    return 1 if reading.kind == "channels-first" else dimensions - 1


def _possible(grid: Sequence[int], size: Sequence[int]) -> bool:
    return all(g <= s + PADDING for g, s in zip(grid, size, strict=True))


# --- what a layer is ------------------------------------------------------------------------------

# Modules that take and return channels at dimension 1, by the class whose forward they run.
_FIRST: tuple[type[nn.Module], ...] = (
    *(conv._ConvNd, batchnorm._BatchNorm, instancenorm._InstanceNorm, nn.GroupNorm),
    *(pooling._MaxPoolNd, pooling._AvgPoolNd, pooling._AdaptiveAvgPoolNd, pooling._AdaptiveMaxPoolNd),
    *(nn.Upsample, nn.PixelShuffle, nn.PixelUnshuffle),
)
_LAST: tuple[type[nn.Module], ...] = (nn.LayerNorm, nn.RMSNorm)

# What following outputs has shown, by layer: the channels' dimension by the number of dimensions.
_SETTLED: weakref.WeakKeyDictionary[nn.Module, dict[int, int]] = weakref.WeakKeyDictionary()


def _axis_of(layer: nn.Module, dimensions: int) -> int | None:
    """Where the type of a layer puts the channels of its output, or `None`."""
    own = type(layer).forward.__module__  # a custom forward, as timm's LayerNorm2d has, may do anything
    if not own.startswith("torch.nn."):
        return None
    if isinstance(layer, _LAST):
        return dimensions - 1 if len(layer.normalized_shape) == 1 else None  # type: ignore[arg-type]
    return 1 if isinstance(layer, _FIRST) else None


def settle(error: OpenLayout, inputs: Tensor, *extras: Tensor) -> None:
    """Find out how to read the output of a layer, by following it through a forward of one row.

    Afterwards `layout` knows. Raises `error` if the neighbours give no evidence, or conflict.
    """
    if error.module is None:
        raise error
    if isinstance(error, OpenOrder):
        _look_at_order(error.module, error.reading, inputs, *extras)
        return
    found = axes.follow(error.module, error.layer, *(tensor[:1] for tensor in (inputs, *extras)))
    if found.channels is None:
        raise error
    _keep(error.module.get_submodule(error.layer), found)


def _look_at_order(module: nn.Module, reading: Layout, *inputs: Tensor) -> None:
    height, width = reading.grid
    token_order.find(module, inputs, reading.prefix + height * width, (height, width), reading.prefix)


def settle_many(layers: Iterable[str], module: nn.Module, inputs: Tensor, *extras: Tensor) -> None:
    """The same for many layers at once, as far as the operations before them tell."""
    found = axes.made_of(module, layers, *(tensor[:1] for tensor in (inputs, *extras)))
    for name, of_layer in found.items():
        if of_layer.channels is not None:
            _keep(module.get_submodule(name), of_layer)


def _keep(layer: nn.Module, found: axes.Found) -> None:
    assert found.channels is not None, "the caller checks"
    _SETTLED.setdefault(_last(layer), {})[found.dimensions] = found.channels


def _last(layer: nn.Module) -> nn.Module:
    """The layer that the output of a chain comes from."""
    while type(layer) is nn.Sequential and len(layer):
        layer = layer[-1]
    return layer
