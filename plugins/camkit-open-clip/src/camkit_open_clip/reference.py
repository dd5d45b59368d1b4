"""What stands behind `open-clip:`: a name, its weights, and what it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from camkit.errors import ModelError, UsageError

CLASSES, TEXTS, EMBEDDING = "?classes=", "?texts=", "?embedding"
OPTIONS = {CLASSES: "--classes (or classes=)", TEXTS: "--text"}


@dataclass(frozen=True)
class Reference:
    """`NAME@WEIGHTS`, and what is told of it: its `kind` is one of the above, or ""."""

    said: str
    name: str
    weights: str
    kind: str = ""
    texts: tuple[str, ...] = ()

    @classmethod
    def of(cls, reference: str) -> Reference:
        """From the text; `ModelError` if it names no weights."""
        kind = next((one for one in (CLASSES, TEXTS, EMBEDDING) if one in reference), "")
        place, _, listed = reference.partition(kind) if kind else (reference, "", "")
        name, _, weights = place.partition("@")
        if not name or not weights:
            raise ModelError(
                f"open-clip:{place}: a model is NAME@PRETRAINED, NAME@FILE or NAME@none, such as "
                "ViT-B-32@laion2b_s34b_b79k (`camkit model list 'open-clip:*'`)"
            )
        texts = tuple(unquote(text.strip()) for text in listed.split(",") if text.strip())
        return cls(place, name, weights, kind, texts)

    def told(self, kind: str, texts: Sequence[str]) -> str:
        """The text of this model with what it is told; `UsageError` if it was told something else."""
        listed = ",".join(text.replace("%", "%25").replace(",", "%2C") for text in texts)
        if self.kind and (self.kind, self.texts) != (kind, tuple(texts)):
            raise UsageError(
                f"open-clip:{self.said} is told its classes twice: by {self.kind}, and by {OPTIONS[kind]}"
            )
        return f"{self.said}{kind}{listed}"
