"""Black box: maps from scores of inputs with parts hidden. No layer, no gradient, no look into the model.

What is hidden becomes zero, which after normalisation is the mean colour. Every image gets the same masks.
They run in chunks of one image, so memory does not grow with their number, and an image alone has the same
map as in a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from math import ceil, prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.quasirandom import SobolEngine

from camkit.contracts.explainer import Sweep
from camkit.core import mask_formulas
from camkit.core.mask_formulas import SHARE, Z
from camkit.core.stand_in import wide
from camkit.errors import OptionError
from camkit.native.method_table import NativeOptions
from camkit.native.perturbation import inputs_at_once, rows_at_once

FEWEST_POINTS = 4  # of a Sobol sequence
GROWTH = 1.5  # from one look at the interval to the next


class Design(ABC):
    """Masks for inputs of one shape, and what is made of the scores under them.

    A sample is as many masks as belong together. size: of the masks. grid: of the cells.
    Raises `OptionError` where the options leave too few samples.
    """

    fewest: ClassVar[int] = 256  # samples before the first look at the interval
    masks_each = 1

    def __init__(self, options: NativeOptions, like: Tensor) -> None:
        self.size = tuple(like.shape[2:])
        self.grid = tuple(min(options.cells, side) for side in self.size)
        self.options, self.device = options, like.device
        # On the host, so that the masks are the same on every device.
        self.generator = torch.Generator().manual_seed(options.seed)

    @property
    def samples(self) -> int:
        """At most."""
        return self.options.masks // self.masks_each

    @abstractmethod
    def masks(self, rows: Tensor) -> Tensor:
        """Those of the rows `[n]`, `[n, *size]`."""

    @abstractmethod
    def estimate(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """From scores `[n, T]` of whole samples to values and standard errors, `[T, P]` both."""

    def maps(self, scores: Tensor) -> Tensor:
        """From scores `[n, T]` of whole samples to maps `[T, h, w]`."""
        return self.estimate(scores)[0].reshape(-1, *self.grid)

    def drawn_cells(self) -> Tensor:
        """Random cells `[samples, *grid]`, 0 or 1."""
        drawn = torch.rand((self.samples, *self.grid), generator=self.generator)
        return (drawn < SHARE).float().to(self.device)


class Rise(Design):
    """Petsiuk et al. 2018, arXiv:1806.07421: random cells, enlarged bilinearly and shifted at random.

    The enlarging is linear along each side, so a mask is a product with one small matrix for each side.
    """

    def __init__(self, options: NativeOptions, like: Tensor) -> None:
        super().__init__(options, like)
        self._cells = self.drawn_cells()
        steps = [ceil(side / cells) for side, cells in zip(self.size, self.grid, strict=True)]
        shifts = [torch.randint(step, (self.samples,), generator=self.generator) for step in steps]
        self._shifts = torch.stack(shifts).to(self.device)
        self._tables = [  # from cells to pixels, for a mask with room to be shifted
            F.interpolate(torch.eye(n)[None], (n + 1) * step, mode="linear")[0].t().to(self.device)
            for n, step in zip(self.grid, steps, strict=True)
        ]
        self._everywhere = [torch.arange(side, device=self.device) for side in self.size]
        # Masks are smooth, so a few positions in each cell tell how wide the interval is.
        self._some = [
            all_[:: max(1, step // 4)] for all_, step in zip(self._everywhere, steps, strict=True)
        ]

    def masks(self, rows: Tensor) -> Tensor:
        """Those of the rows `[n]`, `[n, *size]`."""
        return self._at(rows, self._everywhere)

    def _at(self, rows: Tensor, positions: Sequence[Tensor]) -> Tensor:
        """The masks of the rows at some positions along each side."""
        masks = self._cells[rows]
        for table, shifts, where in zip(self._tables, self._shifts, positions, strict=True):
            enlarge, rest = table[shifts[rows, None] + where], masks.shape[2:]  # [n, positions, cells]
            masks = enlarge @ masks.reshape(*masks.shape[:2], -1)
            masks = masks.reshape(*masks.shape[:2], *rest).movedim(1, -1)  # the next side is first now
        return masks

    def estimate(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Values and errors at some of the positions."""
        masks = self._at(torch.arange(len(scores), device=self.device), self._some).flatten(1).to(scores)
        weights = mask_formulas.rise_weights(scores, self.options.centred)
        return weights.t() @ masks, mask_formulas.rise_errors(scores, masks, self.options.centred)

    def maps(self, scores: Tensor) -> Tensor:
        """Maps `[T, *size]`, one value for each pixel."""
        weights = mask_formulas.rise_weights(scores, self.options.centred)
        rows = torch.arange(len(scores), device=self.device)
        total = scores.new_zeros(scores.shape[1], prod(self.size))
        step = rows_at_once(self.fewest, total[:1], 1)
        for some, part in zip(torch.split(rows, step), torch.split(weights, step), strict=True):
            total += part.t() @ self.masks(some).flatten(1).to(part)
        return total.reshape(-1, *self.size)


class Sobol(Design):
    """Fel et al. 2021, arXiv:2111.04138: how much of the score's variance a cell has part in.

    Masks take all values from 0 to 1, from a scrambled Sobol sequence.
    """

    fewest = 16

    def __init__(self, options: NativeOptions, like: Tensor) -> None:
        super().__init__(options, like)
        count = prod(self.grid)
        self.masks_each = 1 + count
        if 2 * count > SobolEngine.MAXDIM:
            most = SobolEngine.MAXDIM // 2
            raise OptionError(f"sobol takes at most {most} cells, not {count}: choose fewer")
        if self.samples < FEWEST_POINTS:
            raise OptionError(
                f"sobol needs at least {FEWEST_POINTS * self.masks_each} masks for {count} cells "
                f"({FEWEST_POINTS} points, a mask more than there are cells for each), "
                f"not {options.masks}: choose fewer cells or more masks"
            )
        engine: Any = SobolEngine  # without types
        points: Tensor = engine(2 * count, scramble=True, seed=options.seed).draw(self.samples)
        self._own, self._other = points.to(self.device).chunk(2, dim=1)

    def masks(self, rows: Tensor) -> Tensor:
        """Of each point the mask of its own, and those with one cell of another point."""
        point, cell = rows // self.masks_each, rows % self.masks_each - 1
        masks, columns = self._own[point], torch.arange(self._own.shape[1], device=self.device)
        masks = torch.where(cell[:, None] == columns, self._other[point], masks)
        return _enlarged(masks.reshape(-1, *self.grid), self.size)

    def estimate(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and errors."""
        return mask_formulas.sobol(scores.reshape(-1, self.masks_each, scores.shape[1]))


class Hsic(Design):
    """Novello et al. 2022, arXiv:2206.06219: how much the score depends on a cell, in whatever way."""

    def __init__(self, options: NativeOptions, like: Tensor) -> None:
        super().__init__(options, like)
        self._cells = self.drawn_cells()

    def masks(self, rows: Tensor) -> Tensor:
        """Those of the rows `[n]`, `[n, *size]`."""
        return _enlarged(self._cells[rows], self.size)

    def estimate(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Dependences and errors."""
        return mask_formulas.hsic(scores, self._cells[: len(scores)].flatten(1).to(scores))


DESIGNS: dict[str, type[Design]] = {"rise": Rise, "sobol": Sobol, "hsic": Hsic}


def maps(sweep: Sweep, methods: Sequence[str], options: NativeOptions) -> dict[tuple[str, str], Tensor]:
    """Maps `[B, T, h, w]` of black-box methods, the same for each layer; all classes share the forwards."""
    designs = {method: DESIGNS[method](options, sweep.inputs) for method in methods}  # refuses first
    with torch.no_grad():
        targets = sweep.choose(sweep.module(sweep.inputs, *sweep.extras))
    found: dict[tuple[str, str], Tensor] = {}
    for method, design in designs.items():
        images = []
        for image, classes in enumerate(targets):
            made, width = explained(design, _under_masks(sweep, design, image, classes), len(classes))
            images.append(made)
            if width is not None:
                this = torch.arange(len(targets), device=targets.device) == image
                for layer in sweep.layers:
                    sweep.remark(method, layer, this, uncertain(width, design))
        found |= {(method, layer): torch.stack(images) for layer in sweep.layers}
    return found


def uncertain(width: float, design: Design) -> str:
    """What is said of a map whose interval stayed too wide, at `width` of the peak."""
    masks = design.samples * design.masks_each
    return (
        f"is uncertain: after {masks} masks the 95 % interval of a value is up to ±{width:.0%} "
        f"of the map's peak, more than tolerance={design.options.tolerance:g}: raise masks"
    )


def _under_masks(sweep: Sweep, design: Design, image: int, targets: Tensor) -> Callable[[Tensor], Tensor]:
    """From rows `[n]` of the design to the scores `[n, T]` of one image under their masks."""
    x, *extras = (value[image : image + 1] for value in (sweep.inputs, *sweep.extras))
    together = inputs_at_once(design.options.batch_size, x)

    def scores(rows: Tensor) -> Tensor:
        masked = x * design.masks(rows)[:, None].to(x.dtype)
        found = sweep.module(masked, *(value.expand(len(rows), *value.shape[1:]) for value in extras))
        return wide(found.detach()[:, targets])

    @torch.no_grad()
    def run(rows: Tensor) -> Tensor:
        return torch.cat([scores(part) for part in torch.split(rows, together)])

    return run


def explained(design: Design, run: Callable[[Tensor], Tensor], classes: int) -> tuple[Tensor, float | None]:
    """Maps `[T, h, w]` of one image, and how wide an interval stayed, as a share of the peak, if too wide.

    run: from rows of the design to scores `[n, T]`. A class is done once the 95 % interval of every value
    of its map reaches, to each side, at most `tolerance` times the largest absolute value; its map is made
    of the masks so far, so it does not depend on which others are asked for. With the tolerance 0 all run.
    """
    device, tolerance = design.device, design.options.tolerance
    waiting, made = torch.arange(classes, device=device), dict[int, Tensor]()
    scores, width = torch.empty(0, device=device), None
    for count in looks(design):
        rows = torch.arange(len(scores), count * design.masks_each, device=device)
        scores = torch.cat([scores, run(rows)]) if len(scores) else run(rows)
        last = count == design.samples
        wider = torch.zeros(len(waiting), dtype=torch.bool, device=device)
        if tolerance:
            values, errors = design.estimate(scores[:, waiting])
            shares = Z * errors.amax(1) / values.abs().amax(1)
            wider = shares > tolerance  # not where it is NaN, as of a map of zeros, or of NaN
            if last:
                width = float(shares[wider].max()) if bool(wider.any()) else None
        ready, waiting = (waiting, waiting[:0]) if last else (waiting[~wider], waiting[wider])
        if len(ready):
            made |= dict(zip(ready.tolist(), design.maps(scores[:, ready]), strict=True))
        if not len(waiting):
            break
    return torch.stack([made[index] for index in range(classes)]), width


def looks(design: Design) -> Iterator[int]:
    """After how many samples the interval is looked at; the last time after all."""
    count = design.fewest if design.options.tolerance else design.samples
    while count < design.samples:
        yield count
        count = ceil(count * GROWTH)
    yield design.samples


def _enlarged(cells: Tensor, size: tuple[int, ...]) -> Tensor:
    """Cells `[n, *grid]` as masks `[n, *size]` with sharp edges, as in both papers."""
    return F.interpolate(cells[:, None], size, mode="nearest")[:, 0]
