"""Models of open_clip as `LoadedModel`s."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from torch import Tensor, nn

from camkit.errors import ModelError, ModelNotFound, UsageError, closest, typed_reason
from camkit.plugin import LoadedModel, Preprocess, put_weights, random_state_kept, read_weights
from camkit_open_clip.published import NOTHING, of_file, of_published
from camkit_open_clip.reference import CLASSES, EMBEDDING, Reference

PROMPT = "a photo of a {}."  # what the paper of CLIP makes of a class
LONG = 16  # times what a model reads: texts whose tokens are counted
INTERPOLATIONS = ("bilinear", "bicubic")


class ImageSide(nn.Module):
    """Embeddings of photographs, `[B, d]`, of length 1; with texts their scaled similarities, `[B, n]`.

    camkit_texts: the embeddings of the texts, `[n, d]`; scale, bias: what similarities are turned into
    scores with.
    """

    camkit_texts: Tensor | None
    scale: Tensor
    bias: Tensor

    def __init__(self, visual: nn.Module, texts: Tensor | None, scale: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.register_buffer("camkit_texts", texts)
        self.register_buffer("scale", scale)
        self.register_buffer("bias", bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """`[B, n]`, or `[B, d]` without texts."""
        found = self.visual(pixels)
        features: Tensor = found[0] if isinstance(found, tuple) else found  # CoCa returns its tokens, too
        images = nn.functional.normalize(features, dim=-1)
        if self.camkit_texts is None:
            return images
        return images @ self.camkit_texts.t() * self.scale + self.bias


def load(asked: Reference, device: torch.device) -> LoadedModel:
    """The model; `ModelError` if there are no texts, no such weights, or photographs cannot be shown so."""
    if not asked.texts and asked.kind != EMBEDDING:
        raise ModelError(
            f"open-clip:{asked.said} needs texts to tell apart: --text 'a cat' --text 'a dog', or "
            "--classes cat,dog (classes= in Python)"
        )
    with _quiet():
        made, notes = _made(asked)
        preprocess = shown(made.visual.preprocess_cfg, asked)
        texts = _embedded(made, asked) if asked.texts else None
    bias = made.logit_bias
    module = ImageSide(
        made.visual,
        texts,
        made.logit_scale.detach().exp(),
        torch.zeros(()) if bias is None else bias.detach(),
    )
    module = module.to(device).eval()
    scores = "softmax" if bias is None else "sigmoid"
    if texts is None or (len(texts) == 1 and bias is None):
        scores = "none"  # an embedding has no classes, and a softmax over one text says nothing
    told = ",".join(text.replace("%", "%25").replace(",", "%2C") for text in asked.texts)
    name = f"open-clip:{asked.said}{asked.kind}{told}"
    classes = asked.texts or tuple(f"embedding_{i}" for i in range(_width(module, preprocess)))
    notes = {key: f"open-clip:{asked.said}: {text}" for key, text in notes.items()}
    return LoadedModel(module, classes, preprocess, name, scores=cast("Any", scores), notes=notes)


def shown(told: Mapping[str, Any], asked: Reference) -> Preprocess:
    """How photographs are shown; `ModelError` for a way that camkit does not have."""
    size, how = told["size"], told["resize_mode"]
    height, width = (size, size) if isinstance(size, int) else size
    known = {"shortest": "crop", "squash": "squash"}
    other = how not in known or (how == "shortest" and height != width)
    if other or told["interpolation"] not in INTERPOLATIONS or told["mode"] != "RGB":
        raise ModelError(f"open-clip:{asked.said} is shown photographs in a way that camkit has not: {how}")
    return Preprocess(
        size=(height, width),
        resize=height if how == "shortest" else None,
        fit=cast("Any", known[how]),
        interpolation=told["interpolation"],
        mean=tuple(told["mean"]),
        std=tuple(told["std"]),
    )


def _made(asked: Reference) -> tuple[Any, Mapping[str, str]]:
    """The network with its weights, on the CPU, and what is assumed of it."""
    names = open_clip.list_models()
    if asked.name not in names:
        hint = closest(asked.name, names) or " (`camkit model list 'open-clip:*'`)"
        raise ModelNotFound(f"open_clip has no model {asked.name!r}{hint}")
    path = Path(asked.weights).expanduser()
    tags = open_clip.list_pretrained_tags_by_model(asked.name)
    if asked.weights != "none" and not path.is_file() and asked.weights not in tags:
        hint = closest(asked.weights, tags) or f" ({', '.join(tags) or 'open_clip has none for it'})"
        raise ModelNotFound(
            f"there is no file {asked.weights!r}, and no such weights of {asked.name}{hint}"
        )
    fetched = asked.weights if asked.weights in tags and not path.is_file() else None
    known = of_file(asked.name) if path.is_file() else NOTHING
    known = of_published(asked.name, fetched) if fetched else known
    try:
        with random_state_kept(torch.device("cpu"), seed=0):
            made = open_clip.create_model(
                asked.name,
                pretrained=fetched,
                pretrained_text=False,
                force_quick_gelu=known.quick,
                force_preprocess_cfg=dict(known.shown),
            )
    # Whatever open_clip and its hub client raise.
    except Exception as error:
        raise ModelError(f"open-clip:{asked.said} cannot be loaded: {typed_reason(error)}") from None
    if path.is_file():
        state = read_weights(path)
        put_weights(made, state, str(path))
    return made.eval(), known.notes


def _embedded(made: Any, asked: Reference) -> Tensor:
    """The normalised embeddings of the texts, `[n, d]`; `UsageError` for one that is not read whole."""
    texts = [PROMPT.format(text) if asked.kind == CLASSES else text for text in asked.texts]
    try:
        tokenizer = open_clip.get_tokenizer(asked.name)
        tokens = tokenizer(texts)
        most = tokens.shape[1]
        blank, *rows = tokenizer(["", *texts], context_length=LONG * most)
    # Some tokenizers are fetched from the hub.
    except Exception as error:
        raise ModelError(
            f"open-clip:{asked.said}: its tokenizer cannot be loaded: {typed_reason(error)}"
        ) from None
    # It cuts what is longer, some with a last token anew: in a far longer row nothing is.
    for text, short, row in zip(texts, tokens, rows, strict=True):
        count = int((row != blank[-1]).nonzero().max()) + 1
        if count > most or not torch.equal(short, row[:most]):
            raise UsageError(f"a text is longer than the {most} tokens that the model reads: {text!r}")
    with torch.no_grad():
        found: Tensor = made.encode_text(tokens, normalize=True)
    return found


def _width(module: nn.Module, preprocess: Preprocess) -> int:
    with torch.inference_mode():
        like = next(module.parameters())
        return int(module(torch.zeros(1, 3, *preprocess.size, device=like.device)).shape[1])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that open_clip logs for random weights and the like."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
