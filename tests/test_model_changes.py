"""Whether a model is still the same: every way to change one, and what is none."""

from __future__ import annotations

import copy
import functools
import gc
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from camkit.core import model_changes
from camkit.core.hooks import as_it_was
from camkit.core.model_changes import Contents, Look, copied


class Config:
    """What models keep beside their modules."""

    __slots__ = ("inner", "scale")

    def __init__(self) -> None:
        self.scale, self.inner = 2.0, types.SimpleNamespace(power=2, names=["a", "b"])


class Everything(nn.Module):
    """A place for everything that a forward can read."""

    kind = "plain"

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.same = self.conv
        self.register_buffer("table", torch.arange(5), persistent=False)
        self.register_buffer("steps", torch.zeros(3, 4, dtype=torch.complex64).t())
        self.temperature, self.flag, self.mode, self.sizes = 0.0, True, "sum", (1, (2, 3))
        self.plain, self.array = torch.ones(3, dtype=torch.bfloat16), np.zeros(4)
        self.config, self.listed, self.hidden = Config(), [torch.zeros(2), {"x": 1}], [nn.Linear(2, 2)]
        self.function, self.part = closure(1.0), functools.partial(pow, 2)
        self.itself = [self]

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def closure(scale: float) -> Callable[[Tensor], Tensor]:
    kept = [scale]
    return lambda x: x * kept[0]


def cell(model: Any) -> Any:
    return model.function.__closure__[0].cell_contents


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


def replaced_forward(model: Any) -> None:
    model.norm.forward = types.MethodType(lambda self, x: x, model.norm)


def replaced_code(model: Any) -> None:
    model.function.__code__ = (lambda kept: lambda x: x + kept[0])(0).__code__


def step(model: Any) -> None:
    model.conv.bias.grad = torch.ones_like(model.conv.bias)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def train(model: Any) -> None:
    model.train()(torch.randn(2, 3, 8, 8))
    model.eval()


def assign(owner: Callable[[Any], Any], name: str, value: Callable[[], Any]) -> Callable[[Any], None]:
    return lambda model: setattr(owner(model), name, value())


def call(change: Callable[[Any], Any]) -> Callable[[Any], None]:
    with_grad_off = torch.no_grad()(change)
    return lambda model: with_grad_off(model) and None


CHANGES: dict[str, tuple[str, Callable[[Any], None]]] = {
    "an element through data": ("conv.weight", call(lambda m: m.conv.weight.data[0, 0, 0, 0].add_(1))),
    "the last bit": ("conv.bias", call(lambda m: m.conv.bias.data.view(torch.int32)[1].bitwise_xor_(1))),
    "the sign of zero": ("norm.bias", call(lambda m: m.norm.bias.data[0].neg_())),
    "through numpy": ("conv.weight", call(lambda m: m.conv.weight.detach().numpy().__setitem__(0, 2))),
    "a buffer": ("norm.running_var", call(lambda m: m.norm.running_var.data[1].fill_(3))),
    "a buffer that is not stored": ("table", call(lambda m: m.table.data[1].fill_(3))),
    "a buffer that is a view": ("steps", call(lambda m: m.steps.data[1, 1].fill_(1j))),
    "a tensor of no module": ("plain", call(lambda m: m.plain.data[1].fill_(3))),
    "its type": ("plain", call(lambda m: setattr(m.plain, "data", m.plain.data.view(torch.float16)))),
    "its shape": ("plain", call(lambda m: setattr(m.plain, "data", m.plain.data[None]))),
    "a tensor in a list": ("listed", call(lambda m: m.listed[0].data[1].fill_(3))),
    "a tensor of a hidden module": ("hidden.weight", call(lambda m: m.hidden[0].weight.data[1, 1].add_(1))),
    "an array": ("array", call(lambda m: m.array.__setitem__(2, 1))),
    "a number": ("temperature", assign(lambda m: m, "temperature", lambda: 0.5)),
    "a number of zero": ("temperature", assign(lambda m: m, "temperature", lambda: -0.0)),
    "a flag": ("flag", assign(lambda m: m, "flag", lambda: 1)),
    "a text": ("mode", assign(lambda m: m, "mode", lambda: "mean")),
    "a tuple": ("sizes", assign(lambda m: m, "sizes", lambda: (1, (2, 4)))),
    "a new attribute": ("more", assign(lambda m: m, "more", lambda: None)),
    "no attribute": ("mode", call(lambda m: delattr(m, "mode"))),
    "a stride": ("conv.stride", assign(lambda m: m.conv, "stride", lambda: (2, 2))),
    "a dict in a list": ("listed", call(lambda m: m.listed[1].update(x=2))),
    "a slot": ("config", assign(lambda m: m.config, "scale", lambda: 3.0)),
    "an object in an object": ("config", assign(lambda m: m.config.inner, "power", lambda: 3)),
    "a list in it": ("config", call(lambda m: m.config.inner.names.append("c"))),
    "a variable of a function": ("function", call(lambda m: cell(m).__setitem__(0, 2.0))),
    "the code of a function": ("function", replaced_code),
    "an argument": ("part", assign(lambda m: m, "part", lambda: functools.partial(pow, 3))),
    "a forward": ("norm.forward", replaced_forward),
    "a forward of the class": (f"{__name__}.Half.forward", assign(lambda _: Half, "forward", lambda: abs)),
    "an attribute of the class": (f"{__name__}.Everything.kind", assign(lambda _: Everything, "kind", str)),
    "the class": ("norm.__class__", assign(lambda m: m.norm, "__class__", lambda: nn.SyncBatchNorm)),
    "a layer": ("norm", assign(lambda m: m, "norm", nn.Identity)),
    "another layer": ("act", assign(lambda m: m, "act", nn.ReLU)),
    "a parameter": ("conv.bias", assign(lambda m: m.conv, "bias", lambda: nn.Parameter(torch.ones(4)))),
    "a parametrization": (
        "conv.__class__",
        lambda m: parametrize.register_parametrization(m.conv, "weight", Half()),
    ),
    "a cast": ("conv.weight", call(lambda m: m.double())),
    "a step": ("conv.bias", step),
    "a training": ("norm.running_mean", train),
    "a state": (
        "conv.weight",
        call(lambda m: m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()})),
    ),
}


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Half, "forward", Half.forward)  # put back afterwards
    monkeypatch.setattr(Everything, "kind", Everything.kind)
    torch.manual_seed(0)
    model = Everything().eval()
    model.half = Half()
    with torch.no_grad():
        model.norm.bias.zero_()
        model.norm.weight[0] = torch.nan
    return model


@pytest.mark.parametrize("what", CHANGES)
def test_every_change_is_noticed_and_named(model: Any, what: str) -> None:
    name, change = CHANGES[what]
    contents = Contents(model)
    assert contents.changes(model) == []
    change(model)
    assert name in contents.changes(model)
    assert Contents(model).changes(model) == []


def test_one_change_is_one_change(model: Any) -> None:
    contents = Contents(model)
    model.listed.append(7)
    model.conv.weight.data[0] = 1
    assert sorted(contents.changes(model)) == ["conv.weight", "listed"]
    assert Contents(model, frozenset(["listed"])).changes(model) == []


@pytest.mark.parametrize("what", ["a step", "a layer", "a parameter", "a cast", "a state", "a training"])
def test_a_look_sees_what_torch_counts(model: Any, what: str) -> None:
    look = Look(model)
    assert look.unchanged()
    CHANGES[what][1](model)
    assert not look.unchanged()


@pytest.mark.parametrize("make", [Look, Contents])
def test_what_is_no_change(model: Any, make: type) -> None:
    kept = make(model)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    model.train().requires_grad_(False).eval()
    with as_it_was(model, torch.device("cpu")):
        assert kept.unchanged() if make is Look else kept.changes(model) == []
    make(nn.ReLU())  # which has no tensors


def test_without_copies_values_are_not_compared(model: Any) -> None:
    ignored = frozenset(["temperature"])
    contents = Contents(model, ignored, copied=False)
    model.conv.weight.data[0], model.temperature = 1, 3
    assert contents.changes(model) == []
    model.flag = False
    assert contents.changes(model) == ["flag"]


def test_another_object_in_the_place_of_one_that_is_gone(model: Any) -> None:
    model.lock = torch.Generator()
    contents = Contents(model)
    del model.lock
    gc.collect()
    model.lock = torch.Generator()  # perhaps at the same address
    assert contents.changes(model) == ["lock"]


def test_nothing_holds_the_model() -> None:
    for make in (Look, Contents):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        net.forward = types.MethodType(lambda self, x: x, net)  # type: ignore[method-assign]
        kept, gone = make(net), weakref.ref(net)
        del net
        gc.collect()
        assert gone() is None and kept


def test_a_copy_of_what_a_forward_has_left_behind(model: Any) -> None:
    model.last = model(torch.randn(2, 3, 8, 8))
    own = copied(model)
    torch.testing.assert_close(own.last, model.last.detach(), equal_nan=True)
    assert own.last.grad_fn is None and model.last.grad_fn is not None
    assert own.conv.weight is not model.conv.weight and own.same is own.conv


def test_what_cannot_be_compared(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for odd in (torch.eye(3).to_sparse(), torch.empty(2, device="meta"), nn.UninitializedParameter()):
        strange = copy.copy(model)
        strange.plain = odd
        with pytest.raises((RuntimeError, NotImplementedError)):
            Contents(strange)
    monkeypatch.setattr(model_changes, "MOST", 10)
    with pytest.raises(RuntimeError, match="more than can be compared"):
        Contents(model)
