"""Pictures of a benchmark: the maps of all explainers side by side, and where two of them disagree most."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from camkit.bench.results import ALIKE, MAX_SHOWN, Example, ShownMap, ShownPhotograph
from camkit.bench.scenes import Scene
from camkit.contracts.scores import meaning, probabilities, squashed
from camkit.core import hooks
from camkit.drawing import outline, overlay, sheet
from camkit.drawing.evidence import Scale, remark
from camkit.drawing.style import Style
from camkit.errors import CamkitError
from camkit.metrics import agreement
from camkit.metrics.map_tools import all_finite

if TYPE_CHECKING:
    from PIL.Image import Image

PHOTOGRAPHS = 4  # whose maps are shown
DISAGREEMENTS = 3
NEAR = 4  # maps up to so many times as strong as the reference share its scale
STYLE = Style(view="model", caption=False)
REMARKS = {
    "constant": "all values are equal",
    "nothing for": "no value is positive",
}

Pictures = dict[str, "Image"]


def side_by_side(
    scene: Scene, maps: Mapping[str, Tensor], reference_of: Mapping[str, str]
) -> tuple[Pictures, list[ShownPhotograph]]:
    """Maps of the same few photographs, evenly spread, by all explainers.

    maps: `[N, h, w]` by row. Maps of one method are drawn on the scale of its reference, which
    `reference_of` names, so that their values can be compared, too; those far larger or smaller have a
    scale of their own.
    """
    real = _explainers(maps)[:MAX_SHOWN]
    count = min(PHOTOGRAPHS, len(scene.inputs))
    pictures: Pictures = {}
    shown: list[ShownPhotograph] = []
    for number, index in enumerate((len(scene.inputs) * i // count for i in range(count) if real), 1):
        seen = overlay.sized(scene.picture(index))
        file = f"photograph-{number}.png"
        pictures[file] = _outlined(scene, index, seen.copy())
        drawn = []
        for place, key in enumerate(real, 1):
            one = _drawn(key, maps[key][index].cpu(), maps[reference_of[key]][index].cpu())
            if one.full is not None:
                one.file = f"photograph-{number}-{place}.png"
                scale = Scale(-one.full, one.full, shared=True)
                picture = overlay.overlay(seen, maps[key][index].cpu(), STYLE, scale=scale)
                pictures[one.file] = _outlined(scene, index, picture)
            drawn.append(one)
        shown.append(
            ShownPhotograph(
                title=scene.titles[index],
                class_name=scene.names[index],
                probability=_probability(scene, index),
                file=file,
                maps=drawn,
            )
        )
    return pictures, shown


def _outlined(scene: Scene, index: int, picture: Image) -> Image:
    """The picture of an input, with a line around the box or segment that is explained."""
    around = scene.outline(index)
    if isinstance(around, Tensor):
        outline.around_mask(picture, around.cpu().numpy(), (0, 0, *picture.size))
    elif around is not None:
        height, width = scene.inputs.shape[-2:]
        x, y = picture.width / width, picture.height / height
        left, top, right, bottom = around
        outline.around_box(picture, (left * x, top * y, right * x, bottom * y))
    return picture


def _probability(scene: Scene, index: int) -> float | None:
    """The probability of what is explained; `None` if the scores are not probabilities."""
    one = scene.inputs[index : index + 1]
    try:
        with hooks.as_it_was(scene.module, one.device), scene.without_graph():
            found = scene.module(one).float()
        likely = probabilities(found, meaning(scene.scores, found, lambda: squashed(scene.module, one)))
    except CamkitError:
        return None
    return None if likely is None else float(likely[0, int(scene.targets[index])])


def _drawn(key: str, map: Tensor, reference: Tensor) -> ShownMap:
    """The remarks on a map, and its scale; without a scale it cannot be drawn."""
    if not bool(all_finite(map[None]).all()):
        return ShownMap(row=key, remark="not finite, so it is not drawn")
    peak, shared = float(map.abs().max()), float(reference.abs().nan_to_num().max())
    near = shared / NEAR <= peak <= shared * NEAR
    remarks = [REMARKS[found]] if (found := remark(map, STYLE)) in REMARKS else []
    return ShownMap(
        row=key,
        full=(shared if near else peak) or 1.0,
        low=float(map.min()),
        high=float(map.max()),
        remark="; ".join([*remarks, *([] if near else ["on a scale of its own"])]),
    )


def disagreements(scene: Scene, maps: Mapping[str, Tensor]) -> tuple[Pictures, list[Example]]:
    """The photographs on which two explainers agree least, drawn side by side."""
    real = {key: maps[key] for key in _explainers(maps)}
    pairs = [(a, b) for a, b in combinations(real, 2) if real[a].shape == real[b].shape]
    if not pairs:
        return {}, []
    table = torch.stack([agreement.spearman(real[a], real[b]) for a, b in pairs])  # [pairs, N]
    worst, which = table.nan_to_num(nan=2.0).min(0)  # where it is not defined, nothing is shown
    pictures: Pictures = {}
    examples: list[Example] = []
    for index in worst.argsort()[:DISAGREEMENTS].tolist():
        value, pair = float(worst[index]), pairs[int(which[index])]
        if value >= ALIKE:
            continue
        seen = scene.picture(index)
        panels = [sheet.Panel("as the model sees it", _outlined(scene, index, seen.copy()))]
        for key in pair:
            drawn = overlay.overlay(seen, real[key][index].cpu(), Style(look="lesson"))
            panels.append(sheet.Panel(key, _outlined(scene, index, drawn)))
        name = f"example-{len(examples) + 1}.png"
        title = f"{scene.titles[index]}: {scene.names[index]}, rank correlation {value:.2f}"
        pictures[name] = sheet.sheet([panels], title)
        examples.append(Example(name, title, list(pair), value))
    return pictures, examples


def _explainers(maps: Mapping[str, Tensor]) -> list[str]:
    return [key for key in maps if not key.startswith("control ")]
