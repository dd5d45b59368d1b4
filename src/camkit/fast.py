"""The fast mode: what is below the target layer, compiled.

The model is split at the layer. A copy of its body goes through `torch.export` to inductor, which folds
BatchNorm into convolutions and lays weights out for the machine; on a CPU most 3x3 convolutions take fewer
multiplications (`winograd`), on a GPU a CUDA graph replays it all. The head stays as it is, and with it the
gradients. What was compiled belongs to one model, layer, shape and dtype; it goes when the model goes, and
when its weights change.
"""

from __future__ import annotations

import copy
import io
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
from torch.utils._pytree import tree_leaves, tree_map_only

from camkit import capture, winograd
from camkit.capture import Captured
from camkit.errors import CamkitWarning
from camkit.layout import layout
from camkit.split import Split, split_or_reason
from camkit.targets import Scored

KEPT = 8  # values that are remembered for one model, such as compiled shapes

# How far compiled scores may be from those of the model, relative to their norm; for an example of noise.
TOLERANCE = {torch.bfloat16: 0.2, torch.float16: 0.05}

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

T = TypeVar("T")


def forward(
    module: nn.Module,
    inputs: Tensor,
    names: Sequence[str],
    extras: Sequence[Tensor] = (),
    *,
    kind: str | None = None,
    frozen: bool = False,
) -> tuple[Any, dict[str, Captured]]:
    """As `capture.forward`, faster where that is possible; a `CamkitWarning` says why it is not."""
    if len(names) > 1:  # in the order of the model
        names = [name for name, _ in module.named_modules(remove_duplicate=False) if name in names]
    lowest, *above = names
    fast = _fast(module, inputs, lowest, above, extras)
    if isinstance(fast, str):
        warnings.warn(CamkitWarning(f"without fast mode: {fast}"), stacklevel=2)
        return capture.forward(module, inputs, names, extras, kind=kind)
    output, *around = fast.body(inputs)
    # It may also be what goes around: the head gets a clone.
    shape = layout(output, inputs.shape, lowest, module=module, kind=kind)
    kept = Captured(output.detach().requires_grad_(), shape)
    with capture.captured(module, above, inputs.shape, kind=kind) as found, torch.enable_grad():
        returned = fast.head(kept.output.clone(), *around)
        scores = module.scores(returned) if isinstance(module, Scored) else returned
    return scores, {lowest: kept, **found}


@dataclass(frozen=True)
class _Fast:
    """The body, compiled for one shape and without a graph, and the head of the model itself."""

    body: Callable[[Tensor], Sequence[Any]]
    head: Callable[..., Any]


def _fast(
    module: nn.Module, inputs: Tensor, layer: str, above: Sequence[str], extras: Sequence[Tensor]
) -> _Fast | str:
    """What serves this call, or one line that says why nothing does."""
    if extras:
        return "it takes a model with one input"
    if torch.is_autocast_enabled(inputs.device.type):
        return "it does not work under autocast; pass dtype="
    others = [module.get_submodule(name) for name in above]
    owner = module
    if isinstance(module, Scored):  # made anew for each call: what is remembered belongs to the model
        owner, layer = module.module, layer.removeprefix("module").lstrip(".")
    # Compiled code keeps the number of threads.
    key = (layer, inputs.shape, inputs.dtype, inputs.device, torch.get_num_threads())
    with _LOCK:
        memory = _memory(owner)
        if any(memory.hooks) and any(map(capture.has_hooks, owner.modules())):
            return "the model has hooks, which compiled code does not call"
        if layer not in memory.splits:
            memory.splits[layer] = split_or_reason(owner, layer)
        parts = memory.splits[layer]
        if isinstance(parts, str):
            return parts
        if others and not set(parts.head.modules()).difference(parts.body.modules()).issuperset(others):
            return "of several layers it needs one below all others"
        return memory.get(key, lambda: _build(owner, parts, inputs, memory.transformed))


def _build(module: nn.Module, parts: Split, inputs: Tensor, kept: dict[str, Tensor]) -> _Fast | str:
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)
    try:
        with warnings.catch_warnings(), _silent(), torch.no_grad():
            warnings.simplefilter("ignore")
            fast = _Fast(_compiled(parts.body, noise, kept), parts.head)
            scores, expected = tree_leaves(fast.head(*fast.body(noise))), tree_leaves(module(noise))
    except Exception as error:  # of tracing, generating, compiling with a compiler that may not be there
        return f"the model cannot be compiled ({_cause(error)})"
    if not all(map(_close, scores, expected)):
        return "the compiled model returns something else"
    return fast


def _compiled(
    body: nn.Module, example: Tensor, kept: dict[str, Tensor]
) -> Callable[[Tensor], Sequence[Any]]:
    import torch._inductor  # takes its time
    from torch._inductor.codecache import PyCodeCache

    memory_format = _LAYOUTS.get(example.ndim, torch.contiguous_format)
    example = example.clone(memory_format=memory_format)
    own = copy.deepcopy(body).to(memory_format=torch.channels_last)
    for part in own.modules():  # of camkit in another thread
        part._forward_hooks.clear()
    graph = winograd.rewritten(torch.export.export(own, (example,)), kept)
    before = len(PyCodeCache.modules)
    code = torch._inductor.compile(graph, [example], options={"freezing": True})
    generated = PyCodeCache.modules[before:]
    run = _Replayed(code, example) if example.is_cuda else code

    @torch.no_grad()
    def call(inputs: Tensor) -> Sequence[Any]:
        # Gradients of a head, pooling above all, are slower in the layout that convolutions like.
        values: Sequence[Any] = run(inputs.clone(memory_format=memory_format))
        return [value.contiguous() if isinstance(value, Tensor) else value for value in values]

    weakref.finalize(call, _forget, generated)
    return call


def _forget(generated: Sequence[Any]) -> None:
    """Inductor keeps the modules that it generates for ever, and in them the weights that were folded."""
    for module in generated:
        for name in [name for name, value in vars(module).items() if isinstance(value, Tensor)]:
            delattr(module, name)


class _Replayed:
    """A function of one tensor as a CUDA graph, which is launched at once."""

    def __init__(self, run: Callable[[Tensor], Any], example: Tensor) -> None:
        self._lock = threading.Lock()  # there is one place for inputs and outputs
        self._inputs, self._graph = example.clone(), torch.cuda.CUDAGraph()
        side = torch.cuda.Stream(example.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(example.device))
        with torch.cuda.stream(side):
            for _ in range(3):  # whatever is tuned or allocated in the first runs does not belong in it
                run(self._inputs)
        torch.cuda.current_stream(example.device).wait_stream(side)
        with torch.cuda.device(example.device), torch.cuda.graph(self._graph):
            self._output = run(self._inputs)

    def __call__(self, inputs: Tensor) -> Any:
        with self._lock, torch.cuda.device(inputs.device):
            self._inputs.copy_(inputs)
            self._graph.replay()
            return tree_map_only(Tensor, Tensor.clone, self._output)


@contextmanager
def _silent() -> Iterator[None]:
    """Keeps back what torch prints to stderr from this thread: one line of ours says it all."""
    with redirect_stderr(_OfOthers(sys.stderr, threading.get_ident())):
        yield


class _OfOthers(io.TextIOBase):
    """A stream for all threads but `owner`."""

    def __init__(self, stream: TextIO, owner: int) -> None:
        self._stream, self._owner = stream, owner

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._owner else self._stream.write(text)


def _close(fast: Tensor, plain: Tensor) -> bool:
    difference = (fast.double() - plain.double()).norm()
    return bool(difference <= TOLERANCE.get(plain.dtype, 1e-3) * plain.double().norm())


def _cause(error: BaseException) -> str:
    """The first line of what an error goes back to."""
    while error.__cause__:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# --- what is remembered of a model ----------------------------------------------------------------


class Weights:
    """The tensors and parts of a module as they are now, to notice changes without reading everything."""

    def __init__(self, module: nn.Module) -> None:
        stores = [s for m in module.modules() for s in (m._parameters, m._buffers, m._modules)]
        self._stores = [store for store in stores if store]
        self._parts = [part for store in self._stores for part in store.values()]  # kept: an id is its own
        self._tensors = [p for p in self._parts if isinstance(p, Tensor) and not p.is_inference()]
        # A write through `.data` leaves the version as it is: one value of each gives it away.
        self._probes: dict[torch.device, list[Tensor]] = {}
        for tensor in self._tensors:
            if isinstance(tensor, nn.Parameter):
                middle = tensor.detach().reshape(-1)[tensor.numel() // 2 :][:1]
                self._probes.setdefault(tensor.device, []).append(middle)
        self._seen, self._values = self._look(), self._probe()

    def unchanged(self) -> bool:
        """Whether they are still the same objects with the same values."""
        return self._look() == self._seen and all(map(torch.equal, self._probe(), self._values))

    def _probe(self) -> list[Tensor]:
        return [torch.cat(values).nan_to_num() for values in self._probes.values()]

    def _look(self) -> list[Any]:
        return [
            [id(part) for store in self._stores for part in store.values()],
            [tensor._version for tensor in self._tensors],
            [tensor.data_ptr() for tensor in self._tensors],
        ]


class _Memory:
    """What is remembered of a module while its weights stay as they are. It must not hold the module."""

    def __init__(self, module: nn.Module) -> None:
        self.weights = Weights(module)
        self.hooks = [h for m in module.modules() for h in (m._forward_hooks, m._forward_pre_hooks)]
        self.splits: dict[str, Split | str] = {}  # by layer; or why there is none
        self.transformed: dict[str, Tensor] = {}  # weights that all compiled shapes share
        self._values: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], T]) -> T:
        if key not in self._values:
            if len(self._values) == KEPT:
                del self._values[next(iter(self._values))]
            self._values[key] = make()
        value: T = self._values[key]
        return value


_MEMORIES: weakref.WeakKeyDictionary[nn.Module, _Memory] = weakref.WeakKeyDictionary()
_LOCK = threading.RLock()


def _memory(module: nn.Module) -> _Memory:
    memory = _MEMORIES.get(module)
    if memory is None or not memory.weights.unchanged():
        memory = _MEMORIES[module] = _Memory(module)
    return memory


def remembered(module: nn.Module, key: Any, make: Callable[[], T]) -> T:
    """`make()`, once for each key, for as long as the module lives and its weights stay as they are."""
    with _LOCK:
        return _memory(module).get(key, make)
