"""How a layer's output is read as a map: by what the layer is, what is possible, and what is around it."""

from __future__ import annotations

import pytest
import torch

from camkit.core.layout import Layout, layout
from camkit.errors import LayerError


@pytest.mark.parametrize(
    ("shape", "inputs", "expected"),
    [
        ((2, 512, 7, 7), (224, 224), Layout("channels-first", (7, 7))),
        ((2, 7, 7, 768), (224, 224), Layout("channels-last", (7, 7))),
        ((2, 512, 4, 12), (128, 384), Layout("channels-first", (4, 12))),
        ((2, 4, 12, 512), (128, 384), Layout("channels-last", (4, 12))),
        ((2, 197, 192), (224, 224), Layout("tokens", (14, 14), 1)),
        ((2, 198, 192), (224, 224), Layout("tokens", (14, 14), 2)),
        ((2, 196, 192), (224, 224), Layout("tokens", (14, 14), 0)),
        ((2, 201, 192), (224, 224), Layout("tokens", (14, 14), 5)),
        ((2, 1 + 8 * 14, 192), (128, 224), Layout("tokens", (8, 14), 1)),
    ],
)
def test_layouts(shape: tuple[int, ...], inputs: tuple[int, int], expected: Layout) -> None:
    assert layout(torch.zeros(shape), (2, 3, *inputs), "x") == expected


@pytest.mark.parametrize(
    ("shape", "inputs", "expected"),
    [
        ((2, 256, 25), (100,), Layout("channels-first", (25,))),
        ((2, 256, 4, 7, 14), (16, 112, 224), Layout("channels-first", (4, 7, 14))),
        ((2, 4, 7, 14, 256), (16, 112, 224), Layout("channels-last", (4, 7, 14))),
    ],
)
def test_layouts_of_signals_and_volumes(
    shape: tuple[int, ...], inputs: tuple[int, ...], expected: Layout
) -> None:
    assert layout(torch.zeros(shape), (2, 3, *inputs), "x") == expected
    assert expected.to_map(torch.zeros(shape)).shape == (2, 256, *expected.grid)


@pytest.mark.parametrize(
    ("shape", "inputs", "message"),
    [
        ((2, 64, 1), (100,), "single position"),
        ((2, 64), (100,), r"\[B, C, l\]"),
        ((2, 8, 7, 7), (16, 112, 112), r"\[B, C, d, h, w\]"),
        ((2, 197, 64), (16, 112, 112), r"\[B, C, d, h, w\]"),
    ],
)
def test_outputs_that_are_no_map_of_signals_or_volumes(
    shape: tuple[int, ...], inputs: tuple[int, ...], message: str
) -> None:
    with pytest.raises(LayerError, match=message):
        layout(torch.zeros(shape), (2, 3, *inputs), "x")


@pytest.mark.parametrize("shape", [(2, 1000), (2,), (2, 3, 4, 5, 6), (2, 206, 8), (2, 3, 1, 1)])
def test_outputs_that_are_no_map(shape: tuple[int, ...]) -> None:
    with pytest.raises(LayerError, match=r"layer 'x'"):
        layout(torch.zeros(shape), (2, 3, 224, 224), "x")


def test_integer_output_is_no_map() -> None:
    with pytest.raises(LayerError, match="not a feature map"):
        layout(torch.zeros(2, 8, 7, 7, dtype=torch.int64), (2, 3, 224, 224), "x")


def test_every_layout_turns_to_channels_first() -> None:
    maps = torch.randn(5, 2, 3, 4, 6)  # any leading dimensions
    last = maps.movedim(-3, -1)
    assert torch.equal(Layout("channels-last", (4, 6)).to_map(last), maps)
    tokens = torch.cat([torch.zeros(5, 2, 1, 3), last.flatten(2, 3)], dim=2)
    assert torch.equal(Layout("tokens", (4, 6), 1).to_map(tokens), maps)
    assert Layout("channels-first", (4, 6)).to_map(maps) is maps
