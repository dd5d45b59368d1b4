"""The colours that the page has: camkit's own, and some of matplotlib."""

from __future__ import annotations

from camkit.plugin import colours

# Of matplotlib, for those who want one of these. The lesson's is magma.
NAMED = ("cividis", "magma", "viridis", "gray")


def tables() -> dict[str, list[list[int]]]:
    """256 colours each, from the lowest value to the highest; camkit's by what they show of a map."""
    found = colours.TABLES | {name: colours.table(name) for name in NAMED}
    return {name: table.tolist() for name, table in found.items()}
