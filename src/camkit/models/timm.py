"""Models of timm, with pretrained weights or a file of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from camkit.errors import ModelError, typed_reason
from camkit.images.preprocess import Preprocess
from camkit.models.building import Architecture, LibrarySource
from camkit.models.weights import read_weights, seeded


class TimmSource(LibrarySource):
    """`timm:NAME[@FILE]`."""

    scheme = "timm"
    summary = "timm's models: NAME (weights from the hub), NAME@FILE, NAME@none (random weights)"

    def names(self) -> Iterable[str]:
        """Every architecture of timm."""
        import timm

        return timm.list_models()

    def _names_like(self, name: str) -> Iterable[str]:
        import timm

        # Strict: `timm.create_model` would take hub and file prefixes, too.
        return timm.list_pretrained() if "." in name else self.names()

    def _build(self, name: str, count: int, architecture: Mapping[str, Any]) -> nn.Module:
        import timm

        return timm.create_model(name, pretrained=False, num_classes=count)

    def _load(self, architecture: Architecture, weights: str) -> tuple[nn.Module, Architecture, Preprocess]:
        import timm
        from timm.data.config import resolve_model_data_config

        name = architecture["name"]
        module: Any
        if weights:
            state = None if weights == "none" else read_weights(Path(weights))
            module, architecture = self._fitted({**architecture, "num_classes": 1000}, state, weights)
        else:
            try:
                module = seeded(lambda: timm.create_model(name, pretrained=True))
            # Whatever the hub client raises without a network or without such weights.
            except Exception as error:
                raise ModelError(
                    f"the weights of timm:{name} could not be fetched ({typed_reason(error)}); "
                    f"use timm:{name}@FILE, or timm:{name}@none for random weights"
                ) from None
            if not module.num_classes:
                raise ModelError(f"timm:{name} has no classes: its weights are for features only")
            architecture = {**architecture, "num_classes": int(module.num_classes)}
        config: dict[str, Any] = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
        mode, (height, width) = config["crop_mode"], config["input_size"][1:]
        if mode not in ("center", "squash"):
            raise ModelError(f"timm:{name} wants crop mode {mode!r}, which camkit does not have")
        preprocess = Preprocess(
            size=(height, width),
            resize=int(min(height, width) / config["crop_pct"]),
            fit="squash" if mode == "squash" else "crop",
            interpolation=config["interpolation"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
        )
        return module, architecture, preprocess
