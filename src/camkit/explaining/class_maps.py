"""The maps of many classes of one photograph, with the scores of the forward that they explain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from camkit.contracts.model import LoadedModel
from camkit.core.call_types import Call
from camkit.core.run_explainer import run
from camkit.drawing import evidence
from camkit.errors import MapError, UsageError
from camkit.explaining.plan import plan
from camkit.explaining.prediction import Prediction, predictions


@dataclass(frozen=True)
class ClassMaps:
    """Maps of several classes, and what the model says.

    maps: raw, float32 `[T, h, w]`, on the CPU; classes: the index of each, without repetition.
    layer: its full dotted name. prediction: of all classes, from the forward that was explained.
    shared: whether the method knows no class, so that its map is the same for all of them.
    remarks: by class index, what has to be said of its map.
    """

    maps: Tensor
    classes: tuple[int, ...]
    layer: str
    prediction: Prediction
    shared: bool
    remarks: dict[int, tuple[str, ...]]


def explain_classes(
    model: LoadedModel,
    inputs: Tensor,
    *,
    classes: Sequence[str | int] = ("all",),
    backend: str = "native",
    method: str = "gradcam",
    layer: str = "auto",
    frozen: bool = True,
) -> ClassMaps:
    """Explain one photograph, `[1, C, H, W]` as `model.preprocess` makes it, for several classes.

    classes: names, indices, `pred`, `top:K` or `all`. frozen: as in `camkit.maps`.
    Raises what `camkit.explain` raises; `MapError` if a map or a score is NaN or infinite.
    """
    work = plan(model, classes=classes, backends=[backend], methods=[method], layer=layer)
    if work.boxes is not None:
        raise UsageError(f"{model.name} has boxes or segments in place of classes (`camkit explain --box`)")
    if len(work.layers) > 1:
        raise UsageError(f"layer {layer!r} means several layers ({', '.join(work.layers)}): name one")
    if inputs.shape[:1] != (1,):
        raise UsageError(f"inputs must be those of one photograph, [1, C, H, W], not {list(inputs.shape)}")
    explainer, name = work.backends[0].explainer, work.layers[0]
    call = Call(output=model.output, frozen=frozen)
    answer = run(explainer, backend, model.module, inputs, [name], [method], work.selector, call=call)
    columns = {index: column for column, index in reversed(list(enumerate(answer.targets[0].tolist())))}
    wanted = sorted(columns, key=lambda index: columns[index])
    maps = answer.maps[method, name][0, [columns[index] for index in wanted]].float().cpu()
    (found,) = predictions(model, answer.scores.float().cpu(), inputs)
    evidence.check_finite(maps)
    if not bool(torch.isfinite(found.logits + found.likely).all()):
        raise MapError("a score of the model is NaN or infinite (try --dtype float32)")
    remarks = {
        index: tuple(r.text for r in answer.remarks if bool(r.concerned[0, columns[index]]))
        for index in wanted
    }
    return ClassMaps(maps, tuple(wanted), name, found, method in explainer.class_agnostic, remarks)
