"""FunnyBirds: drawn birds, each without each of its parts, so that it is known what a part is for.

R. Hesse, S. Schaub-Meyer, S. Roth, "FunnyBirds", ICCV 2023, arXiv:2308.06248. The protocols are those of
the paper's published evaluation, for maps: the importance of a part is the sum of the map on it, grown by
two pixels, and a part is important if that is more than a share of the whole sum. Of 80 shares, 1 to 50 %,
the one with the best sum of completeness and distractibility counts for all figures that need one.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from camkit.bench.published_task import Figure, Task, mean, scores
from camkit.core.scored import classifier
from camkit.errors import UsageError, counted, reason, typed_reason
from camkit.files import read_regular
from camkit.images import channels, decoding, finding
from camkit.metrics.agreement import spearman
from camkit.metrics.map_tools import resized
from camkit.models.loading import load_quietly

# What the colours of a part map mean; eyes, feet and wings come in pairs.
COLOURS = {
    (255, 255, 253): "eye",
    (255, 255, 254): "eye",
    (255, 255, 0): "beak",
    (255, 0, 1): "foot",
    (255, 0, 2): "foot",
    (0, 255, 1): "wing",
    (0, 255, 2): "wing",
    (0, 0, 255): "tail",
}
TESTED = 500  # birds of the test set
GROWN = 5  # pixels of the square by which a part grows
SHARES = torch.linspace(0.01, 0.50, 80, dtype=torch.float64)
RELEVANT = 0.05  # of the score; what changes it by less is irrelevant
SHARED = 2  # parts that the two other classes of target sensitivity have in common with the bird's
MAX_JSON = 2**26

# ResNet-50 with input-x-gradient, in the order of the paper's own printout.
FIGURES = {
    "accuracy": 0.998,
    "controlled synthetic data check": 0.7353,
    "preservation check": 0.602,
    "deletion check": 0.532,
    "distractibility": 0.54372,
    "background independence": 0.99826,
    "single deletion": 0.54592,
    "target sensitivity": 0.806,
}
OF_MODEL = {"accuracy", "background independence"}  # whatever the method


# --- the data -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bird:
    """A photograph of the test set: its number, its class, and how many things stand behind it."""

    index: int
    kind: int
    things: int


@dataclass(frozen=True)
class Birds:
    """The test set in the folder `FunnyBirds`, as it is unpacked.

    parts: their names. kinds: by class, which variant of each part it has.
    """

    folder: Path
    parts: tuple[str, ...]
    kinds: tuple[Mapping[str, int], ...]
    birds: tuple[Bird, ...] = field(repr=False)

    @classmethod
    def read(cls, folder: Path) -> Birds:
        """Raises `UsageError` if it is not that data set."""
        parts, kinds, test = (
            _json(folder / f"{name}.json") for name in ("parts", "classes", "dataset_test")
        )
        try:
            if {*parts} != {*COLOURS.values()}:
                raise ValueError(f"parts.json names {', '.join(map(str, parts))}")
            if not kinds or not test:
                raise ValueError("it has no classes or no birds")
            return cls(
                folder=folder,
                parts=tuple(str(part) for part in parts),
                kinds=tuple({part: int(kind["parts"][part]) for part in parts} for kind in kinds),
                birds=tuple(Bird(i, int(bird["class_idx"]), _things(bird)) for i, bird in enumerate(test)),
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"{finding.display(folder)} is not the data set FunnyBirds: {typed_reason(error)}"
            ) from None

    def picture(self, bird: Bird) -> Tensor:
        """`[3, H, W]`, 0 to 1."""
        return _values(self._file("test", bird, ".png")) / 255

    def part_map(self, bird: Bird) -> Tensor:
        """The same with a colour for each part, 0 to 255."""
        return _values(self._file("test_part_map", bird, ".png"))

    def without(self, bird: Bird, parts: frozenset[str]) -> Tensor:
        """The picture of the bird without some parts."""
        kept = "_".join(sorted(set(self.parts) - parts))
        return _values(self._file("test_interventions", bird, "") / f"body_{kept}.png") / 255

    def without_thing(self, bird: Bird, number: int) -> Tensor:
        """The picture without one of the things behind the bird."""
        folder = self._file("test_interventions", bird, "")
        return _values(folder / "background_interventions" / f"{number}.png") / 255

    def _file(self, of: str, bird: Bird, suffix: str) -> Path:
        return self.folder / of / str(bird.kind) / f"{bird.index:06d}{suffix}"

    @cached_property
    def sufficient(self) -> tuple[tuple[frozenset[str], ...], ...]:
        """By class, the smallest sets of parts that no other class has alike."""
        return tuple(sufficient_parts(self.kinds, kind) for kind in range(len(self.kinds)))


def _json(path: Path) -> Any:
    name = finding.display(path)
    try:
        return json.loads(read_regular(path, MAX_JSON))
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {reason(error)} (a part of FunnyBirds.zip)") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no JSON: {reason(error)}") from None


def _things(bird: Mapping[str, Any]) -> int:
    """How many numbers the first text about the background has: one for each thing."""
    return len(re.findall(r"\b\d+\b", next(str(v) for key, v in bird.items() if key.startswith("bg_"))))


def _values(path: Path) -> Tensor:
    """The colours of an RGBA picture, float32 `[3, H, W]`, without being laid on white."""
    image = channels.carried(decoding.load(path, 4).image)
    return torch.from_numpy(image[..., :3].copy()).permute(2, 0, 1).float()


def sufficient_parts(kinds: Sequence[Mapping[str, int]], kind: int) -> tuple[frozenset[str], ...]:
    """The smallest sets of parts by which class `kind` differs from every other."""
    own, others = kinds[kind], [other for i, other in enumerate(kinds) if i != kind]
    found: list[frozenset[str]] = []
    for size in range(1, len(own) + 1):
        for parts in map(frozenset, itertools.combinations(own, size)):
            if not any(smaller < parts for smaller in found) and not any(
                all(other[part] == own[part] for part in parts) for other in others
            ):
                found.append(parts)
    return tuple(found)


def other_kinds(
    kinds: Sequence[Mapping[str, int]], kind: int
) -> tuple[tuple[int, frozenset[str]], tuple[int, frozenset[str]]] | None:
    """Two classes that have other parts in common with class `kind`, two each; `None` if there are none."""
    own = kinds[kind]
    alike = [
        (i, frozenset(part for part in own if other[part] == own[part])) for i, other in enumerate(kinds)
    ]
    near = [(i, parts) for i, parts in alike if len(parts) == SHARED]
    return next(((a, b) for a, b in itertools.combinations(near, 2) if a[1].isdisjoint(b[1])), None)


# --- what a map says of the parts -----------------------------------------------------------------------


def importances(attribution: Tensor, part_map: Tensor, things: int = 0) -> dict[str, float]:
    """The sum of a map `[H, W]` on each part, and on each of so many things behind the bird."""
    colours = dict(COLOURS) | {(204, 204, 204 + i): _thing(i) for i in range(things)}
    found = dict.fromkeys(colours.values(), 0.0)
    for colour, part in colours.items():
        here = (part_map == torch.tensor(colour)[:, None, None]).all(0).float()
        grown = F.max_pool2d(here[None, None], GROWN, stride=1, padding=GROWN // 2)[0, 0]
        found[part] += float((attribution.double() * grown).sum())
    return found


def important(values: Mapping[str, float], total: float) -> list[frozenset[str]]:
    """For each of `SHARES`, the parts whose importance is more than that share of the map's sum."""
    return [
        frozenset(part for part, value in values.items() if value > total * share)
        for share in SHARES.tolist()
    ]


def _thing(number: int) -> str:
    return f"bg_{number:03d}"


# --- one bird -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What was found of one bird; lists have a value for each of `SHARES`, `None` where it does not count.

    background: whether each thing behind it leaves the score as it is.
    """

    correct: bool
    check: list[float] | None
    preserved: list[float]
    deleted: list[float]
    distracted: list[float] | None
    background: list[bool]
    correlation: float | None
    sensitive: list[float]


def examine(data: Birds, bird: Bird, module: nn.Module, task: Task, method: str) -> Finding:
    """Explain one bird and take its parts away."""
    device = next(module.parameters()).device
    inputs, part_map = data.picture(bird)[None].to(device), data.part_map(bird)
    own = scores(module, inputs)[0]
    predicted, pair = int(own.argmax()), other_kinds(data.kinds, bird.kind)
    others = [kind for kind, _ in pair] if pair else []
    maps = task.maps(module, inputs, [bird.kind, predicted, *others], method)
    target, guess, *rest = resized(maps, inputs.shape[-2:]).cpu()

    picked = important(importances(guess, part_map), float(guess.double().sum()))
    everything = frozenset(data.parts)
    needed = {frozenset({part}) for part in data.parts} | {parts for _, parts in pair or ()}
    needed |= {*picked, *(everything - parts for parts in picked)}
    order = sorted(needed, key=sorted)
    pictures = [data.without(bird, parts) for parts in order]
    pictures += [data.without_thing(bird, i) for i in range(bird.things)]
    said = scores(module, torch.stack(pictures).to(device))
    without = dict(zip(order, said, strict=False))
    things = said[len(order) :]

    def same(parts: frozenset[str]) -> bool:
        return int(without[parts].argmax()) == predicted

    on_parts = importances(target, part_map, bird.things)
    total = float(target.double().sum())
    drops = {part: float(own[bird.kind] - without[frozenset({part})][bird.kind]) for part in data.parts}
    behind = {_thing(i): float(own[bird.kind] - row[bird.kind]) for i, row in enumerate(things)}
    bound = abs(RELEVANT * float(own[bird.kind]))
    idle = {part for part, drop in (drops | behind).items() if abs(drop) < bound or drop < 0}
    chosen = important(on_parts, total)
    return Finding(
        correct=predicted == bird.kind,
        check=None
        if predicted != bird.kind
        else [_share(parts, data.sufficient[bird.kind]) for parts in chosen],
        preserved=[float(same(everything - parts)) for parts in picked],
        deleted=[float(not same(parts)) for parts in picked],
        distracted=[1 - len(parts & idle) / len(idle) for parts in chosen] if idle else None,
        background=[abs(drop) < bound or drop <= 0 for drop in behind.values()],
        correlation=_correlation(drops, on_parts),
        sensitive=_sensitive(pair, rest, own, without, part_map) if pair else [],
    )


def _share(parts: frozenset[str], sets: Sequence[frozenset[str]]) -> float:
    """How much of one of the smallest sufficient sets is among the parts, at best."""
    return max((len(parts & one) / len(one) for one in sets), default=0.0)


def _correlation(drops: Mapping[str, float], found: Mapping[str, float]) -> float | None:
    """The rank correlation of what parts are worth and what the map says, brought to 0 to 1."""
    first, second = ([values[part] for part in drops] for values in (drops, found))
    value = float(spearman(torch.tensor([[first]]).double(), torch.tensor([[second]]).double()))
    return None if math.isnan(value) else 0.5 + 0.5 * value


def _sensitive(
    pair: tuple[tuple[int, frozenset[str]], tuple[int, frozenset[str]]],
    maps: Sequence[Tensor],
    own: Tensor,
    without: Mapping[frozenset[str], Tensor],
    part_map: Tensor,
) -> list[float]:
    """For each of two classes, whether its map has more on the parts that it shares than the other's has.

    Nothing if the model itself does not hold each pair of parts for its own class.
    """
    (a, parts_a), (b, parts_b) = pair
    change = {parts: without[parts] - own for parts in (parts_a, parts_b)}
    if not (change[parts_a][a] < change[parts_b][a] and change[parts_b][b] < change[parts_a][b]):
        return []
    on_a, on_b = (importances(one, part_map) for one in maps)

    def of(values: Mapping[str, float], parts: frozenset[str]) -> float:
        return sum(values[part] for part in parts)

    return [
        float(of(on_a, parts_a) > of(on_b, parts_a)),
        float(of(on_a, parts_b) < of(on_b, parts_b)),
    ]


# --- all of them ----------------------------------------------------------------------------------------


def measure(task: Task) -> tuple[list[Figure], list[str]]:
    """The eight figures of a model and a method, and what is to be said of them."""
    data = Birds.read(task.folder)
    model = load_quietly(task.spec, device=task.device, trust_pickle=task.trust_pickle, **task.facts)
    module = classifier(model)
    if len(model.classes) != len(data.kinds):
        classes = counted(len(model.classes), "class", "classes")
        raise UsageError(f"{model.name} has {classes}, FunnyBirds {len(data.kinds)}")
    (method,) = task.methods
    found = []
    birds = task.first(data.birds)
    for number, bird in enumerate(birds, 1):
        found.append(examine(data, bird, module, task, method))
        if number % 50 == 0 or number == len(birds):
            task.progress(f"{number} of {len(birds)} birds")
    rows, remarks = figures(found)
    return rows, [*task.too_few(len(birds), TESTED), *remarks]


def figures(found: Sequence[Finding]) -> tuple[list[Figure], list[str]]:
    """The means over all birds, at the share that is best for completeness and distractibility together."""
    curves = [
        _curve([one.check for one in found]),
        _curve([one.preserved for one in found]),
        _curve([one.deleted for one in found]),
        _curve([one.distracted for one in found]),
    ]
    filled = [torch.zeros_like(SHARES) if curve is None else curve for curve, _ in curves]
    sums = ((filled[0] + filled[1] + filled[2]) / 3 + filled[3]).tolist()
    best = sums.index(max(sums))
    at = [(None if curve is None else float(curve[best]), count) for curve, count in curves]
    things = [float(idle) for one in found for idle in one.background]
    correlations = [one.correlation for one in found if one.correlation is not None]
    sensitive = [value for one in found for value in one.sensitive]
    values = [
        (mean([float(one.correct) for one in found]), len(found)),
        *at,
        (mean(things), len(things)),
        (mean(correlations), len(correlations)),
        (mean(sensitive), len(sensitive)),
    ]
    rows = [
        Figure(name, value, count, published)
        for (name, published), (value, count) in zip(FIGURES.items(), values, strict=True)
    ]
    return rows, [f"a part is important from {float(SHARES[best]):.3f} of the map's sum on"]


def _curve(rows: Sequence[list[float] | None]) -> tuple[Tensor | None, int]:
    """The mean for each share, and of how many birds."""
    counted_rows = [row for row in rows if row is not None]
    if not counted_rows:
        return None, 0
    return torch.tensor(counted_rows, dtype=torch.float64).mean(0), len(counted_rows)
