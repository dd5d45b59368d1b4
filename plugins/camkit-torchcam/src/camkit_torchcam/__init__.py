"""torchcam as a backend of camkit."""

from contextlib import ExitStack
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchcam.methods import GradCAM, GradCAMpp, LayerCAM, ScoreCAM, XGradCAM

from camkit import Explainer, Query
from camkit.errors import LayerError
from camkit.layers import layout

METHODS = {
    "gradcam": GradCAM,
    "gradcam++": GradCAMpp,
    "layercam": LayerCAM,
    "xgradcam": XGradCAM,
    "scorecam": ScoreCAM,
}


class TorchCam(Explainer):
    """torchcam between two hooks: before it the graph is cut, behind it the model goes on with a copy."""

    summary = "Grad-CAM, Grad-CAM++, LayerCAM, XGradCAM and ScoreCAM by torchcam"
    methods = tuple(METHODS)
    dtypes = ("float32", "float64", "bfloat16", "float16")
    notes: ClassVar = {
        "gradcam++": "as torchcam 0.5 has it: without the denominator of the published weights",
        "scorecam": "one forward for each channel; weights are positive",
    }

    def maps(self, query: Query) -> Tensor:
        """Raw maps `[B, h, w]`, signed."""
        layer, layouts = query.layer_module, []

        def leaf(_: Any, __: Any, output: Tensor) -> Tensor:  # so a frozen model has a gradient here too
            layouts.append(layout(output, query.inputs.shape, query.layer))
            return output.detach().requires_grad_()

        def to_map(tensor: Tensor) -> Tensor:  # of the layer's output and of its gradient
            return layouts[0].to_map(tensor).to(torch.promote_types(tensor.dtype, torch.float32))

        with ExitStack() as stack:
            stack.callback(layer.register_forward_hook(leaf).remove)
            extractor = METHODS[query.method](query.module, query.layer, reshape_transform=to_map)
            stack.enter_context(extractor)  # torchcam's hooks go at the end
            # An in-place ReLU behind the layer gets a copy, or it would change what torchcam keeps.
            stack.callback(layer.register_forward_hook(lambda _, __, output: output.clone()).remove)
            scores = query.module(query.inputs.clone())
            if len(layouts) != 1:
                raise LayerError(f"layer {query.layer!r} ran {len(layouts)} times in one forward, not once")
            extractor._relu = False  # keeps the sign
            maps: Tensor = extractor(query.targets.tolist(), scores, normalized=False)[0]
            used = [t for t in (scores, *extractor.hook_a, *extractor.hook_g) if t is not None]
        sound = torch.stack([t.isfinite().flatten(1).all(1) for t in used]).all(0)
        maps[~sound] = torch.nan  # torchcam's nansum would hide it
        return maps
