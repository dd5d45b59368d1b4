"""The host: what must be the same for every explainer, around one call of it."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, overload

import torch
from torch import Tensor, nn

from camkit import automatic, capture, causes, layers, models, plugins
from camkit.api import Explainer, LoadedModel, Sweep
from camkit.automatic import Choice
from camkit.errors import CamkitError, CamkitWarning, LayerError, ModelError, UsageError
from camkit.fast import remembered
from camkit.layout import SPACE, OpenLayout, settle
from camkit.methods import unknown_method
from camkit.state import copied
from camkit.targets import Checked, Chooser, Output, Score, Scored, Targets, every, given

Layer = str | nn.Module
Inputs = Tensor | Sequence[Tensor]


@overload
def maps(
    module: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    *,
    layer: Layer = "auto",
    backend: str = "native",
    method: str = "gradcam",
    output: Output = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    layout: str | None = None,
    frozen: bool = False,
    **options: Any,
) -> Tensor: ...
@overload
def maps(
    module: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    output: Output = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    layout: str | None = None,
    frozen: bool = False,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]: ...
def maps(
    module: nn.Module,
    inputs: Inputs,
    targets: Targets = None,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    output: Output = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    layout: str | None = None,
    frozen: bool = False,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]:
    """Raw attribution maps `[B, h, w]` of a batch.

    module: any classifier from `[B, C, H, W]` to scores `[B, n_classes]`; unchanged afterwards.
    inputs: of signals `[B, C, L]` the maps are `[B, l]`, of volumes `[B, C, D, H, W]` `[B, d, h, w]`. Of
        several inputs, `[B, ...]` each, the maps lie over the first.
    targets: a class index for all inputs, one for each, or `None` for the predicted class. Or a function
        from what the model returns to one score for each row, `[B]`, such as the likeness to an embedding
        or the difference of two classes; some methods give it other numbers of rows than `B`.
    layer: a dotted name, a module of the model, or `auto`. A list of layers or of methods gives a dict
        keyed by `(method, dotted name of the layer)`.
    output: where a model returns a tuple or a dict, the index, key or name of what is explained, or a
        function that takes it out.
    device, dtype: run on a moved or cast copy of the model instead.
    layout: how the output of the layer is to be read, where that cannot be seen: `channels-first`,
        `channels-last`, `tokens` `[B, N, C]` or `tokens-first` `[N, B, C]`.
    frozen: a promise that the model does not change between calls, so that `fast=True` need not look.
    options: those of the backend, such as `fast=True` of `native` (`camkit plugin show BACKEND`).

    Maps are at least float32 and on the device of the inputs. NaN in a map stays NaN.
    Raises `UsageError` (no such method, inputs that are none), `LayerError`, `TargetError`, `OptionError`,
    `PluginError`, `ModelError`, all of them in `camkit.errors`.
    """
    several = _inputs(module, inputs)
    call = Call(output, targets if callable(targets) else None, layout, frozen)
    chooser = given(targets, len(several[0]))
    result = _sweep(module, several, chooser, layer, backend, method, call, device, dtype, options)
    return _shaped({key: m[:, 0] for key, m in result.items()}, layer, method)


def class_maps(
    module: nn.Module,
    inputs: Inputs,
    *,
    layer: Layer | Sequence[Layer] = "auto",
    backend: str = "native",
    method: str | Sequence[str] = "gradcam",
    output: Output = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    layout: str | None = None,
    frozen: bool = False,
    **options: Any,
) -> Tensor | dict[tuple[str, str], Tensor]:
    """Raw maps of every class, `[B, n_classes, h, w]`; arguments as for `maps`."""
    several, call = _inputs(module, inputs), Call(output, None, layout, frozen)
    result = _sweep(module, several, every, layer, backend, method, call, device, dtype, options)
    return _shaped(result, layer, method)


@dataclass(frozen=True)
class Call:
    """What a call says of the model, beside its inputs and targets.

    output, score: see `Scored`. layout, frozen: see `maps`.
    """

    output: Output = None
    score: Score | None = None
    layout: str | None = None
    frozen: bool = False

    @property
    def adapts(self) -> bool:
        """Whether the model alone does not return the scores."""
        return self.output is not None or self.score is not None


@dataclass(frozen=True)
class Remark:
    """Something that a user has to know of some maps: which, as bool `[B, T]`, and a sentence."""

    method: str
    layer: str
    concerned: Tensor
    text: str


@dataclass(frozen=True)
class Answer:
    """Maps `[B, T, h, w]` by method and layer, with the scores of the forward that they explain.

    scores: `[B, n_classes]`; targets: int64 `[B, T]`.
    """

    maps: dict[tuple[str, str], Tensor]
    scores: Tensor
    targets: Tensor
    remarks: tuple[Remark, ...]


def _sweep(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    choose: Chooser,
    layer: Layer | Sequence[Layer],
    backend: str,
    method: str | Sequence[str],
    call: Call,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    options: Mapping[str, Any],
) -> dict[tuple[str, str], Tensor]:
    explainer: Explainer = plugins.make("explainer", backend, options)
    module = _unwrapped(module)
    home = inputs[0].device
    if device is not None or dtype is not None:
        keep = getattr(explainer.options, "fast", False)  # what is compiled belongs to the copy
        own = module
        module, layer, inputs = _converted(module, layer, inputs, device, dtype, keep, call.frozen)
        call = replace(call, frozen=call.frozen or module is not own)  # nobody else has the copy
    first, *extras = inputs
    names = resolve_layers(module, layer, first, *extras, call=call)
    methods = [method] if isinstance(method, str) else list(method)
    if not (methods and names):
        raise UsageError(f"there is nothing to do: no {'layer' if methods else 'method'} is given")
    answer = run(explainer, backend, module, first, names, methods, choose, extras=extras, call=call)
    for remark in answer.remarks:
        rows = remark.concerned.any(1).nonzero().flatten().tolist()
        whose = "" if len(rows) == len(first) else f"image {', '.join(map(str, rows))}: "
        warnings.warn(CamkitWarning(whose + remark.text), stacklevel=3)
    return {key: value.to(home) for key, value in answer.maps.items()}


def resolve_layers(
    module: nn.Module,
    layer: Layer | Sequence[Layer],
    inputs: Tensor,
    *extras: Tensor,
    call: Call = Call(),
) -> list[str]:
    """Dotted names of what `layer` means; `auto` takes a forward of the first row at its first call."""
    specs = layer_specs(layer)
    return layers.resolve(module, specs, lambda: automatic_layer(module, inputs, *extras, call=call).name)


def layer_specs(layer: Layer | Sequence[Layer]) -> list[Layer]:
    """A layer, or several, as a list; `LayerError` for what is neither."""
    if not isinstance(layer, str | nn.Module | Sequence):
        raise LayerError(f"a layer is a name or a module of the model, not {layer!r}")
    return [layer] if isinstance(layer, str | nn.Module) else list(layer)


def automatic_layer(module: nn.Module, inputs: Tensor, *extras: Tensor, call: Call = Call()) -> Choice:
    """The layer that `auto` means, kept for the model; see `automatic.choose`."""
    # A function of the user's may know how many images there are, as a loss with its labels does.
    rows = len(inputs) if callable(call.output) or call.score else 1
    tensors = [capture.usable(tensor.detach())[:rows] for tensor in (inputs, *extras)]
    with capture.as_it_was(module, inputs.device), _told_in_our_words(module, tensors):
        return automatic.choose(module, tensors, call.output, call.score)


def run(
    explainer: Explainer,
    backend: str,
    module: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    methods: Sequence[str],
    choose: Chooser,
    *,
    extras: Sequence[Tensor] = (),
    call: Call = Call(),
) -> Answer:
    """Let `explainer` answer, with everything around it as every explainer may expect it.

    extras: further inputs.
    """
    for method in methods:
        if method not in explainer.methods:
            raise unknown_method(method, backend, explainer.methods)
    kind = str(inputs.dtype).removeprefix("torch.")
    if kind not in explainer.dtypes:
        raise UsageError(f"{backend} works in {', '.join(explainer.dtypes)}, not in {kind}")
    if inputs.ndim - 2 not in explainer.dimensions:
        shapes = " or ".join(f"[B, C, {SPACE[d]}]" for d in explainer.dimensions)
        raise UsageError(f"{backend} explains inputs {shapes}, not {list(inputs.shape)}")
    if extras and not explainer.several_inputs:
        raise UsageError(f"{backend} explains models of one input, not of {1 + len(extras)}")
    _check_module(module)
    # What the caller recorded stays recorded: nothing here is part of a graph of theirs.
    inputs, *others = (capture.usable(tensor.detach()) for tensor in (inputs, *extras))
    model = Scored(module, call.output, call.score) if call.adapts else module
    named = {f"module.{name}".rstrip(".") if call.adapts else name: name for name in names}
    chosen, remarks = Checked(choose, len(inputs)), list[Remark]()

    def remark(method: str, layer: str, images: Tensor, text: str) -> None:
        concerned = images[:, None].expand(-1, _columns(chosen))
        said = f"{method} at layer {named[layer]!r} {text}"
        remarks.append(Remark(method, named[layer], concerned.cpu(), said))

    sweep = Sweep(
        *(model, inputs, tuple(named), tuple(methods), chosen, tuple(others)),
        targets=chosen.given,
        layout=call.layout,
        remark=remark,
        frozen=call.frozen,
    )
    with capture.as_it_was(model, inputs.device), capture.differentiable_rnns(model, inputs.device):
        try:
            found = _asked(explainer, sweep, chosen, module)
        except LayerError as error:
            error.args = (_renamed(str(error), named),)
            raise
    maps = {(method, named[layer]): value.detach() for (method, layer), value in found.items()}
    assert chosen.scores is not None and chosen.chosen is not None, "_asked sees to it"
    agnostic = explainer.class_agnostic
    hint = partial(better_layer, module, inputs=inputs, extras=others, call=call)
    remarks += _zero(maps, agnostic, chosen.scores, chosen.chosen, hint)
    return Answer(maps, chosen.scores, chosen.chosen, tuple(remarks))


def _columns(chosen: Checked) -> int:
    targets = chosen.chosen if chosen.chosen is not None else chosen.given
    return 1 if targets is None else targets.shape[1]


def _asked(
    explainer: Explainer, sweep: Sweep, chosen: Checked, module: nn.Module
) -> dict[tuple[str, str], Tensor]:
    """What the explainer answers, in a second try where the first shows what has to be found out before.

    Afterwards scores and targets are checked, by the explainer or by a forward of the host's own.
    """
    inputs, settled = (sweep.inputs, *sweep.extras), set[str]()
    first: Exception | None = None  # what made it careful
    while True:
        careful = module in _CAREFUL
        try:
            with capture.gradients_everywhere() if careful else nullcontext():
                found = explainer.many(sweep)
            break
        except OpenLayout as error:
            if error.layer in settled:
                raise
            settled.add(error.layer)
            settle(error, *inputs)
        except Exception as error:
            if not isinstance(error, CamkitError) and chosen.scores is None:
                with _told_in_our_words(module, inputs), torch.no_grad():
                    chosen(sweep.module(*inputs))  # a class that is not there may be the cause
            told = causes.explained(error, module, inputs) or error
            if isinstance(told, causes.NoGradient | causes.Checkpointed) and not careful:
                first = told
                _CAREFUL.add(module)  # its forward switches gradients off somewhere
                continue
            _CAREFUL.discard(module)
            told = first or told
            if told is error:
                raise
            raise told from error
    if chosen.scores is None:
        with torch.no_grad():
            chosen(sweep.module(*inputs))
    return found


# Models whose forward has to run with gradients switched on, whatever it says itself.
_CAREFUL: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def _told_in_our_words(module: nn.Module, inputs: Sequence[Tensor]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        told = causes.explained(error, module, inputs)
        if told is None:
            raise
        raise told from error


# --- maps that say nothing ------------------------------------------------------------------------

# Methods that look at positive gradients alone: of a single image there may be none.
RECTIFIED = {"gradcam++", "layercam", "gradcam-elementwise"}
SATURATED = 1e-6  # how near a probability is to 0 or 1 where its gradient is lost


def _zero(
    maps: Mapping[tuple[str, str], Tensor],
    agnostic: Sequence[str],
    scores: Tensor,
    targets: Tensor,
    hint: Callable[[str], str],
) -> Iterator[Remark]:
    """What to say of maps that are zero everywhere, and why they are."""
    saturated: Tensor | None = None
    for (method, layer), found in maps.items():
        if method in agnostic:
            continue
        peaks = found.flatten(2).abs().amax(2)
        if bool(peaks.all()):  # NaN counts as something
            continue
        zero = (peaks == 0).cpu()
        if method in RECTIFIED and not bool(zero.all()):
            continue
        if saturated is None:
            saturated = _saturated(scores, targets).cpu()
        if bool((sure := zero & saturated).any()):
            text = (
                f"{method} is zero at layer {layer!r} because the score is a probability so near to 0 or 1 "
                "that it has no gradient: explain what is below the softmax or sigmoid"
            )
            yield Remark(method, layer, sure, text)
        if bool((other := zero & ~saturated).any()):
            # As behind the last attention of a ViT, from where the class token alone goes on.
            where = hint(layer) if bool(zero.all()) else ""
            text = f"{method} is zero everywhere at layer {layer!r}, as where no gradient arrives{where}"
            yield Remark(method, layer, other, text)


def _saturated(scores: Tensor, targets: Tensor) -> Tensor:
    """Which of the scores explained are probabilities that nothing moves any more, bool `[B, T]`."""
    are = ((scores >= 0) & (scores <= 1)).all(1, keepdim=True)
    add_up = (scores.float().sum(1, keepdim=True) - 1).abs() < 1e-3  # what is rectified may be zero, too
    own = scores.gather(1, targets).float()
    return are & ((own >= 1 - SATURATED) | (add_up & (own <= SATURATED)))


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """`text` with the layers as the user calls them."""
    for name, own in names.items():
        text = text.replace(repr(name), repr(own))
    return text


def better_layer(
    module: nn.Module,
    layer: str,
    inputs: Tensor,
    extras: Sequence[Tensor] = (),
    call: Call = Call(),
) -> str:
    """A half-sentence with the automatic layer, for a layer whose maps say nothing; "" if that is none."""
    try:
        better = automatic_layer(module, inputs, *extras, call=call)
    except CamkitError:
        return ""
    return f"; try layer {better.name!r}" if better.checked and better.name != layer else ""


def _shaped(
    result: dict[tuple[str, str], Tensor], layer: Any, method: Any
) -> Tensor | dict[tuple[str, str], Tensor]:
    if not (isinstance(layer, str | nn.Module) and isinstance(method, str)):
        return result
    if len(result) > 1:
        names = ", ".join(name for _, name in result)
        raise UsageError(f"layer {layer!r} means several layers ({names}): pass a list of them")
    return next(iter(result.values()))


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module behind `torch.compile`, on which hooks fire."""
    module = getattr(module, "_orig_mod", module)
    if not isinstance(module, nn.Module):
        hint = ": pass its .module" if isinstance(module, LoadedModel) else ""
        raise ModelError(f"a model is a torch.nn.Module, not {type(module).__name__}{hint}")
    _check_module(module)
    return module


def _inputs(module: nn.Module, inputs: Any) -> tuple[Tensor, ...]:
    """The inputs as a tuple, or a `UsageError` that says what is wrong with them."""
    several = tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,)
    first = several[0] if several else None
    if not isinstance(first, Tensor) or not first.is_floating_point():
        kind = first.dtype if isinstance(first, Tensor) else type(first).__name__
        raise UsageError(f"inputs must be a floating-point tensor [B, C, H, W], not {kind}")
    planar = first.ndim == 3 and _first_convolution(module) is nn.Conv2d
    if first.ndim - 2 not in SPACE or 0 in first.shape or planar:
        hint = ": add the batch dimension with inputs[None]" if first.ndim == 3 else ""
        raise UsageError(f"inputs must be [B, C, H, W], not {list(first.shape)}{hint}")
    for extra in several[1:]:
        if not isinstance(extra, Tensor) or extra.shape[:1] != first.shape[:1]:
            got = list(extra.shape) if isinstance(extra, Tensor) else type(extra).__name__
            raise UsageError(
                f"further inputs must be tensors [{len(first)}, ...] like the first, not {got}"
            )
    return several


def _first_convolution(module: nn.Module) -> type[nn.Module] | None:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    parts = module.modules() if isinstance(module, nn.Module) else ()
    return next((kind for part in parts for kind in kinds if isinstance(part, kind)), None)


def _check_module(module: nn.Module) -> None:
    """Refuses what has no hooks or no values, before something else fails for it."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(module).__name__} is scripted, traced or frozen, so no hook sees into it: "
            "pass the original module"
        )
    if (first := next(module.parameters(), None)) is not None and first.is_meta:
        raise ModelError("the model is on the meta device: it has shapes but no weights; load them first")


def _converted(
    module: nn.Module,
    layer: Layer | Sequence[Layer],
    inputs: tuple[Tensor, ...],
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    keep: bool,
    frozen: bool,
) -> tuple[nn.Module, Layer | Sequence[Layer], tuple[Tensor, ...]]:
    """A moved and cast copy, kept for the next call or not; convert once yourself when calling often.

    Where nothing changes it is the module itself. Layers that are modules become names, as the copy has
    others.
    """
    where = inputs[0].device if device is None else models.pick_device(device)
    kind = inputs[0].dtype if dtype is None else models.pick_dtype(dtype)
    moved = tuple(x.to(where, kind if x.is_floating_point() else None) for x in inputs)
    tensors = [*module.parameters(), *module.buffers()]
    if all(t.device == where and (t.dtype == kind or not t.is_floating_point()) for t in tensors):
        return module, layer, moved

    def make() -> nn.Module:
        return copied(module).to(where, kind)

    specs = layer_specs(layer)
    names = [layers.name_of(module, spec) if isinstance(spec, nn.Module) else spec for spec in specs]
    key = ("copy", where, kind)
    return remembered(module, key, make, frozen=frozen) if keep else make(), names, moved
