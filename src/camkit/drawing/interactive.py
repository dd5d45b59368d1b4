"""Maps of one photograph as a page by itself: class, method, layer and opacity change in the browser.

Everything is inside the page: it asks no server for anything, and runs where a notebook shows HTML.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from camkit.drawing import colours
from camkit.drawing.caption import BLANK, Caption
from camkit.drawing.overlay import DIM, place_of
from camkit.drawing.style import Style
from camkit.errors import UsageError
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess

SIDE = 640  # pixels of the photograph's longest side in the page
PAGE = Path(__file__).with_name("interactive.html")


@dataclass(frozen=True)
class Layer:
    """One map `[h, w]` that can be chosen, with what is said of it, and what the model is shown.

    subject: what it is of, by which it is chosen; way: method, layer and backend. Two maps of one subject
    in one way cannot both be chosen.
    """

    map: Tensor
    caption: Caption
    subject: str
    way: str
    preprocess: Preprocess


def page(photo: Photo, layers: Sequence[Layer]) -> str:
    """The page, in which the first of `layers` is shown."""
    style = Style(size=SIDE if max(photo.image.size) > SIDE else None)
    places = [place_of(photo, layer.preprocess, style) for layer in layers]
    if len({place.image.size for place in places}) > 1:
        raise UsageError("of one of these models it is not known what it is shown: view its maps alone")
    data = {
        "photo": _address(places[0].image),
        "dim": DIM,
        "blank": BLANK,
        "alpha": style.alpha,
        "tables": {"signed": _text(colours.SIGNED.tobytes())},
        "maps": [_told(layer, place.box, place.note) for layer, place in zip(layers, places, strict=True)],
    }
    # What ends a script, or a line of one, cannot stand in it.
    text = json.dumps(data).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return PAGE.read_text("utf-8").replace("DATA", text, 1)


def _told(layer: Layer, box: Sequence[float], note: str) -> dict[str, Any]:
    values, caption = layer.map.detach().cpu().numpy().astype("<f4"), layer.caption
    return {
        "class": layer.subject,
        "name": caption.name,
        "figure": caption.figure,
        "verdict": caption.verdict,
        "remark": " · ".join(caption.remarks),
        "how": " · ".join([*caption.how, *([note] if note else [])]),
        "speaks": caption.speaks,
        "way": layer.way,
        "box": [float(edge) for edge in box],
        "h": values.shape[0],
        "w": values.shape[1],
        "values": _text(np.ascontiguousarray(values).tobytes()),
    }


def _address(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{_text(buffer.getvalue())}"


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
