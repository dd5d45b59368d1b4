"""The trainer `torch`: a model of torchvision or timm with a new head, in a plain training loop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms

from camkit import dataset, finetune, recipe
from camkit.api import Trainer, TrainRequest, TrainResult, option
from camkit.errors import UsageError
from camkit.models import pick_device, pick_dtype
from camkit.preprocess import Preprocess
from camkit.run import Run, report_line

if TYPE_CHECKING:
    from PIL.Image import Image

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Stage:
    """A part of a training, under one one-cycle schedule."""

    epochs: int = option(1, min=1, help="passes over the photographs")
    lr: float = option(1e-3, min=0.0, help="highest rate of the head")
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

    workers: int = option(0, min=0, help="processes that read photographs beside the training")
    half: bool = option(False, help="weights of the bundle as float16, for half the size")


class TorchTrainer(Trainer):
    """AdamW and one-cycle over stages; on the CPU every run with the same seed is the same."""

    summary = "plain PyTorch: a model of torchvision or timm with a new head"
    recipes: ClassVar = {"default": RECIPES / "torch.toml", "pets-small": RECIPES / "pets-small.toml"}
    Options: ClassVar[type] = Settings

    def train(self, request: TrainRequest) -> TrainResult:
        """Train, validate after every epoch, and write a bundle into `request.out`."""
        plan, stages = read(request)
        run = Run("torch", request)
        data = dataset.read(request.data)
        train, valid = data.split(plan.valid, plan.split_seed, plan.fold)
        dataset.check_classes(data, train)
        state = run.load(data) or {"epoch": 0, "history": [], "steps": []}

        base = finetune.pretrained(request.arch, request.weights, pick_device(request.device))
        model, head = finetune.with_new_head(base, data.classes, seed=request.seed)
        prepare = transforms.Compose([augmentation(model.preprocess, plan), model.preprocess.tensor])
        batches = DataLoader[Any](
            dataset.Photos(data, train, prepare),  # type: ignore[arg-type]
            plan.batch_size,
            shuffle=True,
            drop_last=len(train) % plan.batch_size == 1,  # BatchNorm cannot learn from one
            num_workers=self.options.workers,
        )
        held_out = dataset.Photos(data, valid, model.preprocess)
        held_out_batches = DataLoader[Any](held_out, plan.batch_size, num_workers=self.options.workers)  # type: ignore[arg-type]
        history, steps, end = state["history"], state["steps"], 0
        total = sum(stage.epochs for stage in stages)
        say = request.progress or (lambda _, __: None)
        say(0.0, dataset.summary(data, train, valid))
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            for stage in stages:
                begin, end = end, end + stage.epochs
                loop = Loop(model.module, head, stage, plan, len(batches), pick_dtype(request.precision))
                if begin < state["epoch"] <= end:  # the stage that was interrupted
                    loop.load_state_dict(state["loop"])
                for epoch in range(max(begin, state["epoch"]), end):
                    torch.manual_seed(request.seed * 1_000_003 + epoch)
                    done = list(loop.epoch(batches))
                    loss = sum(step["loss"] for step in done) / len(done)
                    history.append({"epoch": epoch, "train_loss": loss, **loop.validate(held_out_batches)})
                    steps += done
                    run.save(epoch=epoch + 1, history=history, steps=steps, loop=loop.state_dict())
                    say((epoch + 1) / total, report_line(epoch + 1, total, history[-1]))
        metrics = {key: history[-1][key] for key in ("error_rate", "valid_loss")}
        model.module.eval()
        whole = recipe.complete(plan, stages)
        return run.finish(model, valid, metrics, history, steps, recipe=whole, half=self.options.half)

    def preview(self, request: TrainRequest, photo: Image) -> dict[str, list[Image]]:
        """What random crops, mirroring and colours make of a photograph."""
        plan, _ = read(request)
        preprocess = finetune.pretrained(request.arch, request.weights, torch.device("cpu")).preprocess
        augment = augmentation(preprocess, plan)
        with torch.random.fork_rng([]):
            torch.manual_seed(request.seed)
            return {"random crops, mirrored, in other colours": [augment(photo) for _ in range(9)]}


def read(request: TrainRequest) -> tuple[Recipe, list[Stage]]:
    """The recipe of a request; `UsageError` for what it does not know or cannot be."""
    plan, stages = recipe.read(request.recipe, Recipe, Stage)
    if not all(stage.lr > 0 for stage in stages):
        raise UsageError("a stage of the recipe with lr = 0 trains nothing")
    return plan, stages


def augmentation(preprocess: Preprocess, plan: Recipe) -> transforms.Compose:
    """Random crops, mirroring and colours, at the size and with the interpolation of the model."""
    mode = transforms.InterpolationMode(preprocess.interpolation)
    steps = [
        transforms.RandomResizedCrop(list(preprocess.size), (plan.crop, 1.0), interpolation=mode),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(plan.colour, plan.colour, plan.colour),
    ]
    return transforms.Compose(steps)


class Loop:
    """One stage: optimiser, schedule and the passes over the photographs."""

    def __init__(
        self,
        module: nn.Module,
        head: frozenset[str],
        stage: Stage,
        plan: Recipe,
        steps: int,
        precision: torch.dtype,
    ) -> None:
        self.module, self.smoothing, self.dtype = module, plan.label_smoothing, precision
        self.device = next(module.parameters()).device
        rates = {True: stage.lr, False: stage.body_lr}
        groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(rates[name in head] > 0)
            groups[name in head].append(parameter)
        trained = [{"params": groups[part], "lr": rates[part]} for part in groups if rates[part] > 0]
        self.whole = len(trained) == len(groups)
        self.optimiser = torch.optim.AdamW(trained, weight_decay=plan.weight_decay)
        highest = [group["lr"] for group in self.optimiser.param_groups]
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, highest, epochs=stage.epochs, steps_per_epoch=steps
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.parts: dict[str, Any] = {
            "module": module,
            "optimiser": self.optimiser,
            "schedule": self.schedule,
            "scaler": self.scaler,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a later epoch depends on."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def epoch(self, batches: DataLoader[Any]) -> Iterator[dict[str, float]]:
        """One pass; loss and learning rate of each step."""
        self.module.train(self.whole)  # a body at rest keeps its BatchNorm statistics, too
        for inputs, labels in batches:
            scores = self._scores(inputs)
            loss = F.cross_entropy(scores, labels.to(self.device), label_smoothing=self.smoothing)
            self.optimiser.zero_grad()
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            self.scaler.step(self.optimiser)
            self.scaler.update()
            yield {"loss": float(loss.detach()), "lr": float(self.schedule.get_last_lr()[0])}
            self.schedule.step()

    @torch.inference_mode()
    def validate(self, batches: DataLoader[Any]) -> dict[str, float]:
        """Loss and error on photographs that are held out."""
        self.module.eval()
        pairs = [(self._scores(inputs).cpu(), labels) for inputs, labels in batches]
        scores, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
        error = (scores.argmax(1) != labels).float().mean()
        return {"valid_loss": float(F.cross_entropy(scores, labels)), "error_rate": float(error)}

    def _scores(self, inputs: Tensor) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.module(inputs.to(self.device)).float()  # type: ignore[no-any-return]
