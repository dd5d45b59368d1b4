"""Which scores are explained: from what users write to a function of the model's scores.

A *chooser* maps scores `[B, n_classes]` to class indices int64 `[B, T]`. Choosing from the scores of the
very forward that is explained is what lets `pred` and `top:K` cost no forward of their own. What is no
classifier becomes one by `Scored`: a target function is the score of its only class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from camkit.core.class_names import class_index, no_class, top_count
from camkit.core.hooks import usable
from camkit.errors import ModelError, TargetError, counted

Score = Callable[[Any], Tensor]
Targets = int | Sequence[int] | Tensor | Score | None
Output = str | int | Callable[[Any], Any] | None
Chooser = Callable[[Tensor], Tensor]


class Fixed:
    """Chooses targets that are known before there are scores: int64 `[B, T]`, or `[1, T]` for all."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets

    def __call__(self, scores: Tensor) -> Tensor:
        """The targets, whatever the scores."""
        return self.of(len(scores))

    def of(self, rows: int) -> Tensor:
        """For that many images."""
        return self.targets.expand(rows, -1)


def given(targets: Targets, batch: int) -> Chooser:
    """The chooser of fixed targets; `TargetError` for a wrong kind or length."""
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


def predicted(scores: Tensor) -> Tensor:
    """The chooser of the class with the highest score."""
    return scores.argmax(1, keepdim=True)


def every(scores: Tensor) -> Tensor:
    """The chooser of all classes."""
    return torch.arange(scores.shape[1]).expand(len(scores), -1)


class Checked:
    """`choose` behind the checks that explainers rely on; it keeps the scores and what was chosen."""

    def __init__(self, choose: Chooser, batch: int) -> None:
        self._choose, self._batch = choose, batch
        self.scores: Tensor | None = None  # [B, n_classes], detached
        self.chosen: Tensor | None = None  # int64 [B, T]

    @property
    def given(self) -> Tensor | None:
        """The targets, where they are known before there are scores."""
        return usable(self._choose.of(self._batch)) if isinstance(self._choose, Fixed) else None

    def __call__(self, scores: Tensor) -> Tensor:
        """The targets, int64 `[B, T]`; `ModelError` or `TargetError` for what cannot be explained."""
        if not isinstance(scores, Tensor) or scores.ndim != 2 or len(scores) != self._batch:
            hint = "" if isinstance(scores, Tensor) else ": choose them with output="
            raise ModelError(
                f"the model returns {_told(scores)}; a classifier returns scores [B, n_classes]{hint}"
            )
        targets = usable(self._choose(scores).to(scores.device, torch.int64))
        rows = targets.tolist()  # quicker than asking torch, which is seen in the total
        lowest, highest = min(map(min, rows)), max(map(max, rows))
        count = scores.shape[1]
        if lowest < 0 or highest >= count:
            wrong = lowest if lowest < 0 else highest
            raise no_class(wrong, count)
        self.scores, self.chosen = scores.detach(), targets
        return targets


class Scored(nn.Module):
    """`module` followed by what makes scores `[B, n]` of its output; `module` is its submodule."""

    def __init__(self, module: nn.Module, output: Output, score: Score | None) -> None:
        super().__init__()
        self.module = module
        self.scores = _Scores(output, score)

    def forward(self, *inputs: Tensor) -> Any:
        """Whatever `output` and `score` make of the module's output."""
        return self.scores(self.module(*inputs))


class _Scores(nn.Module):
    """A module of its own, so that a model is traced around it and not through a user's function."""

    def __init__(self, output: Output, score: Score | None) -> None:
        super().__init__()
        self._output, self._score = output, score

    def forward(self, returned: Any) -> Any:
        selected = returned if self._output is None else _selected(returned, self._output)
        if self._score is None:
            return selected
        scores = self._score(selected)
        counts = isinstance(selected, Tensor) and selected.ndim > 0
        if not isinstance(scores, Tensor) or scores.ndim != 1 or (counts and len(scores) != len(selected)):
            raise TargetError(
                f"the target function returns {_told(scores)} for {_told(selected)}; "
                "it must return one score for each row, [B]"
            )
        return scores[:, None]


def _selected(returned: Any, output: str | int | Callable[[Any], Any]) -> Any:
    if callable(output):
        return output(returned)
    if isinstance(output, str) and not isinstance(returned, Mapping) and hasattr(returned, output):
        return getattr(returned, output)  # of a named tuple or a dataclass
    try:
        if not isinstance(returned, Tensor):
            return returned[output]
    except (LookupError, TypeError):
        pass
    raise ModelError(f"output={output!r} is not in what the model returns: {_told(returned)}")


def _told(value: Any) -> str:
    """What a model returned, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}" if value.ndim else "a single number"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def class_chooser(specs: Sequence[str | int], classes: Sequence[str]) -> Chooser:
    """From `pred`, `top:K`, `all`, names and indices to a chooser of the classes they mean."""
    choosers = [_one_spec(spec, classes) for spec in specs]
    fixed = [c for c in choosers if isinstance(c, Fixed)]
    if len(fixed) == len(choosers) > 0:
        return Fixed(torch.cat([c.targets for c in fixed], dim=1))
    return lambda scores: torch.cat([c(scores).to(scores.device) for c in choosers], dim=1)


def _one_spec(spec: str | int, classes: Sequence[str]) -> Chooser:
    text = str(spec)
    if text == "pred":
        return predicted
    if text == "all":
        return every
    if text.startswith("top:"):
        count = top_count(text)
        return lambda scores: scores.topk(min(count, scores.shape[1]), dim=1).indices
    return Fixed(torch.tensor([[class_index(text, classes)]]))
