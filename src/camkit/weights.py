"""Weights from files: safetensors, or `.pth` through `torch.load(weights_only=True)`; never a pickle."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from camkit.errors import ModelError


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
        raise ModelError(f"{path} cannot be read as weights: {first_line(error)}") from None
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


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".strip().splitlines()[0][:200]


def head_size(state: Mapping[str, Tensor]) -> int:
    """Number of classes of a state dict: the rows of its last matrix."""
    matrices = [t for name, t in state.items() if t.ndim >= 2 and "aux" not in name.lower()]
    if not matrices:
        raise ModelError("the weights hold no matrix, so the number of classes is unknown")
    return int(matrices[-1].shape[0])


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose random weights are the same every time, without touching the global RNG."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return build()


def download(url: str) -> Path:
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
            f"{url} could not be fetched ({first_line(error)}); put the file into {cache}, "
            "or use NAME@FILE, or NAME@none for random weights"
        ) from None
    return path
