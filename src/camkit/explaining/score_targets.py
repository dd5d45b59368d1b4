"""What is explained in place of classes: a number made of all scores, or the likeness to a photograph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel, restated
from camkit.core import hooks
from camkit.core.scored import Score, all_places, classifier
from camkit.drawing import overlay
from camkit.errors import UsageError, closest
from camkit.images.decoding import Photo
from camkit.images.workers import Failure, ImageSource, prepare
from camkit.models.encoding import encoder

# From whatever the model returns, `[B, ...]`, to a number for each row.
REDUCTIONS: Mapping[str, Score] = {
    "sum": lambda returned: returned.flatten(1).sum(1),
    "mean": lambda returned: returned.flatten(1).mean(1),
    "norm": lambda returned: torch.linalg.vector_norm(returned.flatten(1), dim=1),
}
ROUNDING = 4  # units in the last place by which the cosine of equal embeddings may be wrong
OF_CLASSES = ("classes", "scores", "segments")  # notes on a model that concern these alone
LIKE = "like "  # before the photograph, in the name of a target
ALIKE = (
    "to the model it is the photograph that it is compared with (cosine 1): nothing could make it more "
    "alike, so there is nothing to explain"
)
PYTHON = "FUNCTION"  # in place of the option of a target that only Python has

Read = Callable[..., Iterable[tuple[int, Photo] | Failure]]


@dataclass(frozen=True)
class ScoreTargets:
    """Functions of what `model` returns, by the name of each; told: what they are, for a request."""

    model: LoadedModel
    functions: Mapping[str, Score] = field(default_factory=dict)
    told: tuple[str, ...] = ()


def named(model: LoadedModel, targets: Sequence[str], like: Sequence[str], read: Read) -> ScoreTargets:
    """The targets that are asked for: of `REDUCTIONS`, or photographs.

    Where photographs are compared the model is its `encoder`. Raises `UsageError` for another target, or
    for both at once, and `ImageError` for a photograph that cannot be read.
    """
    if targets and like:
        raise UsageError("--target is of scores, --like of what is below them: give one of them")
    for name in targets:
        if name not in REDUCTIONS:
            known = ", ".join(REDUCTIONS)
            raise UsageError(
                f"there is no target {name!r}{closest(name, REDUCTIONS)} ({known}; classes: --class)"
            )
    if not like:
        model = _without_classes(all_places(model)) if targets else model
        return ScoreTargets(model, {name: REDUCTIONS[name] for name in targets}, tuple(targets))
    model, found = encoder(model), {}
    told = []
    for item in read(like, model.preprocess, whole=False):
        if isinstance(item, Failure):
            raise item.error
        position, photo = item
        found[f"{LIKE}{like[position]}"] = Likeness.of(model, photo)
        told.append(f"{LIKE}{photo.sha256}")
    return ScoreTargets(_without_classes(model), found, tuple(told))


def _without_classes(model: LoadedModel) -> LoadedModel:
    """A model without what was assumed of its classes: functions see none."""
    notes = {about: text for about, text in model.notes.items() if about not in OF_CLASSES}
    return restated(model, notes=notes)


def option(name: str) -> tuple[str, str]:
    """The option of the command line for a target by its name; `PYTHON` for any other function."""
    if name.startswith(LIKE):
        return "--like", name.removeprefix(LIKE)
    return ("--target" if name in REDUCTIONS else PYTHON), name


def of_name(model: LoadedModel, name: str, read: Read) -> ScoreTargets:
    """The target that a line of a manifest names."""
    if name.startswith(LIKE):
        return named(model, (), [name.removeprefix(LIKE)], read)
    return named(model, [name], (), read)


def likeness(model: LoadedModel, image: ImageSource) -> Score:
    """The cosine of the angle between what `model` returns, `[B, d]`, and that for another photograph.

    For `target=`; model: an encoder, such as `camkit.encoder` makes of a classifier.
    """
    return Likeness.of(model, prepare(image, model.preprocess, whole=False))


@dataclass(frozen=True)
class Likeness:
    """The cosine of the angle to `other`, `[1, d]`: what a model returns for the photograph `sha256`."""

    other: Tensor
    sha256: str

    @classmethod
    def of(cls, model: LoadedModel, photo: Photo) -> Likeness:
        """The likeness to a photograph."""
        view = overlay.seen(photo, model.preprocess)
        inputs = model.preprocess.batch([view], model.device).to(model.dtype)
        with hooks.as_it_was(model.module, model.device), torch.inference_mode():
            other: Tensor = classifier(model)(inputs)
        return cls(other.clone(), photo.sha256)

    def __call__(self, returned: Any) -> Tensor:
        """The score of each row of `[B, d]`.

        Where it is 1, nothing could raise it: gradients are 0, in place of rounding noise.
        """
        found: Tensor = returned.to(torch.promote_types(returned.dtype, torch.float32))
        cosine = torch.cosine_similarity(found, self.other.to(found), dim=1)
        return torch.where(cosine.detach() < self.one, cosine, cosine.detach())

    @property
    def one(self) -> float:
        """The lowest cosine that only rounding keeps from 1: its own, or that of the embeddings."""
        own = torch.finfo(self.other.dtype).eps
        return 1 - max(ROUNDING * min(own, torch.finfo(torch.float32).eps), own**2)
