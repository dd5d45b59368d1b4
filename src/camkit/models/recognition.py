"""From the tensors of a file to the network that they belong to.

First the architecture, told by names and shapes; then what its owner changed: the number of classes, the
head, the channels of the photographs, their size. Nothing is guessed in silence: what is assumed is said,
and what cannot be told is refused with the way out.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from camkit.contracts.model import ModelSource
from camkit.errors import ModelError
from camkit.models import heads, signatures
from camkit.models.checkpoint import Checkpoint
from camkit.models.signatures import Signature
from camkit.registry import loading

WAY_OUT = "give the code that builds it: --model FILE.py:CLASS@WEIGHTS, or FILE.py:FUNCTION"
EXPORT = "learn.export() holds the network, too (--trust-pickle)"
FASTAI_BODY = "0.model."  # of a network of timm, under a head of fastai
# Heads that only help in training.
HELPERS = re.compile(r"^(aux\w*|AuxLogits)\.")
# What training code keeps beside the network in one module, and no forward of it needs.
TRAINING_ONLY = re.compile(
    r"(^|\.)(criterion|loss\w*|\w*_loss|\w*metrics?|\w*acc(uracy)?|f1\w*)(\.|$)", re.I
)


@dataclass(frozen=True)
class Fitted:
    """An architecture with what is changed in it, and the tensors under its names."""

    architecture: dict[str, Any]
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Found:
    """The architecture of a file, and others that it could be, though they compute something else."""

    name: str
    others: tuple[str, ...] = ()


def architecture_of(checkpoint: Checkpoint) -> Found:
    """The architecture of a file, such as `timm:resnet18`. `ModelError` if there is none, or several.

    Between architectures with the same tensors that compute different things it goes by what the file or
    its name says. Else by what people have: architectures that both libraries have come before variants of
    one, and those with published weights before others. What is left must be one.
    """
    found = matches(checkpoint)
    named = _named(checkpoint, [row.name for row in found])
    if named:
        return Found(named[0])
    kinds: dict[str, list[Signature]] = {}
    for row in found:
        kinds.setdefault(row.same_as, []).append(row)
    likely = list(kinds.values())
    for rule in (_of_both, _published):
        likely = [rows for rows in likely if rule(rows)] or likely
    first = {id(rows) for rows in likely}
    names = [rows[0].name for rows in sorted(kinds.values(), key=lambda rows: id(rows) not in first)]
    if len(likely) > 1:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ModelError(
            f"{checkpoint.path} fits {', '.join(names[:3])}{more}, which compute different things from the "
            f"same tensors: say which with --arch, such as --arch {names[0]}"
        )
    return Found(names[0], tuple(names[1:]))


def matches(checkpoint: Checkpoint) -> list[Signature]:
    """The architectures whose tensors these are; `ModelError` if there is none."""
    state = modern(checkpoint.state)
    for prefix in prefixes(state):
        shapes = {name[len(prefix) :]: t.shape for name, t in state.items() if name.startswith(prefix)}
        if found := signatures.matches(shapes):
            if not prefix.endswith(FASTAI_BODY):
                return found
            return [replace(r, name=f"fastai:{r.name}") for r in found if r.name.startswith("timm:")]
    saved = all(name[:1].isdigit() for name in state)  # a `Sequential`, as fastai's networks are
    raise ModelError(
        f"{checkpoint.path}: no architecture of torchvision or timm has these tensors "
        f"({', '.join(list(state)[:3])}, ...); name it with --arch, or {WAY_OUT}"
        + (f"; if it is of learn.save(): {EXPORT}" if saved else "")
    )


def _of_both(rows: Sequence[Signature]) -> bool:
    return len({row.name.partition(":")[0] for row in rows}) > 1


def _published(rows: Sequence[Signature]) -> bool:
    return any(row.published for row in rows)


def _named(checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    """Those of `names` that the file says itself, or its name: the longest."""
    said = [
        str(table[key])
        for table in checkpoint.tables()
        for key in ("arch", "architecture", "model_name", "model", "backbone", "encoder_name")
        if isinstance(table.get(key), str)
    ]
    exact = [name for name in names if name.partition(":")[2] in said or name in said]
    if exact:
        return exact
    file = checkpoint.path.name.lower()
    inside = [
        name
        for name in names
        if re.search(rf"(?<![a-z0-9]){name.partition(':')[2].lower()}(?![a-z0-9])", file)
    ]
    longest = max((len(name.partition(":")[2]) for name in inside), default=0)
    return [name for name in inside if len(name.partition(":")[2]) == longest]


def fit(name: str, checkpoint: Checkpoint) -> Fitted:
    """What is changed in the architecture `name`, such as `timm:resnet18`, and the tensors under its names.

    Raises `ModelError` if the tensors are of another architecture, or belong to a network around it.
    """
    scheme, _, own_name = name.partition(":")
    source: ModelSource = loading.make("model", scheme)
    base: dict[str, Any] = {"source": scheme, "name": own_name, "num_classes": 1000}
    like = _shapes(source, base)
    state = modern(checkpoint.state)
    prefix = max(prefixes(state), key=lambda p: sum(f"{p}{n}" in state for n in like))
    inside = {n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)}
    outside = {n: t for n, t in state.items() if not n.startswith(prefix) and not _of_training(n, t)}
    inside = {n: t for n, t in inside.items() if n in like or not _of_training(n, t)}
    if sum(n in inside for n in like) * 2 < len(like):
        lacks, other = (
            [n for n in like if n not in inside],
            [n for n in state if n[len(prefix) :] not in like],
        )
        found = f"{checkpoint.path} holds {len(like) - len(lacks)} of the {len(like)} tensors of {name}"
        instead = f", but {', '.join(other[:3])}, ..." if other else ""
        raise ModelError(f"{found}: {lacks[0]} is not there{instead}")
    _check_helpers(base, inside, like)
    changes = _stem(inside, like) | _size(source, base, inside, like)
    changes |= _head(_heads(source, base), inside, outside, like, f"{checkpoint.path} ({name})")
    return Fitted({**base, **changes}, inside)


def _of_training(name: str, tensor: Tensor) -> bool:
    """Whether no forward needs a tensor: weights of a loss, counts of a metric; a matrix may be a layer."""
    counts = tensor.ndim < 2 or not tensor.is_floating_point()
    return counts and TRAINING_ONLY.search(name) is not None


def modern(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Torchvision's DenseNet weights have names that torch no longer allows: `norm.1` is `norm1`."""
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name): t for name, t in state.items()}


def prefixes(names: Iterable[str]) -> list[str]:
    """What the names of a whole network may begin with, in a module around it: the shortest first."""
    counts: Counter[str] = Counter()
    total = 0
    for name in names:
        parts = name.split(".")[:-1][:5]
        total += 1
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts) + 1))
    return ["", *sorted((p for p, n in counts.items() if n * 5 > total * 2), key=len)]


def unfilled(build: Callable[[], nn.Module]) -> nn.Module:
    """A module without memory for its tensors, if it can be built so."""
    try:
        with torch.device("meta"):
            return build()
    except NotImplementedError:  # torchvision's RegNet computes its widths with tensors
        register: Any = register_module_parameter_registration_hook
        hook = register(_without_memory)
        try:
            return build()
        finally:
            hook.remove()


def _without_memory(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    """What takes the place of a parameter before it is filled."""
    return parameter if parameter is None else nn.Parameter(parameter.to("meta"), parameter.requires_grad)


def _shapes(source: ModelSource, architecture: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    state = unfilled(lambda: source.build(architecture)).state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if isinstance(t, Tensor)}


def _heads(source: ModelSource, base: Mapping[str, Any]) -> list[str]:
    """The modules that make the scores, the main one first."""
    name = f"{base['source']}:{base['name']}"
    row = next((row for row in signatures.table() if row.name == name), None)
    if row is not None:
        return list(row.heads)
    few, more = (_shapes(source, {**base, "num_classes": count}) for count in (3, 5))
    made = [n.rpartition(".")[0] for n in few if few[n] != more[n] and not HELPERS.match(n)]
    return list(dict.fromkeys(made))


def _check_helpers(
    base: dict[str, Any], inside: dict[str, Tensor], like: dict[str, tuple[int, ...]]
) -> None:
    """Helper heads of GoogLeNet and Inception go: in evaluation they do nothing."""
    tables: tuple[dict[str, Any], ...] = (inside, like)
    for table in tables:
        for name in [name for name in table if HELPERS.match(name)]:
            base["aux_logits"] = False
            del table[name]


def _stem(inside: Mapping[str, Tensor], like: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The channels of the photographs, if they are not three."""
    stem = next((n for n, shape in like.items() if len(shape) > 2 and shape[1] == 3), None)
    got = None if stem is None else inside.get(stem)
    if (
        stem is None
        or got is None
        or got.ndim != len(like[stem])
        or got.shape[1] == 3
        or got.shape[0] != like[stem][0]
    ):
        return {}
    return {"channels": int(got.shape[1])}


def _size(
    source: ModelSource,
    base: Mapping[str, Any],
    inside: Mapping[str, Tensor],
    like: Mapping[str, tuple[int, ...]],
) -> dict[str, Any]:
    """The side of the photographs that a table of positions is for, if it is another one."""
    name = next((n for n in like if signatures.POSITIONS.search(n)), None)
    got = None if name is None else inside.get(name)
    if (
        name is None
        or got is None
        or tuple(got.shape) == like[name]
        or got.ndim != 3
        or len(like[name]) != 3
    ):
        return {}
    module: Any = unfilled(lambda: source.build(base))
    patch = getattr(getattr(module, "patch_embed", module), "patch_size", 16)
    patch = patch[0] if isinstance(patch, tuple) else patch
    size = getattr(module, "image_size", None) or module.default_cfg["input_size"][-1]
    tokens = like[name][1] - (size // patch) ** 2
    side = round((got.shape[1] - tokens) ** 0.5) if got.shape[1] > tokens else 0
    if side * side + tokens != got.shape[1]:
        raise ModelError(f"{name} is {list(got.shape)}: for photographs that are no squares, {WAY_OUT}")
    return {"image_size": side * patch}


def _head(
    paths: Sequence[str],
    inside: dict[str, Tensor],
    outside: Mapping[str, Tensor],
    like: Mapping[str, tuple[int, ...]],
    where: str,
) -> dict[str, Any]:
    """The number of classes, and the head if it is another one than the architecture has.

    paths: the modules of the architecture that make its scores. A head that stands beside the network, in
    the module around both, comes inside.
    """
    own = _comparable(like, paths)
    theirs = _comparable({name: tuple(t.shape) for name, t in inside.items()}, paths)
    at = next((path for path in _outwards(paths[0]) if _without(path, own) == _without(path, theirs)), None)
    if at is None:
        return {}  # what does not fit is said when the weights are loaded
    found = {name[len(at) + 1 :]: t for name, t in inside.items() if name.startswith(f"{at}.")}
    if found and (more := list(outside)):  # a norm or a scale would change the scores, too
        raise ModelError(
            f"{where} is part of a larger network, which also has {', '.join(more[:3])}: {WAY_OUT}"
        )
    if own == theirs:
        return {"num_classes": len(next(iter(found.values())))}
    if not found:
        at = paths[0]
        if not outside:
            raise ModelError(
                f"{where} has no head ({at} is not there): it makes features, not scores of classes; "
                f"with a head that is elsewhere, {WAY_OUT}"
            )
        found = {name.removeprefix(_common(outside)): t for name, t in outside.items()}
        inside |= {f"{at}.{name}": tensor for name, tensor in found.items()}
    head = heads.read_head(found)
    if head is None or not heads.outputs(head):
        raise ModelError(
            f"{where} has a head that its tensors do not tell ({', '.join(list(found)[:4])}): {WAY_OUT}"
        )
    return {"num_classes": heads.outputs(head), "head": {"at": at, "layers": head}}


def _comparable(shapes: Mapping[str, tuple[int, ...]], paths: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Shapes without what depends on the number of classes, and on the photographs."""
    made = tuple(f"{path}." for path in paths)
    found: dict[str, tuple[Any, ...]] = {}
    for name, shape in shapes.items():
        if signatures.COMPUTED.search(name) or signatures.POSITIONS.search(name):
            continue
        found[name] = ("classes", *shape[1:]) if name.startswith(made) else shape
        if signatures.STEMS.search(name):
            found[name] = (shape[0], "channels", *shape[2:])
    return found


def _without(path: str, shapes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: shape for name, shape in shapes.items() if not name.startswith(f"{path}.")}


def _outwards(path: str) -> list[str]:
    """`classifier.6` and the modules that it is in."""
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]


def _common(names: Iterable[str]) -> str:
    """The dotted beginning that all of `names` share."""
    parts = [name.split(".")[:-1] for name in names]
    shared = takewhile(lambda level: len(set(level)) == 1, zip(*parts, strict=False))
    return "".join(f"{level[0]}." for level in shared)


def changed(module: nn.Module, architecture: Mapping[str, Any]) -> nn.Module:
    """`module` with the head and the channels that `architecture`, which may be a stranger's, gives it."""
    if (head := architecture.get("head")) is not None:
        if not isinstance(head, Mapping) or not isinstance(head.get("at"), str):
            raise ModelError(f"a head has layers and a place, not {head!r:.80}")
        try:
            module.get_submodule(head["at"])
        except AttributeError as error:
            raise ModelError(f"there is no place for a head: {error}") from None
        module.set_submodule(head["at"], heads.build_head(head.get("layers")))
    if (channels := architecture.get("channels", 3)) != 3:
        if not isinstance(channels, int) or not 1 <= channels <= 1024:
            raise ModelError(f"photographs have 1 to 1024 channels, not {channels!r:.80}")
        name, stem = next((n, m) for n, m in module.named_modules() if getattr(m, "in_channels", 0) == 3)
        module.set_submodule(name, _of_channels(stem, channels))
    return module


def _of_channels(stem: Any, channels: int) -> nn.Module:
    """A convolution like `stem` for other photographs."""
    made = copy.copy(stem)
    made._parameters = dict(stem._parameters)
    made.in_channels = channels
    shape = list(stem.weight.shape)
    shape[1] = channels
    made.weight = nn.Parameter(torch.zeros(shape, dtype=stem.weight.dtype, device=stem.weight.device))
    return made  # type: ignore[no-any-return]
