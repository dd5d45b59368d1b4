"""Texts in pictures: DejaVu Sans, which comes with matplotlib, or what the system has for other scripts."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import ImageDraw, ImageFont

from camkit.errors import CamkitError, printable

Font = ImageFont.FreeTypeFont
LATIN = 0x250  # below it the font has every sign

# Fonts of Chinese, Japanese and Korean by their files, the better first.
EASTERN = re.compile(
    r"NotoSansCJK|NotoSans(SC|TC|JP|KR)|SourceHanSans|PingFang|Hiragino|YuGoth|msyh|msgothic|meiryo|malgun|"
    r"wqy|DroidSansFallback|ipag|VL-?Gothic|TakaoGothic|NanumGothic|unifont|Arial ?Unicode",
    re.IGNORECASE,
)


def font(size: int, text: str = "", *, bold: bool = False) -> Font:
    """The font for a text, in pixels; signs that no font here has are drawn as boxes."""
    path = _own(bold)
    if any(ord(sign) >= LATIN for sign in text):
        missing = _missing(path, text)
        path = next((other for other in _eastern() if missing and not _missing(other, text)), path)
    return _opened(path, size)


def width(text: str, size: int, *, bold: bool = False) -> int:
    """How many pixels a text takes."""
    return round(font(size, text, bold=bold).getlength(text))


def shortened(text: str, size: int, room: int, *, bold: bool = False) -> str:
    """A text that fits into `room` pixels: its middle is left out if need be."""
    text = printable(text)
    if width(text, size, bold=bold) <= room:
        return text
    kept, most = 0, len(text)
    while kept < most:  # the largest number of signs that fits
        middle = (kept + most + 1) // 2
        if width(_cut(text, middle), size, bold=bold) <= room:
            kept = middle
        else:
            most = middle - 1
    return _cut(text, kept)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, **how: Any) -> None:
    """Write one line of text; at: left and top; how: `fill` and, of the font, `bold`."""
    draw.text(at, text, font=font(size, text, bold=how.pop("bold", False)), **how)


def lines(words: Iterable[str], size: int, room: int) -> list[str]:
    """Parts of a text, in as few lines as they need; a part that is too long is shortened."""
    found: list[str] = []
    for word in words:
        word = shortened(word, size, room)
        if found and width(f"{found[-1]} · {word}", size) <= room:
            found[-1] = f"{found[-1]} · {word}"
        else:
            found.append(word)
    return found


def _cut(text: str, kept: int) -> str:
    """A text of which so many signs are kept, from both ends."""
    end = kept // 2
    return f"{text[: kept - end]}…{text[len(text) - end :]}"


@cache
def _own(bold: bool) -> Path:
    found = find_spec("matplotlib")
    if found is None or found.origin is None:  # it is a dependency
        raise CamkitError("matplotlib, whose fonts pictures are written with, is not installed")
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return Path(found.origin).parent / "mpl-data" / "fonts" / "ttf" / name


@lru_cache(maxsize=64)
def _opened(path: Path, size: int) -> Font:
    # Without a layout library, which other machines may have and other versions set differently.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def _eastern() -> tuple[Path, ...]:
    """The fonts of the system that may have what DejaVu lacks."""
    from matplotlib.font_manager import findSystemFonts

    found = sorted(map(Path, findSystemFonts()))
    return tuple(path for path in found if EASTERN.search(path.name) and _signs(path))


@lru_cache(maxsize=512)
def _missing(path: Path, text: str) -> bool:
    """Whether a font lacks a sign of a text."""
    return not {ord(sign) for sign in text} <= _signs(path)


@cache
def _signs(path: Path) -> frozenset[int]:
    """The signs of a font; none of one that cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(str(path)).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()
