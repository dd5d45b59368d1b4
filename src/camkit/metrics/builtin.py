"""The metrics as plugins: each ties a function to what the host must know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from camkit.api import MapBatch, Metric, Scores, option
from camkit.errors import UsageError
from camkit.metrics import agreement, complexity, faithfulness, imputation, localisation, sanity

Given = TypeVar("Given")


def given(value: Given | None) -> Given:
    """What `needs` promises to be there."""
    assert value is not None, "measure() checks what a metric needs"
    return value


# --- faithfulness -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelOptions:
    """Options of the metrics that ask the model often."""

    chunk: int = option(faithfulness.CHUNK, help="changed inputs in one forward", min=1)


@dataclass(frozen=True)
class StepOptions(ModelOptions):
    """Options of the metrics that remove pixels step by step."""

    steps: int = option(faithfulness.STEPS, help="equal parts in which pixels are removed", min=1)
    logits: bool = option(False, help="the model's own scores instead of probabilities")


class _Curve(Metric):
    """Sums up one curve of scores over the fraction of pixels that changed."""

    category = "faithfulness"
    direction: ClassVar[Literal["higher", "lower"]] = "higher"
    range = (0.0, 1.0)
    paper = "Petsiuk et al. 2018, arXiv:1806.07421"
    Options: ClassVar[type] = StepOptions
    curve: ClassVar[Callable[..., Tensor]]

    def score(self, batch: MapBatch) -> Scores:
        curves = type(self).curve(*_model_and_maps(batch), scores=batch.scores, **vars(self.options))
        count = curves.shape[1] - 1
        return Scores(
            faithfulness.area(curves), curves, tuple(f"{i / count:.4g}" for i in range(count + 1))
        )


class Deletion(_Curve):
    """`faithfulness.deletion`."""

    summary = "Area under the probability while the most relevant pixels are set to zero"
    direction = "lower"
    curve = staticmethod(faithfulness.deletion_curve)


class Insertion(_Curve):
    """`faithfulness.insertion`."""

    summary = "Area under the probability while the most relevant pixels are put into a blurred image"
    curve = staticmethod(faithfulness.insertion_curve)


class SymmetricRelevanceGain(_Curve):
    """`faithfulness.symmetric_relevance_gain`; its curve is the difference of the two that it compares."""

    summary = "Probability with the least relevant pixels removed first, less that with the most relevant"
    range = (-1.0, 1.0)
    paper = "Bluecher et al. 2024, arXiv:2401.06654"
    curve = staticmethod(faithfulness.gain_curve)


@dataclass(frozen=True)
class RoadOptions(ModelOptions):
    """Options of ROAD."""

    noise: float = option(
        imputation.NOISE, help="standard deviation of what is added to filled pixels", min=0
    )
    logits: bool = option(False, help="the model's own scores instead of probabilities")


class Road(Metric):
    """`faithfulness.road`."""

    summary = "As the gain, with the removed pixels filled in from their surroundings"
    category = "faithfulness"
    direction = "higher"
    range = (-0.5, 0.5)
    paper = "Rong et al. 2022, arXiv:2202.00449"
    Options: ClassVar[type] = RoadOptions

    def score(self, batch: MapBatch) -> Scores:
        settings = vars(self.options) | _circumstances(batch)
        return Scores(faithfulness.road(*_model_and_maps(batch), **settings))


class AverageDrop(Metric):
    """`faithfulness.average_drop`."""

    summary = "Share of the probability that is lost under the map as a mask"
    category = "faithfulness"
    direction = "lower"
    range = (0.0, 1.0)
    paper = "Chattopadhyay et al. 2018, arXiv:1710.11063"
    Options: ClassVar[type] = ModelOptions

    def score(self, batch: MapBatch) -> Scores:
        settings = vars(self.options)
        return Scores(faithfulness.average_drop(*_model_and_maps(batch), scores=batch.scores, **settings))


class Increase(Metric):
    """`faithfulness.increase`."""

    summary = "Share of images whose probability rises under the map as a mask"
    category = "faithfulness"
    direction = "higher"
    range = (0.0, 1.0)
    paper = "Chattopadhyay et al. 2018, arXiv:1710.11063"
    Options: ClassVar[type] = ModelOptions

    def score(self, batch: MapBatch) -> Scores:
        settings = vars(self.options)
        return Scores(faithfulness.increase(*_model_and_maps(batch), scores=batch.scores, **settings))


@dataclass(frozen=True)
class InfidelityOptions(ModelOptions):
    """Options of the infidelity."""

    samples: int = option(64, help="random squares", min=1)
    side: float = option(0.25, help="of a square, as a share of the shorter side", min=0.0, max=1.0)
    logits: bool = option(False, help="the model's own scores instead of probabilities")


class Infidelity(Metric):
    """`faithfulness.infidelity`."""

    summary = "Squared error of the drops that the map foretells, for random squares set to zero"
    category = "faithfulness"
    direction = "lower"
    range = (0.0, float("inf"))
    paper = "Yeh et al. 2019, arXiv:1901.09392"
    Options: ClassVar[type] = InfidelityOptions

    def score(self, batch: MapBatch) -> Scores:
        settings = vars(self.options) | _circumstances(batch)
        return Scores(faithfulness.infidelity(*_model_and_maps(batch), **settings))


@dataclass(frozen=True)
class SensitivityOptions:
    """Options of the sensitivity."""

    samples: int = option(10, help="noisy copies of each input", min=1)
    radius: float = option(0.02, help="largest noise, in units of the normalised input", min=0.0)


class MaxSensitivity(Metric):
    """`faithfulness.max_sensitivity`."""

    summary = "Largest relative change of the map under noise that nobody sees"
    category = "faithfulness"
    direction = "lower"
    range = (0.0, float("inf"))
    needs = ("explain",)
    paper = "Yeh et al. 2019, arXiv:1901.09392"
    Options: ClassVar[type] = SensitivityOptions

    def score(self, batch: MapBatch) -> Scores:
        arguments = (given(batch.explain), batch.inputs, batch.maps, batch.targets)
        return Scores(faithfulness.max_sensitivity(*arguments, seed=batch.seed, **vars(self.options)))


def _model_and_maps(batch: MapBatch) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Tensor]:
    return batch.module, batch.inputs, batch.maps, batch.targets


def _circumstances(batch: MapBatch) -> dict[str, Any]:
    return {"seed": batch.seed, "scores": batch.scores}


# --- localisation -----------------------------------------------------------------------------------


class _Truth(Metric):
    category = "localisation"
    direction = "higher"
    range = (0.0, 1.0)
    needs = ("truth",)
    against: ClassVar[Callable[..., Tensor]]

    def score(self, batch: MapBatch) -> Scores:
        return Scores(type(self).against(batch.maps, given(batch.truth), **vars(self.options)))


@dataclass(frozen=True)
class PointingOptions:
    """Options of the pointing game."""

    tolerance: int = option(15, help="pixels by which the maximum may miss", min=0)


class PointingGame(_Truth):
    """`localisation.pointing_game`."""

    summary = "Share of images whose map is highest on the object"
    paper = "Zhang et al. 2016, arXiv:1608.00507"
    Options: ClassVar[type] = PointingOptions
    against = staticmethod(localisation.pointing_game)


class EnergyPointingGame(_Truth):
    """`localisation.energy_pointing_game`."""

    summary = "Share of the map's positive mass on the object"
    paper = "Wang et al. 2020, arXiv:1910.01279"
    against = staticmethod(localisation.energy_pointing_game)


class RelevanceRank(_Truth):
    """`localisation.relevance_rank`."""

    summary = "Share on the object of as many of the highest pixels as it has"
    paper = "Arras et al. 2022, arXiv:2003.07258"
    against = staticmethod(localisation.relevance_rank)


@dataclass(frozen=True)
class IouOptions:
    """Options of the intersection over union."""

    threshold: float = option(0.2, help="of the map's maximum, from which a pixel counts", min=0.0, max=1.0)


class Iou(_Truth):
    """`localisation.iou`."""

    summary = "Intersection over union of the object and the high part of the map"
    paper = "Zhou et al. 2016, arXiv:1512.04150"
    Options: ClassVar[type] = IouOptions
    against = staticmethod(localisation.iou)


# --- sanity -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SanityOptions:
    """Options of the tests with random weights."""

    stages: int = option(sanity.STAGES, help="layers that are looked at, evenly spread", min=1)


class SanityCascading(Metric):
    """`sanity.cascading`; the value is the similarity when all weights are random."""

    summary = "Similarity of the map to that of the model with random weights, from the top down"
    category = "sanity"
    direction = "lower"
    range = (0.0, 1.0)
    needs = ("explain",)
    limit = sanity.LIMIT
    paper = "Adebayo et al. 2018, arXiv:1810.03292"
    Options: ClassVar[type] = SanityOptions

    def score(self, batch: MapBatch) -> Scores:
        names, curves = _randomised(sanity.cascading, batch, self.options)
        return Scores(curves[:, -1], curves, names)


class SanityIndependent(Metric):
    """`sanity.independent`; the value is the mean over the layers, those without a map left out."""

    summary = "Similarity of the map to that of the model with one layer of random weights"
    category = "sanity"
    direction = "lower"
    range = (0.0, 1.0)
    needs = ("explain",)
    limit = 0.9  # a single layer need not overturn the map
    paper = "Adebayo et al. 2018, arXiv:1810.03292"
    Options: ClassVar[type] = SanityOptions

    def score(self, batch: MapBatch) -> Scores:
        names, curves = _randomised(sanity.independent, batch, self.options)
        return Scores(curves.nanmean(1), curves, names)


class RandomLogit(Metric):
    """`sanity.random_logit`."""

    summary = "Similarity of the map to that of another class"
    category = "sanity"
    direction = "lower"
    range = (0.0, 1.0)
    needs = ("explain",)
    limit = 0.9  # classes that share evidence may look alike; the same map for all may not pass
    paper = "Sixt et al. 2020, arXiv:1912.09818"

    def score(self, batch: MapBatch) -> Scores:
        with torch.no_grad():
            classes = batch.module(batch.inputs[:1]).shape[1]
        arguments = (given(batch.explain), batch.inputs, batch.maps, batch.targets)
        return Scores(sanity.random_logit(*arguments, classes=classes, seed=batch.seed))


def _randomised(
    test: Callable[..., tuple[tuple[str, ...], Tensor]], batch: MapBatch, options: SanityOptions
) -> tuple[tuple[str, ...], Tensor]:
    explain, seed = given(batch.explain), batch.seed
    names, curves = test(
        *(batch.module, explain, batch.inputs, batch.maps, batch.targets), stages=options.stages, seed=seed
    )
    if not names:
        raise UsageError("the model has no weights that could be made random: it cannot be tested so")
    return names, curves


# --- complexity -------------------------------------------------------------------------------------


class Gini(Metric):
    """`complexity.gini`."""

    summary = "How sparse the map is: 0 even, towards 1 all in one place"
    category = "complexity"
    direction = "higher"
    range = (0.0, 1.0)
    paper = "Chalasani et al. 2020, arXiv:1810.06583"

    def score(self, batch: MapBatch) -> Scores:
        return Scores(complexity.gini(batch.maps))


class Entropy(Metric):
    """`complexity.entropy`."""

    summary = "How spread the map is: 0 all in one place, 1 even"
    category = "complexity"
    direction = "lower"
    range = (0.0, 1.0)
    paper = "Bhatt et al. 2020, arXiv:2005.00631"

    def score(self, batch: MapBatch) -> Scores:
        return Scores(complexity.entropy(batch.maps))


# --- agreement --------------------------------------------------------------------------------------


class _Reference(Metric):
    category = "agreement"
    direction = "higher"
    range = (-1.0, 1.0)
    needs = ("reference",)
    measure: ClassVar[Callable[..., Tensor]]

    def score(self, batch: MapBatch) -> Scores:
        return Scores(type(self).measure(given(batch.reference), batch.maps, **vars(self.options)))


class Pearson(_Reference):
    """`agreement.pearson`."""

    summary = "Linear correlation with the reference's map"
    paper = "Pearson 1895, doi:10.1098/rspl.1895.0041"
    measure = staticmethod(agreement.pearson)


class Spearman(_Reference):
    """`agreement.spearman`."""

    summary = "Rank correlation with the reference's map"
    paper = "Spearman 1904, doi:10.2307/1412159"
    measure = staticmethod(agreement.spearman)


class Ssim(_Reference):
    """`agreement.ssim`."""

    summary = "Structural similarity to the reference's map, both scaled to 0 to 1"
    paper = "Wang et al. 2004, doi:10.1109/TIP.2003.819861"
    measure = staticmethod(agreement.ssim)


@dataclass(frozen=True)
class TopOptions:
    """Options of the comparison of the highest positions."""

    fraction: float = option(0.2, help="of the positions that are highest", min=0.0, max=1.0)


class Overlap(_Reference):
    """`agreement.overlap`."""

    summary = "Share of the highest positions that are so in the reference's map, too"
    range = (0.0, 1.0)
    paper = "Krishna et al. 2022, arXiv:2202.01602"
    Options: ClassVar[type] = TopOptions
    measure = staticmethod(agreement.overlap)


class Jaccard(_Reference):
    """`agreement.jaccard`."""

    summary = "Intersection over union of the highest positions of both maps"
    range = (0.0, 1.0)
    paper = "Jaccard 1912, doi:10.1111/j.1469-8137.1912.tb05611.x"
    Options: ClassVar[type] = TopOptions
    measure = staticmethod(agreement.jaccard)
