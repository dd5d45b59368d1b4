"""The models of fastai's `vision_learner` in plain torch: the body of a classifier under fastai's head.

Nothing here needs fastai but `learn.export()` files, which are pickles. Names of parameters are fastai's,
so files of `learn.save()` fit, also those that fastai v1 wrote.
"""

from __future__ import annotations

import copy
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from camkit import plugins
from camkit.api import LoadedModel, ModelSource
from camkit.errors import CamkitWarning, ModelError
from camkit.files import is_file
from camkit.models import qualified
from camkit.preprocess import FILTERS, Preprocess
from camkit.scores import ScoreKind, probabilities
from camkit.weights import built_for, first_line, put_weights, read_weights, seeded

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
        source: ModelSource = plugins.make("model", backbone["source"])
        body = cut(backbone["source"], source.build({**backbone, "num_classes": 1}))
        pool = not getattr(body, "pooled", False)
        switches = {name: bool(architecture.get(name, default)) for name, default in SWITCHES.items()}
        # `Any`: the seed fixes the head, too.
        built: Any = seeded(lambda: nn.Sequential(body, head(features(body), count, pool=pool, **switches)))
        return cast("nn.Sequential", built)


def default_layer(module: nn.Module) -> str:
    """The whole body, as in the lesson, of a body under a head that pools; of anything else `auto`."""
    parts = list(module.children()) if type(module) is nn.Sequential else []
    first = next(iter(parts[1].children()), None) if len(parts) == 2 else None
    return "0" if first is not None and _pools(first) else "auto"


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


# --- files of learn.export() ------------------------------------------------------------------------

# What losses mean, where fastai's `activation` does not tell: by the name of what is computed.
MEANINGS: dict[str, ScoreKind] = {
    "BCELoss": "probabilities",
    "MSELoss": "none",
    "L1Loss": "none",
    "SmoothL1Loss": "none",
    "HuberLoss": "none",
    "CrossEntropyLoss": "softmax",
    "NLLLoss": "softmax",  # of log-probabilities, which it leaves as they are
    "BCEWithLogitsLoss": "sigmoid",
}


def _exported(path: Path, device: torch.device, trust: bool) -> LoadedModel:
    """A whole Learner: module, class names, what its scores are, and what it shows the module."""
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
        batches = learner.dls.valid
        steps = [*batches.after_item, *batches.after_batch]
        vocab = getattr(learner.dls, "vocab", None)
        count = getattr(learner.dls, "c", 1) if vocab is None else len(vocab)
        module, scores = learner.model, _meaning(learner.loss_func)
    # Unpickling raises anything, such as a label function that is defined nowhere.
    except Exception as error:
        raise ModelError(f"{path} cannot be loaded by fastai: {first_line(error)}") from None
    with _naming(path):
        preprocess = shown(steps)
        _check_shown(learner, preprocess)
    module.to(device).eval()
    return LoadedModel(
        module,
        tuple(map(str, vocab)) if vocab is not None else tuple(f"output_{i}" for i in range(count)),
        preprocess,
        name=f"fastai:{path}",
        default_layer=default_layer(module),
        scores=scores,
    )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _meaning(loss: Any) -> ScoreKind:
    """What the scores of a model are that was trained with `loss`: as fastai's predictions take them."""
    probe = torch.tensor([[-1.0, 0.0, 2.0]])
    activation = getattr(loss, "activation", None)
    made = activation(probe) if callable(activation) else probe
    kinds: tuple[ScoreKind, ...] = ("softmax", "sigmoid")
    for kind in kinds:
        if isinstance(made, Tensor) and torch.allclose(made, cast("Tensor", probabilities(probe, kind))):
            return kind
    return MEANINGS.get(type(getattr(loss, "func", loss)).__name__, "auto")


def shown(steps: Sequence[Any]) -> Preprocess:
    """What fastai's validation shows the model, from the transforms of items and batches.

    `ModelError` names a transform that changes photographs in a way that camkit does not know. Without
    `Normalize` pixels stay in [0, 1].
    """
    facts: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    for step in steps:
        names = [cls.__name__ for cls in type(step).__mro__]
        known = next((name for name in names if name in STEPS), None)
        if known:
            facts |= STEPS[known](step, facts)
        elif getattr(step, "split_idx", None) != 0:  # 0: it rests in validation
            raise _unknown(step)
    if "size" not in facts:
        warnings.warn(
            "the learner shows photographs at the size that they have; camkit brings them to 224 x 224",
            CamkitWarning,
            stacklevel=2,
        )
    return Preprocess(**facts)


def _check_shown(learner: Any, preprocess: Preprocess) -> None:
    """Compare with what fastai itself shows of two photographs; `ModelError` if that is something else."""
    from fastai.vision.core import PILImage

    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for width, height in ((301, 203), (97, 131)):
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            photo = PILImage.create(pixels)
            photo.save(file := Path(folder, f"{width}.png"))
            try:
                theirs = learner.dls.test_dl([file], num_workers=0, bs=1).one_batch()[0]
                theirs = theirs.as_subclass(Tensor).cpu().float()[0]
            # What comes before the transforms may want more than a file, such as a row of a table.
            except Exception:
                return
            if theirs.shape[-2:] == (height, width):
                return  # nothing is resized, as `shown` has said
            ours = preprocess(photo)
            if ours.shape != theirs.shape:
                raise ModelError(f"fastai shows {list(theirs.shape)}, read as {list(ours.shape)}")
            if not torch.allclose(ours, theirs, atol=1e-3):
                raise ModelError("its transforms show photographs in another way than camkit reads them")


def _unknown(step: Any, detail: str = "") -> ModelError:
    name = str(getattr(step, "name", type(step).__name__)).partition(" -- ")[0].strip()
    return ModelError(f"camkit does not know what fastai's {name}{detail} shows the model")


def _resize(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    if "size" in facts:
        raise _unknown(step, " behind another one")
    fits = {"squish": "squash", "pad": "pad", "crop": "crop-first"}
    fit = fits[step.method]
    padding = {"padding": step.pad_mode} if fit == "pad" else {}
    return {"size": tuple(step.size[::-1]), "fit": fit, "interpolation": _filter(step), **padding}


def _random_crop(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Validation squashes the photograph to somewhat more than `size`, and takes the middle."""
    if "size" in facts:
        raise _unknown(step, " behind another one")
    width, height = step.size
    more = math.ceil(max(width, height) * step.val_xtra / 8) * 8
    resize = {"resize": (height + more, width + more)}
    return {"size": (height, width), "fit": "squash", "interpolation": _filter(step), **resize}


def _cut(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    width, height = step.size
    if "size" not in facts:
        return {"size": (height, width), "fit": "none", "padding": getattr(step, "pad_mode", "zeros")}
    if "resize" in facts or facts["size"][0] < height or facts["size"][1] < width:
        raise _unknown(step, " behind another one")
    return {"size": (height, width), "resize": facts["size"]}


def _resampled(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Rotations and the like, which rest in validation, but may bring batches to another size."""
    if step.size is None:
        return {}
    if "size" not in facts or "presize" in facts:
        raise _unknown(
            step, " of photographs of any size" if "size" not in facts else " behind another one"
        )
    if step.mode != "bilinear" or not step.align_corners:
        raise _unknown(step, f" with mode={step.mode}, align_corners={step.align_corners}")
    size = (step.size, step.size) if isinstance(step.size, int) else tuple(step.size)
    return {"size": size, "presize": facts["size"]}


def _crop_of_batches(step: Any, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Validation takes the middle, of proportions within `ratio`, and resamples it."""
    if "size" not in facts or "presize" in facts:
        raise _unknown(
            step, " of photographs of any size" if "size" not in facts else " behind another one"
        )
    if step.mode != "bilinear":
        raise _unknown(step, f" with mode={step.mode}")
    height, width = facts["size"]
    low, high = step.ratio
    if width / height < low:
        height = int(width / low)
    elif width / height > high:
        width = int(height * high)
    cut = (int(height * step.valid_scale), int(width * step.valid_scale))
    resize = {} if cut == facts["size"] or "resize" in facts else {"resize": facts["size"]}
    return {"size": tuple(step.size), "presize": cut, **resize}


def _normalised(step: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(getattr(step, name).flatten().tolist()) for name in ("mean", "std")}


def _scaled(step: Any, _: Mapping[str, Any]) -> dict[str, Any]:
    if step.div != 255:
        raise _unknown(step, f" with div={step.div}")
    return {}


def _filter(step: Any) -> str:
    number = int(step.mode)
    if number not in FILTERS.values():
        raise _unknown(step, f" with Pillow's filter {number}")
    return next(name for name, value in FILTERS.items() if value == number)


# By the name of the class, or of one that it comes from: what it makes of the facts so far.
STEPS: dict[str, Callable[[Any, Mapping[str, Any]], dict[str, Any]]] = {
    "Resize": _resize,
    "RandomResizedCrop": _random_crop,
    "CropPad": _cut,
    "RandomCrop": _cut,
    "AffineCoordTfm": _resampled,
    "RandomResizedCropGPU": _crop_of_batches,
    "Normalize": _normalised,
    "IntToFloatTensor": _scaled,
    "ToTensor": lambda _, __: {},
}
