"""Which layers a call means, including the automatic one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from camkit.contracts.model import LoadedModel
from camkit.core import hooks, layers
from camkit.core.all_layers import found
from camkit.core.automatic_layer import Choice, choose, kept
from camkit.core.call_types import PLAIN, Call, Layer
from camkit.core.torch_errors import in_our_words
from camkit.errors import CamkitError, LayerError


def resolve_layers(
    module: nn.Module,
    layer: Layer | Sequence[Layer],
    inputs: Tensor,
    *extras: Tensor,
    call: Call = PLAIN,
    needed: bool = True,
) -> list[str]:
    """Dotted names of what `layer` means; `auto` takes a forward of the first row in its first call.

    needed: whether a method looks at a layer. If none does, a model need not have one that suits: then
        `auto` is "".
    """
    wanted = as_list(layer)

    def auto() -> str:
        return automatic_layer(module, inputs, *extras, call=call).name

    def every() -> Sequence[str]:
        return all_layers(module, inputs, *extras, call=call)

    try:
        return layers.resolve(module, wanted, auto, every)
    except LayerError:
        if needed or wanted not in (["auto"], ["all"]):
            raise
        return [""]


def map_layers(model: LoadedModel) -> tuple[list[layers.LayerRecord], str | None]:
    """The layers of a model that can carry a map, in the order in which they finish, and what `auto` is.

    From one forward of noise. What `auto` is may be `None`, if no layer suits.
    """
    like = next(p for p in model.module.parameters() if p.is_floating_point())
    inputs = layers.example_inputs(model.preprocess.size, like, model.preprocess.channels)
    with hooks.as_it_was(model.module, inputs.device):
        records = [record for record in layers.trace(model.module, inputs) if record.name and record.grid]
    try:
        call = Call(output=model.output)
        auto = resolve_layers(model.module, model.default_layer, inputs, call=call)[0]
    except LayerError:
        auto = None
    return records, auto


def as_list(layer: Layer | Sequence[Layer]) -> list[Layer]:
    """A layer, or several, as a list; `LayerError` for what is neither."""
    if not isinstance(layer, str | nn.Module | Sequence):
        raise LayerError(f"a layer is a name or a module of the model, not {layer!r}")
    return [layer] if isinstance(layer, str | nn.Module) else list(layer)


def automatic_layer(module: nn.Module, inputs: Tensor, *extras: Tensor, call: Call = PLAIN) -> Choice:
    """The layer that `auto` means, kept for the model; see `automatic_layer.choose`."""
    with _looking(module, inputs, *extras, call=call) as tensors:
        return choose(module, tensors, call.output, call.score)


def all_layers(module: nn.Module, inputs: Tensor, *extras: Tensor, call: Call = PLAIN) -> tuple[str, ...]:
    """The layers that `all` means, kept for the model; see `all_layers.Layers.stages`."""
    with _looking(module, inputs, *extras, call=call) as tensors:
        return kept(found, module, tensors, call.output, call.score).stages


@contextmanager
def _looking(
    module: nn.Module, inputs: Tensor, *extras: Tensor, call: Call = PLAIN
) -> Iterator[list[Tensor]]:
    """As many rows of the inputs as are looked at, in the mode for that."""
    # A user's function may depend on the number of images, like a loss with its labels.
    rows = len(inputs) if callable(call.output) or call.score else 1
    tensors = [hooks.normal_tensor(tensor.detach())[:rows] for tensor in (inputs, *extras)]
    with hooks.as_it_was(module, inputs.device), in_our_words(module, tensors):
        yield tensors


def better_layer(
    module: nn.Module, layer: str, inputs: Tensor, extras: Sequence[Tensor] = (), call: Call = PLAIN
) -> str:
    """A half-sentence naming the automatic layer, for a layer with useless maps; "" if it is no better."""
    try:
        better = automatic_layer(module, inputs, *extras, call=call)
    except CamkitError:
        return ""
    return f"; try layer {better.name!r}" if better.checked and better.name != layer else ""
