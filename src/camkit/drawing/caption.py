"""The strip below a picture: what it shows, how it was made, and what its colours mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from camkit.drawing import looks, text
from camkit.drawing.evidence import Scale, Values
from camkit.drawing.style import Style

PAPER, INK, FAINT, ALARM = "white", "#111111", "#595959", "#9c2c00"
NARROWEST = 320  # pixels in which a caption can be read
BLANK = 112  # the grey on which a colour bar shows how opaque its colours are: that of zero in the tables


@dataclass(frozen=True)
class Caption:
    """What is said below a picture.

    name, figure: of the class, and its probability or score. verdict: whether it is predicted.
    how: method, backend, layer, model. remarks: what the picture cannot show by itself.
    speaks: whether the values of the method speak for the class or against it.
    """

    name: str
    figure: str
    verdict: str
    how: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    speaks: bool = True


@dataclass(frozen=True)
class Legend:
    """A scale as a map uses it.

    low, high: the lowest and the highest value that is drawn. words: at the two ends of the bar.
    """

    scale: Scale
    low: float
    high: float
    words: tuple[str, str] = ("", "")

    @property
    def span(self) -> tuple[float, float]:
        """From where to where its bar goes: all of a shared scale, else what the map has, with zero."""
        if self.scale.shared:
            return self.scale.low, self.scale.high
        return min(self.low, 0.0), max(self.high, 0.0)


def words(scale: Scale, speaks: bool = True) -> tuple[str, str]:
    """What stands at the ends of a bar."""
    if not speaks:
        return "", ""
    return "speaks against", "speaks against" if scale.kind == "against" else "speaks for"


def strip(
    width: int, caption: Caption, style: Style, legend: Legend, notes: Sequence[str] = ()
) -> Image.Image:
    """The strip, as wide as the picture. notes: how the photograph is shown."""
    big, small = sizes(width)
    pad = big // 2 + 2
    room = width - 2 * pad
    against = style.counterfactual and caption.speaks
    # The figure is that of the class, not of what speaks against it.
    figure = f" ({caption.figure})" if against else f"  {caption.figure}"
    end = text.width(figure, big, bold=True)
    head = f"against {caption.name}" if against else caption.name
    beside = text.width(caption.verdict, small)
    # Beside the class if there is room for it, else below.
    in_head = text.width(head, big, bold=True) + end + 2 * big + beside <= room
    head = text.shortened(head, big, room - end, bold=True)
    below = [] if in_head or not caption.verdict else text.lines([caption.verdict], small, room)
    alarms = [line for remark in caption.remarks for line in text.lines([remark], small, room)]
    last = text.lines([*caption.how, *notes], small, room)
    bar_height = 0 if legend.low == legend.high else bar_size(small)
    row = round(small * 1.45)
    height = pad + round(big * 1.3) + row * (len(below) + len(alarms)) + bar_height + row * len(last) + pad
    paper = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(paper)
    text.write(draw, (pad, pad - big // 8), head + figure, big, fill=INK, bold=True)
    if in_head:
        at = width - pad - beside, pad + big - small - big // 8 + small // 12
        text.write(draw, at, caption.verdict, small, fill=FAINT)
    y = pad + round(big * 1.3)
    for line, colour in [*((line, FAINT) for line in below), *((line, ALARM) for line in alarms)]:
        text.write(draw, (pad, y), line, small, fill=colour)
        y += row
    if bar_height:
        bar(paper, (pad, y, width - pad), small, style, legend)
        y += bar_height
    for line in last:
        text.write(draw, (pad, y), line, small, fill=FAINT)
        y += row
    return paper


def sizes(width: int) -> tuple[int, int]:
    """Pixels of large and small type in a picture of this width."""
    big = min(30, max(14, round(width / 29)))
    return big, max(11, round(big * 0.74))


def bar_size(small: int) -> int:
    """How many pixels a colour bar takes in height, with its values in type of this size."""
    return round(small * 0.9) + round(small * 1.8) + 6


def bar(paper: Image.Image, at: tuple[int, int, int], small: int, style: Style, legend: Legend) -> None:
    """A colour bar on `paper` with its values below, zero marked. at: left, top, right; small: the type."""
    left, top, right = at
    tall, length = round(small * 0.9), right - left
    low, high = legend.span
    values = np.linspace(low, high, length)
    draw = ImageDraw.Draw(paper)
    top += 3
    line = Image.fromarray(np.repeat(_colours(values, style, legend.scale)[None], tall, axis=0))
    paper.paste(line, (left, top))
    draw.rectangle((left, top, right - 1, top + tall - 1), outline="#8a8a8a")
    y = top + tall + 4
    zero = left + round(-low / (high - low) * (length - 1)) if low <= 0 <= high else None
    labels = _labels(legend, (left, right), zero, small)
    for begin, label in labels:
        text.write(draw, (begin, y), label, small, fill=INK)
    if zero is not None:
        draw.line((zero, top - 3, zero, top + tall + 2), fill=INK, width=2 if small > 13 else 1)


def _labels(legend: Legend, ends: tuple[int, int], zero: int | None, small: int) -> list[tuple[int, str]]:
    """What stands below a bar, each with where it begins: the values of both ends, and zero at its mark.

    ends: left and right of the bar. zero: the place of its mark. small: the type. Where an end is near to
    zero it loses its words, not its value, and zero moves aside.
    """
    (left, right), (low, high) = ends, legend.span
    labels: list[tuple[int, str]] = []
    if low:
        value = "≤" * (legend.low < low) + shown(low)
        told = f"{value} {legend.words[0]}".strip() if low < 0 else value
        fits = zero is None or left + text.width(told, small) + small < zero
        labels.append((left, told if fits else value))
    if high:
        value = "≥" * (legend.high > high) + shown(high)
        told = f"{legend.words[1]} {value}".strip() if high > 0 else value
        fits = zero is None or zero + small < right - text.width(told, small)
        labels.append((right - text.width(told if fits else value, small), told if fits else value))
    if zero is not None:
        wide = text.width("0", small)
        first = max([left, *(left + text.width(told, small) + small for at, told in labels if at == left)])
        last = min([right, *(at - small for at, _ in labels if at != left)]) - wide
        if first <= last:
            labels.append((min(max(zero - wide // 2, first), last), "0"))
    return labels


def shown(value: float) -> str:
    """A value for people: three digits, and a true minus."""
    return f"{value:.3g}".replace("-", "−")


def _colours(values: Values, style: Style, scale: Scale) -> Values:
    """The colours of a bar as the picture has them, on grey, uint8 `[N, 3]`."""
    index = np.rint(scale.places(values) * 255).astype(int)
    if style.look == "spotlight":
        return np.repeat(looks.light(scale, style)[index][:, None], 3, axis=1)
    if style.look == "contour":
        found = np.full((len(values), 3), BLANK, dtype=np.uint8)
        wide = max(2, len(values) // 150)
        for level, colour in looks.contours(scale, style):
            place = int(np.abs(values - level).argmin())
            if values[0] <= level <= values[-1]:
                found[max(0, place - wide) : place + wide] = colour
        return found
    if style.look == "lesson":
        return np.asarray(looks.table(scale, style)[index])
    cover = looks.opacity(scale, style)[index][:, None] / 255
    colours = looks.table(scale, style)[index]
    return np.asarray((BLANK * (1 - cover) + colours * cover).round(), dtype=np.uint8)
