"""Which architectures of torchvision and timm a state dict belongs to, by names and shapes alone.

`signatures.tsv` has a row for each architecture; `python -m tests.signatures` writes it. Nothing is built
here: a look-up takes some milliseconds.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

TABLE = Path(__file__).with_name("signatures.tsv")

Shapes = Mapping[str, Sequence[int]]

# What a file may have or not, whatever its architecture: counters, and tables that are computed.
COMPUTED = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask)$")
# Tables of positions depend on the size of the photographs.
POSITIONS = re.compile(r"(^|\.)pos_embed(ding)?$")
# Names of the first convolution, whose channels are those of the photographs.
STEMS = re.compile(
    r"^(conv1|conv1\.0|conv_stem|features\.0|features\.0\.0|features\.conv0|stem\.\d|stem\.conv\d?|stem\.0\.\w+"
    r"|0(\.0){1,3}|conv_proj|patch_embed\.proj|patch_embed\.conv1|Conv2d_1a_3x3\.conv)\.weight$"
)


@dataclass(frozen=True)
class Signature:
    """A row of the table.

    name: `timm:resnet18`. heads: dotted names of the modules that make the scores, the main one first.
    body, head: fingerprints of the tensors outside and inside the children that hold `heads`.
    positions: shapes of its tables of positions. same_as: the first architecture of the table that
    computes the same from the same tensors; often its own name. published: whether its library has
    weights for it, from which people begin. shown: of those that share a `same_as`, what their library
    shows them, for people.
    """

    name: str
    heads: tuple[str, ...]
    body: str
    head: str
    positions: str
    same_as: str
    published: bool = True
    shown: str = ""

    @property
    def tops(self) -> frozenset[str]:
        """The children of the model that hold its heads."""
        return frozenset(head.split(".")[0] for head in self.heads)


@cache
def table() -> tuple[Signature, ...]:
    """Every row, torchvision's first."""
    rows = []
    for line in TABLE.read_text(encoding="utf-8").splitlines()[1:]:
        name, heads, body, head, positions, same_as, published, shown = line.split("\t")
        known = (body, head, positions, same_as or name, published == "yes", shown)
        rows.append(Signature(name, tuple(heads.split(",")), *known))
    return tuple(rows)


@cache
def _by_tops() -> Mapping[frozenset[str], Mapping[str, tuple[Signature, ...]]]:
    """Rows by the children that hold their heads, and by the fingerprint of their body."""
    found: dict[frozenset[str], dict[str, tuple[Signature, ...]]] = {}
    for row in table():
        rows = found.setdefault(row.tops, {})
        rows[row.body] = (*rows.get(row.body, ()), row)
    return found


def signature(name: str, shapes: Shapes, heads: Sequence[str], *, published: bool = True) -> Signature:
    """The row of an architecture with these tensors."""
    row = Signature(name, tuple(heads), "", "", _positions(shapes), name, published)
    return replace(row, body=_body(shapes, row.tops), head=_head(shapes, row))


def matches(shapes: Shapes) -> list[Signature]:
    """The architectures whose tensors these are, but for what is changed for other classes and photographs.

    Those that also have this head, and these tables of positions, come alone where there are any.
    """
    found = [row for tops, rows in _by_tops().items() for row in rows.get(_body(shapes, tops), ())]
    found = [row for row in found if row.head == _head(shapes, row)] or found
    found = [row for row in found if row.positions == _positions(shapes)] or found
    return sorted(found, key=table().index)


def _body(shapes: Shapes, tops: Iterable[str]) -> str:
    inside = tuple(f"{top}." for top in tops)
    rows = []
    for name, shape in shapes.items():
        if name.startswith(inside) or COMPUTED.search(name) or POSITIONS.search(name):
            continue
        shown = [shape[0], "*", *shape[2:]] if STEMS.search(name) and len(shape) > 1 else shape
        rows.append(f"{name} {'x'.join(map(str, shown))}")
    return _digest(rows)


def _head(shapes: Shapes, row: Signature) -> str:
    """Of the children with the heads, but for helper heads, which a model may have dropped."""
    top, made = row.heads[0].split(".")[0], f"{row.heads[0]}."
    rows = []
    for name, shape in shapes.items():
        if name.startswith(f"{top}.") and not COMPUTED.search(name):
            shown = ["*", *shape[1:]] if name.startswith(made) else shape
            rows.append(f"{name} {'x'.join(map(str, shown))}")
    return _digest(rows)


def _positions(shapes: Shapes) -> str:
    names = sorted(name for name in shapes if POSITIONS.search(name))
    return " ".join("x".join(map(str, shapes[name])) for name in names)


def _digest(rows: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()[:12]
