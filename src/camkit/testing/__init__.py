"""The conformance kit: what camkit promises its users about every plugin, as checks that anyone can run.

    from camkit.testing import explainer_checks

    @explainer_checks("my-backend", dist="camkit-my-backend", expected_failures={"check_batch": "issue 7"})
    def test_conformance(check):
        check()

Each check is a plain function whose docstring says what it demands and which real failure prompted it.
`camkit plugin check NAME` runs the same functions outside pytest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from camkit.registry import discovery, loading
from camkit.registry.discovery import Kind
from camkit.testing import attention, commands, engines, explainers, metrics, sources, strangers, trainers
from camkit.testing.kit import Subject, reference_inputs, reference_model

__all__ = [
    "CHECKS",
    "Outcome",
    "Subject",
    "engine_checks",
    "explainer_checks",
    "metric_checks",
    "model_source_checks",
    "reference_inputs",
    "reference_model",
    "run_check",
    "run_checks",
    "subject_of",
    "trainer_checks",
]

Check = Callable[[Subject], None]

CHECKS: dict[Kind, tuple[Check, ...]] = {
    "explainer": (
        explainers.check_registration,
        explainers.check_declarations,
        explainers.check_options,
        explainers.check_output,
        explainers.check_by_hand,
        explainers.check_by_hand_before_inplace_relu,
        explainers.check_targets,
        explainers.check_classes_differ,
        explainers.check_determinism,
        explainers.check_batch,
        explainers.check_class_maps,
        explainers.check_no_trace,
        explainers.check_no_trace_after_error,
        explainers.check_no_trace_after_wrong_target,
        explainers.check_gradient_modes,
        explainers.check_frozen,
        explainers.check_train_mode,
        explainers.check_channels_last,
        explainers.check_bfloat16,
        explainers.check_memory,
        explainers.check_threads,
        strangers.check_rows,
        strangers.check_layouts,
        strangers.check_layout_given,
        strangers.check_hooks_of_others,
        strangers.check_no_grad_body,
        strangers.check_current_weights,
        strangers.check_float16,
        attention.check_attention,
        strangers.check_scores,
        strangers.check_forwards,
    ),
    "metric": (
        explainers.check_registration,
        metrics.check_declarations,
        explainers.check_options,
        metrics.check_output,
        metrics.check_direction,
        metrics.check_batch,
        metrics.check_seed,
        metrics.check_no_trace,
        metrics.check_no_trace_after_error,
        metrics.check_undefined,
    ),
    "model": (
        explainers.check_registration,
        sources.check_load,
        sources.check_repeatable,
        sources.check_layer,
        sources.check_unknown_reference,
        sources.check_bundle,
    ),
    "engine": (
        explainers.check_registration,
        explainers.check_options,
        engines.check_parts,
        engines.check_outcomes,
        engines.check_rows,
        engines.check_failures,
        engines.check_errors,
        engines.check_closing,
    ),
    "command": (commands.check_registration, commands.check_help, commands.check_errors),
    "trainer": (
        explainers.check_registration,
        explainers.check_options,
        trainers.check_trains,
        trainers.check_bundle_written,
        trainers.check_seed,
        trainers.check_nothing_outside,
        trainers.check_bad_data,
        trainers.check_interrupt,
    ),
}


@dataclass(frozen=True)
class Outcome:
    """The result of a check: `passed`, `failed`, or `waived` (failed as expected)."""

    check: str
    status: Literal["passed", "failed", "waived"]
    demand: str
    reason: str = ""


def subject_of(kind: Kind, name: str, **details: Any) -> Subject:
    """The installed plugin `name` as a subject."""
    return Subject(kind, name, loading.load(discovery.get(kind, name)), **details)


def run_check(check: Check, subject: Subject, waivers: Mapping[str, str] | None = None) -> Outcome:
    """Run one check. A waived check must fail: an unexpected pass is a failure."""
    name = check.__name__
    demand = (check.__doc__ or "").strip().splitlines()[0]
    waiver = (waivers or {}).get(name)
    try:
        check(subject)
    # A plugin may raise anything at all; for the kit that is a failed check.
    except Exception as error:
        reason = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
        return Outcome(name, "waived" if waiver else "failed", demand, waiver or reason)
    if waiver:
        return Outcome(name, "failed", demand, f"passes, but was expected to fail: {waiver}")
    return Outcome(name, "passed", demand)


def run_checks(subject: Subject, expected_failures: Mapping[str, str] | None = None) -> list[Outcome]:
    """Run every check of the subject's kind, in order. A waiver of an unknown check is a failure."""
    checks = CHECKS[subject.kind]
    known = {check.__name__ for check in checks}
    unknown = [
        Outcome(name, "failed", "Waivers name checks that exist.", f"there is no check {name!r}")
        for name in expected_failures or {}
        if name not in known
    ]
    return unknown + [run_check(check, subject, expected_failures) for check in checks]


def explainer_checks(
    name: str,
    *,
    dist: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """Decorator: one pytest test for each explainer check; the test calls its argument `check`.

    dist: the package that must provide the plugin. expected_failures: reasons by check name; strict.
    options: for every instance, for example to speed up a slow method.
    """
    return _parametrised("explainer", name, expected_failures, dist=dist, options=options or {})


def metric_checks(
    name: str,
    *,
    dist: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """Like `explainer_checks`, for a metric."""
    return _parametrised("metric", name, expected_failures, dist=dist, options=options or {})


def model_source_checks(
    name: str,
    *,
    reference: str,
    dist: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[[Any], Any]:
    """Like `explainer_checks`, for a model source; `reference` is a model that loads offline."""
    return _parametrised("model", name, expected_failures, dist=dist, reference=reference)


def engine_checks(
    name: str,
    *,
    dist: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """Like `explainer_checks`, for an engine."""
    return _parametrised("engine", name, expected_failures, dist=dist, options=options or {})


def trainer_checks(
    name: str,
    *,
    dist: str | None = None,
    expected_failures: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
    request: Mapping[str, Any] | None = None,
) -> Callable[[Any], Any]:
    """Like `explainer_checks`, for a trainer.

    options, and fields of the `TrainRequest` such as `arch`, should keep training to a few seconds.
    """
    details = {"dist": dist, "options": options or {}, "request": request or {}}
    return _parametrised("trainer", name, expected_failures, **details)


def _parametrised(
    kind: Kind, name: str, waivers: Mapping[str, str] | None, **details: Any
) -> Callable[[Any], Any]:
    import pytest

    checks = {check.__name__: check for check in CHECKS[kind]}
    unknown = [waived for waived in waivers or {} if waived not in checks]
    if unknown:
        raise ValueError(f"expected_failures names unknown checks {unknown}; known: {', '.join(checks)}")

    def call(check: Check) -> None:
        outcome = run_check(check, subject_of(kind, name, **details), waivers)
        if outcome.status == "waived":
            pytest.xfail(outcome.reason)
        if outcome.status == "failed":
            pytest.fail(f"{outcome.check}: {outcome.reason}\n{outcome.demand}", pytrace=False)

    arguments: Sequence[Any] = [pytest.param(partial(call, c), id=n) for n, c in checks.items()]
    return pytest.mark.parametrize("check", arguments)
