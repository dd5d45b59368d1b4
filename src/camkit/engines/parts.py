"""The parts of a listing: so many photographs together, with an id that stays the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from camkit.contracts.engine import Part, Photograph
from camkit.images.listing import Listed, Listing


@dataclass(frozen=True)
class Parts:
    """The parts of a listing, without those that are done; each time it is iterated over the same.

    size: photographs of a part; request: what is asked for. done: ids of parts whose file is there. known:
    sorted fingerprints of photographs that are done in other parts, as of a listing that has changed since.
    """

    listing: Listing
    size: int
    request: str
    done: frozenset[str] = frozenset()
    known: Any = None

    def __iter__(self) -> Iterator[Part]:
        for number, photographs in enumerate(self.groups()):
            part = self.part(number, photographs)
            if part.id in self.done:
                continue
            if self.known is not None and len(self.known):
                photographs = [one for one in photographs if not self._is_known(one.fingerprint)]
                if not photographs:
                    continue
                part = self.part(number, photographs)
            yield part

    def groups(self) -> Iterator[list[Listed]]:
        """The listing, so many at once."""
        photographs = iter(self.listing)
        while group := list(islice(photographs, self.size)):
            yield group

    def part(self, number: int, photographs: Sequence[Listed]) -> Part:
        """The part of these photographs."""
        digest = hashlib.sha256(self.request.encode())
        for one in photographs:
            digest.update(one.fingerprint.to_bytes(8, "big"))
        own = tuple(Photograph(one.path, one.name) for one in photographs)
        marks = tuple(one.fingerprint for one in photographs)
        keys = tuple(one.key for one in photographs)
        return Part(number, digest.hexdigest()[:16], own, marks, keys)

    def without(self, done: Iterable[str], known: Any = None) -> Parts:
        """The same without what is done."""
        return replace(self, done=frozenset(done), known=known)

    def _is_known(self, fingerprint: int) -> bool:
        place = int(np.searchsorted(self.known, np.uint64(fingerprint)))
        return place < len(self.known) and int(self.known[place]) == fingerprint
