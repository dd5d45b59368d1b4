"""A file of weights of one's own: its architecture, its classes, and what it shows the model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError, counted, typed_reason
from camkit.images.preprocess import Preprocess
from camkit.models import (
    heads,
    labels,
    processor_config,
    recognition,
    signatures,
    stored_preprocess,
    ultralytics,
)
from camkit.models.checkpoint import WEIGHTS, Checkpoint, read_checkpoint
from camkit.models.facts import ModelFacts, assumed, assumed_scores, prepared, unsaid
from camkit.models.recognition import Found
from camkit.models.weights import built_for, put_weights
from camkit.registry import loading

# Torchvision's, which may scale photographs once more inside: their tensors do not tell.
INCEPTIONS = ("torchvision:googlenet", "torchvision:inception_v3")


def load_weights(path: Path, *, device: torch.device, name: str = "") -> LoadedModel:
    """The model whose weights are in `path`.

    name: its architecture, `timm:resnet18`, if it need not be found. Raises `ModelError` where that cannot
    be told, or the weights do not fit.
    """
    checkpoint = read_checkpoint(path)
    if (shell := ultralytics.network(checkpoint)) is not None:
        return ultralytics.load(checkpoint, shell, device)
    found = recognition.Found(name) if name else recognition.architecture_of(checkpoint)
    if found.name.startswith("fastai:"):
        fastai: ModelSource = loading.make("model", "fastai")
        model = fastai.load(f"{found.name.removeprefix('fastai:')}@{path}", device=device, trust=False)
        return replace(model, notes={"architecture": f"{path.name}: {found.name}", **model.notes})
    fitted = recognition.fit(found.name, checkpoint)
    architecture = fitted.architecture
    source: ModelSource = loading.make("model", architecture["source"])
    with built_for(sum(tensor.nbytes for tensor in fitted.state.values())):
        module = source.build(architecture)
    put_weights(module, fitted.state, f"{path} ({found.name})")
    preprocess = prepared(source.preprocess(architecture), architecture)
    if "head" in architecture:
        _check_head(source, architecture, preprocess, f"{path} ({found.name})")
    count = architecture["num_classes"]
    classes, of_classes = class_names(checkpoint, count)
    notes = {"architecture": f"{path.name}: {_described(found, architecture)}"}
    if doubts := _doubts(found, architecture):
        notes["variant"] = ", ".join(doubts)
    notes |= {"classes": of_classes, "scores": assumed_scores(count)}
    if others := [
        key for key in WEIGHTS if key in checkpoint.content and key not in checkpoint.where.split(".")
    ]:
        notes["weights"] = f"weights of {checkpoint.where!r}, not of {', '.join(others)}"
    model = LoadedModel(
        module.to(device).eval(),
        classes,
        preprocess,
        name=f"{name}@{path}" if name else str(path),
        architecture=architecture,
        notes=notes | {"shown": assumed(preprocess)},
        unsaid=unsaid(preprocess.channels),
    )
    return as_it_says(model, checkpoint)


def as_it_says(model: LoadedModel, checkpoint: Checkpoint) -> LoadedModel:
    """`model` shown photographs as its file, or a processor beside it, says, as far as they do."""
    fixed = any(signatures.POSITIONS.search(name) for name in checkpoint.state)  # its size
    preprocess, text = processor_config.beside(checkpoint.path)
    # First what is said and not taken: what is assumed instead is probably wrong.
    notes = ({"processor": text} if text else {}) | dict(model.notes)
    if preprocess is not None and model.preprocess.channels == 3:
        if fixed and preprocess.size != model.preprocess.size:
            notes["processor"] = f"{processor_config.NAME} beside it is for another size: it is not taken"
        else:
            notes.pop("shown", None)
            model = replace(model, preprocess=preprocess)
    said, doubts = stored_preprocess.stored(checkpoint, model.preprocess, fixed=fixed)
    model = replace(model, notes=({"not taken": "; ".join(doubts)} if doubts else {}) | notes)
    if not said or set(model.unsaid) - said.keys():
        return model
    interpolation = said.pop("interpolation", (model.preprocess.interpolation, ""))
    model = replace(model, preprocess=replace(model.preprocess, interpolation=interpolation[0]))
    said_notes = {field: text for field, (_, text) in said.items()}
    shown = ModelFacts(**{field: value for field, (value, _) in said.items()}).apply(model)
    made = {**shown.notes, **said_notes, "interpolation": interpolation[1]}
    return replace(shown, notes={name: text for name, text in made.items() if text})


def _check_head(source: ModelSource, architecture: dict[str, Any], shown: Preprocess, where: str) -> None:
    """`ModelError` if the network cannot take its own head; nothing is computed."""
    module = recognition.unfilled(lambda: source.build(architecture)).to("meta").eval()
    try:
        scores = module(torch.empty(1, shown.channels, *shown.size, device="meta"))
    # Whatever a network says to what does not fit.
    except Exception as error:
        head = heads.shown(architecture["head"]["layers"])
        raise ModelError(
            f"the head {head} does not fit the network of {where}: {typed_reason(error)}"
        ) from None
    if tuple(scores.shape) != (1, architecture["num_classes"]):
        raise ModelError(f"{where} returns {list(scores.shape)}, not scores [B, n]")


def class_names(checkpoint: Checkpoint, count: int) -> tuple[tuple[str, ...], str]:
    """The names of `count` classes, and where they are from: the file, a file beside it, or numbers."""
    found = [(where, names) for where, names in _named(checkpoint) if len(names) == count]
    if found:
        (first, names), *rest = found
        what = f"{counted(count, 'class', 'classes')} named in {first}"
        turned = [where for where, other in rest if other != names and set(other) == set(names)]
        return names, f"{what}; {turned[0]} has them in another order: --classes" if turned else what
    others = [f"{where} names {len(names)}" for where, names in _named(checkpoint)]
    hint = f" ({', '.join(others)})" if others else ""
    return labels.numbered(count), f"{counted(count, 'class', 'classes')} without names{hint}: --classes"


def _named(checkpoint: Checkpoint) -> Iterator[tuple[str, tuple[str, ...]]]:
    for table in checkpoint.tables():
        for key in labels.KEYS:
            if names := labels.of_value(table.get(key)):
                try:
                    yield f"its {key}", labels.checked(names, key)
                except ModelError:
                    continue
    yield from labels.beside(checkpoint.path)
    if categories := published(checkpoint.path):
        yield "torchvision", categories


def published(path: Path) -> tuple[str, ...]:
    """The classes of weights that torchvision has published, if `path` is such a file; else none."""
    from torchvision.models import get_model_weights, list_models

    files = {
        Path(weights.url).name: weights
        for name in list_models()
        for weights in get_model_weights(name)
        if "categories" in weights.meta
    }
    weights: Any = files.get(path.name)
    if weights is None:
        return ()
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    start = torch.hub.HASH_REGEX.search(path.name)
    return tuple(weights.meta["categories"]) if start and digest.startswith(start[1]) else ()


def _described(found: Found, architecture: dict[str, Any]) -> str:
    """`torchvision:resnet18 (or timm:resnet18, ...), head fc = Linear(512, 3)`."""
    rows = {row.name: row for row in signatures.table()}
    own = rows.get(found.name)
    twin = next((row for n, row in rows.items() if own and row.same_as == own.same_as and row != own), None)
    parts = [found.name]
    if own and twin:  # who trained it by that name showed it photographs as its library does
        otherwise = f", which is shown {twin.shown}: --arch" if twin.shown != own.shown else ""
        parts = [f"{found.name} (or {twin.name}{otherwise})"]
    if head := architecture.get("head"):
        parts.append(f"head {head['at']} = {heads.shown(head['layers'])}")
    if (channels := architecture.get("channels", 3)) != 3:
        parts.append(counted(channels, "channel"))
    return ", ".join(parts)


def _doubts(found: Found, architecture: dict[str, Any]) -> list[str]:
    """What the tensors leave open, and how it was decided."""
    others = [f"it may be {' or '.join(found.others[:2])} (--arch)"] if found.others else []
    inception = ["transform_input=False is assumed"] if found.name in INCEPTIONS else []
    head = heads.assumptions(architecture["head"]["layers"]) if "head" in architecture else []
    return others + head + inception
