"""Whether zennit has a rule for all that a network computes."""

from __future__ import annotations

import copy
from typing import Any

from torch import fx, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from zennit import types

from camkit.errors import ModelError

# Modules whose gradient is changed by a rule, or needs none.
RULED: tuple[Any, ...] = (
    *(types.Activation, types.AvgPool, types.BatchNorm, types.Linear, types.MaxPool),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
)
WITHOUT = (nn.MultiheadAttention, nn.Softmax)  # which zennit takes for activations
# Residual blocks whose sum zennit knows.
BLOCKS = (BasicBlock, Bottleneck)
# By name: what lays values out anew, or has the gradient that relevance has.
PLAIN = set(
    "adaptive_max_pool2d boolean_dispatch cat clone contiguous detach dim dropout flatten float getattr "
    "getitem max_pool1d max_pool2d max_pool3d permute relu relu_ reshape size squeeze to "
    "transpose unsqueeze view".split()
)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        """Modules of torch, and the blocks that are known."""
        return isinstance(module, BLOCKS) or super().is_leaf_module(module, qualified_name)


def check(module: nn.Module, name: str) -> None:
    """`ModelError`, in one line, for a network of which a part has no rule."""
    for part in module.modules():
        leaf = not any(True for _ in part.children())
        if isinstance(part, WITHOUT) or (leaf and not isinstance(part, RULED) and _computes(part)):
            raise ModelError(f"zennit has no rule for {type(part).__name__}, a part of {name}")
    try:
        graph = _Tracer().trace(module)
    # Whatever a forward does to what stands for a tensor.
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"the forward of {name} cannot be followed, so zennit cannot tell: {reason}"
        ) from None
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            called = node.target if isinstance(node.target, str) else node.target.__name__
            if called not in PLAIN:
                raise ModelError(
                    f"zennit has rules for modules alone, and {name} computes {called!r} in its forward "
                    "(a residual connection, attention, a mean?): its values would mean nothing"
                )


def _computes(part: nn.Module) -> bool:
    """Whether a module does something, and is no container or function that the graph shows."""
    return type(part).__module__.startswith("torch.nn") and not isinstance(part, nn.Sequential)


def copied(module: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters need no gradients, and no in-place activations."""
    made = copy.deepcopy(module).eval().requires_grad_(False)
    for part in made.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False  # type: ignore[assignment]
    return made
