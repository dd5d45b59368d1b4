"""Values made from a model and kept for as long as it lives and does not change."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from camkit.core import hooks
from camkit.core.model_changes import Contents, Look

KEPT = 8  # values remembered for one model, such as compiled shapes

T = TypeVar("T")


class Memory:
    """What is remembered of a module while it does not change. It must not keep the module alive."""

    def __init__(self, module: nn.Module, frozen: bool) -> None:
        # Before any value is made from the model, so the next call sees changes made meanwhile.
        self._look, self._contents = Look(module), None if frozen else Contents(module)
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        self._hooks = [[getattr(m, kind) for m in module.modules()] for kind in kinds]
        self._parts: dict[Any, Any] = {}
        self._values: dict[Any, Any] = {}

    def serves(self, module: nn.Module, frozen: bool) -> bool:
        """Whether `module` is unchanged; if it is promised to be frozen, without reading it."""
        if not self._look.unchanged():
            return False
        # What was remembered on a promise cannot be checked for callers who make none.
        return frozen or (self._contents is not None and not self._contents.changes(module))

    def hooked(self, module: nn.Module) -> bool:
        """Whether somebody else's hooks listen to a part of the module, forwards or backwards."""
        *forwards, backwards, before = self._hooks
        if any(backwards) or any(before):
            return True
        return any(map(any, forwards)) and any(map(hooks.has_hooks, module.modules()))

    def __contains__(self, key: Any) -> bool:
        return key in self._values

    def part(self, key: Any, make: Callable[[], T]) -> T:
        """`make()`, once for each key, while the memory lasts: a part from which values are made."""
        if key not in self._parts:
            self._parts[key] = make()
        part: T = self._parts[key]
        return part

    def get(self, key: Any, make: Callable[[], T]) -> T:
        """`make()`, once for each key; the latest `KEPT` are remembered."""
        if key not in self._values:
            if len(self._values) == KEPT:
                del self._values[next(iter(self._values))]
            self._values[key] = make()
        value: T = self._values[key]
        return value


LOCK = threading.RLock()  # held while a memory is used
_MEMORIES: weakref.WeakKeyDictionary[nn.Module, Memory] = weakref.WeakKeyDictionary()


def of(module: nn.Module, *, frozen: bool = False) -> Memory:
    """The memory of a module, which is empty if the module has changed since it was filled.

    frozen: the caller promises that it does not change, so it is not read.
    """
    memory = _MEMORIES.get(module)
    if memory is None or not memory.serves(module, frozen):
        _MEMORIES.pop(module, None)  # at once: two copies of the weights would be one too many
        memory = _MEMORIES[module] = Memory(module, frozen)
    return memory


def remembered(module: nn.Module, key: Any, make: Callable[[], T], *, frozen: bool = False) -> T:
    """`make()`, once for each key, for as long as the module lives and does not change.

    frozen: the caller promises that it does not, so it is not read anew in each call.
    """
    with LOCK:
        try:
            memory = of(module, frozen=frozen)
        except Exception:  # unusual tensors: whether the module changes cannot be known
            return make()
        return memory.get(key, make)
