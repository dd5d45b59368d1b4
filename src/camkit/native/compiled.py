"""The fast mode: what is below the target layer, compiled.

The model is split at the layer. A copy of its body goes through `torch.export` to inductor, which folds
BatchNorm into convolutions and lays weights out for the machine; on a CPU most 3x3 convolutions take fewer
multiplications (`winograd`), on a GPU a CUDA graph replays it all (`graphs`). The head stays as it is, and
with it the gradients. What was compiled belongs to one model, layer, shape and dtype; it goes when the
model goes, and when anything in it changes: each call reads all of it (`model_changes`), unless the caller
promises that nothing does (`frozen`).
"""

from __future__ import annotations

import io
import math
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, TextIO, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from camkit.core import devices, hooks, model_cache
from camkit.core.hooks import Captured
from camkit.core.layout import layout
from camkit.core.model_changes import Contents, copied
from camkit.core.scored import Scored, own_name
from camkit.errors import CamkitError, reason, warn
from camkit.native import cache, graphs, winograd
from camkit.native.split import Split, split_or_reason

# How far compiled scores may be from the model's, relative to their norm; on an example of noise.
TOLERANCE = {torch.bfloat16: 0.2, torch.float16: 0.05}

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


def forward(
    module: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    extras: Sequence[Tensor] = (),
    *,
    kind: str | None = None,
    frozen: bool = False,
) -> tuple[Any, dict[str, Captured]]:
    """As `hooks.forward`, faster where that is possible; a `CamkitWarning` says why it is not.

    kind: see there. frozen: the caller promises that the model does not change between calls, so it is not
    read anew.
    """
    if len(names) > 1:  # in the order of the model
        names = [name for name, _ in module.named_modules(remove_duplicate=False) if name in names]
    lowest, *above = names
    fast = _fast(module, inputs, lowest, above, extras, frozen)
    if isinstance(fast, str):
        warn(f"without fast mode: {fast}")
        return hooks.forward(module, inputs, names, extras, kind=kind)
    output, *around = fast.body(inputs)
    # First, as what is not a feature map may not even be a tensor.
    reading = layout(output, inputs.shape, lowest, module=module, kind=kind)
    # The output may also go around the layer, so the head gets a clone.
    kept = Captured(output.detach().requires_grad_(), reading)
    with hooks.captured(module, above, inputs.shape, kind=kind) as found, torch.enable_grad():
        returned = fast.head(kept.output.clone(), *around)
        scores = module.scores(returned) if isinstance(module, Scored) else returned
    return scores, {lowest: kept, **found}


@dataclass(frozen=True)
class _Fast:
    """The body, compiled for one shape and without a graph, and the head of the model itself."""

    body: Callable[[Tensor], Sequence[Any]]
    head: Callable[..., Any]


def _fast(
    module: nn.Module,
    inputs: Tensor,
    layer: str,
    above: Sequence[str],
    extras: Sequence[Tensor],
    frozen: bool,
) -> _Fast | str:
    """The compiled model for this call, or one line that says why there is none."""
    if extras:
        return "it takes a model with one input"
    if torch.is_autocast_enabled(inputs.device.type):
        return "it does not work under autocast; pass dtype="
    others = [module.get_submodule(name) for name in above]
    owner = module
    if isinstance(module, Scored):  # new in each call: what is remembered belongs to the model
        owner, layer = module.module, own_name(module, layer)
    key = (layer, inputs.shape, inputs.dtype, inputs.device, _settings())
    with model_cache.LOCK:
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
            probe = _copy(module)  # the model keeps what it has
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
) -> _Fast | str:
    try:
        with warnings.catch_warnings(), cache.compiling(), _silent(), torch.no_grad():
            warnings.simplefilter("ignore")
            fast = _Fast(_compiled(parts.body, _noise(inputs, 0), kept, pool), parts.head)
            if not isinstance(fast.body(_noise(inputs, 0))[0], Tensor):
                return "the layer returns something other than a tensor"
            # Not with the inputs that it was compiled with: they could have become part of it.
            same = all(_same(fast, module, parts, _noise(inputs, seed)) for seed in (1, 2))
    except Exception as error:  # in tracing, generating or compiling; there may be no compiler
        if devices.is_out_of_memory(error):  # the batch is too large, which says nothing about the model
            raise
        return f"the model cannot be compiled ({_cause(error)})"
    return fast if same else "the compiled model returns something else"


def _noise(inputs: Tensor, seed: int) -> Tensor:
    """Noise in the shape of `inputs`: normal for even seeds, uniform between 0 and 1 for odd ones."""
    draw = torch.rand if seed % 2 else torch.randn
    return draw(inputs.shape, generator=torch.Generator().manual_seed(seed)).to(inputs)


def _same(fast: _Fast, module: nn.Module, parts: Split, inputs: Tensor) -> bool:
    """Whether compiled code and model agree in the body's outputs and in the scores."""
    values, wanted = fast.body(inputs), parts.body(inputs.clone())
    if not _agree(values, wanted):
        return False
    return _agree(fast.head(*values), module(inputs.clone()))  # a model may write into its inputs


def _agree(found: Any, wanted: Any) -> bool:
    one, other = tree_leaves(found), tree_leaves(wanted)
    return len(one) == len(other) and all(map(_close, one, other))


def _compiled(
    body: nn.Module, example: Tensor, kept: dict[str, Tensor], pool: graphs.Pool | None
) -> Callable[[Tensor], Sequence[Any]]:
    import torch._inductor  # takes its time
    from torch._inductor.codecache import PyCodeCache

    memory_format = _LAYOUTS.get(example.ndim, torch.contiguous_format)
    example = example.clone(memory_format=memory_format)
    own = _copy(body).to(memory_format=torch.channels_last)
    graph = winograd.rewritten(torch.export.export(own, (example,)), kept)
    before, is_cpu = len(PyCodeCache.modules), example.device.type == "cpu"
    code = torch._inductor.compile(graph, [example], options={"freezing": True})
    generated = PyCodeCache.modules[before:]
    run = graphs.Graph(code, (example,), pool) if pool else code

    @torch.no_grad()
    def call(inputs: Tensor) -> Sequence[Any]:
        # The ReLU that oneDNN fuses with a convolution turns NaN into zero, and the map would look fine.
        if is_cpu and not math.isfinite(float(inputs.sum())):
            return body(inputs.clone())  # type: ignore[no-any-return]
        # Gradients of a head, pooling above all, are slower in the layout that suits convolutions.
        values: Sequence[Any] = run(inputs.clone(memory_format=memory_format))
        return [value.contiguous() if isinstance(value, Tensor) else value for value in values]

    weakref.finalize(call, _forget, generated)
    return call


def _copy(module: M) -> M:
    """A deep copy without hooks; the only ones are camkit's own, from another thread."""
    own = copied(module)
    for part in own.modules():
        part._forward_hooks.clear()
    return own


def _forget(generated: Sequence[Any]) -> None:
    """Free the folded weights: inductor keeps the modules that it generates for ever."""
    for module in generated:
        for name in [name for name, value in vars(module).items() if isinstance(value, Tensor)]:
            delattr(module, name)


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
