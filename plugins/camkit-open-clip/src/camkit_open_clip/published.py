"""What open_clip knows of the weights that it publishes, and what that says of a file of weights.

Weights are trained with one of two GELUs, on photographs that are shown in one of several ways. Of its own
weights open_clip knows both. A file says neither: it may be such weights, or trained from them, or anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import open_clip
from open_clip.transform import PreprocessCfg

FIELDS = ("mean", "std", "interpolation", "resize_mode")  # of what is shown, by open_clip's names


class Known(NamedTuple):
    """How a network is built, and what is assumed in that, for people.

    quick: with the quick GELU, whatever its configuration says. shown: in place of what is usual.
    """

    quick: bool
    shown: Mapping[str, Any]
    notes: Mapping[str, str]


def of_published(name: str, tag: str) -> Known:
    """Of weights that open_clip publishes: what they are shown it takes itself, of their GELU it warns."""
    return Known(bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu")), {}, {})


def of_file(name: str) -> Known:
    """Of a file of weights: shown as all that are published of its name, and else as open_clip does."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    usual = PreprocessCfg()
    ways = {tuple(one.get(field) or getattr(usual, field) for field in FIELDS) for one in published}
    own = tuple(getattr(usual, field) for field in FIELDS)
    way = next(iter(ways)) if len(ways) == 1 else own
    notes = {}
    if ways - {own}:
        published_as = f"as the published weights of {name}"
        other = f"as usual, and some published weights of {name} otherwise"
        # camkit says for every model which options there are to change what is assumed so.
        notes["shown"] = "how photographs are shown is assumed"
        notes["published"] = f"they are shown {published_as if len(ways) == 1 else other}"
    config = open_clip.get_model_config(name) or {}
    if not config.get("quick_gelu") and any(one.get("quick_gelu") for one in published):
        twin = f"{name}-quickgelu"
        hint = f" ({twin}@FILE)" if twin in open_clip.list_models() else ""
        notes["variant"] = (
            "it is built with the exact GELU: with weights that were trained with the quick one, as "
            f"OpenAI's, scores and maps are wrong{hint}"
        )
    return Known(False, dict(zip(FIELDS, way, strict=True)) if way != own else {}, notes)


NOTHING = Known(False, {}, {})  # of random weights
