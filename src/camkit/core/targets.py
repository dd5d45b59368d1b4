"""Which scores are explained: from what users write to a function of the model's scores.

A *selector* maps scores `[B, n_classes]` to class indices int64 `[B, T]`. Because it selects from
the scores of the explained forward itself, `pred` and `top:K` cost no forward of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from camkit.core.class_names import class_of, no_class, top_count
from camkit.core.devices import put
from camkit.core.hooks import normal_tensor
from camkit.core.scored import Score, described
from camkit.errors import ModelError, TargetError, counted

Targets = int | Sequence[int] | Tensor | Score | None
Selector = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Fixed:
    """Selects classes that are known before there are scores: int64 `[B, T]`, or `[1, T]` for all."""

    targets: Tensor

    def __call__(self, scores: Tensor) -> Tensor:
        """The targets, whatever the scores; `TargetError` for a class that does not exist.

        The host does not wait for targets on the scores' accelerator: those out of range are clamped, and
        `missing` reports them.
        """
        if self._are_on_accelerator(scores):
            return self.targets.clamp(0, scores.shape[1] - 1).expand(len(scores), -1)
        known = self.targets.cpu()
        _check(known, scores.shape[1])
        return put(known, scores.device).expand(len(scores), -1)

    def missing(self, scores: Tensor) -> Tensor | None:
        """Whether a class does not exist, bool `[]` on the device; `None` if the host checked that."""
        if not self._are_on_accelerator(scores):
            return None
        return ((self.targets < 0) | (self.targets >= scores.shape[1])).any()

    def check(self, scores: Tensor) -> None:
        """`TargetError` for a class that does not exist, wherever the targets are."""
        _check(self.targets.cpu(), scores.shape[1])

    def _are_on_accelerator(self, scores: Tensor) -> bool:
        return self.targets.device.type != "cpu" and self.targets.device == scores.device


def _check(targets: Tensor, count: int) -> None:
    rows = targets.tolist()  # quicker than asking torch, by a noticeable share of a call
    lowest, highest = min(map(min, rows)), max(map(max, rows))
    if lowest < 0 or highest >= count:
        raise no_class(lowest if lowest < 0 else highest, count)


def predicted(scores: Tensor) -> Tensor:
    """Selects the class with the highest score."""
    return scores.argmax(1, keepdim=True)


def every(scores: Tensor) -> Tensor:
    """Selects all classes."""
    return torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)


def target_selector(targets: Targets, batch: int) -> Selector:
    """The selector of what a call says; `TargetError` for a wrong kind or length."""
    if targets is None:
        return predicted
    if callable(targets):
        return every  # of the one score that it makes
    wanted = "targets must be an int, a list of ints, an int64 tensor [B] or a function"
    if isinstance(targets, bool | float | str):
        raise TargetError(f"{wanted}, not {targets!r}")
    try:
        tensor = targets if isinstance(targets, Tensor) else torch.as_tensor(np.asarray(targets))
    except (TypeError, ValueError, RuntimeError):
        raise TargetError(f"{wanted}, not {targets!r}") from None
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise TargetError(f"{wanted}, not of type {tensor.dtype}")
    if tensor.ndim == 0:
        tensor = tensor.expand(batch)
    if tensor.shape != (batch,):
        raise TargetError(f"targets {list(tensor.shape)} for {counted(batch, 'input')}: give one for each")
    return Fixed(tensor[:, None])


def class_selector(classes: Sequence[str | int], names: Sequence[str]) -> Selector:
    """From `pred`, `top:K`, `all`, names and indices to a selector of the classes they mean."""
    selectors = [_one_class(one, names) for one in classes]
    fixed = [s.targets for s in selectors if isinstance(s, Fixed)]
    if len(fixed) == len(selectors) > 0:
        return Fixed(torch.cat(fixed, dim=1))
    if len(selectors) == 1:
        return selectors[0]
    return lambda scores: torch.cat([s(scores) for s in selectors], dim=1)


def _one_class(one: str | int, names: Sequence[str]) -> Selector:
    if isinstance(one, str) and one.startswith("top:"):
        count = top_count(one)
        return lambda scores: scores.topk(min(count, scores.shape[1]), dim=1).indices
    if one == "pred":
        return predicted
    return every if one == "all" else Fixed(torch.tensor([[class_of(one, names)]]))


def known_targets(selector: Selector, batch: int) -> Tensor | None:
    """The targets `[B, T]`, where they are known before there are scores."""
    return normal_tensor(selector.targets.expand(batch, -1)) if isinstance(selector, Fixed) else None


OUTPUT = ": output= says which part they are (a FILE.py returns camkit.load_model(module, output=...))"


def refuse_targets(selector: Selector, batch: int, scores: Tensor) -> None:
    """Raise like `checked_targets`, and at once for a class that does not exist."""
    checked_targets(selector, batch, scores)
    if isinstance(selector, Fixed):
        selector.check(scores)


def checked_targets(selector: Selector, batch: int, scores: Tensor) -> Tensor:
    """The targets, int64 `[B, T]`; `ModelError` or `TargetError` for what cannot be explained.

    A class that does not exist may be reported later, see `Fixed`: what is returned is in range.
    """
    if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != batch:
        hint = "" if isinstance(scores, Tensor) else OUTPUT
        raise ModelError(
            f"the model returns {described(scores)}; a classifier returns scores [B, n_classes]{hint}"
        )
    return normal_tensor(selector(scores).to(torch.int64))
