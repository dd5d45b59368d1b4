"""What the native explainer offers, known before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from camkit.contracts.options import option
from camkit.native import baselines

# Methods that need gradients, by the names of their functions in `formulas`.
GRADIENTS = {
    "gradcam": "gradcam",
    "gradcam++": "gradcam_plus_plus",
    "xgradcam": "xgradcam",
    "hirescam": "hirescam",
    "gradcam-elementwise": "gradcam_elementwise",
    "layercam": "layercam",
    "eigengradcam": "eigengradcam",
}

# Grad-CAM of another score than the class's own, and with second derivatives.
FURTHER_GRADIENTS = ("finercam", "shapleycam")

# Methods that need only the features, by their formulas: the same map for every class.
FEATURES = {"activations": "activations", "eigencam": "eigencam"}

# Methods that need further forwards, at best of what is above the layer.
PERTURBATIONS = ("ablationcam", "scorecam")

# Methods that look at a layer.
AT_LAYER = (*GRADIENTS, *FURTHER_GRADIENTS, *FEATURES, *PERTURBATIONS)

# Methods that look at the attention weights of all blocks, and at no layer.
ATTENTION = ("attention-rollout", "generic-attention", "legrad")

# The same, and what looks only at the last attention of one class token.
ATTENDED = (*ATTENTION, "grad-eclip")

# Methods that look at scores of inputs with parts hidden, and at no layer.
BLACK_BOX = ("rise", "sobol", "hsic")

# Methods that add up gradients with respect to inputs near the image, and look at no layer.
INPUT_GRADIENTS = ("integrated-gradients", "smoothgrad", "expected-gradients")

# Methods that look at many layers together, which they choose themselves.
COMBINED = ("winsorcam", "refinecam")

# What libra=true concerns: but for shapleycam, which takes second derivatives, all that take gradients.
BALANCED = (
    *(*GRADIENTS, "finercam", "generic-attention", "legrad", "grad-eclip"),
    *(*INPUT_GRADIENTS, *COMBINED),
)

METHODS = (*AT_LAYER, *ATTENDED, *BLACK_BOX, *INPUT_GRADIENTS, *COMBINED)


@dataclass(frozen=True)
class NativeOptions:
    """Options of the native explainer."""

    reduction: Literal["sum", "mean"] = option(
        "sum", help="over channels, where a method has a sum: as in the papers, or the lesson's mean"
    )
    alpha: float = option(
        0.6, min=0.0, help="finercam: how strongly similar classes are held against", methods=("finercam",)
    )
    comparisons: int = option(3, min=1, help="finercam: how many similar classes", methods=("finercam",))
    fast: bool = option(False, help="compile what is below the layer: the first call takes seconds")
    batch_size: int = option(
        32,
        min=1,
        help="ablationcam, scorecam: channels in one forward; rise, sobol, hsic and those of "
        "gradients of the input: the most inputs",
        methods=(*PERTURBATIONS, *BLACK_BOX, *INPUT_GRADIENTS),
    )
    masks: int = option(
        4000, min=16, help="rise, sobol, hsic: the most masks for an image", methods=BLACK_BOX
    )
    cells: int = option(
        7, min=2, max=64, help="rise, sobol, hsic: cells of a mask along each side", methods=BLACK_BOX
    )
    tolerance: float = option(
        0.1,
        min=0.0,
        max=1.0,
        help="rise, sobol, hsic: end when the 95 % interval of every value reaches at most this share of "
        "the map's peak to each side; 0: use all masks",
        methods=BLACK_BOX,
    )
    centred: bool = option(
        True,
        help="rise: take the mean score off, so that zero is no difference; false: as in the paper",
        methods=("rise",),
    )
    seed: int = option(
        0,
        min=0,
        max=2**32 - 1,
        help="rise, sobol, hsic: of the masks; smoothgrad, expected-gradients",
        methods=(*BLACK_BOX, "smoothgrad", "expected-gradients"),
    )
    steps: int = option(
        50, min=1, help="integrated-gradients: points on the path", methods=("integrated-gradients",)
    )
    samples: int = option(
        50,
        min=1,
        help="smoothgrad: noisy copies; expected-gradients: baselines",
        methods=("smoothgrad", "expected-gradients"),
    )
    noise: float = option(
        0.15,
        min=0.0,
        help="smoothgrad: its standard deviation, as a share of the image's range of values",
        methods=("smoothgrad",),
    )
    baseline: str | None = option(
        None,
        help="expected-gradients: a .npy file of photographs (`camkit model baseline`); none: even colours",
        methods=("expected-gradients",),
    )

    libra: bool = option(
        False,
        help="LibraGrad: balanced gradients of transformers, for all methods that take gradients",
        methods=(*BALANCED, "shapleycam"),
    )
    percentile: float = option(
        90.0,
        min=0.0,
        max=100.0,
        help="winsorcam: where the importance of layers is clipped; 0: all alike",
        methods=("winsorcam",),
    )

    def __post_init__(self) -> None:
        if self.baseline is not None:
            object.__setattr__(self, "baseline", baselines.named(self.baseline))
