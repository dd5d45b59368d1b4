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
from typing import Any

import pytest
import timm
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import camkit
from camkit import capture, fast
from camkit.capture import as_it_was
from camkit.errors import CamkitWarning, LayerError
from camkit.fast import KEPT, Weights, remembered
from camkit.images import load, sample
from camkit.native import Native


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
    """The shapes that were compiled so far."""
    import torch._inductor

    original, shapes = torch._inductor.compile, []

    def compile(graph: Any, examples: list[Tensor], **options: Any) -> Any:
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
        several = camkit.maps(small_net, batch, 1, layer=["body"], method=Native.methods, **options)
        assert isinstance(several, dict) and len(several) == len(Native.methods)
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
        plain = camkit.maps(model, batch, 1, layer=layers, method=["gradcam", "ablationcam"])
        quick = camkit.maps(model, batch, 1, layer=layers, method=["gradcam", "ablationcam"], fast=True)
        assert isinstance(plain, dict) and list(quick) == list(plain) and len(plain) == 2 * len(layers)
        for key, expected in plain.items():
            assert_close_to_peak(quick[key], expected)
    assert len(compilations) == 1
    assert not any(m._forward_hooks for m in model.modules())


def test_nothing_is_compiled_where_no_layer_is_below_all_others(
    batch: Tensor, compilations: list[torch.Size]
) -> None:
    with pytest.warns(CamkitWarning, match="one below all others"):
        camkit.maps(two_stages().eval(), batch, 1, layer=["1", "1.0"], fast=True)
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
        maps = camkit.maps(model, x, [1, 0], layer=[layer], method=Native.methods, **options)
        assert isinstance(maps, dict)
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


def test_hooks_of_camkit_in_another_thread_are_no_hindrance(batch: Tensor, compiles: None) -> None:
    model = two_stages().eval()
    expected = camkit.maps(model, batch, 1, layer="1")
    with ThreadPoolExecutor(1) as other, capture.captured(model, ["0", "1"], batch.shape) as found:
        quick = other.submit(camkit.maps, model, batch, 1, layer="1", fast=True).result()
        assert not found
        model(batch)
    assert_close_to_peak(quick, expected)


def test_a_photograph_in_bfloat16(compiles: None) -> None:
    model = camkit.load_model("pets")
    x = model.preprocess(load(sample()).image)[None]
    methods = ["gradcam", "gradcam++", "hirescam", "layercam"]
    plain = camkit.maps(model.module, x, layer=["auto"], method=methods)
    quick = camkit.maps(model.module, x, layer=["auto"], method=methods, dtype="bfloat16", fast=True)
    assert isinstance(plain, dict) and isinstance(quick, dict)
    for key, found in quick.items():
        assert found.dtype == torch.float32
        assert spearmanr(found.flatten(), plain[key].flatten()).statistic >= 0.99


# --- what is remembered ---------------------------------------------------------------------------


def test_changed_weights_are_compiled_anew(
    small_net: nn.Module, batch: Tensor, compilations: list[torch.Size]
) -> None:
    for compiled, change in enumerate([None, write_data, None], start=1):
        if change:
            change(small_net)
        for _ in range(2):  # of a copy, which is kept, too
            quick = camkit.maps(small_net, batch.double(), 1, layer="body", fast=True, dtype="float32")
            assert_close_to_peak(quick, camkit.maps(small_net, batch, 1, layer="body"))
        assert len(compilations) == min(compiled, 2)


def write(model: Any) -> None:
    with torch.no_grad():
        model.fc.weight.mul_(2)


def load_state(model: Any) -> None:
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})


def step(model: Any) -> None:
    model.fc.weight.grad = torch.ones_like(model.fc.weight)
    torch.optim.SGD(model.parameters(), lr=0.1).step()


def train(model: Any) -> None:
    model.train()
    model(torch.randn(2, 3, 8, 8))
    model.eval()


def replace_parameter(model: Any) -> None:
    model.fc.bias = nn.Parameter(torch.zeros(5))


def replace_layer(model: Any) -> None:
    model.act = nn.GELU()


def add_layer(model: Any) -> None:
    model.stem.append(nn.ReLU())


def write_data(model: Any) -> None:
    model.body[0].weight.data.mul_(1.01)


def cast(model: Any) -> None:
    model.double()


@pytest.mark.parametrize(
    "change",
    [write, load_state, step, train, replace_parameter, replace_layer, add_layer, write_data, cast],
)
def test_changes_that_are_noticed(small_net: nn.Module, change: Callable[[Any], None]) -> None:
    weights = Weights(small_net)
    assert weights.unchanged()
    change(small_net)
    assert not weights.unchanged()


def test_what_is_no_change(small_net: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        small_net.fc.weight[0, 0] = torch.nan  # NaN is not equal to itself
    weights = Weights(small_net)
    small_net(batch).sum().backward()
    small_net.train().requires_grad_(False).eval()
    with as_it_was(small_net, batch.device):
        assert weights.unchanged()
    assert Weights(nn.ReLU()).unchanged()  # which has no tensors


def test_values_are_made_once_for_a_model_and_its_weights(small_net: nn.Module) -> None:
    made: list[str] = []

    def ask(key: str) -> int:
        return remembered(small_net, key, lambda: made.append(key) or len(made))  # type: ignore[func-returns-value]

    assert [ask("a"), ask("b"), ask("a")] == [1, 2, 1]
    write(small_net)
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
    count = len(fast._MEMORIES)
    parameter = weakref.ref(model[0].weight)
    del model
    gc.collect()
    gc.collect()
    assert parameter() is None
    assert len(fast._MEMORIES) == count - 1
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
        (Undecided, "conv", "its forward cannot be traced .*control flow"),
        (two_stages, ["1", "1.0"], "of several layers it needs one below all others"),
        (hooked, "norm", "the model has hooks"),
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
    plain = camkit.maps(model, batch, 1, layer=layer)
    for _ in range(2):
        with pytest.warns(CamkitWarning, match=f"without fast mode: .*{reason}") as warned:
            quick = camkit.maps(model, batch, 1, layer=layer, fast=True)
        assert len(warned) == 1 and "\n" not in str(warned[0].message)
        torch.testing.assert_close(quick, plain)
    assert capsys.readouterr().err == ""  # torch prints graphs and logs of what it cannot export


def test_what_is_compiled_is_compared_with_the_model(batch: Tensor, compiles: None) -> None:
    with pytest.warns(CamkitWarning, match="returns something else"):
        maps = camkit.maps(behind(Noise).eval(), batch, 1, layer="1", fast=True)
    assert maps.shape == (3, 16, 12)


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
    with pytest.warns(CamkitWarning, match="a model with one input"):
        camkit.maps(Skip().eval(), [batch, torch.ones(3, 1)], 1, layer="norm", fast=True)
    with torch.autocast("cpu"), pytest.warns(CamkitWarning, match="autocast"):
        camkit.maps(small_net, batch, 1, layer="body", fast=True)


def test_without_a_compiler(small_net: nn.Module, batch: Tensor) -> None:
    from torch._inductor import config

    odd = batch[..., :11]  # a shape that no other test has compiled
    without = config.patch({"cpp.cxx": ("no-such-compiler",)})
    with without, pytest.warns(CamkitWarning, match="No working C\\+\\+ compiler found"):
        quick = camkit.maps(small_net, odd, 1, layer="body", fast=True)
    assert torch.equal(quick, camkit.maps(small_net, odd, 1, layer="body"))
