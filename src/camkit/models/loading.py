"""Models by specification: `pets`, `torchvision:resnet34`, `timm:vit_tiny_patch16_224@FILE`, a bundle.

`SCHEME:REFERENCE` goes to the model source registered as SCHEME; a bare name is a scheme without a
reference; a folder is a bundle; a file holds weights. No pickle is ever loaded: weights come from
safetensors, or from `.pth` files through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Unpack
from weakref import WeakKeyDictionary

import torch
from torch import nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.core.devices import pick_device, pick_dtype
from camkit.core.scored import Output
from camkit.errors import ModelNotFound, UsageError, closest, warn
from camkit.models import labels
from camkit.models.facts import Facts, ModelFacts
from camkit.models.objects import from_object
from camkit.models.specs import split
from camkit.models.timm import TimmSource
from camkit.models.torchvision import TorchvisionSource
from camkit.registry import loading

DEFAULT = "pets"


def load_model(
    model: Any = DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    trust_pickle: bool = False,
    preprocess: Any = None,
    output: Output = None,
    **facts: Unpack[Facts],
) -> LoadedModel:
    """The classifier that `model` means, in eval mode.

    model: a file of weights, a bundle folder, `pets`, `imagenet`, `torchvision:NAME[@WEIGHTS]`,
        `timm:NAME[@FILE]`, `FILE.py:FUNCTION`. Or a model that is there: any `nn.Module`, a fastai
        `Learner`, a Hugging Face model, a `LightningModule`, a `YOLO`; it stays where it is.
    device: `auto` (an accelerator, if there is one and it answers), `cpu`, `cuda:1`, `mps`, ...
    preprocess: what the model is shown; see `camkit.models.transforms.as_preprocess`.
    output: where it returns a tuple or a dict, the index, key or name of the scores.
    facts: what belongs to the model, where it does not say it itself; see `ModelFacts`.
    A `CamkitWarning` tells what is assumed of it, once for each model. Raises `ModelNotFound` if there is
    none, `ModelError` if it cannot be read or built, and `UsageError` for an argument that is none.
    """
    loaded = load_quietly(
        model,
        device=device,
        dtype=dtype,
        trust_pickle=trust_pickle,
        preprocess=preprocess,
        output=output,
        **facts,
    )
    warn_of_assumptions(loaded)
    return loaded


def warn_of_assumptions(model: LoadedModel) -> None:
    """Say what is assumed of a model, if that has not been said of it before."""
    if not model.is_sure and _TOLD.get(model.module) != model.note:
        _TOLD[model.module] = model.note
        warn(model.note)


_TOLD: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()


def load_quietly(
    model: Any = DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    trust_pickle: bool = False,
    preprocess: Any = None,
    output: Output = None,
    inputs: tuple[int, int, int] | None = None,
    **facts: Any,
) -> LoadedModel:
    """As `load_model`, for callers that tell the notes of a model in their own way, or need not.

    inputs: `[C, H, W]` of tensors that are prepared for it, which it is to take as they are.
    """
    said, kind = ModelFacts.of(facts), None
    if isinstance(model, str | os.PathLike):
        target, kind = pick_device(device), pick_dtype(dtype)
        spec = with_classes(os.fspath(model), said.classes)
        model = _of_spec(spec, said.arch, target, trust_pickle)
        model.module.eval()
    elif said.arch is not None:
        raise UsageError(f"an architecture belongs to a file of weights, not to a {type(model).__name__}")
    loaded = from_object(model, preprocess=preprocess, output=output, facts=said, inputs=inputs)
    return loaded if kind in (None, loaded.dtype) else loaded.to(dtype=kind)


def with_classes(spec: str, classes: Sequence[str] | None) -> str:
    """The specification of a model with the classes that it is told, if it is told any.

    `hf:FOLDER` of a CLIP becomes `hf:FOLDER?classes=cat,dog`, which stands by itself in a manifest.
    """
    if classes is None:
        return spec
    scheme, reference = split(os.path.expanduser(spec))  # noqa: PTH111  a spec need not be a path
    source: ModelSource = loading.make("model", scheme)
    told = source.with_classes(reference, classes)
    return spec if told == reference else f"{scheme}:{told}"


def told_classes(spec: str, classes: str) -> str:
    """As `with_classes`, of what `--classes` takes, where no options can go along with a specification.

    Raises `UsageError` where it cannot hold them.
    """
    told = with_classes(spec, labels.parse(classes))
    if told == spec:
        raise UsageError(
            f"--classes is for CLIP and SigLIP (hf:, open-clip:) here; names for {spec} go into a bundle: "
            f"camkit model bundle {spec} --classes ... --out DIR"
        )
    return told


def with_texts(spec: str, texts: Sequence[str]) -> str:
    """As `with_classes`, of texts that are taken word for word; `UsageError` where it knows none.

    And for an empty text, which would vanish, and for one given twice, which would share its probability.
    """
    stripped = [text.strip() for text in texts]
    if not all(stripped):
        raise UsageError("--text is empty: give what the photograph is compared with")
    if twice := next((text for text in stripped if stripped.count(text) > 1), None):
        raise UsageError(f"--text {twice!r} is given twice: each would have half of its probability")
    scheme, reference = split(os.path.expanduser(spec))  # noqa: PTH111  a spec need not be a path
    source: ModelSource = loading.make("model", scheme)
    told = source.with_texts(reference, texts)
    if told == reference:
        raise UsageError(f"{spec} knows no texts: --text is for CLIP and SigLIP (hf:, open-clip:)")
    return f"{scheme}:{told}"


def as_encoder(spec: str) -> str:
    """The specification of what returns embeddings, of a model that has to be told so."""
    scheme, reference = split(os.path.expanduser(spec))  # noqa: PTH111  a spec need not be a path
    source: ModelSource = loading.make("model", scheme)
    told = source.as_encoder(reference)
    return spec if told == reference else f"{scheme}:{told}"


def _of_spec(spec: str, arch: str | None, device: torch.device, trust: bool) -> LoadedModel:
    scheme, reference = split(os.path.expanduser(spec))  # noqa: PTH111  a spec need not be a path
    if arch is not None:
        if scheme != "file":
            raise UsageError(f"an architecture belongs to a file of weights, not to {spec}")
        scheme, _, name = architecture(arch).partition(":")
        reference = f"{name}@{reference}"
    loaded: LoadedModel = loading.make("model", scheme).load(reference, device=device, trust=trust)
    return loaded


def architecture(name: str) -> str:
    """`timm:NAME` for the name of an architecture, if just one library has it."""
    if name.startswith(("torchvision:", "timm:", "fastai:")):
        return name
    known = {"torchvision": TorchvisionSource().names(), "timm": list(TimmSource().names())}
    having = [f"{scheme}:{name}" for scheme, names in known.items() if name in names]
    if len(having) > 1:
        raise UsageError(f"the architecture {name!r} is {' or '.join(having)}: name the library, too")
    if not having:
        hint = closest(name, [*known["torchvision"], *known["timm"]]) or " (`camkit model list 'timm:*'`)"
        raise ModelNotFound(f"neither torchvision nor timm has a model {name!r}{hint}")
    return having[0]


def library_spec(name: str) -> str:
    """As `architecture`, but torchvision's where both have one; behind a dot stand weights of timm."""
    if name in TorchvisionSource().names():
        return f"torchvision:{name}"
    base, dot, tag = name.partition(".")
    return f"{architecture(base)}{dot}{tag}"
