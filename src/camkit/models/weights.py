"""Weights from files: safetensors, or `.pth` through `torch.load(weights_only=True)`; never a pickle."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from camkit.errors import ModelError, typed_reason
from camkit.models.checkpoint import read_checkpoint

SPARE = 2**27  # values, of which a network may have more when it is built: fastai cuts off most of a VGG


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict of a file, without running any code of it; see `checkpoint.read_checkpoint`."""
    state = dict(read_checkpoint(path).state)
    for prefix in ("module.", "_orig_mod.", "module."):  # of DataParallel and torch.compile, either way
        consume_prefix_in_state_dict_if_present(state, prefix)
    return state


def without_prefix(state: Mapping[str, Tensor], module: nn.Module, where: str) -> Mapping[str, Tensor]:
    """`state` as the module names it, where a module around it, such as Lightning's, put a prefix before.

    What else there is, such as weights of the loss, is left out then. `ModelError` for two such networks,
    as a student and its teacher.
    """
    own = list(module.state_dict())
    if not own or own[0] in state:
        return state
    begins = [name.removesuffix(own[0]) for name in state if name.endswith(f".{own[0]}")]
    fitting = [prefix for prefix in begins if all(f"{prefix}{name}" in state for name in own)]
    if len(fitting) > 1:
        raise ModelError(
            f"{where} holds {len(fitting)} such networks ({', '.join(fitting)}): save the one that is meant"
        )
    for prefix in fitting:
        return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    return state


@contextmanager
def built_for(size: int) -> Iterator[None]:
    """While a module is built for weights of `size` bytes: `ModelError` if it becomes far larger.

    Every parameter is counted before its memory is filled; a value takes a byte at least.
    """
    left, thread = 2 * size + SPARE, threading.get_ident()

    def count(_: nn.Module, __: str, parameter: nn.Parameter | None) -> None:
        nonlocal left
        if parameter is not None and threading.get_ident() == thread:
            left -= parameter.numel()
            if left < 0:
                raise ModelError(f"the network is far larger than its weights, which are {size:,} bytes")

    hook: Any = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def put_weights(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load `state` strictly into `module`; `ModelError` names what does not fit."""
    own = module.state_dict()
    shapes = [
        f"{name} is {list(state[name].shape)}, expected {list(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    # Of weights that do not fit by their shapes, the names are told, too: they may be the cause.
    missing, unexpected = [n for n in own if n not in state], [n for n in state if n not in own]
    if not shapes:
        # By the versions that a `.pth` file carries modules read the names of their past; other files
        # have none, and the names of today.
        versioned: Any = OrderedDict(state)
        versioned._metadata = getattr(state, "_metadata", getattr(own, "_metadata", {}))
        try:
            missing, unexpected = module.load_state_dict(versioned, strict=False)
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"the weights of {where} do not fit: {' '.join(str(error).split())[:300]}"
            ) from None
    # Weights from before torch 0.4 do not have the counter, which only a training needs.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
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


def broken(module: nn.Module) -> str:
    """The first tensor of a module with NaN or infinity in it, and how many; "" if all are numbers."""
    for name, tensor in module.state_dict().items():
        count = int((~tensor.isfinite()).sum()) if tensor.is_floating_point() else 0
        if count:
            return f"{name} ({count:,} of {tensor.numel():,} values)"
    return ""


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module whose random weights are the same every time, without touching the global RNG."""
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(0)  # `torch.manual_seed` would seed those of accelerators too
        return build()


def download(url: str) -> Path:
    """A weights file in torch's own cache, fetched if it is not there."""
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    path = cache / Path(urlparse(url).path).name
    if path.exists():
        return path
    match = torch.hub.HASH_REGEX.search(path.name)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), match.group(1) if match else None)
    # Whatever the network and the disk do, and a wrong hash.
    except Exception as error:
        raise ModelError(
            f"{url} could not be fetched ({typed_reason(error)}); put the file into {cache}, "
            "or use NAME@FILE, or NAME@none for random weights"
        ) from None
    return path
