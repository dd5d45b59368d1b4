"""Inputs stay as they are, whatever a module does with them: `x.sub_(mean).div_(std)` writes into its own.

A method that runs the model again would show it other inputs, and a caller would find his changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from camkit.core.own_hook import Hook
from camkit.errors import ModelError

# Whether a module writes into its inputs, as far as its first forward has shown.
_WRITES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


@contextmanager
def own_inputs(module: nn.Module) -> Iterator[None]:
    """Inside, `module` gets copies of its inputs if it writes into them, and until that is known.

    Raises `ModelError` in a forward in which it does so though it did not in the first.
    """
    guard = _Guard()
    with (
        module.register_forward_pre_hook(guard),
        module.register_forward_hook(Hook(lambda _: guard.check(module))),
    ):
        yield


class _Guard(Hook):
    """Hands copies on, and remembers the versions of what it hands on."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self._given: list[tuple[Tensor, int]] = []

    def __call__(self, module: nn.Module, args: Any, output: Any = None) -> Any:
        if not self.is_own():
            return None
        if _WRITES.get(module, True):
            args = tuple(one.clone() if isinstance(one, Tensor) else one for one in args)
        tensors = [one for one in args if isinstance(one, Tensor) and not one.is_inference()]
        self._given = [(one, one._version) for one in tensors]
        return args

    def check(self, module: nn.Module) -> None:
        """Whether what was given has been written into; nothing is known in inference mode."""
        given, self._given = self._given, []
        if not given:
            return
        writes = any(one._version != version for one, version in given)
        if writes and not _WRITES.setdefault(module, writes):
            raise ModelError(
                f"{type(module).__name__} writes into its inputs in some forwards only, so they cannot be "
                "kept: let it clone() them first"
            )
        _WRITES.setdefault(module, writes)
