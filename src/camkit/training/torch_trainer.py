"""The trainer `torch`: a model of torchvision or timm with a new head, in a plain training loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader
from torchvision import transforms

from camkit.contracts.options import option
from camkit.contracts.trainer import Trainer, TrainRequest, TrainResult
from camkit.core.devices import pick_device, pick_dtype, random_state_kept
from camkit.images.preprocess import Preprocess
from camkit.training import dataset, finetune, recipe
from camkit.training.batches import Augmented, Shuffled, loader
from camkit.training.objective import Objective, final, objective
from camkit.training.run_folder import Run, report_line

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Stage:
    """A part of a training, under one one-cycle schedule."""

    epochs: int = option(1, min=1, help="passes over the photographs")
    lr: float = option(1e-3, min=1e-9, help="highest rate of the head")
    body_lr: float = option(0.0, min=0.0, help="highest rate below the head; 0 leaves it as it is")


@dataclass(frozen=True)
class Recipe(recipe.Recipe):
    """What a recipe holds besides its `[[stages]]`."""

    crop: float = option(0.5, min=0.01, max=1.0, help="smallest part a random crop takes")
    colour: float = option(0.2, min=0.0, max=1.0, help="strength of brightness, contrast and saturation")
    label_smoothing: float = option(0.1, min=0.0, max=1.0, help="of the loss")
    weight_decay: float = option(0.05, min=0.0, help="of AdamW")


@dataclass(frozen=True)
class Settings:
    """Options of the trainer."""

    workers: int | None = option(
        None, min=0, help="processes that read photographs; by default none on a CPU, else half the cores"
    )
    half: bool = option(False, help="weights of the bundle as float16, for half the size")


class TorchTrainer(Trainer):
    """AdamW and one-cycle over stages; on the CPU every run with the same seed is the same."""

    summary = "plain PyTorch: a model of torchvision or timm with a new head"
    recipes: ClassVar = recipe.TORCH
    Options: ClassVar[type] = Settings

    def train(self, request: TrainRequest) -> TrainResult:
        """Train, validate after every epoch, and write a bundle into `request.out`."""
        plan, stages = recipe.read(request.recipe, Recipe, Stage)
        run = Run("torch", request)
        data = dataset.asked(request)
        train, valid = data.split(plan.valid, plan.split_seed, plan.fold, plan.split)
        dataset.check_classes(data, train)
        state = run.load(data)

        base = finetune.pretrained(request.arch, request.weights, pick_device(request.device))
        model, head = finetune.with_new_head(base, data.classes, seed=request.seed)
        aim = objective(data, train, plan.class_weights, plan.label_smoothing)
        model = replace(model, scores=aim.scores)
        told = run.begin(model, valid, recipe=recipe.complete(plan, stages), half=self.options.half)
        prepare = transforms.Compose([augmentation(model.preprocess, plan), model.preprocess.tensor])
        photos = Augmented(dataset.Photos(data, train, prepare), request.seed)
        order = Shuffled(len(train), request.seed)
        alone = len(train) % plan.batch_size == 1  # BatchNorm cannot learn from one
        loaded = partial(loader, device=model.device, size=plan.batch_size, workers=self.options.workers)
        batches = loaded(photos, sampler=order, drop_last=alone)
        held_out = loaded(dataset.Photos(data, valid, model.preprocess))
        history, steps, end = state["history"], state["steps"], 0
        total = sum(stage.epochs for stage in stages)
        say = request.progress or (lambda _, __: None)
        for line in told:
            say(0.0, line)
        with random_state_kept(model.device):
            for stage in stages:
                begin, end = end, end + stage.epochs
                groups = finetune.groups(model.module, head, stage.lr, stage.body_lr)
                steps_ahead = stage.epochs * len(batches)
                loop = Loop(model.module, groups, aim, plan.weight_decay, steps_ahead, request.precision)
                if begin < state["epoch"] <= end:  # the stage that was interrupted
                    with run.restoring():
                        for part, kept in zip(loop.parts, state["loop"], strict=True):
                            part.load_state_dict(kept)
                for epoch in range(max(begin, state["epoch"]), end):
                    torch.manual_seed(request.seed * 1_000_003 + epoch)
                    order.epoch = epoch
                    done = loop.epoch(batches)
                    loss = sum(step["loss"] for step in done) / len(done)
                    history.append({"epoch": epoch, "train_loss": loss, **loop.validate(held_out)})
                    steps += done
                    parts = [part.state_dict() for part in loop.parts]
                    run.save(epoch=epoch + 1, history=history, steps=steps, loop=parts)
                    say((epoch + 1) / total, report_line(epoch + 1, total, history[-1]))
        model.module.eval()
        return run.finish(final(history[-1]), history, steps)

    def preview(self, request: TrainRequest, photo: Image) -> dict[str, list[Image]]:
        """What random crops, mirroring and colours make of a photograph."""
        plan, _ = recipe.read(request.recipe, Recipe, Stage)
        preprocess = finetune.pretrained(request.arch, request.weights, torch.device("cpu")).preprocess
        augment = augmentation(preprocess, plan)
        with random_state_kept(torch.device("cpu"), request.seed):
            return {"random crops, mirrored, in other colours": [augment(photo) for _ in range(9)]}


def augmentation(preprocess: Preprocess, plan: Recipe) -> transforms.Compose:
    """Random crops, mirroring and colours, at the size and with the interpolation of the model."""
    mode = transforms.InterpolationMode(preprocess.interpolation)
    crop = transforms.RandomResizedCrop(list(preprocess.size), (plan.crop, 1.0), interpolation=mode)
    jitter = transforms.ColorJitter(plan.colour, plan.colour, plan.colour)
    return transforms.Compose([crop, transforms.RandomHorizontalFlip(), jitter])


class Loop:
    """One stage: optimiser, schedule and the passes over the photographs."""

    def __init__(
        self, module: nn.Module, groups: list[Any], aim: Objective, decay: float, steps: int, dtype: str
    ) -> None:
        self.device = next(module.parameters()).device
        self.module, self.aim, self.dtype = module, aim.to(self.device), pick_dtype(dtype)
        self.whole = all(parameter.requires_grad for parameter in module.parameters())
        self.optimiser = torch.optim.AdamW(groups, weight_decay=decay)
        self.schedule = OneCycleLR(self.optimiser, [group["lr"] for group in groups], steps)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # Everything that a later epoch depends on.
        self.parts: tuple[Any, ...] = (module, self.optimiser, self.schedule, self.scaler)

    def epoch(self, batches: DataLoader[Any]) -> list[dict[str, float]]:
        """One pass; loss and learning rate of each step, which nobody waits for before its end."""
        self.module.train(self.whole)  # a body at rest keeps its BatchNorm statistics, too
        losses, rates = [], []
        for inputs, labels in batches:
            loss = self.aim.loss(self._scores(inputs), self._there(labels))
            self.optimiser.zero_grad()
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimiser)
            self.scaler.update()
            losses.append(loss.detach())
            rates.append(float(self.schedule.get_last_lr()[0]))
            self.schedule.step()
        found = torch.stack(losses).tolist()
        return [{"loss": one, "lr": rate} for one, rate in zip(found, rates, strict=True)]

    @torch.inference_mode()
    def validate(self, batches: DataLoader[Any]) -> dict[str, float]:
        """The figures on photographs that are held out."""
        self.module.eval()
        pairs = [(self._scores(inputs), labels) for inputs, labels in batches]
        scores, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
        return self.aim.figures(scores.cpu(), labels)

    def _scores(self, inputs: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.module(self._there(inputs)).float()  # type: ignore[no-any-return]

    def _there(self, part: Tensor) -> Tensor:
        """On the device; of pinned memory without a wait, since torch keeps that until it was read."""
        return part.to(self.device, non_blocking=part.is_pinned())
