"""From a request to the model that it names, and what is computed with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from camkit.explaining import score_targets
from camkit.explaining.manifest_lines import request_id
from camkit.explaining.plan import Plan, plan
from camkit.explaining.request import ExplainRequest
from camkit.images import workers
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
    spec = with_classes(request.model, None if request.texts else request.facts.classes)
    if request.texts:
        spec = with_texts(spec, request.texts)
    if request.like:
        spec = as_encoder(spec)
    model = load_quietly(
        spec,
        device=device or request.device,
        dtype=request.dtype,
        trust_pickle=request.trust_pickle,
        **request.facts.said(),
    )
    targets = score_targets.named(model, request.targets, request.like, read)
    work = plan(targets.model, functions=targets.functions, **request.of_plan())
    asked = request_id(
        replace(work, model=model),
        [*request.classes, *targets.told],
        style=request.style,
        format=request.format,
        image_format=request.image_format,
        truth=request.truth,
    )
    return Planned(spec, work, asked)
