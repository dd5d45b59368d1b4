"""How concentrated maps are. A map may be simple and wrong: never read these alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from camkit.core.devices import double
from camkit.metrics.function_metric import FunctionMetric
from camkit.metrics.map_tools import all_finite, where_defined


def gini(maps: Tensor) -> Tensor:
    """Gini index of the absolute values of maps `[B, h, w]`: `[B]`, 0 (even) to 1 - 1/N, higher is sparser.

    `1 - 2 sum_k v_k (N - k + 1/2) / (N sum v)`, `v` ascending. NaN if the map is zero everywhere or not
    finite. Hurley and Rickard 2009, arXiv:0811.4706; for attributions Chalasani et al. 2020,
    arXiv:1810.06583.
    """
    values = double(maps.abs().flatten(1)).sort(dim=1).values
    count, total = values.shape[1], values.sum(1)
    weights = torch.arange(count - 0.5, 0, -1, device=values.device, dtype=values.dtype)
    index = 1 - 2 * (values @ weights) / (count * total)
    return where_defined(all_finite(maps) & (total > 0).to(maps.device), index.to(maps))


def entropy(maps: Tensor) -> Tensor:
    """Entropy of the shares of the absolute values: `[B]`, 0 (one position) to 1 (even), lower is simpler.

    In units of its largest value, `log N`, so that resolutions can be compared. NaN if the map is zero
    everywhere or not finite. Bhatt et al. 2020, arXiv:2005.00631.
    """
    values = double(maps.abs().flatten(1))
    total = values.sum(1, keepdim=True)
    shares = torch.special.entr(values / total).sum(1) / max(math.log(values.shape[1]), 1e-12)
    return where_defined(all_finite(maps) & (total[:, 0] > 0).to(maps.device), shares.to(maps))


# --- as plugins --------------------------------------------------------------------


class _Complexity(FunctionMetric):
    category = "complexity"


class Gini(_Complexity):
    """`gini`."""

    summary = "How sparse the map is: 0 even, towards 1 all in one place"
    paper = "Chalasani et al. 2020, arXiv:1810.06583"
    function = staticmethod(gini)


class Entropy(_Complexity):
    """`entropy`."""

    summary = "How spread the map is: 0 all in one place, 1 even"
    direction = "lower"
    paper = "Bhatt et al. 2020, arXiv:2005.00631"
    function = staticmethod(entropy)
