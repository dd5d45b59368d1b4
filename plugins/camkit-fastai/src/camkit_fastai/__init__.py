"""The trainer `fastai`: fast.ai's lesson 6, and what one makes of it. fastai is imported when it trains."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from camkit.plugin import Trainer, TrainRequest, TrainResult, option

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Settings:
    """Options of the trainer."""

    workers: int | None = option(
        None, min=0, help="processes that read photographs; none: as fastai, one per core, at most 16"
    )
    half: bool = option(False, help="weights of the bundle as float16, for half the size")


class FastaiTrainer(Trainer):
    """fastai's `vision_learner` through stages of one-cycle; on the CPU a seed fixes the whole run."""

    summary = "fastai's vision_learner; without arguments fast.ai's lesson 6"
    recipes: ClassVar = {"lesson6": Path(__file__).parent / "recipes" / "lesson6.toml"}
    Options: ClassVar[type] = Settings

    def train(self, request: TrainRequest) -> TrainResult:
        """Train, validate after every epoch, and write a bundle into `request.out`."""
        result: TrainResult = _imported("training").train(request, self.options)
        return result

    def preview(self, request: TrainRequest, photo: Image) -> dict[str, list[Image]]:
        """What the recipe makes of a photograph, with nothing outside of it and with reflections."""
        plan, _ = _imported("training").read(request)
        grids: dict[str, list[Image]] = _imported("data").grids(plan, photo, request.seed)
        return grids


def _imported(name: str) -> Any:
    """A module of this package, and with it fastai, whose imports warn of much that is not the user's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(f"camkit_fastai.{name}")
