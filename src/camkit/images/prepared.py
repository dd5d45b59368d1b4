"""Tensors that were prepared elsewhere, as loaders have them: they are drawn, and else left alone."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from camkit.errors import ImageError, ModelError
from camkit.images import inputs
from camkit.images.decoding import Photo
from camkit.images.inputs import Row
from camkit.images.preprocess import OWN, Preprocess

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, device

SLACK = 0.25  # outside [0, 1]: a cubic filter overshoots, too
NEAR = 0.03  # of the end of a range, where the darkest and lightest pixels of a photograph lie
# Ranges of tensors that were prepared in usual ways, and how.
USUAL = {(0.0, 1.0): "not normalised", (-1.0, 1.0): "normalised with mean 0.5 and std 0.5"}


def shape_of(row: Row) -> tuple[int, int, int]:
    """`[C, H, W]` of a prepared tensor; `ImageError` for what is none."""
    tensor = row.image
    if not hasattr(tensor, "detach") or tensor.ndim != 3 or not tensor.is_floating_point():
        kind = type(tensor).__name__
        kind += f" of {tensor.dtype} {list(tensor.shape)}" if hasattr(tensor, "dtype") else ""
        text = f"prepared=True is for floating-point tensors [C, H, W], not {kind}"
        raise ImageError(f"{row.name}: {text}" if row.name else text)
    channels, height, width = tensor.shape
    return channels, height, width


@dataclass(frozen=True)
class TensorPreprocess(Preprocess):
    """What a model is shown is made elsewhere: a view is a picture that carries its tensor with it."""

    @property
    def knows_place(self) -> bool:
        """No: what makes the tensors is not known."""
        return False

    def cut(self, image: Image.Image) -> Image.Image:
        """Not known: `ImageError`."""
        raise ImageError("which part of a photograph the model sees is not known: it is prepared elsewhere")

    def batch(self, views: Sequence[Image.Image], device: str | device = "cpu") -> Tensor:
        """The tensors of views, `[B, C, H, W]`."""
        import torch

        tensors = [view.info["tensor"] for view in views]
        if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
            raise ModelError(
                f"inputs have several sizes, {' and '.join(map(str, shapes))}: use batch_size=1"
            )
        return torch.stack(tensors).to(device)

    def drawn(self, tensor: Tensor) -> Image.Image:
        """A view with its tensor `[C, H, W]`: mean and std undone, or from darkest to lightest."""
        pixels = self.pixels(tensor)
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= -SLACK and high <= 1 + SLACK):
            pixels = (pixels - low) / max(high - low, 1e-12)
        shown = (pixels[:3] if len(pixels) >= 3 else pixels[:1]).clamp(0, 1)
        view = inputs.picture(shown).convert("RGB")
        view.info["tensor"] = tensor
        return view


@dataclass(frozen=True)
class PreparedInputs(TensorPreprocess):
    """For tensors that the model takes as they are; mean and std only tell how to draw them.

    known: whether mean and std are said to be the model's, and not only usual.
    """

    known: bool = True

    @classmethod
    def like(cls, usual: Preprocess, shape: tuple[int, int, int], *, known: bool) -> PreparedInputs:
        """For tensors `[C, H, W]` of a model that is shown `usual` photographs."""
        channels, height, width = shape
        known = known and usual.channels == channels
        known = known and getattr(usual, "known", not isinstance(usual, TensorPreprocess))
        mean, std = (usual.mean, usual.std) if usual.channels == channels else ((0.0,), (1.0,))
        many = channels // len(mean)
        return cls(size=(height, width), fit="none", mean=mean * many, std=std * many, known=known)

    def photo(self, tensor: Tensor, name: str) -> Photo:
        """A tensor `[C, H, W]` as a photograph called `name`; `ImageError` for anything else.

        Its warnings tell what in it does not look prepared for this model.
        """
        import torch

        channels, *_ = shape_of(Row(tensor, name))
        if channels != self.channels:
            raise ImageError(f"{name} has {channels} channels, and those before it {self.channels}")
        own = tensor.detach().as_subclass(torch.Tensor).to("cpu", copy=True).contiguous()
        if not bool(torch.isfinite(own).all()):
            raise ImageError(f"{name} has values that are NaN or infinite")
        digest = hashlib.sha256(own.view(torch.uint8).numpy().tobytes()).hexdigest()
        return Photo(self.drawn(own), name, digest, self._doubts(own), name=PurePath(name).name, cut=True)

    def view(self, image: Image.Image) -> Image.Image:
        """A view as it is; `ImageError` for a photograph, as it is not known how to prepare one."""
        if "tensor" not in image.info:
            raise ImageError(
                "this model takes prepared tensors: for photographs give the one it comes from"
            )
        return image

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it: not how the tensors were made."""
        told = {name: value for name, value in super().to_dict().items() if name != "known"}
        return {**told, OWN: "prepared=True"}

    def _doubts(self, tensor: Tensor) -> tuple[str, ...]:
        """Why a tensor may not be prepared for the model, if its values say so."""
        if not self.known:
            return ()
        pixels = self.pixels(tensor)
        low, high = float(pixels.min()), float(pixels.max())
        said = f"the model's mean {_short(self.mean)} and std {_short(self.std)}"
        if low < -SLACK or high > 1 + SLACK:
            return (
                f"with {said} undone the tensors reach from {low:.2g} to {high:.2g}, not from 0 to 1: they "
                "were normalised with others, and are given to the model as they are",
            )
        low, high = float(tensor.min()), float(tensor.max())
        dark = min((0 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        light = max((1 - m) / s for m, s in zip(self.mean, self.std, strict=True))
        for (least, most), how in USUAL.items():
            inside = least <= low <= high <= most and (low < least + NEAR or high > most - NEAR)
            if inside and (dark < least - SLACK or light > most + SLACK):
                return (
                    f"values from {low:.2g} to {high:.2g} look {how}, and {said} make {dark:.2g} to "
                    f"{light:.2g}: the tensors are given to the model as they are",
                )
        return ()


def _short(values: Sequence[float]) -> str:
    return ",".join(f"{value:.3g}" for value in values)
