"""torchcam as a backend of camkit."""

from typing import ClassVar

import torch
from torch import Tensor
from torchcam.methods import GradCAM, GradCAMpp, LayerCAM, ScoreCAM, XGradCAM

from camkit.plugin import Explainer, Query, StandIn

METHODS = {
    "gradcam": GradCAM,
    "gradcam++": GradCAMpp,
    "layercam": LayerCAM,
    "xgradcam": XGradCAM,
    "scorecam": ScoreCAM,
}


class TorchCam(Explainer):
    """torchcam hooks a stand-in for the model."""

    summary = "Grad-CAM, Grad-CAM++, LayerCAM, XGradCAM and ScoreCAM by torchcam"
    methods = tuple(METHODS)
    dtypes = ("float32", "float64", "bfloat16", "float16")
    thread_safe = True
    notes: ClassVar = {
        "gradcam++": "as torchcam 0.5 has it: without the denominator of the published weights",
        "scorecam": "one forward for each channel; weights are positive",
    }

    def maps(self, query: Query) -> Tensor:
        """Raw maps `[B, h, w]`, signed."""
        model = StandIn(query)
        with METHODS[query.method](model, "layer") as extractor:
            scores = model(query.inputs)
            extractor._relu = False  # keeps the sign
            maps: Tensor = extractor(query.targets.tolist(), scores, normalized=False)[0]
            used = [t for t in (scores, *extractor.hook_a, *extractor.hook_g) if t is not None]
        sound = torch.stack([t.isfinite().flatten(1).all(1) for t in used]).all(0)
        maps[~sound] = torch.nan  # torchcam's nansum would hide it
        return maps
