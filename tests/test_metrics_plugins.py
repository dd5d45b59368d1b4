"""The metrics as plugins: those of camkit keep every promise, wrong ones are caught, calls are checked."""

from __future__ import annotations

import dataclasses
import importlib
import tomllib
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from camkit import metrics
from camkit.contracts.metric import MapBatch, Metric, Scores
from camkit.errors import BrokenPlugin, CamkitError, UsageError
from camkit.metrics import localisation, sanity
from camkit.metrics.measure import measure, passes
from camkit.registry import discovery, loading
from camkit.registry import options as registry_options
from camkit.testing import CHECKS, Subject, metric_checks, run_check, run_checks
from camkit.testing.metrics import evidence

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
BUILT_IN: dict[str, str] = PROJECT["project"]["entry-points"]["camkit.metrics"]
CATEGORIES = ("agreement", "faithfulness", "localisation", "sanity", "complexity")
# What the metadata of an installed package say is for the wheel's own test.
UNINSTALLED = [check for check in CHECKS["metric"] if check.__name__ != "check_registration"]


def the(name: str) -> type[Metric]:
    module, _, cls = BUILT_IN[name].partition(":")
    found: type[Metric] = getattr(importlib.import_module(module), cls)
    return found


@pytest.mark.parametrize("check", UNINSTALLED, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", BUILT_IN)
def test_every_metric_of_camkit_keeps_the_promises(name: str, check: Any) -> None:
    outcome = run_check(check, Subject("metric", name, the(name)))
    assert outcome.status == "passed", outcome.reason


@pytest.fixture
def of_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers the metric `mass`."""
    info = tmp_path / "camkit_mass-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-mass\nVersion: 1.0\n")
    value = BUILT_IN["energy-pointing-game"]
    (info / "entry_points.txt").write_text(f"[camkit.metrics]\nmass = {value}\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@metric_checks("mass", dist="camkit-mass")
def test_the_metric_of_another_package_as_its_author_tests_it(of_a_stranger: None, check: Any) -> None:
    check()


def test_all_metrics_are_announced_and_say_what_they_are() -> None:
    modules = [
        importlib.import_module(f"{metrics.__name__}.{m.name}") for m in iter_modules(metrics.__path__)
    ]
    classes = {
        f"{module.__name__}:{cls.__name__}"
        for module in modules
        for cls in vars(module).values()
        if isinstance(cls, type) and issubclass(cls, Metric) and cls.__module__ == module.__name__
        if hasattr(cls, "summary")  # the bases of a category have none
    }
    assert set(BUILT_IN.values()) == classes
    for name in BUILT_IN:
        found = discovery.Found("metric", name, BUILT_IN[name], "camkit", "1")
        assert loading.load(found) is the(name)
        assert discovery.summary(found) == the(name).summary != ""
        assert the(name).paper
        assert the(name).category in CATEGORIES, "a word of its own is for plugins"


def test_a_metric_without_a_category_is_of_the_others() -> None:
    """As plugins were written before there were categories."""

    class Old(Metric):
        summary, direction, range = "old", "higher", (0.0, 1.0)

        def score(self, batch: MapBatch) -> Scores:
            return Scores(batch.maps.mean((1, 2)).clamp(0, 1))

    assert Old.category == "other"
    outcome = run_check(UNINSTALLED[0], Subject("metric", "old", Old))
    assert (outcome.check, outcome.status) == ("check_declarations", "passed")


@pytest.mark.parametrize("factor", [1e-30, 1e30])
@pytest.mark.parametrize("name", BUILT_IN)
def test_the_unit_of_a_map_does_not_matter(name: str, factor: float) -> None:
    """The squares of such maps are nothing, or infinite, in float32."""
    whole = evidence()
    assert whole.explain is not None
    explain = whole.explain
    if "explain" in the(name).needs:
        whole = dataclasses.replace(whole, maps=explain(whole.inputs, whole.targets))
    other = dataclasses.replace(
        whole, maps=factor * whole.maps, explain=lambda x, classes: factor * explain(x, classes)
    )
    expected, found = (measure(made(name), name, batch).values for batch in (whole, other))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5) and found.isfinite().all()


# --- mutants: each is a good metric with one fault --------------------------------------------------


class Mutant(localisation.EnergyPointingGame):
    """Mass on the object, under another class; the faults are below."""


class Upside(Mutant):
    direction = "lower"


class SilentZeros(Mutant):
    def score(self, batch: MapBatch) -> Scores:
        return Scores(super().score(batch).values.nan_to_num())


class EmptyTruthIsAHit(Mutant):
    def score(self, batch: MapBatch) -> Scores:
        assert batch.truth is not None
        values = super().score(batch).values
        return Scores(torch.where(batch.truth.flatten(1).any(1), values, 1.0))


class LooksAtTheBatch(Mutant):
    def score(self, batch: MapBatch) -> Scores:
        values = super().score(batch).values
        return Scores((values - values.mean()).clamp(0, 1))


class DrawsFromTheGlobalGenerator(Mutant):
    def score(self, batch: MapBatch) -> Scores:
        values = super().score(batch).values
        return Scores((values - 1e-3 * torch.rand(())).clamp(0, 1))


class ChangesTheMaps(Mutant):
    def score(self, batch: MapBatch) -> Scores:
        batch.maps.clamp_(min=0).mul_(2)
        return super().score(batch)


class OutOfRange(Mutant):
    def score(self, batch: MapBatch) -> Scores:
        return Scores(100 * super().score(batch).values)


class OneForAll(Mutant):
    def score(self, batch: MapBatch) -> Scores:
        return Scores(super().score(batch).values.mean())


class LikesConstants(Mutant):
    def score(self, batch: MapBatch) -> Scores:
        values = super().score(batch).values
        return Scores(torch.where(batch.maps.flatten(1).std(1) == 0, values + 2, values))


class NeedsTheImpossible(Mutant):
    needs: ClassVar[tuple[str, ...]] = ("magic",)


class IsOfNoCategory(Mutant):
    category = "Two Words"


class IsLatency(Mutant):
    category = "latency"


class LeavesRandomWeights(sanity.SanityCascading):
    def score(self, batch: MapBatch) -> Scores:
        scores = super().score(batch)
        next(batch.module.parameters()).data.add_(1)
        return scores


class KeepsRandomWeightsAfterAnError(sanity.SanityCascading):
    def score(self, batch: MapBatch) -> Scores:
        kept = [(p, p.data.clone()) for p in batch.module.parameters()]
        for parameter, _ in kept:
            parameter.data.mul_(-1)
        scores = super().score(batch)
        for parameter, old in kept:
            parameter.data.copy_(old)
        return scores


@pytest.mark.parametrize(
    ("mutant", "check"),
    [
        (Upside, "check_direction"),
        (SilentZeros, "check_undefined"),
        (EmptyTruthIsAHit, "check_undefined"),
        (LikesConstants, "check_undefined"),
        (LooksAtTheBatch, "check_batch"),
        (DrawsFromTheGlobalGenerator, "check_seed"),
        (ChangesTheMaps, "check_no_trace"),
        (OutOfRange, "check_output"),
        (OneForAll, "check_output"),
        (NeedsTheImpossible, "check_declarations"),
        (IsOfNoCategory, "check_declarations"),
        (IsLatency, "check_declarations"),
        (LeavesRandomWeights, "check_no_trace"),
        (KeepsRandomWeightsAfterAnError, "check_no_trace_after_error"),
    ],
)
def test_a_wrong_metric_is_caught_by_the_right_check(mutant: type[Metric], check: str) -> None:
    failed = [o.check for o in run_checks(Subject("metric", "mutant", mutant)) if o.status == "failed"]
    assert check in failed


# --- calls ----------------------------------------------------------------------------------------


def made(name: str, **options: Any) -> Metric:
    metric = the(name)
    return metric(registry_options.read_options(metric.Options, options, owner=name))


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("iou", {"truth": None}, "iou .*truth"),
        ("spearman", {"reference": None}, "spearman .*reference"),
        ("max-sensitivity", {"explain": None}, "max-sensitivity .*explain"),
        ("gini", {"maps": torch.rand(4, 1, 8, 8)}, r"\[B, h, w\]"),
        ("gini", {"maps": torch.rand(0, 8, 8)}, r"\[B, h, w\]"),
        ("gini", {"inputs": torch.rand(1, 3, 32, 32)}, r"inputs .*\[1, 3, 32, 32\]"),
        ("deletion", {"targets": torch.tensor([0])}, r"targets .*\[1\].*\[4\]"),
        ("iou", {"truth": torch.ones(4, 8, 8, dtype=torch.bool)}, r"truth .*\[4, 8, 8\]"),
        ("iou", {"truth": torch.ones(4, 32, 32)}, "bool"),
        ("ssim", {"reference": torch.rand(4, 7, 7)}, r"reference .*\[4, 7, 7\]"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, parts: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure(made(name), name, dataclasses.replace(evidence(), **parts))


def test_a_metric_that_gives_no_value_for_each_image_is_broken() -> None:
    class Plain(Mutant):
        def score(self, batch: MapBatch) -> Any:
            return batch.maps.mean()

    for metric, got in ((OneForAll, r"\[\]"), (Plain, "Tensor")):
        with pytest.raises(BrokenPlugin, match=got):
            measure(metric(metric.Options()), "plain", evidence())


def test_maps_come_in_any_precision_and_from_any_mode() -> None:
    batch = evidence()
    expected = measure(made("symmetric-relevance-gain"), "x", batch).values
    with torch.inference_mode():
        half = dataclasses.replace(batch, maps=batch.maps.bfloat16(), inputs=batch.inputs.clone())
        values = measure(made("symmetric-relevance-gain"), "x", half).values
        assert torch.allclose(values, expected, atol=0.05) and values.dtype == torch.float32
        measure(made("sanity-cascading"), "x", half)
    batch.module.train()
    measure(made("deletion"), "x", dataclasses.replace(batch, maps=batch.maps.requires_grad_()))
    assert batch.module.training


def test_options_and_seed_arrive() -> None:
    batch = evidence()
    assert measure(made("deletion", steps=5), "x", batch).steps == ("0", "0.2", "0.4", "0.6", "0.8", "1")
    assert len(measure(made("sanity-cascading", stages=1), "x", batch).steps) == 1
    assert measure(made("pointing-game", tolerance=0), "x", batch).values.tolist() == [1.0] * 4
    noisy, other = (
        measure(made("road", noise=0.5), "x", dataclasses.replace(batch, seed=s)).values for s in (0, 1)
    )
    assert not torch.equal(noisy, other)


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("sanity-cascading", [0.1, 0.7], True),
        ("sanity-cascading", [0.9, 0.7], False),
        ("sanity-cascading", [torch.nan, 0.7], False),
        ("sanity-cascading", [torch.nan, torch.nan], None),
        ("gini", [0.1, 0.2], None),
    ],
)
def test_tests_are_passed_on_the_mean_of_what_is_defined(
    name: str, values: list[float], expected: bool | None
) -> None:
    assert passes(made(name), Scores(torch.tensor(values))) is expected


def test_a_model_without_weights_cannot_be_made_random() -> None:
    class Bare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3))

    with pytest.raises(CamkitError, match="random"):
        measure(made("sanity-cascading"), "x", dataclasses.replace(evidence(), module=Bare()))
