"""`preprocessor_config.json` beside a file of weights: what an image processor of transformers shows.

Only what is read completely is taken, as half of it would show something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from camkit.errors import printable, reason, typed_reason
from camkit.files import is_file, read_regular
from camkit.images.preprocess import Interpolation, Preprocess

NAME = "preprocessor_config.json"
MAX_FILE = 2**20  # bytes
FILTERS: dict[Any, Interpolation] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
}
KIND = ("image_processor_type", "feature_extractor_type")
PLAIN = (  # these do what their keys say
    "BitImageProcessor CLIPImageProcessor DeiTImageProcessor ViTImageProcessor ViTFeatureExtractor "
    "CLIPFeatureExtractor DeiTFeatureExtractor BeitImageProcessor SiglipImageProcessor "
    "MobileNetV1ImageProcessor MobileNetV2ImageProcessor"
).split()
CONVNEXT = ("ConvNextImageProcessor", "ConvNextFeatureExtractor")
READ = {
    *(*KIND, "processor_class", "size", "crop_size", "crop_pct", "resample", "rescale_factor"),
    *("do_resize", "do_center_crop", "do_rescale", "do_normalize", "image_mean", "image_std"),
    *("do_convert_rgb", "data_format", "default_to_square"),  # as it is here, or of the shape alone
}


def beside(path: Path) -> tuple[Preprocess | None, str]:
    """What the file beside `path` shows, if it is taken; and a sentence, "" if there is no such file."""
    file = path.parent / NAME
    if not is_file(file):
        return None, ""
    try:
        table = json.loads(read_regular(file, MAX_FILE))
        return read(table), f"photographs are shown as {NAME} beside it says"
    # A file of a stranger's may say anything, or lack anything.
    except Exception as error:
        why = typed_reason(error) if isinstance(error, KeyError | TypeError) else reason(error)
        return None, f"{NAME} beside it is not taken ({printable(why)}): preprocess= takes the processor"


def read(table: Any) -> Preprocess:
    """The `Preprocess` of a table; for one that says anything else, or too little, an error of any kind."""
    if not isinstance(table, Mapping):
        raise ValueError("it is no table")
    if others := [key for key, value in table.items() if key not in READ and value not in (None, False)]:
        raise ValueError(f"it says {others[0]}")
    if not table.get("do_resize", True) or not table.get("do_rescale", True):
        raise ValueError("it does not resize or rescale")
    if abs(255 * float(table.get("rescale_factor", 1 / 255)) - 1) > 1e-6:
        raise ValueError(f"its rescale_factor is {table['rescale_factor']}")
    whole, crop = _sizes(table)
    normal = table.get("do_normalize", True)
    shown = {
        "size": crop,
        "resize": None if whole == crop else whole,
        "fit": "squash" if isinstance(whole, tuple) else "crop",
        "interpolation": FILTERS[table["resample"]],
        "mean": _three(table["image_mean"]) if normal else (0.0,) * 3,
        "std": _three(table["image_std"]) if normal else (1.0,) * 3,
        "rounding": "transformers",
    }
    return Preprocess.from_dict(shown)


def _sizes(table: Mapping[str, Any]) -> tuple[int | tuple[int, int], tuple[int, int]]:
    """What a photograph is resized to, a shorter side or both, and what is cut out of that."""
    kind = next((str(table[key]).removesuffix("Fast") for key in KIND if table.get(key)), "")
    size = table.get("size")
    if kind not in (*PLAIN, *CONVNEXT) or not isinstance(size, Mapping):
        raise ValueError(f"its kind is {kind or 'not said'}, its size {size}")
    if {key for key, side in size.items() if side} not in ({"shortest_edge"}, {"height", "width"}):
        raise ValueError(f"its size is {size}")
    edge = size.get("shortest_edge")
    if kind in CONVNEXT and edge:
        if edge >= 384:
            return (edge, edge), (edge, edge)
        return int(edge / (table.get("crop_pct") or 224 / 256)), (edge, edge)
    whole = int(edge) if edge else (int(size["height"]), int(size["width"]))
    # Some cut by default, which a table need not say; these never do.
    if (
        table.get("do_center_crop", False)
        if kind.startswith(("ViT", "Siglip"))
        else table["do_center_crop"]
    ):
        crop = table["crop_size"]
        return whole, (int(crop["height"]), int(crop["width"]))
    if isinstance(whole, int):
        raise ValueError("it shows photographs of any proportions")
    return whole, whole


def _three(values: Any) -> tuple[float, ...]:
    return (float(values),) * 3 if isinstance(values, int | float) else tuple(float(v) for v in values)
