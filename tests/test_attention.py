"""Attention methods: equal to the papers written out, in models of three libraries, or refused."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import camkit
from camkit.errors import CamkitError, CamkitWarning, UsageError
from camkit.native.attention import watched
from camkit.native.method_table import ATTENTION

from .families import wake

CLASSES = 4
Read = slice | list[int]


# --- the papers written out -----------------------------------------------------------------------


@contextmanager
def recorded(patch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """The weights of each fused attention, `[B, H, q, k]`, in the graph: computed by definition."""
    found: list[Tensor] = []

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Any = None, *_: Any, **more: Any) -> Tensor:
        scores = q @ k.mT * (more.get("scale") or q.shape[-1] ** -0.5)
        weights = (scores if attn_mask is None else scores + attn_mask).softmax(-1)
        found.append(weights)
        return weights @ v

    with patch.context() as inside:
        inside.setattr(F, "scaled_dot_product_attention", attention)
        yield found


def rollout(weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
    """Abnar and Zuidema: from all tokens to those behind the last attention, `[q, k]`, of one image."""
    through = torch.eye(weights[0].shape[-1]).double()
    for attention in weights:
        heads = attention.mean(0)
        if heads.shape[0] == 1:  # a pool
            through = heads @ through
            continue
        mixed = 0.5 * heads + 0.5 * torch.eye(len(heads))
        through = mixed / mixed.sum(1, keepdim=True) @ through
    return through


def generic(weights: list[Tensor], slopes: list[Tensor]) -> Tensor:
    """Chefer, Gur and Wolf, in the same form."""
    relevance = torch.eye(weights[0].shape[-1]).double()
    for attention, slope in zip(weights, slopes, strict=True):
        mixed = torch.relu(slope * attention).mean(0)
        pooled = mixed.shape[0] == 1
        relevance = mixed @ relevance if pooled else relevance + mixed @ relevance
    return relevance


def legrad(family: Family, model: nn.Module, x: Tensor, target: int, patch: pytest.MonkeyPatch) -> Tensor:
    """Bousselham et al., of one image: each block's tokens in place of the last one's; `[k]`."""
    tokens: list[Any] = []
    blocks = [model.get_submodule(family.blocks.format(i)) for i in range(2)]
    handles = [b.register_forward_hook(lambda m, i, output: tokens.append(output)) for b in blocks]
    with recorded(patch) as weights:
        model(x)
        for handle in handles:
            handle.remove()
        total = torch.zeros(()).double()
        for layer in range(2):
            seen = len(weights)
            with blocks[-1].register_forward_hook(lambda m, i, output, t=tokens[layer]: t):
                score = model(x)[0, target]
            attention = weights[seen + 2] if family.pooled else weights[layer]
            (slope,) = torch.autograd.grad(score, attention, retain_graph=True)
            total = total + torch.relu(slope[0]).mean((0, 1)) / 2
    return total


@dataclass(frozen=True)
class Family:
    """A tiny model of two blocks, their names, which tokens its scores are read from, and the first patch.

    twin: the same model with fused attention, where `make` has none.
    """

    make: Callable[[], nn.Module]
    blocks: str
    read: Read
    prefix: int
    pooled: bool = False
    twin: Callable[[], nn.Module] | None = None


def of_timm(name: str, read: Read = slice(0, 1), prefix: int = 1, **more: Any) -> Family:
    options = {"num_heads": 3, "embed_dim": 24, "depth": 2, "patch_size": 16, **more}
    pooled = options.pop("pooled", False)

    def make() -> nn.Module:
        return timm.create_model(name, num_classes=CLASSES, img_size=(32, 48), **options)

    return Family(make, "blocks.{}", read, prefix, pooled)


class Logits(nn.Module):
    """A classifier of transformers that returns nothing else."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def of_transformers(kind: str, blocks: str, read: Read = slice(0, 1), prefix: int = 1) -> Family:
    facts = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32}
    facts |= {"image_size": 48, "patch_size": 16}

    def make(way: str) -> nn.Module:
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        if kind in ("CLIP", "Siglip"):
            vision = getattr(transformers, f"{kind}VisionConfig")(**facts).to_dict()
            config = getattr(transformers, f"{kind}Config")(vision_config=vision, num_labels=CLASSES)
        else:
            config = getattr(transformers, f"{kind}Config")(**facts, num_labels=CLASSES)
        of_kind = getattr(transformers, f"{kind}ForImageClassification")
        return Logits(of_kind._from_config(config, attn_implementation=way))

    return Family(lambda: make("eager"), f"model.{blocks}", read, prefix, twin=lambda: make("sdpa"))


def of_torchvision() -> nn.Module:
    return torchvision.models.VisionTransformer(48, 16, 2, 3, 24, 32, num_classes=CLASSES)


PATCHES, ALL = slice(1, None), slice(None)
FAMILIES = {
    "timm ViT": of_timm("vit_tiny_patch16_224"),
    "timm DeiT, distilled": of_timm("deit_tiny_distilled_patch16_224", slice(0, 2), 2),
    "timm DeiT III": of_timm("deit3_small_patch16_224"),
    "timm ViT, registers, mean": of_timm("vit_little_patch16_reg4_gap_256", slice(4, None), 4),
    "timm DINOv2, registers": of_timm("vit_small_patch14_reg4_dinov2", prefix=5),
    "timm BEiT, relative positions": of_timm("beit_base_patch16_224", PATCHES),
    "timm EVA-02, rotary positions": of_timm("eva02_tiny_patch14_224", PATCHES),
    "timm DINOv3": of_timm("vit_small_patch16_dinov3", slice(5, None), 5),
    "timm SigLIP, pool": of_timm("vit_base_patch16_siglip_224", ALL, 0, pooled=True),
    "torchvision ViT": Family(of_torchvision, "encoder.layers.encoder_layer_{}", slice(0, 1), 1),
    "transformers ViT": of_transformers("ViT", "vit.layers.{}"),
    "transformers DINOv2, registers": of_transformers(
        "Dinov2WithRegisters", "dinov2_with_registers.encoder.layer.{}", [0, *range(5, 14)], 5
    ),
    "transformers CLIP": of_transformers("CLIP", "vision_model.encoder.layers.{}", PATCHES),
    "transformers SigLIP, pool unused": of_transformers("Siglip", "vision_model.encoder.layers.{}", ALL, 0),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_papers_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one sweep with others, where the scores are read from the expected tokens."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    model = family.make().double().eval()
    x = torch.randn(2, 3, *((32, 48) if name.startswith("timm") else (48, 48))).double()
    for parameter in model.parameters():  # scales of layers are nearly zero, and heads are
        nn.init.normal_(parameter, std=0.4)
    methods = [*ATTENTION, "gradcam"]
    found = camkit.maps_by(model, x, [1, 3], method=methods)
    maps = {method: of_method for (method, _), of_method in found.items()}
    if family.twin:
        twin = family.twin().double().eval()
        twin.load_state_dict(model.state_dict())
        model = twin
    for b, target in enumerate((1, 3)):
        with recorded(monkeypatch) as weights:
            score = model(x[b : b + 1])[0, target]
        slopes = torch.autograd.grad(score, weights, allow_unused=True)
        used = [(w[0], s[0]) for w, s in zip(weights, slopes, strict=True) if s is not None]
        read = slice(None) if family.pooled else family.read
        for method, formula in (("attention-rollout", rollout), ("generic-attention", generic)):
            wanted = formula(*map(list, zip(*used, strict=True)))[read].mean(0)
            near(maps[method][b], wanted[family.prefix :])
        wanted = legrad(family, model, x[b : b + 1], target, monkeypatch)
        near(maps["legrad"][b], wanted[family.prefix :])


def near(found: Tensor, wanted: Tensor) -> None:
    """To 1e-5 of the peak, as a map of 16 x 16 patches."""
    assert found.shape in ((2, 3), (3, 3)) and wanted.detach().abs().max() > 0
    error = (found.flatten() - wanted.detach()).abs().max() / wanted.detach().abs().max()
    assert error < 1e-5


ONE_TOKEN = {
    "timm ViT": 1,
    "timm DeiT III": 1,
    "timm DINOv2, registers": 5,
    "timm SigLIP, pool": 0,
    "torchvision ViT": 1,
    "transformers ViT": 1,
}


@pytest.mark.filterwarnings("ignore:.*grad-eclip is zero everywhere. the values of no patch")
@pytest.mark.parametrize("name", ONE_TOKEN)
def test_grad_eclip_written_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of the last attention, weighted by the gradients of what it gives and by cosines.

    Fused or not: the queries and keys are those of the kernel, or of the product below the softmax.
    """
    family, prefix = FAMILIES[name], ONE_TOKEN[name]
    torch.manual_seed(0)
    model = (family.twin or family.make)().double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(2, 3, *((32, 48) if name.startswith("timm") else (48, 48))).double()
    found = camkit.class_maps(model, x, method="grad-eclip")
    if family.twin:
        plainly = family.make().double().eval()
        plainly.load_state_dict(model.state_dict())
        torch.testing.assert_close(camkit.class_maps(plainly, x, method="grad-eclip"), found)
    calls: list[tuple[Tensor, ...]] = []
    kernel = F.scaled_dot_product_attention

    def seen(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **more: Any) -> Tensor:
        output = kernel(q, k, v, *rest, **more)
        calls.append((q, k, v, output))
        return output

    with monkeypatch.context() as inside:
        inside.setattr(F, "scaled_dot_product_attention", seen)
        scores = model(x)
    q, k, v, output = calls[-1]
    for b, target in itertools.product((0, 1), range(CLASSES)):
        (gradient,) = torch.autograd.grad(scores[b, target], output, retain_graph=True)
        weights = gradient[b, :, 0].flatten()  # of all heads
        tokens = range(prefix, k.shape[2])
        cosines = [torch.cosine_similarity(q[b, :, 0].flatten(), k[b, :, i].flatten(), 0) for i in tokens]
        wanted = []
        for i, cosine in zip(tokens, cosines, strict=True):
            loose = (cosine - min(cosines)) / (max(cosines) - min(cosines))
            wanted.append(torch.relu((weights * v[b, :, i].flatten()).sum() * loose))
        if max(wanted) > 0:
            near(found[b, target], torch.stack(wanted))
        else:  # which may be, with six patches
            assert not found[b, target].any()
    assert found.amax((2, 3)).gt(0).float().mean() > 0.3


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm ViT, registers, mean", "read from other tokens"),
        ("timm DeiT, distilled", "read from other tokens"),
    ],
)
def test_grad_eclip_is_of_one_token(name: str, said: str) -> None:
    torch.manual_seed(0)
    model = FAMILIES[name].make().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    with pytest.raises(UsageError, match=said):
        camkit.maps(model, torch.randn(1, 3, 32, 48), 1, method="grad-eclip")


def test_grad_eclip_needs_queries_and_keys() -> None:
    """Not those of weights that two products make, that heads share, or that fall as products rise."""
    torch.manual_seed(0)

    def relative(x: Tensor) -> Tensor:
        weights = F.softmax(heads(x) @ heads(x).mT / 2 + heads(x) @ heads(x).sin().mT, -1)
        return joined(weights @ heads(x))

    def talking(x: Tensor) -> Tensor:
        logits = torch.einsum("bhij,gh->bgij", heads(x) @ heads(x).mT, torch.ones(2, 2))
        return joined(logits.softmax(-1) @ heads(x))

    def distant(x: Tensor) -> Tensor:
        unlike = torch.ones(()).sub(heads(x) @ heads(x).mT)
        return joined(unlike.softmax(-1) @ heads(x))

    for attend in (relative, talking, distant):
        with pytest.raises(UsageError, match="needs the queries and keys"):
            camkit.maps(Patches(attend).eval(), torch.randn(1, 3, 16, 16), 1, method="grad-eclip")


# --- attention of every form ----------------------------------------------------------------------


class Patches(nn.Module):
    """`attend` makes tokens of tokens, in each of two blocks; the scores are those of the first token."""

    def __init__(self, attend: Callable[[Tensor], Tensor], blocks: int = 2) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, CLASSES)
        self.mix = nn.ModuleList(nn.Linear(8, 8) for _ in range(blocks))
        self.token, self.attend = nn.Parameter(torch.randn(1, 1, 8)), attend

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).mT
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for part in self.mix:
            x = x + self.attend(part(x))
        return self.head(x[:, 0])


def heads(x: Tensor) -> Tensor:
    return x.unflatten(2, (2, 4)).transpose(1, 2)


def joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def plain(x: Tensor) -> Tensor:
    """The definition, with two heads."""
    weights = F.softmax(heads(x) @ heads(x).mT / 2, -1)
    return joined(weights @ heads(x))


def fused(x: Tensor, **more: Any) -> Tensor:
    return joined(F.scaled_dot_product_attention(heads(x), heads(x), heads(x), **more))


def by_einsum(x: Tensor) -> Tensor:
    weights = torch.einsum("b h i d, b h j d -> b h i j", heads(x), heads(x)).div(2).softmax(-1)
    return joined(torch.einsum("bhij, bhjd -> bhid", weights.float().to(x), heads(x)))


def masked(x: Tensor) -> Tensor:
    return fused(x, attn_mask=torch.ones(x.shape[1], x.shape[1], dtype=torch.bool))


def grouped(x: Tensor) -> Tensor:
    """Keys and values of two heads for four, of which two have no gradient."""
    four = heads(x).repeat_interleave(2, 1)
    return joined(F.scaled_dot_product_attention(four, heads(x), heads(x), enable_gqa=True)[:, ::2])


@contextmanager
def no_trace(model: nn.Module) -> Iterator[None]:
    hooks = [len(p._forward_hooks) + len(p._forward_pre_hooks) for p in model.modules()]
    yield
    assert hooks == [len(p._forward_hooks) + len(p._forward_pre_hooks) for p in model.modules()]


@pytest.mark.parametrize("attend", [fused, by_einsum, masked, grouped])
def test_whatever_computes_attention(attend: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x, wanted = torch.randn(2, 3, 16, 16), Patches(plain).eval()
    model = Patches(attend).eval()
    model.load_state_dict(wanted.state_dict())
    methods = ["attention-rollout", *(["generic-attention", "grad-eclip"] if attend is not grouped else [])]
    expected = camkit.maps_by(wanted, x, 1, method=methods)
    for key, maps in camkit.maps_by(model, x, 1, method=methods).items():
        torch.testing.assert_close(maps, expected[key])


@pytest.mark.parametrize("need_weights", [False, True])
def test_multihead_attention_is_the_model_s_own(need_weights: bool) -> None:
    """Its scores to the bit, tokens first, and the weights that it would return."""
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2)

    def attend(x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return attention(x, x, x, need_weights=need_weights)[0].transpose(0, 1)

    model, x = Patches(attend).eval(), torch.randn(2, 3, 16, 16)
    model.attention = attention.eval()
    expected = model(x)
    with no_trace(model), watched(model, 2, blocks=True) as watch:
        assert torch.equal(model(x), expected)
    tokens = torch.cat([model.token.expand(2, -1, -1), model.stem(x).flatten(2).mT], 1)
    tokens = model.mix[0](tokens).transpose(0, 1)
    weights = attention(tokens, tokens, tokens, average_attn_weights=False)[1]
    torch.testing.assert_close(watch.seen.attentions[0].weights(), weights.detach())


def test_class_tokens_that_join_later_alone_attend() -> None:
    """As in CaiT: the whole matrices written out."""

    class Joining(Patches):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).flatten(2).mT
            x = x + self.attend(self.mix[0](x))
            token = self.token.expand(len(x), -1, -1)
            for part in (self.mix[1], self.mix[2]):
                every = heads(part(torch.cat([token, x], 1)))
                token = token + joined(F.scaled_dot_product_attention(every[:, :, :1], every, every))
            return self.head(token[:, 0])

    torch.manual_seed(0)
    model, x = Joining(fused, 3).double().eval(), torch.randn(1, 3, 16, 16).double()
    maps = camkit.maps(model, x, 1, method="attention-rollout")
    with watched(model, 1) as watch:
        model(x)
    first, second, third = (attention.weights()[0].mean(0) for attention in watch.seen.attentions)
    through = torch.eye(17).double()
    through[1:, 1:] = (first + torch.eye(16)) / 2
    for attention in (second, third):
        mixed = torch.eye(17).double()
        mixed[:1] = (attention + mixed[:1]) / 2
        through = mixed @ through
    torch.testing.assert_close(maps[0].flatten(), through[0, 1:])
    with pytest.raises(UsageError, match="not defined for attention of class tokens alone"):
        camkit.maps(model, x, 1, method="legrad")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = Patches(fused).eval(), torch.randn(2, 3, 16, 16)
    expected = camkit.maps_by(model, x, 1, method=["attention-rollout", "generic-attention"])
    found = camkit.maps_by(model, x, 1, method=["attention-rollout", "generic-attention"], dtype=dtype)
    for key, maps in found.items():
        assert (maps - expected[key]).abs().max() < 0.03 * expected[key].abs().max()


# --- costs, threads and refusals ------------------------------------------------------------------


class Counted(torch.autograd.Function):
    """Counts the gradients that pass it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, count: list[int]) -> Tensor:
        ctx.count = count
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.count.append(len(gradient))
        return gradient, None


def tiny_vit(**more: Any) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224", num_classes=CLASSES, img_size=64, depth=3, embed_dim=24, **more
    )
    wake(model)
    return model.eval()


def test_a_sweep_takes_one_forward_and_one_backward() -> None:
    """LeGrad has another forward, of one image, for the scores of each block."""
    model, x, rows, gradients = tiny_vit(), torch.randn(2, 3, 64, 64), list[int](), list[int]()
    methods = ["gradcam", "hirescam", "attention-rollout", "generic-attention"]
    camkit.maps_by(model, x, [1, 2], method=methods)  # finds the layer
    model.patch_embed.register_forward_hook(lambda m, i, output: rows.append(len(output)))
    model.blocks[0].register_forward_hook(lambda m, i, output: Counted.apply(output, gradients))
    several = camkit.maps_by(model, x, [1, 2], method=methods)
    assert (rows, gradients) == ([2], [2])
    with_legrad = camkit.maps_by(model, x, [1, 2], method=[*methods, "legrad"])
    assert rows == [2, 2, 1]
    for (method, layer), maps in several.items():
        torch.testing.assert_close(with_legrad[method, layer], maps)
        torch.testing.assert_close(camkit.maps(model, x, [1, 2], layer=layer, method=method), maps)
    alone = camkit.maps(model, x, [1, 2], layer="blocks.0", method="legrad")
    torch.testing.assert_close(alone, with_legrad["legrad", layer])
    every = camkit.class_maps(model, x, method="legrad")
    torch.testing.assert_close(every[[0, 1], [1, 2]], alone)


def test_threads_share_a_model() -> None:
    model, images = tiny_vit(), torch.randn(4, 1, 3, 64, 64)
    expected = [camkit.maps_by(model, x, 1, method=ATTENTION) for x in images]
    found: dict[int, Any] = {}

    def work(index: int) -> None:
        for _ in range(3):
            found[index] = camkit.maps_by(model, images[index], 1, method=ATTENTION)

    threads = [Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, wanted in enumerate(expected):
        for key, maps in wanted.items():
            torch.testing.assert_close(found[index][key], maps)


def side_by_side(x: Tensor) -> Tensor:
    return fused(x) + fused(-x)


def dropping(x: Tensor) -> Tensor:
    return fused(x, dropout_p=0.1)


def turned(x: Tensor) -> Tensor:
    weights = (heads(x) @ heads(x).mT).softmax(-1)
    return joined((heads(x).mT @ weights.mT).mT) + fused(x)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: timm.create_model("test_convnext"), "no attention is seen"),
        (
            lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=64, depths=(1,) * 4),
            "windows",
        ),
        (lambda: timm.create_model("pit_ti_distilled_224", img_size=64, depth=[1, 1, 1]), "stay the same"),
        (lambda: timm.create_model("xcit_nano_12_p16_224", img_size=64), "stay the same"),
        (lambda: timm.create_model("test_vit3", img_size=64), "stay the same"),
        (lambda: Patches(side_by_side), "side by side"),
        (lambda: Patches(dropping), "at random"),
        (lambda: Patches(turned), "multiplies no values"),
        (lambda: Patches(lambda x: fused(x.detach())), "side by side"),
    ],
)
@pytest.mark.parametrize("method", ATTENTION)
def test_what_cannot_be_explained_is_refused(make: Any, reason: str, method: str) -> None:
    model = make().eval()
    with no_trace(model), pytest.raises(CamkitError, match=reason) as refused:
        camkit.maps(
            model,
            torch.randn(2, 3, 64, 64),
            1,
            layer=next(iter(dict(model.named_children()))),
            method=method,
        )
    assert "\n" not in str(refused.value)


def test_a_head_that_is_zero_reads_nothing() -> None:
    model = tiny_vit()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(UsageError, match="which tokens it is read from"):
        camkit.maps(model, torch.randn(1, 3, 64, 64), 1, method="attention-rollout")


class TokensFirst(nn.Module):
    """An encoder whose tokens are `[N, B, C]`, as torch has it by default."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, 8)
        layers = (nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(2))
        self.blocks, self.head = nn.Sequential(*layers), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).flatten(2).permute(2, 0, 1)).mean(0))


@pytest.mark.parametrize("images", [1, 3, 24])
def test_legrad_of_tokens_first_with_as_many_images_as_tokens(images: int) -> None:
    torch.manual_seed(0)
    model = TokensFirst().eval()
    x = torch.randn(images, 3, 32, 48)
    found = camkit.maps(model, x, 1, method="legrad")
    assert found.shape == (images, 4, 6)
    for index in range(images):
        torch.testing.assert_close(
            found[index : index + 1], camkit.maps(model, x[index : index + 1], 1, method="legrad")
        )


def test_blocks_that_cannot_stand_for_each_other_have_no_legrad() -> None:
    model = tiny_vit()
    model.blocks[1] = nn.Sequential(model.blocks[1])
    with pytest.raises(UsageError, match="blocks of one kind"):
        camkit.maps(model, torch.randn(1, 3, 64, 64), 1, method="legrad")


def test_fast_mode_says_that_it_is_not_used() -> None:
    model, x = tiny_vit(), torch.randn(1, 3, 64, 64)
    with pytest.warns(CamkitWarning, match="without fast mode"):
        maps = camkit.maps(model, x, 1, method="legrad", fast=True)
    torch.testing.assert_close(maps, camkit.maps(model, x, 1, method="legrad"))


def test_memory_bounds_how_many_classes_are_together(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = tiny_vit(), torch.randn(1, 3, 64, 64)
    expected = [camkit.class_maps(model, x, method=method) for method in ATTENTION]
    monkeypatch.setattr("camkit.native.gradients.GRADIENT_BYTES", 1)
    for method, maps in zip(ATTENTION, expected, strict=True):
        torch.testing.assert_close(camkit.class_maps(model, x, method=method), maps)


@pytest.mark.parametrize("method", ATTENTION[1:])
def test_functions_of_what_a_model_returns(method: str) -> None:
    """LeGrad asks for the scores of each block, so for other numbers of rows."""
    model, x = tiny_vit(), torch.randn(2, 3, 64, 64)
    expected = camkit.maps(model, x, 1, method=method)

    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"scores": self.model(x)}

    found = camkit.maps(Returns(), x, lambda scores: scores[:, 1], output="scores", method=method)
    torch.testing.assert_close(found, expected)


def test_a_nan_stays_a_nan() -> None:
    model, x = tiny_vit(), torch.randn(1, 3, 64, 64)
    x[0, 0, 0, 0] = torch.nan
    for method in ATTENTION:
        assert camkit.maps(model, x, 1, method=method).isnan().any()


HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "a softmax by hand": lambda logits: logits.exp() / logits.exp().sum(-1, keepdim=True),
    "a sigmoid": lambda logits: logits.sigmoid() / logits.shape[-1],
    "nothing": lambda logits: logits / logits.shape[-1],
}


@pytest.mark.parametrize("method", ["attention-rollout", "generic-attention"])
@pytest.mark.parametrize("kind", HIDDEN)
def test_a_block_whose_weights_nobody_sees_is_not_passed_over(kind: str, method: str) -> None:
    torch.manual_seed(0)
    turns = itertools.cycle((plain, lambda x: joined(HIDDEN[kind](heads(x) @ heads(x).mT / 2) @ heads(x))))
    model = Patches(lambda x: next(turns)(x)).eval()
    with pytest.raises(UsageError, match="attention whose weights come from no softmax that is seen"):
        camkit.maps(model, torch.randn(1, 3, 16, 16), 1, method=method)


class TokensOfClasses(nn.Module):
    """A token for each class, as in MCTformer, in front of the patches; the score is read from its own.

    behind: so many more tokens follow the patches.
    """

    def __init__(self, behind: int = 0) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, 8, 8, 8), nn.Identity()
        self.tokens = nn.Parameter(torch.randn(1, CLASSES + behind, 8))
        self.blocks = nn.ModuleList(nn.MultiheadAttention(8, 2, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens, patches = self.tokens.expand(len(x), -1, -1), self.patches(x).flatten(2).mT
        x = self.first(torch.cat([tokens[:, :CLASSES], patches, tokens[:, CLASSES:]], 1))
        for block in self.blocks:
            x = x + block(x, x, x, need_weights=False)[0]
        return self.head(x[:, :CLASSES])[..., 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "call", [{"method": "attention-rollout"}, {"method": "generic-attention"}, {"layer": "first"}], ids=str
)
def test_tokens_behind_the_patches_are_refused(call: dict[str, Any]) -> None:
    """Maps would be shifted by them: nothing in a shape tells where they are."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    with pytest.raises(CamkitError, match="the model has 3 tokens behind those of the image"):
        camkit.maps(TokensOfClasses(behind=3).eval(), x, 1, **call)
    if call == {"layer": "first"}:
        assert camkit.maps(TokensOfClasses().eval(), x, 1, **call).shape == (2, 4, 4)


def test_each_class_is_read_from_its_own_token(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = TokensOfClasses().double().eval(), torch.randn(2, 3, 24, 24).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.7)
    found = camkit.class_maps(model, x, method="generic-attention")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CamkitWarning)  # that nothing speaks for a class
        eclip = camkit.class_maps(model, x, method="grad-eclip")
    for b, target in itertools.product((0, 1), range(CLASSES)):
        with recorded(monkeypatch) as weights:
            scores = model(x[b : b + 1])
            slopes = torch.autograd.grad(scores[0, target], weights)
        through = torch.eye(CLASSES + 9).double()
        for attention, slope in zip(weights, slopes, strict=True):
            through = through + (attention * slope).clamp(min=0).mean((0, 1)).detach() @ through
        near(found[b, target], through[target, CLASSES:])
    # Of the predicted class alone, and of others beside it, it is the same map.
    for target in range(CLASSES):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CamkitWarning)
            alone = camkit.maps(model, x, target, method="grad-eclip")
        torch.testing.assert_close(alone, eclip[:, target])
    assert eclip.amax((0, 2, 3)).gt(0).sum() >= 2


@pytest.mark.parametrize("method", ["attention-rollout", "generic-attention"])
def test_each_image_is_read_from_its_own_tokens(method: str) -> None:
    """Where the largest of all patches counts, other patches are read in another image."""
    torch.manual_seed(0)
    model = timm.create_model(
        "test_vit", num_classes=CLASSES, img_size=32, global_pool="max", class_token=False
    )
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    model, x = model.double().eval(), torch.randn(3, 3, 32, 32).double()
    together = camkit.maps(model, x, 1, method=method)
    alone = torch.cat([camkit.maps(model, one[None], 1, method=method) for one in x])
    torch.testing.assert_close(together, alone)
