"""The fast mode: what is below the target layer, compiled.

The model is split at the layer. A copy of its body goes through `torch.export` to inductor, which folds
BatchNorm into convolutions and lays weights out for the machine; on a CPU most 3x3 convolutions take fewer
multiplications (`winograd`), on a GPU a CUDA graph replays it all (`graphs`). The head stays as it is, and
with it the gradients; but where one class of each input is asked for, head, gradient and map are one
function (`tail`), compiled too, and part of the graph. What was compiled belongs to one model, layer, shape
and dtype; it goes when the model goes, and when anything in it changes: each call reads all of it
(`model_changes`), unless the caller promises that nothing does (`frozen`).
"""

from __future__ import annotations

import io
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from typing import Any, TextIO

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camkit.contracts.explainer import Sweep
from camkit.core import devices, hooks, model_cache
from camkit.core.hooks import Captured
from camkit.core.layout import layout
from camkit.core.model_changes import Contents
from camkit.core.scored import Scored, own_name
from camkit.errors import CamkitError, reason, warn
from camkit.native import cache, graphs
from camkit.native.body import Body, Code, without_hooks
from camkit.native.split import Split, split_or_reason
from camkit.native.tail import GradientFormula, Tail, of_predicted, tail, traced

# How far compiled scores may be from the model's, relative to their norm; on an example of noise.
TOLERANCE = {torch.bfloat16: 0.2, torch.float16: 0.05}


# Head, gradient and map are compiled if they have at most so many steps, and on a CPU for so few inputs:
# for more, compiling takes long, or what Python takes does not show.
ROWS_ON_CPU = 2
STEPS = 400


def ready(sweep: Sweep) -> Fast | None:
    """The compiled model for a call; `None` and a `CamkitWarning` that says why there is none.

    If `sweep.frozen`, the model is not read anew.
    """
    lowest, *above = _in_order(sweep)
    found = _fast(sweep.module, sweep.inputs, lowest, above, sweep.extras, sweep.frozen)
    if isinstance(found, str):
        warn(f"without fast mode: {found}")
        return None
    return found


def forward(fast: Fast, sweep: Sweep) -> tuple[Any, dict[str, Captured]]:
    """As `hooks.forward`, faster."""
    module, size, kind = sweep.module, sweep.inputs.shape, sweep.layout
    lowest, *above = _in_order(sweep)
    output, *around = fast.body(sweep.inputs)
    # First, as what is not a feature map may not even be a tensor.
    reading = layout(output, size, lowest, module=module, kind=kind)
    # The output may also go around the layer, so the head gets a clone.
    kept = Captured(output.detach().requires_grad_(), reading)
    with hooks.captured(module, above, size, kind=kind) as found, torch.enable_grad():
        returned = fast.head(kept.output.clone(), *around)
        scores = module.scores(returned) if isinstance(module, Scored) else returned
    return scores, {lowest: kept, **found}


def at_once(
    fast: Fast, sweep: Sweep, formulas: Mapping[str, GradientFormula]
) -> tuple[Tensor, list[tuple[Tensor, Tensor]], int] | None:
    """Scores, maps `[B, 1, h, w]` of each formula with which are noise, and how many channels there are.

    For one layer and one class of each input: `sweep.targets`, or the predicted one. Where a class does not
    exist it is another's map. `None` if that has to be computed step by step.
    """
    inputs, targets = sweep.inputs, sweep.targets
    if isinstance(sweep.module, Scored) or inputs.dtype == torch.float16:  # whose gradients are scaled
        return None
    key = (tuple(formulas), sweep.layout, targets is None)
    with model_cache.LOCK:
        if key not in fast.whole:
            fast.whole[key] = _in_one(fast, sweep, formulas)
        whole = fast.whole[key]
    if whole is None:
        return None
    targets = (
        fast.no_targets if targets is None else devices.put(targets.long(), inputs.device).contiguous()
    )
    scores, *found = whole.run(inputs, targets)
    return scores, list(zip(found[::2], found[1::2], strict=True)), whole.channels


def _in_order(sweep: Sweep) -> list[str]:
    """The layers in the order of the model."""
    if len(sweep.layers) == 1:
        return list(sweep.layers)
    return [n for n, _ in sweep.module.named_modules(remove_duplicate=False) if n in sweep.layers]


@dataclass(frozen=True)
class Fast:
    """The body, compiled for one shape and without a graph, and the head of the model itself.

    whole: by what is asked for, what was compiled of all of it; `None` where that cannot be.
    """

    body: Body
    head: Callable[..., Any]
    no_targets: Tensor
    whole: dict[Any, _Whole | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Whole:
    """From inputs and targets `[B, 1]` to scores, and maps and whether they are noise in turn."""

    run: Callable[[Tensor, Tensor], Sequence[Tensor]]
    channels: int


def _fast(
    module: nn.Module,
    inputs: Tensor,
    layer: str,
    above: Sequence[str],
    extras: Sequence[Tensor],
    frozen: bool,
) -> Fast | str:
    """The compiled model for this call, or one line that says why there is none."""
    if extras:
        return "it takes a model with one input"
    if torch.is_autocast_enabled(inputs.device.type):
        return "it does not work under autocast; pass dtype="
    others = [module.get_submodule(name) for name in above]
    owner = module
    if isinstance(module, Scored):  # new in each call: what is remembered belongs to the model
        owner, layer = module.module, own_name(module, layer)
    with model_cache.LOCK:
        # Not before: a thread that compiles turns some of the switches meanwhile.
        key = (layer, inputs.shape, inputs.dtype, inputs.device, _settings())
        refusal = _REFUSALS.get(owner)
        if refusal and not refusal.contents.changes(owner):
            return refusal.reason
        try:
            kept = model_cache.of(owner, frozen=frozen)
        except Exception as error:  # unusual tensors
            return f"changes of the model cannot be seen ({_cause(error)}); promise none with frozen="
        anywhere = torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
        if anywhere or kept.hooked(owner):
            return "the model has hooks, which compiled code does not call"
        parts = kept.part(("split", layer), lambda: split_or_reason(owner, layer))
        if isinstance(parts, str):
            return parts
        if others and not set(parts.head.modules()).difference(parts.body.modules()).issuperset(others):
            return "of several layers it needs one below all others"
        if key not in kept and (reason := _unsafe() or _unsteady(owner, inputs)):
            return reason
        weights: dict[str, Tensor] = kept.part("transformed", dict)  # shared by all compiled shapes
        pool = kept.part(("pool", inputs.device), lambda: _pool(inputs.device))
        return kept.get(key, lambda: _build(owner, parts, inputs, weights, pool))


def _pool(device: torch.device) -> graphs.Pool | None:
    """What the graphs of a model share, on devices with graphs."""
    return graphs.Pool(device) if devices.has_graphs(device) else None


def _settings() -> tuple[Any, ...]:
    """The process-wide switches that are baked into compiled code."""
    return (
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        *devices.kernel_switches(),
    )


def _unsafe() -> str | None:
    """Why no folder for compiled code is safe from others."""
    try:
        cache.folder()
    except CamkitError as error:
        return str(error)
    return None


def _unsteady(module: nn.Module, inputs: Tensor) -> str | None:
    """Why the model cannot be relied on to stay the same: its own forward changes it.

    If only the first forward changes it, for example to fill a cache, the next call is served.
    """
    try:
        with warnings.catch_warnings(), _silent(), torch.no_grad():
            warnings.simplefilter("ignore")
            probe = without_hooks(module)  # the model keeps what it has
            before = Contents(probe)
            probe(_noise(inputs, 1))
            first = before.changes(probe)
            before = Contents(probe)
            probe(_noise(inputs, 2))
            always = before.changes(probe)
    except Exception:  # then compiling fails, too; if it does not, its result is checked
        return None
    if always:
        reason = f"its forward changes the model ({always[0]})"
        _REFUSALS[module] = _Refusal(reason, Contents(module, frozenset([*first, *always]), copied=False))
        return reason
    return f"its first forward changes the model ({first[0]})" if first else None


def _build(
    module: nn.Module, parts: Split, inputs: Tensor, kept: dict[str, Tensor], pool: graphs.Pool | None
) -> Fast | str:
    try:
        with _compiling():
            body = Body(parts.body, _noise(inputs, 0), kept, pool)
            fast = Fast(
                body, parts.head, torch.zeros(len(inputs), 1, dtype=torch.int64, device=inputs.device)
            )
            if not isinstance(fast.body(_noise(inputs, 0))[0], Tensor):
                return "the layer returns something other than a tensor"
            # Not with the inputs that it was compiled with: they could have become part of it.
            same = all(_same(fast, module, parts, _noise(inputs, seed)) for seed in (1, 2))
    except Exception as error:  # in tracing, generating or compiling; there may be no compiler
        if devices.is_out_of_memory(error):  # the batch is too large, which says nothing about the model
            raise
        return f"the model cannot be compiled ({_cause(error)})"
    return fast if same else "the compiled model returns something else"


def _in_one(fast: Fast, sweep: Sweep, formulas: Mapping[str, GradientFormula]) -> _Whole | None:
    """All of it compiled, after a comparison with its steps one by one."""
    body, inputs, targets = fast.body, sweep.inputs, fast.no_targets
    if body.pool is None and len(inputs) > ROWS_ON_CPU:
        return None
    values = body(_noise(inputs, 0))
    reading = layout(values[0], inputs.shape, sweep.layers[0], module=sweep.module, kind=sweep.layout)
    steps = tail(fast.head, reading, formulas)
    try:
        with _compiling():
            graph = traced(steps, targets, values)
            code: Tail = graph
            if len(graph.graph.nodes) <= STEPS:
                code = Code(graph, (targets, *values))
            elif body.pool is None:
                return None
            if sweep.targets is None:
                steps, code = of_predicted(fast.head, steps), of_predicted(fast.head, code)
            run = body.followed(code, _noise(inputs, 0), targets)
            for seed in (1, 2):
                noise, classes = _noise(inputs, seed), seed + torch.arange(len(inputs)).to(targets)[:, None]
                if not _agree(run(noise, classes), steps(classes, *body(noise))):
                    return None
    except Exception as error:  # as of the body; then the steps are taken one by one
        if devices.is_out_of_memory(error):
            raise
        return None
    return _Whole(run, reading.to_map(values[0]).shape[1])


@contextmanager
def _compiling() -> Iterator[None]:
    """What compiles something is silent inside, and keeps to camkit's folder."""
    with warnings.catch_warnings(), cache.compiling(), _silent(), torch.no_grad():
        warnings.simplefilter("ignore")
        yield


def _noise(inputs: Tensor, seed: int) -> Tensor:
    """Noise in the shape of `inputs`: normal for even seeds, uniform between 0 and 1 for odd ones."""
    draw = torch.rand if seed % 2 else torch.randn
    return draw(inputs.shape, generator=torch.Generator().manual_seed(seed)).to(inputs)


def _same(fast: Fast, module: nn.Module, parts: Split, inputs: Tensor) -> bool:
    """Whether compiled code and model agree in the body's outputs and in the scores."""
    values, wanted = fast.body(inputs), parts.body(inputs.clone())
    if not _agree(values, wanted):
        return False
    return _agree(fast.head(*values), module(inputs.clone()))  # a model may write into its inputs


def _agree(found: Any, wanted: Any) -> bool:
    one, other = tree_leaves(found), tree_leaves(wanted)
    return len(one) == len(other) and all(map(_close, one, other))


@contextmanager
def _silent() -> Iterator[None]:
    """Hides what torch prints to stderr from this thread: camkit's one line is enough."""
    with redirect_stderr(_OfOthers(sys.stderr, threading.get_ident())):
        yield


class _OfOthers(io.TextIOBase):
    """A stream that writes for all threads but `owner`."""

    def __init__(self, stream: TextIO, owner: int) -> None:
        self._stream, self._owner = stream, owner

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._owner else self._stream.write(text)


def _close(fast: Any, plain: Any) -> bool:
    if not (isinstance(fast, Tensor) and isinstance(plain, Tensor)):  # a number that goes around the layer
        return type(fast) is type(plain) and bool(fast == plain)
    if fast.shape != plain.shape or fast.dtype != plain.dtype:
        return False
    one, other = devices.double(fast), devices.double(plain)
    return bool((one - other).norm() <= TOLERANCE.get(plain.dtype, 1e-3) * other.norm())


def _cause(error: BaseException) -> str:
    """The first line of an error's original cause."""
    while error.__cause__:
        error = error.__cause__
    return reason(error)


@dataclass(frozen=True)
class _Refusal:
    """Why a model that changes itself is not compiled, for as long as the rest of it does not change."""

    reason: str
    contents: Contents


_REFUSALS: weakref.WeakKeyDictionary[nn.Module, _Refusal] = weakref.WeakKeyDictionary()
