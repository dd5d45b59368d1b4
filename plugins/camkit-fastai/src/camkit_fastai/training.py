"""The stages of a training on a fastai Learner, with a checkpoint after every epoch."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torchvision
from fastai.callback.core import Callback
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import Learner  # the one with `fit_one_cycle`
from fastai.data.core import DataLoaders
from fastai.distributed import DistributedDL  # gives Learner `distrib_ctx`
from fastai.learner import Recorder
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.metrics import AccumMetric, error_rate
from fastai.optimizer import Adam
from fastai.torch_core import apply_init, get_model, num_distrib, rank_distrib, set_seed
from fastai.vision.learner import default_split, model_meta
from fastcore.basics import noop
from torch import Tensor, nn

from camkit.errors import CamkitError, UsageError
from camkit.plugin import (
    FastaiSource,
    LoadedModel,
    Preprocess,
    Run,
    TimmSource,
    TrainRequest,
    TrainResult,
    dataset,
    fastai_architecture,
    finetune,
    is_main,
    objective,
    option,
    pick_device,
    recipe,
    report_line,
)
from camkit_fastai import Settings, data

AMP = {"bfloat16": "bf16", "float16": "fp16"}
AMP_DEVICE = "cuda"  # the only one that fastai's mixed precision names


@dataclass(frozen=True)
class Stage:
    """A part of a training, under one one-cycle schedule."""

    size: int = option(224, min=64, help="pixels of a side")
    frozen: bool = option(False, help="train the head alone, and all BatchNorm, if the body is pretrained")
    epochs: int = option(1, min=1, help="passes over the photographs")
    lr_max: float = option(1e-3, min=1e-12, help="highest rate of the head")
    lr_min: float = option(0.0, min=0.0, help="highest rate of the lowest layers; 0: a tenth of lr_max")
    pct_start: float = option(0.25, min=0.01, max=0.99, help="share of the steps in which the rate grows")


@dataclass(frozen=True)
class Recipe(data.Augmentation):
    """What a recipe holds besides its `[[stages]]`."""

    bn_final: bool = option(False, help="a BatchNorm behind the scores")
    wd: float = option(0.01, min=0.0, help="weight decay")
    wd_bn_bias: bool = option(False, help="weight decay also of BatchNorm and biases")
    eps: float = option(1e-5, min=0.0, help="of Adam")
    div_final: float = option(1e5, min=1.0, help="the last rate is lr_max divided by this")


def read(request: TrainRequest) -> tuple[Recipe, list[Stage]]:
    """The recipe of a request."""
    return recipe.read(request.recipe, Recipe, Stage)


def train(request: TrainRequest, settings: Settings) -> TrainResult:
    """As `Trainer.train` says."""
    plan, stages = read(request)
    run = Run("fastai", request)
    device = _device(request)
    photos = data.read(request)
    train, valid = photos.split(plan.valid, plan.split_seed, plan.fold, plan.split)
    dataset.check_classes(photos, train)
    state = run.load(photos)
    aim = objective.objective(photos, train, plan.class_weights)
    with _random_states():
        model = replace(start(request, plan, stages, photos.classes, device), scores=aim.scores)
        told = run.begin(
            model,
            valid,
            recipe=recipe.complete(plan, stages),
            half=settings.half,
            packages=["fastai"],
        )
        journal = Journal(run, request, sum(stage.epochs for stage in stages), state)
        for line in told:
            journal.say(0, line)

        def batches(stage: Stage) -> DataLoaders:
            seen = replace(model.preprocess, size=(stage.size, stage.size))
            return data.loaders(photos, train, valid, plan, seen, device, settings.workers)

        learner = _learner(batches(stages[0]), model, aim, plan, request)
        if state["epoch"]:
            with run.restoring():
                model.module.load_state_dict(state["module"])
        _fit(learner, stages, batches, plan, journal, frozen_first=request.weights != "none")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    model.module.eval()
    return run.finish(objective.final(journal.history[-1]), journal.history, journal.steps)


def start(
    request: TrainRequest,
    plan: Recipe,
    stages: Sequence[Stage],
    classes: tuple[str, ...],
    device: torch.device,
) -> LoadedModel:
    """The lesson's model: the body of a classifier, as it was trained, under a new head."""
    base = _of_a_library(finetune.pretrained(request.arch, request.weights, device))
    backbone = dict(base.architecture or {})
    if backbone.get("source") not in ("torchvision", "timm"):
        raise CamkitError(f"fastai needs a model of torchvision or timm, or imagenet, not {request.arch}")
    architecture = {
        "source": "fastai",
        "backbone": backbone,
        "num_classes": len(classes),
        "bn_final": plan.bn_final,
    }
    module = FastaiSource().build(architecture)
    body = fastai_architecture.cut(backbone["source"], base.module)
    for size in sorted({stage.size for stage in stages}):
        fastai_architecture.features(body, size)  # a size that it does not take is told before any training
    module[0].load_state_dict(body.state_dict())
    set_seed(request.seed)
    apply_init(module[1], nn.init.kaiming_normal_)
    mean, std = base.preprocess.mean, base.preprocess.std
    return LoadedModel(
        module.to(device),
        classes,
        Preprocess(size=(stages[-1].size,) * 2, mean=mean, std=std),
        name="fastai",
        default_layer=fastai_architecture.default_layer(module),
        architecture=architecture,
        scores="softmax",
    )


def _of_a_library(base: LoadedModel) -> LoadedModel:
    """`imagenet` as the model of timm that has the same network, and the same names for its weights."""
    architecture = base.architecture or {}
    if architecture.get("source") != "imagenet":
        return base
    same = {**architecture, "source": "timm", "name": "tf_efficientnet_lite0"}
    module = TimmSource().build(same)
    module.load_state_dict(base.module.state_dict())
    return replace(base, module=module.to(base.device).eval(), architecture=same)


class Journal(Callback):  # type: ignore[misc]  # fastai has no types
    """Seeds every epoch, and keeps after each what a resumed training needs."""

    order = Recorder.order + 1

    def __init__(self, run: Run, request: TrainRequest, total: int, state: dict[str, Any]) -> None:
        self.out, self.request, self.total, self.state = run, request, total, state
        self.finished, self.history, self.steps = state["epoch"], state["history"], state["steps"]
        self.begin = 0  # the first epoch of this stage, in the count of all

    def say(self, done: float, text: str) -> None:
        """Tell the user, from one process."""
        self.text = text
        if self.request.progress and is_main():
            self.request.progress(min(1.0, done / self.total), text)

    def before_epoch(self) -> None:
        """The same random numbers for an epoch, whether training was interrupted before it or not."""
        self.number = self.begin + self.epoch
        seed = self.request.seed * 1_000_003 + self.number
        set_seed(seed + 7919 * rank_distrib())
        train = self.dls.train
        getattr(train, "dl", train).rng = random.Random(seed)  # the order is equal in all processes
        self.losses: list[tuple[Tensor, float]] = []

    def after_batch(self) -> None:
        """Loss and rate of a step of the optimiser; how far it is."""
        if self.training:
            self.losses.append((self.loss.detach(), float(self.opt.hypers[-1]["lr"])))
            self.say(self.number + len(self.losses) / self.n_iter, self.text)

    def after_epoch(self) -> None:
        """A line of the history and a checkpoint. fastai calls it also for epochs that it skips."""
        if self.number < self.finished:
            return
        done = [{"loss": float(loss), "lr": lr} for loss, lr in self.losses]
        train_loss = sum(step["loss"] for step in done) / len(done)
        names = ("valid_loss", *(metric.name for metric in self.learn.metrics))
        found = [float(value) for value in self.learn.final_record][1:]
        figures = {"train_loss": train_loss, **dict(zip(names, found, strict=True))}
        self.history.append({"epoch": self.number, **figures})
        self.steps += done
        self.out.save(
            epoch=self.number + 1,
            history=self.history,
            steps=self.steps,
            module=get_model(self.learn.model).state_dict(),
            optimiser=self.opt.state_dict()["state"],  # the schedule sets the rest
        )
        self.say(self.number + 1, report_line(self.number + 1, self.total, figures))


def _learner(
    batches: DataLoaders,
    model: LoadedModel,
    aim: objective.Objective,
    plan: Recipe,
    request: TrainRequest,
) -> Learner:
    """As `vision_learner` makes it, of a model that is made already; silent."""
    weights = None if aim.weights is None else aim.weights.to(model.device)
    cross_entropy = CrossEntropyLossFlat(weight=weights)
    binary = BCEWithLogitsLossFlat(pos_weight=weights)
    of_labels = [
        AccumMetric(figure, flatten=False, name=name) for name, figure in objective.FIGURES.items()
    ]
    learner = Learner(
        batches,
        model.module,
        loss_func=binary if aim.several else cross_entropy,
        opt_func=partial(Adam, eps=plan.eps),
        splitter=_splitter(model),
        metrics=of_labels if aim.several else error_rate,
        wd=plan.wd,
        wd_bn_bias=plan.wd_bn_bias,
    )
    learner.remove_cbs(learner.cbs.filter(lambda callback: isinstance(callback, ProgressCallback)))
    learner.logger = noop
    if request.precision != "float32":
        learner.add_cb(MixedPrecision(AMP[request.precision]))
    return learner


def _splitter(model: LoadedModel) -> Any:
    """fastai's groups of layers, for rates that grow from the lowest to the head."""
    backbone = (model.architecture or {})["backbone"]
    of_torchvision = backbone["source"] == "torchvision"
    builder = getattr(torchvision.models, backbone["name"]) if of_torchvision else None
    return model_meta.get(builder, {"split": default_split})["split"]


def _fit(
    learner: Learner,
    stages: Sequence[Stage],
    batches: Callable[[Stage], DataLoaders],
    plan: Recipe,
    journal: Journal,
    *,
    frozen_first: bool,
) -> None:
    """Every stage, or what is left of them. fastai freezes nothing that was not pretrained."""
    frozen, since, end = None, 0, 0
    for stage in stages:
        begin, end = end, end + stage.epochs
        if frozen != (stage.frozen and frozen_first):
            frozen, since = stage.frozen and frozen_first, begin
            (learner.freeze if frozen else learner.unfreeze)()  # begins with a fresh optimiser
        if end <= journal.finished:
            continue
        optimiser = journal.state.pop("optimiser", None)
        if optimiser and since < journal.finished:
            with journal.out.restoring():
                learner.opt.load_state_dict({"state": optimiser, "hypers": learner.opt.hypers})
        journal.begin, learner.dls = begin, batches(stage)
        with learner.added_cbs([journal]), _together(learner):
            learner.fit_one_cycle(
                stage.epochs,
                slice(stage.lr_min or None, stage.lr_max),
                div_final=plan.div_final,
                pct_start=stage.pct_start,
                start_epoch=max(0, journal.finished - begin),
            )


class InStep(DistributedDL):  # type: ignore[misc]
    """The batches of one process of several; the seed gives all the same order, with no GPU to agree by."""

    def _broadcast(self, t: Any, rank: int) -> Any:
        return t


def _together(learner: Learner) -> AbstractContextManager[Any]:
    """Under `accelerate launch`, training in step with the other processes; else nothing."""
    if num_distrib() < 2:
        return nullcontext()
    learner.dls.loaders = [InStep(batches) for batches in learner.dls.loaders]
    alone = learner.dls.device.type == "cpu"
    return cast("AbstractContextManager[Any]", learner.distrib_ctx(sync_bn=not alone, cpu=alone))


def _device(request: TrainRequest) -> torch.device:
    """Of this process. Mixed precision is fastai's, which has it on CUDA devices alone."""
    if num_distrib() > 1 and torch.accelerator.is_available() and request.device != "cpu":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    device = pick_device(request.device)
    if request.precision != "float32" and device.type != AMP_DEVICE:
        raise UsageError(f"fastai trains in {request.precision} on CUDA devices only, not on {device}")
    return device


@contextmanager
def _random_states() -> Iterator[None]:
    """The global generators as they were, afterwards."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
