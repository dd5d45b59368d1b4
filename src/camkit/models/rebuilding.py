"""The architecture of a network that is there: told by its tensors, and proved by what it computes.

An export of fastai, a pickled module or what a function of the user's returns is built by code that no
bundle holds. Where torchvision, timm or `vision_learner` have that network, camkit can build it, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from camkit.contracts.model import LoadedModel, ModelSource
from camkit.core import hooks
from camkit.core.scored import classifier
from camkit.errors import CamkitError, ModelError, PluginError, typed_reason
from camkit.models import recognition
from camkit.models.checkpoint import Checkpoint
from camkit.models.recognition import Fitted
from camkit.models.signatures import Signature
from camkit.models.weights import put_weights
from camkit.registry import loading

# How far the scores may be from those of the network itself, relative to their norm: that of another order
# of the same sums in float32.
TOLERANCE = 1e-4


def rebuilt(model: LoadedModel) -> LoadedModel:
    """`model` with a network that its `architecture` builds: one of a library, with the same scores.

    Raises `ModelError` if no library has such a network, or only others with the same tensors.
    """
    why: list[str] = []
    for fitted in _fitting(model):
        architecture = fitted.architecture
        try:
            source: ModelSource = loading.make("model", architecture["source"])
            module = source.build(architecture).to(model.device, model.dtype).eval()
            put_weights(module, fitted.state, model.name)
        except (ModelError, PluginError) as error:
            why.append(str(error))
            continue
        if _agree(model, module):
            layer = model.default_layer if model.default_layer in dict(module.named_modules()) else "auto"
            return replace(
                model, module=module, architecture=architecture, default_layer=layer, output=None
            )
        built = architecture.get("backbone", architecture)
        name = f"{built['source']}:{built.get('name', type(model.module).__name__)}"
        why.append(f"it has the tensors of {name}, but computes something else with them")
    raise ModelError(why[0] if why else "torchvision, timm and fastai's vision_learner have none like it")


def check(model: LoadedModel) -> None:
    """`ModelError` if its `architecture` no longer builds it: it was changed after it was loaded."""
    architecture = dict(model.architecture or {})
    try:
        source: ModelSource = loading.make("model", str(architecture.get("source")))
    except PluginError:  # who loads the bundle will be told
        return
    module = source.build(architecture).to(model.device, model.dtype).eval()
    put_weights(module, model.module.state_dict(), model.name)
    with hooks.as_it_was(model.module, model.device):
        if not _agree(model, module):
            raise ModelError(
                f"no bundle holds {model.name}: it was changed after it was loaded, and what its "
                "architecture builds says something else with its weights"
            )


def _fitting(model: LoadedModel) -> Iterator[Fitted]:
    """The networks that its tensors may belong to, the likely ones first."""
    state = {name: t for name, t in model.module.state_dict().items() if isinstance(t, Tensor)}
    config: Any = getattr(model.module, "config", None)
    if hasattr(config, "model_type"):  # of transformers
        told = {**json.loads(config.to_json_string()), "architectures": [type(model.module).__name__]}
        facts = {"source": "hf", "config": told, "num_classes": len(model.classes)}
        yield Fitted(facts, {f"model.{name}": t for name, t in state.items()})
    checkpoint = Checkpoint(Path(model.name), state)
    fastai: Any = loading.make("model", "fastai")
    rows: list[Signature] = []
    with suppress(ModelError):  # they are of none
        rows = recognition.matches(checkpoint)
    for name in dict.fromkeys(row.name if row.name.startswith("fastai:") else row.same_as for row in rows):
        with suppress(ModelError):  # its head is none that can be told
            if name.startswith("fastai:"):
                backbone, where = name.removeprefix("fastai:"), str(checkpoint.path)
                architecture = fastai.architecture(backbone, checkpoint.state, where)
                yield Fitted(architecture, dict(checkpoint.state))
            else:
                yield recognition.fit(name, checkpoint)


def _agree(model: LoadedModel, module: nn.Module) -> bool:
    """Whether both say the same of noise; `ModelError` where the model itself says nothing."""
    own = classifier(model).eval()
    output = None if model.architecture is None else model.output
    again = classifier(replace(model, module=module, output=output))
    shape = (2, model.preprocess.channels, *model.preprocess.size)
    for seed, draw in enumerate((torch.randn, torch.rand)):
        inputs = draw(shape, generator=torch.Generator().manual_seed(seed)).to(model.device, model.dtype)
        with torch.no_grad():
            try:
                wanted = own(inputs.clone()).double()
            except CamkitError:
                raise
            # Whatever a network says to a photograph that it does not take.
            except Exception as error:
                raise ModelError(f"{model.name} cannot be asked: {typed_reason(error)}") from None
            try:
                found = again(inputs).double()
            except Exception:
                return False
        if found.shape != wanted.shape or (found - wanted).norm() > TOLERANCE * wanted.norm():
            return False
    return True
