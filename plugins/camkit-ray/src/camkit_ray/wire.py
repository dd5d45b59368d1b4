"""Parts, outcomes and errors as JSON, so that nothing that travels can run code."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from camkit import errors
from camkit.errors import CamkitError
from camkit.plugin import Outcome, Part, Photograph


def of_part(part: Part) -> str:
    """A part as text; names that are no UTF-8 stay what they are."""
    return json.dumps(asdict(part))


def part_of(text: str) -> Part:
    """The part in a text."""
    return _part(json.loads(text))


def of_outcome(outcome: Outcome) -> str:
    """An outcome as text."""
    return json.dumps({"outcome": asdict(outcome)})


def of_error(error: CamkitError) -> str:
    """An error that ends a run as text."""
    return json.dumps({"error": [type(error).__name__, str(error)]})


def is_error(text: str) -> bool:
    """Whether a text is an error."""
    return text.startswith('{"error"')


def outcome_of(text: str) -> Outcome:
    """The outcome in a text; raises the error that it is instead."""
    found = json.loads(text)
    if "error" in found:
        kind, message = found["error"]
        made = getattr(errors, kind, CamkitError)
        raise (
            made(message)
            if isinstance(made, type) and issubclass(made, CamkitError)
            else CamkitError(message)
        )
    told = found["outcome"]
    failed = tuple((image, why) for image, why in told["failed"])
    return Outcome(_part(told["part"]), told["rows"], failed, tuple(told["warnings"]))


def _part(told: Any) -> Part:
    photographs = tuple(Photograph(**one) for one in told["photographs"])
    return Part(told["number"], told["id"], photographs, tuple(told["marks"]), tuple(told["keys"]))
