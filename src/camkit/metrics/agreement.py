"""How far maps agree. Agreement is not correctness: two explainers may be wrong in the same way.

Always at the maps' own resolution, because upsampling makes independent maps look alike, and beside its
`null`: what independent random maps of that size come to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from camkit.contracts.metric import MapBatch
from camkit.contracts.options import option
from camkit.core.devices import double
from camkit.metrics.function_metric import FunctionMetric
from camkit.metrics.map_tools import all_finite, not_constant, positions, scaled, uniform, where_defined
from camkit.registry import extras


def pearson(first: Tensor, second: Tensor) -> Tensor:
    """Linear correlation over the positions of maps `[B, h, w]`: `[B]`, -1 to 1, higher agrees more.

    NaN if either map is constant or not finite. Pearson 1895, doi:10.1098/rspl.1895.0041.
    """
    values = _correlation(double(first.flatten(1)), double(second.flatten(1)))
    return where_defined(not_constant(first) & not_constant(second), values.to(first))


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Correlation of the ranks, equal values sharing a rank: `[B]`, -1 to 1, higher agrees more.

    NaN if either map is constant or not finite. Spearman 1904, doi:10.2307/1412159.
    """
    values = _correlation(_shared_ranks(first), _shared_ranks(second))
    return where_defined(not_constant(first) & not_constant(second), values.to(first))


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Structural similarity of the maps scaled to [0, 1]: `[B]`, -1 to 1, higher agrees more.

    By scikit-image with `data_range` 1 and a window of 7, or the largest odd one that fits. NaN if either
    map is constant, not finite or smaller than 3 x 3. Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    extras.require("bench", "ssim")
    # Takes longer to import than all the rest to run.
    from skimage.metrics import structural_similarity

    similarity: Callable[..., float] = structural_similarity

    window = min(7, *first.shape[-2:])
    window -= 1 - window % 2
    defined = not_constant(first) & not_constant(second) & torch.tensor(window >= 3, device=first.device)
    pairs = zip(scaled(first).cpu().numpy(), scaled(second).cpu().numpy(), defined.tolist(), strict=True)
    values = [
        float(similarity(a, b, data_range=1.0, win_size=window)) if good else math.nan
        for a, b, good in pairs
    ]
    return torch.tensor(values, dtype=first.dtype, device=first.device)


def overlap(first: Tensor, second: Tensor, fraction: float = 0.2) -> Tensor:
    """Top-k overlap `|A and B| / k`, A and B the k highest positions: `[B]`, 0 to 1, higher agrees more.

    k is `fraction` of the positions, at least one; of equal values the first in reading order are taken.
    NaN if either map is constant or not finite. Feature agreement of Krishna et al. 2022, arXiv:2202.01602.
    """
    count = max(1, round(fraction * first[0].numel()))
    both = (positions(first) < count) & (positions(second) < count)
    return where_defined(not_constant(first) & not_constant(second), (both.sum(1) / count).to(first.dtype))


def jaccard(first: Tensor, second: Tensor, fraction: float = 0.2) -> Tensor:
    """`|A and B| / |A or B|` of the sets that `overlap` counts: `[B]`, 0 to 1, higher agrees more.

    Jaccard 1912, doi:10.1111/j.1469-8137.1912.tb05611.x.
    """
    shared = overlap(first, second, fraction)
    return shared / (2 - shared)


def difference(first: Tensor, second: Tensor) -> Tensor:
    """Largest absolute difference relative to the peak of `first`: `[B]`, 0 is equal, lower agrees more.

    Absolute if `first` is zero everywhere; NaN if either map is not finite.
    """
    a, b = double(first.flatten(1)), double(second.flatten(1))
    peak = a.abs().amax(1)
    values = (a - b).abs().amax(1) / torch.where(peak > 0, peak, 1.0)
    return where_defined(all_finite(first) & all_finite(second), values.to(first))


MEASURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "pearson": pearson,
    "spearman": spearman,
    "ssim": ssim,
    "overlap": overlap,
    "jaccard": jaccard,
}


def null(
    measure: Callable[[Tensor, Tensor], Tensor], size: tuple[int, int], pairs: int = 1000, seed: int = 0
) -> Tensor:
    """What `measure` says of `pairs` pairs of independent uniform random maps of `size`: `[pairs]`, sorted.

    Agreement below its 95 % quantile is no evidence of any.
    """
    maps = uniform((2, pairs, *size), seed, torch.empty(0))
    return measure(maps[0], maps[1]).sort().values


def _correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    length = torch.linalg.vector_norm(a, dim=1) * torch.linalg.vector_norm(b, dim=1)
    correlation: Tensor = (a * b).sum(1) / length
    return correlation.clamp(-1, 1)


def _shared_ranks(maps: Tensor) -> Tensor:
    flat = maps.flatten(1).contiguous()
    ordered = flat.sort(dim=1).values
    below, upto = (torch.searchsorted(ordered, flat, right=right) for right in (False, True))
    return double(below + upto)  # twice the rank: correlation does not mind


# --- as plugins --------------------------------------------------------------------


class _Agreement(FunctionMetric):
    category = "agreement"
    range = (-1.0, 1.0)
    needs = ("reference",)

    def result(self, batch: MapBatch) -> Tensor:
        agreement: Tensor = self.function(batch.reference, batch.maps, **vars(self.options))
        return agreement


class Pearson(_Agreement):
    """`pearson`."""

    summary = "Linear correlation with the reference's map"
    paper = "Pearson 1895, doi:10.1098/rspl.1895.0041"
    function = staticmethod(pearson)


class Spearman(_Agreement):
    """`spearman`."""

    summary = "Rank correlation with the reference's map"
    paper = "Spearman 1904, doi:10.2307/1412159"
    function = staticmethod(spearman)


class Ssim(_Agreement):
    """`ssim`."""

    summary = "Structural similarity to the reference's map, both scaled to 0 to 1"
    paper = "Wang et al. 2004, doi:10.1109/TIP.2003.819861"
    function = staticmethod(ssim)


@dataclass(frozen=True)
class TopOptions:
    """Options of the comparison of the highest positions."""

    fraction: float = option(0.2, help="of the positions that are highest", min=0.0, max=1.0)


class Overlap(_Agreement):
    """`overlap`."""

    summary = "Share of the highest positions that are so in the reference's map, too"
    range = (0.0, 1.0)
    paper = "Krishna et al. 2022, arXiv:2202.01602"
    Options: ClassVar[type] = TopOptions
    function = staticmethod(overlap)


class Jaccard(_Agreement):
    """`jaccard`."""

    summary = "Intersection over union of the highest positions of both maps"
    range = (0.0, 1.0)
    paper = "Jaccard 1912, doi:10.1111/j.1469-8137.1912.tb05611.x"
    Options: ClassVar[type] = TopOptions
    function = staticmethod(jaccard)
