"""A model without the layer that makes its scores: what it knows of a photograph, as an embedding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, restated
from camkit.core import hooks, layers
from camkit.core.call_types import Call
from camkit.core.layer_lookup import automatic_layer
from camkit.core.scored import classifier
from camkit.errors import ModelError, warn

HEADS = (1, 2)  # how many layers may make the scores
# What may follow the layer that makes the scores, and the modules that do it.
AFTER: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.softmax(1),
    lambda x: x.log_softmax(1),
    torch.sigmoid,
)
SQUASHING = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)


def encoder(model: LoadedModel) -> LoadedModel:
    """`model` up to what its last linear layer takes: it returns embeddings `[B, d]`, which have no names.

    Of two heads whose mean are the scores, as of a distilled DeiT, it is the mean of what both take. The
    tensors are shared, `model` stays as it is. A model that ends in no linear layer, such as DINOv2 without
    a head, is taken for one that returns an embedding already; unless its scores are `none`, a warning says
    so. Raises `ModelError` for one that returns none.
    """
    layer = model.default_layer
    if heads := _heads(model):
        layer = _automatic(model) if layer == "auto" else layer
        model = restated(model, module=_without(model.module, heads))
    elif model.scores != "none":
        warn(
            f"{model.name} ends in no linear layer, so what it returns is compared as it is: if these are "
            "scores of classes, the likeness is that of the scores; --scores none says that they are not"
        )
    found = _scores(model)
    if found.ndim != 2:
        raise ModelError(f"{model.name} returns {list(found.shape)}, no embedding [B, d]: see --output")
    names = tuple(f"embedding_{i}" for i in range(found.shape[1]))
    return restated(model, classes=names, default_layer=layer, scores="none", architecture=None)


def _heads(model: LoadedModel) -> tuple[str, ...]:
    """The names of the last linear layers, if the scores are what they return, or their mean.

    And of the module that makes probabilities of it, if one does. Raises `ModelError` where that is no
    module, which could be left out.
    """
    taken: list[tuple[str, Tensor]] = []
    behind: dict[str, Any] = {}
    names = {
        part: name
        for name, part in model.module.named_modules()
        if isinstance(part, (nn.Linear, *SQUASHING)) or getattr(part, "camkit_head", False)
    }

    def note(part: nn.Module, _: Any, returned: Any) -> None:
        if isinstance(part, SQUASHING):
            behind[names[part]] = returned
        else:
            taken.append((names[part], returned))

    handles = [part.register_forward_hook(note) for part in names]
    try:
        scores = _scores(model)
    finally:
        for handle in handles:
            handle.remove()
    for count in HEADS:
        heads = dict(taken[-count:])
        if len(heads) < count or "" in heads or any(one.shape != scores.shape for one in heads.values()):
            continue
        mean = torch.stack(list(heads.values())).mean(0)
        if torch.allclose(mean, scores):
            return tuple(heads)
        if any(torch.allclose(after(mean), scores) for after in AFTER):
            last = [name for name, found in behind.items() if name and found is not None]
            made = [name for name in last if behind[name].shape == scores.shape]
            if not made or not torch.allclose(behind[made[-1]], scores):
                raise ModelError(
                    f"{model.name} makes probabilities of what its last linear layer returns, in its own "
                    "code: no embedding can be taken out of it; let it return the scores"
                )
            return (*heads, made[-1])
    return ()


def _without(module: nn.Module, heads: Sequence[str]) -> nn.Module:
    """A copy with the same tensors, in which the layers `heads` do nothing."""
    made = copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})
    for head in heads:
        parent, _, name = head.rpartition(".")
        setattr(made.get_submodule(parent), name, First())
    return made


class First(nn.Module):
    """Returns the first of what it is given."""

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        """`x`."""
        return x


def _example(model: LoadedModel) -> Tensor:
    """A photograph that says nothing."""
    like = next(p for p in model.module.parameters() if p.is_floating_point())
    return layers.example_inputs(model.preprocess.size, like, model.preprocess.channels)


def _scores(model: LoadedModel) -> Tensor:
    """What a model returns."""
    with hooks.as_it_was(model.module, model.device), torch.inference_mode():
        scores = classifier(model)(_example(model))
    if not isinstance(scores, Tensor):
        raise ModelError(f"{model.name} returns a {type(scores).__name__}, no embedding: see --output")
    return scores


def _automatic(model: LoadedModel) -> str:
    """The automatic layer of the classifier; what is above it need not be a head."""
    return automatic_layer(model.module, _example(model), call=Call(output=model.output)).name
