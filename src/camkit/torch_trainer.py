"""The trainer `torch`: a model of torchvision or timm with a new head, in a plain training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from camkit import dataset, finetune, images
from camkit.api import Trainer, TrainRequest, TrainResult, option
from camkit.errors import UsageError
from camkit.models import pick_device
from camkit.plugins import read_options
from camkit.preprocess import Preprocess
from camkit.run import Run

if TYPE_CHECKING:
    from PIL.Image import Image

RECIPES = Path(__file__).parent / "recipes"
Prepare = Callable[[Any], Tensor]  # from a Pillow image


@dataclass(frozen=True)
class Stage:
    """A part of a training, under one one-cycle schedule."""

    epochs: int = option(1, min=1, help="passes over the photographs")
    lr: float = option(1e-3, min=0.0, help="highest rate of the head")
    body_lr: float = option(0.0, min=0.0, help="highest rate below the head; 0 leaves it as it is")


@dataclass(frozen=True)
class Recipe:
    """What a recipe holds besides its `[[stages]]`."""

    batch_size: int = option(32, min=2, help="photographs in a step")
    valid: float = option(0.2, min=0.0, max=1.0, help="share kept for validation")
    split_seed: int = option(2, min=0, help="of the split")
    fold: int = option(0, min=0, help="which slice of the split validates")
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
        recipe, stages = read(request.recipe)
        run = Run("torch", request)
        data = dataset.read(request.data)
        train, valid = data.split(recipe.valid, recipe.split_seed, recipe.fold)
        dataset.check_classes(data, train)
        state = run.load(data) or {"epoch": 0, "history": [], "steps": []}

        base = finetune.pretrained(request.arch, request.weights, pick_device(request.device))
        model, head = finetune.with_new_head(base, data.classes, seed=request.seed)
        augment = augmentation(model.preprocess, recipe)
        prepare = transforms.Compose([augment, model.preprocess.tensor])
        batches = self._batches(data, train, prepare, recipe, shuffle=True)
        held_out = self._batches(data, valid, model.preprocess, recipe, shuffle=False)
        history, steps, end = state["history"], state["steps"], 0
        total = sum(stage.epochs for stage in stages)
        with torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
            for stage in stages:
                begin, end = end, end + stage.epochs
                optimiser, schedule = _schedule(model.module, head, stage, recipe, len(batches))
                parts: dict[str, Any] = {
                    "module": model.module,
                    "optimiser": optimiser,
                    "schedule": schedule,
                }
                if begin < state["epoch"] <= end:  # the stage that was interrupted
                    for name, part in parts.items():
                        part.load_state_dict(state[name])
                for epoch in range(max(begin, state["epoch"]), end):
                    torch.manual_seed(request.seed * 1_000_003 + epoch)
                    done = list(_train_epoch(model.module, batches, optimiser, schedule, recipe))
                    loss = sum(step["loss"] for step in done) / len(done)
                    history.append(
                        {"epoch": epoch, "train_loss": loss, **_validate(model.module, held_out)}
                    )
                    steps += done
                    states = {name: part.state_dict() for name, part in parts.items()}
                    run.save(epoch=epoch + 1, history=history, steps=steps, **states)
                    if request.progress:
                        error = history[-1]["error_rate"]
                        request.progress(
                            (epoch + 1) / total, f"epoch {epoch + 1}/{total}, error {error:.1%}"
                        )
        metrics = {key: history[-1][key] for key in ("error_rate", "valid_loss")}
        model.module.eval()
        return run.finish(model, valid, metrics, history, steps, half=self.options.half)

    def preview(self, request: TrainRequest, photo: Image) -> dict[str, list[Image]]:
        """What random crops, mirroring and colours make of a photograph."""
        recipe, _ = read(request.recipe)
        preprocess = finetune.pretrained(request.arch, request.weights, torch.device("cpu")).preprocess
        augment = augmentation(preprocess, recipe)
        with torch.random.fork_rng([]):
            torch.manual_seed(request.seed)
            return {"random crops, mirrored, in other colours": [augment(photo) for _ in range(9)]}

    def _batches(
        self, data: dataset.Dataset, part: list[int], prepare: Prepare, recipe: Recipe, *, shuffle: bool
    ) -> DataLoader[Any]:
        single = shuffle and len(part) % recipe.batch_size == 1  # BatchNorm cannot learn from one
        return DataLoader(
            Photos(data, part, prepare),
            recipe.batch_size,
            shuffle,
            drop_last=single,
            num_workers=self.options.workers,
        )


def read(table: Mapping[str, Any]) -> tuple[Recipe, list[Stage]]:
    """A recipe from its table; `UsageError` for what it does not know or cannot be."""
    values = dict(table)
    parts = values.pop("stages", [{}])
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise UsageError("the recipe has no stages: write a table [[stages]] for each")
    stages = [read_options(Stage, part, owner="a stage of the recipe") for part in parts]
    if not all(stage.lr > 0 for stage in stages):
        raise UsageError("a stage of the recipe with lr = 0 trains nothing")
    return read_options(Recipe, values, owner="the recipe"), stages


class Photos(Dataset[tuple[Tensor, int]]):
    """Photographs `part` of `data` as what `prepare` makes of them, with their labels."""

    def __init__(self, data: dataset.Dataset, part: Sequence[int], prepare: Prepare) -> None:
        self.data, self.part, self.prepare = data, part, prepare

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        number = self.part[index]
        return self.prepare(images.load(self.data.paths[number]).image), self.data.labels[number]


def augmentation(preprocess: Preprocess, recipe: Recipe) -> Callable[[Image], Image]:
    """Random crops, mirroring and colours, at the size and with the interpolation of the model."""
    mode = transforms.InterpolationMode(preprocess.interpolation)
    size, crop = list(preprocess.size), (recipe.crop, 1.0)
    steps = [
        transforms.RandomResizedCrop(size, crop, interpolation=mode),
        transforms.RandomHorizontalFlip(),
        transforms.ColorJitter(recipe.colour, recipe.colour, recipe.colour),
    ]
    return cast("Callable[[Image], Image]", transforms.Compose(steps))


def _schedule(
    module: nn.Module, head: frozenset[str], stage: Stage, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.OneCycleLR]:
    """One rate for the head and, unless it is zero, one for the body, which else stays as it is."""
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in head or stage.body_lr > 0)
    parts = {True: stage.lr, False: stage.body_lr}
    groups = [
        {"params": [p for name, p in parameters.items() if (name in head) is is_head], "lr": lr}
        for is_head, lr in parts.items()
        if lr > 0
    ]
    optimiser = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
    rates = [group["lr"] for group in optimiser.param_groups]
    return optimiser, torch.optim.lr_scheduler.OneCycleLR(
        optimiser, rates, epochs=stage.epochs, steps_per_epoch=steps
    )


def _train_epoch(
    module: nn.Module,
    batches: DataLoader[Any],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
    recipe: Recipe,
) -> Iterator[dict[str, float]]:
    """One pass; loss and learning rate of each step. A body at rest keeps its BatchNorm statistics, too."""
    module.train(all(parameter.requires_grad for parameter in module.parameters()))
    device = next(module.parameters()).device
    for inputs, labels in batches:
        scores = module(inputs.to(device))
        loss = F.cross_entropy(scores, labels.to(device), label_smoothing=recipe.label_smoothing)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        yield {"loss": float(loss.detach()), "lr": float(schedule.get_last_lr()[0])}
        schedule.step()


@torch.inference_mode()
def _validate(module: nn.Module, batches: DataLoader[Any]) -> dict[str, float]:
    module.eval()
    device = next(module.parameters()).device
    pairs = [(module(inputs.to(device)).cpu(), labels) for inputs, labels in batches]
    scores, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
    error = (scores.argmax(1) != labels).float().mean()
    return {"valid_loss": float(F.cross_entropy(scores, labels)), "error_rate": float(error)}
