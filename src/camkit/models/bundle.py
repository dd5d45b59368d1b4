"""Bundles: a folder with `camkit.json` and `model.safetensors` that holds a trained model, and no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.contracts.scores import checked
from camkit.errors import (
    UNPRINTABLE,
    CamkitError,
    ModelError,
    ModelNotFound,
    PluginError,
    reason,
)
from camkit.files import cause, inside, is_file, writing_folder
from camkit.images.preprocess import Preprocess
from camkit.models.rebuilding import check, rebuilt
from camkit.models.specs import CONFIG, MAX_CONFIG, PETS, WEIGHTS
from camkit.models.stranger_json import errors_of, read_json
from camkit.models.weights import SPARE, broken, built_for, put_weights, read_weights
from camkit.registry import loading

FORMAT = 1
BY_CODE = "which code of its own builds; use it as it is"


class BundleSource(ModelSource):
    """A folder with `camkit.json` and `model.safetensors`, as `camkit train` writes it."""

    summary = "a folder with camkit.json and model.safetensors: nothing in it can run code"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The bundle in the folder `reference`; it may come from a stranger."""
        folder = Path(reference)
        path, weights_path = _inside(folder, CONFIG), _inside(folder, WEIGHTS)
        size = weights_path.stat().st_size
        with errors_of(path):
            facts = _checked_config(_read_config(path))
            name = facts["architecture"]["source"]
            try:
                source: ModelSource = loading.make("model", name)
            except PluginError as error:
                raise ModelError(f"it needs the model source {name!r}: {error}") from error
            with built_for(size):
                module = source.build(facts["architecture"])
        like = module.state_dict()
        if size > 16 * sum(tensor.numel() for tensor in like.values()) + SPARE:
            raise ModelError(f"{weights_path} has {size:,} bytes, far more than the network: refused")
        weights = read_weights(weights_path)
        # Half precision is for the disk; the module keeps the types it was built with.
        cast = {name: t.to(like[name].dtype) if name in like else t for name, t in weights.items()}
        put_weights(module, cast, str(folder))
        return LoadedModel(module.to(device).eval(), name=folder.resolve().name, **facts)


class PetsSource(ModelSource):
    """The bundle `pets` that camkit carries: 37 breeds of cats and dogs; see its model card."""

    summary = "37 breeds of cats and dogs, bundled: works without a network"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The one model there is; `reference` must be empty."""
        if reference:
            raise ModelError(f"pets takes no reference, but was given {reference!r}")
        return BundleSource().load(str(PETS), device=device, trust=False)


def save_bundle(
    model: LoadedModel, folder: str | os.PathLike[str], *, half: bool = False, **facts: Any
) -> Path:
    """Write `model` as a bundle; `facts` (metrics, recipe, licence, ...) go into `camkit.json`.

    A model that does not say how it is built, such as an export of fastai, is told by its tensors: a bundle
    holds it if a library has the same network, with the same scores.
    half: float32 weights as float16, for half the size; they come back as float32.

    The folder must not exist or be empty; it appears under its name only when it is complete.
    """
    from safetensors.torch import save

    target = Path(folder)
    if where := broken(model.module):
        raise ModelError(f"the weights of {model.name} are NaN or infinite: {where}")
    if not (model.detections is None and model.segments is None):
        kind = "detector" if model.segments is None else "segmentation"
        raise ModelError(f"no bundle holds a {kind}: use {model.name} as it is")
    if model.architecture is None:
        try:
            model = rebuilt(model)
        except ModelError as error:
            raise ModelError(f"no bundle holds {model.name}, {BY_CODE}: {error}") from None
    else:
        check(model)
    text = config_text(model, facts)
    # Unlike `Path.exists` it takes any length of name, and sees a link that leads nowhere.
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists and is not an empty folder")
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    state = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in model.module.state_dict().items()}
    if half:
        state = {n: t.half() if t.dtype == torch.float32 else t for n, t in state.items()}
    try:
        with writing_folder(target) as draft:
            (draft / WEIGHTS).write_bytes(save(state))  # `save_file` makes a file for its owner alone
            (draft / CONFIG).write_text(text, encoding="utf-8")
    # Safetensors has an error of its own for a full disk.
    except Exception as error:
        raise ModelError(f"the bundle {target} cannot be written: {reason(cause(error))}") from None
    return target


def config_text(model: LoadedModel, facts: Mapping[str, Any], *, room: int = 0) -> str:
    """`camkit.json` of a bundle; `ModelError` if no bundle can hold it, or be loaded with it.

    room: bytes that are left for what is not known yet.
    """
    if model.architecture is None:
        raise ModelError(f"no bundle holds {model.name}, {BY_CODE}")
    config = {
        "format": FORMAT,
        "architecture": dict(model.architecture),
        "classes": list(model.classes),
        "preprocessing": model.preprocess.to_dict(),
        "default_layer": model.default_layer,
        **({} if model.scores == "auto" else {"scores": model.scores}),
        **({} if model.output is None else {"output": model.output}),
    }
    if callable(model.output):
        raise ModelError(f"no bundle holds the function output= of {model.name}: give an index or a key")
    if taken := sorted(config.keys() & facts.keys()):
        raise ModelError(f"the facts {taken} of a bundle are the model's own")
    try:
        text = json.dumps({**config, **facts}, indent=1) + "\n"
        written = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelError(f"architecture and facts of a bundle are JSON values: {error}") from None
    _checked_config(written)  # what could not be loaded is not written
    if len(text) + room > MAX_CONFIG:
        raise ModelError(
            "the facts of a bundle, such as the names of photographs, are larger than "
            f"{MAX_CONFIG - room >> 20} MiB"
        )
    return text


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise ModelError(f"it has format {version!r}; this camkit reads {FORMAT}")
    return dict(config)


def _checked_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the `LoadedModel` that a bundle says, each checked."""
    architecture = config.get("architecture")
    if not isinstance(architecture, dict) or not isinstance(architecture.get("source"), str):
        raise ModelError("there is no architecture with a source")
    classes = config.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ModelError("there is no list of class names")
    for name in classes:  # which end up in terminals and file names
        if UNPRINTABLE.search(name):
            raise ModelError(f"the class {name!a} cannot be printed")
    count = architecture.get("num_classes", len(classes))
    if count != len(classes):
        raise ModelError(f"{len(classes)} classes are named, but the architecture has {count!r}")
    preprocessing = config.get("preprocessing")
    if not isinstance(preprocessing, dict):
        raise ModelError("there is no table 'preprocessing'")
    layer = config.get("default_layer", "auto")
    if not isinstance(layer, str):
        raise ModelError(f"default_layer {layer!r} is no name")
    output = config.get("output")
    if not isinstance(output, str | int | None) or isinstance(output, bool):
        raise ModelError(f"output {output!r} is neither an index nor a key")
    return {
        "architecture": architecture,
        "classes": tuple(classes),
        "preprocess": Preprocess.from_dict(preprocessing),
        "default_layer": layer,
        "scores": checked(config.get("scores", "auto")),
        "output": output,
    }


def _inside(folder: Path, name: str) -> Path:
    """A regular file of the bundle; links that lead out of the folder are refused."""
    path = folder / name
    if not is_file(path):
        raise ModelNotFound(f"{folder} is not a bundle: {name} is missing")
    try:
        return inside(folder, name)
    except CamkitError as error:
        raise ModelError(str(error)) from None
