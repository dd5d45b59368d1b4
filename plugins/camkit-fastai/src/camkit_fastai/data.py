"""From photographs to batches as fastai augments them; where the pets are."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from fastai.data.core import DataLoaders, TfmdDL
from fastai.data.external import URLs, fastai_cfg, untar_data
from fastai.data.transforms import IntToFloatTensor, Normalize, ToTensor
from fastai.torch_core import set_seed
from fastai.vision.augment import Resize, aug_transforms
from fastai.vision.core import PILImage
from fasttransform import Pipeline

from camkit.errors import CamkitError, typed_reason
from camkit.plugin import Preprocess, TrainRequest, dataset, option, recipe

if TYPE_CHECKING:
    from PIL.Image import Image

PETS = "pets"


@dataclass(frozen=True)
class Augmentation(recipe.Recipe):
    """What a recipe says of photographs: fastai's `aug_transforms`."""

    presize: int = option(460, min=1, help="pixels of the random square that augmentation starts from")
    pad_mode: Literal["reflection", "zeros", "border"] = option(
        "reflection", help="what lies outside of a photograph"
    )
    max_rotate: float = option(10.0, min=0.0, help="degrees")
    max_zoom: float = option(1.1, min=1.0, help="factor")
    max_warp: float = option(0.2, min=0.0, help="strength of a change of perspective")
    max_lighting: float = option(0.2, min=0.0, max=1.0, help="strength of brightness and contrast")
    p_affine: float = option(0.75, min=0.0, max=1.0, help="share that is rotated, zoomed and warped")
    p_lighting: float = option(0.75, min=0.0, max=1.0, help="share whose light is changed")


def read(request: TrainRequest) -> dataset.Dataset:
    """The photographs of a request; `pets` are the lesson's, fetched if fastai does not have them."""
    try:
        return dataset.asked(request)
    except CamkitError:
        if request.data != PETS:
            raise
    return dataset.asked(replace(request, data=_fetch()))


def _fetch() -> str:
    """The folder of the Oxford-IIIT Pet data; what is there already is used without a network."""
    try:
        with redirect_stdout(sys.stderr):  # the bar of the download
            return str(untar_data(URLs.PETS))
    # Whatever the network, the disk and the archive do.
    except Exception as error:
        archive = fastai_cfg().path("archive") / URLs.PETS.rpartition("/")[2]
        raise CamkitError(
            f"{URLs.PETS} could not be fetched ({typed_reason(error)}). Two ways out: put that file to "
            f"{archive}, or train on a folder of your own: camkit train FOLDER"
        ) from None


def loaders(
    data: dataset.Dataset,
    train: Sequence[int],
    valid: Sequence[int],
    plan: Augmentation,
    preprocess: Preprocess,
    device: torch.device,
    workers: int | None,
) -> DataLoaders:
    """Batches for training, augmented, and for validation, which sees what the bundle will see.

    Normalisation is part of the batches of every size, so a change of size cannot lose it.
    """
    common: dict[str, Any] = {"bs": plan.batch_size, "device": device, "num_workers": workers}
    normalise = Normalize.from_stats(preprocess.mean, preprocess.std, cuda=False)
    batches = TfmdDL(
        dataset.Photos(data, train, _square(plan)),
        shuffle=True,
        drop_last=len(train) > plan.batch_size,  # as fastai; a set that fills no batch is one
        after_batch=[IntToFloatTensor(), *augmentation(plan, preprocess.size[0]), normalise],
        **common,
    )
    made = DataLoaders(batches, TfmdDL(dataset.Photos(data, valid, preprocess), **common), device=device)
    made.c = len(data.classes)
    return made


def _square(plan: Augmentation) -> Callable[[Image], Any]:
    """A random square of a photograph, as a tensor of fastai's."""
    pipeline = Pipeline([Resize(plan.presize), ToTensor()], split_idx=0)
    return lambda photo: pipeline(PILImage.create(photo))


def augmentation(plan: Augmentation, size: int) -> list[Any]:
    """The recipe's `aug_transforms` for batches."""
    return list(
        aug_transforms(
            size=size,
            pad_mode=plan.pad_mode,
            max_rotate=plan.max_rotate,
            max_zoom=plan.max_zoom,
            max_warp=plan.max_warp,
            max_lighting=plan.max_lighting,
            p_affine=plan.p_affine,
            p_lighting=plan.p_lighting,
        )
    )


def grids(plan: Augmentation, photo: Image, seed: int, size: int = 224) -> dict[str, list[Image]]:
    """Nine augmented views of `photo` for each of the lesson's two ways to fill what lies outside."""
    from torchvision.transforms.functional import to_pil_image

    def views(way: Augmentation) -> list[Image]:
        set_seed(seed)
        square = _square(way)
        batch = torch.stack([square(photo) for _ in range(9)])
        pipeline = Pipeline([IntToFloatTensor(), *augmentation(way, size)], split_idx=0)
        return [to_pil_image(view.as_subclass(torch.Tensor).clamp(0, 1)) for view in pipeline(batch)]

    with torch.random.fork_rng():
        state = random.getstate()
        try:
            return {
                f"padding: {mode}{', as in the recipe' * (mode == plan.pad_mode)}": views(
                    replace(plan, pad_mode=mode)
                )
                for mode in ("zeros", "reflection")
            }
        finally:
            random.setstate(state)
