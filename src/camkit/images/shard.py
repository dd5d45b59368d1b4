"""Parts of the photographs, for several machines."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from camkit.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """The `part`-th of `count` parts of the photographs, counted from 1."""

    part: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """`I/N`; `UsageError` for anything else."""
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        part, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= part <= count:
            raise UsageError(f"--shard is I/N with I from 1 to N, such as 2/4, not {text!r}")
        return cls(part, count)

    def holds(self, name: str) -> bool:
        """Whether a photograph belongs to the part: by its name alone, so nobody has to count."""
        if self.count == 1:
            return True
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.part - 1
