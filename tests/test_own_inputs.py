"""Models that write into their inputs: maps, and the inputs of the caller, are as of those that do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import camkit
from camkit.errors import ModelError


class Normalising(nn.Module):
    """Normalises what it is shown, and with a second input scales it, in place or not."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inplace = inplace
        self.features, self.head = nn.Conv2d(3, 6, 3, 2), nn.Linear(6, 4)

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        if self.inplace:
            x.sub_(0.45).div_(0.22)
            more = tuple(scale.mul_(2) for scale in more)
        else:
            x, more = (x - 0.45) / 0.22, tuple(scale * 2 for scale in more)
        for scale in more:
            x = x * scale[:, :, None, None]
        return self.head(self.features(x).relu().mean((2, 3)))  # type: ignore[no-any-return]


METHODS: dict[str, dict[str, Any]] = {
    "gradcam": {},
    "scorecam": {},
    "ablationcam": {},
    "rise": {"masks": 32},
    "sobol": {"masks": 64, "cells": 3},
    "hsic": {"masks": 64, "cells": 3},
    "integrated-gradients": {"steps": 8},
    "smoothgrad": {"samples": 4},
}


@pytest.mark.filterwarnings("ignore::camkit.errors.CamkitWarning")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", ["features", "auto"])
@pytest.mark.parametrize("extras", [0, 1])
def test_a_model_that_normalises_in_place(method: str, layer: str, extras: int) -> None:
    inputs = [torch.rand(2, 3, 16, 16), *[torch.rand(2, 3) + 0.5] * extras]
    before = [one.clone() for one in inputs]
    given: Any = inputs[0] if not extras else tuple(inputs)
    found = [
        camkit.maps(
            Normalising(inplace=inplace).eval(), given, 1, method=method, layer=layer, **METHODS[method]
        )
        for inplace in (True, False)
    ]
    assert torch.equal(*found) and bool(found[0].any())
    assert all(torch.equal(one, old) for one, old in zip(inputs, before, strict=True))


def test_its_inputs_are_copied_each_time_and_those_of_others_once() -> None:
    seen: dict[bool, list[Tensor]] = {True: [], False: []}
    x = torch.rand(1, 3, 16, 16)
    for inplace, kept in seen.items():
        model = Normalising(inplace=inplace).eval()
        camkit.maps(model, x, 1, layer="features")  # the first forward shows what it does
        with model.register_forward_hook(lambda _, args, __, kept=kept: kept.append(args[0])):
            camkit.maps(model, x, 1, layer="features")
    (written,), (read,) = seen.values()
    assert written.data_ptr() != x.data_ptr() and read.data_ptr() == x.data_ptr()


def test_one_that_writes_in_some_forwards_only_is_refused() -> None:
    model = Normalising(inplace=False).eval()
    camkit.maps(model, torch.rand(1, 3, 16, 16), 1, layer="features")
    model.inplace = True
    with pytest.raises(ModelError, match="writes into its inputs in some forwards only"):
        camkit.maps(model, torch.rand(1, 3, 16, 16), 1, layer="features")


def test_inputs_that_were_made_in_inference_mode_stay_as_they_are() -> None:
    written, read = (Normalising(inplace=inplace).eval() for inplace in (True, False))
    with torch.inference_mode():
        x = torch.rand(1, 3, 16, 16)
        before = x.clone()
        found = camkit.maps(written, x, 1, layer="features")
    assert torch.equal(x, before)
    assert torch.equal(found, camkit.maps(read, before, 1, layer="features"))
