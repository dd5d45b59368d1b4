"""What the maps of a run are called, and what tells their files apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from camkit.explaining.answers import question
from camkit.explaining.explanation import Explanation
from camkit.explaining.naming import MAP, parts, slug
from camkit.registry import discovery, loading


@dataclass(frozen=True)
class Keys:
    """Keys of the results of one request.

    shared: the fields `request`, `model_spec` and `model_facts`, which all of its lines have. name_layers:
    whether the layer is part of the keys, as it is where one was asked for.
    """

    shared: Mapping[str, Any]
    name_layers: bool = False

    def of(self, result: Explanation) -> str:
        """Backend, method, class and box, and what else makes another map of it."""
        own = [slug(result.backend), slug(result.method), *result.slugs]
        return ".".join([*own, *parts(MAP, self.common([result]))])

    def answer(self, results: Sequence[Explanation]) -> int:
        """What a file of all results of a photograph tells."""
        return question(dict(self.shared) | {"image_sha256": results[0].photo.sha256}, "run")

    def common(self, results: Sequence[Explanation]) -> dict[str, Any]:
        """What the names of these results tell together."""
        layers = {result.layer for result in results}
        options = [
            (key, value)
            for result in results
            for key, value in result.options.items()
            if value != defaults(result.backend).get(key)
        ]
        return {
            "layout": results[0].layout,
            "layer": layers.pop() if self.name_layers and len(layers) == 1 else "",
            "model": self.shared["model_spec"] or MAP["model"].default,
            "options": dict(options),
            "dtype": str(results[0].model.dtype).removeprefix("torch."),
            "precision": results[0].precision,
        }


@cache
def defaults(backend: str) -> Mapping[str, Any]:
    """The options of a backend as they are if nobody says anything."""
    options: object = loading.load(discovery.get("explainer", backend)).Options()
    return vars(options)
