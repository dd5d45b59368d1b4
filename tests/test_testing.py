"""The conformance kit: camkit's own plugins pass, and every wrong plugin is caught by the right check."""

from __future__ import annotations

import queue
import random
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from threading import Thread
from time import sleep
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from camkit.contracts.engine import Outcome, Part
from camkit.contracts.explainer import Explainer, Query
from camkit.contracts.options import option
from camkit.contracts.trainer import Trainer, TrainRequest
from camkit.core.layout import OpenLayout
from camkit.engines.local import LocalEngine
from camkit.errors import CamkitError, LayerError, TargetError, UsageError
from camkit.native.explainer import Native
from camkit.testing import (
    CHECKS,
    Subject,
    engine_checks,
    explainer_checks,
    model_source_checks,
    run_check,
    run_checks,
)

FEW = {"masks": 200, "cells": 3, "tolerance": 0, "steps": 8, "samples": 8}


@explainer_checks("native", dist="camkit", options=FEW)
def test_native(check: Any) -> None:
    check()


@model_source_checks("timm", reference="test_resnet@none", dist="camkit")
def test_timm(check: Any) -> None:
    check()


@model_source_checks("torchvision", reference="squeezenet1_1@none", dist="camkit")
def test_torchvision(check: Any) -> None:
    check()


@model_source_checks("imagenet", reference="", dist="camkit")
def test_imagenet(check: Any) -> None:
    check()


@engine_checks("local", dist="camkit")
def test_local(check: Any) -> None:
    check()


# --- mutants: each is native with one fault -------------------------------------------------------


class Mutant(Native):
    """Native under another class; the faults are below."""

    many = Explainer.many  # one call of `maps` for each class, as most plugins do

    def maps(self, query: Query) -> Tensor:
        return Native(self.options).maps(query)


class LeavesAHook(Mutant):
    def maps(self, query: Query) -> Tensor:
        query.layer_module.register_forward_hook(lambda *_: None)
        return super().maps(query)


class LeavesAHookAfterAnError(Mutant):
    def maps(self, query: Query) -> Tensor:
        handle = query.layer_module.register_forward_hook(lambda *_: None)
        maps = super().maps(query)
        handle.remove()
        return maps


class CallsEval(Mutant):
    def maps(self, query: Query) -> Tensor:
        query.module.eval()
        return super().maps(query)


class Rectifies(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(query).clamp(min=0)


class Scales(Mutant):
    def maps(self, query: Query) -> Tensor:
        maps = super().maps(query)
        return maps / maps.abs().amax((1, 2), keepdim=True).clamp(min=1e-9)


class IgnoresTargets(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(replace(query, targets=torch.zeros_like(query.targets)))


class UsesTheFirstTarget(Mutant):
    def maps(self, query: Query) -> Tensor:
        first = query.targets[:1].expand(len(query.targets))
        return super().maps(replace(query, targets=first))


class ChangesTheInputs(Mutant):
    def maps(self, query: Query) -> Tensor:
        query.inputs.add_(1)
        return super().maps(query)


class DrawsFromTorch(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(query) * (1 + 0 * torch.rand(1))


class DrawsFromNumpy(Mutant):
    def maps(self, query: Query) -> Tensor:
        np.random.rand()
        return super().maps(query)


class DrawsFromPython(Mutant):
    def maps(self, query: Query) -> Tensor:
        random.random()
        return super().maps(query)


class IsNoisy(Mutant):
    def maps(self, query: Query) -> Tensor:
        noise = torch.randn(
            1, generator=torch.Generator().manual_seed(random.SystemRandom().getrandbits(32))
        )
        return super().maps(query) + noise * 1e-3


class ReadsTheGlobalGenerator(Mutant):
    """And leaves it as it was."""

    def maps(self, query: Query) -> Tensor:
        with torch.random.fork_rng([]):
            return super().maps(query) + torch.rand(1) * 1e-3


class LeavesGradients(Mutant):
    def maps(self, query: Query) -> Tensor:
        with torch.enable_grad():
            query.module(query.inputs).sum().backward()
        return super().maps(query)


class WipesGradients(Mutant):
    def maps(self, query: Query) -> Tensor:
        query.module.zero_grad()
        return super().maps(query)


class NeedsGradients(Mutant):
    def maps(self, query: Query) -> Tensor:
        with torch.enable_grad():
            query.module(query.inputs).sum().backward(retain_graph=True)
        for parameter in query.module.parameters():
            parameter.grad = None
        return super().maps(query)


class Freezes(Mutant):
    def maps(self, query: Query) -> Tensor:
        query.module.requires_grad_(False)
        return super().maps(query)


class MixesTheBatch(Mutant):
    def maps(self, query: Query) -> Tensor:
        maps = super().maps(query)
        return maps - maps.mean(0, keepdim=True) + 1


class Upsamples(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(query)[:, None]


class KeepsAGraph(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(query) * torch.ones(1, requires_grad=True)


class ReturnsHalf(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(query).half()


class ReturnsNan(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(query).log()


class KeepsTheModel(Mutant):
    kept: ClassVar[list[Any]] = []

    def maps(self, query: Query) -> Tensor:
        self.kept.append(query.module)
        return super().maps(query)


class SharesState(Mutant):
    """Parks the model in a class attribute between two steps, as libraries with global hooks do."""

    parked: ClassVar[Any] = None

    def maps(self, query: Query) -> Tensor:
        import time

        SharesState.parked = query.module
        time.sleep(0.002)
        module = SharesState.parked
        SharesState.parked = None
        return super().maps(replace(query, module=module))


class BreaksInHalf(Mutant):
    def maps(self, query: Query) -> Tensor:
        if query.inputs.dtype == torch.bfloat16:
            raise TypeError("got unsupported ScalarType BFloat16")
        return super().maps(query)


class SwallowsErrors(Mutant):
    def maps(self, query: Query) -> Tensor:
        try:
            return super().maps(query)
        except RuntimeError:
            return torch.zeros(len(query.inputs), 8, 8)


class ForgetsTheClassMaps(Mutant):
    def many(self, sweep: Any) -> Any:
        return {key: maps.flip(1) for key, maps in super().many(sweep).items()}


@dataclass
class ThawedOptions:
    size: int = option(1, help="a number")


class HasThawedOptions(Mutant):
    Options = ThawedOptions


@dataclass(frozen=True)
class SilentOptions:
    size: int = 1


class HasOptionsWithoutHelp(Mutant):
    Options = SilentOptions


class DeclaresTooMuch(Mutant):
    class_agnostic = ("gradcam", "activations")


class SeesNoAttention(Mutant):
    def maps(self, query: Query) -> Tensor:
        try:
            return super().maps(query)
        except UsageError:
            return torch.zeros(len(query.inputs), 4, 4)


class DeclaresNoFloat32(Mutant):
    dtypes = ("float64",)


MUTANTS: list[tuple[type[Explainer], str]] = [
    (LeavesAHook, "check_no_trace"),
    (LeavesAHookAfterAnError, "check_no_trace_after_error"),
    (CallsEval, "check_no_trace"),
    (Rectifies, "check_by_hand"),
    (Scales, "check_by_hand"),
    (IgnoresTargets, "check_classes_differ"),
    (IgnoresTargets, "check_attention"),
    (SeesNoAttention, "check_attention"),
    (UsesTheFirstTarget, "check_batch"),
    (ChangesTheInputs, "check_no_trace"),
    (DrawsFromTorch, "check_determinism"),
    (DrawsFromNumpy, "check_determinism"),
    (DrawsFromPython, "check_determinism"),
    (IsNoisy, "check_determinism"),
    (ReadsTheGlobalGenerator, "check_determinism"),
    (LeavesGradients, "check_no_trace"),
    (WipesGradients, "check_no_trace"),
    (NeedsGradients, "check_frozen"),
    (Freezes, "check_no_trace"),
    (MixesTheBatch, "check_batch"),
    (Upsamples, "check_output"),
    (KeepsAGraph, "check_output"),
    (ReturnsHalf, "check_output"),
    (ReturnsNan, "check_output"),
    (KeepsTheModel, "check_memory"),
    (SharesState, "check_threads"),
    (BreaksInHalf, "check_bfloat16"),
    (SwallowsErrors, "check_no_trace_after_error"),
    (ForgetsTheClassMaps, "check_class_maps"),
    (HasThawedOptions, "check_options"),
    (HasOptionsWithoutHelp, "check_options"),
    (DeclaresTooMuch, "check_classes_differ"),
    (DeclaresNoFloat32, "check_declarations"),
    (Mutant, "check_registration"),  # not the class that the entry point `native` leads to
]

BY_NAME = {check.__name__: check for check in CHECKS["explainer"]}


@pytest.mark.parametrize(("mutant", "check"), MUTANTS, ids=lambda x: getattr(x, "__name__", x))
def test_mutant_is_caught(mutant: type[Explainer], check: str) -> None:
    outcome = run_check(BY_NAME[check], Subject("explainer", "native", mutant, FEW))
    assert outcome.status == "failed", f"{mutant.__name__} passes {check}"
    assert outcome.reason


def test_the_unchanged_mutant_passes_everything_but_its_registration() -> None:
    outcomes = run_checks(Subject("explainer", "native", Mutant, FEW))
    assert {o.check for o in outcomes if o.status != "passed"} == {"check_registration"}


class ReadsOverwritten(Mutant):
    """Keeps the very tensor that an in-place ReLU overwrites, as pytorch-grad-cam and torchcam do."""

    def maps(self, query: Query) -> Tensor:
        kept: list[Tensor] = []
        handle = query.layer_module.register_forward_hook(lambda m, i, o: kept.append(o.detach()))
        try:
            maps = super().maps(query)
            with torch.no_grad():
                query.module(query.inputs)
        finally:
            handle.remove()
        overwritten = (kept[-1] < 0).sum() == 0 and query.method == "gradcam"
        return maps.clamp(min=0) if overwritten else maps


class ChoosesTheLowest(Mutant):
    """Without a target; as where scores are taken for losses."""

    def many(self, sweep: Any) -> Any:
        def choose(scores: Tensor) -> Tensor:
            sweep.choose(scores)
            return scores.argmin(1, keepdim=True)

        return super().many(sweep if sweep.targets is not None else replace(sweep, choose=choose))


class WrapsEveryError(Mutant):
    """Of one method only: what a wrong class does to a library is told as a failure of the library."""

    def maps(self, query: Query) -> Tensor:
        try:
            return super().maps(query)
        except TargetError as error:
            if query.method != "hirescam":
                raise
            raise UsageError("the library failed") from error


class HooksBeforeChoosing(Mutant):
    def many(self, sweep: Any) -> Any:
        handle = sweep.module.get_submodule(sweep.layers[0]).register_forward_hook(lambda *_: None)
        result = super().many(sweep)
        handle.remove()
        return result


class DependsOnStrides(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(query) * query.inputs.stride(1)


SUBTLE: list[tuple[type[Explainer], str]] = [
    (ReadsOverwritten, "check_by_hand_before_inplace_relu"),
    (ChoosesTheLowest, "check_targets"),
    (WrapsEveryError, "check_targets"),
    (HooksBeforeChoosing, "check_no_trace_after_wrong_target"),
    (DependsOnStrides, "check_channels_last"),
]


@pytest.mark.parametrize(("mutant", "check"), SUBTLE, ids=lambda x: getattr(x, "__name__", x))
def test_subtle_mutant_is_caught(mutant: type[Explainer], check: str) -> None:
    assert run_check(BY_NAME[check], Subject("explainer", "native", mutant)).status == "failed"


# --- mutants that go wrong on the models of strangers ---------------------------------------------


def by_hook(query: Query, *, prepend: bool = True) -> Tensor:
    """Grad-CAM of a feature map as tutorials write it, `[rows, h, w]` in the type of the model."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()

    handle = query.layer_module.register_forward_hook(keep, prepend=prepend)
    try:
        with torch.enable_grad():
            scores = query.module(query.inputs)
    finally:
        handle.remove()
    query.seen(scores.detach())
    (gradient,) = torch.autograd.grad(scores.gather(1, query.targets[:, None]).sum(), kept[0])
    return (gradient.mean((2, 3), keepdim=True) * kept[0].detach()).sum(1)


class TakesRowsForImages(Mutant):
    def maps(self, query: Query) -> Tensor:
        try:
            return super().maps(query)
        except LayerError:
            return by_hook(query)[: len(query.inputs)]


class GuessesTheLayout(Mutant):
    def maps(self, query: Query) -> Tensor:
        try:
            return super().maps(query)
        except OpenLayout:
            return super().maps(replace(query, layout="channels-last"))


class IgnoresTheLayout(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(replace(query, layout=None))


class HooksBehindOthers(Mutant):
    def maps(self, query: Query) -> Tensor:
        plain = query.method == "gradcam" and query.layer_module._forward_hooks
        return by_hook(query, prepend=False) if plain else super().maps(query)


class TakesNoGradientForZero(Mutant):
    def maps(self, query: Query) -> Tensor:
        try:
            return super().maps(query)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            return torch.zeros(len(query.inputs), 8, 8)


class KeepsMaps(Mutant):
    """For as long as no tensor of the model counts a write."""

    def maps(self, query: Query) -> Tensor:
        kept: dict[Any, Tensor] = vars(self).setdefault("kept", {})
        state = query.module.state_dict(keep_vars=True).values()
        asked = (query.method, id(query.module), *query.targets.tolist())
        key = (*asked, *((id(tensor), tensor._version) for tensor in state))
        if key not in kept:
            kept[key] = super().maps(query)
        return kept[key]


class StaysInHalf(Mutant):
    def maps(self, query: Query) -> Tensor:
        half = query.inputs.dtype == torch.float16 and query.method == "gradcam"
        return by_hook(query).float() if half else super().maps(query)


class HasOtherNeighboursInHalf(Mutant):
    def maps(self, query: Query) -> Tensor:
        if query.inputs.dtype != torch.bfloat16:
            return super().maps(query)
        return Native(replace(self.options, comparisons=1)).maps(query)


class TellsScoresInAnotherOrder(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(replace(query, seen=lambda scores: query.seen(scores.flip(0))))


class TellsNoScores(Mutant):
    def maps(self, query: Query) -> Tensor:
        return super().maps(replace(query, seen=lambda _: None))


STRANGE: list[tuple[type[Explainer], str]] = [
    (TakesRowsForImages, "check_rows"),
    (GuessesTheLayout, "check_layouts"),
    (IgnoresTheLayout, "check_layout_given"),
    (HooksBehindOthers, "check_hooks_of_others"),
    (TakesNoGradientForZero, "check_no_grad_body"),
    (KeepsMaps, "check_current_weights"),
    (StaysInHalf, "check_float16"),
    (HasOtherNeighboursInHalf, "check_bfloat16"),
    (TellsScoresInAnotherOrder, "check_scores"),
    (TellsNoScores, "check_forwards"),
]


@pytest.mark.parametrize(("mutant", "check"), STRANGE, ids=lambda x: getattr(x, "__name__", x))
def test_mutant_that_goes_wrong_on_strangers_is_caught(mutant: type[Explainer], check: str) -> None:
    assert run_check(BY_NAME[check], Subject("explainer", "native", mutant)).status == "failed"


# --- waivers --------------------------------------------------------------------------------------


def test_waivers_are_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Subject("explainer", "native", Rectifies)
    right = Subject("explainer", "native", Mutant)
    check = BY_NAME["check_by_hand"]
    assert run_check(check, wrong, {"check_by_hand": "upstream"}).status == "waived"
    unexpected = run_check(check, right, {"check_by_hand": "upstream"})
    assert unexpected.status == "failed" and "expected to fail" in unexpected.reason
    with pytest.raises(ValueError, match="check_nothing"):
        explainer_checks("native", expected_failures={"check_nothing": "a slip"})
    monkeypatch.setitem(CHECKS, "explainer", (check,))  # the others say nothing of it
    outcomes = run_checks(right, {"check_nothing": "a slip"})
    assert outcomes[0].status == "failed" and "check_nothing" in outcomes[0].reason


def test_every_check_of_what_a_plugin_can_do_wrong_has_a_mutant() -> None:
    caught = {check for _, check in [*MUTANTS, *SUBTLE, *STRANGE]}
    by_the_host = {"check_gradient_modes", "check_train_mode"}  # a plugin would have to try hard
    assert caught | by_the_host == set(BY_NAME)


def test_a_check_that_meets_any_error_fails() -> None:
    class Refuses(Mutant):
        def maps(self, query: Query) -> Tensor:
            raise TargetError("never")

    outcome = run_check(BY_NAME["check_output"], Subject("explainer", "native", Refuses))
    assert outcome.status == "failed" and "TargetError: never" in outcome.reason


class Scribbles(Trainer):
    """Changes a photograph that it was given to train on."""

    summary = "a trainer that writes where it must not"

    def train(self, request: TrainRequest) -> Any:
        photo = min(Path(request.data).rglob("*.png"))
        photo.write_bytes(photo.read_bytes() + b" ")
        Path(request.out).mkdir()


def test_a_trainer_that_changes_a_photograph_is_caught() -> None:
    check = {check.__name__: check for check in CHECKS["trainer"]}["check_nothing_outside"]
    outcome = run_check(check, Subject("trainer", "scribbles", Scribbles))
    assert outcome.status == "failed" and "the data folder is changed" in outcome.reason


# --- mutants of engines: each is `local` with one fault -------------------------------------------


class LosesAPart(LocalEngine):
    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        return super().run(work, islice(parts, 1, None))


class WritesAPartTwice(LocalEngine):
    """Under another name, as after a retry."""

    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        first = next(iter(parts))
        with closing(work.start()) as worker:
            worker(replace(first, id="0" * 16))
        yield from super().run(work, parts)


class TellsTwice(LocalEngine):
    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        for outcome in super().run(work, parts):
            yield from (outcome, outcome)


class TellsTooEarly(LocalEngine):
    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        with closing(work.start()) as worker:
            for part in parts:
                yield Outcome(part, len(part.photographs))
                worker(part)


class ReadsInAnotherOrder(LocalEngine):
    """So that batches, and with them the last bits, are others."""

    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        return super().run(
            work, (replace(p, photographs=(*p.photographs[1:], p.photographs[0])) for p in parts)
        )


class UsesAnotherModel(LocalEngine):
    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        other = replace(work.request, model="timm:test_vit@none")
        return super().run(
            replace(work, request=other) if "no_such" not in work.request.model else work, parts
        )


class HidesFailures(LocalEngine):
    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        return (replace(outcome, failed=()) for outcome in super().run(work, parts))


class StopsAtAFailure(LocalEngine):
    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        for outcome in super().run(work, parts):
            yield outcome
            if outcome.failed:
                return


class HidesErrors(LocalEngine):
    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        with suppress(UsageError):
            yield from super().run(work, parts)


class RaisesItsOwn(LocalEngine):
    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        try:
            yield from super().run(work, parts)
        except CamkitError as error:
            raise RuntimeError(str(error)) from None


class GoesOn(LocalEngine):
    """In a thread that nobody ends."""

    def run(self, work: Any, parts: Iterable[Part]) -> Iterator[Outcome]:
        done: queue.Queue[Any] = queue.Queue()

        def work_on() -> None:
            try:
                for outcome in LocalEngine.run(self, work, parts):
                    done.put(outcome)
                    sleep(0.2)
                done.put(None)
            except CamkitError as error:
                done.put(error)

        Thread(target=work_on, daemon=True).start()
        while (outcome := done.get()) is not None:
            if isinstance(outcome, CamkitError):
                raise outcome
            yield outcome


ENGINES: dict[type[LocalEngine], str] = {
    LosesAPart: "check_parts",
    WritesAPartTwice: "check_parts",
    TellsTwice: "check_outcomes",
    TellsTooEarly: "check_outcomes",
    ReadsInAnotherOrder: "check_rows",
    UsesAnotherModel: "check_rows",
    HidesFailures: "check_failures",
    StopsAtAFailure: "check_failures",
    HidesErrors: "check_errors",
    RaisesItsOwn: "check_errors",
    GoesOn: "check_closing",
}


@pytest.mark.parametrize("mutant", ENGINES)
def test_a_wrong_engine_is_caught(mutant: type[LocalEngine]) -> None:
    check = next(check for check in CHECKS["engine"] if check.__name__ == ENGINES[mutant])
    assert run_check(check, Subject("engine", "mutant", mutant)).status == "failed"
