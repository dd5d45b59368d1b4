"""What is explained, in words: how many of what, their names, and what says nothing of them."""

from __future__ import annotations

from collections.abc import Sequence

from camkit.bench.results import (
    BOXES,
    MOSAICS,
    OF_CLASSES,
    PLACES,
    SEGMENTS,
    SHAPES,
    SceneFacts,
)
from camkit.errors import counted

NAMED = 6  # names that are shown in a line
# What a scene of the user's photographs has one of, and several, by its name; of others it is images.
NOUNS = {
    OF_CLASSES: ("photograph",),
    BOXES: ("box", "boxes"),
    SEGMENTS: ("segment",),
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


def truth(scene: SceneFacts) -> str:
    """For how many of them it is known where they are, and how much that is."""
    if not scene.with_truth:
        return "without truth"
    known = "where the model found them is the truth" if scene.name in PLACES else ""
    covers = f", which covers {scene.truth_share:.0%}: the level of chance" if scene.truth_share else ""
    return f"{known or f'truth for {scene.with_truth}'}{covers}"


def of_shapes(scenes: Sequence[SceneFacts]) -> str:
    """Why drawn shapes are explained, too; nothing if none are."""
    if not any(scene.name == SHAPES for scene in scenes):
        return ""
    place = any(scene.name == SEGMENTS for scene in scenes)
    unknown = "of a place it is not known what belongs to it" if place else "nobody marked it (--truth)"
    return f"{unknown}, so that was measured on drawn shapes, with a small network trained on them"


def lines(scenes: Sequence[SceneFacts]) -> list[str]:
    """What a terminal says of it; nothing of one class of each photograph whose truth is known."""
    found = []
    for scene in scenes:
        found += [f"explained: {things(scene)}: {named}"] if (named := names(scene)) else []
        if scene.name in PLACES and scene.with_truth:
            found.append(
                f"POINTING and ENERGY tell whether a map lies in the {scene.name} that the model found, "
                "not whether these are right"
            )
        found += [f"of {scene.name}: {why}"] if (why := left_out(scene)) else []
    if why := of_shapes(scenes):
        found.append(f"whether maps point at the object (POINTING, ENERGY): {why}")
    return found
