"""The model source `open-clip`: models of open_clip, which is imported when one is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from camkit.plugin import LoadedModel, ModelSource
from camkit_open_clip.reference import CLASSES, EMBEDDING, TEXTS, Reference

if TYPE_CHECKING:
    import torch


class OpenClipSource(ModelSource):
    """`open-clip:NAME@WEIGHTS?texts=a cat,a dog`, `?classes=cat,dog`, or `?embedding` without either."""

    summary = "CLIP models of open_clip: NAME@PRETRAINED, NAME@FILE; --text, --classes or --like"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The image side with its texts, embedded once; of weights nothing is unpickled."""
        from camkit_open_clip.loading import load

        return load(Reference.of(reference), device)

    def with_classes(self, reference: str, classes: Sequence[str]) -> str:
        """`...?classes=cat,dog`."""
        return Reference.of(reference).told(CLASSES, classes)

    def with_texts(self, reference: str, texts: Sequence[str]) -> str:
        """`...?texts=a cat,a dog`."""
        return Reference.of(reference).told(TEXTS, texts)

    def as_encoder(self, reference: str) -> str:
        """`...?embedding`."""
        asked = Reference.of(reference)
        return reference if asked.kind else f"{reference}{EMBEDDING}"

    def names(self) -> Iterable[str]:
        """Those that open_clip has weights for."""
        import open_clip

        return [f"{name}@{weights}" for name, weights in open_clip.list_pretrained()]
