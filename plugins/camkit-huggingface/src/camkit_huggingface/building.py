"""Networks of transformers from their configuration alone, as bundles hold it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import nn

from camkit.errors import ModelError, typed_reason
from camkit_huggingface.modules import Classifier, PromptClassifier
from camkit_huggingface.quiet import quiet

# What a bundle says elsewhere, or what says where a model came from.
ELSEWHERE = ("id2label", "label2id", "_name_or_path", "dtype", "transformers_version")


def architecture(config: Any, count: int, **more: Any) -> dict[str, Any]:
    """What `build` needs for a model of this configuration, as JSON values."""
    told = json.loads(config.to_json_string(use_diff=True))
    kept = {name: value for name, value in told.items() if name not in ELSEWHERE}
    return {"source": "hf", "config": kept, "num_classes": count, **more}


def build(architecture: Mapping[str, Any]) -> nn.Module:
    """The module of `architecture`, which may be a stranger's; `ModelError` for one that is none.

    With `prompts`, the shape `[n_classes, d]` of their embeddings, it is the image side of CLIP or SigLIP.
    """
    told, count, prompts = (architecture.get(name) for name in ("config", "num_classes", "prompts"))
    if not isinstance(told, Mapping) or not isinstance(told.get("model_type"), str):
        raise ModelError("there is no configuration of transformers with a model_type")
    if not isinstance(count, int) or not 1 <= count <= 100_000:
        raise ModelError(f"architecture needs 1 to 100000 num_classes, not {count!r}")
    if told["model_type"] == "timm_wrapper" and ":" in str(told.get("architecture")):
        raise ModelError(f"{told['architecture']!r} is no architecture of timm")  # it could be an address
    facts = {name: value for name, value in told.items() if name not in ("model_type", "auto_map")}
    with quiet():
        try:
            if prompts is not None:
                return _prompted(told["model_type"], facts, prompts)
            config = transformers.AutoConfig.for_model(told["model_type"], **facts, num_labels=count)
            config.architectures = config.architectures or []  # of which kind, where a type has several
            auto = transformers.AutoModelForImageClassification
            return Classifier(_made(auto, config), bool(architecture.get("flip")))
        except ModelError:
            raise
        # Whatever transformers raises for a configuration that is none of its own.
        except Exception as error:
            raise ModelError(f"transformers builds no such model: {typed_reason(error)}") from None


def _prompted(kind: str, facts: dict[str, Any], prompts: Any) -> nn.Module:
    if not (isinstance(prompts, list) and len(prompts) == 2 and all(isinstance(n, int) for n in prompts)):
        raise ModelError(f"prompts {prompts!r:.80} are no shape [classes, d]")
    # The side of the texts has done its work: it is built as small as can be, and taken away.
    text = {**facts.get("text_config", {}), "num_hidden_layers": 0, "vocab_size": 1}
    config = transformers.AutoConfig.for_model(kind, **{**facts, "text_config": text})
    model = _made(transformers.AutoModelForZeroShotImageClassification, config)
    return PromptClassifier(model, torch.zeros(prompts))


def _made(auto: Any, config: Any) -> Any:
    return auto.from_config(config, attn_implementation="eager", trust_remote_code=False).float().eval()
