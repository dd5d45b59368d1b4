"""Models of timm, with pretrained weights or a file of one's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from camkit.contracts.model import LoadedModel
from camkit.errors import ModelError, typed_reason
from camkit.images.preprocess import Preprocess
from camkit.models import specs, timm_folder
from camkit.models.building import LibrarySource, imagenet_classes
from camkit.models.labels import numbered
from camkit.models.transforms import of_timm
from camkit.models.weights import seeded


class TimmSource(LibrarySource):
    """`timm:NAME[@FILE]`, `timm:FOLDER`, `timm:hf-hub:OWNER/NAME`."""

    scheme = "timm"
    summary = "timm's models: NAME (weights from the hub), NAME@FILE, NAME@none (random weights), FOLDER"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """Also a folder that timm wrote, and `hf-hub:OWNER/NAME[@REVISION]`, one of the hub."""
        folder = specs.timm_folder(reference)
        if hub := specs.TIMM_HUB.match(reference):
            folder = timm_folder.fetched(reference[hub.end() :])
        elif folder is None or reference in self._names_like(reference):
            return super().load(reference, device=device, trust=trust)
        return timm_folder.load(folder, self, name=f"timm:{reference}", device=device)

    def names(self) -> Iterable[str]:
        """Every architecture of timm."""
        import timm

        return timm.list_models()

    def _names_like(self, name: str) -> Iterable[str]:
        import timm

        # Strict: `timm.create_model` would take hub and file prefixes, too.
        return timm.list_pretrained() if "." in name else self.names()

    def preprocess(self, architecture: Mapping[str, Any]) -> Preprocess:
        """That of the architecture's usual weights. `ModelError` if camkit cannot do it."""
        import timm
        from timm.data.config import resolve_data_config

        usual = timm.get_pretrained_cfg(architecture["name"])
        return of_timm(resolve_data_config({}, usual.to_dict() if usual else {}))  # type: ignore[no-untyped-call]

    def _build(self, name: str, count: int, architecture: Mapping[str, Any]) -> nn.Module:
        """The architecture may have `image_size`, and what a folder of timm says of its network."""
        import timm

        size = {"img_size": architecture["image_size"]} if "image_size" in architecture else {}
        given = {**size, **timm_folder.arguments(architecture)}
        return timm.create_model(name, pretrained=False, num_classes=count, **given)

    def _load(self, name: str, weights: str, device: torch.device) -> LoadedModel:
        architecture = {"source": "timm", "name": name, "num_classes": 1000}
        module: Any = self.build(architecture) if weights else _pretrained(name)
        count = architecture["num_classes"] = int(module.num_classes)
        return LoadedModel(
            module.to(device).eval(),
            imagenet_classes() if count == 1000 else numbered(count),
            self.preprocess(architecture),
            name=name,
            architecture=architecture,
        )


def _pretrained(name: str) -> Any:
    """The model with weights from the hub, or from timm's cache."""
    import timm

    try:
        module: Any = seeded(lambda: timm.create_model(name, pretrained=True))
    # Whatever the hub client raises without a network or without such weights.
    except Exception as error:
        raise ModelError(
            f"the weights of timm:{name} could not be fetched ({typed_reason(error)}); "
            f"use timm:{name}@FILE, or timm:{name}@none for random weights"
        ) from None
    if not module.num_classes:
        raise ModelError(f"timm:{name} has no classes: its weights are for features only")
    return module
