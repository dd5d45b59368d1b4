"""LibraGrad: gradients that add up to the score, of the same forward; held against rules written out."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from packaging.version import Version
from PIL import Image
from tests.conftest import SmallNet
from tests.test_attention import FAMILIES
from tests.test_cli import camkit_
from torch import Tensor, nn

import camkit
from camkit.errors import CamkitWarning, UsageError
from camkit.native.libra import Libra

GRADIENT = ("gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "finercam")


class Written(nn.Module):
    """A transformer by hand; with `balanced` the rules stand in the forward itself."""

    def __init__(self, balanced: bool, bias: bool = True) -> None:
        super().__init__()
        self.balanced, width = balanced, 12
        self.patches = nn.Conv2d(3, width, 8, 8, bias=bias)
        self.norms = nn.ParameterList([nn.Parameter(torch.randn(2, width)) for _ in range(2)])
        self.qkv, self.out = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)
        self.gate, self.up, self.down = (nn.Linear(a, b, bias) for a, b in ((12, 20), (12, 20), (20, 12)))
        self.squeeze = nn.Linear(width, width, bias)
        self.head = nn.Linear(width, 4, bias)
        self.bias = bias

    def fixed(self, x: Tensor) -> Tensor:
        return x.detach() if self.balanced else x

    def product(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * y.detach() + x.detach() * y) / 2 + (x * y - x * y).detach() if self.balanced else x * y

    def norm(self, x: Tensor, index: int) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        deviation = (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        weight, bias = self.norms[index]
        return centred / self.fixed(deviation) * weight + (bias if self.bias else 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        y = self.norm(x, 0)
        q, k, v = self.qkv(y).chunk(3, -1)
        weights = (q @ k.mT / 12**0.5).softmax(-1)
        x = x + self.out(self.fixed(weights) @ v)
        y = self.norm(x, 1)
        gate = self.gate(y)
        x = x + self.down(self.product(gate * self.fixed(gate.sigmoid()), self.up(y)))
        x = x * self.fixed(self.squeeze(x.mean(1, keepdim=True)).sigmoid())
        pooled = x.mean(1)
        length = pooled.norm(dim=-1, keepdim=True)
        return self.head(pooled / self.fixed(length))

    def tokens(self, x: Tensor) -> Tensor:
        return self.patches(x).flatten(2).mT


class Usual(Written):
    """The same with the functions of torch that models call."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__(False, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        y = F.layer_norm(x, (12,), self.norms[0][0], self.norms[0][1] if self.bias else None)
        q, k, v = self.qkv(y)[:, None].chunk(3, -1)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        y = F.layer_norm(x, (12,), self.norms[1][0], self.norms[1][1] if self.bias else None)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        x = x * self.squeeze(x.mean(1, keepdim=True)).sigmoid()
        return self.head(F.normalize(x.mean(1), dim=-1))


def pair(bias: bool = True) -> tuple[Usual, Written]:
    torch.manual_seed(0)
    usual, written = Usual(bias).double().eval(), Written(True, bias).double().eval()
    written.load_state_dict(usual.state_dict())
    return usual, written


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).double()


@pytest.mark.parametrize("method", [*GRADIENT, "smoothgrad", "integrated-gradients"])
def test_maps_are_those_of_the_rules_written_out(method: str) -> None:
    usual, written = pair()
    x, about = images(), {"layer": "patches", "method": method}
    found = camkit.maps(usual, x, [1, 2], libra=True, **about)
    if method == "integrated-gradients":  # the rules are not the gradient, and its check says so
        with pytest.warns(CamkitWarning, match="is inexact"):
            wanted = camkit.maps(written, x, [1, 2], **about)
    else:
        wanted = camkit.maps(written, x, [1, 2], **about)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    plain = camkit.maps(usual, x, [1, 2], **about) if method != "integrated-gradients" else found * 0
    assert (found - plain).abs().max() > 0.01 * wanted.abs().max()


def test_without_biases_the_gradient_times_the_input_is_the_score() -> None:
    usual, _ = pair(bias=False)
    x = images().requires_grad_()
    with Libra():
        score = usual(x.clone())[:, 2].sum()
    (gradient,) = torch.autograd.grad(score, x)
    assert (gradient * x).sum().item() == pytest.approx(score.item())
    (plain,) = torch.autograd.grad(usual(x)[:, 2].sum(), x)
    assert (plain * x).sum().item() != pytest.approx(score.item(), rel=0.05)


PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "instance_norm": F.instance_norm,
    "batch_norm by the batch": lambda x: F.batch_norm(x, None, None, training=True),
    "group_norm": lambda x: F.group_norm(x, 3),
    "rms_norm": lambda x: F.rms_norm(x, x.shape[3:]),
    "elu": F.elu,
    "mish": F.mish,
    "tanh as a gate": lambda x: 0.5 * x * (1 + torch.tanh(x + x**3)),
    "a sigmoid by hand": lambda x: x * (1 / (1 + (-x.mean((2, 3), keepdim=True)).exp())),
    "by its length": lambda x: x / x.norm(dim=1, keepdim=True),
    "cosine": lambda x: F.cosine_similarity(x, x.flip(3)),
    "square": lambda x: F.relu(x) ** 2,
    "a root": lambda x: x.relu().add(1e-9).sqrt(),
    "an exponent for each": lambda x: x.abs() ** torch.linspace(1, 3, 5).double(),
    "weights made of the input": lambda x: F.conv2d(x, x[:1, :, :2, :2]),
    "a linear layer of the input": lambda x: F.linear(x, x[0, 0]),
    "addcmul": lambda x: torch.addcmul(x, x.flip(3), x.flip(2)),
    "baddbmm": lambda x: torch.baddbmm(x[:, 0, :, :4], x[:, 1], x[:, 2].mT),
    "written into zeros": lambda x: written(x) * x,
}


def written(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[:, 1:] = x[:, 1:]
    return made


class Seen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # type: ignore[override]
        return x * 2

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient * 2


def _into_a_view(x: Tensor) -> Tensor:
    made = torch.zeros_like(x)
    made[:, 1:].copy_(x[:, 1:])
    return made * x


@pytest.mark.parametrize(
    ("part", "said"),
    [
        (lambda x: torch.lerp(x, x.flip(3), x), "no rule for lerp"),
        (lambda x: x.prod(3), "no rule for prod"),
        (lambda x: torch.einsum("abcd,abcd,abcd->ab", x, x, x), "a product of more than two factors"),
        (lambda x: x.exp() ** x, "no rule for an exponent that depends on the input"),
        (lambda x: x.clone().addcmul_(x, x), "no rule for addcmul_"),
        (lambda x: Seen.apply(x) * x, "does not see how the model makes a value"),
        (_into_a_view, "does not see how the model makes a value"),
    ],
)
def test_what_is_not_balanced_is_refused(part: Callable[[Tensor], Tensor], said: str) -> None:
    x = torch.randn(2, 3, 4, 5).double().requires_grad_()
    with Libra(), pytest.raises(UsageError, match=said):
        part(x)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS.keys())
def test_of_every_part_the_gradient_times_the_input_is_the_output(part: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 5).double().requires_grad_()
    with Libra():
        found = part(x)
    assert torch.equal(found, part(x))
    weights = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    total = (found * weights).sum().item()
    assert (gradient * x).sum().item() == pytest.approx(total, rel=1e-4)  # epsilons are not scaled


MORE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "timm Swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, depths=(1,) * 4),
        64,
    ),
    "timm Swin v2": (
        lambda: timm.create_model("swinv2_tiny_window8_256", img_size=64, depths=(1,) * 4),
        64,
    ),
    "timm ConViT": (lambda: timm.create_model("convit_tiny", depth=2), 224),
    "timm CaiT": (lambda: timm.create_model("cait_xxs24_224", img_size=64, depth=2), 64),
    "timm XCiT": (lambda: timm.create_model("xcit_nano_12_p16_224", img_size=64, depth=2), 64),
    "timm MLP-Mixer": (lambda: timm.create_model("mixer_s32_224", img_size=64), 64),
    "timm ConvNeXt v2": (lambda: timm.create_model("test_convnext2"), 64),
    "timm EfficientNet": (lambda: timm.create_model("test_efficientnet"), 64),
    "torchvision ConvNeXt": (lambda: torchvision.models.convnext_tiny(), 64),
}
# What is added: biases, and tokens and positions that are parameters.
ADDED = (
    "bias",
    "beta",
    "token",
    "tokens",
    "embed",
    "pos_embed",
    "pos_embedding",
    "embeddings",
    "class_embedding",
)


def is_added(name: str) -> bool:
    """Of queries and relative positions nothing is added: they are behind a softmax."""
    *_, last = parts = name.split(".")
    behind = "attn_pool.q." in name or "relative" in name or "cpb" in name
    added = last in ADDED or last.endswith(("_token", "_tokens", "_embed", "_bias")) or "embedding" in last
    return not behind and (added or "position_embedding" in name or "token_projection" in parts)


@pytest.mark.parametrize("name", [*FAMILIES, *MORE])
def test_what_every_part_adds_is_the_score_and_the_forward_is_the_same(name: str) -> None:
    make, size = MORE[name] if name in MORE else (FAMILIES[name].twin or FAMILIES[name].make, 48)
    torch.manual_seed(0)
    model = make().double().eval()
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.add_(0.1 * torch.randn_like(parameter))
    shape = (32, 48) if name in FAMILIES and name.startswith("timm") else (size, size)
    x = torch.randn(2, 3, *shape).double().requires_grad_()
    added = {n: p for n, p in model.named_parameters() if is_added(n)}
    plain = model(x.clone())
    with Libra() as libra:
        scores = model(x.clone())
    assert torch.equal(plain, scores) and libra.applied

    def gap(score: Tensor) -> float:
        sources = [x, *added.values()]
        found = torch.autograd.grad(score, sources, allow_unused=True)
        total = sum((s * g).sum() for s, g in zip(sources, found, strict=True) if g is not None)
        return abs((total - score).item() / score.item())

    assert gap(scores[:, 1].sum()) < 1e-8
    assert gap(plain[:, 1].sum()) > 1e-3


def test_where_nothing_has_to_be_balanced_maps_are_the_same_and_say_so() -> None:
    torch.manual_seed(0)
    net = SmallNet().eval()
    x = torch.randn(1, 3, 16, 16)
    with pytest.warns(CamkitWarning, match="is the same without libra=true"):
        found = camkit.maps(net, x, 1, layer="body", libra=True)
    assert torch.equal(found, camkit.maps(net, x, 1, layer="body"))


def test_attention_methods_take_balanced_gradients() -> None:
    torch.manual_seed(0)
    model = FAMILIES["timm ViT"].make().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(1, 3, 32, 48).double()
    for method in ("generic-attention", "legrad"):
        plain, found = (camkit.maps(model, x, 1, method=method, libra=on) for on in (False, True))
        assert (plain - found).abs().max() > 1e-3 * plain.abs().max()
    rollout = [camkit.maps(model, x, 1, method="attention-rollout", libra=on) for on in (False, True)]
    assert torch.equal(*rollout)


def test_the_layers_of_refinecam_are_the_same_whichever_was_asked_for_first() -> None:
    """Balanced gradients would tell other layers from noise."""
    torch.manual_seed(0)
    fresh, known = (timm.create_model("test_vit", img_size=64, num_classes=5).eval() for _ in range(2))
    for parameter in fresh.parameters():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.1)
    known.load_state_dict(fresh.state_dict())
    x = torch.randn(1, 3, 64, 64)
    camkit.maps(known, x, 1, method="refinecam")
    found = [camkit.maps(model, x, 1, method="refinecam", libra=True) for model in (fresh, known)]
    assert torch.equal(*found)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_checkpoints_run_balanced_again() -> None:
    torch.manual_seed(0)
    model = FAMILIES["timm ViT"].make().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, 3, 32, 48).double()
    about = {"layer": "patch_embed", "method": "hirescam", "libra": True}
    wanted = camkit.maps(model, x, 1, **about)
    model.set_grad_checkpointing(True)  # type: ignore[operator]
    if Version(torch.__version__) < Version("2.12"):  # which runs them where no mode sees it
        with pytest.raises(UsageError, match="does not see how the model makes a value"):
            camkit.maps(model, x, 1, **about)
        return
    assert (camkit.maps(model, x, 1, **about) - wanted).abs().max() <= 1e-12 * wanted.abs().max()


class Recurrent(nn.Module):
    """An LSTM over places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.LSTM(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        return self.head(self.lstm(self.conv(x).flatten(2).movedim(2, 0))[0][-1])


def test_other_threads_keep_their_gradients() -> None:
    usual, _ = pair()
    x, found = images(), {}

    def plain(name: str) -> None:
        inputs = x.clone().requires_grad_()
        (found[name],) = torch.autograd.grad(usual(inputs)[:, 0].sum(), inputs)

    plain("before")
    with Libra():
        thread = threading.Thread(target=plain, args=("beside",))
        thread.start()
        thread.join()
    assert torch.equal(found["before"], found["beside"])


def test_what_has_no_meaning_is_refused_or_said() -> None:
    usual, _ = pair()
    with pytest.raises(UsageError, match="shapleycam takes second derivatives"):
        camkit.maps(usual, images(), 1, layer="patches", method="shapleycam", libra=True)
    recurrent = Recurrent().eval()
    with pytest.raises(UsageError, match="no rule for recurrent layers"):
        camkit.maps(recurrent, torch.randn(1, 3, 16, 16), 1, layer="conv", libra=True)
    with pytest.warns(CamkitWarning, match="without fast mode: libra=true"):
        camkit.maps(usual, images(), 1, layer="patches", libra=True, fast=True)


def test_the_manifest_knows_it_and_verify_computes_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 255, (160, 160, 3), np.uint8)
    Image.fromarray(pixels).save("a.png")
    done = camkit_("explain", "a.png", "--model", "timm:test_vit@none", "-o", "libra=true", "--out", "out")
    assert done.exit_code == 0, done.stderr
    (line,) = [json.loads(line) for line in Path("out/manifest.jsonl").read_text().splitlines()]
    assert line["options"]["libra"] is True
    assert camkit_("verify", "out").exit_code == 0
