"""One call of an explainer, with what must be the same for every explainer around it."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn

from camkit.contracts.explainer import Explainer, Sweep, unknown_method
from camkit.core import hooks, torch_errors
from camkit.core.call_types import PLAIN, Answer, Call, Remark
from camkit.core.layer_lookup import better_layer
from camkit.core.layout import SPACE, OpenLayout, settle
from camkit.core.targets import Checked, Chooser, Scored
from camkit.core.torch_errors import in_our_words
from camkit.core.zero_map_remarks import zero_maps
from camkit.errors import CamkitError, LayerError, ModelError, UsageError


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
    call: Call = PLAIN,
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
    check_module(module)
    # What the caller recorded stays recorded: nothing here is part of a graph of theirs.
    inputs, *others = (hooks.usable(tensor.detach()) for tensor in (inputs, *extras))
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
    with hooks.as_it_was(model, inputs.device), hooks.differentiable_rnns(model, inputs.device):
        try:
            found = _asked(explainer, sweep, chosen, module)
        except LayerError as error:
            error.args = (_renamed(str(error), named),)
            raise
    maps = {(method, named[layer]): value.detach() for (method, layer), value in found.items()}
    assert chosen.scores is not None and chosen.chosen is not None, "_asked sees to it"
    agnostic = explainer.class_agnostic
    hint = partial(better_layer, module, inputs=inputs, extras=others, call=call)
    remarks += zero_maps(maps, agnostic, chosen.scores, chosen.chosen, hint)
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
            with hooks.gradients_everywhere() if careful else nullcontext():
                found = explainer.many(sweep)
            break
        except OpenLayout as error:
            if error.layer in settled:
                raise
            settled.add(error.layer)
            settle(error, *inputs)
        except Exception as error:
            if not isinstance(error, CamkitError) and chosen.scores is None:
                with in_our_words(module, inputs), torch.no_grad():
                    chosen(sweep.module(*inputs))  # a class that is not there may be the cause
            told = torch_errors.explained(error, module, inputs) or error
            if isinstance(told, torch_errors.NoGradient | torch_errors.Checkpointed) and not careful:
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


def _renamed(text: str, names: Mapping[str, str]) -> str:
    """`text` with the layers as the user calls them."""
    for name, own in names.items():
        text = text.replace(repr(name), repr(own))
    return text


def check_module(module: nn.Module) -> None:
    """Refuses what has no hooks or no values, before something else fails for it."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(module).__name__} is scripted, traced or frozen, so no hook sees into it: "
            "pass the original module"
        )
    if (first := next(module.parameters(), None)) is not None and first.is_meta:
        raise ModelError("the model is on the meta device: it has shapes but no weights; load them first")
