"""One call of an explainer, with the surroundings that are the same for every explainer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from camkit.contracts.explainer import Explainer, Sweep, unknown_method
from camkit.core import devices, hooks, torch_errors
from camkit.core.call_types import PLAIN, Answer, Call, Remark
from camkit.core.layer_lookup import better_layer
from camkit.core.layout import SPACE, OpenLayout, settle
from camkit.core.scored import Scored, inner_name
from camkit.core.targets import Fixed, Selector, checked_targets, known_targets, predicted, refuse_targets
from camkit.core.torch_errors import in_our_words
from camkit.core.zero_map_remarks import are_zero, zero_maps
from camkit.errors import CamkitError, ModelError, UsageError


def run(
    explainer: Explainer,
    backend: str,
    module: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    methods: Sequence[str],
    selector: Selector,
    *,
    extras: Sequence[Tensor] = (),
    call: Call = PLAIN,
) -> Answer:
    """Let `explainer` answer, in the surroundings that every explainer may expect.

    extras: further inputs.
    """
    for method in methods:
        if method not in explainer.methods:
            raise unknown_method(method, backend, explainer.methods)
    dtype = str(inputs.dtype).removeprefix("torch.")
    if dtype not in explainer.dtypes:
        raise UsageError(f"{backend} works in {', '.join(explainer.dtypes)}, not in {dtype}")
    if inputs.ndim - 2 not in explainer.dimensions:
        shapes = " or ".join(f"[B, C, {SPACE[d]}]" for d in explainer.dimensions)
        raise UsageError(f"{backend} explains inputs {shapes}, not {list(inputs.shape)}")
    if extras and not explainer.several_inputs:
        raise UsageError(f"{backend} explains models of one input, not of {1 + len(extras)}")
    check_module(module)
    # The caller's graph stays as it is: nothing here becomes part of it.
    inputs, *others = (hooks.normal_tensor(tensor.detach()) for tensor in (inputs, *extras))
    model = Scored(module, call.output, call.score) if call.adapts else module
    named = {inner_name(name) if call.adapts else name: name for name in names}
    sweep = Sweep(
        *(model, inputs, tuple(named), tuple(methods)),
        choose=partial(checked_targets, selector, len(inputs)),
        seen=partial(refuse_targets, selector, len(inputs)),
        extras=tuple(others),
        targets=known_targets(selector, len(inputs)),
        layout=call.layout,
        frozen=call.frozen,
        predicted=selector is predicted,
    )
    device = inputs.device
    with (
        hooks.as_it_was(model, device),
        hooks.differentiable_rnns(model, device),
        devices.multiplied(device, call.precision),
    ):
        precision = devices.float32_precision(device)
        found = _explained(explainer, sweep, module)
    maps = {(method, named[layer]): value.detach() for (method, layer), value in found.maps.items()}
    hint = partial(better_layer, module, inputs=inputs, extras=others, call=call)
    remarks = _remarks(found, selector, named, maps, explainer, hint)
    return Answer(maps, found.scores, found.targets, tuple(remarks), precision)


def _remarks(
    found: _Explained,
    selector: Selector,
    named: Mapping[str, str],
    maps: Mapping[tuple[str, str], Tensor],
    explainer: Explainer,
    hint: Callable[[str], str],
) -> list[Remark]:
    """The remarks on the maps; `TargetError` for a missing class, if that was not checked before.

    The host waits for the device once, for all questions together; the answer is nearly always no.
    """
    zeros = {key: are_zero(value) for key, value in maps.items() if key[0] not in explainer.class_agnostic}
    missing = selector.missing(found.scores) if isinstance(selector, Fixed) else None
    questions = [
        *(() if missing is None else (missing,)),
        *(images.any() for _, _, images, _ in found.remarks),
        *(zero.any() for zero in zeros.values()),
    ]
    answers = iter(_answered(questions))
    if missing is not None and next(answers) and isinstance(selector, Fixed):
        selector.check(found.scores)
    count = found.targets.shape[1]

    def called(method: str, layer: str) -> str:
        return method if method in explainer.layerless else f"{method} at layer {layer!r}"

    remarks = [
        Remark(m, named[at], images[:, None].expand(-1, count).cpu(), f"{called(m, named[at])} {text}")
        for (m, at, images, text), applies in zip(found.remarks, answers, strict=False)
        if applies
    ]
    with_zeros = {key: zero for (key, zero), is_any in zip(zeros.items(), answers, strict=True) if is_any}
    return remarks + list(zero_maps(with_zeros, found.scores, found.targets, explainer.layerless, hint))


def _answered(questions: Sequence[Tensor]) -> list[bool]:
    """Questions, bool `[]` and mostly on one device, answered on the host."""
    places = list(dict.fromkeys(question.device for question in questions))
    found = {
        place: iter(torch.stack([q for q in questions if q.device == place]).tolist()) for place in places
    }
    return [next(found[question.device]) for question in questions]


def _explained(explainer: Explainer, sweep: Sweep, module: nn.Module) -> _Explained:
    """One call of the explainer; another one if it shows what must be found out first."""
    inputs, settled = (sweep.inputs, *sweep.extras), set[tuple[type, str]]()
    first: Exception | None = None  # what made it careful
    while True:
        careful = module in _CAREFUL
        try:
            with hooks.gradients_everywhere() if careful else nullcontext():
                return _called(explainer, sweep)
        except OpenLayout as error:
            if (type(error), error.layer) in settled:
                raise
            settled.add((type(error), error.layer))
            settle(error, *inputs)
        except Exception as error:
            if not isinstance(error, CamkitError) and not devices.is_out_of_memory(error):
                with in_our_words(module, inputs), torch.no_grad():
                    sweep.seen(sweep.module(*inputs))  # a missing class may be the cause
            cause = torch_errors.explained(error, module, inputs) or error
            if isinstance(cause, torch_errors.NoGradient | torch_errors.Checkpointed) and not careful:
                first = cause
                _CAREFUL.add(module)  # its forward switches gradients off somewhere
                continue
            _CAREFUL.discard(module)
            cause = first or cause
            if cause is error:
                raise
            raise cause from error


@dataclass(frozen=True)
class _Explained:
    """Maps with the scores `[B, n]` of the forward that they explain, and the targets `[B, T]`.

    remarks: method, layer, the images concerned, and what to say about their maps.
    """

    maps: dict[tuple[str, str], Tensor]
    scores: Tensor
    targets: Tensor
    remarks: list[tuple[str, str, Tensor, str]]


def _called(explainer: Explainer, sweep: Sweep) -> _Explained:
    """`explainer.many`, with what it reports to the host; a further forward if it reported no scores."""
    latest: tuple[Tensor, Tensor] | None = None
    remarks: list[tuple[str, str, Tensor, str]] = []

    def choose(scores: Tensor) -> Tensor:
        nonlocal latest
        targets = sweep.choose(scores)
        latest = scores.detach(), targets
        return targets

    def seen(scores: Tensor) -> None:
        choose(scores)
        sweep.seen(scores)

    maps = explainer.many(
        replace(sweep, choose=choose, seen=seen, remark=lambda *remark: remarks.append(remark))
    )
    if latest is None:
        with torch.no_grad():
            choose(sweep.module(sweep.inputs, *sweep.extras))
    assert latest is not None, "set by `choose`"
    return _Explained(maps, *latest, remarks)


# Models whose forward must run with gradients on, even where it switches them off.
_CAREFUL: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def check_module(module: nn.Module) -> None:
    """Refuse a model without hooks or values, before something else fails because of it."""
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"{type(module).__name__} is scripted, traced or frozen, so no hook sees into it: "
            "pass the original module"
        )
    if (first := next(module.parameters(), None)) is not None and first.is_meta:
        raise ModelError("the model is on the meta device: it has shapes but no weights; load them first")
