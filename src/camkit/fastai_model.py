"""The models of fastai's `vision_learner` in plain torch: the body of a classifier under fastai's head.

Nothing here needs fastai but `learn.export()` files, which are pickles. Names of parameters are fastai's,
so files of `learn.save()` fit, also those that fastai v1 wrote.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from camkit import plugins
from camkit.api import LoadedModel, ModelSource
from camkit.errors import ModelError
from camkit.models import qualified
from camkit.preprocess import Preprocess
from camkit.weights import first_line, is_file, put_weights, read_weights, seeded

LESSON_CLASSES = 37
HIDDEN = 512
SWITCHES = {"bn_final": True, "bias": False}  # of the head, and what they are if nothing is said


class AdaptiveConcatPool2d(nn.Module):
    """Maximum and mean over the positions, concatenated: how fastai's head begins."""

    def __init__(self) -> None:
        super().__init__()
        self.ap = nn.AdaptiveAvgPool2d(1)
        self.mp = nn.AdaptiveMaxPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, h, w]` to `[B, 2 C, 1, 1]`."""
        return torch.cat([self.mp(x), self.ap(x)], 1)


class TimmBody(nn.Module):
    """A model of timm without its classifier: its last feature map, or a vector if it pools on its own."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.pooled = model.default_cfg.get("pool_size") is None

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 3, H, W]` to `[B, C, h, w]`, or `[B, C]` if it pools on its own."""
        return cast("Tensor", self.model(x) if self.pooled else self.model.forward_features(x))


def cut(source: str, module: nn.Module) -> nn.Module:
    """The body of a classifier of `source` (`torchvision` or `timm`), as fastai cuts it, with its weights.

    Of torchvision everything before the last child that pools. Raises `ModelError` if there is none.
    """
    if source == "timm":
        cast("Any", module).reset_classifier(0)
        return TimmBody(module)
    children = list(module.children())
    pools = [i for i, child in enumerate(children) if _pools(child)]
    # The pool of DenseNet is a function, and the pools within its features are not the last one.
    end = len(children) - 1 if type(module).__name__ == "DenseNet" else max(pools, default=0)
    if not end:
        raise ModelError(f"{type(module).__name__} cannot be cut into body and head as fastai does")
    return nn.Sequential(*children[:end])


def _pools(part: nn.Module) -> bool:
    return any("Pool" in type(module).__name__ for module in part.modules())


def features(body: nn.Module, size: int = 224) -> int:
    """How many channels a body returns for photographs of `size`; nothing is computed.

    Raises `ModelError` if it cannot take that size or returns neither `[B, C, h, w]` nor `[B, C]`.
    """
    try:
        shape = copy.deepcopy(body).to("meta").eval()(torch.empty(1, 3, size, size, device="meta")).shape
    except Exception as error:  # whatever a network says to a size that it does not take
        raise ModelError(f"the body cannot take {size} x {size} pixels: {first_line(error)}") from None
    known = getattr(body.model, "num_features", shape[1]) if isinstance(body, TimmBody) else shape[1]
    if len(shape) not in (2, 4) or known != shape[1]:
        raise ModelError(f"the body returns {list(shape)}, which fastai's head cannot take: channels first")
    return int(shape[1])


def head(channels: int, classes: int, *, pool: bool, bn_final: bool, bias: bool = False) -> nn.Sequential:
    """fastai's `create_head`: pooled features `[B, channels, h, w]` to scores `[B, classes]`.

    pool: the body returns a feature map, not a vector. bias: of the linear layers; fastai v1 had it.
    """
    width = 2 * channels if pool else channels
    return nn.Sequential(
        *([AdaptiveConcatPool2d(), nn.Flatten()] if pool else []),
        nn.BatchNorm1d(width),
        nn.Dropout(0.25),
        nn.Linear(width, HIDDEN, bias=bias),
        nn.ReLU(inplace=True),
        nn.BatchNorm1d(HIDDEN),
        nn.Dropout(0.5),
        nn.Linear(HIDDEN, classes, bias=bias),
        *([nn.BatchNorm1d(classes, momentum=0.01)] if bn_final else []),
    )


class FastaiSource(ModelSource):
    """`fastai:ARCH@FILE`."""

    summary = "fastai's vision_learner: ARCH@FILE of learn.save(), or FILE.pkl of learn.export() if trusted"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """ARCH is a name of torchvision or timm, FILE a state dict, or `none`: random, 37 classes.

        Such a file knows no class names and no size; it is shown 224 x 224 pixels. A `.pkl` knows both,
        but is a pickle: it needs `trust`, and fastai.
        """
        if reference.endswith(".pkl"):
            return _exported(Path(reference), device, trust)
        name, at, file = reference.partition("@")
        if not at:
            raise ModelError(
                f"fastai:{reference} needs weights: fastai:{reference}@FILE, a learn.save() file"
            )
        backbone = dict(zip(("source", "name"), qualified(name).split(":", 1), strict=True))
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
        module = self.build(architecture)
        if state is not None:
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
        source: ModelSource = plugins.make("model", backbone["source"])
        body = cut(backbone["source"], source.build({**backbone, "num_classes": 1}))
        pool = not getattr(body, "pooled", False)
        switches = {name: bool(architecture.get(name, default)) for name, default in SWITCHES.items()}
        # `Any`: the seed fixes the head, too.
        built: Any = seeded(lambda: nn.Sequential(body, head(features(body), count, pool=pool, **switches)))
        return cast("nn.Sequential", built)


def default_layer(module: nn.Sequential) -> str:
    """The whole body, as in the lesson, where it returns a feature map."""
    return "auto" if getattr(module[0], "pooled", False) else "0"


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


def _exported(path: Path, device: torch.device, trust: bool) -> LoadedModel:
    """A whole Learner: module, class names, size and normalisation."""
    if not trust:
        raise ModelError(
            f"{path} is a pickle, which runs code when it is loaded: refused; --trust-pickle allows it, if "
            "you know where it comes from. Safer: learn.save(..., with_opt=False) and fastai:ARCH@FILE"
        )
    try:
        from fastai.learner import load_learner
    except ImportError:
        raise ModelError(f"{path} is a file of learn.export(): pip install fastai") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is a pickle has been said
            learner = load_learner(path)
        classes = tuple(map(str, learner.dls.vocab))
        module, preprocess = learner.model, _shown([*learner.dls.after_item, *learner.dls.after_batch])
    # Unpickling raises anything, such as a label function that is defined nowhere.
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded by fastai: {first_line(error)}") from None
    module.to(device).eval()
    return LoadedModel(
        module, classes, preprocess, name=f"fastai:{path}", default_layer=default_layer(module)
    )


def _shown(steps: Sequence[Any]) -> Preprocess:
    """What the steps of fastai's validation show the model. Without `Normalize` pixels stay in [0, 1]."""
    # Resize, and then a warp to another size. Without either the photographs were of one size already.
    sizes = [224, *(step.size for step in steps if getattr(step, "size", None))]
    width, height = sizes[-1] if isinstance(sizes[-1], tuple) else (sizes[-1], sizes[-1])
    squash = any(getattr(step, "method", None) == "squish" for step in steps)
    normalise = [step for step in steps if type(step).__name__ == "Normalize"]
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    for step in normalise:
        mean, std = tuple(step.mean.flatten().tolist()), tuple(step.std.flatten().tolist())
    return Preprocess((height, width), fit="squash" if squash else "crop", mean=mean, std=std)
