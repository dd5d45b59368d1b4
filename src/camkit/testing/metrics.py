"""Checks of metrics, on a network whose evidence is known. Each docstring says what is demanded."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.metric import MapBatch, Scores
from camkit.core.run_explainer import run
from camkit.core.targets import target_selector
from camkit.metrics.measure import measure
from camkit.registry import discovery, loading
from camkit.testing.kit import Subject, untouched

OPTIONAL = {item.name for item in dataclasses.fields(MapBatch) if item.default is None}


SIZE = 32


def evidence_model() -> nn.Sequential:
    """A classifier `[B, 3, 32, 32]` to three scores: red, green, blue; it cannot see negative values."""
    model = nn.Sequential(
        nn.Conv2d(3, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)
    )
    seen = torch.eye(3)[:, :, None, None]
    head = 50 * torch.eye(3) - 10
    model.load_state_dict(
        {"0.weight": seen, "0.bias": torch.zeros(3), "4.weight": head, "4.bias": torch.zeros(3)}
    )
    return model.eval()


def evidence(batch: int = 4) -> MapBatch:
    """A bright square in the target's colour, dim ones in the others, unseen noise; an oracle's maps."""
    model, targets = evidence_model(), torch.arange(batch) % 3
    noise = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    inputs = -noise
    truth = torch.zeros(batch, SIZE, SIZE, dtype=torch.bool)
    for i, target in enumerate(targets.tolist()):
        for colour, (top, left) in enumerate(((2, 3), (4, 20), (21, 10))):
            square = (i, slice(top + i % 3, top + i % 3 + 7), slice(left, left + 7))
            inputs[i, colour][square[1:]] = 3.0 if colour == target else 1.0
            if colour == target:
                truth[square] = True

    def explain(x: Tensor, classes: Tensor) -> Tensor:
        native = loading.make("explainer", "native")
        answer = run(native, "native", model, x, ["1"], ["gradcam"], target_selector(classes, len(x)))
        return answer.maps["gradcam", "1"][:, 0]

    oracle = truth * (1 + 0.1 * noise[:, 0])  # no two pixels of a square are equal
    return MapBatch(oracle, model, inputs, targets, truth, oracle.clone(), explain)


def score(subject: Subject, batch: MapBatch) -> Scores:
    """The scores from `measure`, as in a user's call."""
    return measure(subject.make(), subject.name, batch)


def check_declarations(subject: Subject) -> None:
    """`direction` is higher or lower, `range` is ascending, `needs` are fields of `MapBatch`.

    `category` is a word of the form [a-z0-9-]+, for `camkit bench --metrics`; not `latency`.
    """
    cls = subject.plugin
    assert cls.direction in ("higher", "lower"), f"direction is {cls.direction!r}: higher or lower"
    low, high = cls.range
    assert low < high, f"range {cls.range} must be the lowest and the highest value"
    category = cls.category
    good = isinstance(category, str) and discovery.NAME.fullmatch(category) and category != "latency"
    assert good, f"category is {category!r}: a word such as faithfulness, of the form [a-z0-9-]+"
    unknown = set(cls.needs) - OPTIONAL
    assert not unknown, f"needs names {unknown}; there are {sorted(OPTIONAL)}"
    assert cls.limit is None or low <= cls.limit <= high, f"limit {cls.limit} is outside {cls.range}"


def check_output(subject: Subject) -> None:
    """A floating-point value for each image, in range, on the maps' device, without a graph."""
    oracle = evidence()
    for what, maps in _different_maps(oracle).items():
        scores = score(subject, dataclasses.replace(oracle, maps=maps))
        values, curves = scores.values, scores.curves
        assert values.shape == (4,), f"values are {list(values.shape)} for four maps"
        assert values.is_floating_point(), f"values are {values.dtype}: NaN must be possible"
        assert values.device == maps.device and not values.requires_grad, "on the device, without a graph"
        low, high = subject.plugin.range
        wrong = values[(values < low - 1e-5) | (values > high + 1e-5)]
        assert not len(wrong), f"{what} maps score {wrong.tolist()}, outside {subject.plugin.range}"
        assert values.isfinite().all(), f"{what} maps score {values.tolist()}, though they are well defined"
        if curves is not None:
            assert curves.shape == (4, len(scores.steps)), "curves are [B, S] with S names of steps"


def check_direction(subject: Subject) -> None:
    """A perfect oracle beats its inverse; a metric that runs the explainer rates a bad one worse.

    There are two bad explainers: one never changes its map, the other always does.
    """
    oracle = evidence()
    good = float(score(subject, oracle).values.mean())
    if "explain" in subject.plugin.needs:
        assert oracle.explain is not None
        maps = oracle.explain(oracle.inputs, oracle.targets)
        good = float(score(subject, dataclasses.replace(oracle, maps=maps)).values.mean())
        draws = torch.Generator().manual_seed(0)
        others = [
            dataclasses.replace(oracle, explain=lambda x, _: oracle.maps),
            dataclasses.replace(
                oracle, explain=lambda x, _: torch.rand(len(x), SIZE, SIZE, generator=draws)
            ),
        ]
    else:
        others = [dataclasses.replace(oracle, maps=oracle.maps.amax() - oracle.maps)]
    bad = [float(score(subject, other).values.mean()) for other in others]
    assert any(_better(subject, good, one) for one in bad), (
        f"{subject.plugin.direction} is better; a perfect map scores {good:.4g}, a wrong one {bad[0]:.4g}"
    )


def check_batch(subject: Subject) -> None:
    """An image scores the same alone, in a batch, and in a batch in another order."""
    oracle = evidence()
    batch = dataclasses.replace(oracle, maps=_different_maps(oracle)["random"])
    together = score(subject, batch).values
    order = torch.tensor([2, 0, 3, 1])
    moved = score(subject, _chosen(batch, order)).values
    _same(moved, together[order], "in another order")
    for i in range(4):
        alone = score(subject, _chosen(batch, torch.tensor([i]))).values
        _same(alone, together[i : i + 1], f"image {i} alone")


def check_seed(subject: Subject) -> None:
    """The same seed gives exactly the same values, whatever the state of the global generators."""
    batch = dataclasses.replace(evidence(), seed=3)
    values = []
    for seed in (0, 1):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            values.append(score(subject, batch).values)
    assert torch.equal(*values), "two calls with one seed differ"


def check_no_trace(subject: Subject) -> None:
    """Model, inputs, maps, truth and the random generators are left as they were."""
    batch = evidence()
    parts = {
        "maps": batch.maps,
        "truth": batch.truth,
        "targets": batch.targets,
        "reference": batch.reference,
    }
    before = {name: part.clone() for name, part in parts.items() if part is not None}
    with untouched(batch.module, batch.inputs, "by the metric"):
        score(subject, batch)
    for name, part in before.items():
        assert torch.equal(part, getattr(batch, name)), f"the metric changes the {name}"


def check_no_trace_after_error(subject: Subject) -> None:
    """The same if the explainer raises halfway through: randomised weights are restored."""
    if "explain" not in subject.plugin.needs:
        return

    def explain(x: Tensor, classes: Tensor) -> Tensor:
        raise InterruptedError

    batch = dataclasses.replace(evidence(), explain=explain)
    with untouched(batch.module, batch.inputs, "after an error of the explainer"):
        try:
            score(subject, batch)
        except InterruptedError:
            return
    raise AssertionError("the explainer is needed but not called, or its error is swallowed")


def check_undefined(subject: Subject) -> None:
    """Without truth, or with a broken map, a score is NaN. A constant map never beats a perfect one.

    Another library counts an empty truth as a hit; an average over silent zeros says nothing.
    """
    oracle = evidence()
    perfect = score(subject, oracle).values
    undefined: dict[str, dict[str, Any]] = {
        "a map of NaN": {"maps": _with_first(oracle.maps, math.nan)},
        "an infinite map": {"maps": _with_first(oracle.maps, math.inf)},
        "an empty map": {"maps": _with_first(oracle.maps, 0.0)},
    }
    if "truth" in subject.plugin.needs and oracle.truth is not None:
        undefined["an empty truth"] = {"truth": _with_first(oracle.truth, False)}
    if "reference" in subject.plugin.needs and oracle.reference is not None:
        undefined["a reference of NaN"] = {"reference": _with_first(oracle.reference, math.nan)}
    for what, parts in undefined.items():
        values = score(subject, dataclasses.replace(oracle, **parts)).values
        assert values[0].isnan(), f"{what} scores {float(values[0]):.4g}, not NaN"
        _same(values[1:], perfect[1:], f"images beside {what}")
    constant = score(subject, dataclasses.replace(oracle, maps=_with_first(oracle.maps, 1.0))).values
    assert not _better(subject, float(constant[0]), float(perfect[0])), "a constant map beats the oracle"


def _different_maps(oracle: MapBatch) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(9)
    return {
        "perfect": oracle.maps,
        "inverted": oracle.maps.amax() - oracle.maps,
        "random": torch.randn(oracle.maps.shape, generator=generator),
    }


def _better(subject: Subject, one: float, other: float) -> bool:
    return one > other + 1e-6 if subject.plugin.direction == "higher" else one < other - 1e-6


def _chosen(batch: MapBatch, rows: Tensor) -> MapBatch:
    """The images `rows` of a batch."""
    parts = {
        name: part[rows]
        for name in ("maps", "inputs", "targets", "truth", "reference")
        if (part := getattr(batch, name)) is not None
    }
    return dataclasses.replace(batch, **parts)


def _with_first(part: Tensor, value: float) -> Tensor:
    changed = part.clone()
    changed[0] = value
    return changed


def _same(actual: Tensor, expected: Tensor, what: str) -> None:
    good = torch.allclose(actual, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert good, f"{what}: {actual.tolist()}, not {expected.tolist()}"
