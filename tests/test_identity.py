"""The identity of a model: the same in every process, and another one where anything decides otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import camkit
from camkit.models.identity import identity

NET = """
import os
import torch
from torch import nn
from base import Base
from helper import squash

class Net(Base):
    kinds = {"a", "b", "c", "d"}

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Conv2d(3, 4, 5, 4), nn.Linear(4, 3)
        with open(os.path.join(os.path.dirname(__file__), "value")) as file:
            self._value = eval(file.read())

    def extra_repr(self):
        return f"{self.kinds}, {squash}"

    def scores(self, x):
        return squash(self.head(self.features(x).mean((2, 3))))

def net():
    return Net().eval()
"""
BASE = """
from torch import nn
class Base(nn.Module):
    def forward(self, x):
        return self.scores(x) * 1.0
"""
FILES = {
    "net.py": NET,
    "base.py": BASE,
    "helper.py": "def squash(x): return x.tanh()",
    "value": "1.0",
}
TELL = """
import sys, warnings
warnings.simplefilter("ignore")
import camkit
from camkit.models.identity import identity
spec = f"{sys.argv[1]}:net"
shown = camkit.Preprocess(size=(32, 32), mean=(0, 0, 0), std=(1, 1, 1))
print(identity(camkit.load_model(spec, device="cpu", preprocess=shown), spec))
"""


def told(folder: Path, seed: str = "1") -> str:
    """The identity in a process of its own, started elsewhere."""
    command = [sys.executable, "-c", TELL, str(folder / "net.py")]
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder.parent)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def written(folder: Path) -> Path:
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


def test_it_is_the_same_in_every_process_and_place(tmp_path: Path) -> None:
    """Whatever the order of sets is, and wherever objects lie in memory."""
    first, second = (written(tmp_path / name) for name in ("a", "b"))
    assert told(first) == told(second, seed="77")


def test_packed_weights_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which no tensor of the state holds, as of quantised layers."""

    def of(packed: float) -> str:
        torch.manual_seed(0)
        model = camkit.load_model("timm:test_resnet@none", device="cpu")
        state = {**model.module.state_dict(), "fc._packed_params": (torch.full((2,), packed), None)}
        monkeypatch.setattr(model.module, "state_dict", lambda: state)
        return identity(model, "timm:test_resnet@none")

    assert of(1.0) == of(1.0) != of(2.0)


def test_a_value_that_holds_itself_ends() -> None:
    model = camkit.load_model("timm:test_resnet@none", device="cpu")
    endless: list[object] = [1.0]
    endless.append(endless)
    model.module.endless = endless  # type: ignore[assignment]
    first = identity(model, "timm:test_resnet@none")
    endless[0] = 2.0
    assert identity(model, "timm:test_resnet@none") != first


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("base.py", "* 1.0", "* 3.0"),
        ("helper.py", "x.tanh()", "x.relu()"),
        ("value", "1.0", "2.0"),
        ("value", "1.0", "(1, 3)"),
        ("value", "1.0", "torch.ones(3)"),
        ("value", "1.0", "torch.zeros(3).numpy()"),
    ],
)
def test_another_model_of_the_same_weights_is_another(
    tmp_path: Path, file: str, before: str, after: str
) -> None:
    folder = written(tmp_path / "a")
    first = told(folder)
    text = (folder / file).read_text()
    assert text.count(before) == 1
    (folder / file).write_text(text.replace(before, after))
    assert told(folder) != first
