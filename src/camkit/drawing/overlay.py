"""A picture of a map: the photograph, the map over what the model saw of it, and the caption below."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from camkit.drawing import looks, outline
from camkit.drawing.caption import NARROWEST, Caption, Legend, strip, words
from camkit.drawing.evidence import (
    Box,
    Kernel,
    Scale,
    Values,
    check_finite,
    is_flat,
    sampled,
    scale_of,
    signed,
)
from camkit.drawing.style import Style
from camkit.images import decoding
from camkit.images.decoding import Photo
from camkit.images.preprocess import Preprocess

SMALL = 256  # pixels: a photograph with a shorter longest side is enlarged
DIM = 0.55  # how bright the part is that the model did not see
DIMMED = "the model did not see the dimmed part"
LINES = "lines at 25, 50 and 75 % of the scale"
FRAMED = "the model saw what is inside of the frame"
CUT = "cut to what the model saw"
SPOTS = 0.005  # of a map: on a photograph of 224 x 224 pixels, a spot of 16 x 16
OWN, SHARED = "own scale", "shared scale"  # by itself a colour does not tell how much a map says
PHOTOGRAPH = "photograph"  # in the `info` of a picture with a caption: the box of what is above it


@dataclass(frozen=True)
class Place:
    """A photograph as it is drawn on: where in it the model looked, and what has to be said of that.

    seen: where that is, in pixels of the photograph itself, or of what the model saw.
    """

    image: Image.Image
    box: Box
    note: str = ""
    seen: Box | None = None

    def placed(self, corners: Box) -> Box:
        """Corners in pixels of the photograph, in pixels of the picture."""
        left, top, right, bottom = self.seen or self.box
        x, y = (self.box[2] - self.box[0]) / (right - left), (self.box[3] - self.box[1]) / (bottom - top)
        shift_x, shift_y = self.box[0] - left * x, self.box[1] - top * y
        a, b, c, d = corners
        return shift_x + a * x, shift_y + b * y, shift_x + c * x, shift_y + d * y


def draw(
    photo: Photo,
    map: Tensor,
    preprocess: Preprocess,
    style: Style,
    caption: Caption | None = None,
    scale: Scale | None = None,
    around: Box | Values | None = None,
) -> Image.Image:
    """The picture of a map `[h, w]`.

    around: what a line is drawn around: a box in pixels of the photograph, or of what the model saw where
    its place is not known; or places of what the model saw, bool `[h, w]`.
    caption: what is written below, if the style has a caption. scale: `None`: that of this map.
    Raises `MapError` if the map is not finite.
    """
    check_finite(map)
    place = place_of(photo, preprocess, style)
    scale = scale or scale_of([map], style)
    picture = overlay(place.image, map, style, place.box, scale)
    if isinstance(around, np.ndarray):
        outline.around_mask(picture, around, place.box)
    elif around is not None:
        outline.around_box(picture, place.placed(around))
    if not style.caption or caption is None:
        return picture
    drawn = signed(map, style)
    legend = Legend(scale, float(drawn.min()), float(drawn.max()), words(scale, caption.speaks))
    own = SHARED if scale.shared else f"{OWN}{_spots(drawn)}"
    notes = [own if legend.low < legend.high else "", LINES if style.look == "contour" else "", place.note]
    notes = [note for note in notes if note]
    return above(picture, strip(max(NARROWEST, picture.width), caption, style, legend, notes))


def _spots(drawn: Tensor) -> str:
    """What is said of a map that is strong in so few places that its picture looks empty."""
    strong = float((drawn.abs() >= drawn.abs().max() / 4).double().mean())
    return f", a quarter of it or more in only {strong:.2%} of the map" if strong < SPOTS else ""


def overlay(
    image: Image.Image, map: Tensor, style: Style, box: Box | None = None, scale: Scale | None = None
) -> Image.Image:
    """`image` with the map `[h, w]` over it, without caption, at the size of `image`.

    box: the part of `image` that the map covers (left, top, right, bottom in pixels); the rest, which
    the model did not see, is dimmed. `None`: all of it. Raises `MapError` if the map is not finite.
    """
    check_finite(map)
    image = image.convert("RGB")
    drawn = signed(map.detach().cpu().double(), style)  # in which no range of float32 values overflows
    box = box or (0, 0, *image.size)
    left, top, right, bottom = box
    inside = (
        *(max(0, round(left)), max(0, round(top))),
        *(min(image.width, round(right)), min(image.height, round(bottom))),
    )
    lesson = style.look == "lesson"
    if is_flat(drawn) and not lesson and not (scale and scale.shared):
        drawn = drawn * 0  # a colour everywhere would look like evidence
    scale = scale or scale_of([map], style)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return dimmed(image, (0, 0, 0, 0), darker(scale, style))
    kernel: Kernel = "nearest" if style.cells else "bilinear" if lesson else "bicubic"
    values = sampled(drawn, box, inside, kernel)
    look = looks.LOOKS[style.look]
    if inside == (0, 0, *image.size):
        return look(image, values, scale, style)
    result = dimmed(image, inside, darker(scale, style))
    result.paste(look(image.crop(inside), values, scale, style), inside[:2])
    _frame(result, inside)
    return result


def place_of(photo: Photo, preprocess: Preprocess, style: Style) -> Place:
    """What a map is drawn on, at the size of the picture.

    Where the model looked in the whole photograph may not be known, of tensors and of functions that
    prepare photographs: then it is what the model saw.
    """
    if style.view == "original" and not photo.cut and preprocess.knows_place:
        width, height = photo.whole or photo.image.size
        image = sized(photo.image, style.size)
        box = preprocess.box(width, height)
        x, y = image.width / width, image.height / height
        left, top, right, bottom = box[0] * x, box[1] * y, box[2] * x, box[3] * y
        whole = min(left, top) < 0.5 and right > image.width - 0.5 and bottom > image.height - 0.5
        note = FRAMED if style.look == "spotlight" else DIMMED  # in which all is dark but the evidence
        return Place(
            image, (left, top, right, bottom), "" if whole else note, preprocess.box(width, height)
        )
    return _seen(photo, preprocess, style)


def _seen(photo: Photo, preprocess: Preprocess, style: Style) -> Place:
    image = seen(photo, preprocess)
    if style.look != "lesson":
        image = sized(image, style.size)
    if preprocess.knows_place:
        where: Box = preprocess.box(*(photo.whole or photo.image.size))
    else:
        where = 0, 0, preprocess.size[1], preprocess.size[0]
    return Place(image, (0, 0, *image.size), CUT, where)


def seen(photo: Photo, preprocess: Preprocess) -> Image.Image:
    """What the model sees of a photograph."""
    if photo.view is not None:
        return photo.view
    return photo.image if photo.cut else preprocess.view(photo.image)


def sized(image: Image.Image, size: int | None = None) -> Image.Image:
    """A photograph at the size at which it is drawn.

    size: pixels of the longest side; `None`: at most 1,024, and tiny ones are enlarged by a whole number.
    """
    longest = max(image.size)
    if size is None and longest <= SMALL // 2:
        times = SMALL // longest
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    wanted = size or min(longest, decoding.DRAWN)
    if wanted > longest:
        width, height = (max(1, round(side * wanted / longest)) for side in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)
    return decoding.reduced(image, wanted)


def picture(pixels: Tensor) -> Image.Image:
    """Values `[C, H, W]` in [0, 1] as a picture of the first three channels, or the first of fewer.

    What lies outside is cut off.
    """
    drawn = pixels[:3] if len(pixels) >= 3 else pixels[:1].expand(3, -1, -1)
    values = drawn.clamp(0, 1).permute(1, 2, 0).mul(255).round()
    return Image.fromarray(values.to(torch.uint8).numpy())


def darker(scale: Scale, style: Style) -> Values:
    """What each byte becomes where the model did not see: in a spotlight as dark as without evidence."""
    part = min(DIM, looks.light(scale, style)[0] / 255) if style.look == "spotlight" else DIM
    return np.asarray((part * np.arange(256)).round().astype(np.uint8))


def dimmed(image: Image.Image, but: tuple[int, int, int, int], table: Values) -> Image.Image:
    """A picture, RGB, that is darker outside of a box. table: what each byte becomes there, `[256]`."""
    pixels = np.array(image)
    left, top, right, bottom = but
    beside = pixels[top:bottom]
    for part in (pixels[:top], pixels[bottom:], beside[:, :left], beside[:, right:]):
        part[...] = table[part]
    return Image.fromarray(pixels)


def above(picture: Image.Image, below: Image.Image) -> Image.Image:
    """A picture, in the middle, over another one."""
    paper = Image.new("RGB", (below.width, picture.height + below.height), "white")
    left = (below.width - picture.width) // 2
    paper.paste(picture, (left, 0))
    paper.paste(below, (0, picture.height))
    paper.info[PHOTOGRAPH] = left, 0, left + picture.width, picture.height
    return paper


def _frame(picture: Image.Image, box: tuple[int, int, int, int]) -> None:
    """A thin line just outside of what the model saw, as far as there is a photograph."""
    left, top, right, bottom = box
    wide = outline.wide(picture)
    line = ImageDraw.Draw(picture).rectangle
    if left > 0:
        line((left - wide, top, left - 1, bottom - 1), fill=outline.BORDER)
    if right < picture.width:
        line((right, top, right + wide - 1, bottom - 1), fill=outline.BORDER)
    if top > 0:
        line((left, top - wide, right - 1, top - 1), fill=outline.BORDER)
    if bottom < picture.height:
        line((left, bottom, right - 1, bottom + wide - 1), fill=outline.BORDER)
