"""Models by specification: `pets`, `torchvision:resnet34`, `timm:vit_tiny_patch16_224@FILE`, a bundle.

`SCHEME:REFERENCE` goes to the model source registered as SCHEME; a bare name is a scheme without a
reference; a folder is a bundle. No pickle is ever loaded: weights come from safetensors, or from `.pth`
files through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import os
from dataclasses import replace

import torch

from camkit.contracts.model import LoadedModel
from camkit.contracts.scores import ScoreKind, checked
from camkit.core.devices import pick_device, pick_dtype
from camkit.errors import ModelNotFound, closest
from camkit.models.specs import split
from camkit.models.timm import TimmSource
from camkit.models.torchvision import TorchvisionSource
from camkit.registry import loading

DEFAULT = "pets"


def load_model(
    spec: str | os.PathLike[str] = DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    scores: ScoreKind | None = None,
    trust_pickle: bool = False,
) -> LoadedModel:
    """The model that `spec` means, in eval mode.

    spec: `pets`, `imagenet`, `torchvision:NAME[@WEIGHTS]`, `timm:NAME[@FILE]`, or a bundle folder.
    device: `auto` (a CUDA device if there is one), `cpu`, `cuda`, `cuda:1`, ...
    scores: what its outputs are: `softmax`, `sigmoid`, `probabilities` or `none`; left out, as it says.
    Raises `ModelNotFound` if there is none, and `ModelError` if it cannot be read or built.
    """
    target, kind = pick_device(device), pick_dtype(dtype)
    if scores is not None:
        checked(scores)  # before the model is loaded
    scheme, reference = split(os.fspath(spec))
    model: LoadedModel = loading.make("model", scheme).load(reference, device=target, trust=trust_pickle)
    model.module.eval()
    if scores is not None:
        model = replace(model, scores=scores)
    return model if kind == model.dtype else model.to(dtype=kind)


def library_spec(name: str) -> str:
    """`torchvision:NAME` or `timm:NAME`, whichever has a classifier NAME; torchvision comes first."""
    if name in TorchvisionSource().names():
        return f"torchvision:{name}"
    names = list(TimmSource().names())
    if name.partition(".")[0] not in names:  # behind a dot stand weights of timm
        hint = closest(name, [*TorchvisionSource().names(), *names]) or " (`camkit model list 'timm:*'`)"
        raise ModelNotFound(f"neither torchvision nor timm has a model {name!r}{hint}")
    return f"timm:{name}"
