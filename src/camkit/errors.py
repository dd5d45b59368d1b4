"""Everything camkit raises on purpose.

CamkitError                 exit code
├── UsageError              2   a wrong value in a call or on the command line
│   ├── OptionError         2   an option of a plugin: unknown, wrong type, out of range
│   ├── TargetError         2   a class that the model does not have, or a wrong kind of target
│   └── LayerError          2   no such layer, or a layer that cannot carry a map
├── PluginError             1
│   ├── PluginNotFound      2   no plugin of that name
│   ├── AmbiguousPlugin     2   two packages offer the name
│   └── BrokenPlugin        1   found, but it cannot be loaded or keeps no promise
├── ModelError              1   a model that cannot be read, built or run
│   └── ModelNotFound       2   no model, bundle folder or weights file of that name
├── ImageError              1   an image that cannot be decoded safely
└── MapError                1   a map that says nothing: NaN or infinite values

Messages say what was wrong with which value and what to do, in one or two lines. `CamkitWarning` is
the category of every warning camkit gives.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterable
from types import FrameType

# Messages repeat names that strangers chose. Control characters can harm a terminal; direction marks and
# zero-width characters make a text look like another; lone surrogates (bytes of a name that is not UTF-8)
# cannot be written at all. Except for emoji variants these are all that Unicode calls ignorable.
_INVISIBLE = (
    *(0xAD, 0x34F, 0x61C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFEFF, 0xFFA0),
    *range(0x180B, 0x1810),
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFFF9, 0xFFFC),
    *range(0x1BCA0, 0x1BCA4),
    *range(0x1D173, 0x1D17B),
    *range(0xE0000, 0xE0080),
)
ESCAPES = {
    code: ascii(chr(code))[1:-1]
    for code in (*range(0x20), *range(0x7F, 0xA0), *_INVISIBLE, *range(0xD800, 0xE000))
    if chr(code) != "\n"
}
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # in no name that camkit writes


def printable(text: str) -> str:
    """One line of valid UTF-8 in which a terminal shows what is there, whoever wrote `text`."""
    return text.translate(ESCAPES).replace("\n", "\\n")


class CamkitError(Exception):
    """Base of all errors that camkit raises; `exit_code` is what the command line returns."""

    exit_code = 1

    def __str__(self) -> str:
        return super().__str__().translate(ESCAPES)


class UsageError(CamkitError):
    """A wrong value in a call or on the command line."""

    exit_code = 2


class OptionError(UsageError):
    """An option of a plugin is unknown, of the wrong type or out of range."""


class TargetError(UsageError):
    """A target class that the model does not have, or a target of the wrong kind or length."""


class LayerError(UsageError):
    """A layer that does not exist, did not run, ran twice, or whose output is no feature map."""


class PluginError(CamkitError):
    """Something is wrong with a plugin."""


class PluginNotFound(PluginError):
    """No installed package offers a plugin of that name."""

    exit_code = 2


class AmbiguousPlugin(PluginError):
    """Several packages offer a plugin of that name."""

    exit_code = 2


class BrokenPlugin(PluginError):
    """A plugin was found but cannot be used."""


class ModelError(CamkitError):
    """A model cannot be found, read, built or run."""


class ModelNotFound(ModelError):
    """There is no model, bundle folder or weights file of that name."""

    exit_code = 2


class ImageError(CamkitError):
    """An image file cannot be decoded, or is refused for safety."""


class MapError(CamkitError):
    """A map holds NaN or infinite values, so no picture of it would be true."""


class CamkitWarning(UserWarning):
    """Something worked, but not as one would expect."""


def warn(text: str, category: type[Warning] = CamkitWarning) -> None:
    """Warn at the line that called camkit, however deep in it the reason was found."""
    frame: FrameType | None = sys._getframe()
    depth = outermost = 0
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] == "camkit":
            outermost = depth
        frame, depth = frame.f_back, depth + 1
    warnings.warn(text, category, stacklevel=outermost + 2)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: "1 class", "2 classes"."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"


def closest(word: str, known: Iterable[str], count: int = 3) -> str:
    """A half-sentence with the known names nearest to `word`: "; did you mean 'a' or 'b'?" or ""."""
    import difflib  # only for messages

    folded = {name.casefold(): name for name in known}
    word = word.casefold()
    # A name that contains the word, as `tiger cat` contains `cat`, is what was meant.
    near = [name for name in folded if len(word) > 2 and word in re.split(r"[\W_]+", name)][:count]
    near = near or difflib.get_close_matches(word, folded, n=count)
    return f"; did you mean {' or '.join(repr(folded[key]) for key in near)}?" if near else ""


def reason(error: BaseException) -> str:
    """What an error says, in one line of at most 200 characters."""
    text = error.strerror if isinstance(error, OSError) else None
    text = text or str(error).strip() or type(error).__name__
    return str(text).splitlines()[0][:200]


def typed_reason(error: BaseException) -> str:
    """`reason` after the class of the error: for messages that were not written for users."""
    said = reason(error)
    if isinstance(error, OSError) and error.filename is not None:
        said = f"{said}: {error.filename}"
    name = type(error).__name__
    return name if said == name else f"{name}: {said}"
