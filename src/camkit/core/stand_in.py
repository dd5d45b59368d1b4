"""A stand-in for a model, which a library may hook and change as it likes.

Libraries want one layer whose output is a feature map `[B, C, h, w]`. The stand-in has it as its child
`layer`, whatever the model computes: tokens, channels last, half precision. Nothing that a library does to
the stand-in reaches the model, which carries one hook during a forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.explainer import Query
from camkit.core import formulas
from camkit.core.hooks import Hook, normal_tensor, ran
from camkit.core.layout import layout

# The factor for float16 gradients between the scores and the layer, where they would vanish otherwise.
SCALE = 2.0**8


class StandIn(nn.Module):
    """From inputs to scores `[B, n_classes]` like `query.module`, at least float32.

    layer: its output is the feature map of the target layer; what replaces that goes on through the model.
        Its hook runs before other people's and hands on a copy, so an in-place ReLU behind the layer or a
        hook that stores its output does no harm.
    features: what `layer` gave in the latest forward, `[B, C, h, w]`, at least float32.
    """

    features: Tensor

    def __init__(self, query: Query, module: nn.Module | None = None, *, cut: bool = True) -> None:
        """module: runs instead of `query.module`, such as a copy of it.

        cut: nothing below the layer has a graph, so frozen models work and nothing there is differentiated.
        """
        super().__init__()
        self.layer = nn.Identity()
        # Libraries take the device of the first parameter for that of the model.
        self.device = nn.Parameter(query.inputs.new_empty(0), requires_grad=False)
        self._query, self._cut = query, cut
        self._model = (query.module if module is None else module,)  # in a tuple, so it is no child

    def forward(self, x: Tensor) -> Tensor:
        """Scores; `LayerError` if the layer did not run exactly once or has no map."""
        query, graph, model = self._query, torch.is_grad_enabled(), self._model[0]
        runs = 0

        def replace(output: Any) -> Tensor:
            nonlocal runs
            if (runs := runs + 1) > 1:
                raise ran(query.module, query.layer, runs)
            reading = layout(output, x.shape, query.layer, module=query.module, kind=query.layout)
            torch.set_grad_enabled(graph)  # from here upwards; the caller's mode is restored at the end
            with torch.inference_mode(False):
                whole = normal_tensor(output.detach()) if self._cut else output
                features = wide(reading.to_map(whole))
                features = features.clone().requires_grad_(graph) if self._cut else features
                self.features = self.layer(features)
                handed_on = whole.clone()
                reading.to_map(handed_on).copy_(_times(self.features, 1 / self._scale(output)))  # a view
                return handed_on

        with (
            model.get_submodule(query.layer).register_forward_hook(Hook(replace), prepend=True),
            torch.set_grad_enabled(graph and not self._cut),
        ):
            scores = model(x.to(query.inputs.dtype, copy=True))
        if not runs:
            raise ran(query.module, query.layer, 0)
        same = x.shape == query.inputs.shape and torch.equal(wide(x), wide(query.inputs))
        if same and isinstance(scores, Tensor):
            query.seen(scores)
        return _times(wide(scores), self._scale(self.features))

    def doubt(self, gradients: Tensor) -> None:
        """Tell the host where `sum_k G_k A_k` (hirescam) of the latest forward is only rounding noise.

        gradients: of the scores with respect to `features`.
        """
        features, slopes = self.features.detach(), gradients.detach()[None]
        maps = formulas.hirescam(features, slopes)
        noise = formulas.is_noise(maps, formulas.hirescam, features, slopes)
        self._query.remark(noise, formulas.NOISY)

    def _scale(self, like: Tensor) -> float:
        return SCALE if self._query.inputs.dtype == torch.float16 and self._cut else 1.0


def _times(tensor: Tensor, scale: float) -> Tensor:
    """`tensor`, with its gradient multiplied by `scale`."""
    return tensor if scale == 1 else _Times.apply(tensor, scale)


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient * ctx.scale, None


def wide(tensor: Tensor) -> Tensor:
    """`tensor` in at least float32: numpy knows no bfloat16, and half precision underflows."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
