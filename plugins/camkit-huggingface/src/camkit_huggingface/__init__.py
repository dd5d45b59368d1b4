"""The model source `hf`: classifiers and detectors of transformers, imported when one is loaded."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from camkit.errors import ModelError
from camkit.plugin import LoadedModel, ModelSource, Preprocess

if TYPE_CHECKING:
    import torch
    from torch import nn


class HuggingFaceSource(ModelSource):
    """`hf:FOLDER`, `hf:NAME[@REVISION]`; for CLIP and SigLIP also `?classes=cat,dog` or `?texts=a cat`.

    With `?embedding` it is what they, or a model without a head, know of a photograph.
    """

    summary = "transformers' image classifiers and detectors: a FOLDER, or NAME[@REVISION] of the hub"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """A folder of `save_pretrained`, or a model of the hub, fetched once; no code of its own is run."""
        _need_transformers(f"hf:{reference}")
        from camkit_huggingface.loading import load

        return load(reference, device)

    def with_classes(self, reference: str, classes: Sequence[str]) -> str:
        """Of CLIP and SigLIP `...?classes=cat,dog`."""
        _need_transformers(f"hf:{reference}")
        from camkit_huggingface.loading import with_classes

        return with_classes(reference, classes)

    def with_texts(self, reference: str, texts: Sequence[str]) -> str:
        """Of CLIP and SigLIP `...?texts=`."""
        _need_transformers(f"hf:{reference}")
        from camkit_huggingface.loading import with_texts

        return with_texts(reference, texts)

    def as_encoder(self, reference: str) -> str:
        """Of CLIP, SigLIP and models without a head `...?embedding`."""
        _need_transformers(f"hf:{reference}")
        from camkit_huggingface.loading import as_encoder

        return as_encoder(reference)

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"config": ..., "flip": ..., "num_classes": N}`, and the shape of its `prompts` for CLIP."""
        _need_transformers("the bundle")
        from camkit_huggingface.building import build

        return build(architecture)


def preprocess_of(processor: Any) -> Preprocess:
    """What an image processor of transformers shows, for `preprocess=`; `ModelError` if camkit cannot."""
    from camkit_huggingface.processor import shown

    kind = type(processor).__name__
    try:
        preprocess, flip = shown(processor)
    except ModelError as error:
        raise ModelError(f"preprocess is a {kind}: {error}") from None
    if flip:
        raise ModelError(
            f"{kind} turns the channels round: save_pretrained() model and processor, hf:FOLDER"
        )
    return preprocess


def _need_transformers(what: str) -> None:
    try:
        importlib.import_module("transformers")
    except ImportError as error:
        raise ModelError(f"{what} needs transformers (pip install transformers): {error}") from None
