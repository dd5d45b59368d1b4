"""What a model source is, and a classifier with what belongs to it."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from camkit.contracts.detections import Detections
from camkit.contracts.options import API_VERSION
from camkit.contracts.scores import ScoreKind, checked
from camkit.errors import ModelError
from camkit.images.preprocess import Preprocess

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

# Notes on what could make a map wrong: the variant of an architecture, what its photographs are like, and a
# layer that is the automatic one only for their size.
ASSUMED = ("variant", "shown", "layer")


@dataclass(frozen=True)
class LoadedModel:
    """A classifier together with what belongs to it.

    module: in eval mode, on the device it was loaded to.
    classes: names in the order of the model's outputs.
    default_layer: the layer specification that `layer="auto"` means for this model.
    architecture: what its source needs to build the module anew, JSON values only; `None` if it cannot
        be stored in a bundle. `architecture["source"]` is the name of the model source.
    scores: what the outputs are: `softmax`, `sigmoid`, `probabilities`, `none`, or `auto`, seen from
        their values; see `camkit.contracts.scores`.
    output: where the module returns a tuple or a dict, the index, key or name of the scores.
    detections: of a detector, what makes `Detections` of what the module returns, scores with their graph;
        the labels of boxes are indices of `classes` then.
    segments: of a segmentation, what makes scores of classes `[B, n_classes, h, w]` of what the module
        returns, with their graph.
    notes: what was found out about it and what was assumed, for people, by what it is about; those of
        `ASSUMED` could be wrong.
    unsaid: what the user has to say before it can be used, because nothing may be assumed: of more than
        three channels `mean` and `std`; `load_model` asks for it.
    """

    module: nn.Module
    classes: tuple[str, ...]
    preprocess: Preprocess
    name: str
    default_layer: str = "auto"
    architecture: Mapping[str, Any] | None = None
    scores: ScoreKind = "auto"
    output: str | int | Callable[[Any], Any] | None = None
    detections: Callable[[Any], Detections] | None = None
    segments: Callable[[Any], Tensor] | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checked(self.scores)

    def __repr__(self) -> str:
        classes = ", ".join(self.classes[:3]) + (", ..." if len(self.classes) > 3 else "")
        shown = self.preprocess
        margin = f" out of {shown.resize}" if shown.resize else ""
        return (
            f"LoadedModel {self.name!r}: {type(self.module).__name__} on {self.device}, {self.dtype}\n"
            f"  classes     {len(self.classes)}: {classes}\n"
            f"  shown       {shown.size[0]} x {shown.size[1]}{margin}, {shown.fit}, {shown.interpolation}\n"
            f"  normalised  mean {shown.mean}, std {shown.std}\n"
            f"  scores      {self.scores}; layer {self.default_layer}"
            + ("" if self.is_sure else f"\n  {self.note}")
        )

    @property
    def is_sure(self) -> bool:
        """Whether nothing is assumed that could make a map wrong."""
        return self.notes.keys().isdisjoint(ASSUMED)

    @property
    def note(self) -> str:
        """The notes in one line; empty if nothing was found out or assumed."""
        return "; ".join(self.notes.values())

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self._sample.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the floating-point parameters."""
        return self._sample.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> LoadedModel:
        """The same model moved and cast, in place as `nn.Module.to` is."""
        known = self.sha256  # a cast changes the bytes; the identity is that of the file
        self.module.to(device=device, dtype=dtype)
        self._know(known)
        return self

    @property
    def sha256(self) -> str:
        """Identity of the weights: over names, types, shapes and bytes of the state dict, in order.

        Found once, and again when a tensor was written into, as by a training, or is gone. One that was
        replaced, and that somebody still holds, is not noticed.
        """
        tensors, versions = vars(self).get("_kept", ((), None))
        if not tensors or _versions(tensors) != versions:
            self._know(self._digest())
        return str(vars(self)["_sha256"])

    def _know(self, sha256: str) -> None:
        """Take a hash for that of the weights as they are now."""
        tensors = [weakref.ref(t) for t in (*self.module.parameters(), *self.module.buffers())]
        vars(self).update(_sha256=sha256, _kept=(tensors, _versions(tensors)))

    def __getstate__(self) -> dict[str, Any]:
        """With the hash, which a copy of a cast model could not find again."""
        self.sha256  # noqa: B018
        return {name: value for name, value in vars(self).items() if name != "_kept"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The same in a copy, or another process."""
        vars(self).update(state)
        self._know(state["_sha256"])

    def _digest(self) -> str:
        import hashlib

        import torch

        digest = hashlib.sha256()
        for name, tensor in self.module.state_dict().items():
            if not isinstance(tensor, torch.Tensor):  # extra state of a module may be anything
                continue
            digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
            flat = tensor.detach().contiguous().cpu().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @property
    def _sample(self) -> Tensor:
        for parameter in self.module.parameters():
            if parameter.is_floating_point():
                return parameter
        raise ModelError(f"model {self.name!r} has no floating-point parameters")


def restated(model: LoadedModel, **changes: Any) -> LoadedModel:
    """`model` with other fields, which stands for the same weights: its identity stays."""
    made = replace(model, **changes)
    made._know(model.sha256)
    return made


def _versions(tensors: Sequence[weakref.ref[Tensor]]) -> int | None:
    """How often tensors were written into, in all; `None` if one is gone, or does not tell."""
    total = 0
    for reference in tensors:
        tensor = reference()
        if tensor is None:
            return None
        try:
            total += tensor._version
        except RuntimeError:  # of tensors that were made in inference mode
            return None
    return total


class ModelSource(ABC):
    """Loads models. Registered under `camkit.models`; the name is the scheme before the colon."""

    api_version: ClassVar[int] = API_VERSION
    summary: ClassVar[str]

    @abstractmethod
    def load(self, reference: str, *, device: torch.device, trust: bool) -> LoadedModel:
        """The model that `reference`, the text behind the scheme, names.

        trust: the user allowed pickles with `--trust-pickle`; without it nothing is ever unpickled.
        Raises `ModelError` if there is no such model, it cannot be read, or weights do not fit.
        """

    def with_classes(self, reference: str, classes: Sequence[str]) -> str:
        """`reference` with the classes that a user names, for a model that is told them as texts.

        What is returned stands by itself: `load` takes it, and manifests hold it. Models whose weights have
        classes stay as they are: theirs are only named anew. Raises what `load` raises.
        """
        return reference

    def with_texts(self, reference: str, texts: Sequence[str]) -> str:
        """`reference` with texts that photographs are compared with, word for word, as `with_classes`.

        The texts are its classes then. `reference` itself means that the model knows no texts.
        """
        return reference

    def as_encoder(self, reference: str) -> str:
        """`reference` of what returns embeddings `[B, d]`, for a model that needs to be told so.

        By default `reference` itself: of a classifier it is known what is below its last layer.
        """
        return reference

    def build(self, architecture: Mapping[str, Any]) -> nn.Module:
        """The module of a bundle, weights left as they come; `architecture` is from a stranger's file.

        Raises `ModelError` for an architecture that this source does not know.
        """
        raise ModelError(f"{type(self).__name__} does not build modules for bundles")

    def preprocess(self, architecture: Mapping[str, Any]) -> Preprocess:
        """What is usual for an architecture, for weights that do not say what they were trained with."""
        return Preprocess()

    def names(self) -> Iterable[str]:
        """The references it knows, for `camkit model list`."""
        return ()
