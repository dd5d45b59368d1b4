"""Checks of model sources."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.core.layer_lookup import resolve_layers
from camkit.core.run_explainer import run
from camkit.core.targets import target_selector
from camkit.errors import ModelError
from camkit.models.bundle import save_bundle
from camkit.models.loading import load_model
from camkit.registry import loading
from camkit.testing.kit import Subject, equal, raises, same


def check_load(subject: Subject) -> None:
    """`load` gives a model in eval mode on the requested device, with a name for each score."""
    loaded = _loaded(subject)
    assert isinstance(loaded, LoadedModel), f"load returns {type(loaded).__name__}"
    assert not any(m.training for m in loaded.module.modules()), "the module must be in eval mode"
    assert loaded.device.type == "cpu", f"asked for the CPU, got {loaded.device}"
    with torch.no_grad():
        scores = loaded.module(_example(loaded))
    assert scores.ndim == 2, f"the model returns {list(scores.shape)}, not scores [B, n_classes]"
    assert scores.shape[1] == len(loaded.classes), f"{len(loaded.classes)} names, {scores.shape[1]} scores"


def check_repeatable(subject: Subject) -> None:
    """Loading twice gives the same weights, and the global random generators are untouched."""
    before = torch.get_rng_state(), random.getstate()
    first, second = _loaded(subject).sha256, _loaded(subject).sha256
    assert first == second, "loading twice gives different weights"
    assert same(before, (torch.get_rng_state(), random.getstate())), "loading changes the random state"


def check_layer(subject: Subject) -> None:
    """`default_layer` is a layer of the model that can carry a map."""
    loaded = _loaded(subject)
    names = resolve_layers(loaded.module, loaded.default_layer, _example(loaded))
    native = loading.make("explainer", "native")
    answer = run(
        native, "native", loaded.module, _example(loaded), names[:1], ["gradcam"], target_selector(0, 1)
    )
    assert next(iter(answer.maps.values())).ndim == 4


def check_unknown_reference(subject: Subject) -> None:
    """An unknown reference raises a `ModelError`; no other weights are loaded."""
    for wrong in ("no-such-model-7f3a", "../no/such/file.pth"):
        with raises(ModelError, f"the reference {wrong!r}"):
            subject.make().load(wrong, device=torch.device("cpu"), trust=False)


def check_bundle(subject: Subject) -> None:
    """A model that says how it is built has equal scores after a round trip through a bundle."""
    loaded = _loaded(subject)
    if loaded.architecture is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        again = load_model(save_bundle(loaded, Path(folder) / "bundle"), device="cpu")
    with torch.no_grad():
        equal(again.module(_example(loaded)), loaded.module(_example(loaded)), "scores from the bundle")
    assert again.classes == loaded.classes and again.preprocess == loaded.preprocess


def _loaded(subject: Subject) -> LoadedModel:
    source: ModelSource = subject.make()
    return source.load(subject.reference, device=torch.device("cpu"), trust=False)


def _example(loaded: LoadedModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(1, loaded.preprocess.channels, *loaded.preprocess.size, generator=generator)
