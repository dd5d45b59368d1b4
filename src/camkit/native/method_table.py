"""What the native explainer offers, known before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from camkit.contracts.options import option

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

METHODS = (*AT_LAYER, *ATTENTION)


@dataclass(frozen=True)
class NativeOptions:
    """Options of the native explainer."""

    reduction: Literal["sum", "mean"] = option(
        "sum", help="over channels, where a method has a sum: as in the papers, or the lesson's mean"
    )
    alpha: float = option(0.6, min=0.0, help="finercam: how strongly similar classes are held against")
    comparisons: int = option(3, min=1, help="finercam: how many similar classes")
    fast: bool = option(False, help="compile what is below the layer: the first call takes seconds")
    batch_size: int = option(32, min=1, help="ablationcam, scorecam: channels in one forward")
