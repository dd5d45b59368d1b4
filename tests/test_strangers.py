"""Models as strangers bring them: the map is that of a reference by hand, or one line names the cause."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import camkit
from camkit.core.call_types import Call
from camkit.core.layer_lookup import resolve_layers
from camkit.errors import CamkitWarning, LayerError, ModelError, UsageError
from camkit.images.preprocess import Preprocess

BACKENDS = ["native", "captum", "pytorch-grad-cam", "torchcam"]


def scores_of(column: int) -> Callable[[Tensor], Tensor]:
    return lambda output: output[:, column]


def reference(
    model: nn.Module,
    inputs: Tensor,
    layer: nn.Module,
    score: Callable[[Any], Tensor],
    to_map: Callable[[Tensor], Tensor] = lambda t: t,
) -> Tensor:
    """Grad-CAM by hand: `[B, h, w]`, from a leaf that takes the place of the layer's output."""
    leaves: list[Tensor] = []

    def cut(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        leaves.append(output.detach().requires_grad_())
        return leaves[0].clone()

    handle = layer.register_forward_hook(cut, prepend=True)
    try:
        with torch.enable_grad():
            total = score(model(inputs)).sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(total, leaves[0])
    features, slopes = to_map(leaves[0].detach()).float(), to_map(gradient).float()
    weights = slopes.mean(tuple(range(2, slopes.ndim)), keepdim=True)
    return (weights * features).sum(1)


def same(found: Any, expected: Tensor, share: float = 1e-4) -> None:
    """Equal to a share of the peak."""
    assert found.shape == expected.shape
    assert float((found.float() - expected).abs().max()) <= share * float(expected.abs().max())


def seeded(make: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return make().eval()


def pooled(*body: nn.Module, channels: int = 8, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


@pytest.fixture
def photos() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


# --- rows that are not the images -----------------------------------------------------------------


class Tiles(nn.Module):
    """An image becomes four tiles, which go through the body as images of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tiles = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 16, 16)
        return self.fc(self.body(tiles).mean((2, 3)).view(len(x), 4, 8).mean(1))


class Flips(nn.Module):
    """The mean over an image and its mirror image, stacked."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pooled(nn.Conv2d(3, 8, 3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.net(torch.cat([x, x.flip(-1)])).chunk(2)
        return (a + b) / 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("make", "layer", "rows"), [(Tiles, "body", 8), (Flips, "net.0", 4)])
def test_rows_that_are_not_images_are_refused(
    make: Any, layer: str, rows: int, backend: str, photos: Tensor
) -> None:
    with pytest.raises(LayerError, match=f"{rows} rows .*2 images"):
        camkit.maps(seeded(make), photos, 1, layer=layer, backend=backend)


def test_auto_never_takes_rows_for_images(photos: Tensor) -> None:
    with pytest.raises(LayerError, match=r"4 rows .*1 image"):
        camkit.maps(seeded(Tiles), photos, 1)


class Sequences(nn.Module):
    """A transformer of tokens `[N, B, C]`, as `nn.TransformerEncoder` has it by default."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.norm = nn.LayerNorm(16)
        self.mix = nn.Linear(16, 16)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1)
        return self.fc(self.mix(self.norm(tokens)).tanh().mean(0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_tokens_first_where_it_is_said(backend: str, photos: Tensor) -> None:
    model = seeded(Sequences)
    with pytest.raises(LayerError, match="layout='tokens-first'"):
        camkit.maps(model, photos, 1, layer="norm", backend=backend)
    expected = reference(
        model, photos, model.norm, scores_of(1), lambda t: t.permute(1, 2, 0).unflatten(2, (4, 4))
    )
    found = camkit.maps(model, photos, 1, layer="norm", backend=backend, layout="tokens-first")
    same(found, expected)


def test_as_many_tokens_as_images_are_told_apart() -> None:
    model, x = seeded(Sequences), torch.randn(16, 3, 32, 32)
    expected = reference(
        model, x, model.norm, scores_of(1), lambda t: t.permute(1, 2, 0).unflatten(2, (4, 4))
    )
    same(camkit.maps(model, x, 1, layer="norm"), expected)


@pytest.mark.parametrize("method", ["ablationcam", "scorecam", "hirescam", "shapleycam", "eigencam"])
def test_other_methods_take_tokens_first(method: str, photos: Tensor) -> None:
    class Usual(Sequences):
        def forward(self, x: Tensor) -> Tensor:
            tokens = self.patches(x).flatten(2).transpose(1, 2)
            return self.fc(self.mix(self.norm(tokens)).tanh().mean(1))

    first, usual = seeded(Sequences), seeded(Usual)
    found = camkit.maps(first, photos, 1, layer="norm", method=method, layout="tokens-first")
    same(found, camkit.maps(usual, photos, 1, layer="norm", method=method), 1e-3)


# --- channels and positions -----------------------------------------------------------------------


class Eeg(nn.Module):
    """62 electrodes, pooled along time only: 64 channels would also be a number of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 64, (1, 10)), nn.Conv2d(64, 64, (1, 10))
        self.act, self.pool, self.fc = nn.ReLU(), nn.MaxPool2d((1, 6)), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.second(self.pool(self.first(x).relu())))
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("layer", ["second", "act"])
def test_pooling_along_one_direction(layer: str, backend: str) -> None:
    model, x = seeded(Eeg), torch.randn(2, 1, 62, 200)
    expected = reference(model, x, model.get_submodule(layer), scores_of(1))
    assert expected.shape == (2, 62, 22)
    same(camkit.maps(model, x, 1, layer=layer, backend=backend), expected)


class Signal(nn.Module):
    """A transformer of one dimension: nothing in `[B, 32, 48]` tells which are the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv1d(1, 48, 4, 4)
        self.block = nn.Sequential(nn.Linear(48, 48), nn.GELU())
        self.fc = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).transpose(1, 2)
        return self.fc((tokens + self.block(tokens)).mean(1))


def test_tokens_of_a_signal() -> None:
    model, x = seeded(Signal), torch.randn(2, 1, 128)
    expected = reference(model, x, model.block, scores_of(1), lambda t: t.transpose(1, 2))
    assert expected.shape == (2, 32)
    same(camkit.maps(model, x, 1, layer="block"), expected)
    same(camkit.maps(model, x, 1, layer="block", layout="tokens"), expected)
    channels = reference(model, x, model.patches, scores_of(1))
    same(camkit.maps(model, x, 1, layer="patches"), channels)


class Flat(nn.Module):
    """Positions in one dimension behind the channels: `[B, 49, 49]` is not 49 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 49, 4, 4)
        self.flat = nn.Flatten(2)
        self.norm = nn.BatchNorm1d(49)
        self.fc = nn.Linear(49, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.flat(self.body(x))).relu().mean(-1))


@pytest.mark.parametrize("layer", ["flat", "norm"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_before_positions_in_a_row(layer: str, backend: str) -> None:
    model, x = seeded(Flat), torch.randn(2, 3, 28, 28)
    expected = reference(
        model, x, model.get_submodule(layer), scores_of(1), lambda t: t.unflatten(2, (7, 7))
    )
    same(camkit.maps(model, x, 1, layer=layer, backend=backend), expected)


class Opaque(nn.Module):
    """Nothing around the layer tells what its dimensions are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("bchw,cd->bdhw", x, torch.ones(3, 12))
        return torch.einsum("bdhw,dhw->bd", self.layer(mixed), torch.ones(12, 12, 12))[:, :3]


def test_what_stays_open_is_refused_and_the_way_out_works() -> None:
    x = torch.randn(2, 3, 12, 12)
    with pytest.raises(LayerError, match=r"channels-first .* or channels-last .*layout="):
        camkit.maps(Opaque(), x, 1, layer="layer")
    model = Opaque()
    same(
        camkit.maps(model, x, 1, layer="layer", layout="channels-first"),
        reference(model, x, model.layer, scores_of(1)),
    )
    same(
        camkit.maps(model, x, 1, layer="layer", layout="channels-last"),
        reference(model, x, model.layer, scores_of(1), lambda t: t.movedim(-1, 1)),
    )


def test_a_layout_that_does_not_exist_or_fit(photos: Tensor) -> None:
    model = seeded(lambda: pooled(nn.Conv2d(3, 8, 3)))
    with pytest.raises(UsageError, match=r"'?channels-first.*'NCHW'"):
        camkit.maps(model, photos, 1, layer="0", layout="NCHW")
    with pytest.raises(UsageError, match=r"'token-first'.*'tokens-first'"):
        camkit.maps(model, photos, 1, layer="0", layout="token-first")
    with pytest.raises(LayerError, match=r"layout tokens\b.*leave the layout out"):
        camkit.maps(model, photos, 1, layer="0", layout="tokens")
    with pytest.raises(LayerError, match=r"layout tokens-first\b"):
        camkit.maps(model, photos, 1, layer="0", layout="tokens-first")
    with pytest.raises(LayerError, match=r"layer .*not 3"):
        camkit.maps(model, photos, 1, layer=3)  # type: ignore[call-overload]


# --- gradients that others lose -------------------------------------------------------------------


class Skip(nn.Module):
    """A hook stores the layer's output, and the head uses it: how fastai's DynamicUnet works."""

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(16, 3)
        self.kept: dict[str, Tensor] = {}
        self.enc.register_forward_hook(lambda _, __, output: self.kept.__setitem__("skip", output))

    def forward(self, x: Tensor) -> Tensor:
        deep = self.down(self.enc(x).relu()).relu()
        return self.fc(torch.cat([deep, self.kept["skip"]], 1).mean((2, 3)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hook_that_stores_the_output(backend: str, photos: Tensor) -> None:
    model = seeded(Skip)
    expected = reference(model, photos, model.enc, scores_of(1))
    same(camkit.maps(model, photos, 1, layer="enc", backend=backend), expected)


class Probe(nn.Module):
    """A body without gradients under a head, in the ways that people write it."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode, self.body, self.fc = (
            mode,
            nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU()),
            nn.Linear(8, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        contexts: dict[str, Callable[[], Any]] = {
            "no_grad": torch.no_grad,
            "set": lambda: torch.set_grad_enabled(self.training),
            "inference": torch.inference_mode,
        }
        with contexts[self.mode]():
            features = self.body(x)
        return self.fc((features.clone() if self.mode == "inference" else features).mean((2, 3)))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["no_grad", "set", "inference"])
def test_a_body_that_runs_without_gradients(mode: str, backend: str, photos: Tensor) -> None:
    model = seeded(lambda: Probe(mode))
    model.mode = "no_grad"
    expected = reference(model, photos, model.body, scores_of(1))
    model.mode = mode
    for layer in ("body", "body.1"):
        same(camkit.maps(model, photos, 1, layer=layer, backend=backend), expected)
    assert not any(part._forward_hooks for part in model.modules())


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.reentrant = reentrant
        self.a, self.c = nn.Conv2d(3, 8, 3, 2), nn.Conv2d(8, 8, 3)
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        run = (
            checkpoint(self.b, x, use_reentrant=self.reentrant) if self.reentrant is not None else self.b(x)
        )
        return self.fc(self.c(run).relu().mean((2, 3)))


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("layer", ["a", "b", "b.1", "c"])
def test_checkpoints(reentrant: bool, layer: str, photos: Tensor) -> None:
    plain, model = seeded(lambda: Checkpointed(None)), seeded(lambda: Checkpointed(reentrant))
    expected = reference(plain, photos, plain.get_submodule(layer), scores_of(1))
    same(camkit.maps(model, photos, 1, layer=layer), expected)
    same(camkit.class_maps(model, photos, layer=layer)[:, 1], expected)  # type: ignore[call-overload]


@pytest.mark.parametrize("inside", [False, True])
def test_compiled_parts_are_looked_into(inside: bool, photos: Tensor) -> None:
    plain = seeded(lambda: pooled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())))
    model = seeded(lambda: pooled(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())))
    expected = reference(plain, photos, plain[0][1], scores_of(1))
    if inside:
        model[0] = torch.compile(model[0], backend="eager")
        layer = "0._orig_mod.1"
    else:
        model.compile(backend="eager")
        layer = "0.1"
    with torch.no_grad():
        model(photos)
    same(camkit.maps(model, photos, 1, layer=layer), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [64, 256])
def test_float16_does_not_lose_small_gradients(size: int, backend: str) -> None:
    model = seeded(lambda: pooled(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()))
    with torch.no_grad():
        model[4].weight.mul_(0.1)
    x = torch.randn(1, 3, size, size)
    expected = reference(model, x, model[1], scores_of(1))
    same(camkit.maps(model.half(), x.half(), 1, layer="1", backend=backend), expected, 2e-2)


def test_float16_under_autocast_and_at_a_softmax() -> None:
    model = seeded(lambda: pooled(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()))
    with torch.no_grad():
        model[4].weight.mul_(0.1)
    x = torch.randn(1, 3, 256, 256)
    expected = reference(model, x, model[1], scores_of(1))
    with torch.autocast("cpu", torch.float16):
        same(camkit.maps(model, x, 1, layer="1"), expected, 2e-2)
    ends = nn.Sequential(*model, nn.Softmax(1)).eval()
    expected = reference(ends, x, ends[1], scores_of(1))
    for method in ("gradcam", "shapleycam"):
        maps = camkit.maps(ends.half(), x.half(), 1, layer="1", method=method)
        assert torch.is_tensor(maps) and maps.any()
    same(camkit.maps(ends, x.half(), 1, layer="1"), expected, 2e-2)


def test_finercam_in_bfloat16(photos: Tensor) -> None:
    model = seeded(lambda: pooled(nn.Conv2d(3, 8, 3), nn.ReLU(), classes=30))
    expected = camkit.maps(model, photos, 1, layer="1", method="finercam")
    found = camkit.maps(model.bfloat16(), photos.bfloat16(), 1, layer="1", method="finercam")
    assert isinstance(expected, Tensor)
    same(found, expected, 5e-2)


# --- maps that say nothing ------------------------------------------------------------------------


def told(call: Callable[[], Any]) -> tuple[Any, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", CamkitWarning)
        result = call()
    return result, [str(w.message) for w in caught if issubclass(w.category, CamkitWarning)]


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sigmoid()])
def test_a_saturated_score_is_the_cause(last: nn.Module, photos: Tensor) -> None:
    model = seeded(lambda: pooled(nn.Conv2d(3, 8, 3), nn.ReLU()))
    with torch.no_grad():
        model[4].weight.mul_(20000)
    ends = nn.Sequential(*model, last).eval()
    maps, said = told(lambda: camkit.maps(ends, photos, layer="1"))
    assert not maps.any()
    assert len(said) == 1 and " 0 or 1" in said[0]


def test_rectified_scores_are_no_saturated_probabilities(photos: Tensor) -> None:
    model = nn.Sequential(seeded(lambda: pooled(nn.Conv2d(3, 8, 3), nn.ReLU())), nn.ReLU())
    with torch.no_grad():
        model[0][4].bias[1] = -100.0
    maps, said = told(lambda: camkit.maps(model, photos, 1, layer="0.1"))
    assert not maps.any() and "zero everywhere" in said[0]


def test_only_the_image_concerned_is_told(photos: Tensor) -> None:
    model = seeded(lambda: pooled(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU()))
    photos[1] = 0
    maps, said = told(lambda: camkit.maps(model, photos, 1, layer="1"))
    assert maps[0].any() and not maps[1].any()
    assert len(said) == 1 and said[0].startswith("image 1: gradcam is zero ")


class Normalised(nn.Module):
    """A LayerNorm over channels right behind the layer: the score does not see the scale of a position."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.fc = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.body(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_rounding_noise_is_told_and_auto_is_not_blind(photos: Tensor) -> None:
    model, photos = seeded(Normalised), 100 * photos  # beside which the epsilon of the LayerNorm is nothing
    for backend in ("native", "pytorch-grad-cam"):
        question = {"layer": "body", "method": "hirescam", "backend": backend}
        maps, said = told(lambda q=question: camkit.maps(model, photos, 1, **q))
        assert maps.any() and len(said) == 1 and "only rounding noise" in said[0]
    for method, layer in (("gradcam", "body"), ("hirescam", "norm"), ("hirescam", "auto")):
        maps, said = told(lambda m=method, at=layer: camkit.maps(model, photos, 1, layer=at, method=m))
        assert maps.any() and not said
    assert resolve_layers(model, "auto", photos) == ["norm"]


# --- errors that name the cause -------------------------------------------------------------------


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.body(x).relu()).sigmoid()
        y[:, :2] = y[:, :2] * 2
        return y.mean((2, 3))


class Stepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x)
        step = torch.heaviside(features.sum((1, 2, 3)), torch.ones(1))
        return self.fc(features.mean((2, 3))) * step[:, None]


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x).mean((2, 3)).detach())


class ByForward(Detached):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body.forward(x).mean((2, 3)))


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
    model[1].register_full_backward_hook(lambda *_: None)
    return pooled(model)


def traced() -> nn.Module:
    return torch.jit.trace(pooled(nn.Conv2d(3, 8, 3)), torch.ones(1, 3, 9, 9))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("make", "layer", "error", "message"),
    [
        (InPlace, "body", ModelError, "in place.*Sigmoid"),
        (Stepped, "body", ModelError, "heaviside"),
        (Detached, "body", LayerError, "depend on the target layer"),
        (ByForward, "body", LayerError, "`forward`"),
        (hooked, "0.0", ModelError, "full backward hook"),
        (lambda: pooled(nn.Conv2d(1, 8, 3)), "0", UsageError, "1 for the model and 3"),
        (lambda: pooled(nn.Conv2d(3, 8, 3)).half(), "0", UsageError, "float16 .*float32"),
        (lambda: pooled(nn.Conv2d(3, 8, 3)).to("meta"), "0", ModelError, "meta"),
        (lambda: pooled(nn.Conv2d(3, 8, 99)), "0", ModelError, r"inputs .*\[2, 3, "),
        (traced, "0", ModelError, "traced"),
    ],
)
def test_the_cause_is_named(
    make: Any, layer: str, error: type[Exception], message: str, backend: str, photos: Tensor
) -> None:
    model = seeded(make)
    with pytest.raises(error, match=message) as caught:
        camkit.maps(model, photos, 1, layer=layer, backend=backend)
    assert "\n" not in str(caught.value)


def test_what_the_users_code_raises_comes_through(photos: Tensor) -> None:
    class Broken(Detached):
        def forward(self, x: Tensor) -> Tensor:
            self.body(x)
            raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        camkit.maps(Broken(), photos, 1, layer="body")


def test_results_left_in_the_model_do_not_hinder_a_cast(photos: Tensor) -> None:
    class Keeps(Detached):
        def forward(self, x: Tensor) -> Tensor:
            self.seen = [self.body(x).relu()]
            return self.fc(self.seen[0].mean((2, 3)))

    model = seeded(Keeps)
    expected = reference(model, photos, model.body, scores_of(1))
    model(photos)
    same(camkit.maps(model, photos, 1, layer="body", dtype="bfloat16"), expected, 2e-2)
    model(photos)
    same(camkit.maps(model, photos, 1, layer=model.body, dtype="bfloat16"), expected, 2e-2)
    same(camkit.maps(model, photos, 1, layer="body", device="cpu", dtype="float32"), expected)


# --- auto in wrappers, and its cost ---------------------------------------------------------------


class Attentive(nn.Module):
    """A transformer whose class token alone is read: behind the last attention patches do not matter."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.layers = nn.ModuleList([Block(), Block()])
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1)
        for layer in self.layers:
            tokens = layer(tokens)
        return self.fc(self.norm(tokens)[:, 0])


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention, self.after = nn.LayerNorm(16), SelfAttention(), nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 16), nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        return x + self.mlp(self.after(x))


class Wrapped(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return {"logits": self.net(x)}


@pytest.mark.parametrize(
    ("wrap", "layer", "output"),
    [
        (lambda net: net, "layers.1.before", None),
        (nn.DataParallel, "module.layers.1.before", None),
        (lambda net: nn.Sequential(nn.BatchNorm2d(3), net), "1.layers.1.before", None),
        (Wrapped, "net.layers.1.before", "logits"),
    ],
)
def test_auto_finds_the_last_norm_that_patches_pass(
    wrap: Any, layer: str, output: str | None, photos: Tensor
) -> None:
    model = wrap(seeded(Attentive)).eval()
    assert resolve_layers(model, "auto", photos, call=Call(output=output)) == [layer]
    maps, said = told(lambda: camkit.maps(model, photos, 1, output=output))
    assert maps.shape == (2, 4, 4) and maps.any() and not said


def test_a_blank_layer_gets_a_hint_that_works(photos: Tensor) -> None:
    maps, said = told(lambda: camkit.maps(seeded(Attentive), photos, 1, layer="layers.1"))
    assert not maps.any() and said[0].endswith("try layer 'layers.1.before'")


def test_auto_is_not_the_scores_themselves(photos: Tensor) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    mean = camkit.maps(model, photos, lambda o: o[:, 2].mean((1, 2)))
    same(mean, camkit.maps(model, photos, lambda o: o[:, 2].mean((1, 2)), layer="1"))  # type: ignore[arg-type]


def test_auto_costs_one_forward_once(photos: Tensor) -> None:
    model, sizes = seeded(lambda: pooled(nn.Conv2d(3, 8, 3), nn.ReLU())), list[int]()
    model[0].register_forward_hook(lambda _, __, output: sizes.append(len(output)))
    camkit.maps(model, photos, 1)
    sizes.clear()
    for _ in range(3):
        camkit.maps(model, photos, 1)
    assert sizes == [2, 2, 2]
    model.insert(2, nn.Conv2d(8, 8, 3))  # another model now
    camkit.maps(model, photos, 1)
    assert resolve_layers(model, "auto", photos) == ["2"]


# --- photographs ----------------------------------------------------------------------------------


def loaded(module: nn.Module, classes: Sequence[str] = ("a", "b", "c")) -> camkit.LoadedModel:
    return camkit.LoadedModel(module, tuple(classes), Preprocess(size=(32, 32)), "strange")


def test_each_backend_has_its_own_scores() -> None:
    """Of two backends in one call the last one's scores were everyone's."""
    from camkit.explaining import pipeline, plan

    model = loaded(seeded(lambda: pooled(nn.Conv2d(3, 8, 3), nn.ReLU())))
    work = plan.plan(model, classes=[1], backends=["native", "captum"], layer="1")
    native, captum = pipeline.stream(work, [Image.new("RGB", (40, 40), (200, 30, 90))])
    assert isinstance(native, camkit.Explanation) and isinstance(captum, camkit.Explanation)
    with torch.no_grad():
        inputs = model.preprocess(Image.new("RGB", (40, 40), (200, 30, 90)))[None]
        expected = float(model.module(inputs)[0, 1])
    assert native.logit == pytest.approx(expected, abs=1e-6)
    assert captum.logit == pytest.approx(expected, abs=1e-6)


def test_doubts_travel_with_the_explanation() -> None:
    result = camkit.explain(
        loaded(seeded(Normalised)),
        Image.new("RGB", (40, 40), (9, 99, 190)),
        layer="body",
        method="hirescam",
    )
    assert any("only rounding noise" in text for text in result.warnings)
