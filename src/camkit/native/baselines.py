"""Files of baselines: prepared photographs that expected gradients start from.

A `.npy` file holds inputs `[n, C, H, W]` of one model. An option names it with a digest of its contents
(`PATH@DIGEST`), so a manifest tells which baselines made a map, and another file in that place is refused.
"""

from __future__ import annotations

import hashlib
import io
import re
from math import prod
from typing import TYPE_CHECKING

from camkit.errors import OptionError, reason
from camkit.files import read_regular

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 2**30
_NAMED = re.compile(r"(?P<path>.+)@(?P<digest>[0-9a-f]{16})", re.DOTALL)


def named(option: str) -> str:
    """`PATH@DIGEST` of the file that an option names, with or without a digest.

    Raises `OptionError` if it cannot be read, or has another digest.
    """
    path, said = _parts(option)
    digest = _digest(_contents(path))
    if said not in ("", digest):
        raise OptionError(f"the baselines in {path} are not those of the digest {said}, but of {digest}")
    return f"{path}@{digest}"


def load(option: str, like: Tensor) -> Tensor:
    """The baselines `[n, C, *size]` of an option, as the inputs `like`; errors as of `named`.

    `OptionError` too for what is no array of finite numbers, or not of the shape of the inputs.
    """
    import numpy as np
    import torch

    path, said = _parts(option)
    data = _contents(path)
    if said not in ("", _digest(data)):
        raise OptionError(f"the baselines in {path} have changed meanwhile")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, fortran, kind = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
        if kind.kind != "f" or fortran:  # also objects, which are pickles
            raise ValueError(f"it holds {'columns' if fortran else kind.name}, not numbers such as float32")
        if prod(shape) * kind.itemsize != len(data) - file.tell():  # before anything is allocated for it
            raise ValueError("it is cut off")
        values = (
            np.frombuffer(data, kind, prod(shape), file.tell())
            .reshape(shape)
            .astype("f8" if kind.itemsize > 4 else "f4")
        )
    except ValueError as error:
        raise OptionError(
            f"baselines are an array in a .npy file; {path} is none: {reason(error)}"
        ) from None
    if not shape or shape[1:] != tuple(like.shape[1:]) or not shape[0]:
        expected = ", ".join(map(str, ("n", *like.shape[1:])))
        raise OptionError(f"the baselines in {path} are {list(shape)}, for these inputs not [{expected}]")
    if not np.isfinite(values).all():
        raise OptionError(f"the baselines in {path} are NaN or infinite somewhere")
    return torch.from_numpy(values).to(like)


def _parts(option: str) -> tuple[str, str]:
    """Path and digest, "" if none is said."""
    match = _NAMED.fullmatch(option)
    return (match["path"], match["digest"]) if match else (option, "")


def _contents(path: str) -> bytes:
    try:
        return read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise OptionError(f"the baselines {path} cannot be read: {reason(error)}") from None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
