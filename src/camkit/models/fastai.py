"""The models of fastai's `vision_learner` in plain torch: the body of a classifier under fastai's head.

Nothing here needs fastai but `learn.export()` files, which are pickles. Names of parameters are fastai's,
so files of `learn.save()` fit, also those that fastai v1 wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.errors import ModelError
from camkit.files import is_file
from camkit.images.preprocess import Preprocess
from camkit.models.fastai_architecture import LESSON_CLASSES, SWITCHES, cut, default_layer, features, head
from camkit.models.fastai_export import read_export
from camkit.models.loading import library_spec
from camkit.models.weights import built_for, put_weights, read_weights, seeded
from camkit.registry import loading


class FastaiSource(ModelSource):
    """`fastai:ARCH@FILE`."""

    summary = "fastai's vision_learner: ARCH@FILE of learn.save(), or FILE.pkl of learn.export() if trusted"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """ARCH is a name of torchvision or timm, FILE a state dict, or `none`: random, 37 classes.

        Such a file knows no class names and no size; it is shown 224 x 224 pixels. A `.pkl` knows both,
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
        architecture: dict[str, Any] = {
            "source": "fastai",
            "backbone": backbone,
            "num_classes": LESSON_CLASSES,
        }
        if not is_file(file) and is_file(f"{file}.pth"):  # as fastai names them
            file = f"{file}.pth"
        state = None if file == "none" else read_weights(Path(file))
        if state is not None:
            architecture |= _facts(state)
        if state is None:
            module = self.build(architecture)
        else:
            with built_for(sum(tensor.nbytes for tensor in state.values())):
                module = self.build(architecture)
            put_weights(module, state, file)
        count = architecture["num_classes"]
        return LoadedModel(
            module.to(device).eval(),
            tuple(f"class_{i}" for i in range(count)),
            Preprocess(),
            name=f"fastai:{reference}",
            default_layer=default_layer(module),
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Sequential:
        """`{"backbone": {"source", "name"}, "num_classes", "bn_final", "bias"}`."""
        backbone, count = architecture.get("backbone"), architecture.get("num_classes")
        if not isinstance(backbone, Mapping) or backbone.get("source") not in ("torchvision", "timm"):
            raise ModelError(f"a fastai model needs a backbone of torchvision or timm, not {backbone!r}")
        if not isinstance(count, int) or not 1 <= count <= 100_000:
            raise ModelError(f"architecture needs 1 to 100000 num_classes, not {count!r}")
        source: ModelSource = loading.make("model", backbone["source"])
        body = cut(backbone["source"], source.build({**backbone, "num_classes": 1}))
        pool = not getattr(body, "pooled", False)
        switches = {name: bool(architecture.get(name, default)) for name, default in SWITCHES.items()}
        # `Any`: the seed fixes the head, too.
        built: Any = seeded(lambda: nn.Sequential(body, head(features(body), count, pool=pool, **switches)))
        return cast("nn.Sequential", built)


def _facts(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a state dict tells of its head."""
    own = {name: tensor for name, tensor in state.items() if name.startswith("1.")}
    matrices = [name for name, tensor in own.items() if tensor.ndim == 2]
    if not matrices:
        raise ModelError("the file holds no head of fastai (`1.*`): is it of learn.save()?")
    last = max(matrices, key=lambda name: int(name.split(".")[1]))
    position = int(last.split(".")[1])
    return {
        "num_classes": len(own[last]),
        "bn_final": f"1.{position + 1}.weight" in own,
        "bias": last.replace("weight", "bias") in own,
    }
