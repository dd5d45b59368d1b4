"""Bundles: a folder with `camkit.json` and `model.safetensors` that holds a trained model, and no code."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from camkit import plugins
from camkit.api import LoadedModel, ModelSource
from camkit.errors import ModelError, PluginNotFound
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
        classes = config.get("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ModelError(f"{folder / CONFIG} holds no list of class names")
        module = builder.build(architecture)
        weights = read_weights(_inside(folder, WEIGHTS))
        like = module.state_dict()
        # Half precision is for the disk; the module keeps the types it was built with.
        cast = {name: t.to(like[name].dtype) if name in like else t for name, t in weights.items()}
        put_weights(module, cast, str(folder))
        return LoadedModel(
            module.to(device).eval(),
            tuple(classes),
            Preprocess.from_dict(_table(config, "preprocessing", folder)),
            name=folder.name,
            default_layer=str(config.get("default_layer", "auto")),
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
        **facts,
    }
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    draft.mkdir(parents=True)
    state = {name: t.detach().cpu().contiguous() for name, t in model.module.state_dict().items()}
    save_file(state, draft / WEIGHTS)
    (draft / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    draft.replace(target)
    return target


def _read_config(folder: Path) -> dict[str, Any]:
    path = _inside(folder, CONFIG)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB: refused")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {first_line(error)}") from None
    version = config.get("format") if isinstance(config, dict) else None
    if version != FORMAT:
        raise ModelError(f"{path} has format {version!r}; this camkit reads {FORMAT}")
    return dict(config)


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
