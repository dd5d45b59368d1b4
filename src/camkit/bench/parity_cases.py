"""Cases in which libraries give different maps for one method, on tiny networks that are drawn from a seed.

An in-place ReLU right behind the layer overwrites its output, frozen weights let no gradient through, numpy
has no bfloat16, and a transformer has tokens in place of a grid. None of this should change a map: each is
compared with the first backend's on the plain twin, in float32.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from camkit.bench.entrants import Entrant, one_line
from camkit.bench.results import HardCase
from camkit.bench.survey import equal_within
from camkit.core.run_explainer import run as explain
from camkit.core.targets import target_selector
from camkit.metrics import agreement
from camkit.metrics.map_tools import normal

IMAGES, CLASSES, SIZE, PATCH, WIDTH = 4, 5, 32, 8, 16


class _Convolutional(nn.Sequential):
    """Two convolutions; the second is the layer `body`, and `inplace` is for the ReLU behind it."""

    def __init__(self, *, inplace: bool = False) -> None:
        parts: list[tuple[str, nn.Module]] = [
            ("stem", nn.Conv2d(3, WIDTH, 3, stride=2, padding=1)),
            ("between", nn.ReLU()),
            ("body", nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)),
            ("behind", nn.ReLU(inplace=inplace)),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("flat", nn.Flatten()),
            ("head", nn.Linear(WIDTH, CLASSES)),
        ]
        super().__init__(OrderedDict(parts))


class _Transformer(nn.Module):
    """Patches and a class token through one layer of attention; the layer is `norm`, before that one."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.first = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores `[B, CLASSES]`."""
        tokens = self.patches(inputs).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.first.expand(len(tokens), -1, -1), tokens], dim=1)
        normed = self.norm(tokens)
        mixed = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        scores: Tensor = self.head(mixed[:, 0])
        return scores


@dataclass(frozen=True)
class Case:
    """A network with its layer, and what makes it hard but should not change its maps.

    plain: the twin to compare it with; network: by default the same.
    """

    name: str
    plain: Callable[[], nn.Module]
    layer: str
    network: Callable[[], nn.Module] | None = None
    dtype: torch.dtype = torch.float32
    frozen: bool = False


CASES = (
    Case("plain", _Convolutional, "body"),
    Case("in-place ReLU", _Convolutional, "body", network=lambda: _Convolutional(inplace=True)),
    Case("frozen", _Convolutional, "body", frozen=True),
    Case("bfloat16", _Convolutional, "body", dtype=torch.bfloat16),
    Case("ViT", _Transformer, "norm"),
)


def hard_cases(rows: Sequence[Entrant], device: torch.device, seed: int = 0) -> list[HardCase]:
    """A record for `bench.json` for every method of several backends, every case and each backend.

    `difference` is the largest one between raw maps, relative to the reference's peak; `equal`, whether
    rounding explains it; `error`, one line if there is no map. A method's reference is the first backend;
    if that fails on a plain network, `difference` is `None` throughout.
    """
    runnable = [row for row in rows if row.explainer is not None]
    records = []
    for method in dict.fromkeys(row.method for row in runnable):
        sharing = [row for row in runnable if row.method == method]
        if len({row.backend for row in sharing}) > 1:
            records += [record for case in CASES for record in _compared(case, sharing, device, seed)]
    return records


def _compared(case: Case, rows: Sequence[Entrant], device: torch.device, seed: int) -> Iterator[HardCase]:
    twin, network = (_drawn(make, seed, device) for make in (case.plain, case.network or case.plain))
    network.to(case.dtype).requires_grad_(not case.frozen)
    inputs = normal((IMAGES, 3, SIZE, SIZE), seed, torch.empty(0, device=device))
    reference, _ = _maps(rows[0], twin, inputs, case.layer)
    for row in rows:
        found, error = _maps(row, network, inputs.to(case.dtype), case.layer)
        difference = None
        if found is not None and reference is not None:
            if found.shape == reference.shape:
                difference = float(agreement.difference(reference, found).max())
            else:
                error = f"maps of {list(found.shape[-2:])}, the reference's {list(reference.shape[-2:])}"
        limit = equal_within(str(case.dtype).removeprefix("torch."), device)
        equal = None if difference is None else difference <= limit
        yield HardCase(row.method, case.name, row.backend, difference, error, equal)


def _drawn(make: Callable[[], nn.Module], seed: int, device: torch.device) -> nn.Module:
    """A network with random weights, which depend on the seed only, not on the device."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return make().eval().to(device)


def _maps(row: Entrant, network: nn.Module, inputs: Tensor, layer: str) -> tuple[Tensor | None, str | None]:
    """Raw maps in float32, or why there are none."""
    targets = target_selector(torch.arange(len(inputs), device=inputs.device) % CLASSES, len(inputs))
    assert row.explainer is not None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            answer = explain(row.explainer, row.backend, network, inputs, [layer], [row.method], targets)
        return answer.maps[row.method, layer][:, 0].float(), None
    except Exception as error:  # of a plugin, which may raise anything
        return None, one_line(error)
