"""Whether a model is still the same, for code that keeps what was made from it.

`Look` sees what is cheap to see: other parts, other tensors, writes that raise a version. Writes through
`.data` or a numpy view raise none, and an attribute such as a stride has none; `Contents` reads everything
that a forward can read from the model: the bytes of all tensors, registered or not, the attributes of all
modules, whatever lists, dicts, objects and closures among them hold, and those of their classes. What a
forward reads from elsewhere, such as a global variable or a file, goes unseen.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

MOST = 20_000  # entries in lists, dicts and objects: to compare more in each call would take too long

# What torch itself keeps in every module. Parts and tensors are read by name, modes do not count, and hooks
# are the caller's business.
_OWN = frozenset(vars(nn.Module()))
_STORES = ("_parameters", "_buffers", "_modules")

# What compares by value or identity; the exact type is checked first, which is quick.
_ATOMS = (int, str, bytes, types.NoneType, type, types.ModuleType, types.CodeType, range, slice)
_QUICK = frozenset({*_ATOMS, bool, torch.dtype, torch.device, torch.layout, torch.memory_format})
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

M = TypeVar("M", bound=nn.Module)


class Look:
    """The parts of a module and the versions of its tensors as they are now."""

    def __init__(self, module: nn.Module) -> None:
        stores = [getattr(part, name) for part in module.modules() for name in _STORES]
        self._stores = [store for store in stores if store]
        self._parts = [part for store in self._stores for part in store.values()]  # kept: ids stay unique
        self._tensors = [p for p in self._parts if isinstance(p, Tensor) and not p.is_inference()]
        self._storages = [tensor.detach() for tensor in self._tensors]  # and so do addresses
        self._seen = self._look()

    def unchanged(self) -> bool:
        """Whether they are still the same objects, and no write has raised a version."""
        return self._look() == self._seen

    def _look(self) -> list[Any]:
        return [
            [id(part) for store in self._stores for part in store.values()],
            [tensor._version for tensor in self._tensors],
            [tensor.data_ptr() for tensor in self._tensors],
        ]


class Contents:
    """Everything that a forward of `module` can read from it, as it is now; `module` is not kept alive.

    ignored: names of attributes that are not compared. copied: whether tensor values are kept, which takes
    as much memory as the model; without them, only replaced tensors are noticed. Raises
    `RuntimeError` where a model holds more than `MOST` entries or a tensor whose bytes cannot be read.
    """

    def __init__(
        self, module: nn.Module, ignored: frozenset[str] = frozenset(), copied: bool = True
    ) -> None:
        walk = _Walk(module)
        self._ignored, self._fingerprints = ignored, walk.fingerprints
        self._copies = {
            name: [_bits(tensor).clone() for tensor in tensors] if copied else None
            for name, tensors in walk.tensors.items()
        }

    def changes(self, module: nn.Module) -> list[str]:
        """Names of the attributes of `module` that differ, such as `layer1.0.conv1.weight`."""
        walk = _Walk(module)
        names = [
            name
            for name in dict.fromkeys([*self._fingerprints, *walk.fingerprints])
            if name not in self._ignored
        ]
        same = {
            name: (walk.tensors[name], self._copies[name])
            for name in names
            if name in self._fingerprints
            and name in walk.fingerprints
            and self._fingerprints[name] == walk.fingerprints[name]
        }
        other = _differing(same)
        return [name for name in names if name not in same or name in other]


def copied(module: M) -> M:
    """A deep copy, even if a forward has left results in the module: those lose their graph."""
    memo: dict[int, Any] = {}
    with suppress(RuntimeError):  # the model holds too much
        results = [t for kept in _Walk(module).tensors.values() for t in kept if t.grad_fn is not None]
        memo = {id(tensor): tensor.detach().clone() for tensor in results}
    return copy.deepcopy(module, memo)


def _differing(tensors: Mapping[str, tuple[list[Tensor], list[Tensor] | None]]) -> set[str]:
    """Names of tensors whose bytes are not those of their copies: a NaN equals itself, and 0 is not -0.

    An accelerator compares them all before the host waits for it.
    """
    found, names, flags = set[str](), list[str](), list[Tensor]()
    for name, (current, copies) in tensors.items():
        for bits, kept in zip(map(_bits, current), copies, strict=True) if copies is not None else ():
            if (bits.dtype, bits.shape, bits.device) != (kept.dtype, kept.shape, kept.device):
                found.add(name)
            elif bits.device.type != "cpu":
                names.append(name)
                flags.append((bits != kept).any())
            elif not torch.equal(bits, kept):
                found.add(name)
    for device in {flag.device for flag in flags}:
        pairs = [(n, flag) for n, flag in zip(names, flags, strict=True) if flag.device == device]
        differences = torch.stack([flag for _, flag in pairs]).tolist()
        found |= {name for (name, _), differs in zip(pairs, differences, strict=True) if differs}
    return found


def _bits(tensor: Tensor) -> Tensor:
    """The memory of a tensor, read as integers."""
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        raise RuntimeError("it has tensors without values")
    plain = tensor.detach()
    if plain.is_complex():
        plain = torch.view_as_real(plain)
    return plain.view(_INTEGERS[plain.element_size()])


class _Same:
    """Equal to another one of the same object while that lives; it does not keep it alive."""

    def __init__(self, value: Any) -> None:
        self.get: Callable[[], Any]
        try:
            self.get = weakref.ref(value)
        except TypeError:  # a builtin without weak references: held, it keeps its identity
            self.get = lambda: value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.get() is not None and self.get() is other.get()

    __hash__ = None  # type: ignore[assignment]


class _Walk:
    """fingerprints: each attribute as values that can be compared; tensors: those that it holds."""

    _met: int  # objects in the attribute that is being read

    def __init__(self, module: nn.Module) -> None:
        self.fingerprints: dict[str, Any] = {}
        self.tensors: dict[str, list[Tensor]] = {}
        self._modules, self._names = [module], {id(module): ""}
        self._seen: dict[int, tuple[str, int]] = {}  # where each object was met first, by id
        self._held: list[Any] = []  # objects made on the way, so that ids stay unique
        self._left = MOST
        for part in self._modules:  # grows meanwhile
            prefix = self._names[id(part)]
            for attribute, value in _attributes(part):
                self._read(f"{prefix}.{attribute}" if prefix else attribute, value)
        own = (nn.Module, object)
        for kind in dict.fromkeys(k for part in self._modules for k in type(part).__mro__ if k not in own):
            for attribute, value in list(vars(kind).items()):
                if not attribute.startswith("__"):
                    self._read(f"{kind.__module__}.{kind.__qualname__}.{attribute}", value)

    def _read(self, name: str, value: Any) -> None:
        self.tensors[name], self._met = [], 0
        self.fingerprints[name] = self._fingerprint(value, name)

    def _fingerprint(self, value: Any, name: str) -> Any:
        kind = type(value)
        if kind in _QUICK or isinstance(value, _ATOMS):
            return kind, value
        if isinstance(value, float | complex):
            return kind, repr(value)  # a NaN is then equal to itself
        if isinstance(value, nn.Module):
            if id(value) not in self._names:
                self._names[id(value)] = name
                self._modules.append(value)
            return _Same(value)
        if id(value) in self._seen:
            return "again", self._seen[id(value)]
        self._seen[id(value)] = name, self._met
        self._met += 1
        if isinstance(value, Tensor):
            self.tensors[name].append(value)
            return value.dtype, value.device, _Same(value)
        if isinstance(value, np.ndarray | np.generic):
            return kind, value.dtype.str, value.shape, value.tobytes()
        held = _held(value)
        self._held.append(held)
        self._left -= len(held)
        if self._left < 0:
            raise RuntimeError("its attributes hold more than can be compared in each call")
        return (kind, [self._fingerprint(inner, name) for inner in held]) if held else (kind, _Same(value))


def _attributes(part: nn.Module) -> Iterator[tuple[str, Any]]:
    """Names and values of a module's attributes, without those that torch does its bookkeeping with."""
    own = vars(part)
    yield "__class__", type(part)
    for store in _STORES:
        yield from list(own[store].items())
    yield from [(name, value) for name, value in list(own.items()) if name not in _OWN]


def _held(value: Any) -> list[Any]:
    """The contents of an object, read without running its own code; empty if it has none."""
    match value:
        case dict():
            held = [inner for pair in list(dict.items(value)) for inner in pair]
        case list() | tuple() | set() | frozenset() | deque():
            held = list(value)
        case types.FunctionType():
            held = [value.__code__, value.__defaults__, value.__kwdefaults__, *_cells(value)]
        case types.MethodType():
            held = [value.__func__, value.__self__]
        case staticmethod() | classmethod():
            held = [value.__func__]
        case property():
            held = [value.fget]
        case functools.partial():
            held = [value.func, value.args, value.keywords]
        case _:
            held = []
    state = object.__getstate__(value)  # attributes and slots, of all but C objects
    return held if state is None else [*held, state]


def _cells(function: types.FunctionType) -> list[Any]:
    """The variables in a function's closure; those that are not set yet are left out."""
    values = []
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            values.append(cell.cell_contents)
    return values
