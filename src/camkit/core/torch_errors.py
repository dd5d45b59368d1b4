"""Causes: from what torch raises to what is wrong with the model, the inputs or the layer.

Torch names the operation that failed; a user wants to know what to change. Facts that can be checked
(devices, types, missing weights) come before words. What a user's own code raises is left alone.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from camkit.core import devices
from camkit.errors import CamkitError, LayerError, ModelError, UsageError

_TORCH = str(Path(torch.__file__).parent)


class NoGradient(LayerError):
    """The scores do not depend on a layer through differentiable steps."""


class Checkpointed(ModelError):
    """Reentrant checkpoints, in which a forward runs without gradients and again in the backward."""


# Torch's words, as a regular expression; the kind of error; what it means.
_MEANINGS: tuple[tuple[str, type[CamkitError], str], ...] = (
    (
        "not have been used in the graph|does(?: not|n't) require grad|not connected to every",
        NoGradient,
        "the scores do not depend on the target layer, or the inputs of a method that looks at them, "
        "through differentiable steps: the model, or the target function, detaches, rounds or decides by "
        "the largest; choose a layer above that",
    ),
    (
        r"derivative for (?:aten::)?(\w+?)(?:_backward)? is not implemented|(\w+).*not differentiable",
        ModelError,
        "the model uses {}, which has no derivative: choose a layer above it, or replace it",
    ),
    (
        r"returns multiple views",
        ModelError,
        "the model writes in place into one of the values that `chunk`, `split` or `unbind` gave it, which "
        "has no gradient then: clone() it before",
    ),
    (
        r"is a view and (?:its base or another view of its base has been|is being) modified in-?place",
        ModelError,
        "the model has a full backward hook before an operation in place, such as ReLU(inplace=True): "
        "remove the hook, or say inplace=False",
    ),
    (
        r"modified by an inplace operation.*?output \d+ of (\w+?)(?:Backward\w*)?,",
        ModelError,
        "above the layer the model writes in place into the result of {}, which its gradient needs: "
        "clone() it before writing into it, or write without assignment to slices",
    ),
    (
        "modified by an inplace operation",
        ModelError,
        "the model writes in place into a value that its gradient needs: clone() it before",
    ),
    (
        "use_reentrant=True|Checkpointing is not compatible",
        Checkpointed,
        "the model uses reentrant checkpoints, which give no gradient of a layer: use_reentrant=False, or "
        "switch gradient checkpointing off",
    ),
    (
        "cudnn RNN backward can only be called in training mode",
        ModelError,
        "cuDNN differentiates no RNN in eval mode: run under torch.backends.cudnn.flags(enabled=False)",
    ),
    (
        "No execution plans support the graph|Unable to find an engine|CUDNN_STATUS_NOT_SUPPORTED",
        ModelError,
        "cuDNN has no kernel for an operation of the model in this type and shape: try another dtype",
    ),
    (
        "[Ii]nference tensors cannot be saved for backward|Inplace update to inference tensor",
        ModelError,
        "the model keeps tensors that were made in inference mode, which take part in no gradient: make "
        "them under no_grad",
    ),
    (
        r'"(\w+)" not implemented for \'\w+\'',
        ModelError,
        "there is no {} for this dtype on this device: --dtype float32 (dtype=) has it",
    ),
    (
        "not supported on ScriptModules",
        ModelError,
        "the model is scripted or traced, so it cannot be looked into: pass the original module",
    ),
)


def explained(error: Exception, module: nn.Module, inputs: Sequence[Tensor]) -> CamkitError | None:
    """The error to raise instead of `error`, or `None` if it is none of torch's."""
    if isinstance(error, CamkitError):
        return None
    if devices.is_out_of_memory(error):
        fewer = "fewer images at once, or " if len(inputs[0]) > 1 else ""
        return ModelError(f"out of memory on {inputs[0].device}: {fewer}a smaller size")
    if not _is_of_torch(error):
        return None
    while isinstance(error.__context__, RuntimeError):  # a library rephrases what torch said
        error = error.__context__
    text = str(error)
    if found := _mismatch(text, module, inputs[0]):
        return found
    for sign, kind, meaning in _MEANINGS:
        if match := re.search(sign, text, re.DOTALL):
            names = [group for group in match.groups() if group]
            if kind is NoGradient and (part := _quantised(module)):
                return ModelError(
                    f"the model is quantised ({part}), so it has no gradient: explain it before quantising"
                )
            return kind(meaning.format(*names, "an operation") if "{}" in meaning else meaning)
    first = (text.strip() or type(error).__name__).splitlines()[0]
    return ModelError(f"{type(module).__name__} fails on inputs {list(inputs[0].shape)}: {first}")


def _is_of_torch(error: Exception) -> bool:
    """Whether torch raised it: in a file of its own, or in C++, where no `raise` is seen."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames and frames[-1].filename.startswith(_TORCH):
        return True
    raised = bool(frames) and (frames[-1].line or "").startswith("raise")
    return type(error) in (RuntimeError, NotImplementedError, IndexError) and not raised


def _mismatch(text: str, module: nn.Module, inputs: Tensor) -> CamkitError | None:
    """The error for weights and inputs that do not fit together."""
    channels = re.search(r"to have (\d+) channels, but got (\d+) channels", text)
    if channels and inputs.ndim > 2 and int(channels[2]) == inputs.shape[1]:
        return UsageError(
            f"the number of channels is {channels[1]} for the model and {channels[2]} for the inputs: "
            f"for photographs pass channels={channels[1]} to camkit.load_model (--channels {channels[1]})"
        )
    weights = [tensor for tensor in module.parameters() if tensor.is_floating_point()]
    if any(tensor.is_meta for tensor in (*weights, inputs)):
        return ModelError("the model or its inputs are on the meta device: there are shapes but no values")
    devices = {str(tensor.device) for tensor in weights}
    if weights and str(inputs.device) not in devices and re.search("device|type", text):
        where = " and ".join(sorted(devices))
        return UsageError(
            f"the model is on {where} and the inputs are on {inputs.device}: move one, or pass device="
        )
    types = {tensor.dtype for tensor in weights}
    if weights and inputs.dtype not in types and re.search(r"dtype|data ?type|type \(|scalar type", text):
        first, own = _name(weights[0].dtype), _name(inputs.dtype)
        return UsageError(f"the model is {first} and the inputs are {own}: cast one, or pass dtype=")
    return None


def _quantised(module: nn.Module) -> str:
    """The name of a quantised layer, or ""."""
    for name, part in module.named_modules():
        if re.match(r"torch\.ao\.nn\.(intrinsic\.)?(quantized|quantizable)", type(part).__module__):
            return str(name)
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@contextmanager
def in_our_words(module: nn.Module, inputs: Sequence[Tensor]) -> Iterator[None]:
    """What torch raises in the block is replaced by its cause, if that is known."""
    try:
        yield
    except Exception as error:
        cause = explained(error, module, inputs)
        if cause is None:
            raise
        raise cause from error
