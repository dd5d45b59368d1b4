"""A trained classifier with a new head, as training starts from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError
from camkit.models.loading import library_spec, load_quietly
from camkit.registry import discovery, loading


def pretrained(arch: str, weights: str, device: torch.device) -> LoadedModel:
    """The classifier that `arch` means: a name of torchvision or timm, or a model specification.

    weights: `default` (those that belong to it), `none` (random) or a file.
    """
    known = {found.name for found in discovery.find("model")}
    spec = arch if arch in known or ":" in arch else library_spec(arch)
    if weights != "default":
        if arch in known:
            raise ModelError(f"{arch} brings its own weights; --weights goes with a name such as resnet34")
        spec = f"{spec}@{weights}"
    try:
        return load_quietly(spec, device=device)
    except ModelError as error:
        if weights != "default" or arch in known:
            raise
        ways = "in a training: --weights FILE or --weights none; --arch imagenet needs no network"
        raise type(error)(f"{error} ({ways})") from None


def with_new_head(
    model: LoadedModel, classes: tuple[str, ...], *, seed: int
) -> tuple[LoadedModel, frozenset[str]]:
    """`model` for other classes, and the names of the parameters that are new.

    Everything keeps its weights but what depends on the number of classes.
    """
    architecture = dict(model.architecture or {})
    if "num_classes" not in architecture:
        raise ModelError(f"model {model.name!r} cannot be given a new head")
    builder: ModelSource = loading.make("model", str(architecture["source"]))
    architecture["num_classes"] = len(classes)
    module = builder.build(architecture).to(model.device)
    other = builder.build({**architecture, "num_classes": len(classes) + 1}).state_dict()
    own, old = module.state_dict(), model.module.state_dict()
    head = {name for name in own if own[name].shape != other[name].shape}
    for name in own:
        if name not in head:
            own[name].copy_(old[name])
    _initialise(module, head, seed)
    fresh = replace(model, module=module, classes=classes, architecture=architecture)
    return fresh, frozenset(head)


def groups(module: nn.Module, head: frozenset[str], lr: float, body_lr: float) -> list[dict[str, Any]]:
    """The parameters of head and body with their rates, for an optimiser; one with rate 0 rests."""
    parts: dict[str, dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        kind, rate = ("head", lr) if name in head else ("body", body_lr)
        parameter.requires_grad_(rate > 0)
        if rate > 0:
            parts.setdefault(kind, {"params": [], "lr": rate})["params"].append(parameter)
    return [parts[kind] for kind in ("head", "body") if kind in parts]


def _initialise(module: nn.Module, head: set[str], seed: int) -> None:
    """Small random weights and no bias, from `seed` and nothing else."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in head and parameter.ndim > 1:
                values = 0.01 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(values.to(parameter))
            elif name in head:
                parameter.zero_()
