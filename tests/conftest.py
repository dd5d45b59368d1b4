"""Small networks and data that several test files use."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn


@pytest.fixture(autouse=True)
def _quiet_machine() -> Iterator[None]:
    """Two threads and a fixed seed, whatever ran before."""
    torch.set_num_threads(2)
    torch.manual_seed(0)
    yield


@pytest.fixture
def pets() -> Path:
    """The folder of the Oxford-IIIT Pet sample."""
    folder = os.environ.get("CAMKIT_PETS")
    if not folder:
        pytest.skip("CAMKIT_PETS names no folder with pets (images/ and annotations/)")
    return Path(folder)


@pytest.fixture
def other_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An installed package whose explainer `other` is native with a further method and other options."""
    folder = tmp_path / "site"
    info = folder / "camkit_other-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: camkit-other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[camkit.explainers]\nother = camkit_other:Other\n")
    (folder / "camkit_other.py").write_text(
        "from dataclasses import dataclass\n"
        "from camkit import Query, option\n"
        "from camkit.native import Native, NativeOptions\n"
        "@dataclass(frozen=True)\n"
        "class Options(NativeOptions):\n"
        "    size: int = option(1, help='of nothing')\n"
        "class Other(Native):\n"
        "    summary = 'for tests'\n"
        "    methods = ('gradcam', 'extra')\n"
        "    Options = Options\n"
        "    def many(self, sweep):\n"
        "        maps = Native(self.options).many(sweep)\n"
        "        return {key: value + self.options.size - 1 for key, value in maps.items()}\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    return "other"


def runner() -> CliRunner:
    """Runs commands in this process and keeps stdout and stderr apart, which click 8.1 must be told."""
    apart = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}
    return CliRunner(**apart)  # type: ignore[arg-type]


class SmallNet(nn.Module):
    """Two convolutions, global mean, one linear layer: `[B, 3, H, W]` to `[B, classes]`."""

    def __init__(self, classes: int = 5, *, inplace: bool = False) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=inplace))
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8))
        self.act = nn.ReLU(inplace=inplace)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.pool(self.act(self.body(self.stem(x)))).flatten(1)
        return self.fc(self.drop(x))


@pytest.fixture
def small_net() -> SmallNet:
    """In eval mode, seeded."""
    return SmallNet().eval()


@pytest.fixture
def batch() -> Tensor:
    """Three images of 16 x 12 pixels."""
    return torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(1))
