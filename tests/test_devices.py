"""What is not the same on all devices, as far as a CPU can show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tests.conftest import SmallNet, runner
from torch import Tensor, nn

import camkit
from camkit.cli import cli
from camkit.core import devices
from camkit.core.device_names import PRECISIONS
from camkit.drawing.style import Style
from camkit.errors import CamkitWarning, ModelError
from camkit.explaining import answers, manifest, repeating, stored_maps
from camkit.explaining.explanation import Explanation
from camkit.explaining.manifest_lines import request_id
from camkit.explaining.pipeline import stream
from camkit.explaining.plan import plan
from camkit.images.preprocess import Preprocess
from camkit.models.loading import load_model

CUDA = torch.device("cuda:0")


def test_auto_is_an_accelerator_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    assert devices.pick_device("auto") == torch.device("cpu")
    # One that torch believes in, and that holds no values.
    broken = torch.device("meta")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: broken)
    with pytest.warns(CamkitWarning, match="accelerator meta does not answer, so the CPU computes"):
        assert devices.pick_device("auto") == torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
    ],
)
def test_out_of_memory_has_many_names(error: Exception) -> None:
    assert devices.is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shape mismatch"), ValueError("out of memory of the elephants")]
)
def test_other_errors_are_not_out_of_memory(error: Exception) -> None:
    assert not devices.is_out_of_memory(error)


def test_random_states_are_kept_and_seeded() -> None:
    before = torch.get_rng_state()
    with devices.random_state_kept(devices.CPU, 7):
        first = torch.rand(3)
    with pytest.raises(KeyError), devices.random_state_kept(devices.CPU, 7):
        assert torch.equal(torch.rand(3), first)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def switches() -> list[Any]:
    """All that torch says of how float32 is multiplied, in both of its ways."""
    backends: Any = torch.backends
    return [
        *(of.fp32_precision for of in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)),
        *(
            backends.mkldnn.matmul.fp32_precision,
            backends.cudnn.allow_tf32,
            backends.cuda.matmul.allow_tf32,
        ),
        torch.get_float32_matmul_precision(),
    ]


@pytest.mark.parametrize("usual", ["highest", "high", "medium"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_precision_of_float32_holds_inside_alone(precision: str, usual: str) -> None:
    first = torch.get_float32_matmul_precision(), torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.set_float32_matmul_precision(usual)
        before = switches()
        with pytest.raises(KeyError), devices.multiplied(CUDA, precision):
            assert devices.float32_precision(CUDA) == precision
            switches()  # torch's compiler reads all of them: none may raise
            raise KeyError
        assert switches() == before
        with devices.multiplied(torch.device("cpu"), precision):  # where there is nothing to choose
            assert switches() == before
    finally:
        torch.set_float32_matmul_precision(first[0])
        torch.backends.mkldnn.matmul.fp32_precision = first[1]
        torch.backends.cuda.matmul.fp32_precision = "none"


def test_by_default_torch_rounds_on_cuda_devices() -> None:
    """Which is why camkit says what it wants."""
    assert devices.float32_precision(CUDA) == "tf32" and devices.float32_precision(devices.CPU) == "ieee"


# --- out of memory ------------------------------------------------------------------------------------


class Tight(nn.Module):
    """There is room for so many images."""

    def __init__(self, room: int, error: Exception) -> None:
        super().__init__()
        self.net, self.room, self.error = SmallNet(), room, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise self.error
        return self.net(x)


NO_ROOM = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    getattr(torch, "AcceleratorError", RuntimeError)("CUDA error: out of memory"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
]


def photographs(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("RGB", (12, 16), (20 * number, 90, 160)).save(path)
    return paths


@pytest.mark.parametrize("error", NO_ROOM, ids=["torch", "driver", "cudnn"])
def test_a_batch_that_does_not_fit_is_halved(error: Exception, tmp_path: Path) -> None:
    model = load_model(Tight(3, error).eval(), classes=list("abcde"), preprocess=Preprocess((16, 12)))
    work = plan(model, layer="net.act")
    with pytest.warns(CamkitWarning, match="out of memory") as told:
        found = list(stream(work, photographs(tmp_path, 9), batch_size=8))
    assert [str(one.message) for one in told] == [
        "out of memory on cpu with 8 photographs at once: 2 at once from here on"
    ]
    model.module.room = 9
    whole = list(stream(work, photographs(tmp_path, 9), batch_size=8))
    assert [one.position for one in found] == [*range(9)]
    for one, other in zip(found, whole, strict=True):
        assert isinstance(one, Explanation) and isinstance(other, Explanation)
        torch.testing.assert_close(one.map, other.map)
    model.module.room = 0
    with pytest.raises(ModelError, match="out of memory on cpu: a smaller size may fit"):
        list(stream(work, photographs(tmp_path, 9), batch_size=8))
    with pytest.raises(ModelError, match="out of memory on cpu: fewer images at once, or a smaller size"):
        camkit.maps(model.module, torch.randn(2, 3, 16, 12), 1, layer="net.act")


# --- what a folder of results tells of them -----------------------------------------------------------


def test_rounded_products_are_told_wherever_results_are(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "float32_precision", lambda device: "tf32")  # as on a CUDA device
    arguments = "explain --model tiny:net --precision tf32 --device cpu --workers 0 --out out --layer body"
    done = runner().invoke(cli, arguments.split())
    assert done.exit_code == 0, done.stderr
    (line,) = manifest.latest(here / "out")
    assert line["precision"] == "tf32" and ".tf32." in line["map_file"]
    assert "--precision tf32" in repeating.command([line])
    assert stored_maps.tolerance(line) == 1e-2
    assert stored_maps.tolerance({"dtype": "float32", "precision": None}) == 1e-4  # of an older folder


def test_the_request_does_not_depend_on_which_card_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = load_model("timm:test_resnet@none", device="cpu"), ("pred",)
    picture: Any = {"style": Style(), "format": "png", "image_format": "png"}
    monkeypatch.setattr(devices, "name", lambda device: {0: "H100", 1: "H100", 2: "A100"}[device.index])
    work = plan(model, layer="layer4")
    ids = []
    for index in range(3):
        card = torch.device("cuda", index)
        monkeypatch.setattr(type(model), "device", property(lambda self, card=card: card))
        ids += [request_id(work, asked, model="the same", **picture)]
    assert ids[0] == ids[1] != ids[2]
    told = dict.fromkeys(manifest.FIELDS)
    same, other = ({**told, "device": name} for name in ("cuda:0", "cuda:1"))
    assert answers.question(same, "map") == answers.question(other, "map")
    assert answers.question(same, "map") != answers.question({**told, "device": "cpu"}, "map")
