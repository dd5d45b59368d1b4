"""CUDA graphs for the fake device: what ran in a capture runs again in a replay, into the same memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recording(TorchDispatchMode):
    """Every operation with what it was given and what it returned."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) and leaf.device.type == "fake" for leaf in tree_leaves(result)):
            self.steps.append((func, args, kwargs or {}, result))
        return result


class Graph:
    """Stands for `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.steps: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def replay(self) -> None:
        """Everything once more, with the values that its inputs hold now."""
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, before in self.steps:
                again = func(*args, **kwargs)
                for there, new in zip(tree_leaves(before), tree_leaves(again), strict=True):
                    # Views and operations in place have written where they should.
                    if isinstance(there, Tensor) and there.data_ptr() != new.data_ptr():
                        there.detach().copy_(new)


class Stream:
    """Stands for `torch.cuda.Stream`: there is only one order of things."""

    def __init__(self, device: Any = None) -> None:
        self.device = device

    def wait_stream(self, other: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...


class Event:
    """Stands for `torch.cuda.Event`."""

    def record(self, stream: Any = None) -> None: ...


def add_to(module: Any, native: Any) -> None:
    """Give a device module what graphs are made with. During a capture the host must not wait."""

    @contextmanager
    def graph(
        made: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        native.refuse_waits(True)
        try:
            with Recording() as recorded:
                yield
        finally:
            native.refuse_waits(False)
        made.steps = recorded.steps
        if not made.steps:
            warnings.warn("The CUDA Graph is empty. This usually means [...]", stacklevel=2)

    module.CUDAGraph, module.Stream, module.Event, module.graph = Graph, Stream, Event, graph
    module.graph_pool_handle = lambda: (0, 0)
    module.current_stream = lambda device=None: Stream(device)
    module.stream = lambda stream: nullcontext()
    module.device = lambda device: torch.accelerator.device_index(device.index)
