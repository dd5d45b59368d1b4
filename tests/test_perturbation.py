"""Perturbation: against loops over channels, with the head alone and with the whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import camkit
from camkit.core import hooks
from camkit.native import perturbation


def hooked(model: nn.Module, layer: str, x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The scores with the output of `layer` changed, by a plain hook and a whole forward."""
    handle = model.get_submodule(layer).register_forward_hook(lambda m, i, output: change(output.clone()))
    try:
        with torch.no_grad():
            return model(x)
    finally:
        handle.remove()


def ablationcam(model: nn.Module, layer: str, x: Tensor, target: int) -> Tensor:
    """Desai and Ramaswamy written out for one image, times the score that they divide by."""
    kept: list[Tensor] = []
    score = hooked(model, layer, x, lambda output: (kept.append(output.clone()), output)[1])[0, target]
    total = torch.zeros_like(kept[0][0, 0])
    for k, channel in enumerate(kept[0][0]):

        def zero(output: Tensor, k: int = k) -> Tensor:
            output[:, k] = 0
            return output

        total += (score - hooked(model, layer, x, zero)[0, target]) / score * channel
    return total * score


def scorecam(model: nn.Module, layer: str, x: Tensor, target: int) -> Tensor:
    """Wang et al. algorithm 1 written out for one image, without the final ReLU."""
    kept: list[Tensor] = []
    score = hooked(model, layer, x, lambda output: (kept.append(output.clone()), output)[1])[0, target]
    rises = []
    for channel in kept[0][0]:
        large = F.interpolate(channel[None, None], x.shape[-2:], mode="bilinear")
        mask = (large - large.min()) / (large.max() - large.min())
        with torch.no_grad():
            rises.append(model(x * mask)[0, target] - score)
    weights = torch.stack(rises).exp() / torch.stack(rises).exp().sum()
    return (weights[:, None, None] * kept[0][0]).sum(0)


PAPERS = {"ablationcam": ablationcam, "scorecam": scorecam}


class Around(nn.Module):
    """Something goes around the layer `body`, and is written into behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x += F.relu_(self.body(x))
        return self.fc(F.relu(x, inplace=True).mean((2, 3)))


class Counted(Around):
    """The number of images goes around, so it does not fit other numbers of rows."""

    def forward(self, x: Tensor) -> Tensor:
        count = x.shape[0]
        return self.fc(F.relu(self.body(self.stem(x)).reshape(count, 6, -1).mean(2)))


class Turned(Around):
    """Images come last in what goes around."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        by = x.movedim(0, -1)
        return self.fc(F.relu(self.body(x) + by.movedim(-1, 0)).mean((2, 3)))


class Undecided(Around):
    """Its course depends on values, so it cannot be split."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.abs().sum() > 0 else -x)


@pytest.mark.parametrize("method", PAPERS)
@pytest.mark.parametrize(
    ("make", "layer"),
    [(None, "body"), (None, "act"), *((m, "body") for m in (Around, Counted, Turned, Undecided))],
)
def test_the_paper_written_out(
    method: str, make: type[nn.Module] | None, layer: str, small_net: nn.Module, batch: Tensor
) -> None:
    """`act` is followed by mean and linear layer: the closed form. The last three run as a whole."""
    model = make().eval() if make else small_net
    maps = camkit.class_maps(model, batch, layer=layer, method=method)
    assert isinstance(maps, Tensor)
    for b in range(3):
        for c in range(5):
            expected = PAPERS[method](model, layer, batch[b : b + 1], c)
            torch.testing.assert_close(maps[b, c], expected, rtol=1e-4, atol=1e-5)


def test_a_split_model_does_what_the_whole_does(small_net: nn.Module, batch: Tensor) -> None:
    output = small_net.stem(batch).detach()
    image = torch.tensor([2, 0, 1, 1])
    part = perturbation.head(small_net, [batch], "stem")
    changed = output[image] * 2
    with torch.no_grad():
        expected = torch.cat([hooked(small_net, "stem", batch[i : i + 1], lambda o: o * 2) for i in image])
    torch.testing.assert_close(part.scores(changed.clone(), image), expected)
    small_net.register_forward_hook(lambda *_: None)  # a reason not to split
    torch.testing.assert_close(
        perturbation.head(small_net, [batch], "stem").scores(changed, image), expected
    )


def test_what_goes_around_the_layer_is_computed_once(batch: Tensor) -> None:
    model, runs = Around().eval(), []
    model.stem.register_forward_hook(lambda m, i, output: runs.append(len(output)))
    maps = camkit.maps(model, batch, 1, layer="body", method="ablationcam", batch_size=2)
    assert isinstance(maps, Tensor) and runs == [3, 3]  # of the explained forward, and for the ablations


def test_the_body_runs_once(small_net: nn.Module, batch: Tensor) -> None:
    runs: list[int] = []
    question = {"layer": ["body", "act"], "method": ["gradcam", "ablationcam", "eigencam"]}
    camkit.class_maps(small_net, batch, **question)  # which finds out how the layers are to be read
    small_net.stem[0].register_forward_hook(lambda m, i, output: runs.append(len(output)))
    camkit.class_maps(small_net, batch, **question)
    assert runs == [3]


@pytest.mark.parametrize(("method", "layer"), [("ablationcam", "body"), ("scorecam", "body")])
def test_the_batch_size_bounds_what_runs_together(
    method: str, layer: str, small_net: nn.Module, batch: Tensor
) -> None:
    expected = camkit.maps(small_net, batch, [4, 0, 2], layer=layer, method=method)
    sizes: list[int] = []
    small_net.pool.register_forward_hook(lambda m, i, output: sizes.append(len(output)))
    maps = camkit.maps(small_net, batch, [4, 0, 2], layer=layer, method=method, batch_size=7)
    torch.testing.assert_close(maps, expected)
    assert sizes == [3, 7, 7, 7, 3]  # of 3 images x 8 channels, behind the first forward


def test_memory_bounds_what_runs_together(
    small_net: nn.Module, batch: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camkit.native.perturbation.ROW_BYTES", 5 * batch[0].numel() * 4)
    sizes: list[int] = []
    small_net.pool.register_forward_hook(lambda m, i, output: sizes.append(len(output)))
    camkit.maps(small_net, batch, 0, layer="body", method="scorecam")
    assert sizes == [3, 5, 5, 5, 5, 4]


class Tokens(nn.Module):
    """Layer `norm` returns a class token and six patches of four channels; the head reads them all."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(28, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.unflatten(1, (4, -1))[:, :, 0].flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat([tokens.sum(1, keepdim=True) + 1, tokens], 1))
        return self.head(torch.tanh(tokens).flatten(1))


def test_class_tokens_are_not_ablated() -> None:
    model, x = Tokens().eval(), torch.randn(2, 4, 2, 3)
    maps = camkit.maps(model, x, 1, layer="norm", method="ablationcam")
    assert isinstance(maps, Tensor) and maps.shape == (2, 2, 3)
    _, captured = hooks.forward(model, x, ["norm"])
    features, expected = captured["norm"].features, torch.zeros(2, 2, 3)
    score = model(x)[:, 1].detach()
    for k in range(4):

        def zero(output: Tensor, k: int = k) -> Tensor:
            output[:, 1:, k] = 0
            return output

        drop = score - hooked(model, "norm", x, zero)[:, 1]
        expected += drop[:, None, None] * features[:, k]
    torch.testing.assert_close(maps, expected)


# --- the closed form ------------------------------------------------------------------------------


class Odd(nn.Linear):
    """No linear layer for all its name says."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).exp()


def pooled(*head: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head).eval()


class Inline(nn.Module):
    """Mean and reshaping in the forward itself."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module("0", nn.Conv2d(3, 8, 3))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.get_submodule("0")(x)
        return self.fc(torch.flatten(x.mean((2, 3), keepdim=True), 1))


@pytest.mark.parametrize(
    ("make", "affine"),
    [
        (lambda: pooled(nn.Dropout(0.5), nn.Linear(8, 5)), True),
        (lambda: pooled(nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 5))), True),
        (Inline, True),
        (lambda: pooled(nn.Linear(8, 5), nn.Softplus()), False),
        (lambda: pooled(Odd(8, 5)), False),
        (lambda: pooled(nn.LayerNorm(8), nn.Linear(8, 5)), False),
        (lambda: pooled(nn.Linear(8, 5), nn.Softmax(1)), False),
    ],
)
def test_only_affine_heads_go_without_runs(make: Any, affine: bool, batch: Tensor) -> None:
    model = make().eval()
    assert perturbation.head(model, [batch], "0").affine is affine
    maps = camkit.class_maps(model, batch, layer="0", method="ablationcam")
    assert isinstance(maps, Tensor)
    for c in range(5):
        expected = ablationcam(model, "0", batch[:1], c)
        torch.testing.assert_close(maps[0, c], expected, rtol=1e-4, atol=1e-5)


def test_a_hook_in_the_head_ends_what_is_certain(batch: Tensor) -> None:
    model = pooled(nn.Linear(8, 5))
    model[3].register_forward_hook(lambda m, i, scores: scores**2)
    assert not perturbation.head(model, [batch], "0").affine


def test_mean_and_linear_layer_by_the_formula(batch: Tensor) -> None:
    """`W_ck mean(A_k)`."""
    model = pooled(nn.Linear(8, 5))
    features = model[0](batch).detach()
    drops = model[3].weight[2] * features.mean((2, 3))
    expected = (drops[..., None, None] * features).sum(1).detach()
    torch.testing.assert_close(camkit.maps(model, batch, 2, layer="0", method="ablationcam"), expected)
