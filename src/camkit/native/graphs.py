"""Recorded work of a device, which is launched again as a whole: CUDA graphs.

A graph reads and writes the same memory in every replay. So inputs are copied into it and results out of
it, and graphs that share memory take turns: by a lock on the host, and by an event on the device, where
another thread may have a stream of its own.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from camkit.errors import CamkitError


class Pool:
    """Memory that all graphs of a model on one device share; one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.torch: Any = torch.get_device_module(device)
        self.handle = self.torch.graph_pool_handle()
        self.lock = threading.Lock()
        self.done = self.torch.Event()
        self.stream = self.torch.Stream(device)  # on which graphs are captured


class Graph:
    """A function of tensors as a graph, for the shapes of `examples`. It must not make the host wait.

    Raises the device's error if it cannot record the function, and `CamkitError` if nothing ran there.
    """

    def __init__(self, run: Callable[..., Any], examples: tuple[Tensor, ...], pool: Pool) -> None:
        self._pool, self._inputs = pool, tuple(example.clone() for example in examples)
        module, stream = pool.torch, pool.stream
        self._graph = module.CUDAGraph()
        with pool.lock, module.device(pool.device):
            stream.wait_stream(module.current_stream(pool.device))
            with module.stream(stream):
                for _ in range(3):  # tuning and allocations of the first runs do not belong in the graph
                    run(*self._inputs)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                # `thread_local`: other threads may allocate meanwhile.
                with module.graph(
                    self._graph, pool=pool.handle, stream=stream, capture_error_mode="thread_local"
                ):
                    self._output = run(*self._inputs)
            module.current_stream(pool.device).wait_stream(stream)
        if any("graph is empty" in str(warning.message).lower() for warning in caught):
            raise CamkitError("nothing was recorded, as where it runs on another device")

    def __call__(self, *inputs: Tensor) -> Any:
        """What the function returns, in memory of its own."""
        pool = self._pool
        with pool.lock, pool.torch.device(pool.device):
            stream = pool.torch.current_stream(pool.device)
            stream.wait_event(pool.done)  # recorded on the stream of the last replay
            for own, new in zip(self._inputs, inputs, strict=True):
                own.copy_(new)
            self._graph.replay()
            output = tree_map_only(Tensor, Tensor.clone, self._output)
            pool.done.record(stream)
        return output
