"""What is explained, in words: how many of what, their names, and what says nothing of them."""

from __future__ import annotations

from collections.abc import Iterable

from camkit.bench.results import MOSAICS, OF_CLASSES, SceneFacts
from camkit.errors import counted

NAMED = 6  # names that are shown in a line
# What a scene of the user's photographs has one of, and several, by its name; of others it is images.
NOUNS = {
    OF_CLASSES: ("photograph",),
    "boxes": ("box", "boxes"),
    "segments": ("segment",),
    "targets": ("target",),
}


def things(scene: SceneFacts) -> str:
    """How many there are of what is explained: `2 photographs`, `3 boxes of 2 photographs`."""
    if scene.name == MOSAICS:
        return f"{counted(scene.images, 'cell')} of {counted(scene.independent, 'mosaic')}"
    several = scene.independent < scene.images
    noun = (
        ("class", "classes") if several and scene.name == OF_CLASSES else NOUNS.get(scene.name, ("image",))
    )
    own = counted(scene.images, *noun)
    return f"{own} of {counted(scene.independent, 'photograph')}" if several else own


def names(scene: SceneFacts) -> str:
    """The first names of what is explained; none where it is one class of each photograph."""
    if scene.name not in NOUNS or (scene.name == OF_CLASSES and scene.independent == scene.images):
        return ""
    every = list(dict.fromkeys(scene.names))
    more = f" and {len(every) - NAMED} more" if len(every) > NAMED else ""
    return "; ".join(every[:NAMED]) + more


def left_out(scene: SceneFacts) -> str:
    """Which metrics are left out as they say nothing of what is explained, and why, if any are."""
    return scene.remark or "" if scene.name in NOUNS else ""


def lines(scenes: Iterable[SceneFacts]) -> list[str]:
    """What a terminal says of it; nothing where it is one class of each photograph."""
    found = []
    for scene in scenes:
        found += [f"explained: {things(scene)}: {named}"] if (named := names(scene)) else []
        found += [f"of {scene.name}: {why}"] if (why := left_out(scene)) else []
    return found
