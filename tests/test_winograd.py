"""Convolutions with fewer multiplications: the same numbers, and only where the graph allows it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from importlib.resources import files

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

import camkit
from camkit.core import model_cache
from camkit.native import winograd


@pytest.fixture(autouse=True)
def _needs_a_compiler() -> Iterator[None]:
    if winograd._kernel() is None:
        pytest.skip("no C++ compiler, so convolutions stay as they are")
    with torch.no_grad():
        yield


def exact(x: Tensor, weight: Tensor, bias: Tensor, padding: tuple[int, int]) -> Tensor:
    return F.conv2d(x.double(), weight.double(), bias.double(), padding=padding)


SIZES = {  # batch, channels, outputs, height, width, padding
    "whole tiles": (2, 64, 64, 16, 16, (1, 1)),
    "a rest in both directions": (1, 16, 64, 11, 13, (1, 1)),
    "one pixel": (1, 16, 64, 1, 1, (1, 1)),
    "no padding": (3, 32, 64, 9, 7, (0, 0)),
    "more padding than needed": (1, 16, 128, 5, 6, (2, 2)),
    "padding in one direction": (1, 16, 64, 8, 8, (1, 0)),
    "more outputs than channels": (1, 48, 192, 8, 8, (1, 1)),
    "several blocks, the last one smaller": (1, 512, 64, 30, 30, (1, 1)),
}


@pytest.mark.parametrize("ends", ["plain", "residual", "relu", "both"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES.keys())
def test_it_is_the_convolution(size: tuple[int, ...], ends: str) -> None:
    batch, channels, outputs, height, width, padding = size
    torch.manual_seed(0)
    x, bias = torch.randn(batch, channels, height, width), torch.randn(outputs)
    weight = torch.randn(outputs, channels, 3, 3) / channels**0.5
    wanted = exact(x, weight, bias, padding)
    residual = torch.randn(wanted.shape) if ends in ("residual", "both") else None
    wanted = wanted if residual is None else wanted + residual
    relu = ends in ("relu", "both")
    found = winograd.convolve(x, winograd.transformed(weight), bias, padding, residual, relu)
    wanted = wanted.relu() if relu else wanted
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=3e-5 * float(wanted.abs().max()))


def test_threads_and_neighbours_do_not_change_a_bit() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 64, 20, 20), winograd.transformed(torch.randn(64, 64, 3, 3))
    together, threads = winograd.convolve(x, weight, torch.zeros(64), (1, 1), None, False), 1
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        alone = [
            winograd.convolve(image[None], weight, torch.zeros(64), (1, 1), None, False) for image in x
        ]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("without", ["__AVX512F__", "__AVX__"])
def test_narrower_vectors_do_the_same(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = files("camkit.native").joinpath("winograd.cpp").read_text(encoding="utf-8")
    kernel = winograd._compiled("#undef __AVX512F__\n#undef " + without + "\n" + source)
    monkeypatch.setattr(winograd, "_kernel", lambda: kernel)
    for size in SIZES.values():
        test_it_is_the_convolution(size, "both")


def test_other_weights_are_refused() -> None:
    weights = winograd.transformed(torch.randn(64, 32, 3, 3))
    for channels in (16, 64):
        with pytest.raises(ValueError, match=f"\\[1, {channels}, 8, 8\\]"):
            winograd.convolve(torch.zeros(1, channels, 8, 8), weights, torch.zeros(64), (1, 1), None, False)


def test_nan_stays_nan() -> None:
    x = torch.zeros(1, 16, 8, 8)
    x[0, 3, 0, 0] = torch.nan
    found = winograd.convolve(
        x, winograd.transformed(torch.ones(64, 16, 3, 3)), torch.ones(64), (1, 1), None, True
    )
    assert found[..., :2, :2].isnan().all() and torch.equal(found[..., 4:, 4:], torch.ones(1, 64, 4, 4))


# --- graphs ---------------------------------------------------------------------------------------


def conv(channels: int = 64, outputs: int = 64, **options: object) -> nn.Conv2d:
    return nn.Conv2d(channels, outputs, 3, **({"padding": 1} | options))  # type: ignore[arg-type]


class Net(nn.Module):
    """Whatever `course` makes of an image and of the parts."""

    def __init__(self, course: object, *parts: nn.Module) -> None:
        super().__init__()
        self.course, self.parts = course, nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        return self.course(x, *self.parts)  # type: ignore[no-any-return, operator]


def rewritten(net: nn.Module, x: Tensor, kept: dict[str, Tensor] | None = None) -> torch.fx.GraphModule:
    program = torch.export.export(net, (x.contiguous(memory_format=torch.channels_last),))
    return winograd.rewritten(program, {} if kept is None else kept)


def calls(module: torch.fx.GraphModule) -> list[tuple[bool, bool]]:
    """Of each call of the kernel, whether it adds a residual and whether it rectifies."""
    nodes = module.graph.find_nodes(op="call_function", target=torch.ops.camkit.winograd.default)
    return [(node.args[4] is not None, bool(node.args[5])) for node in nodes]


def trained(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    for tensor in (norm.running_mean, norm.running_var, norm.weight, norm.bias):
        if tensor is not None:
            tensor.uniform_(0.5, 2)
    return norm


NORM, BARE = nn.BatchNorm2d(64), nn.BatchNorm2d(64, affine=False)
GRAPHS = {  # the course, its parts, and what the calls add and rectify
    "alone": (lambda x, c: c(x), [conv()], [(False, False)]),
    "without bias": (lambda x, c: c(x), [conv(bias=False)], [(False, False)]),
    "VGG": (lambda x, c, d: F.relu_(d(F.relu(c(x)))), [conv(), conv()], [(False, True)] * 2),
    "BatchNorm": (lambda x, c, n: n(c(x)), [conv(bias=False), NORM], [(False, False)]),
    "BatchNorm without weights": (lambda x, c, n: n(c(x)), [conv(), BARE], [(False, False)]),
    "ResNet": (lambda x, c, n: F.relu_(n(c(x)).add_(x)), [conv(), NORM], [(True, True)]),
    "the sum the other way round": (lambda x, c, n: F.relu(x + n(c(x))), [conv(), NORM], [(True, True)]),
    "pre-activation": (lambda x, n, c: x + c(F.relu(n(x))), [NORM, conv()], [(True, False)]),
    "a sum in place": (lambda x, c: x.clone().add_(c(x)), [conv()], [(True, False)]),
    "ReLU, then a sum": (lambda x, c: F.relu(c(x)) + x, [conv()], [(False, True)]),
    "used twice": (lambda x, c, n: n(y := c(x)) + y, [conv(), NORM], [(False, False)]),
    "with itself": (lambda x, c: (y := c(x)) + y, [conv()], [(False, False)]),
    "a sum that is broadcast": (
        lambda x, c: c(x) + x.mean((2, 3), keepdim=True),
        [conv()],
        [(False, False)],
    ),
    "a number": (lambda x, c: F.relu(c(x) + 1), [conv()], [(False, False)]),
    "a weighted sum": (lambda x, c: torch.add(c(x), x, alpha=2), [conv()], [(False, False)]),
    "two sums": (lambda x, c, d: F.relu(c(x) + d(x)), [conv(), conv()], [(False, False), (True, True)]),
    "one convolution, twice": (
        lambda x, c, n: c(F.relu(n(c(x)))),
        [conv(), NORM],
        [(False, True), (False, False)],
    ),
    "strided": (lambda x, c: c(x), [conv(stride=2)], []),
    "dilated": (lambda x, c: c(x), [conv(dilation=2)], []),
    "grouped": (lambda x, c: c(x), [conv(groups=2)], []),
    "few outputs": (lambda x, c: c(x), [conv(outputs=48)], []),
    "few channels": (lambda x, c: c(x[:, :3]), [conv(channels=3)], []),
    "few tiles": (lambda x, c: c(x[..., :8, :8]), [conv()], []),
    "mostly beyond the image": (lambda x, c: c(x[..., :5]), [conv()], []),
    "without a batch": (lambda x, c: c(x[0]), [conv()], []),
    "standardized weights": (lambda x, c: F.conv2d(x, c.weight - c.weight.mean(), padding=1), [conv()], []),
}


@pytest.mark.parametrize(("course", "parts", "wanted"), GRAPHS.values(), ids=GRAPHS.keys())
def test_graphs_return_the_same(
    course: object, parts: list[nn.Module], wanted: list[tuple[bool, bool]]
) -> None:
    torch.manual_seed(0)
    net = Net(course, *[trained(p) if isinstance(p, nn.BatchNorm2d) else p for p in parts]).eval()
    x = torch.randn(1, 64, 12, 16)
    graph = rewritten(net, x)
    assert calls(graph) == wanted
    plain = net(x.clone())
    torch.testing.assert_close(
        graph(x.contiguous(memory_format=torch.channels_last)), plain, rtol=0, atol=1e-4
    )


def test_shapes_of_one_model_share_the_weights() -> None:
    net, kept = Net(lambda x, c: c(x), conv()).eval(), {}
    graphs = [rewritten(net, torch.randn(1, 64, size, size), kept) for size in (16, 20)]
    first, second = ({t.data_ptr() for t in graph.buffers()} for graph in graphs)
    assert len(kept) == 2 and first & second >= {t.data_ptr() for t in kept.values()}


def test_float64_and_machines_without_a_compiler_keep_their_convolutions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    net, x = Net(lambda x, c: c(x), conv()).eval(), torch.randn(1, 64, 16, 16)
    assert calls(rewritten(net.double(), x.double())) == []
    monkeypatch.setattr(winograd, "_kernel", lambda: None)
    assert calls(rewritten(net.float(), x)) == []


def test_a_network_is_explained_the_same() -> None:
    torch.manual_seed(0)
    net, x = torchvision.models.resnet18(num_classes=5).eval(), torch.randn(2, 3, 128, 128)
    graph = rewritten(nn.Sequential(*list(net.children())[:-2]), x)
    assert len(calls(graph)) == 10  # all with stride 1; in the last stage there are too few tiles
    plain = camkit.maps(net, x, [0, 3], layer="layer4")
    quick = camkit.maps(net, x, [0, 3], layer="layer4", fast=True)
    torch.testing.assert_close(quick, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


def test_transformed_weights_go_with_the_model() -> None:
    net, x = (
        nn.Sequential(conv(3, 64), conv(), nn.Flatten(), nn.Linear(64 * 256, 2)).eval(),
        torch.randn(1, 3, 16, 16),
    )
    camkit.maps(net, x, 0, layer="1", fast=True)
    weights = model_cache.of(net).part("transformed", dict[str, Tensor])
    kept = [weakref.ref(tensor) for tensor in weights.values()]
    del weights
    assert len(kept) == 2 and all(ref() is not None for ref in kept)
    del net
    gc.collect()
    assert all(ref() is None for ref in kept)
