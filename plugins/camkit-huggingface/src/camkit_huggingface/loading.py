"""A folder of transformers, or a model of the hub, as a `LoadedModel`."""

from __future__ import annotations

import pickle
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import torch
import transformers
from torch import nn

from camkit.errors import ModelError, ModelNotFound, UsageError, typed_reason
from camkit.plugin import LoadedModel, Preprocess
from camkit_huggingface import detectors
from camkit_huggingface.building import architecture
from camkit_huggingface.class_names import names_beside, numbered
from camkit_huggingface.detectors import Detector
from camkit_huggingface.modules import PROMPT, Classifier, Encoder, PromptClassifier, embedded
from camkit_huggingface.processor import shown
from camkit_huggingface.quiet import quiet

# Models that are told the classes as texts, and what their scores are.
PROMPTED: Mapping[str, Any] = {"clip": "softmax", "siglip": "sigmoid"}
# What is made of the logits, by `problem_type`; of all others it is a softmax.
PROBLEMS: Mapping[str | None, Any] = {"multi_label_classification": "sigmoid", "regression": "none"}
# Before what is told in a reference: names of classes, or texts as they are.
CLASSES, TEXTS = "?classes=", "?texts="
EMBEDDING = "?embedding"  # behind a reference: without classes
UNKNOWN_CODE = "whose code comes with it, which camkit never runs"


class Place(NamedTuple):
    """Where a model is: a folder, or a name of the hub with its revision; said: as the user wrote it."""

    name: str
    revision: str | None
    said: str

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one."""
        return Path(self.name) if self.revision is None and Path(self.name).is_dir() else None

    def fetched(self, load: Callable[..., Any], what: str, **options: Any) -> Any:
        """What a `from_pretrained` returns for this place; one line for whatever it raises."""
        revision = {} if self.revision is None else {"revision": self.revision}
        try:
            return load(self.name, trust_remote_code=False, **revision, **options)
        except pickle.UnpicklingError:
            raise ModelError(
                f"hf:{self.said}: {what} hold more than tensors, or are damaged: refused; "
                "save them as safetensors"
            ) from None
        # Whatever transformers, its hub client and damaged files raise.
        except Exception as error:
            why = f"hf:{self.said}: {what} cannot be loaded: {typed_reason(error)}"
            raise ModelError(why) from None


def load(reference: str, device: torch.device) -> LoadedModel:
    """The model that `reference` names, as `HuggingFaceSource.load` says."""
    encodes = reference.endswith(EMBEDDING)
    path, asked, wanted = _split(reference.removesuffix(EMBEDDING))
    place = _place(path)
    with quiet():
        config = _config(place)
        for kind, make in OTHER_TASKS.items():
            if any(kind in name for name in config.architectures or ()):
                if encodes:
                    raise ModelError(
                        f"hf:{path} has no embedding of a photograph to compare: leave out --like"
                    )
                return make(place, config, f"hf:{reference}", device)
        made = _prompted if _is_prompted(config) else _classifier
        made = _encoder if encodes else made
        if asked and (made is _classifier or not wanted):
            why = "its weights have classes" if wanted else f"there is nothing behind {asked}"
            raise ModelError(f"hf:{path}: {why}; {asked}cat,dog is for CLIP and SigLIP")
        _check_processor(place, config)
        processor = place.fetched(transformers.AutoImageProcessor.from_pretrained, "its image processor")
        try:
            preprocess, flip = shown(processor)
        except ModelError as error:
            raise ModelError(f"hf:{path}: {error}") from None
        prompt = "{}" if asked == TEXTS else PROMPT
        module, classes, scores = made(place, config, wanted, flip, prompt)
        prompts = getattr(module, "camkit_prompts", None)
        more = {"flip": flip} if prompts is None else {"prompts": list(prompts.shape)}
        if encodes:
            with torch.inference_mode():
                found = module.eval()(torch.zeros(1, 3, *preprocess.size))
            classes = tuple(f"embedding_{i}" for i in range(found.shape[1]))
    return LoadedModel(
        module.to(device).eval(),
        classes,
        preprocess,
        name=f"hf:{reference}",
        scores=scores,
        architecture=None if encodes else architecture(config, len(classes), **more),
    )


def as_encoder(reference: str) -> str:
    """`reference` with `?embedding`, if it has no classes; see `ModelSource.as_encoder`."""
    path, asked, _ = _split(reference)
    if asked or reference.endswith(EMBEDDING):
        return reference
    with quiet():
        config = _config(_place(path))
    return f"{path}{EMBEDDING}" if _is_prompted(config) or not _has_head(config) else reference


def with_classes(reference: str, classes: Sequence[str]) -> str:
    """`reference` with `?classes=`, if its model is told them as texts; see `ModelSource.with_classes`."""
    return _told(reference, CLASSES, classes)


def with_texts(reference: str, texts: Sequence[str]) -> str:
    """`reference` with `?texts=`, likewise; see `ModelSource.with_texts`."""
    return _told(reference, TEXTS, texts)


def _told(reference: str, kind: str, texts: Sequence[str]) -> str:
    path, asked, wanted = _split(reference)
    with quiet():
        if not _is_prompted(_config(_place(path))):
            return reference
    if not asked:
        return f"{path}{kind}{','.join(text.replace('%', '%25').replace(',', '%2C') for text in texts)}"
    if (asked, wanted) != (kind, tuple(texts)):
        option = "--classes (or classes=)" if kind == CLASSES else "--text"
        raise UsageError(f"hf:{path} is told its classes twice: by {asked}, and by {option}")
    return reference


def _split(reference: str) -> tuple[str, str, tuple[str, ...]]:
    """The place in a reference, what it tells, `CLASSES` or `TEXTS`, and these; a comma in one is `%2C`."""
    kind = TEXTS if TEXTS in reference else CLASSES
    path, asked, listed = reference.partition(kind)
    return path, asked, tuple(unquote(text.strip()) for text in listed.split(",") if text.strip())


def _place(path: str) -> Place:
    folder = Path(path).expanduser()
    if path and folder.is_dir():
        return Place(str(folder), None, path)
    name, at, revision = path.partition("@")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name, re.ASCII) or (at and not revision):
        raise ModelNotFound(f"hf:{path}: there is no folder {path!r}, and a name of the hub is OWNER/NAME")
    return Place(name, revision or "main", path)


def _config(place: Place) -> Any:
    """The configuration; `ModelError` if there is none, or if it names code to run."""
    from transformers.utils import cached_file

    folder = place.folder
    if folder is not None and not (folder / "config.json").is_file():
        raise ModelError(f"{folder} is no folder of transformers: config.json is missing")
    if folder is None:
        _reached(place, cached_file)
    raw, _ = place.fetched(transformers.PreTrainedConfig.get_config_dict, "its config.json")
    if raw.get("auto_map"):
        raise ModelError(f"hf:{place.said} is a model {UNKNOWN_CODE} (auto_map in config.json)")
    if "model_type" not in raw and "architecture" in raw:
        spec = shlex.quote(f"timm:{place.said}" if folder is not None else f"timm:hf-hub:{place.said}")
        raise ModelError(f"hf:{place.said} is a model of timm's, not of transformers': --model {spec}")
    return place.fetched(transformers.AutoConfig.from_pretrained, "its config.json")


def _reached(place: Place, fetch: Callable[..., Any]) -> None:
    """`ModelError` if the hub does not have `place`, or cannot be asked and it is not in the cache."""
    try:
        fetch(place.name, "config.json", revision=place.revision)
    # Whatever the hub client raises.
    except Exception as error:
        raise ModelError(
            f"hf:{place.said} is no folder, is not in the cache of the hub, and could not be fetched "
            f"({typed_reason(error)})"
        ) from None


def _check_processor(place: Place, config: Any) -> None:
    """`ModelError` if a folder does not say how photographs are shown; timm's models say it elsewhere."""
    folder = place.folder
    files = ("preprocessor_config.json", "processor_config.json")
    if folder is None or config.model_type == "timm_wrapper" or any((folder / f).is_file() for f in files):
        return
    raise ModelError(
        f"{folder} does not say how photographs are shown: preprocessor_config.json is missing "
        "(image_processor.save_pretrained writes it)"
    )


def _is_prompted(config: Any) -> bool:
    """Whether the classes are given as texts, by the class that the weights were saved from."""
    return not _has_head(config) and config.model_type in PROMPTED


def _has_head(config: Any) -> bool:
    """Whether the weights were saved from a classifier, as far as it is said."""
    saved = config.architectures or ["ForImageClassification"]
    return any("ForImageClassification" in name for name in saved)


def _classifier(
    place: Place, config: Any, _: tuple[str, ...], flip: bool, __: str
) -> tuple[nn.Module, tuple[str, ...], Any]:
    if not _has_head(config):
        kind = ", ".join(config.architectures)
        raise ModelError(
            f"hf:{place.said} is a {kind}, which has embeddings and no classes: ask with --like PHOTOGRAPH"
        )
    if type(config) not in transformers.AutoModelForImageClassification._model_mapping:
        kind = ", ".join(config.architectures or [config.model_type])
        raise ModelError(
            f"hf:{place.said} is a {kind}, and transformers has no image classifier of that kind"
        )
    if getattr(config, "num_channels", 3) != 3:
        raise ModelError(f"hf:{place.said} wants {config.num_channels} channels; camkit shows it three")
    model = _weights(place, transformers.AutoModelForImageClassification, config)
    names = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    classes = tuple(names.get(i, f"LABEL_{i}") for i in range(config.num_labels))
    if numbered(classes) and place.folder is not None:
        beside = names_beside(place.folder)
        classes = beside if beside and len(beside) == len(classes) else classes
    return Classifier(model, flip), classes, PROBLEMS.get(config.problem_type, "softmax")


def _encoder(
    place: Place, config: Any, _: tuple[str, ...], flip: bool, __: str
) -> tuple[nn.Module, tuple[str, ...], Any]:
    prompted = config.model_type in PROMPTED
    auto = transformers.AutoModelForZeroShotImageClassification if prompted else transformers.AutoModel
    model = _weights(place, auto, config, part="" if prompted else "pooler")
    return Encoder(model, flip), (), "none"


def _of_task(
    place: Place,
    config: Any,
    name: str,
    auto: Any,
    task: str,
    shown: Callable[[Any], tuple[Preprocess, bool]],
) -> tuple[Any, tuple[str, ...], Preprocess, bool]:
    """The network of another task, its classes, and what it is shown, as `shown` says."""
    if type(config) not in auto._model_mapping:
        raise ModelError(f"{name} is a {config.model_type}, of which transformers has no {task}")
    _check_processor(place, config)
    processor = place.fetched(transformers.AutoImageProcessor.from_pretrained, "its image processor")
    names = {int(index): str(called) for index, called in (config.id2label or {}).items()}
    classes = tuple(names.get(i, f"LABEL_{i}") for i in range(config.num_labels))
    try:
        preprocess, flip = shown(processor)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    return _weights(place, auto, config), classes, preprocess, flip


def _detector(place: Place, config: Any, name: str, device: torch.device) -> LoadedModel:
    """A `...ForObjectDetection`, whose boxes are explained."""
    auto = transformers.AutoModelForObjectDetection
    network, classes, preprocess, flip = _of_task(place, config, name, auto, "detector", detectors.shown)
    module = Detector(network, flip).eval()
    try:
        layer = detectors.layer(module, preprocess.size)
    except ModelError as error:
        raise ModelError(f"{name}: {error}") from None
    read = detectors.Reader(len(classes))
    more: dict[str, Any] = {"default_layer": layer, "detections": read}
    return LoadedModel(module.to(device), classes, preprocess, name, **more)


def _segmentation(place: Place, config: Any, name: str, device: torch.device) -> LoadedModel:
    """A `...ForSemanticSegmentation`, whose segments are explained."""
    auto = transformers.AutoModelForSemanticSegmentation
    network, classes, preprocess, flip = _of_task(place, config, name, auto, "segmentation", shown)
    module = Classifier(network, flip).eval()
    # One label is learnt by itself: transformers takes binary cross-entropy for it.
    scores: Any = "sigmoid" if len(classes) == 1 else "softmax"
    return LoadedModel(module.to(device), classes, preprocess, name, segments=_dense, scores=scores)


def _dense(returned: Any) -> Any:
    """The scores of all classes at all places, which are all that it returns."""
    return returned


# Other tasks than classification, by what their classes are called.
OTHER_TASKS: Mapping[str, Callable[..., LoadedModel]] = {
    "ForObjectDetection": _detector,
    "ForSemanticSegmentation": _segmentation,
}


def _prompted(
    place: Place, config: Any, wanted: tuple[str, ...], flip: bool, prompt: str
) -> tuple[nn.Module, tuple[str, ...], Any]:
    beside = names_beside(place.folder) if place.folder is not None else ()
    classes = wanted or beside
    if not classes or flip:
        raise ModelError(
            f"hf:{place.said} needs texts to tell apart: --text 'a cat' --text 'a dog', or --classes "
            "cat,dog (classes= in Python), or a line each in classes.txt in its folder"
        )
    model = _weights(place, transformers.AutoModelForZeroShotImageClassification, config)
    tokenizer = place.fetched(transformers.AutoTokenizer.from_pretrained, "its tokenizer")
    module = PromptClassifier(model, embedded(model, tokenizer, [prompt.format(name) for name in classes]))
    # Of one text alone the softmax is always 1: what is left is how similar it is.
    only = len(classes) == 1 and PROMPTED[config.model_type] == "softmax"
    return module, classes, "none" if only else PROMPTED[config.model_type]


def _weights(place: Place, auto: Any, config: Any, part: str = "") -> Any:
    """The model in float32, from safetensors or from `.bin` without unpickling objects.

    part: of the model, which becomes `None` if it has no weights.
    """
    model, told = place.fetched(
        auto.from_pretrained,
        "its weights",
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",  # no kernels of other packages
        weights_only=True,
        ignore_mismatched_sizes=True,  # they are told below, in one line
        output_loading_info=True,
    )
    missing = sorted(told["missing_keys"])
    if part and missing and all(name.startswith(f"{part}.") for name in missing):
        setattr(model, part, None)
        missing = []
    problems = [f"{name} is missing" for name in missing]
    problems += [
        f"{name} is {list(shape)}, expected {list(own)}" for name, shape, own in told["mismatched_keys"]
    ]
    if problems:
        kind = type(model).__name__
        raise ModelError(f"hf:{place.said}: its weights are not of a {kind}: {problems[0]}")
    return model.eval()
