"""What is drawn of a map: its sign, its scale, its values between cells, and what no picture can show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from camkit.drawing.style import Style
from camkit.errors import MapError

Box = tuple[float, float, float, float]
Values = np.ndarray[Any, Any]
Kind = Literal["signed", "for", "against"]
Kernel = Literal["bicubic", "bilinear", "nearest"]

# Of the largest absolute value of a map: what is not above it is what its sums round off, and no evidence
# for or against a class. In `core.formulas`, too, a sum has to exceed so many epsilons of its terms.
ROUNDING = 64 * 2.0**-23
ONE_THREAD = 2**18  # multiplications of a product that OpenBLAS and MKL leave to one thread


@dataclass(frozen=True)
class Scale:
    """Which values the first and the last colour of a table stand for.

    kind: whether values of both signs are shown, or what speaks for, or against.
    shared: whether it was given, so that pictures can be compared; else the map reaches to one of its ends.
    """

    low: float
    high: float
    kind: Kind = "signed"
    shared: bool = False

    def places(self, values: Values) -> Values:
        """Where values lie between first (0) and last colour (1); beyond the ends, at them."""
        if self.low == self.high:
            return np.zeros_like(values)
        places = values - self.low
        places /= self.high - self.low  # in place: to make an array takes longer than to fill it
        return np.clip(places, 0, 1, out=places)


def signed(map: Tensor, style: Style) -> Tensor:
    """The map that is drawn: as it is, rectified, or negated and rectified; see `positive`."""
    if style.counterfactual:
        return positive(-map)
    if style.relu or style.look == "spotlight":
        return positive(map)
    return map if style.look == "lesson" else positive(map) - positive(-map)


def positive(map: Tensor) -> Tensor:
    """A map, rectified; zero where its positive values are nothing but rounding."""
    rectified = map.clamp(min=0)
    return rectified if rectified.max() > ROUNDING * map.abs().max() else rectified * 0


def scale_of(maps: Sequence[Tensor], style: Style) -> Scale:
    """The scale of maps that are drawn together.

    The lesson's goes from minimum to maximum; every other has zero in the middle, or at the beginning.
    """
    low, high = extent([signed(map.detach().cpu().double(), style) for map in maps])
    if style.look == "lesson":
        return Scale(low, high, shared=True)  # all of it is used
    given = None if isinstance(style.scale, str) else style.scale
    full = given or max(-low, high)
    if style.counterfactual:
        return Scale(0, full, "against", given is not None)
    if style.relu or style.look == "spotlight":
        return Scale(0, full, "for", given is not None)
    return Scale(-full, full, "signed", given is not None)


def extent(maps: Sequence[Tensor]) -> tuple[float, float]:
    """Minimum and maximum over raw maps, so that a scale does not depend on the size of a picture."""
    return min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)


Remark = Literal["constant", "nothing for", "nothing against", "least against"]


def remark(map: Tensor, style: Style) -> Remark | None:
    """What has to be said of the picture of a map.

    `least against`: no value is positive, and in the lesson's look, which is stretched to what there is,
    the brightest place is no evidence.
    """
    if is_flat(map):
        return "constant"
    if positive(-map if style.counterfactual else map).any():
        return None
    if style.counterfactual:
        return "nothing against"
    drawn = signed(map, style)
    return "least against" if style.look == "lesson" and not is_flat(drawn) else "nothing for"


def is_flat(map: Tensor) -> bool:
    """Whether all values are equal, so that a picture shows nothing."""
    return bool(map.max() == map.min())


def check_finite(map: Tensor) -> None:
    """Raise `MapError` if a value of `map` is NaN or infinite."""
    bad = int((~torch.isfinite(map)).sum())
    if bad:
        raise MapError(
            f"{bad} of the map's {map.numel()} values are NaN or infinite; the model's activations or "
            "gradients overflow (try --dtype float32)"
        )


def sampled(map: Tensor, box: Box, pixels: tuple[int, int, int, int], kernel: Kernel = "bicubic") -> Values:
    """The map, stretched over `box`, at the centres of `pixels`: float64 `[y1 - y0, x1 - x0]`.

    Bicubic and cut off at the map's extremes; or bilinear: on whole boxes torch's `interpolate` without
    aligned corners; or the value of the nearest cell. In numpy, because several pictures are drawn at a
    time, beside a model that has torch's threads for itself.
    """
    left, top, right, bottom = box
    x0, y0, x1, y1 = pixels
    values = map.detach().cpu().double().numpy()
    weights = KERNELS[kernel]
    rows = weights((np.arange(y0, y1) + 0.5 - top) / (bottom - top), values.shape[0])
    columns = weights((np.arange(x0, x1) + 0.5 - left) / (right - left), values.shape[1])
    found = _product(rows, values @ columns.T)
    return np.clip(found, values.min(), values.max(), out=found) if kernel == "bicubic" else found


def _product(a: Values, b: Values) -> Values:
    """`a @ b` in parts that BLAS does in the calling thread: its other threads would wait busily."""
    found = np.empty((len(a), b.shape[1]))
    rows = max(1, ONE_THREAD // max(1, b.size))
    for start in range(0, len(a), rows):
        part = slice(start, start + rows)
        np.matmul(a[part], b, out=found[part])
    return found


def _bilinear(places: Values, count: int) -> Values:
    """The weight of each of `count` cells of [0, 1] at `places`: `[len(places), count]`; rows sum to 1."""
    centres = np.clip(places * count - 0.5, 0, count - 1)
    return np.asarray(np.clip(1 - np.abs(centres[:, None] - np.arange(count)), 0, None))


def _bicubic(places: Values, count: int) -> Values:
    """As `_bilinear`, by Keys' kernel (a = -0.5), as Pillow has it; the outermost cells go on outside."""
    centres = np.clip(places * count - 0.5, -0.5, count - 0.5)
    x = np.abs(centres[:, None] - np.arange(-2, count + 2))
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    weights[:, 2] += weights[:, :2].sum(1)
    weights[:, -3] += weights[:, -2:].sum(1)
    return np.asarray(weights[:, 2:-2])


def _nearest(places: Values, count: int) -> Values:
    """As `_bilinear`, of the cell that a place lies in."""
    cells = np.clip(np.floor(places * count), 0, count - 1)
    return np.asarray(cells[:, None] == np.arange(count), dtype=float)


KERNELS: dict[Kernel, Callable[[Values, int], Values]] = {
    "bicubic": _bicubic,
    "bilinear": _bilinear,
    "nearest": _nearest,
}
