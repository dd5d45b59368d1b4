"""The parts of photographs that a segmentation takes for a class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind
from camkit.core import hooks
from camkit.core.torch_errors import in_our_words
from camkit.errors import MapError, ModelError
from camkit.explaining.boxes import Corners, Segment, Wanted
from camkit.explaining.detection import columns, in_photograph, region
from camkit.images.decoding import Photo

BACKGROUND = ("background", "__background__")  # which is explained only if it is asked for


@dataclass(frozen=True)
class FoundSegments:
    """What was found in a photograph.

    labels: int64 `[n]`; masks: bool `[n, h, w]` over what the model returns; told: the same for people.
    missing: why others that were asked for are not. best: classes with their shares of what the model saw.
    """

    labels: Tensor
    masks: Tensor
    told: tuple[Segment, ...]
    missing: MapError | None
    best: tuple[tuple[int, float], ...]


def _likely(scores: Tensor, kind: ScoreKind) -> Tensor:
    """The probability of each class at each place, `[B, K, h, w]`."""
    if kind == "probabilities":
        return scores
    return scores.sigmoid() if kind == "sigmoid" else scores.softmax(1)


def find(model: LoadedModel, asked: Wanted, batch: Tensor, photos: Sequence[Photo]) -> list[FoundSegments]:
    """What is found in each photograph of a batch, from one forward without gradients."""
    assert model.segments is not None
    with in_our_words(model.module, [batch]), hooks.as_it_was(model.module, batch.device), torch.no_grad():
        scores = model.segments(model.module(batch))
    if scores.ndim != 4 or scores.shape[1] != len(model.classes):
        raise ModelError(
            f"{model.name} names {len(model.classes)} classes, and returns {list(scores.shape)}, not "
            "[B, classes, h, w]"
        )
    if scores.shape[1] == 1:
        raise ModelError(
            f"{model.name} returns one channel, which would win everywhere: let it return one for what is "
            f"not {model.classes[0]}, too, such as zeros; or --target mean: all that it returns"
        )
    scores = scores.float()
    likely = _likely(scores, model.scores).cpu()
    # Of the scores themselves: where probabilities are 1 in float32, they no longer tell which is higher.
    highest = scores.argmax(1).cpu()
    return [_found(model, asked, *row) for row in zip(highest, likely, photos, strict=True)]


def _found(
    model: LoadedModel, asked: Wanted, highest: Tensor, likely: Tensor, photo: Photo
) -> FoundSegments:
    """highest: the class of each place, `[h, w]`. likely: the probability of each there, `[K, h, w]`."""
    inside = _inside(model, photo, likely.shape[1:])
    won = highest.where(inside, -1)
    shares = won[inside].bincount(minlength=len(likely)) / inside.sum()
    order = [i for i in shares.argsort(descending=True, stable=True).tolist() if shares[i] > 0]
    best = tuple((i, float(shares[i])) for i in order)
    counted = [i for i in order if i in asked.labels] if asked.labels else _without_background(model, order)
    missing, wanted = None, list[tuple[int, int, Tensor, Corners | None]]()
    for x, y in asked.at:
        place = _place(model, photo, (x, y), won.shape)
        if place is None:
            width, height = photo.whole or photo.image.size
            missing = MapError(
                f"the model does not see the place {x:g},{y:g} of this photograph of {width} x {height}"
            )
            continue
        mask = torch.zeros_like(won, dtype=torch.bool)
        mask[place] = True
        labels = sorted(asked.labels) or [int(won[place])]
        wanted += [(label, number, mask, (x, y, x, y)) for number, label in enumerate(labels, 1)]
    if not asked.at:
        numbers = range(1, len(counted) + 1) if asked.numbers is None else asked.numbers
        wanted = [(counted[n - 1], n, won == counted[n - 1], None) for n in numbers if n <= len(counted)]
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
            **about,
        )
        for label, number, mask, at in wanted
    ]
    masks = torch.stack([mask for *_, mask, _ in wanted]) if wanted else won.new_zeros(0, *won.shape).bool()
    return FoundSegments(torch.tensor([w[0] for w in wanted]), masks, tuple(told), missing, best)


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
        names = " or ".join(model.classes[label] for label in absent or sorted(asked.labels))
        return MapError(f"nothing of it is taken for {names} (it is {seen})")
    lacking = " or ".join(str(n) for n in asked.numbers or () if n > len(counted))
    return MapError(f"there is no segment {lacking}: {len(counted)} are there ({seen})")


def chosen(found: Sequence[FoundSegments], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The segments of all photographs together: labels `[M]`, masks `[M, h, w]`, and targets `[B, T]`."""
    labels = torch.cat([one.labels for one in found]).to(device)
    masks = torch.cat([one.masks for one in found]).to(device)
    return labels, masks, columns([len(one.told) for one in found])
