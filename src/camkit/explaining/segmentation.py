"""The parts of photographs that a segmentation takes for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import THRESHOLD, ScoreKind, excludes, probabilities
from camkit.core import hooks
from camkit.core.torch_errors import in_our_words
from camkit.errors import MapError, ModelError
from camkit.explaining.boxes import Corners, Segment, Wanted
from camkit.explaining.detection import columns, in_photograph, region
from camkit.explaining.prediction import meaning
from camkit.images.decoding import Photo
from camkit.models import labels

BACKGROUND = ("background", "__background__")  # which is explained only if it is asked for


@dataclass(frozen=True)
class FoundSegments:
    """What was found in a photograph.

    labels: int64 `[n]`; masks: bool `[n, h, w]` over what the model returns; told: the same for people.
    missing: why others that were asked for are not. best: classes with their shares of what the model saw.
    kind: what the scores are. warnings: that this is a guess.
    """

    labels: Tensor
    masks: Tensor
    told: tuple[Segment, ...]
    missing: MapError | None
    best: tuple[tuple[int, float], ...]
    kind: ScoreKind
    warnings: tuple[str, ...]


def find(model: LoadedModel, asked: Wanted, batch: Tensor, photos: Sequence[Photo]) -> list[FoundSegments]:
    """What is found in each photograph of a batch, from one forward without gradients."""
    segments = model.segments
    assert segments is not None
    with in_our_words(model.module, [batch]), hooks.as_it_was(model.module, batch.device), torch.no_grad():
        scores = segments(model.module(batch))
    if scores.ndim != 4 or scores.shape[1] != len(model.classes):
        raise ModelError(
            f"{model.name} names {len(model.classes)} classes, and returns {list(scores.shape)}, not "
            "[B, classes, h, w]"
        )
    if scores.shape[1] == 1 and model.scores in ("auto", "softmax") and not labels.named(model.classes):
        raise ModelError(
            f"{model.name} returns one number for each place. If it is the score of a class, name that "
            "(--classes tumour, classes= in Python); if it is a depth or the like: --target mean"
        )
    scores = scores.float()
    rows = scores.movedim(1, -1).flatten(0, 2)
    kind, warnings = meaning(model, rows, batch[:1])
    likely = probabilities(rows, kind)
    told = rows if likely is None else likely
    told = told.reshape(len(scores), *scores.shape[2:], -1).movedim(-1, 1).cpu()
    # Of the scores themselves: where probabilities are 1 in float32, they no longer tell which is higher.
    highest = scores.argmax(1).cpu()
    about = kind, warnings, excludes(rows, kind)
    return [_found(model, asked, *row, *about) for row in zip(highest, told, photos, strict=True)]


def _found(
    model: LoadedModel,
    asked: Wanted,
    highest: Tensor,
    likely: Tensor,
    photo: Photo,
    kind: ScoreKind,
    warnings: tuple[str, ...],
    exclusive: bool,
) -> FoundSegments:
    """What is found in one photograph.

    highest: the class of each place, `[h, w]`. likely: the probability of each there, `[K, h, w]`, or the
    score of a `kind` that has none. exclusive: whether a place is of one class alone.
    """
    inside = _inside(model, photo, likely.shape[1:])
    every = torch.arange(len(likely))[:, None, None]
    taken = ((highest == every) if exclusive else (likely > THRESHOLD)) & inside
    shares = taken.sum((1, 2)) / inside.sum()
    order = [i for i in shares.argsort(descending=True, stable=True).tolist() if shares[i] > 0]
    best = tuple((i, float(shares[i])) for i in order)
    counted = [i for i in order if i in asked.labels] if asked.labels else _without_background(model, order)
    missing, wanted = None, list[tuple[int, int, Tensor, Corners | None]]()
    for x, y in asked.at:
        place = _place(model, photo, (x, y), highest.shape)
        if place is None:
            width, height = photo.whole or photo.image.size
            missing = MapError(
                f"the model does not see the place {x:g},{y:g} of this photograph of {width} x {height}"
            )
            continue
        mask = torch.zeros_like(inside)
        mask[place] = True
        those = sorted(asked.labels) or [int(highest[place])]
        wanted += [(label, number, mask, (x, y, x, y)) for number, label in enumerate(those, 1)]
    if not asked.at:
        numbers = range(1, len(counted) + 1) if asked.numbers is None else asked.numbers
        wanted = [(counted[n - 1], n, taken[counted[n - 1]], None) for n in numbers if n <= len(counted)]
        absent = sorted(asked.labels.difference(counted)) if asked.numbers is None else []
        complete = wanted and len(wanted) == len(numbers) and not absent
        missing = None if complete else _missing(model, asked, counted, absent, best)
    names = tuple(model.classes[label] for label in sorted(asked.labels))
    about: dict[str, Any] = {"of": max(len(counted), 1), "min_score": 0.0, "classes": names}
    told = [
        Segment(
            model.classes[label],
            float(likely[label][mask].mean()),
            at or in_photograph(_around(mask, model.preprocess.size), model.preprocess, photo)[0],
            number,
            area=float(mask.sum() / inside.sum()),
            at=None if at is None else at[:2],
            mask=mask.clone().numpy() if at is None else None,  # not a view of the masks of all classes
            **about,
        )
        for label, number, mask, at in wanted
    ]
    masks = torch.stack([mask for *_, mask, _ in wanted]) if wanted else taken[:0]
    of_each = torch.tensor([label for label, *_ in wanted], dtype=torch.int64)
    return FoundSegments(of_each, masks, tuple(told), missing, best, kind, warnings)


def _without_background(model: LoadedModel, order: Sequence[int]) -> list[int]:
    """The classes, largest first, but for the background, unless there is nothing else."""
    things = [i for i in order if model.classes[i].lower() not in BACKGROUND]
    return things or list(order)


def _inside(model: LoadedModel, photo: Photo, shape: torch.Size) -> Tensor:
    """Which places of what the model returns lie on the photograph, and not beside it, bool `[h, w]`."""
    left, top, right, bottom = region(model.preprocess, photo)
    known = model.preprocess.knows_place
    width, height = (photo.whole or photo.image.size) if known else (right, bottom)
    y = top + (torch.arange(shape[0]) + 0.5) / shape[0] * (bottom - top)
    x = left + (torch.arange(shape[1]) + 0.5) / shape[1] * (right - left)
    return ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))


def _place(
    model: LoadedModel, photo: Photo, at: tuple[float, float], shape: torch.Size
) -> tuple[int, int] | None:
    """Row and column of what the model returns for a place of the photograph; `None` if it saw it not."""
    left, top, right, bottom = region(model.preprocess, photo)
    x, y = (at[0] + 0.5 - left) / (right - left), (at[1] + 0.5 - top) / (bottom - top)
    if not (0 <= x < 1 and 0 <= y < 1):
        return None
    row, column = int(y * shape[0]), int(x * shape[1])
    return (row, column) if _inside(model, photo, shape)[row, column] else None


def _around(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """The box around a mask `[h, w]`, `[1, 4]` in pixels of the model's input."""
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    y, x = size[0] / mask.shape[0], size[1] / mask.shape[1]
    return torch.tensor(
        [[columns[0] * x, rows[0] * y, (columns[-1] + 1) * x, (rows[-1] + 1) * y]], dtype=torch.float32
    )


def _missing(
    model: LoadedModel,
    asked: Wanted,
    counted: Sequence[int],
    absent: Sequence[int],
    best: Sequence[tuple[int, float]],
) -> MapError:
    """Why segments that were asked for are not there. absent: classes of which there is none."""
    seen = ", ".join(f"{model.classes[label]} {share:.0%}" for label, share in best[:3])
    if absent or not counted:
        names = " or ".join(model.classes[label] for label in absent or sorted(asked.labels)) or "a class"
        what = f"it is {seen}" if seen else f"no class has {THRESHOLD:.0%} anywhere"
        return MapError(f"nothing of it is taken for {names} ({what})")
    lacking = " or ".join(str(n) for n in asked.numbers or () if n > len(counted))
    return MapError(f"there is no segment {lacking}: {len(counted)} are there ({seen})")


def chosen(found: Sequence[FoundSegments], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The segments of all photographs together: labels `[M]`, masks `[M, h, w]`, and targets `[B, T]`."""
    labels = torch.cat([one.labels for one in found]).to(device)
    masks = torch.cat([one.masks for one in found]).to(device)
    return labels, masks, columns([len(one.told) for one in found])
