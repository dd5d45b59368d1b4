"""Modules that return nothing but scores `[B, n_classes]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from camkit.errors import UsageError

# What zero-shot pipelines of transformers make of the name of a class.
PROMPT = "This is a photo of {}."


class Classifier(nn.Module):
    """A `...ForImageClassification` whose forward takes pixels `[B, 3, H, W]` and returns its logits.

    flip: the channels are turned round first, for networks that want blue, green and red.
    """

    def __init__(self, model: Any, flip: bool) -> None:
        super().__init__()
        self.model = model
        self.flip = flip

    def forward(self, pixels: Tensor) -> Tensor:
        """Logits `[B, n_classes]`."""
        pixels = pixels.flip(1) if self.flip else pixels
        return cast("Tensor", self.model(pixel_values=pixels, return_dict=True).logits)


class PromptClassifier(nn.Module):
    """The image side of CLIP or SigLIP with one prompt for each class, embedded once.

    camkit_prompts: the normalised embeddings `[n_classes, d]`.
    """

    camkit_prompts: Tensor

    def __init__(self, model: Any, embeddings: Tensor) -> None:
        super().__init__()
        for name, _ in list(model.named_children()):
            if name.startswith("text_"):
                setattr(model, name, None)  # it has done its work
        self.model = model
        self.register_buffer("camkit_prompts", embeddings)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scaled similarities `[B, n_classes]`, as `logits_per_image`."""
        images = normalised(self.model.get_image_features(pixel_values=pixels, return_dict=True))
        scores: Tensor = images @ self.camkit_prompts.t() * self.model.logit_scale.exp()
        bias = getattr(self.model, "logit_bias", None)
        return scores if bias is None else scores + bias


class Encoder(nn.Module):
    """What a model without a head, or CLIP or SigLIP, knows of a photograph: embeddings `[B, d]`.

    As the model pools it; of one that does not, the first token, which is the class token.
    flip: as of `Classifier`.
    """

    def __init__(self, model: Any, flip: bool) -> None:
        super().__init__()
        for name, _ in list(model.named_children()):
            if name.startswith("text_"):
                setattr(model, name, None)  # nobody asks it
        self.model = model
        self.flip = flip

    def forward(self, pixels: Tensor) -> Tensor:
        """Embeddings `[B, d]`."""
        pixels = pixels.flip(1) if self.flip else pixels
        if hasattr(self.model, "get_image_features"):
            return normalised(self.model.get_image_features(pixel_values=pixels, return_dict=True))
        returned = self.model(pixel_values=pixels, return_dict=True)
        pooled = getattr(returned, "pooler_output", None)
        if pooled is None:
            hidden: Tensor = returned.last_hidden_state
            pooled = hidden[:, 0] if hidden.ndim == 3 else hidden.mean((2, 3))
        return cast("Tensor", pooled.flatten(1))


def embedded(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """The normalised embeddings of texts, `[n, d]`; `UsageError` for one that is not read whole."""
    config = model.config
    most = int(getattr(config, "text_config", config).max_position_embeddings)
    siglip = "siglip" in config.model_type
    how: dict[str, Any] = {"padding": "max_length", "max_length": most} if siglip else {"padding": True}
    for text, tokens in zip(texts, tokenizer(list(texts))["input_ids"], strict=True):
        if len(tokens) > most:
            raise UsageError(f"a text is longer than the {most} tokens that the model reads: {text!r}")
    with torch.no_grad():
        tokens = tokenizer(texts, return_tensors="pt", **how)
        return normalised(model.get_text_features(**tokens, return_dict=True))


def normalised(features: Any) -> Tensor:
    """Rows of length 1; of what the model returns the pooled output."""
    rows: Tensor = getattr(features, "pooler_output", features)
    return torch.nn.functional.normalize(rows, dim=-1)
