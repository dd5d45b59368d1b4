"""What is asked of the automatic layer of a model: its map, its grid, its classes and the place of the
evidence.

Weights are random and no head is zero. The layer's output is compared for images that differ in one cell of
the grid alone: where it changes most has to be that cell, or tokens stand in another order than they are
read in.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import timm
import torch
import torchvision
from torch import Tensor, nn

import camkit
from camkit import capture
from camkit.errors import CamkitWarning
from camkit.host import automatic_layer

METHODS = ("gradcam", "hirescam")
CELLS = 4  # how many places are tried for each model
AGREEMENT = 0.5  # between nearness and change, from -1 to 1; tokens in any order have 0.0, +-0.1


@dataclass(frozen=True)
class Found:
    """layer, grid: what `auto` is. faults: what is wrong with it, in words; none is right."""

    layer: str
    grid: tuple[int, ...]
    faults: tuple[str, ...]


def build(name: str, size: tuple[int, int], classes: int = 10) -> nn.Module:
    """`torchvision:NAME` or `timm:NAME` with random weights that are not zero, in eval mode.

    size: of the images, for models that are made for one.
    """
    library, _, name = name.partition(":")
    torch.manual_seed(0)
    if library == "torchvision":
        options: dict[str, object] = {"num_classes": classes}
        if name in ("googlenet", "inception_v3"):
            options["init_weights"] = False  # by scipy, for minutes
        if name.startswith("vit_"):
            options["image_size"] = size[0]
        module = torchvision.models.get_model(name, weights=None, **options)
    else:
        try:
            module = timm.create_model(name, num_classes=classes, img_size=size)
        except TypeError:
            module = timm.create_model(name, num_classes=classes)
    module.eval()
    for parameter in module.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return module


def examine(module: nn.Module, size: tuple[int, int], *, places: bool = True) -> Found:
    """The automatic layer of `module`, in float64 afterwards, for images of this size.

    places: whether to look where the output changes. Raises what `maps` raises.
    """
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    layer = automatic_layer(module, image).name
    with torch.no_grad():
        returned = module(image)
    scores = returned[0] if isinstance(returned, tuple | list) else returned
    best = scores[0].topk(2).indices  # a ReLU behind the others may leave them nothing
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", CamkitWarning)
        found = [camkit.maps(module, image, int(c), layer=[layer], method=METHODS) for c in best]
    faults = [str(warning.message) for warning in told if issubclass(warning.category, CamkitWarning)]
    for method in METHODS:
        maps = torch.cat([of_class[method, layer] for of_class in found])  # type: ignore[call-overload]
        faults += [f"{method} {fault}" for fault in _of_maps(maps)]
    grid = tuple(maps.shape[1:])
    if places and not faults:
        faults += _of_places(module, layer, image, grid)
    return Found(layer, grid, tuple(faults))


def _of_maps(maps: Tensor) -> list[str]:
    """What is wrong with maps `[T, h, w]`, one for each class."""
    if not maps.isfinite().all():
        return ["is not finite"]
    if not maps.flatten(1).any(1).all():
        return ["is zero"]
    unit = maps.flatten(1) / maps.flatten(1).norm(dim=1, keepdim=True)
    return ["does not depend on the class"] if (unit[0] - unit[1]).abs().max() < 1e-3 else []


def _of_places(module: nn.Module, layer: str, image: Tensor, grid: tuple[int, ...]) -> list[str]:
    """Whether the output changes most where the image does, or at least more the nearer."""
    h, w = grid
    generator = torch.Generator().manual_seed(1)
    cells = torch.randperm(h * w, generator=generator)[: 2 * CELLS].tolist()
    places = [divmod(cell, w) for cell in cells]
    missed = []
    for (i, j), change in zip(
        places, _changes(module, layer, image, grid, places[:CELLS], 3.0), strict=False
    ):
        a, b = divmod(int(change.argmax()), w)
        if max(abs(a - i), abs(b - j)) > 1:
            missed.append(f"changes most at {(a, b)} of {grid} for other pixels at {(i, j)}")
    if not missed:
        return []
    # Changes so small that no network, random as it is, makes something else of everything.
    slight = _changes(module.double(), layer, image.double(), grid, places, 1e-3).flatten(1)
    everywhere = torch.cartesian_prod(torch.arange(h) / h, torch.arange(w) / w).double()
    nearness = -torch.cdist(everywhere[cells], everywhere)
    logarithms = slight.clamp_min(1e-9 * slight.max()).log()
    pair = torch.stack([_centred(logarithms).flatten(), _centred(nearness).flatten()])
    return missed if torch.corrcoef(pair)[0, 1] < AGREEMENT else []


def _changes(
    module: nn.Module,
    layer: str,
    image: Tensor,
    grid: tuple[int, ...],
    places: list[tuple[int, int]],
    strength: float,
) -> Tensor:
    """How much the output changes at every place, `[n, h, w]`, if the image does in one of its n cells."""
    (h, w), (height, width) = grid, image.shape[2:]
    generator = torch.Generator().manual_seed(2)
    images = image.repeat(1 + len(places), 1, 1, 1)
    for changed, (i, j) in zip(images[1:], places, strict=True):
        cell = changed[:, i * height // h : (i + 1) * height // h, j * width // w : (j + 1) * width // w]
        cell += strength * torch.randn(cell.shape, generator=generator)
    features = capture.forward(module, images, [layer])[1][layer].features
    return (features[1:] - features[:1]).norm(dim=1)


def _centred(matrix: Tensor) -> Tensor:
    return matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()
