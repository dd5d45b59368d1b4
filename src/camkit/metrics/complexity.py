"""How concentrated maps are. A map may be simple and wrong: never read these alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from camkit.contracts.metric import MapBatch, Metric, Scores
from camkit.metrics.map_tools import only, usable


def gini(maps: Tensor) -> Tensor:
    """Gini index of the absolute values of maps `[B, h, w]`: `[B]`, 0 (even) to 1 - 1/N, higher is sparser.

    `1 - 2 sum_k v_k (N - k + 1/2) / (N sum v)`, `v` ascending. NaN if the map is zero everywhere or not
    finite. Hurley and Rickard 2009, arXiv:0811.4706; for attributions Chalasani et al. 2020,
    arXiv:1810.06583.
    """
    values = maps.abs().flatten(1).double().sort(dim=1).values
    count, total = values.shape[1], values.sum(1)
    weights = torch.arange(count - 0.5, 0, -1, device=maps.device, dtype=values.dtype)
    index = 1 - 2 * (values @ weights) / (count * total)
    return only(usable(maps) & (total > 0), index.to(maps.dtype))


def entropy(maps: Tensor) -> Tensor:
    """Entropy of the shares of the absolute values: `[B]`, 0 (one position) to 1 (even), lower is simpler.

    In units of its largest value, `log N`, so that resolutions can be compared. NaN if the map is zero
    everywhere or not finite. Bhatt et al. 2020, arXiv:2005.00631.
    """
    values = maps.abs().flatten(1).double()
    total = values.sum(1, keepdim=True)
    shares = torch.special.entr(values / total).sum(1) / max(math.log(values.shape[1]), 1e-12)
    return only(usable(maps) & (total[:, 0] > 0), shares.to(maps.dtype))


# --- as plugins --------------------------------------------------------------------


class Gini(Metric):
    """`gini`."""

    summary = "How sparse the map is: 0 even, towards 1 all in one place"
    category = "complexity"
    direction = "higher"
    range = (0.0, 1.0)
    paper = "Chalasani et al. 2020, arXiv:1810.06583"

    def score(self, batch: MapBatch) -> Scores:
        return Scores(gini(batch.maps))


class Entropy(Metric):
    """`entropy`."""

    summary = "How spread the map is: 0 all in one place, 1 even"
    category = "complexity"
    direction = "lower"
    range = (0.0, 1.0)
    paper = "Bhatt et al. 2020, arXiv:2005.00631"

    def score(self, batch: MapBatch) -> Scores:
        return Scores(entropy(batch.maps))
