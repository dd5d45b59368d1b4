"""The fast mode: the same maps, from a body that is compiled once and only as long as it is right."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

import camkit
from camkit.contracts.explainer import Sweep
from camkit.core import hooks, model_cache
from camkit.core.model_cache import KEPT, remembered
from camkit.core.model_changes import MOST, Contents
from camkit.errors import CamkitWarning, LayerError
from camkit.explaining.explanation import Explanation
from camkit.explaining.pipeline import stream
from camkit.explaining.plan import plan
from camkit.images.decoding import load, sample
from camkit.images.preprocess import Preprocess
from camkit.images.workers import Failure
from camkit.native.explainer import Native, NativeOptions
from camkit.native.method_table import AT_LAYER


@functools.cache
def compiler() -> str | None:
    """Why nothing can be compiled here."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:
        return f"no C++ compiler: {error}"
    return None


@pytest.fixture
def compiles() -> None:
    if reason := compiler():
        pytest.skip(reason)


@pytest.fixture
def compilations(compiles: None, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes whose bodies were compiled so far."""
    import torch._inductor

    original, shapes = torch._inductor.compile, []

    def compile(graph: Any, examples: list[Tensor], **options: Any) -> Any:
        if examples[0].is_floating_point():  # else classes: what is above the layer
            shapes.append(examples[0].shape)
        return original(graph, examples, **options)

    monkeypatch.setattr("torch._inductor.compile", compile)
    return shapes


def assert_close_to_peak(actual: Tensor, expected: Tensor, relative: float = 1e-4) -> None:
    assert actual.shape == expected.shape
    assert expected.abs().max() > 0
    assert (actual - expected).abs().max() <= relative * expected.abs().max()


def two_stages() -> nn.Module:
    """Layers `0` and `1`, and within the latter `1.0`, `1.1` and `1.2`."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(inplace=True)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


# --- the same maps --------------------------------------------------------------------------------


def test_every_way_to_ask_gives_the_plain_maps_from_one_compilation(
    small_net: nn.Module, batch: Tensor, compilations: list[torch.Size]
) -> None:
    before = copy.deepcopy(small_net.state_dict())

    def ask(**options: Any) -> list[Tensor]:
        several = camkit.maps_by(small_net, batch, 1, layer=["body"], method=AT_LAYER, **options)
        assert len(several) == len(AT_LAYER)
        with torch.inference_mode():
            second = camkit.maps(small_net, batch.clone(), 2, layer="body", **options)
        difference = camkit.maps(small_net, batch, lambda y: y[:, 1] - y[:, 2], layer="body", **options)
        every = camkit.class_maps(small_net, batch, layer="body", **options)
        assert isinstance(every, Tensor)
        return [*several.values(), second, difference, every]

    small_net.train()
    for quick, plain in zip(ask(fast=True), ask(), strict=True):
        assert_close_to_peak(quick, plain)
        assert not quick.requires_grad
    assert compilations == [batch.shape]
    assert all(part.training for part in small_net.modules())
    assert all(torch.equal(small_net.state_dict()[name], value) for name, value in before.items())
    assert not any(vars(parameter) for parameter in small_net.parameters())
    assert not any(part._forward_hooks for part in small_net.modules())
    assert batch.grad is None and not batch.requires_grad


def small_vit() -> nn.Module:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=48, depth=2, num_classes=5)
    nn.init.uniform_(model.blocks[1].norm1.weight)  # with equal weights the mean over channels is zero
    return model


def test_several_layers_from_what_is_compiled_below_the_lowest(
    batch: Tensor, compilations: list[torch.Size]
) -> None:
    model = two_stages().eval()
    for layers in (["1", "0"], ["1.1", "0", "1.0"], ["0"]):
        plain = camkit.maps_by(model, batch, 1, layer=layers, method=["gradcam", "ablationcam"])
        quick = camkit.maps_by(model, batch, 1, layer=layers, method=["gradcam", "ablationcam"], fast=True)
        assert list(quick) == list(plain) and len(plain) == 2 * len(layers)
        for key, expected in plain.items():
            assert_close_to_peak(quick[key], expected)
    assert len(compilations) == 1
    assert not any(m._forward_hooks for m in model.modules())


def test_nothing_is_compiled_where_no_layer_is_below_all_others(
    batch: Tensor, compilations: list[torch.Size]
) -> None:
    with pytest.warns(CamkitWarning, match="below all others"):
        camkit.maps_by(two_stages().eval(), batch, 1, layer=["1", "1.0"], fast=True)
    assert not compilations


class Passing(nn.Module):
    """A layer that returns what goes around it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.same, self.fc = nn.Conv1d(3, 3, 1), nn.Identity(), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.same(x)).tanh().mean(2))


@pytest.mark.parametrize(
    ("make", "layer", "shape"),
    [
        (lambda: Skip(), "conv", (2, 3, 8, 8)),
        (small_vit, "auto", (2, 3, 32, 32)),
        (Passing, "same", (2, 3, 8)),
    ],
)
def test_a_skip_connection_around_the_layer(
    make: Callable[[], nn.Module], layer: str, shape: tuple[int, ...], compilations: list[torch.Size]
) -> None:
    model, x = make().eval(), torch.randn(shape)

    def ask(**options: Any) -> list[Tensor]:
        maps = camkit.maps_by(model, x, [1, 0], layer=[layer], method=AT_LAYER, **options)
        return [*maps.values()]

    with warnings.catch_warnings():
        warnings.simplefilter("error", CamkitWarning)
        quick = ask(fast=True)
    for found, plain in zip(quick, ask(), strict=True):
        assert_close_to_peak(found, plain)
    assert compilations == [x.shape]


def test_threads_share_what_is_compiled(
    small_net: nn.Module, batch: Tensor, compilations: list[torch.Size]
) -> None:
    expected = [camkit.maps(small_net, batch * scale, 1, layer="body") for scale in range(1, 5)]
    found: dict[int, Tensor] = {}

    def ask(scale: int) -> None:
        for _ in range(5):
            found[scale] = camkit.maps(small_net, batch * scale, 1, layer="body", fast=True)

    threads = [threading.Thread(target=ask, args=(scale,)) for scale in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scale in range(1, 5):
        assert_close_to_peak(found[scale], expected[scale - 1])
    assert compilations == [batch.shape]


def test_switches_are_not_read_while_another_thread_compiles(
    small_net: nn.Module, batch: Tensor, compilations: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which turns off the libraries of kernels, so that a second thread compiled for that."""
    from camkit.native import compiled

    read, free = compiled._settings, []

    def is_free() -> bool:
        taken = model_cache.LOCK.acquire(blocking=False)
        if taken:
            model_cache.LOCK.release()
        return taken

    def settings() -> Any:
        with ThreadPoolExecutor(1) as other:
            free.append(other.submit(is_free).result())
        return read()

    monkeypatch.setattr(compiled, "_settings", settings)
    camkit.maps(small_net, batch, 1, layer="body", fast=True)
    assert free and not any(free)


def test_hooks_of_camkit_in_another_thread_are_no_hindrance(batch: Tensor, compiles: None) -> None:
    model = two_stages().eval()
    expected = camkit.maps(model, batch, 1, layer="1")
    with (
        ThreadPoolExecutor(1) as other,
        hooks.captured(model, ["0", "1"], batch.shape, kind="channels-first") as found,
    ):
        quick = other.submit(camkit.maps, model, batch, 1, layer="1", fast=True).result()
        assert not found
        model(batch)
    assert_close_to_peak(quick, expected)


def test_a_photograph_in_bfloat16(compiles: None) -> None:
    """A small network: without instructions for that type a large one takes a minute to be compiled."""
    preprocess = camkit.Preprocess((64, 64))
    x = preprocess(load(sample()).image)[None]
    methods = ["gradcam", "gradcam++", "hirescam", "layercam"]
    plain = camkit.maps_by(two_stages().eval(), x, 1, layer=["1"], method=methods)
    quick = camkit.maps_by(
        two_stages().eval(), x, 1, layer=["1"], method=methods, dtype="bfloat16", fast=True
    )
    for key, found in quick.items():
        assert found.dtype == torch.float32
        assert spearmanr(found.flatten(), plain[key].flatten()).statistic >= 0.99


# --- what is remembered ---------------------------------------------------------------------------


class Scaled(nn.Module):
    """Times a number, plus a tensor that torch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.shift = 1.5, torch.linspace(-1, 1, 4)[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + self.shift


def scaled() -> Any:
    """Layer `stem` is compiled, `fc` is not."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.stem = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), Scaled(), nn.Tanh())
    model.pool, model.flat, model.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 11)
    return model.eval()


def one_element(model: Any) -> None:
    model.stem[0].weight.data[0, 0, 0, 0] += 3


def through_numpy(model: Any) -> None:
    model.stem[0].weight.detach().numpy()[1, 0, 0, 0] = 4


def one_of_a_buffer(model: Any) -> None:
    model.stem[1].running_var.data[2] = 30


def an_attribute(model: Any) -> None:
    model.stem[2].factor = -0.5


def a_tensor_that_is_an_attribute(model: Any) -> None:
    model.stem[2].shift.data[3] = 2


def another_stride(model: Any) -> None:
    model.stem[0].stride = (2, 2)


def another_forward(model: Any) -> None:
    forward = model.stem[2].forward
    model.stem[2].forward = lambda x: forward(x) + 1


CHANGES = [
    one_element,
    through_numpy,
    one_of_a_buffer,
    an_attribute,
    a_tensor_that_is_an_attribute,
    another_stride,
    another_forward,
]


def test_what_changes_is_compiled_anew(batch: Tensor, compilations: list[torch.Size]) -> None:
    model = scaled()
    before = camkit.maps(model, batch, 1, layer="stem")
    for count, change in enumerate([None, *CHANGES], start=1):
        if change:
            change(model)
        plain = camkit.maps(model, batch, 1, layer="stem")
        for _ in range(2):
            quick = camkit.maps(model, batch, 1, layer="stem", fast=True)
            assert_close_to_peak(quick, plain)
        assert len(compilations) == count, change
        if change:
            assert plain.shape != before.shape or (plain - before).abs().max() > 1e-2 * before.abs().max()
        before = plain


def test_what_is_no_change_is_not_compiled_anew(batch: Tensor, compilations: list[torch.Size]) -> None:
    model = scaled()
    model.fc.unused = nn.Parameter(torch.tensor([torch.nan]))  # which is not equal to itself
    for step in (lambda: None, model.train, lambda: model.requires_grad_(False), lambda: model(batch)):
        model.eval()
        step()
        camkit.maps(model, batch, 1, layer="stem", method="eigencam", fast=True)
    assert len(compilations) == 1


def test_a_copy_that_is_kept_is_as_good_as_the_model(batch: Tensor, compilations: list[torch.Size]) -> None:
    model = scaled()
    for count, change in enumerate([None, one_element, one_of_a_buffer, an_attribute], start=1):
        if change:
            change(model)
        for _ in range(2):
            quick = camkit.maps(model, batch.double(), 1, layer="stem", fast=True, dtype="float32")
            assert_close_to_peak(quick, camkit.maps(model, batch, 1, layer="stem"))
        assert len(compilations) == count


def ask(model: nn.Module, inputs: Tensor, *, frozen: bool) -> Tensor:
    def choose(scores: Tensor) -> Tensor:
        return torch.ones(len(scores), 1).long()

    sweep = Sweep(*(model, inputs, ("stem",), ("gradcam",), choose), layout="channels-first", frozen=frozen)
    return Native(NativeOptions(fast=True)).many(sweep)["gradcam", "stem"][:, 0]


def test_what_is_said_to_be_frozen_is_not_read(batch: Tensor, compilations: list[torch.Size]) -> None:
    model = scaled()
    first = ask(model, batch, frozen=True)
    assert_close_to_peak(first, camkit.maps(model, batch, 1, layer="stem"))
    for change in (one_element, one_of_a_buffer, an_attribute, a_tensor_that_is_an_attribute):
        change(model)
        torch.testing.assert_close(ask(model, batch, frozen=True), first)  # as was promised
    assert len(compilations) == 1
    plain = camkit.maps(model, batch, 1, layer="stem")
    assert (plain - first).abs().max() > 0.1 * first.abs().max()
    assert_close_to_peak(ask(model, batch, frozen=False), plain)  # who promises nothing gets the truth
    assert_close_to_peak(ask(model, batch, frozen=True), plain)
    with torch.no_grad():
        model.stem[0].weight.mul_(2)  # counted by torch, so it costs nothing to see it
    plain = camkit.maps(model, batch, 1, layer="stem")
    assert_close_to_peak(ask(model, batch, frozen=True), plain)


def test_a_copy_is_read_unless_the_model_is_frozen() -> None:
    model, made = scaled(), []

    def copies(**options: Any) -> int:
        return remembered(model, "a", lambda: made.append(1) or len(made), **options)  # type: ignore[func-returns-value]

    assert [copies(), copies()] == [1, 1]
    one_element(model)
    assert [copies(frozen=True), copies(), copies()] == [1, 2, 2]
    an_attribute(model)
    assert [copies(frozen=True), copies()] == [2, 3]


def copies(name: str, shape: tuple[int, ...]) -> int:
    """How many copies of weights of this name and shape are kept to compare with."""
    gc.collect()
    kept = [x._copies.get(name) for x in gc.get_objects() if type(x) is Contents]
    return sum(bool(found) and tuple(found[0].shape) == shape for found in kept)


def test_weights_are_copied_once_for_each_model(batch: Tensor, compilations: list[torch.Size]) -> None:
    model, before = scaled(), copies("fc.weight", (11, 4))
    for _ in range(3):
        ask(model, batch, frozen=True)
    assert copies("fc.weight", (11, 4)) == before
    for inputs in (batch, batch[:2], batch, batch[:2]):
        ask(model, inputs, frozen=False)
    assert copies("fc.weight", (11, 4)) == before + 1
    assert len(compilations) == 3  # the promise once, then two shapes


def test_switches_of_torch_that_change_results(batch: Tensor, compilations: list[torch.Size]) -> None:
    model = scaled()
    ask(model, batch, frozen=False)
    torch.use_deterministic_algorithms(True)
    try:
        ask(model, batch, frozen=False)
        assert len(compilations) == 2
    finally:
        torch.use_deterministic_algorithms(False)
    with torch.backends.mkldnn.flags(enabled=False):
        ask(model, batch, frozen=False)
    ask(model, batch, frozen=False)
    assert len(compilations) == 3


def test_values_are_made_once_for_a_model_and_its_weights(small_net: nn.Module) -> None:
    made: list[str] = []

    def ask(key: str) -> int:
        return remembered(small_net, key, lambda: made.append(key) or len(made))  # type: ignore[func-returns-value]

    assert [ask("a"), ask("b"), ask("a")] == [1, 2, 1]
    with torch.no_grad():
        small_net.fc.weight.mul_(2)  # type: ignore[union-attr, operator]
    assert ask("a") == 3
    for number in range(KEPT):  # the oldest gives way
        ask(f"shape {number}")
    ask("a")
    assert made.count("a") == 3


def test_everything_goes_with_the_model(batch: Tensor, compiles: None) -> None:
    from torch._inductor.codecache import PyCodeCache

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(5)).eval()
    model(batch)
    before = len(PyCodeCache.modules)
    camkit.maps(model, batch, 0, layer="1", fast=True)
    constants = [
        weakref.ref(value)
        for module in PyCodeCache.modules[before:]
        for value in vars(module).values()
        if isinstance(value, Tensor)
    ]
    assert constants  # the folded weights, which inductor would keep for ever
    gc.collect()  # models of other tests
    count = len(model_cache._MEMORIES)
    parameter = weakref.ref(model[0].weight)
    del model
    gc.collect()
    gc.collect()
    assert parameter() is None
    assert len(model_cache._MEMORIES) == count - 1
    assert not any(constant() is not None for constant in constants)


# --- what it cannot do ----------------------------------------------------------------------------


class Skip(nn.Module):
    """A skip connection around `conv`, and a second input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(3, 4)

    def forward(self, x: Tensor, offset: float | Tensor = 0.0) -> Tensor:
        return self.fc(self.norm(x + self.conv(x)).relu().mean((2, 3))) + offset


class Undecided(Skip):
    """Its course depends on values."""

    def forward(self, x: Tensor, offset: float | Tensor = 0.0) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x, offset)


class Stem(nn.Module):
    """What it does depends on the values."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.mean() > 0 else x * 3


class Item(nn.Module):
    """Asks for a value, which an export does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum().item() > 0 else x * 3


class Noise(nn.Module):
    """Never returns the same twice."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def behind(stem: type[nn.Module]) -> nn.Module:
    return nn.Sequential(stem(), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))


def hooked() -> nn.Module:
    model = Skip()
    model.norm.register_forward_hook(lambda m, i, o: o + 1)
    return model


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (Undecided, "conv", "traced .*control flow"),
        (two_stages, ["1", "1.0"], "below all others"),
        (hooked, "norm", "hooks"),
        (lambda: behind(Stem), "1", "cannot be compiled"),
        (lambda: behind(Item), "1", "cannot be compiled"),
    ],
)
def test_the_plain_path_serves_the_others(
    batch: Tensor,
    make: Callable[[], nn.Module],
    layer: Any,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = make().eval()
    plain = camkit.maps_by(model, batch, 1, layer=layer)
    for _ in range(2):
        with pytest.warns(CamkitWarning, match=f"without fast mode: .*{reason}") as warned:
            quick = camkit.maps_by(model, batch, 1, layer=layer, fast=True)
        assert len(warned) == 1 and "\n" not in str(warned[0].message)
        torch.testing.assert_close(quick, plain)
    assert capsys.readouterr().err == ""  # torch prints graphs and logs of what it cannot export


def constant(body: Any, example: Tensor) -> Callable[[Tensor], Any]:
    """What ignores its input: the right answer for the example alone."""
    values = body(example)
    return lambda _: [value.clone() for value in values]


def of_the_first_input(body: Any, example: Tensor) -> Callable[[Tensor], Any]:
    return lambda x: body(x + (example - x)[..., :1, :1])


def beside_the_scores(body: Any, _: Tensor) -> Callable[[Tensor], Any]:
    """Wrong where the head does not look."""
    return lambda x: [body(x)[0] + torch.tensor([0, 0, 0, 1.0])[:, None, None]]


@pytest.mark.parametrize("wrong", [constant, of_the_first_input, beside_the_scores])
def test_a_body_that_is_not_that_of_the_model(
    wrong: Callable[[Any, Tensor], Any], batch: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scaled()
    model.fc.weight.data[:, 3] = 0
    monkeypatch.setattr("camkit.native.compiled.Body", lambda body, example, *_: wrong(body, example))
    plain = camkit.maps(model, batch, 1, layer="stem", method="eigencam")
    with pytest.warns(CamkitWarning, match="something else"):
        quick = camkit.maps(model, batch, 1, layer="stem", method="eigencam", fast=True)
    torch.testing.assert_close(quick, plain)


def test_what_is_compiled_is_compared_with_the_model(batch: Tensor, compiles: None) -> None:
    with pytest.warns(CamkitWarning, match="something else"):
        maps = camkit.maps(behind(Noise).eval(), batch, 1, layer="1", fast=True)
    assert maps.shape == (3, 16, 12)


class Recording(nn.Module):
    """Keeps what it saw, as long as it should."""

    def __init__(self) -> None:
        super().__init__()
        self.keeps, self.seen = True, None

    def forward(self, x: Tensor) -> Tensor:
        RUNS.append(x.shape)
        if self.keeps:
            self.seen = x
        return x * 1


class Caching(nn.Module):
    """Makes what it needs when it is needed first."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self.cache:
            self.cache["scale"] = torch.linspace(1, 2, x.shape[1])
        return x * self.cache["scale"]


RUNS: list[torch.Size] = []


def test_a_model_that_changes_itself(batch: Tensor, compilations: list[torch.Size]) -> None:
    model = scaled()
    model.flat = nn.Sequential(nn.Flatten(), Recording())
    plain = camkit.maps(model, batch, 1, layer="stem")
    seen = model.flat[1].seen
    for call in range(3):
        RUNS.clear()
        with pytest.warns(CamkitWarning, match=r"\(flat.1.seen\)"):
            torch.testing.assert_close(camkit.maps(model, batch, 1, layer="stem", fast=True), plain)
        assert len(RUNS) == (1 if call else 3)  # that is found out once
        torch.testing.assert_close(model.flat[1].seen, seen)  # and not with the model itself
    assert not compilations
    model.flat[1].keeps = False
    assert_close_to_peak(camkit.maps(model, batch, 1, layer="stem", fast=True), plain)
    assert len(compilations) == 1


def test_a_model_that_changes_at_first(batch: Tensor, compilations: list[torch.Size]) -> None:
    model = scaled()
    model.flat = nn.Sequential(nn.Flatten(), Caching())
    with pytest.warns(CamkitWarning, match=r"\(flat.1.cache\)"):
        plain = camkit.maps(model, batch, 1, layer="stem", fast=True)
    for _ in range(2):
        assert_close_to_peak(camkit.maps(model, batch, 1, layer="stem", fast=True), plain)
    assert len(compilations) == 1


def test_more_than_can_be_compared(batch: Tensor, compilations: list[torch.Size]) -> None:
    model = scaled()
    model.log = list(range(10 * MOST))
    plain = camkit.maps(model, batch, 1, layer="stem")
    with pytest.warns(CamkitWarning, match="frozen="):
        torch.testing.assert_close(ask(model, batch, frozen=False), plain)
    with pytest.warns(CamkitWarning, match="frozen="):
        quick = camkit.maps(model, batch.double(), 1, layer="stem", fast=True, dtype="float32")
    assert_close_to_peak(quick, camkit.maps(model, batch, 1, layer="stem"))
    assert_close_to_peak(ask(model, batch, frozen=True), plain)
    assert len(compilations) == 1


def hook_forwards(model: Any) -> Any:
    return model.stem[0].register_forward_hook(lambda m, i, o: o * 2)


def hook_before(model: Any) -> Any:
    return model.stem[3].register_forward_pre_hook(lambda m, i: (i[0] * 2,))


def hook_backwards(model: Any) -> Any:
    return model.stem.register_full_backward_pre_hook(lambda m, g: (g[0] * 3,))


def hook_everything(_: Any) -> Any:
    return register_module_forward_hook(lambda m, i, o: o * 2 if isinstance(m, nn.Tanh) else None)


@pytest.mark.parametrize("hook", [hook_forwards, hook_before, hook_backwards, hook_everything])
def test_hooks_that_come_later(hook: Callable[[Any], Any], batch: Tensor, compiles: None) -> None:
    model = scaled()
    before = camkit.maps(model, batch, 1, layer="stem", fast=True)
    handle = hook(model)
    try:
        plain = camkit.maps(model, batch, 1, layer="stem")
        with pytest.warns(CamkitWarning, match="hooks"):
            quick = camkit.maps(model, batch, 1, layer="stem", fast=True)
    finally:
        handle.remove()
    torch.testing.assert_close(quick, plain)
    assert not torch.allclose(plain, before)
    torch.testing.assert_close(camkit.maps(model, batch, 1, layer="stem", fast=True), before)


def test_scores_that_are_all_zero_agree(small_net: Any, batch: Tensor, compiles: None) -> None:
    """A new head may start with weights of zero, as that of torchvision's ViT does."""
    for parameter in small_net.fc.parameters():
        nn.init.zeros_(parameter)
    with pytest.warns(CamkitWarning) as warned:
        assert not camkit.maps(small_net, batch, 1, layer="body", fast=True).any()
    (warning,) = warned
    assert "zero everywhere" in str(warning.message)


def test_a_layer_without_a_map(small_net: nn.Module, batch: Tensor, compiles: None) -> None:
    with pytest.raises(LayerError, match="not a feature map"):
        camkit.maps(small_net, batch, 1, layer="drop", fast=True)


def test_several_inputs_and_autocast(small_net: nn.Module, batch: Tensor) -> None:
    with pytest.warns(CamkitWarning, match="one input"):
        camkit.maps(Skip().eval(), [batch, torch.ones(3, 1)], 1, layer="norm", fast=True)
    with torch.autocast("cpu"), pytest.warns(CamkitWarning, match="autocast"):
        camkit.maps(small_net, batch, 1, layer="body", fast=True)


def test_without_a_compiler(small_net: nn.Module, batch: Tensor) -> None:
    from torch._inductor import config

    odd = batch[..., :11]  # a shape that no other test has compiled
    without = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with without, pytest.warns(CamkitWarning, match="C\\+\\+ compiler"):
        quick = camkit.maps(small_net, odd, 1, layer="body", fast=True)
    assert torch.equal(quick, camkit.maps(small_net, odd, 1, layer="body"))


def test_batches_with_unreadable_photographs_are_compiled_once(
    tmp_path: Path, compilations: list[torch.Size]
) -> None:
    pixels = torch.randint(
        256, (7, 12, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / f"{number}.png")
    for broken in ("1.png", "5.png"):
        (tmp_path / broken).write_bytes(b"no picture")
    model = camkit.load_model(
        scaled(), classes=[str(n) for n in range(11)], preprocess=Preprocess((12, 16))
    )

    def maps(**options: Any) -> list[Explanation | Failure]:
        work = plan(model, layer="stem", options=options)
        return list(stream(work, sorted(tmp_path.iterdir()), batch_size=3))

    quick, plain = maps(fast=True), maps()
    assert compilations == [(3, 3, 12, 16)]  # of batches of 2, 2 and 1
    assert [isinstance(one, Failure) for one in quick] == [number in (1, 5) for number in range(7)]
    for one, other in zip(quick, plain, strict=True):
        if isinstance(one, Explanation) and isinstance(other, Explanation):
            assert_close_to_peak(one.map, other.map, 1e-4)
            assert one.class_index == other.class_index
