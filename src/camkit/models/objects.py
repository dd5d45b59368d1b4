"""Models that exist already: a module, a fastai `Learner`, a Hugging Face model, a `YOLO`.

Which library an object is of is told by the names of its classes, so that none is imported for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.core.layers import example_inputs
from camkit.core.scored import classifier, selected
from camkit.errors import CamkitError, ModelError, counted, typed_reason
from camkit.images.prepared import PreparedInputs
from camkit.images.preprocess import Preprocess
from camkit.models import labels, recognition, torchvision_detection, torchvision_segmentation
from camkit.models.checkpoint import Checkpoint
from camkit.models.facts import ModelFacts, assumed, assumed_scores, prepared, unsaid
from camkit.models.fastai_export import from_learner
from camkit.models.fastai_pickle import read_learner
from camkit.models.transforms import as_preprocess
from camkit.registry import loading


def from_object(
    made: Any,
    *,
    name: str = "",
    preprocess: Any = None,
    output: Any = None,
    facts: ModelFacts | None = None,
    inputs: tuple[int, int, int] | None = None,
) -> LoadedModel:
    """A classifier from what a library or the user has made, on the device where it is.

    preprocess: what it is shown, see `as_preprocess`; needed where the object does not say it.
    output: where it returns a tuple or a dict, the index, key or name of the scores. facts: what else the
    user says of it; `None` where that is not known yet: then a model that names no classes has none either,
    as it takes photographs of the right size to count them. inputs: `[C, H, W]` of prepared tensors.
    Raises `ModelError` for what is no model, and `UsageError` if something is missing.
    """
    given = None if preprocess is None else as_preprocess(preprocess)
    called = name or type(made).__name__
    if _is_of(made, LEARNER):  # whose transforms need not be read
        model = from_learner(made, called, given)
    else:
        kind = next((make for library, make in KINDS.items() if _is_of(made, library)), _module)
        model = kind(made, called)
    if given is not None:
        model = _showing(model, given)
    if inputs is not None:
        known = "shown" not in model.notes
        model = _showing(model, PreparedInputs.like(model.preprocess, inputs, known=known))
    if output is not None:
        model = replace(model, output=output)
    if facts is None:
        return model
    if not model.classes:
        model = _counted(model, facts)
    model = facts.apply(model)
    if "scores" not in model.notes or model.scores != "auto":
        return model
    what = "photograph" if model.segments is None else "place"
    notes = {"scores": assumed_scores(len(model.classes), what)}  # nobody has said what they mean either
    if not labels.named(model.classes):
        notes["classes"] = f"{counted(len(model.classes), 'class', 'classes')} without names: --classes"
    return replace(model, notes={**model.notes, **notes})


def _counted(model: LoadedModel, facts: ModelFacts) -> LoadedModel:
    """A model whose outputs have numbers for names; with a score for each place it is a segmentation."""
    looked_at, count = replace(model, preprocess=facts.shown(model)), len(facts.classes or ())
    try:
        found, is_dense = _outputs(looked_at)
    except ModelError:
        if not count:
            raise
        found, is_dense = count, False  # what is wrong is told where it is used
    model = replace(model, classes=labels.numbered(count or found))
    if not is_dense:
        return model
    told = f"it returns {counted(found, 'score')} for each place and is taken for a segmentation"
    notes = {**model.notes, "segments": told}
    return replace(model, segments=partial(selected, output=model.output), notes=notes)


def _showing(model: LoadedModel, preprocess: Preprocess) -> LoadedModel:
    """A model of which it is known what it is shown."""
    notes = {name: text for name, text in model.notes.items() if name != "shown"}
    return replace(model, preprocess=preprocess, notes=notes, unsaid=())


def load_export(path: Path, device: torch.device, *, trust: bool) -> LoadedModel:
    """The model of a file of fastai's `learn.export()`, a pickle; see `read_learner`."""
    learner = read_learner(path, trust=trust)
    try:
        model = from_object(learner, name=f"fastai:{path}")
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    model.module.to(device).eval()
    return model


def _module(made: Any, name: str) -> LoadedModel:
    """Any `nn.Module`: what it is shown is that of timm, if it is of timm, or else what is usual."""
    if not isinstance(made, nn.Module):
        raise ModelError(f"a model is a torch.nn.Module or a camkit model, not {type(made).__name__}")
    module = getattr(made, "_orig_mod", made)  # behind torch.compile, where hooks fire
    config = getattr(module, "pretrained_cfg", None)
    known = as_preprocess(config) if isinstance(config, dict) and "input_size" in config else None
    usual = known or _usual(module)
    shown = prepared(usual, {"channels": _channels(module, usual.size)})
    sure = known is not None and shown == known
    # What its outputs mean nobody has said either; which depends on how many there are.
    notes = {} if sure else {"shown": f"{name}: {assumed(shown)}", "scores": assumed_scores(0)}
    open_ones = () if sure else unsaid(shown.channels)
    return LoadedModel(module, _own_classes(module), shown, name, notes=notes, unsaid=open_ones)


def _usual(module: nn.Module) -> Preprocess:
    """What is usual for the architecture, if its tensors tell it, or else for any."""
    state = {name: t for name, t in module.state_dict().items() if isinstance(t, torch.Tensor)}
    checkpoint = Checkpoint(Path(type(module).__name__), state)
    try:
        scheme, _, name = (
            recognition.architecture_of(checkpoint).name.removeprefix("fastai:").rpartition(":")
        )
        source: ModelSource = loading.make("model", scheme)
        return source.preprocess({"name": name})
    except CamkitError:  # it is of none, or of several
        return Preprocess()


def _channels(module: nn.Module, size: tuple[int, int]) -> int:
    """Of the photographs: those of the first convolution, unless pixels are laid out anew before it."""
    first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
    count = 3 if first is None else first.in_channels
    if count in (1, 3):
        return count
    try:
        _scores(module, module, Preprocess(size, mean=(0.0,) * count, std=(1.0,) * count))
    # It takes others, or photographs of another size, which is told where it is used.
    except Exception:
        return 3
    return count


def _transformers(made: Any, name: str) -> LoadedModel:
    """A Hugging Face model: its configuration names the classes; its processor is another object."""
    if made.config.model_type in ("clip", "siglip") and "Classification" not in type(made).__name__:
        raise ModelError(
            f"a {type(made).__name__} needs its tokenizer to be told classes: save_pretrained() model, "
            "image processor and tokenizer into a folder, and give hf:FOLDER with classes="
        )
    names = labels.of_value(getattr(made.config, "id2label", None))
    problem = str(getattr(made.config, "problem_type", ""))
    scores: Any = {"multi_label_classification": "sigmoid", "regression": "none"}.get(problem, "softmax")
    notes = {"shown": f"{name}: {assumed(Preprocess())}; or preprocess=processor"}
    return LoadedModel(made, names or (), Preprocess(), name, scores=scores, output="logits", notes=notes)


def _yolo(made: Any, name: str) -> LoadedModel:
    """Ultralytics' `YOLO` of the task `classify`."""
    if made.task != "classify" or not isinstance(made.model, nn.Module):
        raise ModelError(
            f"a YOLO for {made.task!r} is no classifier: use one of -cls (yolo:FILE takes detectors)"
        )
    return _yolo_network(made.model, name)


def _yolo_network(module: Any, name: str) -> LoadedModel:
    """The network of a `YOLO`; it is shown pixels in [0, 1]."""
    names = labels.of_value(getattr(module, "names", None))
    settings = getattr(module, "args", None) or {}
    known = settings if isinstance(settings, dict) else vars(settings)
    side = known.get("imgsz", 224) if isinstance(known.get("imgsz", 224), int) else 224
    shown = Preprocess(size=(side, side), resize=side, mean=(0.0,) * 3, std=(1.0,) * 3)
    # In evaluation it returns probabilities and logits.
    return LoadedModel(module, names or (), shown, name, scores="softmax", output=1)


def _torchvision_segmentation(made: Any, name: str) -> LoadedModel:
    """A segmentation of torchvision."""
    return torchvision_segmentation.from_module(made, name, _own_classes(made) or ())


def _torchvision_detector(made: Any, name: str) -> LoadedModel:
    """A detector of torchvision, whose parts the model shares."""
    return torchvision_detection.from_module(made, name, _own_classes(made) or ())


LEARNER = "fastai.learner.Learner"
KINDS: dict[str, Callable[[Any, str], LoadedModel]] = {
    "camkit.contracts.model.LoadedModel": lambda made, name: made,
    "transformers.modeling_utils.PreTrainedModel": _transformers,
    "ultralytics.engine.model.Model": _yolo,
    **dict.fromkeys(torchvision_detection.KINDS, _torchvision_detector),
    **dict.fromkeys(torchvision_segmentation.KINDS, _torchvision_segmentation),
    "ultralytics.nn.tasks.ClassificationModel": _yolo_network,
}


def _is_of(made: Any, kind: str) -> bool:
    return any(f"{cls.__module__}.{cls.__qualname__}" == kind for cls in type(made).__mro__)


def _own_classes(module: nn.Module) -> tuple[str, ...]:
    """The names that a module of the user's keeps itself, as Lightning's do in their settings."""
    for holder in (module, getattr(module, "hparams", None)):
        for key in labels.KEYS:
            found = holder.get(key) if isinstance(holder, dict) else getattr(holder, key, None)
            if names := labels.of_value(found):
                return names
    return ()


def _kind(returned: Any) -> str:
    """What is no scores, and how to say which part of it are."""
    if isinstance(returned, torch.Tensor):
        return f"{list(returned.shape)}, not scores [B, n]: say output= with a function that takes them out"
    by_number = isinstance(returned, list | tuple)
    named = dict(enumerate(returned)) if by_number else getattr(returned, "__dict__", {})
    named = returned if isinstance(returned, dict) else named
    of_scores = (key for key, value in named.items() if isinstance(value, torch.Tensor) and value.ndim == 2)
    key: Any = next(of_scores, next(iter(named), "KEY"))
    parts = f" ({', '.join(map(str, list(named)[:5]))})" if named and not by_number else ""
    return (
        f"a {type(returned).__name__}{parts}, not scores [B, n]: say --output {key}, or whichever it is "
        f"(output={key!r} in Python; a function of FILE.py: camkit.load_model(module, output={key!r}))"
    )


def _outputs(model: LoadedModel) -> tuple[int, bool]:
    """How many scores the model returns, and whether for each place, `[B, n, h, w]`."""
    module = classifier(model)
    try:
        scores = _scores(module, model.module, model.preprocess)
    except CamkitError:
        raise
    # Whatever a model says to a photograph of a size that it does not take.
    except Exception as error:
        height, width = model.preprocess.size
        raise ModelError(
            f"{model.name} cannot take photographs of {height} x {width} and "
            f"{counted(model.preprocess.channels, 'channel')} (say size=, channels= or preprocess= to "
            f"camkit.load_model; --size, --channels): {typed_reason(error)}"
        ) from None
    is_dense = isinstance(scores, torch.Tensor) and scores.ndim == 4
    if not is_dense and (not isinstance(scores, torch.Tensor) or scores.ndim != 2):
        raise ModelError(f"{model.name} returns {_kind(scores)}")
    return int(scores.shape[1]), is_dense


def _scores(module: nn.Module, inner: nn.Module, shown: Preprocess) -> Any:
    """What `module` says to noise; `inner`, whose mode is restored, is the network in it."""
    like = next((p for p in inner.parameters() if p.is_floating_point()), None)
    if like is None:
        raise ModelError(f"{type(inner).__name__} has no floating-point parameters")
    training = {part: part.training for part in inner.modules()}
    try:
        inner.eval()
        with torch.no_grad():
            return module(example_inputs(shown.size, like, shown.channels))
    finally:
        for part, mode in training.items():
            part.training = mode
