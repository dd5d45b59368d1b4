"""From a request to the model that it names, and what is computed with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from camkit.contracts.model import LoadedModel
from camkit.explaining import score_targets
from camkit.explaining.manifest_lines import request_id
from camkit.explaining.plan import Plan, plan
from camkit.explaining.request import ExplainRequest
from camkit.files import digest_of
from camkit.images import workers
from camkit.models.facts import ModelFacts
from camkit.models.identity import identity
from camkit.models.loading import as_encoder, load_quietly, with_classes, with_texts


@dataclass(frozen=True)
class Planned:
    """What a request comes to.

    spec: of the model, with the classes or texts that it is told. work: what is computed. id: the same for
    two requests with the same results for the same photographs.
    """

    spec: str
    work: Plan
    id: str


def planned(
    request: ExplainRequest, device: str | None = None, read: score_targets.Read = workers.read
) -> Planned:
    """The model of a request and what is computed with it; raises what `load_model` and `plan` raise.

    device: in place of the one that is asked for. read: how photographs are read that others are compared
    with.
    """
    spec, model, targets = asked_model(
        request.model,
        texts=request.texts,
        like=request.like,
        targets=request.targets,
        facts=request.facts,
        read=read,
        device=device or request.device,
        dtype=request.dtype,
        trust_pickle=request.trust_pickle,
    )
    work = plan(targets.model, functions=targets.functions, **request.of_plan())
    asked = request_id(
        work,
        [*request.classes, *targets.told],
        model=identity(model, spec),
        style=request.style,
        format=request.format,
        image_format=request.image_format,
        truth=digest_of(Path(request.truth)) if request.truth else None,
    )
    return Planned(spec, work, asked)


def asked_model(
    spec: str,
    *,
    texts: Sequence[str] = (),
    like: Sequence[str] = (),
    targets: Sequence[str] = (),
    facts: ModelFacts | None = None,
    read: score_targets.Read = workers.read,
    **load: Any,
) -> tuple[str, LoadedModel, score_targets.ScoreTargets]:
    """The specification of a model with all that it is told, the model, and the functions to explain.

    What computes these is the model in them. load: device, dtype, ... of `load_model`.
    """
    facts = facts or ModelFacts()
    spec = with_classes(spec, None if texts else facts.classes)
    if texts:
        spec = with_texts(spec, texts)
    if like:
        spec = as_encoder(spec)
    model = load_quietly(spec, **load, **facts.said())
    return spec, model, score_targets.named(model, targets, like, read)
