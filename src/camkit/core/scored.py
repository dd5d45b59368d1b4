"""Any model as a classifier: a target function is the score of its only class."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, restated
from camkit.errors import ModelError, TargetError

Score = Callable[[Any], Tensor]
Output = str | int | Callable[[Any], Any] | None


class Scored(nn.Module):
    """`module`, followed by what turns its output into scores `[B, n]`; `module` is its submodule."""

    def __init__(self, module: nn.Module, output: Output, score: Score | None) -> None:
        super().__init__()
        self.module = module
        self.scores = _Scores(output, score)

    def forward(self, *inputs: Tensor) -> Any:
        """Whatever `output` and `score` make of the module's output."""
        return self.scores(self.module(*inputs))


def classifier(model: LoadedModel) -> nn.Module:
    """What returns the scores `[B, n]`: the module, followed by the selection of its `output`.

    Raises `ModelError` for a detector or a segmentation.
    """
    if model.detections is not None or model.segments is not None:
        kind, parts = (
            ("detector", "boxes") if model.detections is not None else ("segmentation", "segments")
        )
        raise ModelError(
            f"{model.name} is a {kind}, which has no score for a whole photograph: explain its {parts} "
            "(camkit explain --box all)"
        )
    return model.module if model.output is None else Scored(model.module, model.output, None)


def all_places(model: LoadedModel) -> LoadedModel:
    """A segmentation as what returns its scores of all places, for functions of these; others as given."""
    return model if model.segments is None else restated(model, segments=None, output=model.segments)


class _Scores(nn.Module):
    """A module of its own, so that a model is traced around it and not through a user's function."""

    def __init__(self, output: Output, score: Score | None) -> None:
        super().__init__()
        self.output, self.score = output, score

    def forward(self, returned: Any) -> Any:
        chosen = selected(returned, self.output)
        if self.score is None:
            return chosen
        scores = self.score(chosen)
        counts = isinstance(chosen, Tensor) and chosen.ndim > 0
        if not isinstance(scores, Tensor) or scores.ndim != 1 or (counts and len(scores) != len(chosen)):
            raise TargetError(
                f"the target function returns {described(scores)} for {described(chosen)}; "
                "it must return one score for each row, [B]"
            )
        return scores[:, None]


def selected(returned: Any, output: Output) -> Any:
    """The output that is meant, of what a model returned; `ModelError` if that is not there."""
    if output is None:
        return returned
    if callable(output):
        return output(returned)
    if isinstance(output, str) and not isinstance(returned, Mapping) and hasattr(returned, output):
        return getattr(returned, output)  # of a named tuple or a dataclass
    try:
        if not isinstance(returned, Tensor):
            return returned[output]
    except (LookupError, TypeError):
        pass
    raise ModelError(f"output={output!r} is not in what the model returns: {described(returned)}")


def described(value: Any) -> str:
    """What a model returned, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {list(value.shape)}" if value.ndim else "a single number"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(map(repr, value))}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def inner_name(layer: str) -> str:
    """What `Scored` calls a layer of its model."""
    return f"module.{layer}".rstrip(".")


def own_name(module: nn.Module, layer: str) -> str:
    """What the user calls a layer of `module`, which may be `Scored`."""
    return layer.removeprefix("module").lstrip(".") if isinstance(module, Scored) else layer
