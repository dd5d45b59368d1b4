"""What the scores of a model mean: their probabilities, and what they predict.

`softmax`: logits of classes that exclude each other. `sigmoid`: a logit for each class by itself, of models
with one output or several labels. `probabilities`: what softmax or sigmoid has made already. `none`: no
probabilities, as of a regression. `auto`: whichever of them the scores look like. Scores
are float `[B, n_classes]`. Nothing here imports torch before it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from camkit.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

ScoreKind = Literal["auto", "softmax", "sigmoid", "probabilities", "none"]
KINDS: tuple[str, ...] = get_args(ScoreKind)[1:]  # those that a user names
THRESHOLD = 0.5  # above it a class that excludes no other is predicted
# How far a sum of probabilities may be from 1: bfloat16 has 8 binary digits.
TOLERANCE = 5e-3

# Operations of a graph, without `Backward0`: what makes probabilities, and what leaves them such, as the
# mean over an ensemble does. A score that comes from anything else is a logit.
SQUASHING = {"Softmax", "SafeSoftmax", "Sigmoid", "Exp"}
KEEPING = set(
    "Add Alias Amax Amin Cat Clamp Clone Div Expand Index Maximum Mean Minimum Mul Permute "
    "ReshapeAlias Rsub Select Slice Split Squeeze Stack Sub Sum T ToCopy Transpose Unbind UnsafeView "
    "Unsqueeze UpsampleBilinear2D UpsampleNearest2D View".split()
)


def checked(kind: object) -> ScoreKind:
    """`kind` if it is one; `ModelError` with those that are."""
    if kind == "auto" or kind in KINDS:
        return cast("ScoreKind", kind)
    raise ModelError(f"unknown scores {kind!r}: use {', '.join(KINDS)}")


def meaning(kind: ScoreKind, scores: Tensor, squashed: Callable[[], bool | None]) -> ScoreKind:
    """What `scores` are, never `auto`: one answer for the whole batch.

    kind: what the model says of itself. squashed: as the function of that name; asked only where `auto`
    needs it, because all scores lie in [0, 1]. Raises `ModelError` for `probabilities` that are none.
    """
    one = scores.shape[1] == 1
    known = _finite(scores)
    if kind == "auto":
        kind = "sigmoid" if one else "softmax"
        if within_unit(scores):
            answer = squashed()
            if answer or (answer is None and sums_to_one(known)):
                return "probabilities"
    if kind == "probabilities" and len(known) and not within_unit(scores):
        raise ModelError(
            f"the scores are said to be probabilities, but they reach from {float(known.min()):.3g} to "
            f"{float(known.max()):.3g}: softmax or sigmoid?"
        )
    return "sigmoid" if kind == "softmax" and one else kind


def within_unit(scores: Tensor) -> bool:
    """Whether all scores that are finite, if any, lie in [0, 1]."""
    known = _finite(scores)
    return len(known) > 0 and bool(((known >= 0) & (known <= 1 + TOLERANCE)).all())


def _finite(scores: Tensor) -> Tensor:
    return scores[scores.isfinite().all(1)]


def sums_to_one(scores: Tensor) -> bool:
    """Whether every row of several scores is a distribution over classes."""
    return scores.shape[1] > 1 and bool(((scores.sum(1) - 1).abs() <= TOLERANCE).all())


def squashed(model: Callable[..., Any], inputs: Tensor) -> bool | None:
    """Whether what `model` returns for `inputs` comes out of a softmax or a sigmoid.

    Read from the graph of one forward; `None` where there is none, as of a model that runs under `no_grad`,
    and a module does not end in `nn.Softmax` or `nn.Sigmoid` either.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        try:
            scores = model(inputs.detach().clone().requires_grad_())
        # Whatever a model says to inputs that want a gradient: then it tells nothing.
        except Exception:
            scores = None
    node = scores.grad_fn if isinstance(scores, torch.Tensor) else None
    if node is None:
        parts = list(model.modules()) if isinstance(model, torch.nn.Module) else [model]
        return True if type(parts[-1]).__name__ in ("Softmax", "Sigmoid") else None
    sources = set()
    waiting, seen = [node], {node}
    while waiting:
        node = waiting.pop()
        name = re.sub(r"Backward\d*$", "", node.name())
        # A parameter that scores are multiplied with, such as a temperature, is no source of them.
        before = [n for n, _ in node.next_functions if n is not None and "Accumulate" not in n.name()]
        if name in KEEPING and before:
            waiting += [n for n in before if n not in seen]
            seen.update(before)
        else:
            sources.add(name in SQUASHING)
    return sources == {True}


def probabilities(scores: Tensor, kind: ScoreKind) -> Tensor | None:
    """The probabilities that `scores` of a resolved `kind` stand for; `None` if for none."""
    if kind == "none":
        return None
    made = {"softmax": lambda: scores.softmax(1), "sigmoid": scores.sigmoid}
    return made.get(kind, lambda: scores)()


def excludes(scores: Tensor, kind: ScoreKind) -> bool:
    """Whether just one class is right: then the highest is predicted, else all above `THRESHOLD`."""
    return kind in ("softmax", "none") or (kind == "probabilities" and sums_to_one(scores))


def predictions(likely: Tensor, *, exclusive: bool) -> list[int]:
    """The classes that are predicted, the highest first, from probabilities (or scores) `[n_classes]`."""
    if exclusive:
        return [int(likely.argmax())]
    return [i for i in likely.argsort(descending=True, stable=True).tolist() if likely[i] > THRESHOLD]


def figure(probability: float | None, score: float) -> str:
    """A probability as a percentage, or the score where there is none."""
    return f"{score:.4g}" if probability is None else f"{probability:.1%}"
