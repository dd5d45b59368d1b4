"""Whether the tokens of an image come last, behind class tokens and registers, or have others behind them.

Tokens beside those of the image are nearly always in front. Nothing in a shape tells where they are, so a
corner of an image is changed: in the first layer with all tokens the one that changes most is that of the
corner. Where both corners tell of the same number of tokens behind, they are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from camkit.core.own_hook import Hook
from camkit.core.scored import Scored

_BEHIND: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


def behind(module: nn.Module) -> int | None:
    """How many tokens lie behind those of the image; `None` if nobody has looked yet."""
    inner = _inner(module)
    if inner not in _BEHIND and any(hasattr(part, "num_prefix_tokens") for part in inner.modules()):
        _BEHIND[inner] = 0  # a model of timm, which has them in front
    return _BEHIND.get(inner)


def find(
    module: nn.Module, inputs: Sequence[Tensor], tokens: int, grid: tuple[int, int], prefix: int
) -> None:
    """Look, with noise in place of the first of the inputs; afterwards `behind` knows.

    tokens: of an image, `prefix` more than its grid `(h, w)` has.
    """
    first, *others = (one[:1] for one in inputs)
    noise = torch.randn(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
    height, width = (max(1, size // cells) for size, cells in zip(first.shape[2:], grid, strict=True))
    changed = [noise.clone(), noise.clone()]
    changed[0][..., :height, :width] += 1
    changed[1][..., -height:, -width:] += 1
    before, *after = (_outputs(module, (one, *others), tokens) for one in (noise, *changed))
    corners = [_corner(before, one) for one in after]
    found = [start - corner for start, corner in zip((prefix, tokens - 1), corners, strict=True)]
    _BEHIND[_inner(module)] = found[0] if found[0] == found[1] and 0 < found[0] <= prefix else 0


def _inner(module: nn.Module) -> nn.Module:
    return module.module if isinstance(module, Scored) else module


def _outputs(module: nn.Module, inputs: Sequence[Tensor], tokens: int) -> dict[str, Tensor]:
    """What layers return for all tokens, `[tokens, C]`, in the order in which they finish."""
    found: dict[str, Tensor] = {}

    def keep(output: Any, name: str) -> None:
        if isinstance(output, Tensor) and output.ndim == 3 and output.numel() == output.shape[2] * tokens:
            found.setdefault(name, output.detach().reshape(tokens, -1).float())

    with ExitStack() as stack, torch.no_grad():
        for name, part in module.named_modules():
            stack.enter_context(part.register_forward_hook(Hook(partial(keep, name=name))))
        module(*inputs)
    return found


def _corner(before: dict[str, Tensor], after: dict[str, Tensor]) -> int:
    """The token that changes most in the first layer that changes; -1 if none does."""
    for name, output in before.items():
        change = (after[name] - output).abs().sum(1) if name in after else output.new_zeros(1)
        if change.any():
            return int(change.argmax())
    return -1
