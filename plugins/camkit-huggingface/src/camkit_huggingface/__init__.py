"""The model source `hf`: image classifiers of transformers, which is imported when one is loaded."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from camkit.errors import ModelError
from camkit.plugin import LoadedModel, ModelSource

if TYPE_CHECKING:
    import torch


class HuggingFaceSource(ModelSource):
    """`hf:FOLDER`, `hf:NAME[@REVISION]`; for CLIP and SigLIP also `?classes=cat,dog`."""

    summary = "transformers' image classifiers: a FOLDER, or NAME[@REVISION] of the hub"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """A folder of `save_pretrained`, or a model of the hub, fetched once; no code of its own is run."""
        try:
            importlib.import_module("transformers")
        except ImportError as error:
            raise ModelError(
                f"hf:{reference} needs transformers (pip install transformers): {error}"
            ) from None
        from camkit_huggingface.loading import load

        return load(reference, device)
