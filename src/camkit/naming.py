"""What the files of a result are called: readable, fit for every file system, different where they differ.

A map is called `IMAGE.BACKEND.METHOD.CLASS` and then what else makes it another map than by default; its
picture adds what makes it another picture. Two tables say what that is, in the order of the names.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

from camkit import models
from camkit.style import Style

MAX_NAME_BYTES = 120  # of one part of a file name
MAX_STEM_BYTES = 240  # of all parts; file systems take 255 with the suffix


@dataclass(frozen=True)
class Part:
    """A part of a name: what goes without saying, and how all else is said."""

    default: Any
    text: Callable[[Any], str]


def _options(options: Mapping[str, Any]) -> str:
    """`reduction-mean.fast-true`, of the options that are not as by default."""
    values = {key: str(v).lower() if isinstance(v, bool) else str(v) for key, v in options.items()}
    return ".".join(f"{key}-{value}" for key, value in values.items())


def _model(spec: str) -> str:
    """A model as it is asked for; of a path the last two names."""
    return re.sub(r"[^:@]*/(?=[^/:@]+/[^/:@]+)", "", spec.removeprefix("./").rstrip("/"))


MAP = {
    "layer": Part("", str),
    "layout": Part(None, str),
    "model": Part(models.DEFAULT, _model),
    "options": Part({}, _options),
    "dtype": Part("float32", str),
}
_LOOK = {"view": "model", **asdict(Style())}
PICTURE = {
    "view": Part(_LOOK["view"], str),
    "relu": Part(_LOOK["relu"], lambda _: "relu"),
    "counterfactual": Part(_LOOK["counterfactual"], lambda _: "against"),
    "alpha": Part(_LOOK["alpha"], lambda value: f"alpha-{value}"),
    "cmap": Part(_LOOK["cmap"], str),
}


def parts(table: Mapping[str, Part], facts: Mapping[str, Any]) -> list[str]:
    """What `facts` add to a name, in the order of the table; what is as by default adds nothing."""
    known = {key: facts.get(key, part.default) for key, part in table.items()}
    told = [part.text(known[key]) for key, part in table.items() if known[key] != part.default]
    return [text for text in map(slug, told) if text]


def output_name(name: str) -> str:
    """How the results of a photograph are called: its name, as far as every file system takes it.

    A part of a path that has to be changed gets a digest of what it was, so that no two are the same.
    """
    clear = []
    for part in name.split("/"):
        clean = re.sub(r'[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"|?*\\]', "_", part).strip(" ").lstrip(".")
        if clean != part or not clean:
            clean = f"{clean}-{_digest(part)}" if clean else _digest(part)
        clear.append(shortened(clean, MAX_NAME_BYTES))
    return "/".join(clear)


def file_name(stem: str, suffix: str, number: int = 1) -> str:
    """A file name whose last part is not too long; `~2`, `~3`, ... if it is not the first of its name."""
    folder, slash, name = stem.rpartition("/")
    again = f"~{number}" if number > 1 else ""
    return f"{folder}{slash}{shortened(name, MAX_STEM_BYTES)}{again}{suffix}"


@lru_cache(maxsize=8)
def class_slugs(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Each class as part of a file name; with its index where the name alone would be shared or empty."""
    slugs = [slug(name) for name in classes]
    count = Counter(slugs)
    return tuple(
        name if name and count[name] == 1 else f"{name or 'class'}-{index}"
        for index, name in enumerate(slugs)
    )


def slug(text: str) -> str:
    """A text as part of a file name: no separators or blanks, and not too long."""
    return shortened(re.sub(r"[^\w.+~-]+", "_", text).strip("_").lstrip("."), MAX_NAME_BYTES)


def shortened(text: str, limit: int) -> str:
    """At most `limit` bytes of UTF-8; what is cut off is replaced by a digest, so names stay apart."""
    raw = text.encode()
    if len(raw) <= limit:
        return text
    return f"{raw[: limit - 9].decode(errors='ignore')}-{_digest(text)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
