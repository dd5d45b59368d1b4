"""The same on every device: on the CPU as far as that has it, and on a CUDA device where there is one."""

from __future__ import annotations

import copy
import gc
import json
import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from tests.conftest import SmallNet, runner
from tests.test_compiled import compiler
from torch import Tensor, nn

import camkit
from camkit.bench import timing
from camkit.cli import cli
from camkit.core import devices
from camkit.errors import CamkitError, CamkitWarning
from camkit.explaining import manifest, pipeline
from camkit.native.explainer import AT_ONCE
from camkit.native.method_table import AT_LAYER, ATTENTION, BLACK_BOX, INPUT_GRADIENTS
from camkit.registry import discovery
from camkit.testing.trainers import toy_photos

GPU = pytest.mark.gpu
NEEDS_ONE = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
NEEDS_TWO = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
DEVICES = ["cpu", pytest.param("cuda:0", marks=[GPU, NEEDS_ONE])]
on_every_device = pytest.mark.parametrize("device", DEVICES)


@pytest.fixture(autouse=True)
def _exact() -> Iterator[None]:
    """As `camkit explain` has it."""
    with devices.multiplied(torch.device("cuda:0"), "ieee"):
        yield


@pytest.fixture
def compiles() -> None:
    if reason := compiler():
        pytest.skip(reason)


def close(found: Tensor, wanted: Tensor, bound: float) -> None:
    peak = float(wanted.double().abs().max())
    assert float((found.cpu().double() - wanted.double()).abs().max()) <= bound * peak


# --- plain ----------------------------------------------------------------------------------------

# The dtype, how float32 is multiplied, and how far the usual methods may be from float64.
WAYS = {
    "ieee": (torch.float32, "ieee", 1e-4),
    "tf32": (torch.float32, "tf32", 1e-2),
    "bfloat16": (torch.bfloat16, "ieee", 0.1),
    "float16": (torch.float16, "ieee", 2e-2),
}
FEW = {"masks": 200, "cells": 3, "tolerance": 0}  # of the black-box methods
# An axis of a decomposition may turn, a softmax over channels sharpens what rounding did, and sobol adds up
# squares of small differences of scores.
TOUCHY = {"sobol", "eigencam", "eigengradcam", "scorecam", "xgradcam", "gradcam++"}


@on_every_device
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("method", AT_LAYER)
def test_every_method_is_near_to_float64(
    method: str, way: str, device: str, small_net: nn.Module, batch: Tensor
) -> None:
    dtype, precision, bound = WAYS[way]
    if device == "cpu" and way == "tf32":
        pytest.skip("a CPU rounds no factors")
    wanted = camkit.maps(small_net.double(), batch.double(), [0, 3, 1], layer="act", method=method, **FEW)
    module, inputs = small_net.to(device, dtype), batch.to(device, dtype)
    where = torch.device(device)
    states = [torch.get_rng_state()]
    states += [torch.cuda.get_rng_state(where)] if where.type == "cuda" else []
    with devices.multiplied(where, precision):
        found = camkit.maps(module, inputs, [0, 3, 1], layer="act", method=method, **FEW)
    assert found.device == where and found.dtype == torch.float32 and bool(found.isfinite().all())
    assert torch.equal(torch.get_rng_state(), states[0])
    if where.type == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(where), states[1])
    if way == "ieee" or method not in TOUCHY:
        close(found, wanted, bound)


@on_every_device
@pytest.mark.parametrize("method", [*BLACK_BOX, *INPUT_GRADIENTS, "winsorcam"])
def test_methods_of_many_forwards_or_layers_are_near_to_float64(
    method: str, device: str, small_net: nn.Module, batch: Tensor
) -> None:
    few = FEW | {"steps": 8, "samples": 8}
    asked: dict[str, Any] = {"layer": "act", "method": method, **few}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamkitWarning)  # of few masks, and an image without a map
        wanted = camkit.maps(copy.deepcopy(small_net).double(), batch.double(), [0, 3, 1], **asked)
        found = camkit.maps(small_net.to(device), batch.to(device), [0, 3, 1], **asked)
    assert found.device == torch.device(device) and bool(found.isfinite().all())
    close(found, wanted, 1e-2 if method in TOUCHY else 1e-4)


@on_every_device
@pytest.mark.parametrize("libra", [False, True], ids=["plain", "balanced"])
def test_a_transformer_is_near_to_float64(libra: bool, device: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=5).double().eval()
    torch.nn.init.normal_(model.head.weight)
    x, methods = torch.randn(2, 3, 64, 64).double(), ["gradcam", "layercam", "refinecam", "grad-eclip"]
    wanted = camkit.maps_by(model, x, [0, 3], method=methods, libra=libra)
    found = camkit.maps_by(
        model.to(device).float(), x.float().to(device), [0, 3], method=methods, libra=libra
    )
    for key, maps in found.items():
        close(maps, wanted[key], 1e-3)


@on_every_device
@pytest.mark.parametrize("way", WAYS)
def test_attention_is_near_to_float64(way: str, device: str) -> None:
    """Whichever kernels the device has for it."""
    dtype, precision, bound = WAYS[way]
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=5).double().eval()
    torch.nn.init.normal_(model.head.weight)
    x = torch.randn(2, 3, 64, 64).double()
    wanted = camkit.maps_by(model, x, [0, 3], method=ATTENTION)
    with devices.multiplied(torch.device(device), precision):
        found = camkit.maps_by(model.to(device, dtype), x.to(device, dtype), [0, 3], method=ATTENTION)
    for key, maps in found.items():
        assert maps.device == torch.device(device) and maps.dtype == torch.float32
        close(maps, wanted[key], bound)


@on_every_device
def test_all_classes_of_a_transformer_are_those_one_by_one(device: str) -> None:
    """The gradients of several classes go through fused attention together."""
    model = timm.create_model("test_vit", pretrained=False, num_classes=5).eval().to(device)
    x = torch.randn(2, 3, 160, 160, generator=torch.Generator().manual_seed(0)).to(device)
    together = camkit.class_maps(model, x, layer="blocks.0")
    for index in range(5):
        close(together[:, index], camkit.maps(model, x, index, layer="blocks.0").cpu(), 1e-4)


class Recurrent(nn.Module):
    """An LSTM reads the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.lstm, self.fc = nn.Conv2d(3, 6, 3, stride=4), nn.LSTM(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(self.stem(x).flatten(2).permute(2, 0, 1))[0][-1])


@on_every_device
def test_a_recurrent_head_in_eval_mode(device: str) -> None:
    """For which cuDNN has no gradient."""
    torch.manual_seed(0)
    model, x = Recurrent().eval(), torch.randn(2, 3, 24, 32)
    wanted = camkit.maps(model, x, 1, layer="stem")
    before = torch.backends.cudnn.enabled
    close(camkit.maps(model.to(device), x.to(device), 1, layer="stem"), wanted, 1e-4)
    assert torch.backends.cudnn.enabled is before


@GPU
@NEEDS_ONE
@pytest.mark.parametrize("backend", ["pytorch-grad-cam", "captum", "torchcam"])
def test_other_backends_as_on_the_cpu(backend: str, small_net: nn.Module, batch: Tensor) -> None:
    if backend not in discovery.names("explainer"):
        pytest.skip(f"camkit-{backend} is not installed")
    wanted = camkit.maps(small_net, batch, [0, 3, 1], layer="body", backend=backend)
    found = camkit.maps(small_net.cuda(), batch.cuda(), [0, 3, 1], layer="body", backend=backend)
    assert found.is_cuda
    close(found, wanted, 1e-4)


@GPU
@NEEDS_ONE
def test_inputs_and_model_on_two_devices(small_net: nn.Module, batch: Tensor) -> None:
    for module, inputs in ((small_net, batch.cuda()), (copy.deepcopy(small_net).cuda(), batch)):
        for options in ({}, {"fast": True}):
            with pytest.raises(CamkitError, match=r"the model is on .* and the inputs are on ") as caught:
                camkit.maps(module, inputs, 1, layer="body", **options)
            assert "\n" not in str(caught.value)


# --- how often the host waits -------------------------------------------------------------------------


@GPU
@NEEDS_ONE
@pytest.mark.parametrize("targets", [2, None, [0, 3, 1], "on the device"])
@pytest.mark.parametrize("fast", [False, True])
def test_a_call_waits_once(fast: bool, targets: Any, small_net: nn.Module, batch: Tensor) -> None:
    model, x = small_net.cuda(), batch.cuda()
    targets = torch.tensor([0, 3, 1]).cuda() if targets == "on the device" else targets

    def call() -> Tensor:
        return camkit.maps(model, x, targets, layer="body", fast=fast, frozen=True)

    call()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(one.message) for one in told) <= 1


# --- fast mode ------------------------------------------------------------------------------------


@pytest.mark.slow
@on_every_device
def test_fast_mode_is_right_whatever_came_before(
    device: str, compiles: None, small_net: nn.Module, batch: Tensor
) -> None:
    model, x = small_net.to(device), batch.to(device)

    def ask(inputs: Tensor, **options: Any) -> Tensor:
        return camkit.maps(model, inputs, 1, layer="act", **options)

    def check(inputs: Tensor) -> None:
        close(ask(inputs, fast=True), ask(inputs).cpu(), 1e-4)

    first = ask(x, fast=True)
    kept = first.clone()
    check(x.flip(0))
    assert torch.equal(first, kept), "the second call wrote into the result of the first"
    check(x[:2])
    strange = x.clone()
    strange[1, 0, 3, 3] = math.nan
    assert ask(strange, fast=True).flatten(1).isnan().any(1).tolist() == [False, True, False]
    check(x)
    with torch.no_grad():
        small_net.get_submodule("stem.0").weight.mul_(1.5)
    check(x)


@pytest.mark.slow
@on_every_device
@pytest.mark.parametrize("targets", [[3], None, "on the device"], ids=["given", "predicted", "there"])
def test_one_class_as_a_whole(
    targets: Any, device: str, compiles: None, small_net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Body, head, gradient and maps are compiled together, and on a device with graphs one graph."""
    draw = torch.Generator().manual_seed(3)
    inputs = [torch.randn(1, 3, 16, 12, generator=draw) for _ in range(3)]
    methods = sorted(AT_ONCE)
    wanted_of = [3] if targets == "on the device" else targets
    wanted = [camkit.maps_by(small_net.cpu(), x, wanted_of, layer=["act"], method=methods) for x in inputs]
    model = small_net.to(device)
    given = torch.tensor([3]).to(device) if targets == "on the device" else targets

    def ask(x: Tensor) -> dict[Any, Tensor]:
        found: dict[Any, Tensor] = camkit.maps_by(
            model, x.to(device), given, layer=["act"], method=methods, fast=True
        )
        return found

    first = ask(inputs[0])
    monkeypatch.setattr("camkit.native.compiled.forward", None)  # the way step by step
    for maps, other in zip([first, *map(ask, inputs[1:])], wanted, strict=True):
        for (method, layer), map_ in maps.items():
            close(map_, other[method, layer], 1e-3 if method in TOUCHY else 1e-4)


@pytest.mark.slow
@on_every_device
@pytest.mark.parametrize("streams", [False, True], ids=["one stream", "a stream each"])
def test_fast_mode_in_four_threads(
    streams: bool, device: str, compiles: None, small_net: nn.Module
) -> None:
    """Each with inputs of its own; some of them capture while others allocate."""
    if streams and device == "cpu":
        pytest.skip("a CPU has no streams")
    model = small_net.to(device)
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2 + n % 2, 3, 16, 12, generator=draw) for n in range(24)]
    wanted = [camkit.maps(model, x.to(device), 1, layer="act").cpu() for x in inputs]

    def work(x: Tensor) -> Tensor:
        with torch.cuda.stream(torch.cuda.Stream()) if streams else nullcontext():
            there = x.to(device)
            torch.empty(2**22, device=device)
            return camkit.maps(model, there, 1, layer="act", fast=True, frozen=True).cpu()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, inputs))
    for one, other in zip(found, wanted, strict=True):
        close(one, other, 1e-4)


@GPU
@NEEDS_ONE
def test_graphs_of_models_that_are_gone_leave_no_memory(batch: Tensor) -> None:
    x = batch.cuda()

    def once() -> int:
        camkit.maps(SmallNet().eval().cuda(), x, 1, layer="body", fast=True)
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    once()
    before = once()
    assert max(once() for _ in range(4)) <= before + 2**21


@GPU
@NEEDS_TWO
def test_a_second_card(small_net: nn.Module, batch: Tensor) -> None:
    wanted = camkit.maps(small_net, batch, 1, layer="body")
    for card in ("cuda:0", "cuda:1", "cuda:0"):
        module = copy.deepcopy(small_net).to(card)
        found = camkit.maps(module, batch.to(card), 1, layer="body", fast=True)
        assert found.device == torch.device(card)
        close(found, wanted, 1e-4)
    large = torch.randn(4096, 4096, device="cuda:1")
    sample = timing.timer(large.device)(lambda: large @ large)
    assert sample.device is not None and sample.device > 1e-4  # seconds, of the card that worked


# --- commands -------------------------------------------------------------------------------------


def photographs(folder: Path, count: int, size: int = 40) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = torch.randint(256, (size, size, 3), generator=torch.Generator().manual_seed(number))
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(folder / f"{number}.png")
    return folder


def run(*arguments: object) -> Any:
    return runner().invoke(cli, [str(one) for one in arguments], prog_name="camkit")


@on_every_device
def test_what_is_made_on_a_device_holds_on_the_cpu(
    device: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photographs(here / "photos", 5)
    asked = ("explain", "photos", "--model", "tiny:net", "--device", device, "--workers", 0, "--out", "out")
    done = run(*asked, "--layer", "body")
    assert done.exit_code == 0, done.stderr
    lines = manifest.latest(here / "out")
    assert {line["device"] for line in lines} == {device} and {line["precision"] for line in lines} == {
        "ieee"
    }
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)
    held = run("verify", "out")
    assert held.exit_code == 0 and "5 recomputed maps differ by at most" in held.stdout, held.stdout
    before = (here / "out" / "manifest.jsonl").read_bytes()
    again = run(*asked, "--layer", "body", "--resume")
    assert again.exit_code == 0 and "5" in again.stderr
    assert (here / "out" / "manifest.jsonl").read_bytes() == before


@GPU
@NEEDS_ONE
def test_out_of_memory_in_the_second_batch(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photographs(here / "photos", 48, size=256)
    asked = ("explain", "photos", "--model", "torchvision:vgg11@none", "--device", "cuda", "--workers", 0)
    total, explain = torch.cuda.get_device_properties(0).total_memory, pipeline._explain_photos
    batches = []

    def limited(work: Any, photos: Any, rows: int) -> Iterator[Any]:
        batches.append(len(photos))
        if len(batches) == 2:  # 64 x 224 x 224 floats of each photograph are 308 MB, and half of them fit
            torch.cuda.empty_cache()
            room = torch.cuda.memory_reserved() + 300 * 2**20
            torch.cuda.set_per_process_memory_fraction(min(1.0, room / total))
        yield from explain(work, photos, rows)

    monkeypatch.setattr(pipeline, "_explain_photos", limited)
    try:
        done = run(*asked, "--batch-size", 24, "--format", "npz", "--out", "out")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert done.exit_code == 0, done.stderr
    assert batches[:2] == [24, 24] and max(batches[2:]) <= 12
    assert done.stderr.count("photographs at once") == 1
    assert len(manifest.latest(here / "out")) == 48


@GPU
@NEEDS_ONE
@pytest.mark.slow
def test_a_benchmark_of_a_gpu(here: Path) -> None:
    done = run(
        *("bench", "--model", "tiny:net", "--layer", "body", "--device", "cuda", "--quick", "--json"),
        *("--metrics", "latency,agreement", "--processes", 1, "--out", "out"),
    )
    assert done.exit_code in (0, 3), done.stderr
    told = json.loads(done.stdout)
    assert told["environment"]["gpu"]["memory_bytes"] > 2**30
    assert told["environment"]["precision"] == "ieee"
    records = [record for row in told["rows"] for record in row["latency"]]
    assert records
    for record in records:
        assert all(math.isfinite(value) and value > 0 for value in record["samples"]["host"])
        assert all(value is not None and value > 0 for value in record["samples"]["device"])
        assert record["launch_bound"] in (True, False)
        assert record["memory"]["allocated"] >= 0


@pytest.mark.slow
@on_every_device
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_training_in_half_precision(precision: str, device: str, tmp_path: Path) -> None:
    if (precision, device) == ("float16", "cpu"):
        pytest.skip("a CPU trains in bfloat16")
    data = toy_photos(tmp_path / "toys")
    recipe = {"batch_size": 4, "stages": [{"epochs": 2}]}
    asked: dict[str, Any] = {"arch": "timm:test_resnet", "weights": "none", "recipe": recipe, "workers": 2}
    asked |= {"trainer": "torch", "device": device, "precision": precision}

    class Enough(Exception):
        pass

    def stop(done: float, text: str) -> None:
        if 0.4 < done < 0.6:
            raise Enough

    with pytest.raises(Enough):
        camkit.train(data, out=tmp_path / "out", progress=stop, **asked)
    found = camkit.train(data, out=tmp_path / "out", resume=True, **asked)
    assert len(found.history) == 2
    assert all(math.isfinite(value) for record in found.history for value in record.values())
    model = camkit.load_model(found.bundle, device="cpu")
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert all(bool(p.isfinite().all()) for p in model.module.parameters())
    assert model.sha256 == camkit.load_model(found.bundle, device=device).sha256
