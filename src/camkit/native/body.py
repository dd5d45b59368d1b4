"""Code that inductor makes, and the body of a model as such code."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn

from camkit.core.model_changes import copied
from camkit.native import graphs, winograd

_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)


class Code:
    """What inductor makes of a graph; it frees the weights that it holds when it goes."""

    def __init__(self, graph: fx.GraphModule, examples: Sequence[Tensor], **options: Any) -> None:
        import torch._inductor  # takes its time
        from torch._inductor.codecache import PyCodeCache

        before = len(PyCodeCache.modules)
        self._run = torch._inductor.compile(graph, list(examples), options=options)
        weakref.finalize(self, _forget, PyCodeCache.modules[before:])

    @torch.no_grad()
    def __call__(self, *inputs: Tensor) -> Any:
        return self._run(*inputs)


class Body:
    """The body compiled for the shape of `example`; pool: where it is a graph, that of the graph."""

    def __init__(
        self, body: nn.Module, example: Tensor, kept: dict[str, Tensor], pool: graphs.Pool | None
    ) -> None:
        self._plain, self.pool = body, pool
        self._format = _LAYOUTS.get(example.ndim, torch.contiguous_format)
        example = self.laid_out(example)
        own = without_hooks(body).to(memory_format=torch.channels_last)
        graph = winograd.rewritten(torch.export.export(own, (example,)), kept)
        self._code = Code(graph, [example], freezing=True)
        self._run = graphs.Graph(self.outputs, (example,), pool) if pool else self.outputs

    def __call__(self, inputs: Tensor) -> Sequence[Any]:
        # The ReLU that oneDNN fuses with a convolution turns NaN into zero, and the map would look fine.
        if inputs.device.type == "cpu" and not math.isfinite(float(inputs.sum())):
            with torch.no_grad():
                return _contiguous(self._plain(inputs.clone()))
        values: Sequence[Any] = self._run(inputs if self.pool else self.laid_out(inputs))
        return values

    def followed(self, by: Callable[..., T], inputs: Tensor, targets: Tensor) -> Callable[..., T]:
        """From inputs and targets to what `by` makes of targets and outputs; with a pool as one graph.

        inputs, targets: examples.
        """
        if self.pool is None:
            return lambda inputs, targets: by(targets, *self(inputs))
        examples = self.laid_out(inputs), targets
        return graphs.Graph(lambda inputs, targets: by(targets, *self.outputs(inputs)), examples, self.pool)

    def laid_out(self, inputs: Tensor) -> Tensor:
        """A copy of inputs in the layout that suits convolutions."""
        return inputs.clone(memory_format=self._format)

    def outputs(self, inputs: Tensor) -> Sequence[Any]:
        """Of inputs that are `laid_out`, without a graph."""
        return _contiguous(self._code(inputs))


def _contiguous(values: Sequence[Any]) -> list[Any]:
    """Gradients of a head, pooling above all, are slower in the layout that suits convolutions."""
    return [value.contiguous() if isinstance(value, Tensor) else value for value in values]


def without_hooks(module: M) -> M:
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
