"""Models of timm, with pretrained weights or a file of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError, ModelNotFound, closest, typed_reason
from camkit.images.preprocess import Preprocess
from camkit.models.building import built, class_names, read_architecture
from camkit.models.weights import read_weights, seeded


class TimmSource(ModelSource):
    """`timm:NAME[@FILE]`."""

    summary = "timm's models: NAME (weights from the hub), NAME@FILE, NAME@none (random weights)"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """FILE holds a state dict; left out, timm fetches the weights or takes them from its cache."""
        import timm
        from timm.data.config import resolve_model_data_config

        name, _, wanted = reference.partition("@")
        self._known(name)
        architecture: dict[str, Any] = {"source": "timm", "name": name, "num_classes": 1000}
        module: Any
        if wanted == "":
            try:
                module = seeded(lambda: timm.create_model(name, pretrained=True))
            # Whatever the hub client raises without a network or without such weights.
            except Exception as error:
                raise ModelError(
                    f"the weights of timm:{name} could not be fetched ({typed_reason(error)}); "
                    f"use timm:{name}@FILE, or timm:{name}@none for random weights"
                ) from None
            architecture["num_classes"] = int(module.num_classes)
            if not module.num_classes:
                raise ModelError(f"timm:{name} has no classes: its weights are for features only")
        else:
            state = None if wanted == "none" else read_weights(Path(wanted))
            module, architecture = built(self, architecture, state, wanted)
        config: dict[str, Any] = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
        if config["crop_mode"] not in ("center", "squash"):
            raise ModelError(
                f"timm:{name} wants crop mode {config['crop_mode']!r}, which camkit does not have"
            )
        size = tuple(config["input_size"][1:])
        preprocess = Preprocess(
            size=size,
            resize=int(min(size) / config["crop_pct"]),
            fit="squash" if config["crop_mode"] == "squash" else "crop",
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
        return LoadedModel(
            module.to(device).eval(),
            class_names(architecture["num_classes"]),
            preprocess,
            name=f"timm:{reference}",
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"name": ..., "num_classes": ...}`."""
        import timm

        name, count = read_architecture(architecture)
        self._known(name)
        return seeded(lambda: timm.create_model(name, pretrained=False, num_classes=count))

    def names(self) -> Iterable[str]:
        """Every architecture of timm."""
        import timm

        return timm.list_models()

    def _known(self, name: str) -> None:
        import timm

        # Strict: `timm.create_model` would take hub and file prefixes, too.
        names = timm.list_pretrained() if "." in name else self.names()
        if name not in names:
            hint = closest(name, names) or "; `camkit model list 'timm:*'` shows all"
            raise ModelNotFound(f"timm has no model {name!r}{hint}")
