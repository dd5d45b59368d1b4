"""camkit's own forward hooks, which leave other threads alone and are not taken for those of a user."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn


class Hook:
    """A forward hook of camkit's own: in the thread that made it, it replaces what the layer returns."""

    def __init__(self, replace: Callable[[Any], Any]) -> None:
        self._replace, self._owner = replace, threading.get_ident()

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """What replaces `output`; `None` if another thread uses the same model."""
        return self._replace(output) if self.is_own() else None

    def is_own(self) -> bool:
        """Whether it runs in the thread that made it."""
        return threading.get_ident() == self._owner


def has_hooks(part: nn.Module) -> bool:
    """Whether `part` has hooks other than those of camkit, which another thread may have set."""
    hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
    return not all(isinstance(hook, Hook) for hook in hooks)
