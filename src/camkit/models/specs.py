"""What a user means by a model: `pets`, `timm:resnet18@FILE`, a folder; told before torch is imported."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from camkit.errors import ModelNotFound, closest
from camkit.files import is_file, read_regular
from camkit.registry import discovery, extras

# A function or class of the user's own, and perhaps a file of weights: FILE.py:NAME[@WEIGHTS], or
# PACKAGE.MODULE:NAME[@WEIGHTS].
FUNCTION = re.compile(
    r"(?P<where>.+?\.py|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)(@(?P<weights>.+))?"
)
PETS = Path(__file__).parent / "pets"  # the bundle that comes with camkit
MAX_CONFIG = 16 * 2**20  # bytes
PACKAGES = {
    "hf": "camkit-huggingface",
    "open-clip": "camkit-open-clip",
}  # sources of camkit's that are packages of their own
CONFIG, WEIGHTS = "camkit.json", "model.safetensors"  # the files of a bundle
LIBRARY_CONFIG = "config.json"  # of a folder that transformers or timm wrote
TIMM_WEIGHTS = (
    WEIGHTS,
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)  # beside it, the better first
TIMM_HUB = re.compile(r"hf[-_]hub:")  # before a name of the hub, in a reference of timm


def split(spec: str) -> tuple[str, str]:
    """Model source and reference. Names come first: a folder called `pets` is `./pets`.

    A folder of transformers is for the source `hf`, one of timm for `timm`. Raises `ModelNotFound` if
    nothing has that name, or its source is not installed, and `ModelError` for a file.
    """
    found = discovery.find("model")
    for name in (name for item in found for name in (item.full_name, item.name)):
        if spec == name:
            return name, ""
        if spec.startswith(f"{name}:"):
            return name, spec[len(name) + 1 :]
    if os.path.isdir(spec):  # noqa: PTH112  Path.is_dir raises if the name is too long
        library = _library(Path(spec))
        if library == "timm":  # with a slash, as names of networks have none
            return library, spec if os.sep in spec else os.path.join(".", spec)  # noqa: PTH118
        if library == "hf":
            return _transformers(spec, {item.name for item in found})
        inner = str(Path(spec, "bundle"))  # of the folder that a training wrote
        return "bundle", inner if is_file(Path(inner, CONFIG)) else spec
    if is_file(spec):
        return "python" if spec.endswith(".py") else "file", spec
    if (function := FUNCTION.fullmatch(spec)) and _is_code(function["where"]):
        return "python", spec
    raise _not_found(spec, sorted({item.name for item in found}))


def runs_code(spec: str) -> bool:
    """Whether a model is made by the user's own code, which no file of a stranger may name."""
    return discovery.get("model", split(spec)[0]).name == "python"


def _is_code(where: str) -> bool:
    """Whether a file is meant, or a module that is there; nothing is imported."""
    top = where.partition(".")[0]
    return where.endswith(".py") or is_file(f"{top}.py") or find_spec(top) is not None or os.path.isdir(top)  # noqa: PTH112


def check(spec: str) -> None:
    """Raise what `split` raises, and `ModelNotFound` if a file is missing that a source of camkit needs."""
    name, reference = split(spec)
    source = discovery.get("model", name)
    if source.dist == discovery.HOST and source.name in _MISSING:
        missing = _MISSING[source.name](reference)
        if missing:
            raise ModelNotFound(missing)


def classes(spec: str) -> list[str] | None:
    """The classes of a bundle, as its file says; `None` of anything else, and where that is damaged."""
    name, reference = split(spec)
    folder = {"bundle": Path(reference), "pets": PETS}.get(discovery.get("model", name).name)
    if folder is None:
        return None
    try:
        found = json.loads(read_regular(folder / CONFIG, MAX_CONFIG))["classes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # loading it will say so
        return None
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else None


def _library(folder: Path) -> str | None:
    """The source for a folder that timm or transformers wrote: by its `config.json`."""
    if is_file(folder / CONFIG) or not is_file(folder / LIBRARY_CONFIG):
        return None
    try:
        config = json.loads(read_regular(folder / LIBRARY_CONFIG, MAX_CONFIG))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict):
        return None
    if "architecture" in config and config.get("model_type", "timm_wrapper") == "timm_wrapper":
        return "timm"  # also where transformers wrapped it
    return "hf" if "model_type" in config else None


def _transformers(folder: str, names: set[str]) -> tuple[str, str]:
    if "hf" not in names:
        raise ModelNotFound(
            f"{folder} is a model of Hugging Face's transformers: pip install {PACKAGES['hf']}"
        )
    return "hf", folder


def _not_found(spec: str, names: list[str]) -> ModelNotFound:
    scheme, colon, _ = spec.partition(":")
    if colon and scheme in PACKAGES:
        return ModelNotFound(f"{spec} needs the source {scheme!r}: pip install {PACKAGES[scheme]}")
    if Path(spec).suffix in (".pth", ".pt", ".ckpt", ".safetensors", ".tar", ".bin", ".pkl"):
        return ModelNotFound(f"there is no file {spec!r}")
    if os.sep in spec or "/" in spec or Path(spec).suffix == ".bundle":
        return ModelNotFound(f"there is no bundle folder {spec!r}")
    hint = closest(scheme, names)
    if not hint and not colon and re.fullmatch(r"[a-zA-Z]\w{2,63}(\.\w+)?(@.+)?", spec):
        hint = f"; a network of a library is torchvision:{spec} or timm:{spec}"
    hint = hint or f"; use a bundle folder or one of {', '.join(names)}"
    return ModelNotFound(f"there is no model {spec!r}{hint} (`camkit model list`)")


def _no_bundle(folder: str) -> str | None:
    missing = next((name for name in (CONFIG, WEIGHTS) if not is_file(Path(folder, name))), None)
    return missing and f"{folder} is not a bundle: {missing} is missing"


def timm_folder(reference: str) -> Path | None:
    """The folder that a reference of timm may mean; names of networks come first."""
    folder = os.path.expanduser(reference)  # noqa: PTH111
    return Path(folder) if os.path.isdir(folder) else None  # noqa: PTH112  Path.is_dir raises on long names


def no_timm_folder(folder: Path) -> str | None:
    """What a folder lacks to be one of timm."""
    if not is_file(folder / LIBRARY_CONFIG):
        return f"{folder} is no folder of timm: {LIBRARY_CONFIG} is missing"
    if not any(is_file(folder / name) for name in TIMM_WEIGHTS):
        return f"{folder} holds no weights: neither {' nor '.join(TIMM_WEIGHTS[:2])} is there"
    return None


def _no_timm(reference: str) -> str | None:
    if TIMM_HUB.match(reference):
        return None  # the cache of the hub knows
    folder = timm_folder(reference)
    if folder is None:
        return _no_weights(reference)
    return no_timm_folder(folder) if os.sep in reference else None  # a name of a network, perhaps


def _no_weights(reference: str) -> str | None:
    """Of `NAME@FILE`, where capital letters are the names of torchvision's own weights."""
    _, _, file = reference.partition("@")
    known = file == "none" or re.fullmatch(r"[A-Z0-9_]*", file) or is_file(file)
    return None if known else f"there is no weights file {file!r}"


def _no_file(reference: str) -> str | None:
    """Of fastai's `NAME@FILE`, which adds `.pth`, or `FILE.pkl`."""
    _, at, file = reference.partition("@")
    if not at and reference.endswith(".pkl") and not is_file(reference):
        return f"there is no file {reference!r}"
    return _no_weights(reference) if at and not is_file(f"{file}.pth") else None


def _no_code(reference: str) -> str | None:
    found = FUNCTION.fullmatch(reference)
    files = [found["where"], found["weights"]] if found else []
    wanted = (file for file in files if file and (file.endswith(".py") or file == files[1]))
    return next((f"there is no file {file!r}" for file in wanted if not is_file(file)), None)


# By the source: what is missing for a reference, as far as that can be told without the library.
_MISSING: dict[str, Callable[[str], str | None]] = {
    "bundle": _no_bundle,
    "fastai": _no_file,
    "imagenet": lambda _: extras.missing("imagenet", "the model imagenet"),
    "python": _no_code,
    "timm": _no_timm,
    "torchvision": _no_weights,
}
