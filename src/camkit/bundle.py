"""Bundles: a folder with `camkit.json` and `model.safetensors` that holds a trained model, and no code."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camkit import plugins
from camkit.api import LoadedModel, ModelSource
from camkit.errors import CamkitError, ModelError, PluginNotFound
from camkit.preprocess import Preprocess
from camkit.weights import first_line, put_weights, read_weights

FORMAT = 1
CONFIG, WEIGHTS = "camkit.json", "model.safetensors"
MAX_CONFIG_BYTES = 16 * 2**20


class BundleSource(ModelSource):
    """A folder with `camkit.json` and `model.safetensors`, as `camkit train` writes it."""

    summary = "a folder with camkit.json and model.safetensors: nothing in it can run code"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The bundle in the folder `reference`; it may come from a stranger."""
        folder = Path(reference)
        config = _read_config(folder)
        architecture = config.get("architecture")
        if not isinstance(architecture, dict) or not isinstance(architecture.get("source"), str):
            raise ModelError(f"{folder / CONFIG} names no architecture with a source")
        source = architecture["source"]
        if source == "bundle":
            raise ModelError(f"{folder / CONFIG} names itself as its source")
        try:
            builder: ModelSource = plugins.make("model", source)
        except PluginNotFound as error:
            raise ModelError(f"{folder} needs the model source {source!r}: {error}") from None
        classes = _classes(config, folder)
        if architecture.get("num_classes", len(classes)) != len(classes):
            raise ModelError(
                f"{folder / CONFIG} names {len(classes)} classes, but its architecture has "
                f"{architecture['num_classes']!r}"
            )
        preprocess = Preprocess.from_dict(_table(config, "preprocessing", folder))
        layer = config.get("default_layer", "auto")
        if not isinstance(layer, str):
            raise ModelError(f"{folder / CONFIG} has default_layer {layer!r}, which is no name")
        module = _built(builder, architecture, folder)
        weights = read_weights(_inside(folder, WEIGHTS))
        like = module.state_dict()
        # Half precision is for the disk; the module keeps the types it was built with.
        cast = {name: t.to(like[name].dtype) if name in like else t for name, t in weights.items()}
        put_weights(module, cast, str(folder))
        return LoadedModel(
            module.to(device).eval(),
            classes,
            preprocess,
            name=folder.resolve().name,
            default_layer=layer,
            architecture=architecture,
        )


def save_bundle(model: LoadedModel, folder: str | os.PathLike[str], **facts: Any) -> Path:
    """Write `model` as a bundle; `facts` (metrics, recipe, licence, ...) go into `camkit.json`.

    The folder must not exist or be empty; it appears under its name only when it is complete.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    if model.architecture is None:
        raise ModelError(f"model {model.name!r} does not say how it is built, so no bundle holds it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists and is not an empty folder")
    config = {
        "format": FORMAT,
        "architecture": dict(model.architecture),
        "classes": list(model.classes),
        "preprocessing": model.preprocess.to_dict(),
        "default_layer": model.default_layer,
    }
    if taken := sorted(config.keys() & facts.keys()):
        raise ModelError(f"the facts {taken} of a bundle are the model's own")
    try:
        text = json.dumps({**config, **facts}, indent=1) + "\n"
    except (TypeError, ValueError) as error:
        raise ModelError(f"the facts of a bundle are JSON values: {error}") from None
    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    state = {n: t.detach().to("cpu", copy=True).contiguous() for n, t in model.module.state_dict().items()}
    try:
        draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
        draft.mkdir(parents=True)
        try:
            save_file(state, draft / WEIGHTS)
            (draft / CONFIG).write_text(text, encoding="utf-8")
            draft.replace(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    # Safetensors has an error of its own for a full disk.
    except Exception as error:
        raise ModelError(f"the bundle {target} cannot be written: {first_line(error)}") from None
    return target


def _read_config(folder: Path) -> dict[str, Any]:
    path = _inside(folder, CONFIG)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB: refused")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {first_line(error)}") from None
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise ModelError(f"{path} has format {version!r}; this camkit reads {FORMAT}")
    return dict(config)


def _classes(config: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Class names, which end up in terminals and file names."""
    classes = config.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise ModelError(f"{folder / CONFIG} holds no list of class names")
    for name in classes:
        if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
            raise ModelError(f"{folder / CONFIG} has a class {name!a} that cannot be printed")
    return tuple(classes)


def _built(builder: ModelSource, architecture: dict[str, Any], folder: Path) -> nn.Module:
    try:
        return builder.build(architecture)
    except CamkitError:
        raise
    # The values are a stranger's, and not every source looks at each of them first.
    except Exception as error:
        raise ModelError(
            f"the architecture in {folder / CONFIG} cannot be built: {first_line(error)}"
        ) from None


def _inside(folder: Path, name: str) -> Path:
    """A regular file of the bundle; links that lead out of the folder are refused."""
    path = folder / name
    if not path.is_file():
        raise ModelError(f"{folder} is not a bundle: {name} is missing")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{path} is a link that leads out of the bundle: refused")
    return path


def _table(config: Mapping[str, Any], key: str, folder: Path) -> dict[str, Any]:
    if not isinstance(value := config.get(key), dict):
        raise ModelError(f"{folder / CONFIG} holds no table {key!r}")
    return value
