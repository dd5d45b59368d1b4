"""What is said of a picture: below it, in its line of the manifest, and in the table of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from camkit.contracts.scores import figure
from camkit.drawing import evidence
from camkit.drawing.caption import Caption
from camkit.drawing.style import Style
from camkit.errors import PluginError
from camkit.explaining import boxes
from camkit.registry import discovery, loading

# What is said of a picture that cannot say it itself: of a map that speaks for a class; of another.
REMARKS: dict[evidence.Remark, tuple[str, str]] = {
    "constant": ("the map is constant, it says nothing",) * 2,
    "nothing for": ("nothing speaks for {it}", "no value is positive"),
    "nothing against": ("nothing speaks against {it}", "no value is negative"),
    "least against": (
        "nothing speaks for {it}, brightest is least against it",
        "no value is positive, brightest is least negative",
    ),
}


def remarks(map: Tensor, style: Style, backend: str, method: str, it: str = "it") -> tuple[str, ...]:
    """What has to be said of the picture of a map, in words of the method: one remark or none.

    it: what the class is called.
    """
    found = evidence.remark(map, style)
    if found is None:
        return ()
    return (REMARKS[found][not speaks(backend, method)].format(it=it),)


def knows_class(backend: str, method: str) -> bool:
    """Whether a method explains a class; of a backend that is not installed here, no method is said to."""
    try:
        return method not in loading.load(discovery.get("explainer", backend)).class_agnostic
    except PluginError:
        return False


def speaks(backend: str, method: str) -> bool:
    """Whether the values of a method speak for a class or against it."""
    if not knows_class(backend, method):
        return False
    return method not in loading.load(discovery.get("explainer", backend)).unsigned


def caption(facts: Mapping[str, Any], map: Tensor, style: Style) -> Caption:
    """What stands below the picture of a map. facts: the fields of its line, or of its `Explanation`."""
    name, backend, method = (str(facts[key]) for key in ("class_name", "backend", "method"))
    by = "" if backend == "native" else f" by {backend}"
    return Caption(
        name=name,
        figure=figure(facts["probability"], facts["logit"]),
        verdict=_verdict(facts),
        how=(
            f"{method}{by}",
            *([f"layer {facts['layer']}"] if facts["layer"] else []),
            str(facts["model"]),
        ),
        remarks=remarks(map, style, backend, method, name),
        speaks=speaks(backend, method),
    )


def _verdict(facts: Mapping[str, Any]) -> str:
    """Whether the class is predicted, and what is, if not; "" of what is no class. Of a box, which one."""
    if box := facts["box"]:
        return boxes.which(box)
    if facts["class_index"] is None:  # a function of the scores
        return ""
    if facts["class_index"] == facts["predicted_index"] or facts["class_name"] in (
        facts["predicted"] or ()
    ):
        return "predicted"
    said = facts["predicted_name"]
    return "not predicted" if said is None else f"not predicted: the model says {said}"
