"""A model in two at a layer: the body that ends with the layer, and the head from there to the scores.

What is computed once below the layer can then serve many runs of the head (ablation), and the body, free
of hooks, can be `compiled`. Only the modules that contain the layer are traced, by `torch.fx`; all
others are called as they are, so whatever they do inside stays as it is.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from camkit.core import hooks
from camkit.errors import reason

TRACING = threading.Lock()  # fx patches `nn.Module` while it traces


@dataclass(frozen=True)
class Split:
    """`head(*body(inputs))` are the scores of the model, in eval mode; both share its parameters.

    body: inputs `[B, C, H, W]` to a tuple: the output of the layer, as the layer returns it, and whatever
        else the head needs, such as what a skip connection leads around the layer.
    head: an output of the layer, for any number of images, and the rest for the same images, to scores
        `[B, n_classes]`. It may write into both, as an in-place ReLU does: hand it a clone of what is
        still needed.
    around: how many values go around the layer.
    """

    body: fx.GraphModule
    head: fx.GraphModule
    around: int


def split(module: nn.Module, layer: str) -> Split | None:
    """`module` split at `layer`, a dotted name; `None` if that is impossible."""
    result = split_or_reason(module, layer)
    return result if isinstance(result, Split) else None


def split_or_reason(module: nn.Module, layer: str) -> Split | str:
    """`module` split at `layer`, or one line that says why it cannot be.

    A forward that branches on values known only at run time cannot be split. `module` is not changed;
    whoever replaces a part of it must split it again.
    """
    target = module.get_submodule(layer)
    if target is module:
        return "the layer is the whole model"
    path = layer.split(".")
    around = [module.get_submodule(".".join(path[:depth])) for depth in range(len(path))]
    # Hooks of a traced module would be called with proxies, not with tensors.
    hooked = [part for part in around if hooks.has_hooks(part)]
    if hooked:
        return f"{type(hooked[0]).__name__}, which contains the layer, has hooks"
    tracer = _Tracer(around)
    try:
        with TRACING, hooks.as_it_was(module, torch.device("cpu")), _kept(around):
            before = torch.get_rng_state()
            graph = tracer.trace(_Whole(module))
            if not torch.equal(before, torch.get_rng_state()):  # all runs would get the same ones
                return "its forward draws random numbers"
    except Exception as error:  # a forward may do anything with a proxy
        return f"its forward cannot be traced ({reason(error)})"
    return _cut(tracer.root, graph, target)


@contextmanager
def _kept(parts: Sequence[nn.Module]) -> Iterator[None]:
    """Resets attributes that a traced forward sets, and raises: they would hold proxies, not tensors."""
    before = [dict(vars(part)) for part in parts]
    try:
        yield
    finally:
        stored = [
            (attributes, kept, name)
            for attributes, kept in zip(map(vars, parts), before, strict=True)
            for name, value in attributes.items()
            if name not in kept or kept[name] is not value
        ]
        for attributes, kept, name in stored:
            if name in kept:
                attributes[name] = kept[name]
            else:
                del attributes[name]
    if stored:
        raise RuntimeError(f"it sets the attribute {stored[0][2]!r}")


class _Whole(nn.Module):
    """The model as a module of one input, so that other arguments of its forward keep their defaults."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Any) -> Any:
        return self.module(inputs)


class _Tracer(fx.Tracer):
    """Goes into the modules `around` the layer only, and leaves other threads alone."""

    proxy_buffer_attributes = True

    def __init__(self, around: list[nn.Module]) -> None:
        super().__init__()
        self._around = {id(part) for part in around}
        self._owner = threading.get_ident()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) not in self._around

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._owner:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if threading.get_ident() != self._owner:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _cut(root: nn.Module, graph: fx.Graph, target: nn.Module) -> Split | str:
    """Two modules: the nodes up to the call of `target`, and those behind it."""
    nodes = list(graph.nodes)
    # By identity: a module may have several names, of which the trace has the first.
    calls = [
        index
        for index, node in enumerate(nodes)
        if node.op == "call_module" and root.get_submodule(node.target) is target
    ]
    if len(calls) != 1:
        return f"its forward calls the layer {len(calls)} times"
    before, behind = nodes[: calls[0]], nodes[calls[0] + 1 :]
    head = fx.Graph()
    there = {nodes[calls[0]]: head.placeholder("output")}
    # What does not depend on the inputs, such as parameters, is recomputed; the rest goes around the layer.
    constant: list[fx.Node] = []
    for node in before:
        if node.op != "placeholder" and all(used in constant for used in node.all_input_nodes):
            constant.append(node)
    needed = {used for node in behind for used in node.all_input_nodes}
    around = [node for node in before if node in needed and node not in constant]
    there |= {node: head.placeholder(node.name) for node in around}
    for node in (*constant, *behind):
        there[node] = head.node_copy(node, there.__getitem__)
    body = fx.Graph()
    here: dict[fx.Node, fx.Node] = {}
    for node in nodes[: calls[0] + 1]:
        here[node] = body.node_copy(node, here.__getitem__)
    body.output(tuple(here[node] for node in (nodes[calls[0]], *around)))
    # Their modules are the model's own: their modes stay as they are.
    return Split(fx.GraphModule(root, body), fx.GraphModule(root, head), len(around))
