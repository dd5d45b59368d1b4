"""The models of fastai's `vision_learner` in plain torch: the body of a classifier under fastai's head.

Nothing here needs fastai but `learn.export()` files, which are pickles. Names of parameters are fastai's,
so files of `learn.save()` fit, also those that fastai v1 wrote.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError
from camkit.files import is_file
from camkit.models.checkpoint import read_checkpoint
from camkit.models.facts import assumed, assumed_scores, unsaid
from camkit.models.fastai_architecture import (
    LESSON_CLASSES,
    SWITCHES,
    cut,
    default_layer,
    features,
    head,
    own_head,
    usual_view,
)
from camkit.models.fastai_pickle import is_export
from camkit.models.heads import assumptions, outputs, read_head, shown
from camkit.models.labels import numbered
from camkit.models.loading import library_spec
from camkit.models.objects import load_export
from camkit.models.recognition import EXPORT, WAY_OUT, unfilled
from camkit.models.weights import built_for, put_weights, seeded
from camkit.models.weights_file import class_names
from camkit.registry import loading


class FastaiSource(ModelSource):
    """`fastai:ARCH@FILE`."""

    summary = "fastai's vision_learner: ARCH@FILE of learn.save(), or FILE.pkl of learn.export() if trusted"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """ARCH is a name of torchvision or timm, FILE a state dict, or `none`: random, 37 classes.

        Such a file may know class names, but not what the network is shown: that is assumed to be what
        `vision_learner` shows by itself, 224 x 224 pixels. A file of `learn.export()` knows all, but is a
        pickle: it needs `trust`, and fastai.
        """
        if reference.endswith(".pkl") or is_export(Path(reference)):
            return load_export(Path(reference), device, trust=trust)
        name, at, file = reference.partition("@")
        if name.startswith("xresnet"):
            raise ModelError(f"{name} is a network of fastai's own: {EXPORT}")
        if not at:
            raise ModelError(
                f"fastai:{reference} needs weights: fastai:{reference}@FILE, a learn.save() file"
            )
        if file == "none":
            architecture: dict[str, Any] = {"source": "fastai", "backbone": _backbone(name)}
            architecture["num_classes"] = LESSON_CLASSES
            return self._loaded(reference, self.build(architecture), architecture, device)
        if not is_file(file) and is_file(f"{file}.pth"):  # as fastai names them
            file = f"{file}.pth"
        checkpoint = read_checkpoint(Path(file))
        architecture = self.architecture(name, checkpoint.state, file)
        try:
            with built_for(sum(tensor.nbytes for tensor in checkpoint.state.values())):
                module = self.build(architecture)
            put_weights(module, checkpoint.state, file)
        except ModelError as error:
            raise ModelError(f"{error}; a body that was cut elsewhere: {EXPORT}") from None
        count, own = architecture["num_classes"], architecture.get("head")
        classes, of_classes = class_names(checkpoint, count)
        loaded = self._loaded(reference, module, architecture, device)
        notes = {
            "head": f"head {shown(own)}" if own else "",  # not fastai's usual one
            "variant": ", ".join(assumptions(own)) if own else "",
            "classes": of_classes,
            "scores": f"{assumed_scores(count)}, and no y_range",
            "shown": assumed(loaded.preprocess),
        }
        return replace(loaded, classes=classes, notes={key: text for key, text in notes.items() if text})

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

    def architecture(self, name: str, state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
        """What `build` needs for these tensors, with the body of `name`, as `timm:resnet18` or `resnet18`.

        Raises `ModelError` if their head cannot be told.
        """
        backbone = _backbone(name)
        facts = _facts(state, backbone, self._body, where)
        return {"source": "fastai", "backbone": backbone, **facts}

    def _body(self, backbone: Mapping[str, Any]) -> nn.Module:
        source: ModelSource = loading.make("model", backbone["source"])
        return cut(backbone["source"], source.build({**backbone, "num_classes": 1}))

    def _loaded(
        self, reference: str, module: nn.Sequential, architecture: dict[str, Any], device: torch.device
    ) -> LoadedModel:
        preprocess = usual_view(module[0], architecture)
        return LoadedModel(
            module.to(device).eval(),
            numbered(architecture["num_classes"]),
            preprocess,
            name=f"fastai:{reference}",
            default_layer=default_layer(module),
            architecture=architecture,
            unsaid=unsaid(preprocess.channels),
        )


def _backbone(name: str) -> dict[str, Any]:
    source, _, own_name = library_spec(name).partition(":")
    return {"source": source, "name": own_name}


def _facts(
    state: Mapping[str, Tensor],
    backbone: Mapping[str, Any],
    body: Callable[[Mapping[str, Any]], nn.Module],
    where: str,
) -> dict[str, Any]:
    """What a state dict tells of its head, and of the channels of the photographs.

    A head of fastai is told from others by where in it the layers with tensors stand.
    """
    own = {name.removeprefix("1."): tensor for name, tensor in state.items() if name.startswith("1.")}
    layers = read_head(own)
    if not own:
        raise ModelError(f"{where} holds no head of fastai (`1.*`): is it of learn.save()?")
    if layers is None or not (count := outputs(layers)):
        raise ModelError(
            f"{where} has a head that its tensors do not tell ({', '.join(list(own)[:4])}): {WAY_OUT}; "
            f"or {EXPORT}"
        )
    facts: dict[str, Any] = {"num_classes": count}
    inside = unfilled(lambda: body(backbone))
    name, stem = next(((n, t) for n, t in inside.state_dict().items() if t.ndim == 4), ("", None))
    got = state.get(f"0.{name}")
    if stem is not None and got is not None and stem.shape[1] == 3 != got.shape[1]:
        backbone = facts["backbone"] = {**backbone, "channels": int(got.shape[1])}
        inside = unfilled(lambda: body(backbone))
    channels = features(inside, inputs=backbone.get("channels", 3))
    pool = not getattr(inside, "pooled", False)
    for bn_final, bias in itertools.product((False, True), repeat=2):
        made = partial(head, channels, count, pool=pool, bn_final=bn_final, bias=bias)
        if layers == read_head(unfilled(made).state_dict()):
            return {**facts, "bn_final": bn_final, "bias": bias}
    return {**facts, "head": layers}
