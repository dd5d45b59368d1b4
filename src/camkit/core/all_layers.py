"""The layers that `all` means, and all convolutions: those of the kind that `auto` chooses among.

They come from looks at the model like that for the automatic layer, and are kept as long: while the model
has the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import Tensor, nn

from camkit.core import automatic_layer as auto
from camkit.core.scored import Output, Score, Scored

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Layers:
    """Names, each in the order in which the layers finish.

    stages: the last layer of each resolution, or where there is only one, each block; the automatic layer
    stands for those of its own. convolutions: all with a map of several positions that lead to the
    scores.
    """

    stages: tuple[str, ...]
    convolutions: tuple[str, ...]


def find(module: nn.Module, inputs: Sequence[Tensor]) -> Layers:
    """The layers of `module`, which may be `Scored`, for inputs like these.

    In eval mode, with gradients on. Raises `LayerError` if no layer has a map.
    """
    if not isinstance(module, Scored):
        return auto.kept(found, module, [x[:1] for x in inputs], None, None)
    output, score = module.scores.output, module.scores.score
    # A user's function may depend on the number of images, like a loss with its labels.
    rows = len(inputs[0]) if callable(output) or score else 1
    kept = auto.kept(found, module.module, [x[:rows] for x in inputs], output, score)
    named = ([f"module.{name}" for name in names] for names in (kept.stages, kept.convolutions))
    return Layers(*map(tuple, named))


def found(module: nn.Module, inputs: Sequence[Tensor], output: Output, score: Score | None) -> Layers:
    """The same of the model itself; output, score: what turns its output into scores."""
    choice = auto.choose(module, inputs, output, score)
    chosen, inputs = choice.name, auto.as_noise(inputs) if choice.of_noise else inputs
    seen = auto.observed(module, inputs, output, score)
    once = [name for name, value in seen.outputs.items() if seen.runs[name] == 1 and auto.may_carry(value)]
    gradients, _ = auto.gradients_of(seen, [seen.outputs[name] for name in once])
    inside = auto.attentions_in(module)
    grids, meaningful = dict[str, tuple[int, ...]](), set[str]()
    for name, gradient in zip(once, gradients, strict=True):
        if not inside.isdisjoint((name, *auto.above(name))):
            continue
        value = seen.outputs[name]
        reading = auto.reading_of(module, inputs, name, value, [])
        if reading is None or prod(reading.grid) == 1:
            continue
        grids[name] = reading.grid
        if gradient is not None and auto.is_meaningful(seen, name, reading, gradient):
            meaningful.add(name)
    grids.setdefault(chosen, ())
    reached = {n for n, g in zip(once, gradients, strict=True) if g is not None}  # zeros may pass
    convolutions = [n for n in grids if n in reached and isinstance(module.get_submodule(n), CONVOLUTIONS)]
    stages = _stages(module, grids, meaningful, chosen) or _blocks(module, grids, meaningful, chosen)
    return Layers(tuple(stages), tuple(convolutions))


def _stages(
    module: nn.Module, grids: Mapping[str, tuple[int, ...]], meaningful: set[str], chosen: str
) -> list[str]:
    """The last layer of each grid; none if there is only one grid.

    Where the last one says nothing, as before a LayerNorm, what follows it may, as for `auto`.
    """
    last: dict[tuple[int, ...], str] = {}
    order = list(grids)
    for index, name in enumerate(order):
        if _is_within_a_block(module, name, grids):
            continue
        following = order[index + 1 : index + 2]
        for one in (name, *(n for n in following if grids[n] == grids[name])):
            if one in meaningful:
                last[grids[name]] = one
                break
    last[grids[chosen]] = chosen
    return sorted(last.values(), key=order.index) if len(last) > 1 else []


def _is_within_a_block(module: nn.Module, name: str, grids: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a layer is a part of a block, which ends in the same resolution or changes it.

    A chain of layers is no block, nor is a body, in which there are more than two resolutions.
    """
    for around in auto.above(name):
        if around in grids and not isinstance(module.get_submodule(around), nn.Sequential):
            inner = {grid for other, grid in grids.items() if other.startswith(f"{around}.")}
            if grids[around] == grids[name] or len(inner) <= 2:
                return True
    return False


def _blocks(
    module: nn.Module, grids: Mapping[str, tuple[int, ...]], meaningful: set[str], chosen: str
) -> list[str]:
    """The meaningful blocks below the automatic layer, and that one.

    Blocks are the children of one kind in a chain of layers; of several such groups, the largest.
    """
    groups: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name in filter(meaningful.__contains__, grids):
        above = name.rpartition(".")[0]
        if isinstance(module.get_submodule(above), nn.Sequential | nn.ModuleList):
            groups.setdefault((above, type(module.get_submodule(name))), []).append(name)
    order = list(grids).index
    blocks = max(groups.values(), key=len, default=[])
    return (
        [*(name for name in blocks if order(name) < order(chosen)), chosen] if len(blocks) > 1 else [chosen]
    )
