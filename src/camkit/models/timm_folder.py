"""A folder that timm wrote: `config.json` beside weights, as `save_for_hf` and `push_to_hf_hub` make it.

It gives the scores of `timm.create_model("local-dir:FOLDER", pretrained=True)` behind timm's own transform.
The folder may be a stranger's: its texts are checked, and its weights are read as tensors alone.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.contracts.scores import ScoreKind
from camkit.errors import UNPRINTABLE, ModelError, ModelNotFound, counted, typed_reason
from camkit.files import is_file
from camkit.images.preprocess import Preprocess
from camkit.models import labels
from camkit.models.building import imagenet_classes
from camkit.models.facts import USUAL, assumed, unsaid
from camkit.models.specs import LIBRARY_CONFIG, TIMM_WEIGHTS, no_timm_folder
from camkit.models.stranger_json import errors_of, read_json
from camkit.models.transforms import of_timm
from camkit.models.weights import built_for, put_weights, read_weights

WRAPPER = "timm_model."  # before the names of a network that transformers saved
# Labels that nobody knows by heart, and that come with descriptions: of WordNet and of OpenImages.
IDENTIFIER = re.compile(r"n\d{8}|/[a-z]/\w+")
HUB_NAME = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w./-]+))?", re.ASCII)
PROBLEMS: Mapping[Any, ScoreKind] = {"multi_label_classification": "sigmoid", "regression": "none"}
# Arguments that stand for another size than that of the configuration, or for none.
FLEXIBLE = {"dynamic_img_size": True, "strict_img_size": False, "use_naflex": True}
INPUT = (3, 224, 224)  # where a configuration says nothing
# What is no argument of a network, though timm's functions take it with those.
NOT_OF_A_NETWORK = ("features_only", "out_indices", "feature_cls", "pruned", "device", "dtype")


@dataclass(frozen=True)
class Config:
    """What `config.json` says.

    table: all of it. pretrained: what timm calls `pretrained_cfg`; older versions wrote it flat.
    """

    path: Path
    table: Mapping[str, Any]
    pretrained: Mapping[str, Any]

    def said(self, *names: str) -> Any:
        """What stands under the first of `names` that is there; the outer table comes first."""
        places = [(table, name) for table in (self.table, self.pretrained) for name in names]
        return next((table[name] for table, name in places if table.get(name) is not None), None)


def load(folder: Path, source: ModelSource, *, name: str, device: torch.device) -> LoadedModel:
    """The classifier in `folder`, whose network `source` builds.

    Raises `ModelNotFound` if a file is missing, and `ModelError` for whatever is wrong with one.
    """
    if missing := no_timm_folder(folder):
        raise ModelNotFound(missing)
    weights = next(folder / name for name in TIMM_WEIGHTS if is_file(folder / name))
    with errors_of(folder / LIBRARY_CONFIG):
        config = _read(folder)
        architecture = _architecture(config)
        classes, of_classes = _classes(config, architecture["num_classes"])
        preprocess, of_shown = _preprocess(config, architecture)
    state = {label.removeprefix(WRAPPER): tensor for label, tensor in read_weights(weights).items()}
    with errors_of(config.path), built_for(sum(tensor.nbytes for tensor in state.values())):
        module = source.build(architecture)
    put_weights(module, _of_today(module, state, weights), str(weights))
    notes = {"classes": of_classes, "shown": of_shown}
    return LoadedModel(
        module.to(device).eval(),
        classes,
        preprocess,
        name=name,
        architecture=architecture,
        scores=PROBLEMS.get(config.table.get("problem_type"), "auto"),
        notes={key: text for key, text in notes.items() if text},
        unsaid=unsaid(preprocess.channels) if "mean" in of_shown else (),
    )


def fetched(reference: str) -> Path:
    """The folder of `OWNER/NAME[@REVISION]` of the hub, in its cache; fetched once, if there is a network.

    Raises `ModelNotFound` for what is no such name, and `ModelError` if it is neither there nor fetched.
    """
    from huggingface_hub import hf_hub_download  # which timm brings, and fetches with
    from huggingface_hub.errors import EntryNotFoundError

    found = HUB_NAME.fullmatch(reference)
    if found is None:
        raise ModelNotFound(
            f"timm:hf-hub:{reference}: a name of the hub is OWNER/NAME, or OWNER/NAME@REVISION"
        )
    try:
        path = Path(hf_hub_download(found["name"], LIBRARY_CONFIG, revision=found["revision"]))
        for name in TIMM_WEIGHTS:
            try:
                hf_hub_download(found["name"], name, revision=found["revision"])
                break
            except EntryNotFoundError:
                continue
    # Whatever the hub client raises without a network, or for what is not there.
    except Exception as error:
        raise ModelError(
            f"timm:hf-hub:{reference} is not in the cache of the hub, and could not be fetched "
            f"({typed_reason(error)})"
        ) from None
    return path.parent


def arguments(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What `timm.create_model` gets beside the name, for an architecture that may be a stranger's.

    Only what shapes the network: nothing that would fetch, or open a file. Raises `ModelError`.
    """
    import timm
    from timm.models import build_model_with_cfg

    given = architecture.get("model_args", {})
    shaped = architecture.get("pretrained_cfg")
    if not isinstance(given, Mapping) or not isinstance(shaped, Mapping | None):
        raise ModelError("model_args and pretrained_cfg are tables")
    taken = {*inspect.signature(timm.create_model).parameters, *NOT_OF_A_NETWORK}
    taken |= inspect.signature(build_model_with_cfg).parameters.keys()
    if wrong := sorted(taken & given.keys()):
        raise ModelError(f"model_args has {', '.join(wrong)}, which is no argument of a network: refused")
    made = dict(given)
    if shaped is not None:
        made["pretrained_cfg"] = {
            "input_size": _input_size(shaped.get("input_size", INPUT)),
            "fixed_input_size": bool(shaped.get("fixed_input_size", False)),
        }
    return made


# --- the configuration ----------------------------------------------------------------------------


def _read(folder: Path) -> Config:
    table = read_json(folder / LIBRARY_CONFIG)
    if not isinstance(table, dict) or not isinstance(table.get("architecture"), str):
        kind = table.get("model_type") if isinstance(table, dict) else None
        more = f"; it is of transformers: --model hf:{folder}" if isinstance(kind, str) else ""
        raise ModelError(f"it names no architecture of timm{more}")
    pretrained = table.get("pretrained_cfg", table)
    if not isinstance(pretrained, dict):
        raise ModelError("pretrained_cfg is no table")
    return Config(folder / LIBRARY_CONFIG, table, pretrained)


def _architecture(config: Config) -> dict[str, Any]:
    """What the source timm builds the network from, and a bundle keeps: as timm reads the table."""
    count = config.said("num_classes")
    if count == 0:
        raise ModelError("the model has no classes (num_classes is 0): it makes features only")
    given = dict(config.table.get("model_args") or {})
    given.pop("num_classes", None)
    channels, *size = _input_size(config.pretrained.get("input_size") or INPUT)
    fixed = bool(config.pretrained.get("fixed_input_size", False))
    fixed = fixed and all(given.get(name) is not value for name, value in FLEXIBLE.items())
    if fixed and (side := given.get("img_size")):
        size = [side, side] if isinstance(side, int) else list(side)
    shape = _input_size([given.get("in_chans") or channels, *size])
    return {
        "source": "timm",
        "name": config.table["architecture"],
        "num_classes": 1000 if count is None else count,
        "pretrained_cfg": {"input_size": list(shape), "fixed_input_size": fixed},
        **({"model_args": given} if given else {}),
    }


def _input_size(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(type(n) is int for n in value):
        raise ModelError(f"input_size is [channels, height, width], not {value!r:.80}")
    channels, height, width = value
    if not (1 <= channels <= 1024 and 1 <= height <= 8192 and 1 <= width <= 8192):
        raise ModelError(f"input_size {value} is absurd")
    return channels, height, width


def _preprocess(config: Config, architecture: Mapping[str, Any]) -> tuple[Preprocess, str]:
    """What timm shows the model, and what of that is only assumed."""
    from timm.data.config import resolve_data_config

    shape = architecture["pretrained_cfg"]["input_size"]
    known = {**config.pretrained, "input_size": shape}
    fits = all(isinstance(known.get(key), list) and len(known[key]) == shape[0] for key in ("mean", "std"))
    if not fits and shape[0] in USUAL:
        known |= dict(zip(("mean", "std"), USUAL[shape[0]], strict=True))
    elif not fits:
        known |= {"mean": [0.0] * shape[0], "std": [1.0] * shape[0]}  # until they are said
    read = of_timm(resolve_data_config({}, known))  # type: ignore[no-untyped-call]
    said = [] if config.pretrained.get("input_size") is None else ["size"]
    return Preprocess.from_dict(read.to_dict()), assumed(read, [*said, *(["mean", "std"] if fits else [])])


def _classes(config: Config, count: int) -> tuple[tuple[str, ...], str]:
    """The names of the classes, and what is only assumed of them."""
    named = config.said("label_names", "labels")
    if named is None:
        return _unnamed(config, count)
    names = list(named.items()) if isinstance(named, dict) else list(enumerate(named))
    by_index = {int(index): name for index, name in names}
    if len(by_index) != count if isinstance(named, list) else not all(0 <= i < count for i in by_index):
        raise ModelError(
            f"label_names has {counted(len(by_index), 'name')}, but the model {counted(count, 'output')}"
        )
    described = config.said("label_descriptions")
    if isinstance(described, dict) and all(IDENTIFIER.fullmatch(str(name)) for name in by_index.values()):
        by_index = {index: described.get(name, name) for index, name in by_index.items()}
    for name in by_index.values():
        if not isinstance(name, str) or not name or UNPRINTABLE.search(name):
            raise ModelError(f"the class {name!a:.80} is no name that can be printed")
    numbered = labels.numbered(count)  # a table may have gaps
    return tuple(by_index.get(index, numbered[index]) for index in range(count)), ""


def _unnamed(config: Config, count: int) -> tuple[tuple[str, ...], str]:
    for where, names in labels.beside(config.path):
        if len(names) == count:
            return names, f"{counted(count, 'class', 'classes')} named in {where}"
    tag = str(config.pretrained.get("tag"))
    if count == 1000 and re.search(r"in1k(_\d+)?$", tag):
        return imagenet_classes(), f"the classes are taken for ImageNet's, by the tag {tag} (--classes)"
    return labels.numbered(count), f"{counted(count, 'class', 'classes')} without names: --classes"


# --- the weights ----------------------------------------------------------------------------------


def _of_today(module: nn.Module, state: dict[str, Tensor], weights: Path) -> dict[str, Tensor]:
    """The weights under the names of today: those of the hub may be older than the network."""
    rename = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if rename is None or state.keys() == module.state_dict().keys():
        return state
    try:
        renamed: dict[str, Tensor] = rename(state, module)
    # What does not fit is told by its names when it is loaded.
    except Exception:
        return state
    return renamed
