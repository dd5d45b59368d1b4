"""TIFF files that Pillow reads otherwise than they say, told by their tags: refused, or scaled rightly.

Tags are those of TIFF 6.0 (1992) and its supplements; `image` is one that Pillow has opened.
"""

from __future__ import annotations

from PIL import Image

from camkit.errors import ImageError

KIND, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, PLANAR, PARTS, SIGNS = 254, 258, 259, 262, 277, 284, 330, 339
REDUCED = 1  # a bit of the kind: a smaller picture of another one in the file
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1
UNCOMPRESSED = 1
SEPARATE = 2  # one channel after the other
UNSIGNED = 1


def check(image: Image.Image, name: str) -> None:
    """`ImageError` for a file whose pixels would come out as something else; other formats pass."""
    if image.format != "TIFF":
        return
    bits, samples = max(_tag(image, BITS, 1)), _tag(image, SAMPLES, 1)[0]
    separate = samples > 1 and _tag(image, PLANAR, 1)[0] == SEPARATE
    raw = _tag(image, COMPRESSION, UNCOMPRESSED)[0] == UNCOMPRESSED
    grey = _tag(image, PHOTOMETRIC, BLACK_IS_ZERO)[0] in (WHITE_IS_ZERO, BLACK_IS_ZERO)
    refused = {
        "begins with a preview, as raw files of cameras do, and the photograph itself lies behind it: "
        "convert it": bool(_tag(image, KIND, 0)[0] & REDUCED) and _holds_more(image),
        f"has {bits} bits in channels that lie one after the other: save it with channels side by side, or "
        "with 8 bits": separate and bits > 8 and raw,
        f"has {samples} channels of grey, of which some would not be read: save it as RGB, or as an array "
        "(.npy)": grey and samples > len(image.getbands()),
        "has signed values, and it is not known which is white: save it with unsigned ones": any(
            sign == 2 for sign in _tag(image, SIGNS, UNSIGNED)
        ),
        "has whole numbers of 32 bits, and it is not known which is white: save it with 8 or 16 bits": (
            image.mode == "I" and bits > 16
        ),
    }
    for why in (why for why, is_so in refused.items() if is_so):
        raise ImageError(f"{name} {why}")


def _holds_more(image: Image.Image) -> bool:
    return getattr(image, "n_frames", 1) > 1 or PARTS in getattr(image, "tag_v2", {})


def grey_scale(image: Image.Image) -> tuple[int, int]:
    """The values of black and of white in 16-bit grey; 0 and 65,535 of other formats.

    Pillow gives the values of 12 bits as they are, and does not turn round those of which 0 is white.
    """
    if image.format != "TIFF":
        return 0, 65535
    top = 2 ** min(16, max(_tag(image, BITS, 16))) - 1
    return (top, 0) if _tag(image, PHOTOMETRIC, BLACK_IS_ZERO)[0] == WHITE_IS_ZERO else (0, top)


def _tag(image: Image.Image, tag: int, default: int) -> tuple[int, ...]:
    """The whole numbers of a tag, or `default`, which stands for one that is not there or is odd."""
    found = getattr(image, "tag_v2", {}).get(tag, default)
    values = found if isinstance(found, tuple) else (found,)
    return values if values and all(isinstance(value, int) for value in values) else (default,)
