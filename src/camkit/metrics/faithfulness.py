"""Whether maps tell what the model uses: change inputs where they say it matters, and see the score.

`f` is the model, from inputs `[B, C, H, W]` to scores `[B, n_classes]`; `targets` int64 `[B]`. Scores of
the target are probabilities, as in the papers, or with `logits=True` the model's own scores; `scores` says
what those are (`camkit.scores`), and of `none` there are no probabilities. Maps `[B, h, w]` are brought to
the size of the inputs as they are drawn; equal pixels are ranked in reading order. `chunk` is how many
changed inputs the model is given at once. NaN where a map is constant or not finite, unless said otherwise:
there is nothing to rank.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from camkit.metrics.basics import normal, only, positions, resized, scaled, telling, uniform, usable
from camkit.metrics.imputation import NOISE, impute
from camkit.scores import ScoreKind, meaning, probabilities, squashed

Model = Callable[[Tensor], Tensor]
First = Literal["most", "least"]

STEPS = 20
CHUNK = 64
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


# --- pixels removed step by step --------------------------------------------------------------------


def deletion_curve(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    first: First = "most",
    baseline: Tensor | None = None,
    steps: int = STEPS,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """Score while pixels are replaced by `baseline` in `steps` equal parts: `[B, steps + 1]`.

    first: whether the most or the least relevant pixels go first. baseline: `[B, C, H, W]` or what can be
    expanded to it; zero by default. The first point is the input itself, the last the baseline.
    """
    parts = range(steps + 1) if first == "most" else range(0, -steps - 1, -1)
    return _deleted(f, inputs, maps, targets, parts, baseline, steps, chunk, logits, scores)


def _deleted(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    parts: Sequence[int],
    baseline: Tensor | None,
    steps: int,
    chunk: int,
    logits: bool,
    scores: ScoreKind,
) -> Tensor:
    """Score without some of `steps` equal parts of the pixels: `[B, len(parts)]`.

    A part is how many of them are gone: the most relevant ones, or if it is negative the least relevant.
    """
    gone = torch.zeros_like(inputs) if baseline is None else baseline.expand_as(inputs)
    full = resized(maps, inputs.shape[-2:])
    ranks = positions(full).view(full.shape)
    pixels = full[0].numel()
    part = torch.tensor(parts, device=inputs.device)
    counts = torch.linspace(0, pixels, steps + 1, device=inputs.device).round().long()[part.abs()]
    least = part < 0

    def change(step: Tensor, image: Tensor) -> Tensor:
        rank = torch.where(least[step, None, None], pixels - 1 - ranks[image], ranks[image])
        removed = rank < counts[step, None, None]
        return torch.where(removed[:, None], gone[image], inputs[image])

    curves = _evaluate(f, targets, change, len(parts), chunk, logits, scores)
    return only(telling(maps)[:, None], curves)


def insertion_curve(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor | None = None,
    steps: int = STEPS,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """Score while pixels are put into `baseline`, the most relevant first: `[B, steps + 1]`.

    baseline: the inputs `blurred` by default. Putting in the most relevant first is deletion of the least
    relevant first, read backwards.
    """
    start = blurred(inputs) if baseline is None else baseline
    gone = deletion_curve(
        *(f, inputs, maps, targets),
        first="least",
        baseline=start,
        steps=steps,
        chunk=chunk,
        logits=logits,
        scores=scores,
    )
    return gone.flip(1)


def area(curves: Tensor) -> Tensor:
    """Area under curves `[B, n + 1]` over [0, 1]: `(sum s - s_0 / 2 - s_n / 2) / n`, `[B]`."""
    return (curves.sum(1) - (curves[:, 0] + curves[:, -1]) / 2) / (curves.shape[1] - 1)


def deletion(f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    """Area under `deletion_curve`, the most relevant set to zero first: `[B]`, 0 to 1, lower is better.

    Depends on how the model takes to zeros; `symmetric_relevance_gain` does less. settings: as there.
    Petsiuk et al. 2018 (RISE), arXiv:1806.07421.
    """
    return area(deletion_curve(f, inputs, maps, targets, **settings))


def insertion(f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **settings: Any) -> Tensor:
    """Area under `insertion_curve`, from a blurred image: `[B]`, 0 to 1, higher is better.

    settings: those of `insertion_curve`. Petsiuk et al. 2018 (RISE), arXiv:1806.07421.
    """
    return area(insertion_curve(f, inputs, maps, targets, **settings))


def gain_curve(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    baseline: Tensor | None = None,
    steps: int = STEPS,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """`deletion_curve` with the least relevant pixels first, less that with the most: `[B, steps + 1]`."""
    # Both begin and end with the same image, of which the score is asked for once.
    parts = [*range(steps + 1), *range(-1, -steps, -1)]
    found = _deleted(f, inputs, maps, targets, parts, baseline, steps, chunk, logits, scores)
    most, least = found[:, : steps + 1], found[:, steps + 1 :]
    return torch.cat([most[:, :1], least, most[:, -1:]], dim=1) - most


def symmetric_relevance_gain(
    f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, **settings: Any
) -> Tensor:
    """Area under `gain_curve`: `[B]`, -1 to 1, higher is better.

    A random map comes to about 0 whatever the baseline, which is why this is the headline. settings: those
    of `deletion_curve`. Bluecher et al. 2024, arXiv:2401.06654.
    """
    return area(gain_curve(f, inputs, maps, targets, **settings))


def blurred(inputs: Tensor, sigma: float = 5.0) -> Tensor:
    """Inputs `[B, C, H, W]` under a Gaussian of 11 x 11 pixels, edges repeated: the start of insertion."""
    along = torch.arange(-5, 6, device=inputs.device, dtype=torch.float32)
    kernel = torch.exp(-(along**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).to(inputs.dtype)
    flat = inputs.flatten(0, 1)[:, None]
    flat = F.conv2d(F.pad(flat, (5, 5, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    flat = F.conv2d(F.pad(flat, (0, 0, 5, 5), mode="replicate"), kernel.view(1, 1, -1, 1))
    return flat.view_as(inputs)


# --- pixels filled in -------------------------------------------------------------------------------


def road(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    fractions: Sequence[float] = FRACTIONS,
    noise: float = NOISE,
    seed: int = 0,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """ROAD: half of the score with the least relevant pixels filled in, less that with the most.

    `[B]`, -1/2 to 1/2, the mean over the `fractions` of pixels that are filled in; higher is better. Pixels
    are filled in by `imputation.impute` and noise `N(0, noise^2)`, the same for every image. Rong et al.
    2022, arXiv:2202.00449; the combination is that of pytorch-grad-cam, whose percentiles, unlike the ranks
    here, remove the whole image where a map is mostly zero.
    """
    full = resized(maps, inputs.shape[-2:])
    ranks = positions(full).view(full.shape)
    size = full[0].numel()
    grain = noise * normal(tuple(inputs.shape[1:]), seed, inputs)
    counts = torch.tensor([round(fraction * size) for fraction in fractions], device=inputs.device)

    def change(
        step: Tensor, image: Tensor
    ) -> Tensor:  # even steps fill in the most relevant, odd the least
        order = torch.where((step % 2 == 0)[:, None, None], ranks[image], size - 1 - ranks[image])
        known = order >= counts[step // 2, None, None]
        pixels = inputs[image]
        return torch.where(known[:, None], pixels, impute(pixels, known) + grain)

    found = _evaluate(f, targets, change, 2 * len(fractions), chunk, logits, scores)
    most, least = found[:, 0::2], found[:, 1::2]
    return only(telling(maps), (least - most).mean(1) / 2)


# --- the map as a mask ------------------------------------------------------------------------------


def average_drop(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    chunk: int = CHUNK,
    scores: ScoreKind = "auto",
) -> Tensor:
    """`max(0, Y - O) / Y`, Y the probability, O that of input times map: `[B]`, 0 to 1, lower is better.

    The map is rectified, scaled to [0, 1] and brought to the size of the input. NaN if nothing in it is
    positive or everything equal, and for scores of which a share means nothing (`none`). A map that shows
    the whole image wins. Chattopadhyay et al. 2018, arXiv:1710.11063.
    """
    whole, masked = _masked(f, inputs, maps, targets, chunk, scores).unbind(1)
    return (whole - masked).clamp(min=0) / whole if scores != "none" else torch.full_like(whole, torch.nan)


def increase(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    chunk: int = CHUNK,
    scores: ScoreKind = "auto",
) -> Tensor:
    """Whether O is greater than Y of `average_drop`: `[B]`, 0 or 1, higher is better; same paper."""
    whole, masked = _masked(f, inputs, maps, targets, chunk, scores).unbind(1)
    return only(~masked.isnan(), (masked > whole).to(whole.dtype))


def _masked(
    f: Model, inputs: Tensor, maps: Tensor, targets: Tensor, chunk: int, scores: ScoreKind
) -> Tensor:
    """Probabilities `[B, 2]`: of the input, and of the input times the map."""
    positive = maps.clamp(min=0)
    mask = resized(scaled(positive), inputs.shape[-2:]).nan_to_num()[:, None].to(inputs.dtype)

    def change(step: Tensor, image: Tensor) -> Tensor:
        return torch.where((step == 0)[:, None, None, None], inputs[image], inputs[image] * mask[image])

    both = _evaluate(f, targets, change, 2, chunk, False, scores)
    return only((usable(maps) & telling(positive))[:, None], both)


# --- small changes ----------------------------------------------------------------------------------


def infidelity(
    f: Model,
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    samples: int = 64,
    side: float = 0.25,
    seed: int = 0,
    chunk: int = CHUNK,
    logits: bool = False,
    scores: ScoreKind = "auto",
) -> Tensor:
    """`E (b I.M - (f(x) - f(x without I)))^2`, I a random square set to zero: `[B]`, 0 is best.

    0 or more, lower is better.     I.M is the sum of the map over the square, and b >= 0 the factor that
    suits each image best, because maps have no unit. side: of the square, as a share of the shorter side;
    the squares are the same for every image. NaN if the map is zero everywhere or not finite. Yeh et al.
    2019, arXiv:1901.09392, with its scaling and square removal.
    """
    height, width = inputs.shape[-2:]
    length = max(1, round(side * min(height, width)))
    corner = uniform((samples, 2), seed, inputs.float())
    top = (corner[:, 0] * (height - length + 1)).long()[:, None]
    left = (corner[:, 1] * (width - length + 1)).long()[:, None]
    y, x = (torch.arange(n, device=inputs.device) for n in (height, width))
    inside_y, inside_x = (y >= top) & (y < top + length), (x >= left) & (x < left + length)
    squares = inside_y[:, :, None] & inside_x[:, None, :]  # [S, H, W]

    def change(step: Tensor, image: Tensor) -> Tensor:  # step 0 is the input itself
        square = squares[(step - 1).clamp(min=0)] & (step > 0)[:, None, None]
        return torch.where(square[:, None], 0.0, inputs[image])

    found = _evaluate(f, targets, change, samples + 1, chunk, logits, scores).double()
    drops = found[:, :1] - found[:, 1:]
    full = resized(maps, (height, width)).double()
    told = full.flatten(1) @ squares.flatten(1).double().T
    energy = (told**2).mean(1)
    factor = ((told * drops).mean(1) / energy).clamp(min=0)
    error = ((factor[:, None] * told - drops) ** 2).mean(1)
    return only(usable(maps) & (energy > 0), error.to(maps.dtype))


def max_sensitivity(
    explain: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    maps: Tensor,
    targets: Tensor,
    *,
    samples: int = 10,
    radius: float = 0.02,
    seed: int = 0,
) -> Tensor:
    """Largest change of the map, `|M(x + d) - M(x)| / |M(x)|`, for noise d of at most `radius`: `[B]`.

    0 or more, lower is better, whatever the unit of the maps. explain: from inputs and targets to maps
    `[B, h, w]`. The noise is uniform and the same for every image. NaN if the map is zero everywhere or not
    finite. Yeh et al. 2019, arXiv:1901.09392.
    """
    noise = radius * (2 * uniform((samples, *inputs.shape[1:]), seed, inputs) - 1)
    # In units of the peak: squares of small values would vanish in the norm, those of large ones overflow.
    peak = maps.abs().flatten(1).amax(1, keepdim=True)
    original = maps.flatten(1) / peak
    changes = [(explain(inputs + d, targets).flatten(1) / peak - original).norm(dim=1) for d in noise]
    largest = torch.stack(changes).amax(0) / original.norm(dim=1)
    return only(usable(maps) & (peak[:, 0] > 0), largest)


# --- the model --------------------------------------------------------------------------------------


def _evaluate(
    f: Model,
    targets: Tensor,
    change: Callable[[Tensor, Tensor], Tensor],
    steps: int,
    chunk: int,
    logits: bool,
    scores: ScoreKind,
) -> Tensor:
    """Scores `[B, steps]` of the inputs `change(step, image)`, int64 `[N]` both, in chunks of N.

    Step and image run over all pairs, so a chunk is full whatever the size of the batch. What the scores
    are is decided once, for all chunks.
    """
    batch = len(targets)
    jobs = torch.arange(steps * batch, device=targets.device)
    with torch.no_grad():
        parts = [f(change(part // batch, part % batch)).float() for part in torch.split(jobs, chunk)]
    found = torch.cat(parts)
    if not logits:
        first = jobs[:1]
        kind = meaning(scores, found, lambda: squashed(f, change(first, first)))
        found = found if (likely := probabilities(found, kind)) is None else likely
    return found.gather(1, targets.repeat(steps)[:, None]).view(steps, batch).T
