"""The models of fastai's `vision_learner` in plain torch: the body of a classifier under fastai's head.

Nothing here needs fastai but `learn.export()` files, which are pickles. Names of parameters are fastai's,
so files of `learn.save()` fit, also those that fastai v1 wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError
from camkit.files import is_file
from camkit.images.preprocess import Preprocess
from camkit.models.checkpoint import read_checkpoint
from camkit.models.facts import assumed, prepared, unsaid
from camkit.models.fastai_architecture import (
    HIDDEN,
    LESSON_CLASSES,
    SWITCHES,
    cut,
    default_layer,
    features,
    head,
    own_head,
)
from camkit.models.fastai_export import read_export
from camkit.models.heads import outputs, read_head
from camkit.models.labels import numbered
from camkit.models.loading import library_spec
from camkit.models.recognition import unfilled
from camkit.models.weights import built_for, put_weights, seeded
from camkit.models.weights_file import class_names
from camkit.registry import loading


class FastaiSource(ModelSource):
    """`fastai:ARCH@FILE`."""

    summary = "fastai's vision_learner: ARCH@FILE of learn.save(), or FILE.pkl of learn.export() if trusted"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """ARCH is a name of torchvision or timm, FILE a state dict, or `none`: random, 37 classes.

        Such a file may know class names, but no size; it is shown 224 x 224 pixels. A `.pkl` knows all,
        but is a pickle: it needs `trust`, and fastai.
        """
        if reference.endswith(".pkl"):
            return read_export(Path(reference), device, trust)
        name, at, file = reference.partition("@")
        if not at:
            raise ModelError(
                f"fastai:{reference} needs weights: fastai:{reference}@FILE, a learn.save() file"
            )
        backbone = dict(zip(("source", "name"), library_spec(name).split(":", 1), strict=True))
        architecture: dict[str, Any] = {"source": "fastai", "backbone": backbone}
        if file == "none":
            architecture["num_classes"] = LESSON_CLASSES
            return self._loaded(reference, self.build(architecture), architecture, device)
        if not is_file(file) and is_file(f"{file}.pth"):  # as fastai names them
            file = f"{file}.pth"
        checkpoint = read_checkpoint(Path(file))
        architecture |= _facts(checkpoint.state, backbone, self._body)
        with built_for(sum(tensor.nbytes for tensor in checkpoint.state.values())):
            module = self.build(architecture)
        put_weights(module, checkpoint.state, file)
        classes, of_classes = class_names(checkpoint, architecture["num_classes"])
        loaded = self._loaded(reference, module, architecture, device)
        notes = {"classes": of_classes, "shown": assumed(loaded.preprocess)}
        return replace(loaded, classes=classes, notes=notes)

    def build(self, architecture: Mapping[str, Any]) -> nn.Sequential:
        """`{"backbone": {"source", "name", "channels"}, "num_classes", "bn_final", "bias", "head"}`.

        head: the layers of one that is not fastai's usual one; see `camkit.models.heads`.
        """
        backbone, count = architecture.get("backbone"), architecture.get("num_classes")
        if not isinstance(backbone, Mapping) or backbone.get("source") not in ("torchvision", "timm"):
            raise ModelError(f"a fastai model needs a backbone of torchvision or timm, not {backbone!r}")
        if not isinstance(count, int) or not 1 <= count <= 100_000:
            raise ModelError(f"architecture needs 1 to 100000 num_classes, not {count!r}")
        body = self._body(backbone)
        pool = not getattr(body, "pooled", False)
        channels = features(body, inputs=backbone.get("channels", 3))
        switches = {name: bool(architecture.get(name, default)) for name, default in SWITCHES.items()}

        def made() -> nn.Module:
            if "head" in architecture:
                return own_head(architecture["head"], channels, pool=pool)
            return head(channels, count, pool=pool, **switches)

        # `Any`: the seed fixes the head, too.
        built: Any = seeded(lambda: nn.Sequential(body, made()))
        return cast("nn.Sequential", built)

    def _body(self, backbone: Mapping[str, Any]) -> nn.Module:
        source: ModelSource = loading.make("model", backbone["source"])
        return cut(backbone["source"], source.build({**backbone, "num_classes": 1}))

    def _loaded(
        self, reference: str, module: nn.Module, architecture: dict[str, Any], device: torch.device
    ) -> LoadedModel:
        preprocess = prepared(Preprocess(), architecture["backbone"])
        return LoadedModel(
            module.to(device).eval(),
            numbered(architecture["num_classes"]),
            preprocess,
            name=f"fastai:{reference}",
            default_layer=default_layer(module),
            architecture=architecture,
            unsaid=unsaid(preprocess.channels),
        )


def _facts(
    state: Mapping[str, Tensor], backbone: Mapping[str, Any], body: Callable[[Mapping[str, Any]], nn.Module]
) -> dict[str, Any]:
    """What a state dict tells of its head, and of the channels of the photographs."""
    own = {name.removeprefix("1."): tensor for name, tensor in state.items() if name.startswith("1.")}
    layers = read_head(own)
    if layers is None or not outputs(layers):
        raise ModelError("the file holds no head of fastai (`1.*`): is it of learn.save()?")
    facts: dict[str, Any] = {"num_classes": outputs(layers)}
    inside = unfilled(lambda: body(backbone))
    name, stem = next(((n, t) for n, t in inside.state_dict().items() if t.ndim == 4), ("", None))
    got = state.get(f"0.{name}")
    if stem is not None and got is not None and stem.shape[1] == 3 != got.shape[1]:
        backbone = facts["backbone"] = {**backbone, "channels": int(got.shape[1])}
        inside = unfilled(lambda: body(backbone))
    kinds = [layer[0] for layer in layers if layer[0] not in ("Flatten", "Identity")]
    widths = [layer[2] for layer in layers if layer[0] == "Linear"]
    usual = ["BatchNorm1d", "Linear", "ReLU", "BatchNorm1d", "Linear"]
    if kinds[:5] != usual or widths[0] != HIDDEN or kinds[5:] not in ([], ["BatchNorm1d"]):
        return {**facts, "head": layers}
    channels = features(inside, inputs=backbone.get("channels", 3))
    if layers[0] == ["Flatten"] and layers[2][1] != 2 * channels:  # it pools without the maximum
        return {**facts, "head": layers}
    bias = next(layer[3] for layer in layers if layer[0] == "Linear")
    return {**facts, "bn_final": len(kinds) == 6, "bias": bias}
