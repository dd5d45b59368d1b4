"""Whether the maps of all classes are cheap enough for one answer.

Behind a global mean and a linear layer a thousand classes cost little more than one. In the middle of a
transformer each costs a backward pass. That is measured, not guessed from the architecture.
"""

from __future__ import annotations

FEW = 10  # classes that are explained instead
AT_ONCE_SECONDS, AT_ONCE_FORWARDS = 0.6, 3.0  # the larger of the two is what all may cost
TRY_SECONDS, TRY_FORWARDS = 5.0, 25.0  # a guess; it is too high by the start of each pass
AT_ONCE_VALUES = 2**18  # of half a megabyte

Key = tuple[str, str, str]  # backend, method, layer


class Pace:
    """What explaining costs with one model, whose forward takes `forward` seconds."""

    def __init__(self, forward: float) -> None:
        self._forward = forward
        self._guessed: dict[Key, float] = {}
        self._measured: dict[Key, float] = {}

    def all_at_once(self, key: Key) -> bool:
        """Whether all classes should be asked for."""
        if key in self._measured:
            return self._measured[key] <= max(AT_ONCE_SECONDS, AT_ONCE_FORWARDS * self._forward)
        return self._guessed.get(key, float("inf")) <= max(TRY_SECONDS, TRY_FORWARDS * self._forward)

    def note(self, key: Key, seconds: float, explained: int, classes: int, cells: int) -> None:
        """That `explained` of the `classes` took so long; cells: of a map."""
        if classes * cells > AT_ONCE_VALUES:
            self._measured[key] = float("inf")
        elif explained == classes:
            self._measured[key] = min(seconds, self._measured.get(key, seconds))
        elif explained >= FEW:
            self._guessed[key] = max(0.0, seconds - self._forward) / explained * classes
