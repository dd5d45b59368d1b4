"""camkit on an accelerator in CPU memory; run by `tests/test_fake_device.py` in a process of its own."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from tests import fake_device, test_detection
from tests.conftest import SmallNet
from tests.fake_device import graphs as fake_graphs
from torch import Tensor, nn

import camkit
from camkit.bench import timing
from camkit.contracts.metric import MapBatch
from camkit.contracts.model import LoadedModel
from camkit.core import devices
from camkit.explaining.explanation import Explanation
from camkit.explaining.pipeline import stream
from camkit.explaining.plan import plan
from camkit.images.preprocess import Preprocess
from camkit.metrics.measure import measure
from camkit.native import compiled as native_compiled
from camkit.native import graphs
from camkit.native.explainer import AT_ONCE
from camkit.native.method_table import (
    AT_LAYER,
    ATTENDED,
    BALANCED,
    BLACK_BOX,
    COMBINED,
    INPUT_GRADIENTS,
)
from camkit.registry import discovery, loading

NATIVE = fake_device.start()
FAKE = torch.device("fake:0")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    """A device that can do everything, before and after each test."""
    yield
    NATIVE.refuse_waits(False)
    NATIVE.has_double(True)
    NATIVE.limit(-1)
    devices.has_float64.cache_clear()


@pytest.fixture
def without_double() -> None:
    NATIVE.has_double(False)
    devices.has_float64.cache_clear()


@pytest.fixture
def net() -> nn.Module:
    return SmallNet().eval()


@pytest.fixture
def there(net: nn.Module) -> nn.Module:
    """The same network on the device."""
    return copy.deepcopy(net).to(FAKE)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 3, 16, 12, generator=torch.Generator().manual_seed(1))


def close(found: Tensor, wanted: Tensor, bound: float = 1e-5) -> None:
    """Equal but for rounding, relative to the peak, NaN included."""
    torch.testing.assert_close(
        found.cpu(), wanted, rtol=0, atol=bound * float(wanted.nan_to_num().abs().max()), equal_nan=True
    )


def test_the_device() -> None:
    assert devices.pick_device("auto") == devices.pick_device("fake") == FAKE
    assert devices.pick_device("fake:1") == torch.device("fake:1")
    with pytest.raises(camkit.errors.UsageError, match="no device 'fake:2': torch sees 2 fake devices"):
        devices.pick_device("fake:2")
    assert devices.kind(FAKE) == devices.kind(torch.device("fake:1")) == "fake Fake accelerator"
    assert devices.has_float64(FAKE) and devices.has_graphs(FAKE) and not devices.has_graphs(devices.CPU)


# An image without a positive weight is told of.
quiet = pytest.mark.filterwarnings("ignore:.*is inexact", "ignore:.*winsorcam is zero everywhere")
FEW = {"masks": 200, "cells": 3, "tolerance": 0, "steps": 8, "samples": 8}  # of methods of many forwards


@quiet
@pytest.mark.parametrize("method", [*AT_LAYER, *BLACK_BOX, *INPUT_GRADIENTS, *COMBINED])
def test_every_method_as_on_the_cpu(method: str, net: nn.Module, there: nn.Module, x: Tensor) -> None:
    found = camkit.maps(there, x.to(FAKE), [0, 3, 1], layer="act", method=method, **FEW)
    assert found.device == FAKE
    close(found, camkit.maps(net, x, [0, 3, 1], layer="act", method=method, **FEW))


@pytest.mark.usefixtures("without_double")
@quiet
@pytest.mark.parametrize("method", [*AT_LAYER, *BLACK_BOX, *INPUT_GRADIENTS, *COMBINED])
def test_every_method_without_float64(method: str, net: nn.Module, there: nn.Module, x: Tensor) -> None:
    assert not devices.has_float64(FAKE)
    found = camkit.maps(there, x.to(FAKE), [0, 3, 1], layer="act", method=method, **FEW)
    assert found.device == FAKE
    close(found, camkit.maps(net, x, [0, 3, 1], layer="act", method=method, **FEW))


@pytest.fixture
def transformer() -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", img_size=64, num_classes=5)
    for parameter in model.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.mark.filterwarnings("ignore:.*grad-eclip is zero everywhere")
@pytest.mark.parametrize("has_double", [True, False], ids=["double", "no double"])
@pytest.mark.parametrize("libra", [False, True], ids=["plain", "libra"])
def test_a_transformer_as_on_the_cpu(libra: bool, has_double: bool, transformer: nn.Module) -> None:
    NATIVE.has_double(has_double)
    devices.has_float64.cache_clear()
    methods = [m for m in (*ATTENDED, *AT_LAYER, "refinecam") if m in BALANCED or not libra]
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    there = copy.deepcopy(transformer).to(FAKE)
    found = camkit.maps_by(there, x.to(FAKE), [1, 2], method=methods, libra=libra)
    for key, maps in camkit.maps_by(transformer, x, [1, 2], method=methods, libra=libra).items():
        assert found[key].device == FAKE
        close(found[key], maps, 1e-4)


@pytest.mark.filterwarnings("ignore")  # of what other libraries do inexactly
@pytest.mark.parametrize("targets", [[0, 3, 1], None, "on the device"], ids=["given", "predicted", "there"])
@pytest.mark.parametrize("backend", sorted({*discovery.names("explainer")} - {"native"}))
def test_every_backend_as_on_the_cpu(backend: str, targets: Any, x: Tensor) -> None:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    net = nn.Sequential(*body, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)).eval()
    there = copy.deepcopy(net).to(FAKE)
    given = torch.tensor([0, 3, 1]).to(FAKE) if targets == "on the device" else targets
    wanted_of = [0, 3, 1] if targets == "on the device" else targets
    for method in loading.make("explainer", backend, {}).methods:
        found = camkit.maps(there, x.to(FAKE), given, layer="3", backend=backend, method=method)
        assert found.device == FAKE, method
        close(found, camkit.maps(net, x, wanted_of, layer="3", backend=backend, method=method), 1e-4)


class Coloured(nn.Module):
    """Scores of three colours at each pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).relu())


# What is explained: a model and the call.
SUBJECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "boxes": (test_detection.model, {"box": "all", "method": "hirescam"}),
    "boxes, by masks": (test_detection.model, {"box": "all", "method": "rise", "masks": 64}),
    "segments": (Coloured, {"target": "all"}),
    "a place": (Coloured, {"at": [(3, 4)]}),
    "a function": (SmallNet, {"target": lambda scores: scores[:, 1] - scores[:, 0]}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("subject", SUBJECTS)
def test_every_subject_as_on_the_cpu(subject: str) -> None:
    make, call = SUBJECTS[subject]
    torch.manual_seed(0)
    made = make()
    if isinstance(made, nn.Module):
        names = [str(number) for number in range(5 if isinstance(made, SmallNet) else 3)]
        made = camkit.load_model(made.eval(), classes=names, preprocess=Preprocess((32, 32)))
    photos = [test_detection.photo(), test_detection.photo(0.9, 0.7)]
    wanted = list(camkit.explain_many(made, photos, **call))
    found = list(camkit.explain_many(made.to(device="fake:0"), photos, **call))
    assert len(found) == len(wanted) >= len(photos)
    for one, other in zip(found, wanted, strict=True):
        assert one.class_index == other.class_index
        close(one.map, other.map)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["gradcam", "generic-attention", "legrad", "grad-eclip"])
def test_likeness_as_on_the_cpu(method: str, transformer: nn.Module) -> None:
    model = camkit.load_model(transformer, classes=list("abcde"), preprocess=Preprocess((64, 64)))
    photo, other = test_detection.photo(), test_detection.photo(0.2, 0.9)

    def found() -> Tensor:
        encoder = camkit.encoder(model)
        alike = camkit.likeness(encoder, other)
        return torch.as_tensor(camkit.explain(encoder, photo, target=alike, method=method).map)

    wanted = found()
    model.to(device="fake:0")
    close(found(), wanted, 1e-4)


@pytest.mark.usefixtures("without_double")
@pytest.mark.parametrize("name", discovery.names("metric"))
def test_every_metric_without_float64(name: str, net: nn.Module, there: nn.Module, x: Tensor) -> None:
    if name == "ssim":
        pytest.importorskip("skimage")

    def scores(module: nn.Module, inputs: Tensor) -> Tensor:
        def explain(inputs: Tensor, targets: Tensor) -> Tensor:
            return camkit.maps(module, inputs, targets, layer="act")

        targets = torch.tensor([0, 3, 1]).to(inputs.device)
        truth = torch.zeros(3, *inputs.shape[-2:], dtype=torch.bool)
        truth[:, 2:9, 3:8] = True
        batch = MapBatch(
            explain(inputs, targets),
            *(module, inputs, targets),
            truth=truth.to(inputs.device),
            reference=camkit.maps(module, inputs, targets, layer="act", method="layercam"),
            explain=explain,
        )
        metric: Any = loading.make("metric", name, {})
        found = measure(metric, name, batch).values
        assert found.device == inputs.device and found.dtype == torch.float32
        return found

    close(scores(there, x.to(FAKE)), scores(net, x), 1e-4)


# --- fast mode and its graphs -------------------------------------------------------------------------


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes whose bodies were compiled.

    Inductor does not know the device: what it is given runs as it is.
    """
    import torch._inductor

    shapes = []

    def compile(graph: Any, examples: list[Tensor], **_: Any) -> Any:
        if examples[0].is_floating_point():  # else classes: what is above the layer
            shapes.append(examples[0].shape)
        return graph

    monkeypatch.setattr(torch._inductor, "compile", compile)
    return shapes


@pytest.mark.parametrize("method", ["gradcam", "layercam", "eigencam", "finercam", "ablationcam"])
def test_fast_mode_as_on_the_cpu(
    method: str, net: nn.Module, there: nn.Module, x: Tensor, compiled: list[torch.Size]
) -> None:
    def fast(inputs: Tensor) -> Tensor:
        return camkit.maps(there, inputs.to(FAKE), [0, 3, 1], layer="act", method=method, fast=True)

    def plain(inputs: Tensor) -> Tensor:
        return camkit.maps(net, inputs, [0, 3, 1], layer="act", method=method)

    first = fast(x)
    kept = first.clone()
    close(fast(x.flip(0)), plain(x.flip(0)), 1e-4)
    assert torch.equal(first.cpu(), kept.cpu()), "the second call wrote into the result of the first"
    close(first, plain(x), 1e-4)
    assert fast(x * torch.nan).isnan().all()
    close(fast(x), plain(x), 1e-4)
    assert compiled == [x.shape]
    close(
        camkit.maps(there, x[:2].to(FAKE), 1, layer="act", fast=True),
        camkit.maps(net, x[:2], 1, layer="act"),
        1e-4,
    )
    with torch.no_grad():
        for module in (net, there):
            module.get_submodule("stem.0").weight.mul_(1.5)
    close(fast(x), plain(x), 1e-4)


@pytest.mark.parametrize("targets", [[0, 3, 1], None, "on the device"], ids=["given", "predicted", "there"])
@pytest.mark.parametrize("method", [sorted(AT_ONCE), "gradcam"], ids=["all", "gradcam"])
def test_one_class_is_one_graph(
    method: Any,
    targets: Any,
    net: nn.Module,
    there: nn.Module,
    x: Tensor,
    compiled: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From the inputs to the maps: nothing is launched one by one, so the steps are never asked for."""
    if targets == "on the device":
        given: Any = torch.tensor([0, 3, 1]).to(FAKE)
        wanted_of: Any = [0, 3, 1]
    else:
        given = wanted_of = targets
    replayed: list[fake_graphs.Graph] = []
    replay = fake_graphs.Graph.replay
    monkeypatch.setattr(fake_graphs.Graph, "replay", lambda graph: replayed.append(graph) or replay(graph))

    def maps(inputs: Tensor) -> dict[Any, Tensor]:
        found: dict[Any, Tensor] = camkit.maps_by(
            there, inputs.to(FAKE), given, layer=["act"], method=method, fast=True, frozen=True
        )
        return found

    maps(x)
    monkeypatch.setattr(native_compiled, "forward", None)
    for inputs in (x, x.flip(0), x * 2):
        replayed.clear()
        found = maps(inputs)
        assert len(replayed) == 1
        for key, wanted in camkit.maps_by(net, inputs, wanted_of, layer=["act"], method=method).items():
            close(found[key], wanted, 1e-4)


def test_threads_on_one_model_and_several_shapes(net: nn.Module, there: nn.Module, compiled: Any) -> None:
    from concurrent.futures import ThreadPoolExecutor

    inputs = [
        torch.randn(2 + n % 2, 3, 16, 12, generator=torch.Generator().manual_seed(n)) for n in range(12)
    ]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: camkit.maps(there, x.to(FAKE), 1, layer="act", fast=True), inputs))
    for x, map in zip(inputs, found, strict=True):
        close(map, camkit.maps(net, x, 1, layer="act"), 1e-4)


def test_a_graph_of_another_device_than_the_current_one(there: nn.Module, x: Tensor, compiled: Any) -> None:
    other = torch.device("fake:1")
    assert torch.accelerator.current_device_index() == 0
    moved = copy.deepcopy(there).to(other)
    found = camkit.maps(moved, x.to(other), 1, layer="act", fast=True)
    assert found.device == other
    close(found, camkit.maps(there, x.to(FAKE), 1, layer="act").cpu(), 1e-4)


def test_what_a_graph_refuses(x: Tensor) -> None:
    pool = graphs.Pool(FAKE)
    with pytest.raises(RuntimeError, match="the host waits"):
        graphs.Graph(lambda t: t + float(t.sum()), (x.to(FAKE),), pool)
    with pytest.raises(camkit.CamkitError, match="nothing was recorded"):
        graphs.Graph(lambda t: "nothing", (x.to(FAKE),), pool)
    graph = graphs.Graph(lambda t: (t * 2, "a text"), (x.to(FAKE),), pool)
    twice, text = graph(x.to(FAKE) + 1)
    close(twice, (x + 1) * 2)
    assert text == "a text"


# --- how often the host waits -------------------------------------------------------------------------


def waits(call: Any) -> int:
    """Of the second call: the first finds out how the layer is to be read, and more."""
    call()
    before = NATIVE.waits()
    call()
    return int(NATIVE.waits() - before)


ONE_PASS = [
    "gradcam",
    "gradcam++",
    "xgradcam",
    "hirescam",
    "layercam",
    "gradcam-elementwise",
    "activations",
]
TARGETS: dict[str, Any] = {
    "one for all": 2,
    "predicted": None,
    "a list": [0, 3, 1],
    "on the device": torch.tensor([0, 3, 1]).to(FAKE),
    "a function": lambda scores: scores[:, 1] - scores[:, 0],
}


@pytest.mark.parametrize("targets", TARGETS.values(), ids=TARGETS.keys())
@pytest.mark.parametrize("method", [*ONE_PASS, "finercam", "ablationcam", "shapleycam", ONE_PASS])
def test_a_call_waits_once(
    method: Any, targets: Any, there: nn.Module, x: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "COPIED_AT_ONCE", {"fake"})
    if callable(targets) and method == "finercam":
        pytest.skip("it holds a class against others")
    inputs = x.to(FAKE)
    assert waits(lambda: camkit.maps_by(there, inputs, targets, layer=["act", "body"], method=method)) <= 1


def test_all_classes_wait_once(there: nn.Module, x: Tensor) -> None:
    inputs = x.to(FAKE)
    assert waits(lambda: camkit.class_maps(there, inputs, layer="act")) <= 1


def test_fast_mode_waits_once(there: nn.Module, x: Tensor, compiled: Any) -> None:
    inputs = x.to(FAKE)
    assert waits(lambda: camkit.maps(there, inputs, 1, layer="act", fast=True, frozen=True)) <= 1
    # Whether the model has changed is another question.
    assert waits(lambda: camkit.maps(there, inputs, 1, layer="act", fast=True)) <= 2


@pytest.mark.parametrize("fast", [False, True])
def test_a_class_that_is_not_there_is_told_though_nobody_waited(
    fast: bool, there: nn.Module, x: Tensor, compiled: Any
) -> None:
    for wrong in ([0, 5, 1], [0, -1, 1]):
        for targets in (wrong, torch.tensor(wrong), torch.tensor(wrong).to(FAKE)):
            with pytest.raises(camkit.errors.TargetError, match=r"there is no class (5|-1)"):
                camkit.maps(there, x.to(FAKE), targets, layer="act", fast=fast)


class Normed(nn.Module):
    """A LayerNorm over the channels, then their means."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=0.0).mean((1, 2))


def test_what_has_to_be_said_is_said_though_nobody_waited(there: nn.Module, x: Tensor) -> None:
    there.fc.weight.data[3] = 0
    with pytest.warns(camkit.errors.CamkitWarning, match="image 1: gradcam is zero everywhere"):
        camkit.maps(there, x.to(FAKE), [0, 3, 1], layer="act")
    torch.manual_seed(0)
    normed = nn.Sequential(nn.Conv2d(3, 8, 3), Normed(), nn.Linear(8, 3)).eval()
    with pytest.warns(camkit.errors.CamkitWarning, match="hirescam at layer '0' is only rounding noise"):
        camkit.maps(normed.to(FAKE), x.to(FAKE), 1, layer="0", method="hirescam")


# --- time, memory, another card -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fake:0", "fake:1"])
def test_time_is_taken_to_the_end_of_the_work(name: str) -> None:
    device = torch.device(name)
    x, order = torch.randn(4, 4).to(device), []
    take, synchronise = timing.timer(device), devices.synchronise

    def noted(where: torch.device) -> None:
        order.append(str(where))
        synchronise(where)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "synchronise", noted)
        sample = take(lambda: order.append("call") or x @ x)
    assert order == [name, "call", name], "nothing before it counts, and all of it does"
    assert sample.enqueue is not None and 0 < sample.enqueue <= sample.host
    assert timing.peak_memory(lambda: x @ x, device) == {}  # it keeps no account
    assert devices.kernel_seconds(lambda: x @ x, device) is None


def test_the_benchmark_of_a_device(tmp_path: Path, compiled: Any) -> None:
    """Forwards that are recorded and replayed, and the peers, with all maps compared first."""
    from benchmarks import native

    asked = ["--device", "fake", "--case", "1x64", "--rounds", "1", "--calls", "3"]
    native.main([*asked, "--out", str(tmp_path / "native.json")])
    told = json.loads((tmp_path / "native.json").read_text())
    (case,) = told["cases"]
    assert told["device"] == "fake Fake accelerator"
    for name in (native.BARE, native.GRAPH, native.HALF_GRAPH, "one class, fast", "pytorch-grad-cam"):
        assert {len(seconds) for seconds in case["seconds"][name].values()} == {1}
    assert native.GRAPH in native.report(told, native.BOUNDS_ON_GPU)


def test_inputs_and_model_on_two_devices(net: nn.Module, there: nn.Module, x: Tensor) -> None:
    other = copy.deepcopy(net).to("fake:1")
    cases = [(net, x.to(FAKE)), (there, x), (there, x.to("fake:1")), (other, x.to(FAKE))]
    told = r"the model is on .* and the inputs are on "
    for module, inputs in cases:
        for method in ("gradcam", "scorecam", "eigencam"):
            for options in ({}, {"fast": True}):
                with pytest.raises(camkit.errors.UsageError, match=told) as caught:
                    camkit.maps(module, inputs, 1, layer="act", method=method, **options)
                assert "\n" not in str(caught.value)


# --- out of memory ------------------------------------------------------------------------------------


def limited(net: nn.Module) -> LoadedModel:
    loaded = camkit.load_model(net, classes=[str(n) for n in range(5)], preprocess=Preprocess((16, 12)))
    return loaded.to(device="fake:0")


@pytest.mark.parametrize("options", [{}, {"fast": True}])
def test_a_batch_that_does_not_fit_is_halved(
    options: dict[str, Any], net: nn.Module, tmp_path: Path, compiled: Any, recwarn: pytest.WarningsRecorder
) -> None:
    pixels = torch.randint(
        256, (9, 16, 12, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / f"{number}.png")
    work, paths = plan(limited(net), layer="act", options=options), sorted(tmp_path.iterdir())

    def found() -> list[Any]:
        return list(stream(work, paths, batch_size=8))

    whole = found()
    NATIVE.limit(3 * 6 * 16 * 12 * 4)  # bytes of an allocation: the output of `stem` for three photographs
    warnings.simplefilter("always")
    halved = found()
    assert all(isinstance(result, Explanation) for result in halved)
    for one, other in zip(whole, halved, strict=True):
        close(one.map, other.map, 1e-4)
    told = [str(warning.message) for warning in recwarn if "out of memory" in str(warning.message)]
    assert told == ["out of memory on fake:0 with 8 photographs at once: 2 at once from here on"]
    NATIVE.limit(10)
    with pytest.raises(camkit.errors.ModelError, match="out of memory on fake:0: a smaller size"):
        found()
